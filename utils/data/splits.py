"""Splits without leaks: images that belong together train, validate or test together, or whole classes do."""

import os
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from ..config import Config
from ..device import FIRST
from .cache import Decoder, open_pixels
from .duplicates import joined, names_of, near_duplicates
from .images import ImageFolder, list_unreadable, listed, one_form, scan
from .reading import DataError
from .transforms import stored_size

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


MOST_PAIRS = 20_000_000  # of a split: more would take gigabytes, and hours


@dataclass(frozen=True)
class Pairs:
    """first, second: int64 (P,), image indices; labels: int64 (P,), 0 same class, 1 different classes."""

    first: np.ndarray
    second: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """Indices into `folder` and `pixels` of the three splits, and the validation and test pairs, fixed for a run.

    duplicates, groups: int64 (N,), the index of the first image of the near-duplicates that an image belongs to, and of
    all that stays together with it in one split.
    """

    folder: ImageFolder
    pixels: Decoder
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    valid_pairs: Pairs
    test_pairs: Pairs
    duplicates: np.ndarray
    groups: np.ndarray

    def files(self, pairs: Pairs, count: int, seed=0) -> list[tuple[str, str]]:
        """The image files of `count` of the pairs, or of all, drawn from `seed`."""
        paths = self.folder.paths
        chosen = np.random.default_rng(seed).permutation(len(pairs))[:count]
        return [(paths[pairs.first[index]], paths[pairs.second[index]]) for index in chosen]

    def table(self) -> pd.DataFrame:
        """Images of each class, and validation and test pairs, by split."""
        parts = (self.train, self.valid, self.test)
        counts = [np.bincount(self.folder.labels[part], minlength=len(self.folder.classes)) for part in parts]
        rows = list(zip(self.folder.classes, *counts, strict=True))
        rows.append(("all images", *map(len, parts)))
        rows.append(("pairs", "drawn anew", len(self.valid_pairs), len(self.test_pairs)))
        return pd.DataFrame(rows, columns=["class", "train", "validation", "test"]).set_index("class")


def load_images(config: Config) -> tuple[ImageFolder, Decoder, np.ndarray]:
    """The images of `data_path`, their pixels, and the groups of near-duplicates (`near_duplicates`): int64 (N,).

    Raises DataError for a folder that cannot be used.
    """
    folder = scan(config.data_path)
    show = config.hyperparameters.verbose
    pixels = open_pixels(
        folder,
        stored_size(config.image),
        config.cache_path,
        config.hyperparameters.num_workers,
        show,
        config.unreadable,
        config.max_megapixels,
        config.image.value_range,
    )
    return folder, pixels, near_duplicates(folder, pixels, config.duplicate_radius, show)


def load_splits(config: Config) -> Splits:
    """Scan `data_path`, open the pixels of its images, split, and draw the validation and test pairs.

    The same config and files give the same splits and pairs. Images that cannot be read are in no split; nor, with
    `split: classes`, are near-duplicates of images of another split, whose number is printed.

    Raises DataError for a folder that cannot be used, when a split can form no positive or no negative pair, and when
    there are too few classes, or file names without a group, for the key `split`.
    """
    folder, pixels, duplicates = load_images(config)
    list_unreadable(folder, pixels.unreadable, config.results_path)
    groups = duplicates
    if config.split == "groups":
        named = groups_by_name(folder, config.group_pattern)
        groups = joined(duplicates, np.arange(len(named)), named)
    readable = np.setdiff1d(np.arange(len(folder.paths)), list(pixels.unreadable))
    deal = split_classes if config.split == "classes" else split
    parts = deal(folder.labels[readable], groups[readable], config.test_size, config.valid_size, config.seed)
    sizes = config.test_size, config.valid_size
    problem = lacking(folder.labels[readable], parts)
    if problem:
        remedy = cure(folder.labels[readable], groups[readable], config.split, sizes, config.seed)
        raise DataError(f"{config.data_path}: {problem}. {remedy}{_what_stays_together(groups)}")
    parts = [readable[part] for part in parts]
    left_out = np.setdiff1d(readable, np.concatenate(parts))
    if len(left_out) and FIRST:
        print(f"{len(left_out)} near-duplicates of images of another split are left out: {names_of(folder, left_out)}")
    pairs = []
    for number, part in enumerate(parts):
        random = np.random.default_rng((config.seed, number))
        pairs.append(draw_pairs(part, folder.labels, config.number_of_iterations, random))
    _, valid_pairs, test_pairs = pairs  # training draws its own in each epoch
    return Splits(folder, pixels, *parts, valid_pairs, test_pairs, duplicates, groups)


def draw_pairs(indices: np.ndarray, labels: np.ndarray, iterations: int, random: np.random.Generator) -> Pairs:
    """The pair rule of Livieris et al. 2023, `iterations` times over.

    For each image of each class, one image from the same class is randomly selected and this pair is assigned with
    label zero (0); next, another image from a different class is randomly selected and this pair is assigned with
    label one (1). An anchor is never its own positive; the only image of its class forms a negative pair alone.

    indices: int64 (N,), the images to pair; labels: the class of every image of the folder. Raises DataError for more
    pairs than MOST_PAIRS.
    """
    order = indices[np.argsort(labels[indices], kind="stable")]  # classes lie in contiguous blocks
    _, block, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    start = starts[block]  # (N,): where the block of each anchor begins
    size = counts[block]  # (N,): and how long it is
    position = np.arange(len(order))
    exists = np.stack([size > 1, size < len(order)], axis=1)  # (N, 2): which of its two pairs an anchor can form
    kinds = np.broadcast_to([0, 1], exists.shape)
    count = iterations * exists.sum()
    if count > MOST_PAIRS:
        most = MOST_PAIRS // exists.sum()
        remedy = f"set number_of_iterations: {most} or fewer" if most else "use fewer images"
        raise DataError(f"number_of_iterations: {iterations} gives {count:,} pairs, above {MOST_PAIRS:,}: {remedy}.")
    first = []
    second = []
    drawn = []
    for _ in range(iterations):
        step = 1 + (random.random(len(order)) * (size - 1)).astype(np.int64)  # 1 .. size-1: never back to the anchor
        positive = start + (position - start + step) % size
        negative = (random.random(len(order)) * (len(order) - size)).astype(np.int64)
        negative = np.where(negative < start, negative, negative + size)  # jump over the anchor's own block
        negative = np.minimum(negative, len(order) - 1)  # where there is no other class, and no pair
        partners = np.stack([order[positive], order[negative]], axis=1)
        first.append(np.stack([order, order], axis=1)[exists])
        second.append(partners[exists])
        drawn.append(kinds[exists])
    return Pairs(np.concatenate(first), np.concatenate(second), np.concatenate(drawn))


def pairs_of_files(files) -> Pairs:
    """P pairs of image files as Pairs: an image has one index wherever it stands, a class is a folder.

    Args:
        files: P tuples of two paths.
    """
    _, rows = np.unique(np.array(files, str).reshape(-1, 2), return_inverse=True)
    first, second = rows.reshape(-1, 2).T
    folders = [(Path(path1).parent, Path(path2).parent) for path1, path2 in files]
    labels = [int(folder1 != folder2) for folder1, folder2 in folders]
    return Pairs(first, second, np.array(labels, np.int64))


def _what_stays_together(groups):
    """A sentence on the largest group, where there is one of several images: it may be why a split is small."""
    largest = np.bincount(groups).max()
    if largest == 1:
        return ""
    return f" The largest group that is never separated has {largest} images: see duplicate_radius and group_pattern."
