"""The pixels of image files in one size: decoded when they are needed, or read from a cache.

A cache is a NumPy array, uint8 (N, h, w, 3), and a JSON file that names it and lists the image of each row.
"""

import hashlib
import json
import math
import os
import secrets
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from ..device import progress
from ..files import atomic, write_text
from .images import ImageFolder, content_digest
from .reading import MEGAPIXELS, DataError, decode

BLOCK = 64  # images decoded before the next write
READING = "2"  # raise it when the same file is decoded to other pixels than before


class Decoder:
    """The pixels of N image files in one size, decoded whenever they are needed.

    Args:
        paths: N image files.
        size: (height, width).
        workers: Threads that decode; 0 for one on each processor.
        max_megapixels, value_range: As `read_image` takes them.

    Attributes:
        unreadable: The index of each image that could not be decoded by `blocks`, and the cause.
        digests: `content_digest` of each file as `blocks` read it; "" where it could not be decoded.
    """

    def __init__(self, paths, size, workers=0, max_megapixels=MEGAPIXELS, value_range=None):
        self.paths = paths
        self.size = tuple(size)
        self.max_megapixels = max_megapixels
        self.value_range = value_range
        self.pool = ThreadPoolExecutor(workers or os.cpu_count())  # decoding releases the interpreter lock
        self.unreadable: dict[int, str] = {}
        self.digests = [""] * len(paths)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, indices) -> np.ndarray:
        """indices int (B,) to pixels uint8 (B, h, w, 3). Raises DataError for an image that cannot be decoded."""
        return np.stack(list(self.pool.map(self._decode, indices)))

    def contents(self) -> np.ndarray:
        """Number the files by content: int64 (N,), equal for byte-identical files that can be read.

        The number is the index of the first file of that content.
        """
        digests = self.digests.copy()
        for index in self.unreadable:
            digests[index] = str(index)  # two empty files are no copies
        _, first, numbers = np.unique(digests, return_index=True, return_inverse=True)
        return first[numbers]

    def blocks(self, show: bool, known=None):
        """Yield the pixels of all images, uint8 (BLOCK, h, w, 3) at a time; fill `unreadable` and `digests`.

        Args:
            show: Draw a progress bar.
            known: The pixels and the digest of images that need not be decoded, by index.

        Images that cannot be decoded are black.
        """
        self.unreadable = {}
        self.digests = [""] * len(self)
        known = known or {}
        black = np.zeros((*self.size, 3), np.uint8)

        def row(index):
            if index in known:
                pixels, self.digests[index] = known[index]
            else:
                pixels = self.attempt(index)
            if pixels is None:
                return black
            return pixels

        with progress(range(len(self)), "Decoding images", show) as bar:
            for start in range(0, len(self), BLOCK):
                indices = range(start, min(start + BLOCK, len(self)))
                block = np.stack(list(self.pool.map(row, indices)))
                bar.update(len(block))
                yield block
        self.unreadable = dict(sorted(self.unreadable.items()))  # threads add them in any order

    def attempt(self, index) -> np.ndarray | None:
        """Decode one image, uint8 (h, w, 3), and note its digest; or note in `unreadable` why it cannot be decoded."""
        path = self.paths[index]
        try:
            pixels = self._decode(index)
            self.digests[index] = content_digest(path)
            return pixels
        except DataError as error:
            self.unreadable[index] = str(error).removeprefix(f"{path}: ")
        except OSError as error:  # the file was deleted after it was decoded
            self.unreadable[index] = error.strerror or str(error)
        return None

    def _decode(self, index):
        return decode(self.paths[index], self.size, self.max_megapixels, self.value_range)


@dataclass(frozen=True)
class StoredPixels:
    """What a cache holds of N images."""

    array: str
    """The name of the file of the pixels."""
    keys: list[str]
    """Of `keys_of`."""
    digests: list[str]
    """Of the content of each file; "" where it could not be decoded."""
    causes: list[str | None]
    """Why a file could not be decoded, or None."""
    pixels: np.ndarray
    """uint8 (N, h, w, 3), memory-mapped; black where a file could not be decoded."""


class PixelCache(Decoder):
    """The same, read from a cache.

    Attributes:
        file: The JSON file of the cache.
    """

    def __init__(self, decoder: Decoder, file: Path, stored: StoredPixels):
        super().__init__(decoder.paths, decoder.size, 0, decoder.max_megapixels, decoder.value_range)
        self.file = file
        self.stored = stored
        self.digests = stored.digests
        for index, cause in enumerate(stored.causes):
            if cause is not None:
                self.unreadable[index] = cause

    def __getitem__(self, indices) -> np.ndarray:
        """indices int (B,) to pixels uint8 (B, h, w, 3). Raises DataError for an image that cannot be decoded."""
        for index in indices:
            if index in self.unreadable:
                raise DataError(f"{self.paths[index]}: {self.unreadable[index]}")
        return self.stored.pixels[indices]


def open_pixels(folder: ImageFolder, decoder: Decoder, cache_path: Path | None, show: bool) -> Decoder:
    """Open the pixels of all images of a folder.

    They come from the cache below `cache_path`, to which missing images are added. Without `cache_path`, or where it
    cannot be written (one RuntimeWarning), they are decoded whenever they are needed. Which images cannot be decoded,
    and why, is in `unreadable` of the result.

    Args:
        folder: The folder.
        decoder: Of its images.
        cache_path: The folder of caches, or None.
        show: Draw a progress bar.
    """
    if cache_path is not None:
        file = cache_path / f"{_name(folder, decoder)}.json"
        try:
            return _from_cache(decoder, file, keys_of(folder), show)
        except OSError as error:
            text = f"cache_path: {file} cannot be written ({error}): images are decoded again for every batch."
            warnings.warn(text, RuntimeWarning, stacklevel=2)
    for _ in decoder.blocks(show):
        pass  # unreadable images are known now, not in the middle of an epoch
    return decoder


def keys_of(folder: ImageFolder) -> list[str]:
    """Make a key of each image: a digest of its path below the root, its size and its times of change."""
    below = len(str(folder.root)) + 1
    keys = []
    for path, stats in zip(folder.paths, folder.stats.tolist(), strict=True):
        keys.append(_digest(READING, path[below:], *stats))
    return keys


def _name(folder, decoder):
    """Name the cache of a folder in this size and range of values."""
    parts = [folder.root.resolve(), decoder.size]
    if decoder.value_range is not None:
        parts.append(decoder.value_range)
    return _digest(*parts)


def _digest(*parts):
    text = "\0".join(map(str, parts))
    return hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest()


def _from_cache(decoder, file, keys, show) -> PixelCache:
    """Open the cache, which is built where it is missing or of other images. Raises OSError if it cannot be written."""
    pixels = _reopened(decoder, file, keys)
    if pixels is not None:
        return pixels
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        pixels = _reopened(decoder, file, keys)  # while this process waited, another may have built it
        if pixels is None:
            _build(decoder, file, keys, show)
            pixels = PixelCache(decoder, file, _read(file, decoder.size))
        return pixels


def _reopened(decoder, file, keys) -> PixelCache | None:
    """Open a complete cache of these images; None if there is none, or if an unreadable image can be decoded now."""
    stored = _read(file, decoder.size)
    if stored is None or stored.keys != keys:
        return None
    pixels = PixelCache(decoder, file, stored)
    for row in pixels.pool.map(pixels.attempt, list(pixels.unreadable)):
        if row is not None:
            return None
    return pixels


def _read(file, size) -> StoredPixels | None:
    """Read a cache; None if there is none, or if it is damaged."""
    try:
        content = json.loads(file.read_bytes())
        pixels = np.load(file.with_name(content["array"]), mmap_mode="r")
        stored = StoredPixels(**content, pixels=pixels)
    except Exception:  # of damaged files NumPy raises a dozen kinds
        return None
    if pixels.dtype != np.uint8 or pixels.shape != (len(stored.keys), *size, 3):
        return None
    if pixels.offset + pixels.nbytes != os.path.getsize(pixels.filename):
        return None
    return stored


def _build(decoder, file, keys, show):
    """Write the cache; its JSON file comes last, so that it never names an incomplete array.

    The caller holds the lock. Each array has a name of its own: other processes may be reading the former one.
    """
    stored = _read(file, decoder.size)
    known = {}
    former = None
    if stored is not None:
        known = _known(stored, keys)
        former = stored.array
    _delete_arrays(file, former)
    needed = len(keys) * math.prod(decoder.size) * 3
    free = shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free")
    array = f"{file.stem}.{secrets.token_hex(4)}.npy"
    with atomic(file.with_name(array)) as opened:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(keys), *decoder.size, 3)}
        np.lib.format.write_array_header_1_0(opened, header)
        for block in decoder.blocks(show, known):
            opened.write(block)
    causes = [decoder.unreadable.get(index) for index in range(len(keys))]
    content = {"array": array, "keys": keys, "digests": decoder.digests, "causes": causes}
    write_text(file, json.dumps(content))
    _delete_arrays(file, array)


def _known(stored, keys) -> dict[int, tuple[np.ndarray, str]]:
    """The pixels and the digest of images that a former cache holds, by index."""
    rows = dict(zip(stored.keys, range(len(stored.keys)), strict=True))
    known = {}
    for index, key in enumerate(keys):
        row = rows.get(key)
        if row is not None and stored.causes[row] is None:
            known[index] = stored.pixels[row], stored.digests[row]
    return known


def _delete_arrays(file, current):
    """Delete what interrupted builds of a cache left, and all its arrays but the current one."""
    for path in [*file.parent.glob(f"*{file.stem}.*.npy*"), *file.parent.glob(f".{file.name}.*")]:
        if path.name != current:
            with suppress(OSError):  # Windows keeps a file that another process reads
                path.unlink()
