"""Splits without leaks: images that belong together train, validate or test together, or whole classes do."""

import os
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..config import Config
from ..device import FIRST
from .cache import Decoder, open_pixels
from .corrections import apply_corrections
from .duplicates import joined, names_of, near_duplicates
from .images import ImageFolder, check_readable, list_unreadable, listed, one_form, scan
from .reading import DataError, stored_size

TRAIN, VALID, TEST = range(3)
NAMES = ("training", "validation", "test")
SPLITTABLE = 6  # a class of at least so many groups gives at least LEAST to validation and to test
LEAST = 2  # groups of a class, or classes, of a split: fewer form no positive or no negative pair
SHUFFLES = 100  # of the classes, the best of which is used
NEEDED = (
    "Add images or change settings: split: images needs two classes of at least 6 images each that are no "
    "near-duplicates (duplicate_radius); split: groups needs two classes of at least 6 groups of their own each "
    "(group_pattern); both are certain with test_size: 0.2 and valid_size: 0.2; split: classes needs at least 6 "
    "classes of 2 images or more each."
)
MOST_PAIRS = 20_000_000  # of a split: more take gigabytes, and hours


@dataclass(frozen=True)
class Pairs:
    """P pairs of images."""

    first: np.ndarray
    """int64 (P,), indices of images."""
    second: np.ndarray
    """int64 (P,), indices of images."""
    labels: np.ndarray
    """int64 (P,): 0 for the same class, 1 for different classes."""

    def __len__(self):
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """Images for training, validation and test, and the validation and test pairs, which are fixed for a run."""

    folder: ImageFolder
    pixels: Decoder
    train: np.ndarray
    """int64, indices into `folder` and `pixels`, sorted."""
    valid: np.ndarray
    """The same of validation."""
    test: np.ndarray
    """The same of the test."""
    valid_pairs: Pairs
    test_pairs: Pairs
    duplicates: np.ndarray
    """int64 (N,), the index of the first of the near-duplicates of each image."""
    groups: np.ndarray
    """int64 (N,), the index of the first image of those that stay in one split."""
    unreadable: pd.DataFrame
    """The images that cannot be read, in columns file and cause (`list_unreadable`)."""

    def files(self, pairs: Pairs, count: int, seed=0) -> list[tuple[str, str]]:
        """Return the image files of `count` of the pairs at most, drawn from `seed`."""
        paths = self.folder.paths
        chosen = np.random.default_rng(seed).permutation(len(pairs))[:count]
        return [(paths[pairs.first[index]], paths[pairs.second[index]]) for index in chosen]

    def table(self) -> pd.DataFrame:
        """Count the images of each class, and the validation and test pairs, by split."""
        classes = pd.Index(self.folder.classes, name="class")
        counts = pd.DataFrame(index=classes, dtype=object)
        for name, part in (("train", self.train), ("validation", self.valid), ("test", self.test)):
            counts[name] = np.bincount(self.folder.labels[part], minlength=len(classes)).astype(object)
        counts.loc["all images"] = [len(self.train), len(self.valid), len(self.test)]
        counts.loc["pairs"] = ["drawn in each epoch", len(self.valid_pairs), len(self.test_pairs)]
        return counts


def load_splits(config: Config) -> Splits:
    """Scan `data_path`, open the pixels of its images, split, and draw the validation and test pairs.

    The same config and files give the same splits and pairs. Images that cannot be read are in no split. With `split:
    classes`, near-duplicates of images of another split are in none either, and their number is printed.

    Raises:
        DataError: The folder cannot be used, a split can form no positive or no negative pair, or `group_pattern` does
            not match all file names.
    """
    folder, pixels, duplicates = load_images(config)
    unreadable = list_unreadable(folder, pixels.unreadable)
    groups = duplicates
    if config.split == "groups":
        named = groups_by_name(folder, config.group_pattern)
        groups = joined(duplicates, np.arange(len(named)), named)
    readable = np.setdiff1d(np.arange(len(folder.paths)), list(pixels.unreadable))
    parts = [readable[part] for part in split_by(config, folder.labels[readable], groups[readable])]
    left_out = np.setdiff1d(readable, np.concatenate(parts))
    if len(left_out) and FIRST:
        print(f"{len(left_out)} near-duplicates of images of another split are left out: {names_of(folder, left_out)}")
    pairs = []
    for number, part in enumerate(parts):
        random = np.random.default_rng((config.seed, number))
        pairs.append(draw_pairs(part, folder.labels, config.number_of_iterations, random))
    _, valid_pairs, test_pairs = pairs  # training draws its own in each epoch
    return Splits(folder, pixels, *parts, valid_pairs, test_pairs, duplicates, groups, unreadable)


def load_images(config: Config) -> tuple[ImageFolder, Decoder, np.ndarray]:
    """Return the images of `data_path`, their pixels, and the groups of `near_duplicates`, int64 (N,).

    `corrections` are applied: images have their actual classes, and those that are left out are not among them.

    Raises:
        DataError: The folder cannot be used.
    """
    folder = apply_corrections(scan(config.data_path), config.corrections)
    show = config.hyperparameters.verbose
    size = stored_size(config.image)
    workers = config.hyperparameters.num_workers
    decoder = Decoder(folder.paths, size, workers, config.max_megapixels, config.image.value_range)
    pixels = open_pixels(folder, decoder, config.cache_path, show)
    check_readable(folder, pixels.unreadable, config.unreadable)
    return folder, pixels, near_duplicates(pixels, config.duplicate_radius, show)


def split_by(config: Config, labels: np.ndarray, groups: np.ndarray):
    """Split images as the key `split` says; arguments and result are those of `split`.

    Raises:
        DataError: A split cannot form pairs of both kinds.
    """
    settings = labels, groups, config.test_size, config.valid_size, config.seed
    if config.split != "classes":
        parts = split(*settings)
    elif len(np.unique(labels)) < 3 * LEAST:
        raise DataError(f"{config.data_path}: two classes are needed for each split. {NEEDED}")
    else:
        parts = split_classes(*settings)
    for name, part in zip(NAMES, parts, strict=True):
        counts = np.bincount(labels[part])
        if counts.max(initial=0) < LEAST:
            raise DataError(f"{config.data_path}: the {name} split has no two images of one class. {NEEDED}")
        if np.count_nonzero(counts) < LEAST:
            raise DataError(f"{config.data_path}: the {name} split has images of one class only. {NEEDED}")
    return parts


def split(labels: np.ndarray, groups: np.ndarray, test_size: float, valid_size: float, seed: int):
    """Split images into training, validation and test, stratified by class as well as groups allow.

    A share is met to within half a group, unless two groups are more: a class of six or more groups of its own gives
    at least two groups to validation and to test, so that it can form a positive pair there. A group larger than the
    share of its class trains. Groups of several classes are dealt first, each where most of its images are missing.

    Args:
        labels: int64 (N,).
        groups: int64 (N,), the index of the first image of each group; groups are never separated.
        test_size: Share of the images of each class, in (0, 1).
        valid_size: The same for validation.
        seed: Of the shuffling.

    Returns:
        Indices of train, validation and test, each int64 and sorted.
    """
    random = np.random.default_rng(seed)
    _, leaders, numbers, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    wanted = np.outer((1 - test_size - valid_size, valid_size, test_size), np.bincount(labels))
    own_class = labels[leaders]
    mixed = np.zeros(len(leaders), bool)
    mixed[numbers[labels != own_class[numbers]]] = True
    part_of_group, dealt = _deal_mixed(labels, numbers, mixed, wanted, random)
    unmixed = np.flatnonzero(~mixed)
    unmixed = unmixed[np.argsort(own_class[unmixed], kind="stable")]
    ends = np.cumsum(np.bincount(own_class[unmixed], minlength=wanted.shape[1]))
    for label, members in enumerate(np.split(unmixed, ends[:-1])):
        least = 0
        if len(members) >= SPLITTABLE:
            least = LEAST
        tests = round(wanted[TEST, label]) - dealt[TEST, label]
        valids = round(wanted[VALID, label]) - dealt[VALID, label]
        members = random.permutation(members)
        too_large = sizes[members] > max(tests, valids, 1)
        members = np.concatenate([members[~too_large], members[too_large]])
        first = max(_nearest(sizes[members], tests), least)
        second = first + max(_nearest(sizes[members[first:]], valids), least)
        part_of_group[members[:first]] = TEST
        part_of_group[members[first:second]] = VALID
    return _indices(part_of_group[numbers])


def split_classes(labels: np.ndarray, groups: np.ndarray, test_size: float, valid_size: float, seed: int):
    """Split whole classes into training, validation and test: each has two or more, and no class is in two of them.

    Shares are of all images, as near as the best of SHUFFLES orders of the classes brings them. A group of several
    classes that fall into different splits stays in the first of training, validation and test that has one of its
    images; its others are in none.

    Args:
        labels: int64 (N,), of six classes or more.
        groups, test_size, valid_size, seed: As `split` takes them.

    Returns:
        Indices of train, validation and test, each int64 and sorted.
    """
    random = np.random.default_rng(seed)
    classes, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    tests = test_size * len(labels)
    valids = valid_size * len(labels)
    least_missed = np.inf
    for _ in range(SHUFFLES):
        order = random.permutation(len(classes))
        first = np.clip(_nearest(sizes[order], tests), LEAST, len(order) - 2 * LEAST)
        second = first + np.clip(_nearest(sizes[order[first:]], valids), LEAST, len(order) - first - LEAST)
        missed = abs(sizes[order[:first]].sum() - tests) + abs(sizes[order[first:second]].sum() - valids)
        if missed < least_missed:
            least_missed = missed
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
    """Group images by the text that the group of `pattern` catches in their file names, whatever their class.

    Names and pattern are compared in one Unicode form.

    Returns:
        int64 (N,), the index of the first image of each group.

    Raises:
        DataError: The pattern does not match some of the names.
    """
    pattern = one_form(pattern)
    caught = []
    missed = []
    for path in folder.paths:
        match = re.search(pattern, one_form(os.path.basename(path)))
        if match is None or match[1] is None:
            missed.append(os.path.relpath(path, folder.root))
        else:
            caught.append(match[1])
    if missed:
        raise DataError(
            f"group_pattern: {pattern!r} is not found in {len(missed)} of {len(folder.paths)} file names: "
            f"{listed(missed, shown=3)}. Change it or rename the files, or set split: images."
        )
    _, leaders, numbers = np.unique(caught, return_index=True, return_inverse=True)
    return leaders[numbers]


def draw_pairs(indices: np.ndarray, labels: np.ndarray, iterations: int, random: np.random.Generator) -> Pairs:
    """Draw pairs by the rule of Livieris et al. 2023, `iterations` times.

    For each image of each class, one image from the same class is randomly selected and this pair is assigned with
    label zero (0); next, another image from a different class is randomly selected and this pair is assigned with
    label one (1). An anchor is never its own positive; the only image of its class forms a negative pair only.

    Args:
        indices: int64 (N,), the images to pair.
        labels: int64, the class of every image of the folder.
        iterations: How often.
        random: Of the draws.

    Raises:
        DataError: There would be more pairs than MOST_PAIRS.
    """
    order = indices[np.argsort(labels[indices], kind="stable")]  # each class is one block
    _, block, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    start = starts[block]  # (N,): where the block of each anchor begins
    size = counts[block]  # (N,): and how long it is
    position = np.arange(len(order))
    exists = np.stack([size > 1, size < len(order)], axis=1)  # (N, 2): which of its two pairs an anchor can form
    once = exists.sum()
    if iterations * once > MOST_PAIRS:
        remedy = "use fewer images"
        if once <= MOST_PAIRS:
            remedy = f"set number_of_iterations: {MOST_PAIRS // once} or fewer"
        total = iterations * once
        raise DataError(f"number_of_iterations: {iterations} gives {total:,} pairs, above {MOST_PAIRS:,}: {remedy}.")
    first = np.stack([order, order], axis=1)[exists]
    seconds = []
    for _ in range(iterations):
        step = 1 + (random.random(len(order)) * (size - 1)).astype(np.int64)  # 1 .. size-1: never back to the anchor
        positive = start + (position - start + step) % size
        negative = (random.random(len(order)) * (len(order) - size)).astype(np.int64)
        negative = np.where(negative < start, negative, negative + size)  # skip the anchor's own block
        negative = np.minimum(negative, len(order) - 1)  # where there is no other class, and no pair
        seconds.append(np.stack([order[positive], order[negative]], axis=1)[exists])
    kinds = np.broadcast_to([0, 1], exists.shape)[exists]
    return Pairs(np.tile(first, iterations), np.concatenate(seconds), np.tile(kinds, iterations))


def pairs_of_files(files, folder_of=os.path.dirname) -> Pairs:
    """Turn P pairs of image files, tuples of two paths, into Pairs: equal paths have one index.

    Args:
        files: The pairs.
        folder_of: From the path of an image to the folder of its class, as `Corrections.folder_of`.
    """
    paths = np.array(files, str).reshape(-1, 2)
    _, rows = np.unique(paths, return_inverse=True)
    first, second = rows.reshape(-1, 2).T
    labels = [folder_of(path1) != folder_of(path2) for path1, path2 in paths]
    return Pairs(first, second, np.array(labels, np.int64))


def _deal_mixed(labels, numbers, mixed, wanted, random):
    """The part of every group, TRAIN for those of one class, and how many images of each class were dealt, (3, C).

    Each group of several classes goes where the squared distance to what is wanted, relative to it, grows least.
    """
    part_of_group = np.full(len(mixed), TRAIN)
    dealt = np.zeros(wanted.shape, np.int64)
    images = np.flatnonzero(mixed[numbers])
    images = images[np.argsort(numbers[images], kind="stable")]
    starts = np.flatnonzero(np.diff(numbers[images], prepend=-1))
    members = np.split(images, starts)[1:]
    for row in random.permutation(len(members)):
        classes, added = np.unique(labels[members[row]], return_counts=True)
        missing = wanted[:, classes] - dealt[:, classes]
        growth = (((missing - added) ** 2 - missing**2) / wanted[:, classes]).sum(axis=1)
        part = growth.argmin()
        part_of_group[numbers[members[row][0]]] = part
        dealt[part, classes] += added
    return part_of_group, dealt


def _nearest(sizes, wanted):
    """How many of the leading groups together come nearest to the number of images that is wanted."""
    return np.abs(np.append(0, np.cumsum(sizes)) - wanted).argmin()


def _indices(part):
    return tuple(np.flatnonzero(part == number) for number in (TRAIN, VALID, TEST))
