"""The file of a pixel cache: checked when it is opened and whenever it is read, never misread.

Two NumPy arrays in the npy format, one after the other. The pixels, uint8 (N, h, w, 3); and for each image its key, the
checksum of its pixels, whether it could be decoded, and the digest of its file. At the end, the checksum of these.
"""

import math
import threading
import tokenize
import weakref
import zlib

import numpy as np

from utils.data.contents import DIGEST_BYTES
from utils.files import seal

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
