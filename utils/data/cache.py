"""The file of a pixel cache: checked when it is opened and whenever it is read, never misread.

Two NumPy arrays in the npy format, one after the other. The pixels, uint8 (N, h, w, 3); and for each image its key, the
checksum of its pixels, whether it could be decoded, and the digest of its file. At the end, the checksum of these.
"""

import hashlib
import math
import os
import shutil
import threading
import tokenize
import warnings
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from ..device import progress
from ..files import atomic, megabytes, seal
from ..vision import functional as V
from .images import DIGEST_BYTES, ImageFolder, check_readable, content_digest
from .reading import MEGAPIXELS, DataError, read_image

KEY = np.dtype("V16")
DIGEST = np.dtype(f"V{DIGEST_BYTES}")  # of the bytes of an image file
ENTRY = np.dtype([("key", KEY), ("checksum", "<u4"), ("decoded", "?"), ("digest", DIGEST)])


class StoredPixels:
    """Such a file of images of one size; OSError or ValueError when it is missing, damaged or of another format.

    It is read, not mapped into memory: where another process cuts a mapped file off, reading it ends this one.
    keys: KEY (N,). decoded: bool (N,). digests: DIGEST (N,), of the image files; zeros where not decoded.
    """

    def __init__(self, file, size):
        self.shape = (*size, 3)
        self.bytes = math.prod(self.shape)
        self.opened = open(file, "rb", buffering=0)  # noqa: SIM115
        weakref.finalize(self, self.opened.close)
        try:
            self.offset, entries = _open_arrays(self.opened, self.shape)
        except (tokenize.TokenError, SyntaxError, TypeError, MemoryError) as error:  # how NumPy takes damaged headers
            raise ValueError(f"{file}: {error}") from error
        self.keys = entries["key"]
        self.checksums = entries["checksum"]
        self.decoded = entries["decoded"]
        self.digests = entries["digest"]
        self.lock = threading.Lock()

    def read(self, index) -> np.ndarray | None:
        """The pixels of one image, uint8 (h, w, 3), as they were written; None where the file is damaged there."""
        with self.lock:  # of the place in the file, which all threads share
            self.opened.seek(self.offset + index * self.bytes)
            content = self.opened.read(self.bytes)
        if zlib.crc32(content) != self.checksums[index]:
            return None
        return np.frombuffer(content, np.uint8).reshape(self.shape)


def write_rows(opened, blocks, shape) -> list[int]:
    """Write the pixels, uint8 of `shape` (N, h, w, 3), block by block; returns the checksum of each image."""
    checksums = []
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(opened, header)
    for block in blocks:
        checksums += [_checksum(pixels) for pixels in block]
        opened.write(block)
    return checksums


def write_entries(opened, keys: np.ndarray, checksums: list[int], digests: np.ndarray, unreadable: list[int]):
    """Write what belongs to each image behind the pixels.

    Args:
        opened: The file, at the end of the pixels.
        keys: KEY (N,).
        checksums: N checksums of pixels, as `write_rows` returns them.
        digests: DIGEST (N,), of the image files.
        unreadable: The indices of images that could not be decoded.
    """
    entries = np.empty(len(keys), ENTRY)
    entries["key"] = keys
    entries["checksum"] = checksums
    entries["digest"] = digests
    entries["decoded"] = True
    entries["decoded"][unreadable] = False
    np.lib.format.write_array(opened, entries, allow_pickle=False)
    opened.write(seal(entries.tobytes()))


def _open_arrays(opened, shape):
    """Where the pixels begin, and the entries that stand behind them, checked against their own checksum."""
    np.lib.format.read_magic(opened)
    found, _, dtype = np.lib.format.read_array_header_1_0(opened)
    offset = opened.tell()
    if dtype != np.uint8 or found[1:] != shape:
        raise ValueError(f"{opened.name} is no cache of images of {shape[:2]}")
    opened.seek(offset + math.prod(found))
    entries = np.lib.format.read_array(opened, allow_pickle=False)
    if entries.dtype != ENTRY or entries.shape != found[:1] or opened.read() != seal(entries.tobytes()):
        raise ValueError(f"{opened.name} is no whole cache")
    return offset, entries


def _checksum(pixels):
    return zlib.crc32(np.ascontiguousarray(pixels))


BLOCK = 64  # images decoded before the next write
READING = "2"  # to be raised when the same file comes to be decoded to other pixels


class Decoder:
    """The pixels of N image files in one size, decoded anew whenever they are asked for.

    unreadable: the index of each image that could not be decoded when all were gone through, and the cause. digests:
    DIGEST (N,), of the bytes of each file as they were then; zeros of one that could not be decoded.
    """

    def __init__(self, paths, size, workers=0, max_megapixels=MEGAPIXELS, value_range=None):
        self.paths = paths
        self.max_megapixels = max_megapixels
        self.value_range = value_range
        self.size = tuple(size)
        self.pool = ThreadPoolExecutor(workers or os.cpu_count())  # decoding releases the interpreter lock
        self.unreadable: dict[int, str] = {}
        self.digests = np.zeros(len(paths), DIGEST)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, indices) -> np.ndarray:
        """indices int (B,) to pixels uint8 (B, h, w, 3). Raises DataError for an image that cannot be decoded."""
        return np.stack(list(self.pool.map(self._decode, indices)))

    def _decode(self, index):
        return decode(self.paths[index], self.size, self.max_megapixels, self.value_range)

    def attempt(self, index):
        """The pixels uint8 (h, w, 3) of an image, whose file has its digest in `digests` from now on; None, and a cause
        in `unreadable`, when it cannot be decoded.
        """
        try:
            pixels = self._decode(index)
            self.digests[index] = np.void(content_digest(self.paths[index]))
            return pixels
        except DataError as error:
            self.unreadable[index] = str(error).removeprefix(f"{self.paths[index]}: ")
        except OSError as error:  # the file has gone since it was decoded
            self.unreadable[index] = error.strerror or str(error)
        return None

    def blocks(self, known, show):
        """The pixels of all images, uint8 (BLOCK, h, w, 3) at a time; `known(index)` hands over a row or None.

        Images that cannot be decoded are zeros, and noted in `unreadable`.
        """
        self.unreadable = {}
        self.digests = np.zeros(len(self), DIGEST)
        black = np.zeros((*self.size, 3), np.uint8)

        def row(index):
            pixels = known(index)
            if pixels is None:
                pixels = self.attempt(index)
            return black if pixels is None else pixels

        with progress(range(len(self)), "Decoding images", show) as bar:
            for start in range(0, len(self), BLOCK):
                indices = range(start, min(start + BLOCK, len(self)))
                block = np.stack(list(self.pool.map(row, indices)))
                bar.update(len(block))
                yield block

    def check(self, show) -> int:
        """Decodes every image once, so that `unreadable` tells which cannot be; returns how many it went through."""
        return sum(len(block) for block in self.blocks(_nothing_known, show))


class PixelCache(Decoder):
    """The same, read from a cache file; OSError or ValueError when it is missing, cut off, or not of these images."""

    def __init__(self, decoder: Decoder, file: Path, keys: np.ndarray):
        settings = decoder.max_megapixels, decoder.value_range
        super().__init__(decoder.paths, decoder.size, 0, *settings)
        self.file = file
        self.stored = StoredPixels(file, decoder.size)
        if not np.array_equal(self.stored.keys, keys):
            raise ValueError(f"{file} holds other images")
        self.unreadable = decoder.unreadable
        self.digests = self.stored.digests

    def __getitem__(self, indices) -> np.ndarray:
        """indices int (B,) to pixels uint8 (B, h, w, 3); rows that were damaged on disk, even now, are decoded anew.

        Raises DataError for an image that cannot be decoded.
        """
        indices = np.asarray(indices)
        undecoded = indices[~self.stored.decoded[indices]]
        if len(undecoded):
            raise DataError(f"{self.paths[undecoded[0]]}: {self.unreadable[undecoded[0]]}")
        rows = [self.stored.read(index) for index in indices]
        if any(row is None for row in rows):
            text = f"cache_path: {self.file} is damaged: delete it. Until then images are decoded again."
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        return np.stack([self._decode(index) if row is None else row for row, index in zip(rows, indices, strict=True)])


def open_pixels(
    folder: ImageFolder,
    size,
    cache_path: Path | None,
    workers=0,
    show_progress=True,
    unreadable="skip",
    max_megapixels=MEGAPIXELS,
    value_range=None,
) -> Decoder:
    """The pixels of all images of a folder, from the cache under `cache_path`, which is filled first where it lacks
    some; without `cache_path`, or when it cannot be written (one RuntimeWarning), decoded whenever they are needed.

    Which images cannot be decoded, and why, is in `unreadable` of what is returned.

    Raises DataError that names them and says how many they are: with `unreadable="stop"` if there are any, with "skip"
    if fewer than two classes have an image that can be decoded.
    """
    decoder = Decoder(folder.paths, size, workers, max_megapixels, value_range)
    pixels = _opened(decoder, folder, cache_path, show_progress)
    pixels.unreadable = dict(sorted(pixels.unreadable.items()))  # threads note them as they come
    check_readable(folder, pixels.unreadable, unreadable)
    return pixels


def decode(path, size, max_megapixels=MEGAPIXELS, value_range=None) -> np.ndarray:
    """Pixels of an image file, uint8 (h, w, 3), resized with antialiasing to `size`, (height, width)."""
    pixels = torch.from_numpy(read_image(path, 2 * max(size), max_megapixels, value_range)).movedim(-1, 0)
    return V.resize(pixels, list(size), antialias=True).movedim(0, -1).numpy()


def keys_of(folder: ImageFolder) -> np.ndarray:
    """A key for each image, void (N,): the digest of its path below the root, its size and its times of change."""
    below = len(str(folder.root)) + 1
    digests = []
    for path, stats in zip(folder.paths, folder.stats.tolist(), strict=True):
        text = "\0".join([READING, path[below:], *map(str, stats)])
        digests.append(hashlib.blake2b(os.fsencode(text), digest_size=KEY.itemsize).digest())
    return np.frombuffer(b"".join(digests), KEY)


def _opened(decoder, folder, cache_path, show) -> Decoder:
    """The pixels, from the cache where one can be had, with `unreadable` filled."""
    if cache_path is not None:
        text = f"{folder.root.resolve()}\0{decoder.size}"
        if decoder.value_range is not None:
            text += f"\0{decoder.value_range}"
        name = hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()
        file = cache_path / f"{name}.pixels"
        try:
            return _from_cache(decoder, file, keys_of(folder), show)
        except OSError as error:
            text = f"cache_path: {file} cannot be written ({error}): images are decoded anew for every batch."
            warnings.warn(text, RuntimeWarning, stacklevel=3)
    decoder.check(show)  # what is unreadable is told now, not in an epoch
    return decoder


def _from_cache(decoder, file, keys, show) -> PixelCache:
    """The cache, built where there is none of these images; OSError when it cannot be written."""
    with suppress(OSError, ValueError):  # none yet, or of files that have changed
        return _built_before(decoder, file, keys)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        with suppress(OSError, ValueError):  # while this process waited, another one did the work
            return _built_before(decoder, file, keys)
        _build(decoder, file, keys, show)
        return PixelCache(decoder, file, keys)


def _check_room(folder, needed):
    """Raises OSError where a file of so many bytes has no room: else it would fill the disk first."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{megabytes(needed)} are needed, {megabytes(free)} are free")


def _built_before(decoder, file, keys) -> PixelCache:
    """The cache that is there, its unreadable images tried again; ValueError when one of them can be decoded by now."""
    pixels = PixelCache(decoder, file, keys)
    tried = pixels.pool.map(pixels.attempt, np.flatnonzero(~pixels.stored.decoded).tolist())
    if any(row is not None for row in tried):
        raise ValueError(f"{file} lacks images that can be decoded by now")
    return pixels


def _build(decoder, file, keys, show):
    """Write the cache, whole; the caller holds the lock."""
    for leftover in file.parent.glob(f".{file.name}.*"):
        leftover.unlink()  # of a build that was killed
    _check_room(file.parent, len(decoder) * math.prod(decoder.size) * 3)
    known = _rows_of_before(file, decoder, keys)
    with atomic(file) as opened:
        checksums = write_rows(opened, decoder.blocks(known, show), (len(decoder), *decoder.size, 3))
        write_entries(opened, keys, checksums, decoder.digests, list(decoder.unreadable))


def _rows_of_before(file, decoder, keys):
    """A function from an index to the row that the cache of before, of the same folder, has of this image, or None.

    The decoder takes the digest of the file from there too.
    """
    try:
        before = StoredPixels(file, decoder.size)
    except (OSError, ValueError):
        return _nothing_known
    rows = {key.tobytes(): row for row, key in enumerate(before.keys) if before.decoded[row]}

    def known(index):
        row = rows.get(keys[index].tobytes())
        pixels = None if row is None else before.read(row)
        if pixels is not None:
            decoder.digests[index] = before.digests[row]
        return pixels

    return known


def _nothing_known(index):
    return None
