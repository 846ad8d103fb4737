"""Commands that are killed or interrupted, that run side by side, or whose disks are full or read-only.

Folders that are files or below one: tests/train/test_claim.py, tests/test_cures.py and tests/data/test_cache.py. Cache
builds that are killed, and two at once: tests/data/test_cache.py.
"""

import os
import signal
import subprocess
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from faults.commands import (
    ENDS,
    LIMIT,
    PHASES,
    TINY,
    HangsError,
    complaint_about,
    finished,
    last_lines,
    reference_of,
    remains,
    started,
)
from faults.outcomes import HANG, REFUSED, RIGHT, TRACEBACK, UNCLEAR, WRONG, Outcome, judged, refusal

from utils import CheckpointError, load_trained

STOPS = {  # signal and phase, and what each has once brought to light; the start is a cold one
    ("SIGKILL", "epochs"): WRONG,
    ("SIGINT", "epochs"): TRACEBACK,
    ("SIGTERM", "end"): "",
    ("SIGKILL", "end"): WRONG,
    ("SIGINT", "start"): TRACEBACK,
    ("SIGTERM", "epochs"): WRONG,
    ("SIGKILL", "start"): "",
    ("SIGINT", "end"): TRACEBACK,
    ("SIGTERM", "start"): TRACEBACK,
}
OF_ONE_TRAINING = 5  # stops
PATIENCE = 6  # starts in which a signal may come too late
LINES = 6  # printed after Ctrl-C, at most
EPOCH = "Epoch "
BEGUN = (EPOCH, "Resuming after epoch", "Training ended")  # what says that there is something to go on with
TWO = {  # processes at once, what must come of them, and what each has once brought to light
    "two trainings in one folder": (REFUSED, WRONG),
    "a network read while it is trained": (RIGHT, TRACEBACK),
    "two trainings of other settings in one folder": (REFUSED, WRONG),
    "a cache read while it is built": (RIGHT, TRACEBACK),
}
DISKS = {  # the folder, what is wrong with it, and what each has once brought to light
    ("checkpoints", "fills"): TRACEBACK,
    ("checkpoints", "holds half a checkpoint"): TRACEBACK,
    ("checkpoints", "is in /proc"): TRACEBACK,
    ("results", "is read-only"): WRONG,
    ("cache", "is full"): HANG,
    ("checkpoints", "is full"): TRACEBACK,
    ("results", "fills"): TRACEBACK,
    ("cache", "is read-only"): TRACEBACK,
    ("checkpoints", "is read-only"): TRACEBACK,
    ("results", "is full"): UNCLEAR,
    ("checkpoints", "holds a tenth of a checkpoint"): TRACEBACK,
    ("results", "is in /proc"): TRACEBACK,
    ("cache", "is in /proc"): TRACEBACK,
    ("results", "has a link to /dev/full"): TRACEBACK,
}
SHARES = {"holds half a checkpoint": 1 / 2, "holds a tenth of a checkpoint": 1 / 10}
MOUNTED = ("fills", "is read-only", "is full")
DISK = 2**26  # bytes of such a disk


def _safely(act, fault, *arguments) -> Outcome:
    """Return the outcome, also of a command that hangs."""
    try:
        return act(fault, *arguments)
    except HangsError as error:
        return judged(fault, f"{HANG}: {error}")


def stopped(project, random, tries, folder):
    """Stop trainings again and again; each goes on, and ends like one that was never stopped."""
    reference = reference_of(project)
    stops = list(STOPS)
    for begin in range(0, tries, OF_ONE_TRAINING):
        place = folder / f"training_{begin}"
        project.config(place, TINY)
        outcomes = []
        for number in range(begin, min(begin + OF_ONE_TRAINING, tries)):
            name, phase = stops[number % len(stops)]
            share = random.random()
            fault = f"{place.name}, {name} after {share:.3f} of the phase {phase}"
            outcomes.append(_safely(_stop, fault, place, signal.Signals[name], phase, share, reference))
        end = _safely(_finish, "end", place, reference.result)
        for outcome in outcomes:
            if end.bad and not outcome.bad:
                outcome = Outcome(end.kind, f"{outcome.note}: {end.note}")
            yield outcome


def _finish(fault, place, expected, ranks=0) -> Outcome:
    return judged(fault, finished(place, expected, ranks))


def _stop(fault, place, number, phase, share, reference) -> Outcome:
    """Start, and send a signal when the moment has come; where the command ends before, again and sooner."""
    for attempt in range(PATIENCE):
        with started(place, cold=phase == "start") as command:
            command.says(PHASES[phase])
            command.sleep(share * reference.seconds[phase] / 2**attempt)
            before = command.text()
            by_itself = command.status
            command.send(number)
            status = command.wait(ENDS)
            after = command.text().removeprefix(before)
        if status == 0:
            continue
        if by_itself or (number == signal.SIGKILL and status != -signal.SIGKILL):
            return judged(fault, f"ended by itself with status {status}: {last_lines(before + after)}")
        return judged(fault, _ended_badly(number, status, before, after))
    return judged(fault, f"{PATIENCE} commands in turn took no notice of the signal")


def _ended_badly(number, status, before, after) -> str:
    """Say what is wrong with how a command ended after a signal."""
    begun = any(text in before for text in BEGUN)
    if "Traceback" in after or "enforce fail" in after:
        return f"status {status}: {last_lines(after)}"
    if len(after.split("\n")) > LINES + 1 + after.count("\n\n"):
        return f"status {status}, prints too many lines after the signal: {last_lines(after)}"
    if number == signal.SIGINT and begun and "goes on" not in after and "same command again" not in after:
        return f"status {status}, does not say where training goes on: {last_lines(after)!r}"
    return ""


def killed_ranks(project, random, tries, folder):
    """Kill one of two processes of torchrun: the other ends too, and the run goes on to the identical result."""
    reference = reference_of(project, ranks=2)
    for number in range(tries):
        rank = int(random.integers(2))
        share = random.random()
        place = folder / str(number)
        project.config(place, TINY)
        fault = f"rank {rank} killed after {share:.2f} of the epochs"
        yield _safely(_killed_rank, fault, place, rank, share, reference)


def _killed_rank(fault, place, rank, share, reference) -> Outcome:
    with started(place, ranks=2) as command:
        command.says(PHASES["epochs"])
        command.sleep(share * reference.seconds["epochs"])
        ranks = command.ranks()
        if len(ranks) != 2:
            return judged(fault, f"{len(ranks)} processes where two should train: {last_lines(command.text())}")
        ranks[rank].kill()
        status = command.wait(ENDS)
        if status == 0 or any(process.is_running() for process in ranks):
            return judged(fault, f"status {status}, or processes still run: {ranks}")
    return _finish(fault, place, reference.result, ranks=2)


def two_at_once(project, random, tries, folder):
    """Run two processes at once: a training with another or with a reader, a cache build with a reader."""
    reference = reference_of(project)
    for number in range(tries):
        kind = list(TWO)[number % len(TWO)]
        outcome = _safely(_two, kind, project, folder / str(number), reference, random)
        must, _ = TWO[kind]
        if not outcome.bad and outcome.kind != must:
            outcome = judged(kind, f"{outcome.note}: {outcome.kind}, not {must}")
        yield outcome


def _two(kind, project, place, reference, random) -> Outcome:
    match kind:
        case "a network read while it is trained":
            config = project.config(place, TINY)
            pair = tuple(sorted(project.data.rglob("*.png"))[:2])
            return _read_beside(kind, place, partial(_explain, config, pair), reference, "train")
        case "a cache read while it is built":
            trained = project.trained(place)
            return _read_beside(kind, place, partial(_measure, trained), None, "audit")
    arguments = []
    if "other settings" in kind:
        arguments = ["--set", "hyperparameters.learning_rate=0.0005"]
    project.config(place, TINY)
    with started(place) as first:
        first.says(EPOCH)
        first.sleep(random.random() * reference.seconds["epochs"] * 0.7)  # with some epochs to go
        first.send(signal.SIGSTOP)
        with started(place, *arguments) as second:
            status = second.wait()
            message = second.text()
        first.send(signal.SIGCONT)
        complaint = last_lines(first.text()) if first.wait() else complaint_about(place, reference.result)
    if complaint or status != 1 or EPOCH in message or "Traceback" in message:
        return judged(kind, f"{complaint}; the second, status {status}: {last_lines(message)}")
    return refusal(kind, message_of(message), [str(first.pid)])


def _read_beside(fault, place, read, reference, name) -> Outcome:
    """Read again and again while a command runs."""
    count = 0
    with started(place, name=name) as command:
        end = time.monotonic() + LIMIT
        while (command.status is None or not count) and time.monotonic() < end:
            try:
                read()
                count += 1
            except CheckpointError as error:
                if count or "holds no training run" not in str(error):
                    return judged(fault, f"after {count} readings: {error}")
            command.sleep(0.2)
        status = command.wait()
        text = command.text()
    complaint = ""
    if status != 0:
        complaint = f"the command beside: status {status}: {last_lines(text)}"
    elif reference:
        complaint = complaint_about(place, reference.result)
    return judged(f"{fault}: {count} readings", complaint)


def _explain(config, pair):
    load_trained(config).explain(pair)


def _measure(trained):
    splits = trained.load_splits()
    trained.distances(splits, splits.valid_pairs)


def disks(project, random, tries, folder):
    """Train where a folder cannot be written, or no more: refused in time and by name, nothing lost, and cured."""
    reference = reference_of(project)
    kinds = [kind for kind in DISKS if kind[1] not in MOUNTED or may_mount(folder)]
    for number in range(tries):
        key, problem = kinds[number % len(kinds)]
        place = folder / f"disk_{number}"
        project.config(place, TINY)
        epochs = int(random.integers(1, TINY["hyperparameters.epochs"] - 2)) if problem == "fills" else 0
        yield _safely(_on_disk, f"{key} {problem} after {epochs} epochs", key, problem, place, epochs, reference)


def _on_disk(fault, key, problem, place, epochs, reference) -> Outcome:
    path = place / key
    arguments = []
    largest = None
    disk = nullcontext()
    if problem in MOUNTED:
        disk = mounted(path)
    elif problem in SHARES:
        largest = int(reference.largest * SHARES[problem])
    elif problem == "is in /proc":
        path = Path("/proc", key)
        arguments = ["--set", f"{key}_path={path}"]
    else:
        path.mkdir()
        (path / "metrics.json").symlink_to("/dev/full")
    with disk:
        if problem == "is read-only":
            command("mount", "-o", "remount,ro", path)
        elif problem == "is full":
            fill(path)
        with started(place, *arguments, largest=largest) as training:
            if epochs:
                training.says(EPOCH, epochs)
                fill(path)
            status = training.wait()
            text = training.text()
        trains = key == "cache" or problem == "has a link to /dev/full"
        complaint = ""
        if status != (0 if trains else 1) or "Traceback" in text or "enforce fail" in text:
            complaint = f"status {status}: {last_lines(text)}"
        elif trains:
            complaint = complaint_about(place, reference.result)
            warned = [line for line in text.splitlines() if "Warning" in line and "cache_path" in line]
            if key == "cache" and str(path) not in "".join(warned):
                complaint = f"no warning names {path}: {last_lines(text)}"
        elif problem in ("fills", "is full") and "room" not in message_of(text):
            complaint = f"the message does not say that room is needed: {last_lines(text)}"
        elif EPOCH in text and problem in ("is in /proc", "is read-only"):
            complaint = f"refused only after training: {last_lines(text)}"
        if complaint or trains:
            return judged(fault, complaint)
        if problem == "is read-only":
            command("mount", "-o", "remount,rw", path)
        (path / "filling").unlink(missing_ok=True)
        saved = [file.stat().st_size for file in place.glob("checkpoints/*/last.pt")]
        if (epochs and not any(saved)) or remains(place):
            return judged(fault, f"the epochs are lost, or temporary files are left: {remains(place)}")
        complaint = finished(place, reference.result)
    if complaint:
        return judged(fault, complaint)
    return refusal(fault, message_of(text), [str(path)])


def message_of(text) -> str:
    """Return the error at the end of an output: it stands behind an empty line."""
    return f"\n{text}".rpartition("\n\n")[2].strip()


def may_mount(folder) -> bool:
    """Return whether this user may mount a file system."""
    try:
        with mounted(folder / "tried"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def mounted(path):
    """Mount a file system in memory in a new folder."""
    path.mkdir(exist_ok=True)
    command("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", path)
    try:
        yield
    finally:
        command("umount", "--lazy", path)


def command(*line):
    subprocess.run(line, check=True, capture_output=True)


def fill(path):
    """Take all the room of a disk."""
    with open(path / "filling", "wb", buffering=0) as file:
        while room := os.statvfs(path).f_bavail * os.statvfs(path).f_frsize:
            file.write(bytes(min(room, 2**20)))
