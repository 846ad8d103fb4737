"""Splits without leaks: images that belong together train, validate or test together, or whole classes do."""

import os
import re

import numpy as np
from scipy.sparse import csr_array

from utils.data.images import ImageFolder, listed
from utils.data.reading import DataError

TRAIN, VALID, TEST = range(3)
SPLITTABLE = 6  # a class of so many groups or more gives at least LEAST to validation and to test
LEAST = 2  # groups of a class, or classes, of a split: fewer form no positive or no negative pair
SHUFFLES = 100  # of the classes, of which the one is kept whose shares come nearest
FEW = 3  # files named in one message


def split(labels: np.ndarray, groups: np.ndarray, test_size: float, valid_size: float, seed: int):
    """Indices of train, validation and test, each int64 and sorted, stratified by class as well as groups allow.

    labels: int64 (N,). groups: int64 (N,), the index of the first image of each group; groups are never separated.
    `test_size` and `valid_size` are shares of the images of each class, met to within half a group, unless two groups
    alone are more: a class of six or more groups of its own gives at least two groups to validation and to test, so
    that it can form a positive pair there. A group larger than the share of its class trains. Groups of several
    classes are dealt first, where they are missed most.
    """
    random = np.random.default_rng(seed)
    _, leaders, numbers, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    wanted = np.outer((1 - test_size - valid_size, valid_size, test_size), np.bincount(labels))
    own_class = labels[leaders]
    several = np.zeros(len(leaders), bool)
    several[numbers[labels != own_class[numbers]]] = True
    part_of_group, dealt = _deal_mixed(labels, numbers, several, wanted, random)
    left = np.flatnonzero(~several)
    by_class = left[np.argsort(own_class[left], kind="stable")]
    ends = np.cumsum(np.bincount(own_class[left], minlength=wanted.shape[1]))
    for label, members in enumerate(np.split(by_class, ends[:-1])):
        least = LEAST if len(members) >= SPLITTABLE else 0
        tests, valids = (round(wanted[part, label]) - dealt[part, label] for part in (TEST, VALID))
        members = random.permutation(members)
        too_large = sizes[members] > max(tests, valids, 1)
        members = np.concatenate([members[~too_large], members[too_large]])
        first = max(_nearest(sizes[members], tests), least)
        second = first + max(_nearest(sizes[members[first:]], valids), least)
        part_of_group[members[:first]] = TEST
        part_of_group[members[first:second]] = VALID
    return _indices(part_of_group[numbers])


def split_classes(labels: np.ndarray, groups: np.ndarray, test_size: float, valid_size: float, seed: int):
    """Indices of train, validation and test, each int64 and sorted: no class is in two of them, and each has two.

    labels, groups: as `split` takes them. Shares are of all images, as near as the best of SHUFFLES orders of the
    classes brings them. A group of several classes that fall into different splits stays in the first of training,
    validation and test that has one of its images; its others are in none: what is validated or tested was not trained.

    Raises DataError for fewer than six classes.
    """
    random = np.random.default_rng(seed)
    classes, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 3 * LEAST:
        raise DataError(
            f"split: classes needs at least {3 * LEAST} classes, two to train, two to validate and two to test: there "
            f"are {len(classes)}. Add classes, or set split: images or groups."
        )
    tests, valids = test_size * len(labels), valid_size * len(labels)
    best = np.inf
    for _ in range(SHUFFLES):
        order = random.permutation(len(classes))
        first = np.clip(_nearest(sizes[order], tests), LEAST, len(order) - 2 * LEAST)
        second = first + np.clip(_nearest(sizes[order[first:]], valids), LEAST, len(order) - first - LEAST)
        missed = abs(sizes[order[:first]].sum() - tests) + abs(sizes[order[first:second]].sum() - valids)
        if missed < best:
            best = missed
            part_of_class = np.full(len(order), TRAIN)
            part_of_class[order[:first]] = TEST
            part_of_class[order[first:second]] = VALID
    part = part_of_class[numbers]
    _, groups = np.unique(groups, return_inverse=True)
    part_of_group = np.full(groups.max() + 1, TEST)
    np.minimum.at(part_of_group, groups, part)
    part[part != part_of_group[groups]] = -1
    return _indices(part)


def groups_by_name(folder: ImageFolder, pattern: str) -> np.ndarray:
    """int64 (N,): the index of the first image whose file name has the same text caught by `pattern`, of any class.

    Raises DataError that names some of the files that the pattern does not match.
    """
    caught = [_caught(pattern, os.path.basename(path)) for path in folder.paths]
    missed = [path for path, text in zip(folder.paths, caught, strict=True) if text is None]
    if missed:
        names = listed([os.path.relpath(path, folder.root) for path in missed], shown=FEW)
        raise DataError(
            f"group_pattern: {pattern!r} is not found in {len(missed)} of {len(caught)} file names, say "
            f"{names}. Change it or rename the files, or set split: images."
        )
    _, leaders, numbers = np.unique(caught, return_index=True, return_inverse=True)
    return leaders[numbers]


def _caught(pattern, name):
    """What the group of a pattern catches in a file name; None where there is nothing of it."""
    found = re.search(pattern, name)
    return found[1] if found else None


def _deal_mixed(labels, numbers, several, wanted, random):
    """The part of every group, those of one class being TRAIN as yet, and how many images of each class were dealt.

    Each group of several classes goes where the squared distance to what is wanted, relative to it, grows least.
    """
    part_of_group = np.full(len(several), TRAIN)
    dealt = np.zeros(wanted.shape, np.int64)
    rows = np.flatnonzero(several)
    images = np.flatnonzero(several[numbers])
    places = np.searchsorted(rows, numbers[images]), labels[images]
    counts = csr_array((np.ones(len(images), np.int64), places), shape=(len(rows), wanted.shape[1]))
    for row in random.permutation(len(rows)):
        inside = slice(counts.indptr[row], counts.indptr[row + 1])
        classes, added = counts.indices[inside], counts.data[inside]
        missing = wanted[:, classes] - dealt[:, classes]
        growth = (((missing - added) ** 2 - missing**2) / wanted[:, classes]).sum(axis=1)
        part = growth.argmin()
        part_of_group[rows[row]] = part
        dealt[part, classes] += added
    return part_of_group, dealt


def _nearest(sizes, wanted):
    """How many of the leading groups together come nearest to the number of images that is wanted."""
    return np.abs(np.append(0, np.cumsum(sizes)) - wanted).argmin()


def _indices(part):
    return tuple(np.flatnonzero(part == number) for number in (TRAIN, VALID, TEST))
