"""Perceptual hashes of images, kept beside their pixels, and the search for those that differ in a few bits."""

import io
import warnings
from collections.abc import Iterator

import cv2
import imagehash
import numpy as np
from PIL import Image, ImageOps

from utils.data.cache import Decoder, PixelCache, keys_of
from utils.data.images import ImageFolder
from utils.files import read_sealed, write_sealed
from utils.runtime import progress

VIEWS = 4  # of each image: as it is, mirrored, cropped, cropped and mirrored
CROP = 0.02  # of each side
SIDE = 64  # pixels of the thumbnails that are hashed
HASHED = 32  # pixels of what imagehash transforms
PLAIN = 2.0  # grey levels: images whose values spread less show nothing to tell them by
BLOCK = 64  # images read at a time
CHUNKS = 4  # of 16 bits each
CANDIDATES = 2**20  # pairs compared at a time, which bounds the memory of the search


def hashes_of(folder: ImageFolder, pixels: Decoder, show=False) -> np.ndarray:
    """Perceptual hashes (imagehash's phash, 64 bits) of all images: uint64 (N, VIEWS).

    All zeros for images that cannot be read and for those of a single tone. Where pixels come from a cache, the hashes
    are kept in a file beside it; a file that is damaged or of other images is made anew. One RuntimeWarning when it
    cannot be written.
    """
    if not isinstance(pixels, PixelCache):
        return _computed(pixels, show)
    file = pixels.file.with_suffix(".hashes")
    keys = keys_of(folder).copy()
    keys[list(pixels.unreadable)] = np.void(bytes(keys.itemsize))  # else one that is read later had no hash
    try:
        return _kept(file, keys)
    except (OSError, ValueError):  # none yet, damaged, or of files that have changed
        hashes = _computed(pixels, show)
    try:
        _keep(file, keys, hashes)
    except OSError as error:
        text = f"cache_path: {file} cannot be written ({error}): perceptual hashes are computed anew in every run."
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return hashes


def pairs_within(first: np.ndarray, second: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of a hash of `first` and one of `second` that differ in at most `radius` bits, block by block.

    first: uint64 (N,). second: uint64 (M,). Yields indices into either, int64 (P,), each pair once.

    Two hashes within `radius` bits have one of CHUNKS chunks within radius // CHUNKS bits (pigeonhole; Norouzi et al.
    2014, "Fast Exact Search in Hamming Space with Multi-Index Hashing"), so that only hashes of like chunks are
    compared.
    """
    flips = radius // CHUNKS
    masks = [mask for mask in range(2**16) if mask.bit_count() <= flips]
    first_chunks = _chunks(first)
    second_chunks = _chunks(second)
    for chunk in range(CHUNKS):
        order = np.argsort(second_chunks[:, chunk], kind="stable")
        starts = np.searchsorted(second_chunks[order, chunk], np.arange(2**16 + 1))
        for mask in masks:
            bucket = first_chunks[:, chunk] ^ np.uint16(mask)
            for one, place in _listed_pairs(starts[bucket], starts[bucket.astype(np.int64) + 1]):
                other = order[place]
                near = np.bitwise_count(first[one] ^ second[other]) <= radius
                one, other = one[near], other[near]
                before = np.bitwise_count(first_chunks[one, :chunk] ^ second_chunks[other, :chunk]) <= flips
                new = ~before.any(axis=1)  # else an earlier chunk has found the pair
                yield one[new], other[new]


def _computed(pixels, show):
    hashes = np.zeros((len(pixels), VIEWS), np.uint64)
    readable = np.setdiff1d(np.arange(len(pixels)), list(pixels.unreadable))
    for start in progress(range(0, len(readable), BLOCK), "Looking for near-duplicates", show):
        block = readable[start : start + BLOCK]
        hashes[block] = [_hashes(image) for image in pixels[block]]
    return hashes


def _hashes(image):
    """The hashes of an image uint8 (h, w, 3), one for each view."""
    grey = Image.fromarray(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)).convert("L")
    if np.std(grey) < PLAIN:
        return [0] * VIEWS
    margin = CROP * SIDE
    hashes = []
    for box in ((0, 0, SIDE, SIDE), (margin, margin, SIDE - margin, SIDE - margin)):
        view = grey.resize((HASHED, HASHED), Image.Resampling.LANCZOS, box)
        hashes += [_packed(view), _packed(ImageOps.mirror(view))]
    return hashes


def _packed(view):
    """The hash as one number, its bits dealt out so that each chunk holds some of every frequency."""
    bits = imagehash.phash(view).hash.reshape(-1, CHUNKS).T
    return int.from_bytes(np.packbits(bits).tobytes())


def _chunks(hashes):
    """uint64 (N,) to uint16 (N, CHUNKS)."""
    return np.ascontiguousarray(hashes).view(np.uint16).reshape(-1, CHUNKS)


def _listed_pairs(starts, ends):
    """Pairs (row, place) for all places from starts[row] to ends[row], about CANDIDATES at a time."""
    lengths = ends - starts
    totals = np.cumsum(lengths)
    row = 0
    while row < len(lengths):
        done = totals[row - 1] if row else 0
        stop = max(row + 1, np.searchsorted(totals, done + CANDIDATES, side="right"))
        counts = lengths[row:stop]
        rows = np.repeat(np.arange(row, stop), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield rows, starts[rows] + within
        row = stop


def _kept(file, keys):
    """The hashes of a file; OSError or ValueError when it is missing, damaged or of other images."""
    opened = io.BytesIO(read_sealed(file))
    kept_keys = np.load(opened, allow_pickle=False)
    if not np.array_equal(kept_keys, keys):
        raise ValueError(f"{file} holds other images")
    return np.load(opened, allow_pickle=False)


def _keep(file, keys, hashes):
    content = io.BytesIO()
    np.save(content, keys, allow_pickle=False)
    np.save(content, hashes, allow_pickle=False)
    write_sealed(file, content.getvalue())
