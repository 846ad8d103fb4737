"""The real commands in processes of their own: started, stopped at a given moment, read; and what became of their runs.

A cold start is `python -m ...`. A warm one runs the same module in a process that is forked from one where torch is
imported already, which saves ten seconds each time.
"""

import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from faults.outcomes import RIGHT, TRACEBACK, WRONG, Outcome
from helpers import ENVIRONMENT, forks
from tqdm import tqdm

TINY = {
    "hyperparameters.epochs": 8,
    "hyperparameters.verbose": True,
    "explanation.layer": "last",
    "explanation.steps": 2,
}
LIMIT = 300  # seconds after which a command hangs
ENDS = 30  # the same after a signal
POLL = 0.01  # seconds
MARKS = {"start": "", "epochs": "pretrained: False", "end": "Training ended"}  # what is printed where a phase begins
STARTUP = 10  # seconds of the imports, about
PATIENCE = 6  # starts in which a signal may come too late
NUMBERS = itertools.count()


class HangsError(Exception):
    """A command has not ended, or not come so far, in time."""


class Command:
    """A command that runs; its output, both streams, goes to a file."""

    def __init__(self, process, output: Path):
        self.process = process
        self.output = output
        self.pid = process.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative after a signal; None while it runs."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def text(self) -> str:
        """All output so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def until(self, holds, limit=LIMIT) -> bool:
        """Wait until `holds()` or the end of the command; whether it holds. Raises HangsError."""
        end = time.monotonic() + limit
        while not holds():
            if self.status is not None:
                return bool(holds())
            if time.monotonic() > end:
                raise HangsError(f"hangs: no end within {limit} s; {last_lines(self.text())}")
            time.sleep(POLL)
        return True

    def says(self, text: str, count=1, limit=LIMIT) -> bool:
        """Wait until this is printed so many times; whether it was before the end. Raises HangsError."""
        return self.until(lambda: self.text().count(text) >= count, limit)

    def wait(self, limit=LIMIT) -> int:
        """The exit status, once it has ended. Raises HangsError."""
        self.until(lambda: self.status is not None, limit)
        return self.status

    def sleep(self, seconds: float):
        """Let it run for so long, or until it ends."""
        end = time.monotonic() + seconds
        while self.status is None and time.monotonic() < end:
            time.sleep(POLL)

    def send(self, number: signal.Signals):
        """A signal to the command and all processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self):
        """Kill whatever of it still runs."""
        self.send(signal.SIGKILL)
        if self.status is None:
            self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDS) if isinstance(self.process, subprocess.Popen) else self.process.join(ENDS)


@contextmanager
def started(folder: Path, *arguments, module="utils.training", cold=False, largest=None):
    """A command with the config of `folder`, killed when the block ends. largest: bytes that a file may have."""
    output = folder / f"output_{next(NUMBERS)}"
    arguments = ["--config", str(folder / "config.yml"), *arguments]
    if cold:
        process = cold_process([sys.executable, "-m", module, *arguments], folder, output)
    else:
        process = _warm_process(module, arguments, folder, output, largest)
    command = Command(process, output)
    try:
        yield command
    finally:
        command.end()


def cold_process(line, folder, output):
    """A process that is its own group."""
    with open(output, "w") as file:
        return subprocess.Popen(
            line,
            cwd=folder,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _warm_process(module, arguments, folder, output, largest):
    """The same, forked where torch is imported."""
    process = forks().Process(target=_run, args=(module, arguments, folder, output, largest))
    process.start()
    return process


def _run(module, arguments, folder, output, largest):
    """`python -m module` in this process."""
    os.setsid()
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if largest is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    tqdm.set_lock(threading.RLock())  # the usual one is of all processes, and a killed one would leave it behind
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def last_lines(text: str) -> str:
    """The end of an output, in one line."""
    return " / ".join(text.strip().splitlines()[-4:])[-600:]


def result_of(folder: Path) -> dict[str, str | bytes]:
    """All that the one run below `folder` has come to, part by part, without times, names of runs and settings."""
    (run,) = _folders(folder / "checkpoints")
    parts = {}
    for name in ("best.pt", "last.pt"):
        content = torch.load(run / name, weights_only=True)
        content.pop("config")  # has the paths
        parts |= dict(_parts(name, content))
    return parts | dict(_parts("metrics.json", json.loads((folder / "results" / "metrics.json").read_text())))


def _parts(name, value):
    """Nested values one by one, each with its path; what differs from run to run is left out."""
    if isinstance(value, torch.Tensor):
        yield name, f"{value.dtype} {tuple(value.shape)} ".encode() + value.contiguous().numpy().tobytes()
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in ("seconds", "run"):
                yield from _parts(f"{name}/{key}", part)
    elif isinstance(value, list | tuple):
        yield f"{name}/length", str(len(value))
        for number, part in enumerate(value):
            yield from _parts(f"{name}/{number}", part)
    else:
        yield name, repr(value)


def _folders(path):
    """The folders in a folder: of checkpoints, one for each run."""
    return sorted(one for one in path.iterdir() if one.is_dir())


def remains(folder: Path) -> list[str]:
    """Temporary files that nobody will move into place any more."""
    files = [*folder.rglob(".*.pt.*"), *folder.rglob(".*.pixels.*"), *folder.rglob(".*.hashes.*")]
    return sorted(file.name for file in files)


def complaint_about(folder: Path, reference: dict) -> str | None:
    """What is wrong with a finished training in `folder`, which should be identical to `reference`."""
    runs = [run.name for run in _folders(folder / "checkpoints")]
    if len(runs) != 1:
        whole = [name for name in runs if (folder / "checkpoints" / name / "best.pt").exists()]
        return f"{len(runs)} folders of runs, {len(whole)} with a best.pt, where one was to go on: {runs}"
    if remains(folder):
        return f"temporary files are left: {remains(folder)}"
    found = result_of(folder)
    differing = sorted(name for name in found.keys() | reference.keys() if found.get(name) != reference.get(name))
    if differing:
        return f"{len(differing)} parts differ from those of an uninterrupted run: {', '.join(differing[:3])}"
    current = (folder / "checkpoints" / "current").read_text().strip()
    return None if current == runs[0] else f"`current` names {current}, not {runs[0]}"


@dataclass(frozen=True)
class Reference:
    """What an uninterrupted run of TINY comes to, and the seconds of each phase."""

    result: dict[str, str | bytes]
    seconds: dict[str, float]
    largest: int  # bytes of last.pt


@cache
def reference_of(project) -> Reference:
    """Trained once for all works."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        project.config(folder, TINY)
        with started(folder) as command:
            command.says(MARKS["epochs"])
            began = time.monotonic()
            command.says(MARKS["end"])
            trained = time.monotonic()
            if command.wait() != 0:
                raise RuntimeError(f"a command without any fault fails: {last_lines(command.text())}")
        seconds = {"start": STARTUP, "epochs": trained - began, "end": time.monotonic() - trained}
        largest = max(file.stat().st_size for file in folder.rglob("last.pt"))
        return Reference(result_of(folder), seconds, largest)


@dataclass(frozen=True)
class Stop:
    """A signal to a training at a moment: a phase, and a share of it that has passed."""

    number: signal.Signals
    phase: str
    share: float

    def __str__(self):
        return f"{self.number.name} after {self.share:.3f} of the phase {self.phase}"


def draw_stops(random, signals) -> list[Stop]:
    """One for each signal; half of them in the epochs, the others in the end and in the start, which is a cold one."""
    phases = ("epochs", "end", "epochs", "start")
    return [Stop(one, phases[number % len(phases)], random.random()) for number, one in enumerate(signals)]


def chain(project, folder: Path, stops, complaint=None) -> list[Outcome]:
    """A training that is stopped again and again, goes on each time, and ends: an outcome for each stop.

    complaint(status, before, after): what is wrong with how a command ended, or None; outputs before and after the
    signal.
    """
    reference = reference_of(project)
    project.config(folder, TINY)
    found = [_checked(lambda stop=stop: _stopped(folder, stop, reference, complaint)) for stop in stops]
    end = _checked(lambda: finished(folder, reference.result))
    outcomes = []
    for stop, one in zip(stops, found, strict=True):
        text = one or end
        kind = RIGHT if text is None else TRACEBACK if "Traceback" in text else WRONG
        outcomes.append(Outcome(kind, f"{folder.name}, {stop}" + (f": {text}" if text else "")))
    return outcomes


def _checked(act) -> str | None:
    """The complaint of `act`; that it hangs is one too."""
    try:
        return act()
    except HangsError as error:
        return str(error)


def _stopped(folder, stop, reference, complaint) -> str | None:
    """Start, and stop when the moment has come; where it ends before, again and sooner."""
    for attempt in range(PATIENCE):
        with started(folder, cold=stop.phase == "start") as command:
            command.says(MARKS[stop.phase])
            command.sleep(stop.share * reference.seconds[stop.phase] / 2**attempt)
            before = command.text()
            by_itself = command.status is not None
            command.send(stop.number)
            status = command.wait(ENDS)
            text = command.text()
        if status == 0:
            continue
        if by_itself or (stop.number == signal.SIGKILL and status != -signal.SIGKILL):
            return f"ended by itself with status {status}: {last_lines(text)}"
        return complaint(status, before, text.removeprefix(before)) if complaint else None
    return f"{PATIENCE} commands in turn took no notice of the signal"


def finished(folder: Path, reference: dict, *arguments) -> str | None:
    """Start once more and let it end: what is wrong with the result."""
    with started(folder, *arguments) as command:
        status = command.wait()
        if status != 0:
            return f"the next start ends with status {status}: {last_lines(command.text())}"
    return complaint_about(folder, reference)
