"""Damaged bytes, files that would run code or expand, and limits around whatever reads them."""

import io
import re
import resource
import signal
import struct
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch

STAND_IN = 74565  # elements: a number that stands as four bytes in a pickle, and nowhere else
ZEROS = 1 << 20  # bytes, written at a time
EXPANDED = 320 << 20  # bytes
RESET = Path("/proc/self/clear_refs")
ADVICE = re.compile(r"weights_only|trust", re.IGNORECASE)  # to load a file unsafely


class TooMuch(Exception):  # noqa: N818
    """An act took longer, or more memory, than it may."""


class Planting:
    """Unpickling this, where code may run, makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def flipped(file: bytes, random, start=0, end=None) -> bytes:
    """One bit of the bytes from `start` to `end` is another."""
    changed = bytearray(file)
    changed[random.integers(start, len(file) if end is None else end)] ^= 1 << random.integers(8)
    return bytes(changed)


def cut(file: bytes, random) -> bytes:
    """The first bytes, at least one."""
    return file[: random.integers(1, len(file))]


def appended(file: bytes, random) -> bytes:
    """With up to 1000 random bytes behind."""
    return file + random.bytes(random.integers(1, 1000))


def foreign(random) -> bytes:
    """A text instead of what belongs there."""
    return b"These are not the bytes that belong here.\n" * int(random.integers(1, 100))


def spoil(values: torch.Tensor, value, random):
    """Put `value` into one place."""
    place = np.unravel_index(random.integers(values.numel()), values.shape)
    values[tuple(map(int, place))] = value


def saved_bytes(content, **settings) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, **settings)
    return file.getvalue()


def entry_span(file: bytes, ending: str) -> tuple[int, int]:
    """Where the largest entry of a zip archive, of those whose name contains `ending`, begins and ends."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        entries = [entry for entry in archive.infolist() if ending in entry.filename]
    largest = max(entries, key=lambda entry: entry.compress_size)
    lengths = struct.unpack_from("<HH", file, largest.header_offset + 26)  # of the name and the extra field
    start = largest.header_offset + 30 + sum(lengths)
    return start, start + largest.compress_size


def directory_span(file: bytes) -> tuple[int, int]:
    """Where the directory of a zip archive begins and ends."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return archive.start_dir, len(file)


def bomb(content: dict, name: str, size=EXPANDED) -> bytes:
    """A small file as torch.save writes it, of `content` and a tensor `name` of zeros that expands to `size` bytes."""
    small = saved_bytes(content | {name: torch.zeros(STAND_IN)})
    file = io.BytesIO()
    compressed = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with zipfile.ZipFile(io.BytesIO(small)) as archive, compressed:
        for entry in archive.namelist():
            part = archive.read(entry)
            if len(part) == 4 * STAND_IN:
                with compressed.open(entry, "w", force_zip64=True) as opened:
                    for _ in range(size // ZEROS):
                        opened.write(bytes(ZEROS))
            else:
                compressed.writestr(entry, part.replace(struct.pack("<i", STAND_IN), struct.pack("<i", size // 4)))
    return file.getvalue()


@contextmanager
def limited(seconds=20, memory=192 << 20, addresses=8 << 30):
    """Raises TooMuch where the block takes more seconds, or holds more bytes at once; beyond `addresses` more bytes of
    address space, allocations fail. To be the innermost of several: it may end while they end.
    """
    if RESET.exists():
        RESET.write_text("5")  # the most memory ever held is now what is held
    before = _most_memory()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + addresses, limits[1]))
    handler = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        grown = _most_memory() - before
        if grown > memory:
            raise TooMuch(f"took {grown >> 20} MB")


def _too_long(number, frame):
    raise TooMuch("took too long")


def _most_memory() -> int:
    """The most memory that this process has held since it was last reset, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # Linux counts kilobytes
