"""Near-duplicates: copies of one picture that were resized, encoded again, cropped a little, or mirrored.

Perceptual hashes propose pairs; a look at the pixels decides, so that different pictures alike are not joined.
"""

import os

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from utils.data.cache import Decoder
from utils.data.hashes import VIEWS, hashes_of, pairs_within
from utils.data.images import ImageFolder, listed

SIDE = 64  # pixels of the thumbnails that are compared
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

    image, other: uint8 (SIDE, SIDE, 3). The other is laid over the first by the affine map that correlates most
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
    laid_over = cv2.warpAffine(other, warp, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inner = slice(MARGIN, SIDE - MARGIN)
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
    """uint8 (B, SIDE, SIDE, 3)."""
    thumbnails = np.empty((len(indices), SIDE, SIDE, 3), np.uint8)
    for place, index in enumerate(indices):
        image = pixels[np.array([index])][0]
        thumbnails[place] = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
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
