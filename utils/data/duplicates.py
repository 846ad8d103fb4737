"""Groups of near-duplicates: candidates by perceptual hashes, confirmed by comparing pixels."""

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
from ..files import atomic
from .cache import Decoder, PixelCache
from .images import ImageFolder, listed

VIEWS = 4  # of each image: whole, mirrored, cropped, cropped and mirrored
CROP = 0.02  # of each side
SIDE = 64  # pixels of the thumbnails that are hashed and compared
PLAIN = 2.0  # grey levels: an image whose values spread less has no hash
BLOCK = 64  # images read at a time
COMPARED = 2**20  # pairs of hashes compared at a time, which bounds the memory of the search
MARGIN = 4  # pixels at each side of a thumbnail that a crop may have removed
CELLS = 4  # across and down: each part of a picture has to agree with its copy
AGREEING = 0.6  # least correlation of a cell; copies have 0.63 and more, scenes with another object at most 0.51
COLOURED = 0.85  # least correlation of all colours; a red and a blue cup of one make have 0.7
TEXTURED = 5.0  # grey levels: cells whose values spread less, in both images, are not compared
NOISE = 2.0  # grey levels that encoding adds
PAIRS = 512  # pairs of thumbnails compared at a time


def near_duplicates(pixels: Decoder, radius: int | None, show=False) -> np.ndarray:
    """Group pictures that are copies of one another.

    Readable files with equal bytes are one group. So are images whose perceptual hashes, or the hash of one and that
    of the other mirrored or cropped, differ in at most `radius` of 64 bits and whose pixels agree (`same_picture`),
    and all images that such pairs connect.

    Args:
        pixels: Of the images.
        radius: In bits; None groups files with equal bytes only.
        show: Whether to show a progress bar.

    Returns:
        int64 (N,), the index of the first image of each group.
    """
    groups = pixels.contents()
    if radius is None:
        return groups
    hashes = hashes_of(pixels, show)
    hashed = np.flatnonzero(hashes[:, 0])
    for view in range(VIEWS):
        mirrored = view % 2 == 1
        for first, second in pairs_within(hashes[hashed, 0], hashes[hashed, view], radius):
            groups = _join_same_pictures(groups, pixels, hashed[first], hashed[second], mirrored)
    return groups


def hashes_of(pixels: Decoder, show=False) -> np.ndarray:
    """Compute the perceptual hashes (imagehash's phash, 64 bits) of all images, or read them from beside their cache.

    A file that is damaged or of other pixels is replaced. Warns (RuntimeWarning) when it cannot be written.

    Returns:
        uint64 (N, VIEWS); zeros for an image that cannot be read or has a single tone.
    """
    if not isinstance(pixels, PixelCache):
        return _compute_hashes(pixels, show)
    file = pixels.file.with_suffix(".hashes")
    try:
        with np.load(io.BytesIO(file.read_bytes())) as stored:
            if stored["array"] == pixels.stored.array:
                return stored["hashes"]
    except Exception:  # of missing and damaged files NumPy raises a dozen kinds
        pass
    hashes = _compute_hashes(pixels, show)
    try:
        with atomic(file) as opened:
            np.savez(opened, array=pixels.stored.array, hashes=hashes)
    except OSError as error:
        text = f"cache_path: {file} cannot be written ({error}): perceptual hashes are computed again in every run."
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return hashes


def pairs_within(first: np.ndarray, second: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Find all pairs of hashes that differ in at most `radius` bits, by comparing all with all, block by block.

    Args:
        first: uint64 (N,).
        second: uint64 (M,).
        radius: In bits.

    Yields:
        Indices into `first` and into `second`, int64 (P,) each; every pair once.
    """
    rows = max(1, COMPARED // max(1, len(second)))
    for start in range(0, len(first), rows):
        differing = np.bitwise_count(first[start : start + rows, None] ^ second)
        near = np.flatnonzero(differing <= radius)  # much faster than np.nonzero of two axes
        row, column = np.divmod(near, len(second))
        yield start + row, column


def same_picture(image1: np.ndarray, image2: np.ndarray) -> bool:
    """Return whether two thumbnails differ only in encoding, brightness, contrast and a slight crop.

    The second is aligned to the first by the affine map of the highest correlation. Then colours must correlate over
    the whole image, and grey values in each cell of a grid where either image has texture.

    Args:
        image1: uint8 (SIDE, SIDE, 3).
        image2: uint8 (SIDE, SIDE, 3).

    Evangelidis & Psarakis 2008, "Parametric image alignment using enhanced correlation coefficient maximization".
    """
    grey1 = cv2.cvtColor(image1, cv2.COLOR_RGB2GRAY)
    grey2 = cv2.cvtColor(image2, cv2.COLOR_RGB2GRAY)
    start = np.eye(2, 3, dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-3)
    try:
        _, warp = cv2.findTransformECC(grey1, grey2, start, cv2.MOTION_AFFINE, criteria, None, 1)
    except cv2.error:  # nothing correlates
        return False
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    aligned = cv2.warpAffine(image2, warp, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inner = slice(MARGIN, SIDE - MARGIN)
    colours1 = image1[inner, inner].astype(np.float32)
    colours2 = aligned[inner, inner].astype(np.float32)
    if _correlations(colours1.reshape(1, -1), colours2.reshape(1, -1))[0] < COLOURED:
        return False
    cells1 = _cells(colours1.mean(axis=2))
    cells2 = _cells(colours2.mean(axis=2))
    textured = np.maximum(cells1.std(axis=1), cells2.std(axis=1)) > TEXTURED
    return textured.any() and _correlations(cells1, cells2)[textured].min() >= AGREEING


def joined(groups: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Join the group of first[p] with that of second[p] for each p.

    Args:
        groups: int64 (N,), the index of the first image of each group.
        first: int64 (P,), indices of images.
        second: int64 (P,), indices of images.

    Returns:
        int64 (N,), the new groups, named in the same way.
    """
    count = len(groups)
    edges = coo_array((np.ones(len(first), bool), (groups[first], groups[second])), shape=(count, count))
    _, components = connected_components(edges, directed=False)
    _, leaders, numbers = np.unique(components[groups], return_index=True, return_inverse=True)
    return leaders[numbers]


def groups_of_several(groups: np.ndarray) -> list[np.ndarray]:
    """Return the members, int64, of each group of more than one image, in the order of their first images."""
    several = np.flatnonzero(np.bincount(groups)[groups] > 1)
    order = several[np.argsort(groups[several], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    return np.split(order, starts)[1:]


def contradictions(groups: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Return the members of each group whose images have more than one class: at least one label is incorrect."""
    return [group for group in groups_of_several(groups) if len(np.unique(labels[group])) > 1]


def names_of(folder: ImageFolder, indices: np.ndarray, separator=", ") -> str:
    """List the files of images, below the root, in one text that may be cut short."""
    return listed([os.path.relpath(folder.paths[index], folder.root) for index in indices], separator)


def _compute_hashes(pixels, show):
    hashes = np.zeros((len(pixels), VIEWS), np.uint64)
    readable = np.setdiff1d(np.arange(len(pixels)), list(pixels.unreadable))
    for start in progress(range(0, len(readable), BLOCK), "Looking for near-duplicates", show):
        block = readable[start : start + BLOCK]
        for index, image in zip(block, pixels[block], strict=True):
            hashes[index] = _hashes(image)
    return hashes


def _hashes(image):
    """The hashes of an image uint8 (h, w, 3), one for each view."""
    grey = Image.fromarray(_thumbnail(image)).convert("L")
    if np.std(grey) < PLAIN:
        return [0] * VIEWS
    hashes = []
    for margin in (0, CROP * SIDE):
        box = (margin, margin, SIDE - margin, SIDE - margin)
        view = grey.resize((32, 32), Image.Resampling.LANCZOS, box)  # the size that phash transforms
        for turned in (view, ImageOps.mirror(view)):
            bits = np.packbits(imagehash.phash(turned).hash)
            hashes.append(int.from_bytes(bits.tobytes()))
    return hashes


def _join_same_pictures(groups, pixels, first, second, mirrored):
    """The groups, joined where the pixels of a pair agree."""
    for start in range(0, len(first), PAIRS):
        pairs = np.stack([first[start : start + PAIRS], second[start : start + PAIRS]])
        pairs = pairs[:, groups[pairs[0]] != groups[pairs[1]]]
        thumbnails = {}
        for index in np.unique(pairs):
            thumbnails[index] = _thumbnail(pixels[index[None]][0])
        same = []
        for index1, index2 in pairs.T:
            image2 = thumbnails[index2]
            if mirrored:
                image2 = np.ascontiguousarray(image2[:, ::-1])
            same.append(same_picture(thumbnails[index1], image2))
        if any(same):
            groups = joined(groups, *pairs[:, same])
    return groups


def _thumbnail(image):
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _cells(values):
    """(H, W) to (CELLS * CELLS, pixels of a cell)."""
    size = len(values) // CELLS
    blocks = values[: size * CELLS, : size * CELLS].reshape(CELLS, size, CELLS, size)
    return blocks.swapaxes(1, 2).reshape(CELLS * CELLS, -1)


def _correlations(rows1, rows2):
    """Pearson's correlation of each row of two arrays (R, K); noise by itself does not correlate."""
    rows1 = rows1 - rows1.mean(axis=1, keepdims=True)
    rows2 = rows2 - rows2.mean(axis=1, keepdims=True)
    variance1 = (rows1**2).mean(axis=1) + NOISE**2
    variance2 = (rows2**2).mean(axis=1) + NOISE**2
    return (rows1 * rows2).mean(axis=1) / np.sqrt(variance1 * variance2)
