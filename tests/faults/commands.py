"""The real commands in processes of their own: started, stopped at a given moment, read; and what became of their runs.

A cold start is `python -m utils ...`. A warm one runs the same in a process that is forked from one where torch is
imported already, which saves ten seconds each time.
"""

import itertools
import json
import os
import resource
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

import psutil
import torch
from helpers import ENVIRONMENT, forks, torchrun
from tqdm import tqdm

TINY = {
    "hyperparameters.epochs": 8,
    "hyperparameters.verbose": True,
    "explanation.layer": "last",
    "explanation.steps": 2,
}
LIMIT = 300  # seconds after which a command hangs
ENDS = 60  # the same after a signal
POLL = 0.01  # seconds
PHASES = {"start": "", "epochs": "pretrained: False", "end": "Training ended"}  # what is printed where each begins
STARTUP = 10  # seconds of the imports, about
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
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll()
        return self.process.exitcode

    def text(self) -> str:
        """Return all output so far."""
        if not self.output.exists():
            return ""
        return self.output.read_text(errors="replace")

    def until(self, holds, limit=LIMIT):
        """Wait until `holds()` or the end of the command. Raises HangsError."""
        end = time.monotonic() + limit
        while self.status is None and not holds():
            if time.monotonic() > end:
                raise HangsError(f"hangs: no end within {limit} s; {last_lines(self.text())}")
            time.sleep(POLL)

    def says(self, text: str, count=1):
        """Wait until this is printed so many times, or until the end. Raises HangsError."""
        self.until(lambda: self.text().count(text) >= count)

    def wait(self, limit=LIMIT) -> int:
        """Return the exit status, once it has ended. Raises HangsError."""
        self.until(lambda: False, limit)
        return self.status

    def sleep(self, seconds: float):
        """Let it run for so long, or until it ends."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)

    def ranks(self) -> list[psutil.Process]:
        """Return the processes that it has started and that run, the first one first."""
        with suppress(psutil.NoSuchProcess):
            return sorted(psutil.Process(self.pid).children(), key=lambda child: child.pid)
        return []

    def send(self, number: signal.Signals):
        """Send a signal to the command and all processes of its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self):
        """Kill whatever of it still runs."""
        ranks = self.ranks()
        self.send(signal.SIGKILL)
        for rank in ranks:  # they have groups of their own
            with suppress(psutil.NoSuchProcess):
                rank.kill()
        if self.status is None:
            self.process.kill()
        with suppress(HangsError):
            self.wait(ENDS)


@contextmanager
def started(folder: Path, *arguments, name="train", cold=False, largest=None, ranks=0):
    """Start a command with the config of `folder`; it is killed when the block ends.

    Args:
        folder: Holds config.yml; the output goes there.
        arguments: Of the command.
        name: Of the command.
        cold: Whether Python is started for it.
        largest: Bytes that a file may have.
        ranks: How many processes torchrun starts; 0 for none.
    """
    output = folder / f"output_{next(NUMBERS)}"
    line = [name, "--config", str(folder / "config.yml"), *arguments]
    if cold or ranks:
        start = torchrun(ranks, folder / "logs") if ranks else [sys.executable]
        with open(output, "w") as file:
            process = subprocess.Popen(
                [*start, "-m", "utils", *line],
                cwd=folder,
                env=os.environ | ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    else:
        process = forks().Process(target=_run, args=(line, folder, output, largest))
        process.start()
    command = Command(process, output)
    try:
        yield command
    finally:
        command.end()


def _run(line, folder, output, largest):
    """Do what `python -m utils` does, in this process."""
    os.setsid()
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    tqdm.set_lock(threading.RLock())  # the usual one is of all processes, and a killed one would leave it behind
    sys.argv = ["utils", *line]
    runpy.run_module("utils", run_name="__main__", alter_sys=True)


def last_lines(text: str) -> str:
    """Return the end of an output, in one line."""
    head = ""
    if "Traceback (most" in text:
        head = "Traceback (most recent call last) "
    return head + " / ".join(text.strip().splitlines()[-4:])[-600:]


def result_of(folder: Path) -> dict:
    """Return all that the run below `folder` has come to, without times, names of runs and settings."""
    (run,) = runs_of(folder)
    result = {"metrics.json": _comparable(json.loads((folder / "results" / "metrics.json").read_text()))}
    for name in ("best.pt", "last.pt"):
        content = torch.load(run / name, weights_only=True)
        content.pop("config")  # has the paths
        for part, value in content.items():
            result[f"{name}/{part}"] = _comparable(value)
    return result


def _comparable(value):
    """Return nested values so that `==` compares them; what differs from run to run is left out."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)}", value.contiguous().numpy().tobytes()
    if isinstance(value, list | tuple):
        return [_comparable(part) for part in value]
    if not isinstance(value, dict):
        return repr(value)
    return {key: _comparable(part) for key, part in value.items() if key not in ("seconds", "run")}


def runs_of(folder) -> list[Path]:
    return sorted(folder.glob("checkpoints/*/"))


def remains(folder: Path) -> list[str]:
    """List temporary files that nobody will move into place any more."""
    names = []
    for pattern in (".*.pt.*", ".*.npy.*", ".*.json.*", ".*.hashes.*"):
        names += [path.name for path in folder.rglob(pattern)]
    return names


def complaint_about(folder: Path, expected: dict) -> str:
    """Say what is wrong with a finished training in `folder`, which should be identical to the one expected."""
    runs = runs_of(folder)
    if len(runs) != 1:
        return f"{len(runs)} folders of runs where one was to go on"
    if remains(folder):
        return f"temporary files are left: {remains(folder)}"
    result = result_of(folder)
    differing = [name for name in result.keys() | expected.keys() if result.get(name) != expected.get(name)]
    if differing:
        return f"other than in an uninterrupted run: {sorted(differing)}"
    current = (folder / "checkpoints" / "current").read_text().strip()
    if current != runs[0].name:
        return f"`current` names {current}, not {runs[0].name}"
    return ""


@dataclass(frozen=True)
class Reference:
    """What an uninterrupted run of TINY comes to."""

    result: dict
    seconds: dict[str, float]
    """Of each phase."""
    largest: int
    """Bytes of last.pt."""


@cache
def reference_of(project, ranks=0) -> Reference:
    """Train once for all works."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        project.config(folder, TINY)
        with started(folder, ranks=ranks) as command:
            command.says(PHASES["epochs"])
            began = time.monotonic()
            command.says(PHASES["end"])
            trained = time.monotonic()
            if command.wait() != 0:
                raise RuntimeError(f"a command without any fault fails: {last_lines(command.text())}")
        seconds = {"start": STARTUP, "epochs": trained - began, "end": time.monotonic() - trained}
        return Reference(result_of(folder), seconds, runs_of(folder)[0].joinpath("last.pt").stat().st_size)


def finished(folder: Path, expected: dict, ranks=0) -> str:
    """Start once more and let it end; say what is wrong with the result."""
    with started(folder, ranks=ranks) as command:
        status = command.wait()
        if status != 0:
            return f"the next start ends with status {status}: {last_lines(command.text())}"
    return complaint_about(folder, expected)
