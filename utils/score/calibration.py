"""Probabilities: from the distance of two images to the probability that they are of one class."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, logit

from ..data.splits import Pairs
from .intervals import Interval, Z, image_count, intervals, number_images, standard_errors

FOLDS = 10  # of images, over which the shape of the curve is chosen
KNOTS = 201
BINS = 10
EDGE = 0.0025  # distances / 2 of beta calibration keep this distance from 0 and 1: half a step between knots
EQUAL = 1e-9  # standard deviation below which distances are equal
TOLERANCE = 1e-12  # of the loss of logistic regression, as a share of it


@dataclass(frozen=True, eq=False)
class Calibration:
    """Probability that the images of a pair are of one class, by their distance, where half of all pairs are."""

    distances: torch.Tensor
    """float32 (G,), rising: the knots of the curve."""
    probabilities: torch.Tensor
    """float32 (G, 3) in [0, 1]: the probability and the ends of its 95 % interval, none of which rises."""

    def __call__(self, distances: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of distances (B,) with their intervals, float32 (B, 3), on the CPU.

        They are linear between the knots and constant beyond them.
        """
        distances = distances.detach().float().cpu()
        columns = []
        for column in self.probabilities.T:
            columns.append(np.interp(distances, self.distances, column))
        return torch.from_numpy(np.stack(columns, axis=1)).float()


def fit_calibration(distances, pairs: Pairs, seed=0) -> Calibration:
    """Fit the probability of "same class" by distance to validation pairs.

    The curve has the shape of `choose_shape` and never rises: where same pairs are not closer than different pairs, it
    is flat. Both kinds of pairs have the same weight in sum, so the probability is that among pairs of which half are
    the same. Platt's softened labels keep it from 0 and 1: so many pairs cannot show that there are no exceptions.

    The interval reaches from the lowest to the highest end of the intervals of all SHAPES, as so few images leave the
    shape open. Each is symmetric in log odds, by `standard_errors`. Images without exceptions have none when they are
    resampled, so the interval never excludes what Wilson's (1927) leaves open for none of so many images.

    Args:
        distances: Of the pairs, float (P,), in [0, 2].
        pairs: The P validation pairs, of both kinds.
        seed: Of the folds and of the resampling.

    Returns:
        The probability and its 95 % interval at KNOTS distances from 0 to 2.

    Source: Platt 1999, Probabilistic outputs for support vector machines; Zadrozny and Elkan 2002, Transforming
    classifier scores into accurate multiclass probability estimates; Kull et al. 2017, Beta calibration.
    """
    grid = np.linspace(0, 2, KNOTS)
    chosen = list(SHAPES).index(choose_shape(distances, pairs, seed))

    def measure(weights):
        return np.concatenate([fit_shape(shape, distances, pairs.labels, weights, grid) for shape in SHAPES])

    log_odds, errors = standard_errors(measure, pairs, seed)
    log_odds = log_odds.reshape(-1, KNOTS)
    reach = Z * np.nan_to_num(errors, nan=np.inf).reshape(-1, KNOTS)
    same, different = np.bincount(pairs.labels, minlength=2)
    curve = np.clip(log_odds[chosen], -np.log(different + 1), np.log(same + 1))
    exceptions = logit(Z**2 / (image_count(pairs) + Z**2))
    low = np.minimum((log_odds - reach).min(axis=0), np.minimum(curve, -exceptions))
    high = np.maximum((log_odds + reach).max(axis=0), np.maximum(curve, exceptions))
    columns = []
    for column in (curve, low, high):
        columns.append(isotonic_regression(expit(column), increasing=False).x)
    return Calibration(torch.from_numpy(grid).float(), torch.from_numpy(np.stack(columns, axis=1)).float())


def choose_shape(distances, pairs: Pairs, seed=0) -> str:
    """Choose the shape of the calibration curve, a key of SHAPES, by log loss over folds of images.

    Images, not pairs, are divided into FOLDS folds. A pair is scored once, by fits to all pairs that have no image in
    the folds of its two images. Where the folds leave nothing to fit or to score, the shape is "sigmoid".

    Args:
        distances: Of the pairs, float (P,), in [0, 2].
        pairs: The P validation pairs.
        seed: Of the folds.
    """
    images = number_images(pairs)
    folds = np.random.default_rng(seed).permutation(images.max() + 1) % FOLDS
    folds = np.sort(folds[images], axis=0)  # (2, P): of both images, the lower first
    losses = np.full((len(SHAPES), len(pairs)), np.nan)
    for left_out in np.unique(folds, axis=1).T:
        scored = (folds == left_out[:, None]).all(axis=0)
        fitted = ~np.isin(folds, left_out).any(axis=0)
        for row, shape in enumerate(SHAPES):
            log_odds = fit_shape(shape, distances, pairs.labels, fitted.astype(float), distances[scored])
            losses[row, scored] = np.logaddexp(0, np.where(pairs.labels[scored] == 0, -log_odds, log_odds))
    measured = ~np.isnan(losses[0])  # all shapes fail together: where a kind of pairs is missing
    weights = _balanced(pairs.labels, measured.astype(float))
    if np.isnan(weights).any():
        return "sigmoid"
    return list(SHAPES)[(losses[:, measured] @ weights[measured]).argmin()]


def fit_shape(shape: str, distances, labels, weights, places) -> np.ndarray:
    """Fit log odds of "same" to weighted pairs, with Platt's softened labels.

    Args:
        shape: A key of SHAPES.
        distances: Of the pairs, float (P,), in [0, 2].
        labels: int (P,), 0 same.
        weights: Of the pairs, float (P,).
        places: The distances at which log odds are returned, float (G,).

    Returns:
        float (G,), never rising with distance; NaN where a kind of pairs is missing.
    """
    counted = weights > 0
    distances, labels, weights = distances[counted].astype(float), labels[counted], weights[counted]
    if len(np.unique(labels)) < 2:
        return np.full(len(places), np.nan)
    same, different = np.bincount(labels, weights)
    targets = np.where(labels == 0, (same + 1) / (same + 2), 1 / (different + 2))
    return SHAPES[shape](distances, targets, _balanced(labels, weights), places)


@dataclass(frozen=True)
class Reliability:
    """How often pairs are the same, by their predicted probability, in the K of BINS bins that hold pairs."""

    predicted: np.ndarray
    """float (K,): the mean predicted probability."""
    observed: np.ndarray
    """float (K,): the share of same pairs, where both kinds have the same weight in sum."""
    low: np.ndarray
    """float (K,): the lower ends of the 95 % intervals of `observed`."""
    high: np.ndarray
    """float (K,): the upper ends."""
    counts: np.ndarray
    """int64 (K,): how many pairs a bin holds."""
    error: Interval
    """The expected calibration error."""
    error_by_chance: float
    """The calibration error that correct probabilities would show."""


def reliability(probabilities, pairs: Pairs, seed=0) -> Reliability:
    """Return the reliability of predicted probabilities of "same", float (P,) in [0, 1]."""
    bins = _bins(probabilities)
    same = pairs.labels == 0
    counts = np.bincount(bins, minlength=BINS)
    filled = counts > 0

    def measure(weights):
        error = calibration_error(probabilities, pairs.labels, weights)
        weights = _balanced(pairs.labels, weights)
        totals = np.bincount(bins, weights, BINS)[filled]
        of_same = np.bincount(bins, weights * same, BINS)[filled]
        shares = np.divide(of_same, totals, out=np.full(len(totals), np.nan), where=totals > 0)
        return np.append(shares, error)

    images = image_count(pairs)
    trials = np.append(np.minimum(counts[filled], images), images)
    *shares, error = intervals(measure, pairs, seed, trials=trials)
    observed, low, high = np.array([(share.value, share.low, share.high) for share in shares]).T
    predicted = np.bincount(bins, probabilities, BINS)[filled] / counts[filled]
    by_chance = chance_calibration_error(probabilities, seed)
    return Reliability(predicted, observed, low, high, counts[filled], error, by_chance)


def calibration_error(probabilities, labels, weights=None) -> float:
    """Return the expected calibration error in [0, 1], with BINS bins of equal width.

    Args:
        probabilities: Of "same", float (P,).
        labels: int (P,), 0 same. Both kinds get the same weight in sum, as the probabilities are meant.
        weights: Of the pairs, float (P,); by default 1.

    Returns:
        The error; NaN where a kind of pairs is missing.

    Source: Guo et al. 2017, On calibration of modern neural networks, equation 3.
    """
    if weights is None:
        weights = np.ones(len(labels))
    return _error(probabilities, labels, _balanced(labels, weights))


def chance_calibration_error(probabilities, seed=0, draws=200) -> float:
    """Return the mean calibration error that so many independent pairs show if their probabilities are correct."""
    labels = np.random.default_rng(seed).random((draws, len(probabilities))) >= probabilities
    weights = np.ones(len(probabilities))
    return float(np.mean([_error(probabilities, drawn, weights) for drawn in labels]))


def _error(probabilities, labels, weights) -> float:
    gaps = np.bincount(_bins(probabilities), weights * (probabilities - (labels == 0)), BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def _bins(probabilities):
    """The bin of each probability, int64 (P,); an edge belongs to the lower bin, as in Guo et al. 2017."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probabilities)


def _balanced(labels, weights):
    """Weights, float (P,), that have the same sum for same and different pairs; NaN where a kind is missing."""
    same, different = np.bincount(labels, weights, minlength=2)
    if same == 0 or different == 0:
        return np.full(len(labels), np.nan)
    return weights * np.where(labels == 0, 1 / same, 1 / different) * weights.sum() / 2


def _sigmoid(distances, targets, weights, places):
    """Log odds that are linear in the distance."""
    return _logistic([-distances], targets, weights, [-places])


def _beta(distances, targets, weights, places):
    """Log odds that are linear in the logarithms of s and 1 - s, where s is the similarity (Kull et al. 2017)."""
    return _logistic(_logarithms(distances), targets, weights, _logarithms(places))


def _isotonic(distances, targets, weights, places):
    """Log odds of any shape; linear between the distances of the fit, constant beyond them."""
    knots, rows = np.unique(distances, return_inverse=True)
    sums = np.bincount(rows, weights)
    shares = np.bincount(rows, weights * targets) / sums
    return logit(np.interp(places, knots, isotonic_regression(shares, weights=sums, increasing=False).x))


SHAPES = {"sigmoid": _sigmoid, "beta": _beta, "isotonic": _isotonic}  # the simplest first: it is taken of equals


def _logarithms(distances):
    """The two features of beta calibration, each float (P,) and falling with distance."""
    share = np.clip(distances / 2, EDGE, 1 - EDGE)
    return [np.log(1 - share), -np.log(share)]


def _logistic(features, targets, weights, features_of_places):
    """Log odds by logistic regression without negative coefficients, float (G,).

    Args:
        features: Of the pairs, each float (P,).
        targets: float (P,), in (0, 1).
        weights: float (P,), positive.
        features_of_places: The same features at G distances, each float (G,).
    """
    inputs = np.column_stack(features)
    centre, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scale[scale < EQUAL] = 1
    inputs = (inputs - centre) / scale

    def loss(coefficients):
        log_odds = coefficients[0] + inputs @ coefficients[1:]
        slopes = weights * (expit(log_odds) - targets)
        return weights @ (np.logaddexp(0, log_odds) - targets * log_odds), np.append(slopes.sum(), slopes @ inputs)

    bounds = [(None, None)] + [(0, None)] * len(features)
    coefficients = minimize(loss, np.zeros(len(bounds)), jac=True, bounds=bounds, tol=TOLERANCE).x
    return coefficients[0] + (np.column_stack(features_of_places) - centre) / scale @ coefficients[1:]
