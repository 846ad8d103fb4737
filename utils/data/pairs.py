"""The pair rule, and the images and pairs of a run: what trains, validates and tests.

A pair is an anchor, another image, and a label: 0 for the same class (positive), 1 for different classes (negative).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.config import Config
from utils.data.cache import Decoder, open_pixels
from utils.data.duplicates import joined, names_of, near_duplicates
from utils.data.images import ImageFolder, scan
from utils.data.reading import DataError
from utils.data.splitting import cure, groups_by_name, lacking, split, split_classes
from utils.data.transforms import stored_size
from utils.data.unreadable import list_unreadable
from utils.runtime import FIRST

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
