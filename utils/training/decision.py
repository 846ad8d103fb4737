"""What a distance decides: "same", "different", or nothing. Chosen on validation pairs, never on test pairs.

Distances are float (P,), labels int (P,): 0 same class, 1 different classes.
"""

import math

import numpy as np
from scipy.stats import mannwhitneyu

from utils.config import ConfigError, DecisionSettings
from utils.data import Pairs
from utils.training.intervals import image_count

JUST_BELOW = 1e-6  # of the smallest distance
NEVER = 1e-5  # probability that the order is chance: so low because pairs that share images are not independent


def choose_threshold(distances, labels, decision: DecisionSettings | None = None) -> float:
    """Choose the distance up to which a pair is decided "same", by `decision.rule`.

    Args:
        distances: float (P,), finite; the smaller, the more similar.
        labels: int (P,), 0 for a pair of the same class, 1 for a pair of different classes; both occur.
        decision: the rule; None is `balanced`.

    Returns:
        The threshold, as `threshold_by_rule` chooses it.

    Raises:
        ValueError: The distances or labels are not as above, or are certainly the other way round: same pairs lie
            farther apart than different pairs.
        ConfigError: `decision.fmr` is below what one pair can show.
    """
    distances, labels = _checked(distances, labels)
    _check_order(distances, labels)
    return threshold_by_rule(distances, labels, decision)


def threshold_by_rule(distances, labels, decision: DecisionSettings | None = None) -> float:
    """Choose a threshold as `choose_threshold` does, also for a network whose distances say the opposite.

    balanced: best balanced accuracy. eer: the false match rate (FMR, different pairs decided "same") and the false
    non-match rate (FNMR, same pairs decided "different") as near to each other as can be. fmr: the largest threshold
    whose FMR is at most `decision.fmr`. The threshold lies midway between two observed distances; among equally good
    ones the middle one is taken.

    Args:
        distances: float (P,), finite.
        labels: int (P,), 0 for the same class, 1 for different classes; both occur.
        decision: the rule; None is `balanced`.

    Returns:
        The threshold, a distance.

    Raises:
        ConfigError: `decision.fmr` is below what one pair can show.
    """
    decision = decision or DecisionSettings()
    values = np.unique(distances)
    midway = (values[:-1] + values[1:]) / 2
    candidates = np.concatenate([values[:1] - JUST_BELOW, midway, values[-1:]])  # from nothing to all is "same"
    positives = np.sort(distances[labels == 0])
    negatives = np.sort(distances[labels == 1])
    fnmr = 1 - np.searchsorted(positives, candidates, side="right") / len(positives)
    fmr = np.searchsorted(negatives, candidates, side="right") / len(negatives)
    if decision.rule == "balanced":
        return _middle_of_best(candidates, -(fmr + fnmr))
    if decision.rule == "eer":
        return _middle_of_best(candidates, -np.abs(fmr - fnmr))
    check_decision(labels, decision)
    return float(candidates[fmr <= decision.fmr].max())


def check_decision(labels, decision: DecisionSettings):
    """Raises ConfigError where `decision.fmr` is asked for and below what one of the validation pairs can show."""
    different = int((labels == 1).sum())
    if decision.rule == "fmr" and different * decision.fmr < 1:
        raise ConfigError(
            f"decision.fmr: {decision.fmr} is not to be had from {different} different validation pairs: "
            f"raise it, or have {math.ceil(1 / decision.fmr)} by raising valid_size or number_of_iterations"
        )


def choose_band(distances, pairs: Pairs, threshold: float, wrong: float) -> tuple[float, float]:
    """Two distances: up to the first a pair is "same", beyond the second "different", between them undecided.

    So that at most a share `wrong` of the pairs decided "same", and of those decided "different", are wrong, on average
    over validation sets. From the surest pair on, the first run of pairs is decided whose errors, and those of one more
    image, are at most `wrong` of all: conformal risk control (Angelopoulos et al. 2022, section 2.1), with the pairs of
    an image in place of one. A side that too few pairs speak for is never decided: -inf or inf.
    """
    more = max(1, len(pairs) / (2 * image_count(pairs)))  # pairs of each kind that the pair rule gives an image
    same_up_to = _last_safe(distances, pairs.labels == 1, wrong, more)
    different_from = -_last_safe(-distances, pairs.labels == 0, wrong, more)
    return min(same_up_to, threshold), max(different_from, threshold)


def _checked(distances, labels):
    """Distances and labels as arrays. Raises ValueError where they are not finite, or not labels of as many pairs."""
    distances, labels = np.asarray(distances), np.asarray(labels)
    if distances.ndim != 1 or distances.shape != labels.shape:
        raise ValueError(f"distances {distances.shape} and labels {labels.shape} must both be (P,), one for each pair")
    if not np.isfinite(distances).all():
        count = int((~np.isfinite(distances)).sum())
        raise ValueError(f"distances: {count} of {len(distances)} are not finite: leave these pairs out")
    other = np.setdiff1d(labels, [0, 1])
    if len(other):
        raise ValueError(f"labels: {other[0]} is refused: 0 is a pair of the same class, 1 of different classes")
    if len(np.unique(labels)) < 2:
        kind = "different (1)" if (labels == 0).all() else "same (0)"
        raise ValueError(f"labels: no pair is {kind}: a threshold needs pairs of both kinds")
    return distances, labels


def _check_order(distances, labels):
    """Raises ValueError where same pairs lie farther apart than different pairs, by more than chance."""
    same, different = distances[labels == 0], distances[labels == 1]
    test = mannwhitneyu(different, same, alternative="less")
    if test.pvalue < NEVER:
        auc = test.statistic / (len(same) * len(different))
        raise ValueError(
            f"labels: same pairs (0) lie farther apart than different pairs (1), AUC {auc:.3f}: pass 0 for the same "
            "class and 1 for different classes, and distances, not similarities"
        )


def _middle_of_best(candidates, goodness):
    best = np.flatnonzero(np.isclose(goodness, goodness.max()))
    return float(candidates[best[len(best) // 2]])


def _last_safe(scores, errors, wrong, more):
    """The score at the end of the first run of safe ones, midway to the next one; -inf where none is safe."""
    values, rows = np.unique(scores, return_inverse=True)
    decided = np.cumsum(np.bincount(rows))
    mistaken = np.cumsum(np.bincount(rows, errors))
    safe = mistaken + more <= wrong * (decided + more)
    if not safe.any():
        return -math.inf
    first = int(safe.argmax())
    run = np.flatnonzero(~safe[first:])
    last = first + run[0] - 1 if len(run) else len(safe) - 1
    return float(values[last : last + 2].mean())
