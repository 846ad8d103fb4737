"""Full and read-only disks, and paths that are no folders: refused in time and by name, nothing lost, and cured."""

import json
import os
import subprocess
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from faults.commands import (
    TINY,
    HangsError,
    complaint_about,
    finished,
    last_lines,
    reference_of,
    remains,
    started,
)
from faults.outcomes import RIGHT, TRACEBACK, WRONG, Outcome, refusal

WORK = "full and read-only disks"
TRIES = 20
QUICK = 3
EMPTY = 2**26  # bytes of a disk with room for all
FULL = 2**16  # and of one with room for nothing
MESSAGE = 1500  # characters of a refusal, at most
ROOM = (" MB", " GB", " kB", " KB", "MiB", "GiB", "KiB", "bytes")
TRAINING = "Epoch "


def faults(project, random, tries, folder):
    """Each kind in turn, at moments that are drawn."""
    reference = reference_of(project)
    kinds = (MOUNTED if _may_mount(folder) else ()) + ANYWHERE
    for number in range(tries):
        name, inject = kinds[number % len(kinds)]
        place = folder / f"disk_{number}"
        project.config(place, TINY)
        try:
            yield inject(f"{place.name}, {name}", place, reference, random)
        except HangsError as error:
            yield Outcome(WRONG, f"{place.name}, {name}: {error}")


def _refused(fault, command, path, before_training, full) -> Outcome | None:
    """None where the command has ended as it should: by one message with the path and, if it is full, the room."""
    status = command.wait()
    text = command.text()
    if "Traceback (most recent call last)" in text or "enforce fail" in text:
        return Outcome(TRACEBACK, f"{fault}: {last_lines(text)}")
    if status != 1:
        return Outcome(WRONG, f"{fault}: status {status}: {last_lines(text)}")
    if before_training and TRAINING in text:
        return Outcome(WRONG, f"{fault}: refused only after training: {last_lines(text)}")
    message = _message_of(text)
    if len(message) > MESSAGE or str(path) not in message:
        return Outcome(WRONG, f"{fault}: the message does not name {path}: {last_lines(text)}")
    if full and not any(unit in message for unit in ROOM):
        return Outcome(WRONG, f"{fault}: the message does not say what room is needed: {message}")
    return None


def _message_of(text) -> str:
    """The error at the end of an output: it stands behind an empty line."""
    return f"\n{text}".rpartition("\n\n")[2].strip()


def _no_folder(key, below, fault, place, reference, random) -> Outcome:
    """The path is a file, or below one: of the cache, one warning; else refused before training, and cured."""
    path = place / key
    path.write_text("a file")
    change = [f"{key}_path={path / 'below'}"] if below else []
    wanted = path / "below" if below else path
    return _unwritable(key, wanted, path.unlink, change, fault, place, reference)


def _read_only(key, fault, place, reference, random) -> Outcome:
    """The folder is on a disk that cannot be written."""
    path = place / key
    with disk(path, EMPTY, "ro"):
        return _unwritable(key, path, partial(_remount, path, "rw"), [], fault, place, reference)


def _in_proc(key, fault, place, reference, random) -> Outcome:
    """The folder is to be made where the system allows none."""
    path = Path("/proc", key)
    return _unwritable(key, path, lambda: None, [f"{key}_path={path}"], fault, place, reference)


def _unwritable(key, path, cure, change, fault, place, reference) -> Outcome:
    """What `key` names cannot be written from the start on; `cure` mends it."""
    arguments = ["--set", *change] if change else []
    if key == "cache":
        return _only_warned(fault, place, reference, path, arguments)
    with started(place, *arguments) as command:
        wrong = _refused(fault, command, path, before_training=True, full=False)
        message = command.text()
    if wrong:
        return wrong
    cure()
    complaint = finished(place, reference.result)
    return Outcome(WRONG, f"{fault}: {complaint}") if complaint else refusal(fault, _message_of(message), [str(path)])


def _only_warned(fault, place, reference, path, arguments=()) -> Outcome:
    """Without a cache training only takes longer."""
    with started(place, *arguments) as command:
        status = command.wait()
        text = command.text()
    if status != 0:
        return Outcome(TRACEBACK if "Traceback" in text else WRONG, f"{fault}: status {status}: {last_lines(text)}")
    warned = [line for line in text.splitlines() if "Warning" in line and "cache_path" in line and str(path) in line]
    if not warned:
        return Outcome(WRONG, f"{fault}: no warning names {path}: {last_lines(text)}")
    complaint = complaint_about(place, reference.result)
    return Outcome(WRONG, f"{fault}: {complaint}") if complaint else Outcome(RIGHT, fault)


def _full_cache(fault, place, reference, random) -> Outcome:
    """A disk with room for no cache."""
    with disk(place / "cache", FULL):
        return _only_warned(fault, place, reference, place / "cache")


def _full_checkpoints(from_start, fault, place, reference, random) -> Outcome:
    """The disk is full at once, or is filled after some epochs; then there is room again."""
    path = place / "checkpoints"
    epochs = 0 if from_start else int(random.integers(1, TINY["hyperparameters.epochs"] - 2))
    with disk(path, EMPTY):
        wrong, message = _until_full(path, epochs, fault, place)
        if wrong:
            return wrong
        lost = _lost(path, message.count(TRAINING) - 1)
        if lost:
            return Outcome(WRONG, f"{fault} after {epochs} epochs: {lost}")
        (path / "filling").unlink()
        complaint = finished(place, reference.result)
    if complaint:
        return Outcome(WRONG, f"{fault} after {epochs} epochs: {complaint}")
    return refusal(fault, _message_of(message), [str(path)])


def _until_full(path, epochs, fault, place) -> tuple[Outcome | None, str]:
    """Train until the disk at `path` is full, at once or after some epochs: what is wrong with its end; all output."""
    if not epochs:
        _fill(path)
    with started(place) as command:
        if epochs:
            command.says(TRAINING, epochs)
            _fill(path)
        wrong = _refused(f"{fault} after {epochs} epochs", command, path, before_training=False, full=True)
        return wrong, command.text()


def _lost(path, epochs) -> str | None:
    """Whether checkpoints of so many epochs are there and can be loaded, and nothing is half-written."""
    if remains(path):
        return f"temporary files are left: {remains(path)}"
    found = [len(torch.load(file, weights_only=True)["history"]) for file in path.rglob("last.pt")]
    if epochs > 0 and max(found, default=0) < epochs:
        return f"{epochs} epochs were saved, {found} are there"
    return None


def _full_results(from_start, fault, place, reference, random) -> Outcome:
    """There is no room for metrics.json; later there is, and it is written without training."""
    path = place / "results"
    epochs = 0 if from_start else int(random.integers(1, TINY["hyperparameters.epochs"]))
    with disk(path, FULL):
        wrong, message = _until_full(path, epochs, fault, place)
        if wrong:
            return wrong
        (path / "filling").unlink()
        with started(place) as command:
            status = command.wait()
            text = command.text()
        if status != 0 or (TRAINING in message and TRAINING in text):
            return Outcome(WRONG, f"{fault}: the next start trains, or ends with status {status}: {last_lines(text)}")
        complaint = complaint_about(place, reference.result)
    if complaint:
        return Outcome(WRONG, f"{fault}: {complaint}")
    return refusal(fault, _message_of(message), [str(path)])


def _limited(share, fault, place, reference, random) -> Outcome:
    """No file may be larger than a share of the largest checkpoint; then it may."""
    path = place / "checkpoints"
    with started(place, largest=int(reference.largest * share)) as command:
        wrong = _refused(fault, command, path, before_training=False, full=False)
        message = command.text()
    if wrong:
        return wrong
    lost = _lost(path, 0)
    complaint = lost or finished(place, reference.result)
    if complaint:
        return Outcome(WRONG, f"{fault}: {complaint}")
    return refusal(fault, _message_of(message), [str(path)])


def _metrics_to_nowhere(fault, place, reference, random) -> Outcome:
    """metrics.json is a link to a device that is always full: it is replaced by a file, or refused by name."""
    path = place / "results" / "metrics.json"
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    with started(place) as command:
        if command.wait() != 0:
            wrong = _refused(fault, command, path, before_training=False, full=False)
            return wrong or refusal(fault, last_lines(command.text()), [str(path)])
    if not path.is_file() or not json.loads(path.read_text()):
        return Outcome(WRONG, f"{fault}: status 0 without results")
    complaint = complaint_about(place, reference.result)
    return Outcome(WRONG, f"{fault}: {complaint}") if complaint else Outcome(RIGHT, fault)


def _may_mount(folder) -> bool:
    """Whether this user may mount a file system of its own."""
    if os.geteuid() != 0:
        return False
    try:
        with disk(folder / "tried", FULL):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def disk(path, size, mode="rw"):
    """A file system in memory, of so many bytes, in a new folder."""
    path.mkdir()
    _command("mount", "-t", "tmpfs", "-o", f"size={size},{mode}", "tmpfs", path)
    try:
        yield
    finally:
        _command("umount", "--lazy", path)


def _remount(path, mode):
    _command("mount", "-o", f"remount,{mode}", path)


def _command(*line):
    subprocess.run(line, check=True, capture_output=True)


def _fill(path):
    """Take all the room of a disk."""
    with open(path / "filling", "wb", buffering=0) as file:
        room = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
        while room > 0:
            file.write(bytes(min(room, 2**20)))
            room = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize


MOUNTED = (
    ("checkpoints: the disk fills", partial(_full_checkpoints, False)),
    ("cache: read-only", partial(_read_only, "cache")),
    ("results: read-only", partial(_read_only, "results")),
    ("results: the disk fills", partial(_full_results, False)),
    ("checkpoints: read-only", partial(_read_only, "checkpoints")),
    ("checkpoints: a full disk", partial(_full_checkpoints, True)),
    ("results: a full disk", partial(_full_results, True)),
    ("cache: a full disk", _full_cache),
)
ANYWHERE = (
    ("checkpoints: a file", partial(_no_folder, "checkpoints", False)),
    ("results: below a file", partial(_no_folder, "results", True)),
    ("checkpoints: files of half a checkpoint at most", partial(_limited, 0.5)),
    ("cache: a file", partial(_no_folder, "cache", False)),
    ("checkpoints: in /proc", partial(_in_proc, "checkpoints")),
    ("checkpoints: below a file", partial(_no_folder, "checkpoints", True)),
    ("results: a file", partial(_no_folder, "results", False)),
    ("metrics.json: a link to /dev/full", _metrics_to_nowhere),
    ("checkpoints: files of a tenth of a checkpoint at most", partial(_limited, 0.1)),
    ("results: in /proc", partial(_in_proc, "results")),
    ("cache: below a file", partial(_no_folder, "cache", True)),
    ("cache: in /proc", partial(_in_proc, "cache")),
)
