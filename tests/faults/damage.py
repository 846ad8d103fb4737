"""Files damaged in every way, files that expand, and limits around whatever reads them."""

import io
import os
import resource
import shutil
import signal
import zipfile
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from faults.outcomes import HANG, MEMORY, TRACEBACK, WRONG

DAMAGES = {  # of any file, and what each has once brought to light
    "cut": TRACEBACK,
    "without its last bytes": WRONG,
    "emptied": TRACEBACK,
    "of zeros": TRACEBACK,
    "with a flipped bit": WRONG,
    "with a flipped head": TRACEBACK,
    "with another digit in its head": MEMORY,
    "with a blank part": WRONG,
    "longer": WRONG,
    "of text": TRACEBACK,
    "of noise": TRACEBACK,
    "a folder": TRACEBACK,
    "a link to itself": TRACEBACK,
    "a pipe": HANG,
    "deleted": TRACEBACK,
}
HEAD = 64  # bytes
EXPANDED = 256 << 20  # bytes
RESET = Path("/proc/self/clear_refs")


class TooMuch(Exception):  # noqa: N818
    """An act took longer, or more memory, than it may."""


def damage(path: Path, kind: str, random):
    """Damage a file as one of DAMAGES says."""
    content = bytearray(path.read_bytes())
    size = len(content)
    path.unlink()
    match kind:
        case "cut":
            del content[random.integers(1, max(size, 2)) :]
        case "without its last bytes":
            del content[-random.integers(1, 13) :]
        case "emptied":
            content.clear()
        case "of zeros":
            content = bytes(10)
        case "with a flipped bit":
            content = flipped(content, random, 0, size)
        case "with a flipped head":
            content = flipped(content, random, 0, min(HEAD, size))
        case "with another digit in its head":
            places = [place for place in range(min(2 * HEAD, size)) if chr(content[place]).isdigit()] or [0]
            content[random.choice(places)] = ord("0") + random.integers(10)
        case "with a blank part":
            start = random.integers(size * 3 // 4)
            content[start : start + size // 4] = bytes(size // 4)
        case "longer":
            content += random.bytes(random.integers(1, 5000))
        case "of text":
            content = b"These are not the bytes that belong here.\n" * int(random.integers(1, 100))
        case "of noise":
            content = random.bytes(1000)
        case "a folder":
            (path / "inside").mkdir(parents=True)
        case "a link to itself":
            path.symlink_to(path.name)
        case "a pipe":
            os.mkfifo(path)
    if kind != "deleted" and not os.path.lexists(path):
        path.write_bytes(content)


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the bytes of all files of a folder and below, apart from those of locks."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file() and ".lock" not in path.name:
            files[path] = path.read_bytes()
    return files


def restore(folder: Path, files: dict[Path, bytes]):
    """Make a folder hold these files alone."""
    shutil.rmtree(folder)
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def flipped(content: bytes, random, start: int, end: int) -> bytes:
    """Flip one bit of the bytes from `start` to `end`."""
    content = bytearray(content)
    content[random.integers(start, end)] ^= 1 << random.integers(8)
    return bytes(content)


def flipped_in(content: bytes, part: str, random) -> bytes:
    """Flip one bit of a file of torch.save: in its "pickle", in its largest "tensor", or in its "directory"."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if part == "directory":
            return flipped(content, random, archive.start_dir, len(content))
        entries = {entry.compress_size: entry for entry in archive.infolist() if "/data/" in entry.filename}
        entry = entries[max(entries)]
        if part == "pickle":
            entry = next(entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
    start = entry.header_offset + 30 + len(entry.filename)
    return flipped(content, random, start, start + entry.compress_size)


def saved_bytes(content, **settings) -> bytes:
    """Return what torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, **settings)
    return file.getvalue()


def bomb(content: dict, name: str) -> bytes:
    """Return a small file of `content` and a tensor `name` that expands to EXPANDED bytes."""
    plain = io.BytesIO(saved_bytes(content | {name: torch.zeros(EXPANDED // 4)}))
    file = io.BytesIO()
    compressed = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with zipfile.ZipFile(plain) as archive, compressed:
        for entry in archive.namelist():
            compressed.writestr(entry, archive.read(entry))
    return file.getvalue()


@contextmanager
def limited(seconds=20, memory=192 << 20, addresses=8 << 30):
    """Raise TooMuch where the block takes more seconds, or holds more bytes at once.

    Beyond `addresses` more bytes of address space, allocations fail. The signal also ends waiting for a file.
    """

    def too_long(number, frame):
        raise TooMuch("took too long")

    if RESET.exists():
        RESET.write_text("5")  # the most memory ever held is now what is held
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + addresses, limits[1]))
    handler = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown << 10 > memory:
        raise TooMuch(f"took {grown >> 10} MB")
