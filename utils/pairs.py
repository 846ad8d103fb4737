"""The pair rule and the splits: which images train, validate and test, and which pairs they form.

A pair is an anchor, another image, and a label: 0 for the same class (positive), 1 for different classes (negative).
"""

from dataclasses import dataclass

import numpy as np

from utils.cache import Decoder, open_pixels
from utils.config import Config
from utils.images import DataError, ImageFolder, scan
from utils.transforms import stored_size


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
    """Indices into `folder` and `pixels` of the three splits, and the validation and test pairs, fixed for a run."""

    folder: ImageFolder
    pixels: Decoder
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    valid_pairs: Pairs
    test_pairs: Pairs

    def table(self) -> str:
        """Images per class and split, as text."""
        rows = [("class", "train", "valid", "test")]
        counts = [np.bincount(self.folder.labels[part], minlength=len(self.folder.classes)) for part in self._parts()]
        rows += [(name, *map(str, row)) for name, *row in zip(self.folder.classes, *counts, strict=True)]
        rows.append(("all", *(str(len(part)) for part in self._parts())))
        rows.append(("pairs", "", str(len(self.valid_pairs)), str(len(self.test_pairs))))
        width = max(len(row[0]) for row in rows)
        return "\n".join(f"{row[0]:<{width}}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows)

    def _parts(self):
        return self.train, self.valid, self.test


def load_splits(config: Config) -> Splits:
    """Scan `data_path`, open the pixels of its images, split, and draw the validation and test pairs.

    The same config and files give the same splits and pairs.

    Raises DataError for a folder that cannot be used, or when a split can form no positive or no negative pair.
    """
    folder = scan(config.data_path)
    settings = config.hyperparameters
    pixels = open_pixels(folder, stored_size(config.image), config.cache_path, settings.num_workers, settings.verbose)
    train, valid, test = split(folder, config.test_size, config.valid_size, config.seed)
    drawn = []
    for number, (key, part) in enumerate((("", train), ("valid_size", valid), ("test_size", test))):
        random = np.random.default_rng((config.seed, number))
        drawn.append(draw_pairs(part, folder.labels, config.number_of_iterations, random))
        if len(np.unique(drawn[-1].labels)) < 2:
            cure = f"raise {key} or add images" if key else "lower test_size and valid_size or add images"
            name = ("training", "validation", "test")[number]
            raise DataError(f"{config.data_path}: the {name} split has no positive or no negative pair; {cure}.")
    return Splits(folder, pixels, train, valid, test, *drawn[1:])


def split(folder: ImageFolder, test_size: float, valid_size: float, seed: int):
    """Indices of train, validation and test, each int64 and sorted, stratified by class.

    Byte-identical files stay together. A class of six or more distinct images gives at least two to validation and to
    test, so that it can form a positive pair there; `test_size` and `valid_size` are shares of all images.
    """
    random = np.random.default_rng(seed)
    _, leaders, groups = np.unique(folder.contents, return_index=True, return_inverse=True)
    part_of_group = np.zeros(len(leaders), np.int64)  # 0 train, 1 validation, 2 test
    by_class = np.argsort(folder.labels[leaders], kind="stable")  # a duplicate counts for the class that has it first
    ends = np.cumsum(np.bincount(folder.labels[leaders], minlength=len(folder.classes)))
    for members in np.split(by_class, ends[:-1]):
        least = 2 if len(members) >= 6 else 0
        tests, valids = (max(round(share * len(members)), least) for share in (test_size, valid_size))
        members = random.permutation(members)
        part_of_group[members[:tests]] = 2
        part_of_group[members[tests : tests + valids]] = 1
    part = part_of_group[groups]
    return tuple(np.flatnonzero(part == number) for number in range(3))


def draw_pairs(indices: np.ndarray, labels: np.ndarray, iterations: int, random: np.random.Generator) -> Pairs:
    """The pair rule of Livieris et al. 2023, `iterations` times over.

    For each image of each class, one image from the same class is randomly selected and this pair is assigned with
    label zero (0); next, another image from a different class is randomly selected and this pair is assigned with
    label one (1). An anchor is never its own positive; the only image of its class forms a negative pair alone.

    indices: int64 (N,), the images to pair; labels: the class of every image of the folder.
    """
    order = indices[np.argsort(labels[indices], kind="stable")]  # classes lie in contiguous blocks
    _, block, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    start, size = (np.cumsum(counts) - counts)[block], counts[block]  # (N,): the block of each anchor
    position = np.arange(len(order))
    anchors, others, kinds = [], [], []
    for _ in range(iterations):
        step = 1 + (random.random(len(order)) * (size - 1)).astype(np.int64)  # 1 .. size-1: never back to the anchor
        positive = start + (position - start + step) % size
        negative = (random.random(len(order)) * (len(order) - size)).astype(np.int64)
        negative = np.where(negative < start, negative, negative + size)  # jump over the anchor's own block
        keep = np.stack([size > 1, size < len(order)], axis=1)  # (N, 2): which of the two pairs exist
        anchors.append(np.stack([order, order], axis=1)[keep])
        others.append(np.stack([order[positive], order[np.minimum(negative, len(order) - 1)]], axis=1)[keep])
        kinds.append(np.broadcast_to([0, 1], keep.shape)[keep])
    return Pairs(*(np.concatenate(parts) for parts in (anchors, others, kinds)))


def draw_epoch(splits: Splits, config: Config, number: int) -> list[np.ndarray]:
    """The training batches of epoch `number`, as int64 arrays of image indices.

    With `pairs: batch`, those of `draw_batches`; with `pairs: paper`, the anchors of up to batch_size pairs of the
    rule, drawn anew, followed by their partners in the same order.
    """
    random, size = np.random.default_rng((config.seed, 3, number)), config.hyperparameters.batch_size
    if config.pairs == "batch":
        return draw_batches(splits.train, splits.folder.labels, size, random)
    pairs = draw_pairs(splits.train, splits.folder.labels, config.number_of_iterations, random)
    chosen = np.array_split(random.permutation(len(pairs)), -(-len(pairs) // size))
    return [np.concatenate([pairs.first[batch], pairs.second[batch]]) for batch in chosen]


def draw_batches(indices: np.ndarray, labels: np.ndarray, batch_size: int, random: np.random.Generator):
    """Batches for `pairs: batch`: a list of int64 arrays of at most `batch_size` image indices.

    Each batch holds at least two classes, and nearly every image meets another of its class: classes are dealt in
    hands of four (of two below a batch size of eight), spread evenly over the epoch. Every image appears once, unless
    one class so outnumbers the others that a batch would be left without a second class: then that batch gives up a
    hand for images drawn from the other classes.
    """
    hand = 4 if batch_size >= 8 else 2
    order = random.permutation(indices)
    order = order[np.argsort(labels[order], kind="stable")]  # classes lie in contiguous blocks, shuffled inside
    counts = np.unique(labels[order], return_counts=True)[1]
    hands = -(-counts // hand)  # of each class
    last = np.cumsum(hands)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each image in its block
    dealt = np.repeat(last - hands, counts) + place * np.repeat(hands, counts) // np.repeat(counts, counts)
    keys = (np.arange(last[-1]) - np.repeat(last - hands, hands) + random.random(last[-1])) / np.repeat(hands, hands)
    turn = np.argsort(np.argsort(keys))[dealt]  # when the hand of each image is played
    ends = [part[-1] for part in np.array_split(np.arange(last[-1]), -(-last[-1] // (batch_size // hand)))]
    played = np.argsort(turn, kind="stable")
    batches = np.split(order[played], np.searchsorted(turn[played], ends[:-1], side="right"))
    for number, batch in enumerate(batches):
        if (labels[batch] == labels[batch[0]]).all():
            start, stop = np.searchsorted(labels[order], labels[batch[0]] + np.arange(2))
            others = random.choice(len(order) - stop + start, min(hand, len(order) - stop + start), replace=False)
            strangers = order[np.where(others < start, others, others + stop - start)]  # jump over the class itself
            batches[number] = np.concatenate([batch[: max(batch_size - hand, hand)], strangers])
    return batches
