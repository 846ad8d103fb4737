"""Commands that are killed or interrupted, that run side by side, or whose disks are full or read-only."""

import json
import os
import signal
import subprocess
import time
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from faults.commands import (
    ENDS,
    EPOCH,
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
from helpers import pixels_of, write_images

from utils import CheckpointError, load_trained, scan
from utils.data.reading import decode, stored_size

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
BEGUN = (EPOCH, "Resuming after epoch", "Training ended")  # what says that there is something to go on with
BUILD = "SIGKILL of a cache build"  # WRONG once
IMAGES, LARGE = 200, (600, 800)  # of the cache that is built
TWO = {  # processes at once, what must come of them, and what each has once brought to light
    "two trainings in one folder": (REFUSED, WRONG),
    "a network read while it is trained": (RIGHT, TRACEBACK),
    "two cache builds": (RIGHT, WRONG),
    "two trainings of other settings in one folder": (REFUSED, WRONG),
    "a training after a killed one": (RIGHT, ""),
    "a training beside a cache build": (RIGHT, ""),
    "a cache read while it is built": (RIGHT, TRACEBACK),
    "two trainings of one cache": (RIGHT, ""),
}
DISKS = {  # the folder, what is wrong with it, and what each has once brought to light
    ("checkpoints", "fills"): TRACEBACK,
    ("results", "is below a file"): TRACEBACK,
    ("cache", "is a file"): TRACEBACK,
    ("checkpoints", "holds half a checkpoint"): TRACEBACK,
    ("checkpoints", "is in /proc"): TRACEBACK,
    ("results", "is read-only"): WRONG,
    ("checkpoints", "is full"): TRACEBACK,
    ("checkpoints", "is below a file"): TRACEBACK,
    ("results", "fills"): TRACEBACK,
    ("cache", "is read-only"): TRACEBACK,
    ("checkpoints", "is a file"): TRACEBACK,
    ("results", "is a file"): TRACEBACK,
    ("checkpoints", "is read-only"): TRACEBACK,
    ("results", "is full"): UNCLEAR,
    ("cache", "is full"): HANG,
    ("checkpoints", "holds a tenth of a checkpoint"): TRACEBACK,
    ("results", "is in /proc"): TRACEBACK,
    ("cache", "is below a file"): TRACEBACK,
    ("cache", "is in /proc"): TRACEBACK,
    ("results", "has a link to /dev/full"): TRACEBACK,
}
MOUNTED = ("fills", "is read-only", "is full")
DISK = 2**26  # bytes of such a disk
LONGEST = 1500  # characters of a refusal


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
    return judged(fault, finished(place, expected, ranks=ranks))


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


def killed_builds(project, random, tries, folder):
    """Kill the build of a cache while it decodes; then it is opened again."""
    for name in ("first", "second"):
        write_images(folder / "Data" / name, IMAGES // 2, LARGE, seed=len(name))
    for number in range(tries):
        place = folder / f"cache_{number}"
        config = project.config(place, {"data_path": str(folder / "Data")})
        share = random.random()
        yield _safely(_killed_build, f"{BUILD} after {share:.2f} of it", place, config, share)


def _killed_build(fault, place, config, share) -> Outcome:
    for attempt in range(PATIENCE):
        with started(place, name="audit") as command:
            command.until(lambda: list(config.cache_path.glob(".*.npy.*")))
            command.sleep(share * IMAGES / 100 / 2**attempt)
            command.send(signal.SIGKILL)
            status = command.wait(ENDS)
            if status > 0:
                return judged(fault, f"ends with status {status}: {last_lines(command.text())}")
        if status != 0 and not list(config.cache_path.glob("*.json")):
            break
        for file in config.cache_path.iterdir():  # it was built before the kill: again, and sooner
            file.unlink()
    return judged(fault, wrong_pixels(config))


def wrong_pixels(config) -> str:
    """Say what is wrong with the cache, opened again: not the pixels of the images, or a warning."""
    size = stored_size(config.image)
    images = scan(config.data_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels = pixels_of(config.data_path, size, config.cache_path)[np.arange(len(images.paths))]
    if caught:
        return str(caught[0].message)
    for path, found in zip(images.paths, pixels, strict=True):
        if not np.array_equal(found, decode(path, size)):
            return f"other pixels of {path}"
    if remains(config.cache_path):
        return f"temporary files are left: {remains(config.cache_path)}"
    return ""


def killed_ranks(project, random, tries, folder):
    """Kill one of two processes of torchrun: the other ends too, and the run goes on to the identical result."""
    reference = reference_of(project, ranks=2)
    for number in range(tries):
        rank = int(random.integers(2))
        share = random.random()
        place = folder / str(number)
        project.config(place, TINY)
        yield _safely(
            _killed_rank, f"rank {rank} killed after {share:.2f} of the epochs", place, rank, share, reference
        )


def _killed_rank(fault, place, rank, share, reference) -> Outcome:
    with started(place, ranks=2) as command:
        command.says(PHASES["epochs"])
        command.sleep(share * reference.seconds["epochs"])
        ranks = command.ranks()
        if len(ranks) != 2:
            return judged(fault, f"{len(ranks)} processes where two should train: {last_lines(command.text())}")
        ranks[rank].kill()
        status = command.wait(ENDS)
        if status == 0 or any(one.is_running() for one in ranks):
            return judged(fault, f"status {status}, or processes still run: {ranks}")
    return _finish(fault, place, reference.result, ranks=2)


def two_at_once(project, random, tries, folder):
    """Run two processes at once, in each combination of training, cache building and reading."""
    reference = reference_of(project)
    for number in range(tries):
        kind = list(TWO)[number % len(TWO)]
        place = folder / str(number)
        outcome = _safely(_two, kind, project, place, reference, random)
        must, _ = TWO[kind]
        if not outcome.bad and outcome.kind != must:
            outcome = judged(kind, f"{outcome.note}: {outcome.kind}, not {must}")
        yield outcome


def _two(kind, project, place, reference, random) -> Outcome:
    config = project.config(place, TINY)
    share = random.random()
    match kind:
        case "two trainings in one folder":
            return _second_refused(kind, place, reference, share, [])
        case "two trainings of other settings in one folder":
            return _second_refused(kind, place, reference, share, ["--set", "hyperparameters.learning_rate=0.0005"])
        case "a network read while it is trained":
            pair = [str(path) for path in sorted(project.data.rglob("*.png"))[:: int(random.integers(8, 20))][:2]]
            return _read_beside(kind, place, partial(_explain, config, pair), reference, "train")
        case "a cache read while it is built":
            trained = project.trained(place / "trained")
            read = partial(_measure, trained)
            (place / "config.yml").write_text((place / "trained" / "config.yml").read_text())
            return _read_beside(kind, place, read, None, "audit")
        case "a training after a killed one":
            with started(place) as first:
                first.says(PHASES["epochs"])
                first.sleep(share * reference.seconds["epochs"])
                first.send(signal.SIGKILL)
                first.wait()
            return _finish(kind, place, reference.result)
    other = place
    names = ("audit", "audit")
    if kind == "a training beside a cache build":
        names = ("train", "audit")
    if kind == "two trainings of one cache":
        names = ("train", "train")
        other = place / "other"
        project.config(other, TINY | {"cache_path": str(config.cache_path)})
    with started(place, name=names[0]) as first:
        first.sleep(0.5 * share)
        with started(other, name=names[1]) as second:
            statuses = first.wait(), second.wait()
            texts = last_lines(first.text()), last_lines(second.text())
    complaint = wrong_pixels(config)
    if names[0] == "train":
        complaint = complaint or complaint_about(place, reference.result)
    if other != place:
        complaint = complaint or complaint_about(other, reference.result)
    if statuses != (0, 0):
        complaint = f"statuses {statuses}: {texts}"
    return judged(kind, complaint)


def _second_refused(fault, place, reference, share, arguments) -> Outcome:
    """Start a second training while the first is held in its epochs; the first ends undisturbed."""
    with started(place) as first:
        first.says(EPOCH)
        first.sleep(share * reference.seconds["epochs"] * 0.7)  # with some epochs to go
        first.send(signal.SIGSTOP)
        with started(place, *arguments) as second:
            status = second.wait()
            message = second.text()
        first.send(signal.SIGCONT)
        ended = first.wait()
        complaint = last_lines(first.text())
    if ended == 0:
        complaint = complaint_about(place, reference.result)
    if complaint or status != 1 or EPOCH in message or "Traceback" in message:
        return judged(fault, f"{complaint}; the second, status {status}: {last_lines(message)}")
    return refusal(fault, message_of(message), [str(first.pid)])


def _read_beside(fault, place, read, reference, name) -> Outcome:
    """Read again and again while a command runs."""
    count = 0
    with started(place, name=name) as command:
        end = time.monotonic() + LIMIT
        while (command.status is None or not count) and time.monotonic() < end:
            try:
                complaint = read()
                count += 1
            except CheckpointError as error:
                complaint = str(error)
                if not count and "holds no training run" in complaint:
                    complaint = ""
            if complaint:
                return judged(fault, f"after {count} readings: {complaint}")
            command.sleep(0.2)
        status = command.wait()
        text = command.text()
    complaint = ""
    if status != 0:
        complaint = f"the command beside: status {status}: {last_lines(text)}"
    elif reference:
        complaint = complaint_about(place, reference.result)
    return judged(f"{fault}: {count} readings", complaint)


def _explain(config, pair) -> str:
    """Load the current network and explain a pair; say what is not whole."""
    trained = load_trained(config)
    explanation = trained.explain(tuple(pair))
    values = np.concatenate([trained.validation[1], explanation.distance, explanation.factual.numpy().ravel()])
    if not np.isfinite(values).all() or not 1 <= len(trained.history) <= TINY["hyperparameters.epochs"]:
        return f"{len(trained.history)} epochs, or values that are not finite"
    return ""


def _measure(trained) -> str:
    splits = trained.load_splits()
    if not np.allclose(trained.distances(splits, splits.valid_pairs), trained.validation[1], atol=1e-5):
        return "other distances than in training"
    return ""


def disks(project, random, tries, folder):
    """Train where a folder cannot be written, or no more: refused in time and by name, nothing lost, and cured."""
    reference = reference_of(project)
    kinds = [kind for kind in DISKS if kind[1] not in MOUNTED or may_mount(folder)]
    for number in range(tries):
        key, problem = kinds[number % len(kinds)]
        place = folder / f"disk_{number}"
        project.config(place, TINY)
        epochs = int(random.integers(1, TINY["hyperparameters.epochs"] - 2))
        if problem != "fills":
            epochs = 0
        fault = f"{key} {problem} after {epochs} epochs"
        yield _safely(_on_disk, fault, key, problem, place, epochs, reference)


def _on_disk(fault, key, problem, place, epochs, reference) -> Outcome:
    path = place / key
    arguments = []
    largest = None
    disk = nullcontext()
    match problem:
        case "is a file":
            path.write_text("a file")
        case "is below a file":
            path.write_text("a file")
            arguments = ["--set", f"{key}_path={path / 'below'}"]
        case "is in /proc":
            path = Path("/proc", key)
            arguments = ["--set", f"{key}_path={path}"]
        case "holds half a checkpoint":
            largest = reference.largest // 2
        case "holds a tenth of a checkpoint":
            largest = reference.largest // 10
        case "has a link to /dev/full":
            path.mkdir()
            (path / "metrics.json").symlink_to("/dev/full")
        case _:
            disk = mounted(path)
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
        whole = key == "cache" or problem == "has a link to /dev/full"
        complaint = badly_refused(status, text, path, "full" in fault or epochs)
        if whole:
            complaint = badly_warned(status, text, path, place, reference)
        elif EPOCH in text and not (epochs or largest or problem == "is full"):
            complaint = f"refused only after training: {last_lines(text)}"
        if complaint or whole:
            return judged(fault, complaint)
        if problem == "is read-only":
            command("mount", "-o", "remount,rw", path)
        elif path.is_file():
            path.unlink()
        (path / "filling").unlink(missing_ok=True)
        saved = 0
        for file in place.glob("checkpoints/*/last.pt"):
            saved = max(saved, file.stat().st_size)
        if (epochs and not saved) or remains(place):
            return judged(fault, f"the epochs are lost, or temporary files are left: {remains(place)}")
        complaint = finished(place, reference.result)
    if complaint:
        return judged(fault, complaint)
    return refusal(fault, message_of(text), [str(path)])


def badly_refused(status, text, path, full) -> str:
    """Say what is wrong with a refusal: it is one message with the path and, if the disk is full, the room."""
    message = message_of(text)
    if status != 1 or "Traceback" in text or "enforce fail" in text:
        return f"status {status}: {last_lines(text)}"
    if len(message) > LONGEST or str(path) not in message:
        return f"the message does not name {path}: {last_lines(text)}"
    if full and "room" not in message:
        return f"the message does not say that room is needed: {message}"
    return ""


def badly_warned(status, text, path, place, reference) -> str:
    """Say what is wrong where training ends, and only a warning names the path of a cache."""
    if status != 0:
        return f"status {status}: {last_lines(text)}"
    metrics = path / "metrics.json"
    warned = [line for line in text.splitlines() if "Warning" in line and "cache_path" in line and str(path) in line]
    if not warned and not (metrics.is_file() and json.loads(metrics.read_text())):
        return f"no warning names {path}: {last_lines(text)}"
    return complaint_about(place, reference.result)


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
