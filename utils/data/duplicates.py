"""Perceptual hashes of images, kept beside their pixels, and the search for those that differ in a few bits."""

import io
import os
import warnings
from collections.abc import Iterator

import cv2
import imagehash
import numpy as np
from PIL import Image, ImageOps
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..device import progress
from ..files import read_sealed, write_sealed
from .cache import Decoder, PixelCache, keys_of
from .images import ImageFolder, listed

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


THUMBNAIL_SIDE = 64  # pixels of the thumbnails that are compared
MARGIN = 4  # pixels at each side of them that a crop may have taken
CELLS = 4  # across and down: each part of a picture has to agree with its copy
AGREEING = 0.6  # least correlation of a cell; copies have 0.63 and more, scenes with another object at most 0.51
COLOURED = 0.85  # least correlation of all colours; a red and a blue cup of one make have 0.7
TEXTURED = 5.0  # grey levels: cells whose values spread less, in both images, have nothing to agree in
NOISE = 2.0  # grey levels that encoding adds
PAIRS = 512  # compared at a time


def near_duplicates(folder: ImageFolder, pixels: Decoder, radius: int | None, show=False) -> np.ndarray:
    """Groups of pictures that are copies of one another: int64 (N,), the index of the first image of each group.

    Byte-identical files that can be read are of one group. So are images whose perceptual hashes, or the hash of one
    and that of the other mirrored or cropped, differ in at most `radius` of 64 bits and whose pixels then agree
    (`same_picture`); and whatever such pairs connect. radius: None for byte-identical files alone.
    """
    groups = folder.contents.copy()
    unreadable = list(pixels.unreadable)
    groups[unreadable] = unreadable  # two empty files are no two copies of a picture
    if radius is None:
        return groups
    hashes = hashes_of(folder, pixels, show)
    told = np.flatnonzero(hashes[:, 0])
    for view in range(VIEWS):
        for first, second in pairs_within(hashes[told, 0], hashes[told, view], radius):
            groups = _joined_where_same(groups, pixels, told[first], told[second], mirrored=view % 2 == 1)
    return groups


def same_picture(image: np.ndarray, other: np.ndarray) -> bool:
    """Whether one thumbnail shows what the other does, but for encoding, brightness, contrast and a slight crop.

    image, other: uint8 (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3). The other is
    laid over the first by the affine map that correlates most
    (Evangelidis & Psarakis 2008, cv2.findTransformECC); then colours must correlate over all, and grey values in each
    cell of a grid, where either image has any texture.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    other_grey = cv2.cvtColor(other, cv2.COLOR_RGB2GRAY)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-3)
    try:
        _, warp = cv2.findTransformECC(
            grey, other_grey, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, criteria, None, 1
        )
    except cv2.error:  # nothing correlates
        return False
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    laid_over = cv2.warpAffine(
        other, warp, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    inner = slice(MARGIN, THUMBNAIL_SIDE - MARGIN)
    image = image[inner, inner].astype(np.float32)
    laid_over = laid_over[inner, inner].astype(np.float32)
    if _correlations(image.reshape(1, -1), laid_over.reshape(1, -1))[0] < COLOURED:
        return False
    cells = _cells(image.mean(axis=2))
    other_cells = _cells(laid_over.mean(axis=2))
    textured = np.maximum(cells.std(axis=1), other_cells.std(axis=1)) > TEXTURED
    return textured.any() and _correlations(cells, other_cells)[textured].min() >= AGREEING


def joined(groups: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Groups, int64 (N,), named by their first image, with that of first[p] and that of second[p] made one for each p.

    first, second: int64 (P,), image indices.
    """
    count = len(groups)
    edges = coo_array((np.ones(len(first), bool), (groups[first], groups[second])), shape=(count, count))
    _, components = connected_components(edges, directed=False)
    _, leaders, numbers = np.unique(components[groups], return_index=True, return_inverse=True)
    return leaders[numbers]


def groups_of_several(groups: np.ndarray) -> list[np.ndarray]:
    """The members, int64, of each group of more than one image, in the order of their first images."""
    several = np.flatnonzero(np.bincount(groups)[groups] > 1)
    order = several[np.argsort(groups[several], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    return np.split(order, starts)[1:]


def contradictions(groups: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """The members of each group whose images stand under more than one class: one of their labels is wrong, or both."""
    return [group for group in groups_of_several(groups) if len(np.unique(labels[group])) > 1]


def names_of(folder: ImageFolder, indices: np.ndarray, separator=", ") -> str:
    """The files of images, below the root, as one text that may be cut short."""
    return listed([os.path.relpath(folder.paths[index], folder.root) for index in indices], separator)


def _joined_where_same(groups, pixels, first, second, mirrored):
    """The groups with those pairs of images joined whose pixels agree."""
    for start in range(0, len(first), PAIRS):
        one, other = first[start : start + PAIRS], second[start : start + PAIRS]
        apart = groups[one] != groups[other]
        one, other = one[apart], other[apart]
        if not len(one):
            continue
        indices, places = np.unique([one, other], return_inverse=True)
        images = _thumbnails(pixels, indices)
        others = np.ascontiguousarray(images[:, :, ::-1]) if mirrored else images
        pairs = places.reshape(2, -1).T
        same = np.array([same_picture(images[left], others[right]) for left, right in pairs], bool)
        groups = joined(groups, one[same], other[same])
    return groups


def _thumbnails(pixels, indices):
    """uint8 (B, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)."""
    thumbnails = np.empty((len(indices), THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), np.uint8)
    for place, index in enumerate(indices):
        image = pixels[np.array([index])][0]
        thumbnails[place] = cv2.resize(image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    return thumbnails


def _cells(values):
    """(H, W) to (CELLS * CELLS, pixels of a cell)."""
    size = len(values) // CELLS
    blocks = values[: size * CELLS, : size * CELLS].reshape(CELLS, size, CELLS, size)
    return blocks.swapaxes(1, 2).reshape(CELLS * CELLS, -1)


def _correlations(rows, others):
    """Pearson's correlation of each row of two arrays (R, K); noise alone does not correlate with itself."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    others = others - others.mean(axis=1, keepdims=True)
    variances = (rows**2).mean(axis=1) + NOISE**2, (others**2).mean(axis=1) + NOISE**2
    return (rows * others).mean(axis=1) / np.sqrt(variances[0] * variances[1])
