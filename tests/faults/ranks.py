"""Two processes of torchrun, one of them killed: the other ends too, and the run goes on to the identical result."""

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress

from faults.commands import (
    NUMBERS,
    TINY,
    Command,
    HangsError,
    cold_process,
    complaint_about,
    last_lines,
    result_of,
)
from faults.outcomes import RIGHT, WRONG, Outcome
from helpers import torchrun

WORK = "a rank killed under torchrun"
TRIES = 3
QUICK = 1
ENDS = 60  # seconds within which all have to end


def faults(project, random, tries, folder):
    """Each kill in a run of its own; they share the uninterrupted run of two processes."""
    whole = folder / "whole"
    project.config(whole, TINY)
    with launched(whole) as command:
        command.says("pretrained: False")
        began = time.monotonic()
        command.says("Training ended")
        seconds = time.monotonic() - began
        if command.wait() != 0:
            yield Outcome(WRONG, f"torchrun without any fault: {last_lines(command.text())}")
            return
    reference = result_of(whole)
    for number in range(tries):
        place = folder / f"killed_{number}"
        project.config(place, TINY)
        rank = int(random.integers(2))
        share = random.random()
        fault = f"rank {rank} killed after {share:.2f} of the epochs"
        try:
            complaint = _killed(place, rank, share * seconds) or _resumed(place, reference)
        except HangsError as error:
            complaint = str(error)
        yield Outcome(WRONG, f"{fault}: {complaint}") if complaint else Outcome(RIGHT, fault)


def _killed(place, rank, seconds) -> str | None:
    """Kill one process so many seconds after training has begun: whether all the others end, with an error."""
    with launched(place) as command:
        command.says("pretrained: False")
        command.sleep(seconds)
        ranks = _children(command.pid)
        if len(ranks) != 2:
            return f"{len(ranks)} processes where two should train: {last_lines(command.text())}"
        os.kill(ranks[rank], signal.SIGKILL)
        status = command.wait(ENDS)
        left = [one for one in ranks if _runs(one)]
        if left:
            return f"processes still run: {left}"
        return None if status != 0 else "torchrun ends with status 0"


def _resumed(place, reference) -> str | None:
    """The same command again: what is wrong with the result."""
    with launched(place) as command:
        status = command.wait()
        if status != 0:
            return f"the next start ends with status {status}: {last_lines(command.text())}"
    return complaint_about(place, reference)


@contextmanager
def launched(folder):
    """torchrun with the config of `folder`; its processes, which have groups of their own, are killed with it."""
    output = folder / f"output_{next(NUMBERS)}"
    config = ["--config", str(folder / "config.yml")]
    line = [*torchrun(2, folder / "logs"), "-m", "utils", "train", *config]
    command = Command(cold_process(line, folder, output), output)
    try:
        yield command
    finally:
        ranks = _children(command.pid)
        command.end()
        for one in ranks:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)


def _processes():
    """The number, parent and state of each process."""
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], check=True, capture_output=True, text=True).stdout
    return [(int(pid), int(parent), state) for pid, parent, state in map(str.split, lines.splitlines())]


def _children(pid) -> list[int]:
    """The processes that a process has started and that run, the first one first: the ranks in their order."""
    return sorted(one for one, parent, state in _processes() if parent == pid and not state.startswith("Z"))


def _runs(pid) -> bool:
    """Whether a process runs, and is not only waited for."""
    return any(one == pid and not state.startswith("Z") for one, _, state in _processes())
