"""Find problems of a trained network: one paragraph, each problem with its cures."""

import math
import textwrap
from dataclasses import dataclass

import numpy as np

from ..config import Config
from ..data.splits import Pairs, Splits, draw_pairs
from ..score.intervals import Interval, auc_interval
from ..train.loop import COLLAPSE_WARNING, COLLAPSED

BEYOND = 0.98  # share of the different training pairs beyond the margin that is nearly all of them
GOOD = 0.95  # an AUC that leaves little to learn
COLLAPSED_ELSEWHERE = (
    "All images lie at nearly one point: check that image.size and image.normalization are those that the network "
    "expects."
)
FAR = 0.05  # a difference of AUCs that matters, and half an interval that is wide


@dataclass(frozen=True)
class SplitScores:
    """P pairs of one split, scored."""

    distances: np.ndarray
    """float (P,)."""
    labels: np.ndarray
    """int (P,): 0 for the same class, 1 for different classes."""
    auc: Interval

    @property
    def different(self) -> np.ndarray:
        """The distances of the different pairs."""
        return self.distances[self.labels == 1]


def diagnose(trained, splits: Splits, distances: np.ndarray) -> str:
    """Describe the problems of a network, in one paragraph.

    Args:
        trained: The network, with the distances of the validation pairs.
        splits: The splits; the distances of training pairs are measured.
        distances: float32 (P,), of the test pairs.
    """
    seed = trained.config.seed
    training_pairs = pairs_of_training(splits, trained.config)
    valid_pairs, valid_distances = trained.validation
    train = score_pairs(trained.distances(splits, training_pairs), training_pairs, seed)
    valid = score_pairs(valid_distances, valid_pairs, seed)
    test = score_pairs(distances, splits.test_pairs, seed)
    epochs = len(trained.history)
    if trained.folder is None:
        epochs = None
    problems = findings(train, valid, test, trained.config, epochs, len(splits.test), len(splits.folder.paths))
    if not problems:
        problems = [
            f"No problems found: the AUC is {train.auc.value:.3f} on training pairs, {valid.auc} on validation pairs "
            f"and {test.auc} on test pairs."
        ]
    return textwrap.fill(" ".join(problems), 110, break_long_words=False, break_on_hyphens=False)


def pairs_of_training(splits: Splits, config) -> Pairs:
    """Draw pairs of training images by the pair rule, at most half as many of each kind as there are of validation."""
    random = np.random.default_rng(config.seed)
    pairs = draw_pairs(splits.train, splits.folder.labels, config.number_of_iterations, random)
    most = len(splits.valid_pairs) // 2
    same = random.permutation(np.flatnonzero(pairs.labels == 0))[:most]
    different = random.permutation(np.flatnonzero(pairs.labels == 1))[:most]
    chosen = np.concatenate([same, different])
    return Pairs(pairs.first[chosen], pairs.second[chosen], pairs.labels[chosen])


def score_pairs(distances, pairs: Pairs, seed=0) -> SplitScores:
    """Return the pairs of one split with their AUC."""
    return SplitScores(distances, pairs.labels, auc_interval(distances, pairs, seed))


def findings(
    train: SplitScores,
    valid: SplitScores,
    test: SplitScores,
    config: Config,
    epochs: int | None,
    test_images: int,
    images: int,
) -> list[str]:
    """Describe each problem in a sentence or two, with the cures that the settings leave.

    Args:
        train: Pairs of training images.
        valid: The validation pairs.
        test: The test pairs.
        config: The settings.
        epochs: How many the network was trained for; 0 for none, None if it was trained elsewhere.
        test_images: How many images the test has.
        images: How many images there are.

    Returns:
        The sentences; of a collapsed network, that finding only.
    """
    if valid.distances.mean() < COLLAPSED:
        return [COLLAPSE_WARNING if epochs is not None else COLLAPSED_ELSEWHERE]
    cures = _cures(config, epochs)
    problems = []
    name, auc = "test", test.auc
    if valid.auc.high < 0.5 and test.auc.low <= 0.5:  # the test does not contradict it
        name, auc = "validation", valid.auc
    if auc.high < 0.5:
        problems.append(
            f"Labels seem inverted: {name} pairs of one class have larger distances than pairs of two, AUC {auc}. "
            "Check that each folder of data_path holds one class: notebook 01 shows a few pairs."
        )
    if test.auc.low <= 0.5 <= test.auc.high:
        problems.append(
            f"The network may know nothing: the test AUC is {test.auc}, and 0.5 is guessing. "
            f"{_sentence(cures, 'epochs', 'pretrained', 'size', 'images')}"
        )
    if epochs:  # else no margin was learned, and nothing memorised
        problems += _margin_problems(train, valid, test, config.margin, cures)
        gap = train.auc.value - max(valid.auc.value, test.auc.value)  # a gap to only one of them is chance
        if gap > FAR and train.auc.value > max(valid.auc.high, test.auc.high):
            problems.append(
                f"The training images are memorised: the AUC is {train.auc.value:.3f} on training pairs, {valid.auc} "
                f"on validation pairs and {test.auc} on test pairs. "
                f"{_sentence(cures, 'images', 'augmentation', 'pretrained', 'backbone', 'weight_decay')}"
            )
    error = (test.auc.high - test.auc.low) / 2
    if error > FAR:
        factor = (error / FAR) ** 2  # an error falls with the root of the number of images
        problems.append(
            f"There are few images: {test_images} in the test leave its AUC uncertain by ±{error:.2f}. For ±{FAR:g} it "
            f"takes about {_rounded(factor * test_images)}, so {_rounded(factor * images)} images in all instead of "
            f"{images}{cures.get('test_size', '')}."
        )
    return problems


def _margin_problems(train, valid, test, margin, cures):
    farthest = max(train.different.max(initial=0), valid.different.max(initial=0))
    if farthest < margin and test.auc.high < GOOD:
        yield (
            f"The margin is never reached: the largest distance of a different pair is {farthest:.2f}, and margin is "
            f"{margin:g}. {_sentence(cures, 'epochs', 'learning_rate', 'lower_margin')}"
        )
    beyond = (train.different >= margin).mean()
    if beyond >= BEYOND and valid.auc.high < GOOD:
        yield (
            f"The margin is nearly always reached: {beyond:.0%} of the different training pairs lie beyond margin "
            f"{margin:g} and teach nothing more, while validation pairs are still mixed up, AUC {valid.auc}. "
            f"{_sentence(cures, 'margin', 'augmentation', 'images')}"
        )


def _cures(config, epochs) -> dict[str, str]:
    """The cures that the settings leave; what they do already is not advised."""
    cures = {"images": "add images"}
    if config.test_size < 0.3:
        cures["test_size"] = ", or a larger test_size"
    if epochs is None:  # no setting changes the network
        return cures
    cures["learning_rate"] = "raise hyperparameters.learning_rate"
    cures["lower_margin"] = "lower margin"
    if epochs == 0:
        cures["epochs"] = "train it (hyperparameters.epochs above 0)"
    elif epochs >= config.hyperparameters.epochs:  # else later epochs were no better
        cures["epochs"] = "raise hyperparameters.epochs"
    if not config.pretrained:
        cures["pretrained"] = "use pretrained weights (`pretrained`)"
    elif config.backbone_training == "full":
        cures["backbone"] = "set backbone_training: last"
    if min(config.image.size) < 224:
        cures["size"] = "raise image.size until the eye can distinguish the classes"
    if config.margin < 2:
        cures["margin"] = "raise margin (up to 2)"
    if config.hyperparameters.weight_decay < 0.1:
        cures["weight_decay"] = "raise hyperparameters.weight_decay"
    unused = []
    for name, none in (("RandomCropScale", 1), ("brightness", 0), ("contrast", 0)):
        if getattr(config.image, name) == none:
            unused.append(f"image.{name}")
    if unused:
        cures["augmentation"] = f"augment more ({', '.join(unused)})"
    return cures


def _sentence(cures, *names) -> str:
    """The cures of these names that are left, in one sentence."""
    text = ", or ".join(cures[name] for name in names if name in cures)
    return f"{text[0].upper()}{text[1:]}."


def _rounded(count) -> int:
    """The number rounded up to two significant digits."""
    step = 10 ** max(math.floor(math.log10(count)) - 1, 0)
    return math.ceil(count / step) * step
