"""What files hold: which are byte-identical, and a digest of each."""

import hashlib
import os

import numpy as np

MIDDLE_BYTES = 512  # read of each file whose size another file shares
DIGEST_BYTES = 16


def content_ids(paths: list[str], sizes: np.ndarray) -> np.ndarray:
    """int64 (N,), equal for byte-identical files: the index of the first file of each content.

    Files are told apart by their size, those alike by a few bytes of their middle (which tell more than a header), and
    only those alike again are read whole. sizes: int64 (N,), in bytes.
    """
    by_middle = _told_apart(paths, sizes, sizes, MIDDLE_BYTES)
    groups = _told_apart(paths, sizes, by_middle, None)
    _, first, groups = np.unique(groups, return_index=True, return_inverse=True)
    return first[groups]


def content_digest(path) -> bytes:
    """Return 16 bytes that stand for all bytes of a file, whatever its name and times. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()


def _told_apart(paths, sizes, groups, amount):
    """Groups of files, int64 (N,), split further by the digest of `amount` bytes of those that share a group."""
    _, groups, counts = np.unique(groups, return_inverse=True, return_counts=True)
    alike = np.flatnonzero(counts[groups] > 1)
    digests = [_digest(paths[index], size, amount) for index, size in zip(alike, sizes[alike].tolist(), strict=True)]
    _, numbers = np.unique(np.array(digests, "S16"), return_inverse=True)
    groups[alike] = len(paths) + numbers  # beyond the numbers of the groups that stay
    return groups


def _digest(path, size, amount):
    """16 bytes that stand for the size and `amount` bytes in the middle of a file; None for all of it.

    A file that cannot be opened is like no other: its path stands for it.
    """
    try:
        content = _content(path, size, amount)
    except OSError:
        content = os.fsencode(path)
    return hashlib.blake2b(content, digest_size=16, salt=size.to_bytes(8)).digest()


def _content(path, size, amount):
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        if amount:
            os.lseek(descriptor, size // 2, os.SEEK_SET)
        return os.read(descriptor, amount or size)
    finally:
        os.close(descriptor)
