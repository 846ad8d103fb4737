"""Ctrl-C and SIGTERM at random moments: the command ends at once, cleanly, and goes on when it is started again."""

import signal
from concurrent.futures import ThreadPoolExecutor

from faults.commands import chain, draw_stops, last_lines, reference_of

WORK = "interrupts"
TRIES = 40
QUICK = 2
INTERRUPTS = 4  # of one training
SIDE_BY_SIDE = 2
LINES = 6  # printed after the signal, at most
BEGUN = ("Epoch ", "Resuming after epoch", "Training ended")  # what says that there is something to go on with
GOES_ON = ("goes on", "same command again")
UGLY = ("Traceback (most recent call last)", "enforce fail")


def faults(project, random, tries, folder):
    """Either signal as often as the other, in each phase."""
    reference_of(project)
    # the two in turn, and the other one first in every second round of the phases
    signals = [(signal.SIGINT, signal.SIGTERM)[(number + number // INTERRUPTS) % 2] for number in range(tries)]
    stops = draw_stops(random, signals)
    chains = [stops[start : start + INTERRUPTS] for start in range(0, len(stops), INTERRUPTS)]
    folders = [folder / f"training_{number}" for number in range(len(chains))]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for outcomes in pool.map(lambda place, part: chain(project, place, part, _complaint), folders, chains):
            yield from outcomes


def _complaint(status, before, after) -> str | None:
    """What is wrong with how a command ended after the signal."""
    for ugly in UGLY:
        if ugly in after:
            return f"status {status}, prints {ugly!r}: {last_lines(after)}"
    lines = [line for line in after.splitlines() if line.strip()]
    if len(lines) > LINES:
        return f"status {status}, prints {len(lines)} lines after the signal: {last_lines(after)}"
    begun = any(text in before for text in BEGUN)
    if begun and status != -signal.SIGTERM and status != 143 and not any(text in after for text in GOES_ON):
        return f"status {status}, does not say where training goes on: {last_lines(after)!r}"
    return None
