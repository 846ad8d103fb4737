"""What seems wrong with a trained network, in one paragraph: each finding with its cure."""

import math
import textwrap
from dataclasses import dataclass

import numpy as np

from ..config import Config
from ..data.splits import Pairs, Splits, draw_pairs
from ..score.intervals import Interval, auc_interval
from ..train.loop import COLLAPSED, LARGEST_MARGIN, collapse_warning

BEYOND = 0.98  # share of the different training pairs beyond the margin that is nearly all of them
GOOD = 0.95  # an AUC that leaves little to learn
FAR = 0.05  # a difference of AUCs that matters, and half an interval that is wide
ENOUGH_PIXELS = 224  # along the shorter side, beyond which larger images are no first advice
ENOUGH_DECAY = 0.1  # a weight decay that is strong already
ENOUGH_TEST = 0.3  # a share of test images that is large already
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
    counts = len(splits.test), len(splits.folder.paths)
    found = findings(train, valid, test, trained.config, len(trained.history), *counts)
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


def findings(train, valid, test, config: Config, epochs: int, test_images: int, images: int) -> list[str]:
    """Say what seems wrong, each finding with the cures that are not taken already.

    Args:
        train: Measured pairs of training images.
        valid: Measured pairs of validation.
        test: Measured pairs of the test.
        config: The settings: what they do already is no advice.
        epochs: After how many the network is kept; 0 where nothing was trained.
        test_images: How many images the test has.
        images: How many there are in all.

    Returns:
        A sentence or two for each finding; of a collapsed network that alone.
    """
    if valid.distances.mean() < COLLAPSED:
        return [collapse_warning(config)]
    found = [_upside_down(valid, test), _knows_nothing(test, config, epochs)]
    if epochs:  # else no margin was learned, and nothing memorised
        found += [
            _margin_never_reached(train, valid, test, config, epochs),
            _margin_always_reached(train, valid, config),
            _memorised(train, valid, test, config),
        ]
    found.append(_too_few_images(test, config, test_images, images))
    return [sentence for sentence in found if sentence]


def _upside_down(valid, test):
    for name, part in (("validation", valid), ("test", test)):
        contradicted = name == "validation" and test.auc.low > 0.5
        if part.auc.high < 0.5 and not contradicted:
            return (
                f"Labels seem upside down: {name} pairs of one class lie farther apart than pairs of two, AUC "
                f"{part.auc}. Check that each folder of data_path holds one class: notebook 01 shows a few pairs."
            )
    return None


def _knows_nothing(test, config, epochs):
    if not test.auc.low <= 0.5 <= test.auc.high:
        return None
    cures = [*_longer(config, epochs), *_pretrained(config)]
    if min(config.image.size) < ENOUGH_PIXELS:
        cures.append("raise image.size until the classes can be told apart by eye")
    cures = cures or ["check that the classes can be told apart by eye, and add images"]
    return f"The network may know nothing: the test AUC is {test.auc}, and 0.5 is guessing. {_sentence(cures)}"


def _margin_never_reached(train, valid, test, config, epochs):
    farthest = max(train.different.max(initial=0), valid.different.max(initial=0))
    if farthest >= config.margin or test.auc.high >= GOOD:
        return None
    cures = [*_longer(config, epochs), "raise hyperparameters.learning_rate", "lower margin"]
    return (
        f"The margin is never reached: no different pair is farther apart than {farthest:.2f}, of {config.margin:g}. "
        f"{_sentence(cures)}"
    )


def _margin_always_reached(train, valid, config):
    beyond = (train.different >= config.margin).mean()
    if beyond < BEYOND or valid.auc.high >= GOOD:
        return None
    return (
        f"The margin is nearly always reached: {beyond:.0%} of the different training pairs lie beyond margin "
        f"{config.margin:g} and teach nothing more, while validation pairs are still mixed up, AUC {valid.auc}. "
        f"{_sentence([*_larger_margin(config), *_augmentation(config), 'add images'])}"
    )


def _memorised(train, valid, test, config):
    """Only where validation and test agree: a gap to one of them alone is chance."""
    for part in (valid, test):
        if train.auc.value <= part.auc.high or train.auc.value - part.auc.value <= FAR:
            return None
    cures = ["add images", *_augmentation(config), *_pretrained(config)]
    if config.pretrained and config.backbone_training == "full":
        cures.append("set backbone_training: last")
    if config.hyperparameters.weight_decay < ENOUGH_DECAY:
        cures.append("raise hyperparameters.weight_decay")
    return (
        f"The training images are memorised: the AUC is {train.auc.value:.3f} on pairs of them, {valid.auc} on those "
        f"of validation and {test.auc} on those of the test. {_sentence(cures)}"
    )


def _too_few_images(test, config, test_images, images):
    error = (test.auc.high - test.auc.low) / 2
    if error <= FAR:
        return None
    factor = (error / FAR) ** 2  # an error falls with the root of the number of images
    larger = ", or a larger test_size" if config.test_size < ENOUGH_TEST else ""
    return (
        f"There are few images: {test_images} in the test leave its AUC uncertain by ±{error:.2f}. For ±{FAR:g} it "
        f"takes about {_rounded(factor * test_images)}, so {_rounded(factor * images)} images in all instead of "
        f"{images}{larger}."
    )


def _longer(config, epochs) -> list[str]:
    """More training, unless later epochs were no better than the one that is kept."""
    if epochs == 0:
        return ["train it (hyperparameters.epochs above 0)"]
    return ["raise hyperparameters.epochs"] if epochs >= config.hyperparameters.epochs else []


def _pretrained(config) -> list[str]:
    return [] if config.pretrained else ["take pretrained weights (`pretrained`)"]


def _larger_margin(config) -> list[str]:
    return [f"raise margin (up to {LARGEST_MARGIN:g})"] if config.margin < LARGEST_MARGIN else []


def _augmentation(config) -> list[str]:
    """The kinds of augmentation that are off."""
    image = config.image
    off = []
    if image.RandomCropScale == 1:
        off.append("image.RandomCropScale")
    for name in ("brightness", "contrast"):
        if getattr(image, name) == 0:
            off.append(f"image.{name}")
    return [f"augment more ({', '.join(off)})"] if off else []


def _sentence(cures) -> str:
    """Cures in one sentence that begins with a capital letter."""
    first, last = ", ".join(cures[:-1]), cures[-1]
    text = f"{first}, or {last}" if first else last
    return f"{text[0].upper()}{text[1:]}."


def _rounded(count) -> int:
    """Up to two digits that count."""
    step = 10 ** max(math.floor(math.log10(count)) - 1, 0)
    return math.ceil(count / step) * step
