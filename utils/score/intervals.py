"""How sure a number measured on pairs is: images are drawn anew, because pairs share them."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from ..data.splits import Pairs

DRAWS = 300
Z = 1.96  # standard errors to either end of a 95 % interval
UNKNOWN = 1e6  # variance of what hardly any draw could measure: the interval is all of [0, 1]


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self):
        if np.isnan(self.low):
            return f"{self.value:.3f} (interval unknown)"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def interval(measure, pairs: Pairs, seed=0, draws=DRAWS) -> Interval:
    """The 95 % interval of one rate; measure: a function of weights, float (P,), to a number in [0, 1]."""
    values, low, high = intervals(lambda weights: np.array([measure(weights)]), pairs, seed, draws)
    return Interval(float(values[0]), float(low[0]), float(high[0]))


def intervals(measure, pairs: Pairs, seed=0, draws=DRAWS, trials=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates in [0, 1] and the ends of their 95 % intervals, each float (M,).

    measure: a function of the weights of all pairs, float (P,), to float (M,), NaN for what cannot be measured.

    Intervals are those of `standard_errors`, symmetric in log odds. A rate of 0 or 1 gets Wilson's (1927) for so many
    trials, int (M,); without them, each image is one.
    """
    values, errors = standard_errors(measure, pairs, seed, draws)
    low, high = _ends(values, errors, image_count(pairs) if trials is None else trials)
    return values, low, high


def plain_intervals(measure, pairs: Pairs, seed=0, draws=DRAWS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure numbers of any range on pairs, with 95 % intervals that are symmetric around them.

    Args:
        measure: A function of the weights of all pairs, float (P,), to float (M,), NaN for what cannot be measured.
        pairs: The P pairs.
        seed: Of the resampling of images.
        draws: How often images are resampled.

    Returns:
        The numbers and the lower and upper ends of their intervals, each float (M,): `standard_errors`, Z to each side.
    """
    values, errors = standard_errors(measure, pairs, seed, draws)
    errors = np.where(errors**2 < UNKNOWN / 2, errors, np.nan)
    return values, values - Z * errors, values + Z * errors


def plain_interval(measure, pairs: Pairs, seed=0) -> Interval:
    """One such number; measure: a function of the weights of all pairs, float (P,), to a number."""
    value, low, high = plain_intervals(lambda weights: np.array([measure(weights)]), pairs, seed)
    return Interval(float(value[0]), float(low[0]), float(high[0]))


def mean_interval(values, pairs: Pairs, seed=0) -> Interval:
    """The mean of one number for each pair, float (P,) of any range, with its 95 % interval by resampled images."""
    return plain_interval(lambda weights: _mean(values, weights), pairs, seed)


def share_interval(chosen, pairs: Pairs, seed=0) -> Interval:
    """The share of pairs that are chosen, bool (P,), with its 95 % interval by resampled images."""
    return interval(lambda weights: _mean(np.asarray(chosen, float), weights), pairs, seed)


def standard_errors(measure, pairs: Pairs, seed=0, draws=DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """What `measure` finds on pairs, as in `intervals` but of any range, and its standard errors, each float (M,).

    Images are drawn with replacement, and a pair counts as often as its two images were drawn, multiplied. That counts
    the noise of a pair itself three times (Owen 2007, The pigeonhole bootstrap), so twice the variance of drawing pairs
    is taken off; what is left is that of Cameron and Miller (2014, Robust inference for dyadic data). Two images that
    the pair rule has paired more than once, in whatever order, are drawn as one pair: their noise is the same.

    Few images vary less around their own mean than around the true one. For a mean over pairs the variance comes out
    low by the share of all pairs of pairs that have an image in common, so it is raised by that. Intervals still hold
    the truth less often than in 95 %: in about 91 % with 30 to 60 images, where images differ as much as pairs do.
    """
    count, images = numbered_images(pairs)
    first, second = images
    units, unit_count = _unordered(first, second)
    random = np.random.default_rng(seed)
    by_image = []
    by_pair = []
    for _ in range(draws):
        drawn = _drawn(count, random)
        by_image.append(measure(drawn[first] * drawn[second]))
        by_pair.append(measure(_drawn(unit_count, random)[units]))
    own = _variance(by_pair)
    variance = np.maximum(_variance(by_image) - 2 * own, own) / (1 - _connected(images, units))
    return measure(np.ones(len(pairs))), np.sqrt(variance)


def _connected(images, units) -> float:
    """The share of all pairs of pairs that have an image in common, at most 1/2.

    Args:
        images: The two images of each pair by number from 0, int64 (2, P).
        units: A number for each pair, the same for those of the same two images, int64 (P,).
    """
    shared = np.square(np.bincount(images.ravel())).sum() - np.square(np.bincount(units)).sum()
    return min(shared / images.shape[1] ** 2, 1 / 2)


def numbered_images(pairs: Pairs) -> tuple[int, np.ndarray]:
    """How many images the pairs share, and the two images of each pair by number from 0, int64 (2, P)."""
    images, numbers = np.unique(np.stack([pairs.first, pairs.second]), return_inverse=True)
    return len(images), numbers.reshape(2, -1)


def image_count(pairs: Pairs) -> int:
    """How many images the pairs share."""
    return numbered_images(pairs)[0]


def interval_of_mean(values) -> Interval:
    """The 95 % interval of the mean of independent values in [0, 1], float (N,), in log odds as above."""
    mean = np.mean(values, keepdims=True, dtype=float)
    error = np.std(values, keepdims=True) / np.sqrt(len(values))
    low, high = _ends(mean, error, len(values))
    return Interval(float(mean[0]), float(low[0]), float(high[0]))


def auc_interval(distances, pairs: Pairs, seed=0, draws=DRAWS) -> Interval:
    """The AUC of pairs with its 95 % interval: the chance that a different pair lies farther apart than a same pair."""
    _, places = np.unique(distances, return_inverse=True)  # sorted once: sklearn's roc_auc_score would in every draw
    kinds = [pairs.labels == kind for kind in (0, 1)]

    def auc(weights):
        same, different = (np.bincount(places, weights * kind) for kind in kinds)
        if not same.any() or not different.any():
            return np.nan
        nearer = np.cumsum(same) - same / 2  # of equal distances, half count
        return (different * nearer).sum() / (same.sum() * different.sum())

    return interval(auc, pairs, seed, draws)


def _mean(values, weights) -> float:
    """The weighted mean of numbers, float (P,); NaN where all weights are 0."""
    total = weights.sum()
    return float(weights @ values / total) if total else np.nan


def _unordered(first, second) -> tuple[np.ndarray, int]:
    """Number the pairs so that those of the same two images have one number, in the order in which they come.

    Args:
        first: int64 (P,), of the images.
        second: int64 (P,).

    Returns:
        The numbers, int64 (P,), and how many there are.
    """
    keys = np.minimum(first, second) * (max(first.max(), second.max()) + 1) + np.maximum(first, second)
    _, places, numbers = np.unique(keys, return_index=True, return_inverse=True)
    in_order = np.argsort(np.argsort(places))
    return in_order[numbers], len(places)


def _drawn(count, random):
    """How often each of `count` is drawn, in as many draws."""
    return np.bincount(random.integers(0, count, count), minlength=count).astype(float)


def _variance(found):
    """Of each rate, float (M,), over the draws that could measure it; UNKNOWN where half of them could not."""
    found = np.array(found)  # (draws, M)
    measured = ~np.isnan(found)
    counts = measured.sum(axis=0)
    means = np.where(measured, found, 0).sum(axis=0) / np.maximum(counts, 1)
    squares = np.where(measured, (found - means) ** 2, 0).sum(axis=0)
    return np.where(2 * counts > len(found), squares / np.maximum(counts, 1), UNKNOWN)


def _ends(values, errors, trials):
    """Low and high ends, float (M,), of rates with these standard errors; trials: int or int (M,)."""
    inner = np.clip(values, 1e-12, 1 - 1e-12)
    width = np.minimum(Z * errors / (inner * (1 - inner)), 700)  # in log odds; beyond, exponentials overflow
    low = expit(logit(inner) - width)
    high = expit(logit(inner) + width)
    share = Z**2 / (trials + Z**2)
    low = np.where(values >= 1, 1 - share, np.where(values <= 0, 0, low))
    high = np.where(values <= 0, share, np.where(values >= 1, 1, high))
    return np.where(np.isnan(values), np.nan, low), np.where(np.isnan(values), np.nan, high)
