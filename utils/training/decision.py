"""What a distance decides: "same", "different", or nothing. Chosen on validation pairs, never on test pairs.

Distances are float (P,), labels int (P,): 0 same class, 1 different classes.
"""

import math

import numpy as np

from utils.config import ConfigError, DecisionSettings
from utils.data import Pairs
from utils.training.intervals import image_count

JUST_BELOW = 1e-6  # of the smallest distance


def choose_threshold(distances, labels, decision: DecisionSettings | None = None) -> float:
    """The distance up to which a pair is decided "same", by `decision.rule`; midway between two observed distances.

    balanced: best balanced accuracy. eer: the false match rate (FMR, different pairs decided "same") and the false
    non-match rate (FNMR, same pairs decided "different") as near to each other as can be. fmr: the largest threshold
    whose FMR is at most `decision.fmr`. Among equally good thresholds the middle one is taken.

    Raises ConfigError where `decision.fmr` is below what one pair can show.
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
