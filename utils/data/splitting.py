"""Splits without leaks: images that belong together train, validate or test together, or whole classes do."""

import os
import re
from itertools import product

import numpy as np
from scipy.sparse import csr_array

from utils.data.images import ImageFolder, listed, one_form
from utils.data.reading import DataError

TRAIN, VALID, TEST = range(3)
NAMES = ("training", "validation", "test")
SPLITTABLE = 6  # a class of so many groups or more gives at least LEAST to validation and to test
LEAST = 2  # groups of a class, or classes, of a split: fewer form no positive or no negative pair
SHUFFLES = 100  # of the classes, of which the one is kept whose shares come nearest
FEW = 3  # files named in one message
SIZES = (0.1, 0.2, 0.3, 0.4)  # of test and of validation, tried when a split is too small


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

    Raises:
        DataError: There are fewer than six classes.
    """
    random = np.random.default_rng(seed)
    classes, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 3 * LEAST:
        added = f"Add classes of at least {LEAST} images each, {3 * LEAST - len(classes)} or more"
        if sizes.min() < LEAST:
            added = f"{added}, and images to each class that has fewer"
        others = "" if lacking(labels, split(labels, groups, test_size, valid_size, seed)) else ", or set split: images"
        raise DataError(
            f"split: classes needs at least {3 * LEAST} classes, two to train, two to validate and two to test: there "
            f"are {len(classes)}. {added}{others}."
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


def lacking(labels: np.ndarray, parts) -> str:
    """What keeps a split from training, validating or testing, in words; "" where each forms pairs of both kinds.

    Args:
        labels: int64 (N,).
        parts: Indices of train, validation and test, as `split` returns them.
    """
    for name, part in zip(NAMES, parts, strict=True):
        counts = np.bincount(labels[part])
        if counts.max(initial=0) < LEAST:
            return f"the {name} split has no two images of one class"
        if np.count_nonzero(counts) < LEAST:
            return f"the {name} split has images of one class alone"
    return ""


def cure(labels: np.ndarray, groups: np.ndarray, key: str, sizes: tuple[float, float], seed: int) -> str:
    """What makes all splits large enough, in words: settings that were tried on these images, or images to add.

    Args:
        labels: int64 (N,).
        groups: What is never separated with this value of `split`, int64 (N,).
        key: The value of `split`: images, classes or groups.
        sizes: test_size and valid_size.
        seed: Of the splits.
    """
    keys = [key] if key == "groups" else [key, "images" if key == "classes" else "classes"]
    settings = _settings_that_work(labels, groups, keys, sizes, seed)
    if settings:
        return f"Set {settings}."
    needed = {
        "images": f"Add images: two classes need at least {SPLITTABLE} different ones each",
        "groups": f"Change group_pattern or add images: two classes need {SPLITTABLE} groups or more of their own each",
        "classes": f"Add images: each class needs at least {LEAST}",
    }[key]
    settings = _settings_that_work(*_with_more(labels, groups, key), [key], sizes, seed)
    return f"{needed}{f'. Then set {settings}' if settings else ''}."


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


def _settings_that_work(labels, groups, keys, sizes, seed) -> str:
    """The first settings, the nearest sizes first, whose splits all form both kinds of pairs: those that differ from
    the present ones, as config.yml has them. "" where none do, or where the present ones do.
    """
    nearest = sorted(product(SIZES, SIZES), key=lambda pair: abs(pair[0] - sizes[0]) + abs(pair[1] - sizes[1]))
    for key in keys:
        if key == "classes" and len(np.unique(labels)) < 3 * LEAST:
            continue
        deal = split_classes if key == "classes" else split
        for test_size, valid_size in (sizes, *nearest):
            if lacking(labels, deal(labels, groups, test_size, valid_size, seed)):
                continue
            settings = [
                ("split", keys[0], key),
                ("test_size", sizes[0], test_size),
                ("valid_size", sizes[1], valid_size),
            ]
            return " and ".join(f"{name}: {value}" for name, present, value in settings if value != present)
    return ""


def _with_more(labels, groups, key):
    """Labels and groups of the images with those that are said to be needed: each new one alone in its group."""
    if key == "classes":
        counts = np.bincount(labels)
        added = np.repeat(np.arange(len(counts)), np.maximum(LEAST - counts, 0) * (counts > 0))
    else:
        _, leaders, numbers = np.unique(groups, return_index=True, return_inverse=True)
        mixed = np.zeros(len(leaders), bool)
        mixed[numbers[labels != labels[leaders][numbers]]] = True
        counts = np.bincount(labels[leaders[~mixed]], minlength=labels.max() + 1)
        largest = np.argsort(-counts, kind="stable")[:2]
        added = np.repeat(largest, np.maximum(SPLITTABLE - counts[largest], 0))
    new_groups = groups.max() + 1 + np.arange(len(added))
    return np.concatenate([labels, added]), np.concatenate([groups, new_groups])


def _caught(pattern, name):
    """What the group of a pattern catches in a file name, in one Unicode form; None where there is nothing of it."""
    found = re.search(one_form(pattern), one_form(name))
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
