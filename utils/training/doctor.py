"""What seems wrong with a trained network, in one paragraph: each finding with its cure."""

import math
import textwrap
from dataclasses import dataclass

import numpy as np

from utils.data import Pairs, Splits, draw_pairs
from utils.training.intervals import Interval, auc_interval

COLLAPSED = 0.02  # mean distance of the validation pairs, of at most 2, below which all embeddings are one
COLLAPSE_WARNING = (
    "The embeddings have collapsed: all images lie at nearly one point. "
    "Lower hyperparameters.learning_rate, raise margin, or check that the classes differ."
)
BEYOND = 0.98  # share of the different training pairs beyond the margin that is nearly all of them
GOOD = 0.95  # an AUC that leaves little to learn
FAR = 0.05  # a difference of AUCs that matters, and half an interval that is wide
WIDTH = 110  # of a line, in characters


@dataclass(frozen=True)
class Measured:
    """Pairs of one split: their distances, float (P,), their labels, int (P,), and the AUC with its interval."""

    distances: np.ndarray
    labels: np.ndarray
    auc: Interval

    @property
    def different(self) -> np.ndarray:
        """The distances of the different pairs."""
        return self.distances[self.labels == 1]


def diagnose(trained, splits: Splits, distances: np.ndarray) -> str:
    """One paragraph on a network that `load_trained` gave: what seems wrong, or that nothing does.

    distances: float32 (P,), of the test pairs. Those of validation are in the checkpoint; training pairs are measured.
    """
    seed = trained.config.seed
    training_pairs = pairs_of_training(splits, trained.config)
    valid_pairs, valid_distances = trained.validation
    train = measure(trained.distances(splits, training_pairs), training_pairs, seed)
    valid = measure(valid_distances, valid_pairs, seed)
    test = measure(distances, splits.test_pairs, seed)
    margin = trained.config.margin if trained.history else None  # without training it meant nothing
    found = findings(train, valid, test, margin, len(splits.test), len(splits.folder.paths))
    text = " ".join(found) or (
        f"Nothing seems wrong: the AUC is {train.auc.value:.3f} on training pairs, {valid.auc} on those of validation "
        f"and {test.auc} on those of the test."
    )
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def pairs_of_training(splits: Splits, config) -> Pairs:
    """Pairs of training images by the rule of validation, as many of each kind as there are there at most."""
    random = np.random.default_rng(config.seed)
    pairs = draw_pairs(splits.train, splits.folder.labels, config.number_of_iterations, random)
    kinds = [random.permutation(np.flatnonzero(pairs.labels == kind)) for kind in (0, 1)]
    chosen = np.concatenate([kind[: len(splits.valid_pairs) // 2] for kind in kinds])
    return Pairs(pairs.first[chosen], pairs.second[chosen], pairs.labels[chosen])


def measure(distances, pairs: Pairs, seed=0) -> Measured:
    """The pairs of one split with their AUC."""
    return Measured(distances, pairs.labels, auc_interval(distances, pairs, seed))


def findings(train, valid, test, margin: float | None, test_images: int, images: int) -> list[str]:
    """A sentence or two for each thing that seems wrong; of a collapsed network that alone.

    train, valid, test: Measured. margin: None where nothing was trained. images: how many there are in all.
    """
    if valid.distances.mean() < COLLAPSED:
        return [COLLAPSE_WARNING]
    found = [
        _upside_down(valid, test),
        _knows_nothing(test),
        margin and _margin_never_reached(train, valid, margin),
        margin and _margin_always_reached(train, valid, margin),
        _memorised(train, valid),
        _too_few_images(test, test_images, images),
    ]
    return [sentence for sentence in found if sentence]


def _upside_down(valid, test):
    for name, part in (("validation", valid), ("test", test)):
        if part.auc.high < 0.5:
            return (
                f"Labels seem upside down: {name} pairs of one class lie farther apart than pairs of two, AUC "
                f"{part.auc}. Check that each folder of data_path holds one class: notebook 01 shows a few pairs."
            )
    return None


def _knows_nothing(test):
    if test.auc.low <= 0.5 <= test.auc.high:
        return (
            f"The network may know nothing: the test AUC is {test.auc}, and 0.5 is guessing. Train longer, take "
            "pretrained weights (`pretrained`), or raise image.size until the classes can be told apart by eye."
        )
    return None


def _margin_never_reached(train, valid, margin):
    farthest = max(train.different.max(initial=0), valid.different.max(initial=0))
    if farthest < margin:
        return (
            f"The margin is never reached: no different pair is farther apart than {farthest:.2f}, of {margin:g}. "
            "Train longer, raise hyperparameters.learning_rate, or lower margin."
        )
    return None


def _margin_always_reached(train, valid, margin):
    beyond = (train.different >= margin).mean()
    if beyond >= BEYOND and valid.auc.high < GOOD:
        return (
            f"The margin is nearly always reached: {beyond:.0%} of the different training pairs lie beyond margin "
            f"{margin:g} and teach nothing more, while validation pairs are still mixed up, AUC {valid.auc}. Raise "
            "margin (up to 2), or augment more (image.RandomCropScale, brightness, ...)."
        )
    return None


def _memorised(train, valid):
    if train.auc.value > valid.auc.high and train.auc.value - valid.auc.value > FAR:
        return (
            f"The training images are memorised: the AUC is {train.auc.value:.3f} on pairs of them and {valid.auc} on "
            "those of validation. Add images, augment more (image.RandomCropScale, brightness, ...), take pretrained "
            "weights, set backbone_training: last, or raise hyperparameters.weight_decay."
        )
    return None


def _too_few_images(test, test_images, images):
    error = (test.auc.high - test.auc.low) / 2
    if error > FAR:
        factor = (error / FAR) ** 2  # an error falls with the root of the number of images
        return (
            f"There are few images: {test_images} in the test leave its AUC uncertain by ±{error:.2f}. For ±{FAR:g} it "
            f"takes about {_rounded(factor * test_images)}, so {_rounded(factor * images)} images in all instead of "
            f"{images}, or a larger test_size."
        )
    return None


def _rounded(count) -> int:
    """Up to two digits that count."""
    step = 10 ** max(math.floor(math.log10(count)) - 1, 0)
    return math.ceil(count / step) * step
