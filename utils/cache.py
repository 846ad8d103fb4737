"""Every image decoded and resized once: its pixels in one memory-mapped file that all later runs read.

File: header; pixels, uint8 (N, h, w, 3); N keys of 16 bytes; N checksums. A key is the digest of an image's path, size
in bytes and modification time, so an edited image is never served stale. Safe to delete at any time.
"""

import hashlib
import math
import mmap
import os
import warnings
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torchvision.transforms.v2 import functional as V

from utils.images import DataError, ImageFolder, listed, read_image
from utils.runtime import progress

HEADER = np.dtype([("magic", "S8"), ("count", "<u8"), ("height", "<u8"), ("width", "<u8"), ("checksum", "<u8")])
MAGIC, KEY_BYTES, BLOCK = b"pixels01", 16, 64  # BLOCK: images decoded before the next write


class Decoder:
    """The pixels of N image files in one size, decoded anew whenever they are asked for."""

    def __init__(self, paths, size, workers=0):
        self.paths, self.size = paths, tuple(size)
        self.pool = ThreadPoolExecutor(workers or os.cpu_count())  # decoding releases the interpreter lock

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, indices) -> np.ndarray:
        """indices int (B,) to pixels uint8 (B, h, w, 3). Raises DataError for an image that cannot be decoded."""
        return np.stack(list(self.pool.map(lambda index: decode(self.paths[index], self.size), indices)))

    def blocks(self, known, show):
        """The pixels of all images, uint8 (BLOCK, h, w, 3) at a time; `known(index)` hands over a row or None.

        Raises DataError, after the last block, that names all unreadable files and says how many they are.
        """
        problems = []

        def attempt(index):
            try:
                row = known(index)
                return decode(self.paths[index], self.size) if row is None else row
            except DataError as error:
                problems.append(str(error))
                return np.zeros((*self.size, 3), np.uint8)

        with progress(range(len(self)), "Decoding images", show) as bar:
            for start in range(0, len(self), BLOCK):
                block = np.stack(list(self.pool.map(attempt, range(start, min(start + BLOCK, len(self))))))
                bar.update(len(block))
                yield block
        if problems:
            raise DataError(
                f"{len(problems)} of {len(self)} images cannot be read. Replace or delete them:\n"
                + listed(sorted(problems), separator="\n")
            )


class PixelCache(Decoder):
    """The same, read from a cache file; OSError or ValueError when it is missing, cut off, or not of these images."""

    def __init__(self, decoder: Decoder, file: Path, keys: bytes):
        super().__init__(decoder.paths, decoder.size)
        self.file, self.stored = file, _Stored(file, decoder.size)
        if self.stored.keys != keys:
            raise ValueError(f"{file} holds other images")
        self.unread = np.ones(len(self), bool)

    def __getitem__(self, indices) -> np.ndarray:
        """indices int (B,) to pixels uint8 (B, h, w, 3); a row that was damaged on disk is decoded anew."""
        pixels = self.stored.read(indices)
        for place in np.flatnonzero(self.unread[indices]):  # checked once a run, when first read
            self.unread[indices[place]] = damaged = not self.stored.intact(indices[place], pixels[place])
            if damaged:
                text = f"cache_path: {self.file} is damaged: delete it. Until then images are decoded again."
                warnings.warn(text, RuntimeWarning, stacklevel=2)
                pixels[place] = decode(self.paths[indices[place]], self.size)
        return pixels


class _Stored:  # a cache file, mapped into memory
    def __init__(self, file, size):
        with open(file, "rb") as opened:
            self.bytes = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        header = np.frombuffer(self.bytes[: HEADER.itemsize].ljust(HEADER.itemsize), HEADER)[0]
        count = int(header["count"])
        end = HEADER.itemsize + count * math.prod(size) * 3
        tail = self.bytes[end:]
        if header.tobytes() != _header(count, size, tail) or len(tail) != count * (KEY_BYTES + 4):
            raise ValueError(f"{file} is no whole cache of images of {size}")
        self.rows = np.frombuffer(self.bytes, np.uint8, end - HEADER.itemsize, HEADER.itemsize).reshape(-1, *size, 3)
        self.keys = tail[: count * KEY_BYTES]
        self.checksums = np.frombuffer(tail, "<u4", count, count * KEY_BYTES)

    def read(self, indices):
        pixels = self.rows[indices]
        if hasattr(mmap, "MADV_DONTNEED"):
            self.bytes.madvise(mmap.MADV_DONTNEED)  # pages read stay in the system's cache, not in this process
        return pixels

    def intact(self, index, pixels):
        return zlib.crc32(np.ascontiguousarray(pixels)) == self.checksums[index]


def open_pixels(folder: ImageFolder, size, cache_path: Path | None, workers=0, show_progress=True) -> Decoder:
    """The pixels of all images of a folder, from the cache under `cache_path`, which is filled first where it lacks
    some; without `cache_path`, or when it cannot be written (one RuntimeWarning), decoded whenever they are needed.

    Raises DataError that names all unreadable images and says how many they are.
    """
    decoder = Decoder(folder.paths, size, workers)
    if cache_path is not None:
        name = hashlib.blake2b(f"{folder.root.resolve()}\0{tuple(size)}".encode(), digest_size=8).hexdigest()
        file, keys = cache_path / f"{name}.pixels", keys_of(folder)
        with suppress(OSError, ValueError):  # none yet, or of files that have changed
            return PixelCache(decoder, file, keys)
        try:
            cache_path.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock")):
                with suppress(OSError, ValueError):  # while this process waited, another one did the work
                    return PixelCache(decoder, file, keys)
                _build(decoder, file, keys, show_progress)
                return PixelCache(decoder, file, keys)
        except OSError as error:
            text = f"cache_path: {file} cannot be written ({error}): images are decoded anew for every batch."
            warnings.warn(text, RuntimeWarning, stacklevel=2)
    deque(
        decoder.blocks(lambda index: None, show_progress), maxlen=0
    )  # what is unreadable is told now, not in an epoch
    return decoder


def decode(path, size) -> np.ndarray:
    """Pixels of an image file, uint8 (h, w, 3), resized with antialiasing to `size`, (height, width)."""
    pixels = torch.from_numpy(read_image(path, at_least=2 * max(size))).movedim(-1, 0)
    return V.resize(pixels, list(size), antialias=True).movedim(0, -1).numpy()


def _build(decoder, file, keys, show):
    """Write the cache under a temporary name and move it into place; the caller holds the lock."""
    for leftover in file.parent.glob(f".{file.name}.*"):
        leftover.unlink()  # of a build that was killed
    try:
        old = _Stored(file, decoder.size)  # of the same folder before some files changed
        rows = {key: row for row, key in enumerate(_split(old.keys))}
    except (OSError, ValueError):
        rows = {}

    wanted = _split(keys)

    def known(index):
        row = rows.get(wanted[index])
        pixels = None if row is None else old.read(row)
        return pixels if row is not None and old.intact(row, pixels) else None

    temporary, checksums = file.with_name(f".{file.name}.{os.getpid()}"), []
    try:
        with open(temporary, "wb") as opened:
            opened.write(bytes(HEADER.itemsize))
            for block in decoder.blocks(known, show):
                checksums += [zlib.crc32(pixels) for pixels in block]
                opened.write(block)
            tail = keys + np.array(checksums, "<u4").tobytes()
            opened.write(tail)
            opened.seek(0)
            opened.write(_header(len(decoder), decoder.size, tail))
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _split(keys) -> list[bytes]:
    return [keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)]


def _header(count, size, tail) -> bytes:
    return np.array((MAGIC, count, *size, zlib.crc32(tail)), HEADER).tobytes()


def keys_of(folder: ImageFolder) -> bytes:
    """KEY_BYTES for each image: the digest of its path below the root, its size and the time of its last change."""
    below = len(str(folder.root)) + 1
    files = zip(folder.paths, folder.stats.tolist(), strict=True)
    texts = (f"{path[below:]}\0{size}\0{time}" for path, (size, time) in files)
    return b"".join(hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest() for text in texts)
