"""The file of a pixel cache: memory-mapped, checked when it is opened, never misread.

Two NumPy arrays in the npy format, one after the other. The pixels, uint8 (N, h, w, 3); and for each image its key, the
checksum of its pixels, and whether it could be decoded. At the end, the checksum of these.
"""

import mmap
import tokenize
import zlib

import numpy as np

KEY = np.dtype("V16")
ENTRY = np.dtype([("key", KEY), ("checksum", "<u4"), ("decoded", "?")])


class StoredPixels:
    """Such a file of images of one size; OSError or ValueError when it is missing, damaged or of another format.

    keys: KEY (N,). decoded: bool (N,).
    """

    def __init__(self, file, size):
        try:
            self.map, entries = _open_arrays(file)
        except (tokenize.TokenError, SyntaxError) as error:  # how NumPy takes some damaged headers
            raise ValueError(f"{file}: {error}") from error
        fitting = self.map.dtype == np.uint8 and self.map.shape[1:] == (*size, 3)
        if not fitting or entries.dtype != ENTRY or len(entries) != len(self.map):
            raise ValueError(f"{file} is no cache of images of {size}")
        self.rows = np.asarray(self.map)  # a plain array of the same memory, which is faster to pick from
        self.keys = entries["key"]
        self.checksums = entries["checksum"]
        self.decoded = entries["decoded"]

    def read(self, indices) -> np.ndarray:
        """indices, int (B,) or one of them, to pixels, uint8 (B, h, w, 3) or (h, w, 3)."""
        pixels = self.rows[indices]
        if hasattr(mmap, "MADV_DONTNEED"):
            self.map.base.madvise(mmap.MADV_DONTNEED)  # pages read stay in the system's cache, not in this process
        return pixels

    def intact(self, index, pixels) -> bool:
        """Whether these are the pixels, uint8 (h, w, 3), that were written for the image."""
        return _checksum(pixels) == self.checksums[index]


def write_rows(opened, blocks, shape) -> list[int]:
    """Write the pixels, uint8 of `shape` (N, h, w, 3), block by block; returns the checksum of each image."""
    checksums = []
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(opened, header)
    for block in blocks:
        checksums += [_checksum(pixels) for pixels in block]
        opened.write(block)
    return checksums


def write_entries(opened, keys: np.ndarray, checksums: list[int], unreadable: list[int]):
    """Write what belongs to each image behind the pixels; `unreadable` are the indices that could not be decoded."""
    entries = np.empty(len(keys), ENTRY)
    entries["key"] = keys
    entries["checksum"] = checksums
    entries["decoded"] = True
    entries["decoded"][unreadable] = False
    np.lib.format.write_array(opened, entries, allow_pickle=False)
    opened.write(_seal(entries))


def _open_arrays(file):
    """The pixels, mapped into memory, and the entries that stand behind them, checked against their own checksum."""
    with open(file, "rb") as opened:
        np.lib.format.read_magic(opened)
        shape, _, dtype = np.lib.format.read_array_header_1_0(opened)
        rows = np.memmap(opened, dtype, mode="r", offset=opened.tell(), shape=shape)
        opened.seek(rows.offset + rows.nbytes)
        entries = np.lib.format.read_array(opened, allow_pickle=False)
        if opened.read() != _seal(entries):
            raise ValueError(f"{file} is no whole cache")
    return rows, entries


def _seal(entries) -> bytes:
    """The checksum of the entries, four bytes."""
    return zlib.crc32(entries.tobytes()).to_bytes(4)


def _checksum(pixels):
    return zlib.crc32(np.ascontiguousarray(pixels))
