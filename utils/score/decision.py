"""What a distance decides: "same", "different", or nothing. Chosen on validation pairs, never on test pairs.

Distances are float (P,), labels int (P,): 0 same class, 1 different classes.
"""

import math

import numpy as np
from scipy.special import betaincinv
from scipy.stats import mannwhitneyu

from ..config import ConfigError, DecisionSettings
from ..data.splits import Pairs
from .intervals import number_images

JUST_BELOW = 1e-6  # of the smallest distance
NEVER = 1e-5  # probability that the order is chance: so low because pairs that share images are not independent
CANDIDATES = 50  # distances of each side that are tested as its limit
FIRST = 0.4  # of the pairs that a side decides at most: where the tests begin; fewer rarely show a low error rate
RISK = 0.05  # share of validation sets in which the bound of one side may fail: of two sides, in one of ten


def choose_threshold(distances, labels, decision: DecisionSettings | None = None) -> float:
    """Choose the distance up to which a pair is decided "same", by `decision.rule`.

    Args:
        distances: float (P,), finite; the smaller, the more similar.
        labels: int (P,), 0 for a pair of the same class, 1 for a pair of different classes; both occur.
        decision: The rule; None is `balanced`.

    Returns:
        The threshold, as `threshold_by_rule` chooses it.

    Raises:
        ValueError: The distances or labels are not as above, or are certainly reversed: same pairs have larger
            distances than different pairs.
        ConfigError: `decision.fmr` is below what one pair can show.
    """
    distances, labels = np.asarray(distances), np.asarray(labels)
    _check_labelled(distances, labels)
    same, different = distances[labels == 0], distances[labels == 1]
    test = mannwhitneyu(different, same, alternative="less")
    if test.pvalue < NEVER:
        auc = test.statistic / (len(same) * len(different))
        raise ValueError(
            f"labels: same pairs (0) have larger distances than different pairs (1), AUC {auc:.3f}: pass 0 for the "
            "same class and 1 for different classes, and distances, not similarities"
        )
    return threshold_by_rule(distances, labels, decision)


def threshold_by_rule(distances, labels, decision: DecisionSettings | None = None) -> float:
    """Choose a threshold as `choose_threshold` does, also for a network whose distances are reversed.

    balanced: best balanced accuracy. eer: the smallest difference between the false match rate (FMR, different pairs
    decided "same") and the false non-match rate (FNMR, same pairs decided "different"). fmr: the largest threshold
    whose FMR is at most `decision.fmr`. The threshold is midway between two observed distances; among equally good
    ones the middle one is taken.

    Args:
        distances: float (P,), finite.
        labels: int (P,), 0 for the same class, 1 for different classes; both occur.
        decision: The rule; None is `balanced`.

    Raises:
        ConfigError: `decision.fmr` is below what one pair can show.
    """
    decision = decision or DecisionSettings()
    values = np.unique(distances)
    midway = (values[:-1] + values[1:]) / 2
    candidates = np.concatenate([values[:1] - JUST_BELOW, midway, values[-1:]])  # from nothing to all is "same"
    same = np.sort(distances[labels == 0])
    different = np.sort(distances[labels == 1])
    fnmr = 1 - np.searchsorted(same, candidates, side="right") / len(same)
    fmr = np.searchsorted(different, candidates, side="right") / len(different)
    if decision.rule == "fmr":
        check_decision(labels, decision)
        return float(candidates[fmr <= decision.fmr].max())
    cost = fmr + fnmr
    if decision.rule == "eer":
        cost = np.abs(fmr - fnmr)
    best = np.flatnonzero(np.isclose(cost, cost.min()))
    return float(candidates[best[len(best) // 2]])


def check_decision(labels, decision: DecisionSettings):
    """Raise ConfigError if `decision.fmr` is used and below what one of the validation pairs can show."""
    different = int((labels == 1).sum())
    if decision.rule != "fmr" or different * decision.fmr >= 1:
        return
    needed = math.ceil(1 / decision.fmr)
    times = math.ceil(1.2 * needed / max(different, 1))  # how many of the pairs are different is drawn
    cure = f"multiply number_of_iterations by {times}, or raise valid_size"
    if different > 1:
        cure = f"set it to {math.ceil(1e4 / different) / 1e4:g} or more, or {cure}"
    raise ConfigError(
        f"decision.fmr: {decision.fmr} cannot be estimated from {different} different validation pairs (at least "
        f"{needed} are needed): {cure}"
    )


def choose_band(distances, pairs: Pairs, threshold: float, wrong: float) -> tuple[float, float]:
    """Choose the distances between which a pair is left undecided.

    In nine of ten validation sets at most a share `wrong` of the pairs decided "same", and of those decided
    "different", are wrong, for images and pairs drawn as those of validation are. Each side is tested from its
    strictest candidate distance outwards until the upper bound of its error rate first exceeds `wrong`.

    Args:
        distances: float (P,), finite, of the validation pairs.
        pairs: The P validation pairs.
        threshold: The distance up to which a pair is decided "same" where none is left undecided.
        wrong: The highest error rate of a side, in (0, 1).

    Returns:
        Two distances: a pair is "same" up to the first, "different" beyond the second. They are at most and at least
        the threshold; a side that too few images or too many errors leave unproven is never decided: -inf or inf.

    Source: fixed-sequence testing, Angelopoulos et al. 2021, Learn then Test.
    """
    same_up_to = _last_safe(distances, pairs.labels == 1, pairs, wrong)
    different_from = -_last_safe(-distances, pairs.labels == 0, pairs, wrong)
    return min(same_up_to, threshold), max(different_from, threshold)


def images_to_decide(wrong: float) -> int:
    """Count the validation images below which `choose_band` decides nothing, however good the network is.

    Where a share s of all images is odd, each of which spoils its pairs, 2 s of the pairs are spoiled; that no such
    image is among the validation images must be improbable if 2 s would be too many. The count is enough, if no pair is
    wrong, where images have as many same pairs as different ones.
    """
    return math.ceil(2 * _trials_to_decide(wrong))


def _check_labelled(distances, labels):
    """Raise ValueError unless these are finite distances, and labels of as many pairs of both kinds."""
    if distances.ndim != 1 or distances.shape != labels.shape:
        raise ValueError(f"distances {distances.shape} and labels {labels.shape} must both be (P,), one for each pair")
    count = np.count_nonzero(~np.isfinite(distances))
    if count:
        raise ValueError(f"distances: {count} of {len(distances)} are not finite: leave these pairs out")
    unknown = np.setdiff1d(labels, [0, 1])
    if len(unknown):
        raise ValueError(f"labels: {unknown[0]} is refused: 0 is a pair of the same class, 1 of different classes")
    for label, kind in enumerate(("same", "different")):
        if label not in labels:
            raise ValueError(f"labels: no pair is {kind} ({label}): a threshold needs pairs of both kinds")


def _last_safe(scores, wrong_if_decided, pairs, wrong):
    """Find the last score up to which deciding pairs is safe.

    Args:
        scores: float (P,), by which pairs are decided, the lowest first.
        wrong_if_decided: bool (P,).
        pairs: The P pairs.
        wrong: The highest error rate, in (0, 1).

    Returns:
        The last candidate of the first run of safe ones, midway to the next score; -inf where the first is not safe.
        Candidates are equally many pairs from each other, whatever their labels. The first decides FIRST of the pairs
        that the last one decides, or more where even without an error so few would prove nothing.
    """
    spoiled = _pairs_of_an_image(pairs, wrong_if_decided)
    fewest = math.ceil(_trials_to_decide(wrong) * spoiled)
    most = min(len(scores), int((~wrong_if_decided).sum() / (1 - wrong)))  # beyond, too many are wrong in any case
    if fewest > most:
        return -math.inf
    ranked = np.sort(scores)
    candidates = ranked[np.linspace(max(fewest, FIRST * most), most, CANDIDATES).astype(int) - 1]
    safe = _highest_rates(scores, wrong_if_decided, pairs, candidates, spoiled) <= wrong
    count = np.append(safe, False).argmin()  # of the first run
    if count == 0:
        return -math.inf
    last = candidates[count - 1]
    following = ranked[ranked > last]
    if len(following):
        return float((last + following[0]) / 2)
    return float(last)


def _highest_rates(scores, wrong_if_decided, pairs, candidates, spoiled):
    """Bound from above, each with confidence 1 - RISK, the error rates of the pairs decided up to the candidates.

    Clopper and Pearson's bound for as many independent trials as have the variance of pairs that share images (Korn and
    Graubard 1998). That variance is Cameron and Miller's (2014, Robust inference for dyadic data), blended with that of
    one more image whose `spoiled` pairs are all wrong. Where no error was seen, the latter remains: an error is then
    taken to come from an odd image, which spoils all pairs that it is in.

    Args:
        scores, wrong_if_decided, pairs: As `_last_safe` takes them.
        candidates: float (C,), rising; the first decides a pair at least.
        spoiled: Pairs that one odd image spoils, at least 1.

    Returns:
        float (C,), in (0, 1].
    """
    images = np.sort(number_images(pairs), axis=0)
    (first, second), places, repeats = np.unique(images, axis=1, return_index=True, return_counts=True)
    errors_of_pair = repeats * wrong_if_decided[places]  # the same two images are one pair, weighted
    count = images.max() + 1
    limits = np.searchsorted(candidates, scores[places])  # the first candidate that decides a pair

    def decided(rows, weights):
        """Sums of weights over the pairs that each candidate decides, float (count, C)."""
        cells = rows * (len(candidates) + 1) + limits
        sums = np.bincount(cells, weights, minlength=count * (len(candidates) + 1))
        return sums.reshape(count, -1)[:, :-1].cumsum(axis=1)

    def of_all(weights):
        return decided(np.zeros_like(limits), weights)[0]

    errors, total = of_all(errors_of_pair), of_all(repeats)
    rates = errors / total
    errors_of_image = decided(first, errors_of_pair) + decided(second, errors_of_pair)
    excess_of_image = errors_of_image - rates * (decided(first, repeats) + decided(second, repeats))
    own = of_all(repeats * errors_of_pair) * (1 - 2 * rates) + rates**2 * of_all(repeats**2)
    variance = (excess_of_image**2).sum(axis=0) - own  # of the number of errors; each pair has two images
    independent = total * rates * (1 - rates)
    times = np.maximum(1, np.divide(variance, independent, out=np.ones_like(rates), where=independent > 0))
    times = (errors * times + spoiled**2) / (errors + spoiled)
    trials = total / times
    correct = np.maximum(trials * (1 - rates), np.finfo(float).tiny)
    return betaincinv(trials * rates + 1, correct, 1 - RISK)


def _pairs_of_an_image(pairs, chosen) -> float:
    """How many of the chosen pairs, bool (P,), an image has that has any, on average; at least 1."""
    images = np.union1d(pairs.first[chosen], pairs.second[chosen])
    return max(1.0, 2 * chosen.sum() / max(1, len(images)))


def _trials_to_decide(wrong) -> float:
    """How many independent trials without an error show an error rate of at most `wrong`."""
    return math.log(RISK) / math.log1p(-wrong)
