"""From distances to probabilities: fitted on validation pairs, judged on test pairs."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from utils.data import Pairs
from utils.network import Calibration
from utils.training.intervals import Interval, Z, image_count, intervals, standard_errors

ENOUGH = 1000  # pairs from which on the shape of the curve is left open
KNOTS = 201
BINS = 10


def fit_calibration(distances, pairs: Pairs, seed=0) -> Calibration:
    """The probability of "same class" by distance, fitted on validation pairs whose distances are float (P,).

    Below ENOUGH pairs a sigmoid, by Platt's method (1999) with his softened labels; else isotonic regression (Zadrozny
    and Elkan 2002), which leaves the shape open and stays as far from 0 and 1 as the softened labels. Same and
    different pairs weigh alike, so the probability is that among pairs of which half are the same. The interval is
    symmetric in log odds, by `standard_errors`: images are drawn anew.
    """
    grid = np.linspace(0, 2, KNOTS)
    fit = _isotonic if len(pairs) >= ENOUGH else _sigmoid
    log_odds, errors = standard_errors(lambda weights: fit(distances, pairs.labels, weights, grid), pairs, seed)
    probabilities = expit(np.stack([log_odds, log_odds - Z * errors, log_odds + Z * errors], axis=1))
    return Calibration(torch.from_numpy(grid).float(), torch.from_numpy(probabilities).float())


@dataclass(frozen=True)
class Reliability:
    """How often pairs are the same, by the probability that was said: in BINS bins of equal width, empty ones left out.

    said: mean probability of each bin. found, low, high: the share of same pairs, with its 95 % interval. counts: pairs
    of each bin, int64. All (K,). error: the expected calibration error. by_chance: what right probabilities would show.
    """

    said: np.ndarray
    found: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray
    error: Interval
    by_chance: float


def reliability(probabilities, pairs: Pairs, seed=0) -> Reliability:
    """The reliability of pairs whose probabilities of "same" are float (P,) in [0, 1]."""
    bins = _bins(probabilities)
    same = (pairs.labels == 0).astype(float)
    counts = np.bincount(bins, minlength=BINS)
    filled = counts > 0

    def measure(weights):
        error = calibration_error(probabilities, pairs.labels, weights)
        weights = _balanced(pairs.labels, weights)
        counted = np.bincount(bins, weights, BINS)[filled]
        kept = np.bincount(bins, weights * same, BINS)[filled]
        shares = np.divide(kept, counted, out=np.full(len(counted), np.nan), where=counted > 0)
        return np.append(shares, error)

    images = image_count(pairs)
    trials = np.append(np.minimum(counts[filled], images), images)
    found = intervals(measure, pairs, seed, trials=trials)
    error = Interval(*(float(part[-1]) for part in found))
    shares = (part[:-1] for part in found)
    said = np.bincount(bins, probabilities, BINS)[filled] / counts[filled]
    by_chance = chance_calibration_error(probabilities, seed)
    return Reliability(said, *shares, counts[filled], error, by_chance)


def calibration_error(probabilities, labels, weights=None) -> float:
    """Expected calibration error in [0, 1] (Guo et al. 2017, equation 3), with BINS bins of equal width.

    probabilities: of "same", float (P,). labels: int (P,), 0 same. weights: of the pairs, float (P,). Both kinds are
    made to weigh alike, as the probabilities are meant; NaN where one is missing.
    """
    weights = _balanced(labels, np.ones(len(labels)) if weights is None else weights)
    return _error(probabilities, labels, weights)


def chance_calibration_error(probabilities, seed=0, draws=200) -> float:
    """The mean calibration error that so many independent pairs would show if their probabilities were right."""
    random = np.random.default_rng(seed)
    labels = (random.random((draws, len(probabilities))) >= probabilities).astype(int)
    alike = np.ones(len(probabilities))
    return float(np.mean([_error(probabilities, drawn, alike) for drawn in labels]))


def _error(probabilities, labels, weights) -> float:
    gaps = np.bincount(_bins(probabilities), weights * (probabilities - (labels == 0)), BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def _bins(probabilities):
    """The bin of each probability, int64 (P,)."""
    return np.minimum((np.asarray(probabilities) * BINS).astype(int), BINS - 1)


def _sigmoid(distances, labels, weights, grid):
    """Log odds of "same" at the distances of the grid, float (G,); NaN where a kind is missing."""
    targets, weights = _softened(labels, weights)
    if targets is None:
        return np.full(len(grid), np.nan)
    model = LogisticRegression(C=np.inf)  # each pair counts as same and as different, by its softened label
    twice = np.concatenate([distances, distances])[:, None]
    kinds = np.repeat([1, 0], len(distances))
    model.fit(twice, kinds, np.concatenate([weights * targets, weights * (1 - targets)]))
    return model.decision_function(grid[:, None])


def _isotonic(distances, labels, weights, grid):
    """The same, of a curve whose shape is open."""
    targets, weights = _softened(labels, weights)
    if targets is None:
        return np.full(len(grid), np.nan)
    model = IsotonicRegression(increasing=False, out_of_bounds="clip")
    counted = weights > 0
    return logit(model.fit(distances[counted], targets[counted], weights[counted]).predict(grid))


def _softened(labels, weights):
    """Labels of "same" a little inside 0 and 1, float (P,), and weights that make both kinds alike; None without one.

    Platt (1999): so many pairs cannot show that there are no others.
    """
    kinds = [labels == 0, labels == 1]
    sums = [weights[kind].sum() for kind in kinds]
    if min(sums) == 0:
        return None, weights
    targets = np.where(kinds[0], (sums[0] + 1) / (sums[0] + 2), 1 / (sums[1] + 2))
    return targets, _balanced(labels, weights)


def _balanced(labels, weights):
    """Weights, float (P,), with which same and different pairs weigh alike; their sum stays. NaN without a kind."""
    sums = [weights[labels == kind].sum() for kind in (0, 1)]
    if min(sums) == 0:
        return np.full(len(labels), np.nan)
    return weights * np.where(labels == 0, 1 / sums[0], 1 / sums[1]) * weights.sum() / 2
