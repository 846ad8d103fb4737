"""What a distance says about the chance that two images are of one class."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

from ..data.splits import Pairs
from .intervals import Interval, Z, image_count, intervals, numbered_images, standard_errors


@dataclass(frozen=True, eq=False)
class Calibration:
    """Probability that the images of a pair are of one class, by their distance, where half of all pairs are.

    distances: float32 (G,), rising. probabilities: float32 (G, 3) in [0, 1]: the probability and the lower and upper
    end of its 95 % interval, which never rise with distance and hold the probability. Fitted on validation pairs by
    `utils.training.fit_calibration`.
    """

    distances: torch.Tensor
    probabilities: torch.Tensor

    def __call__(self, distances: torch.Tensor) -> torch.Tensor:
        """Distances (B,) to probabilities with their interval, float32 (B, 3), on the CPU; linear between the knots."""
        distances = distances.detach().float().cpu()
        last = len(self.distances) - 1
        above = torch.searchsorted(self.distances, distances).clamp(1, last)
        start = self.distances[above - 1]
        share = ((distances - start) / (self.distances[above] - start)).clamp(0, 1)
        return torch.lerp(self.probabilities[above - 1], self.probabilities[above], share[:, None])


FOLDS = 10  # of images, over which the shape of the curve is chosen
KNOTS = 201
BINS = 10
EDGE = 0.0025  # distances / 2 of beta calibration stay so far from 0 and 1: half a step between knots
STEPS = 100  # of Newton's method at most
TOLERANCE = 1e-6  # in log odds: Newton's method ends below it


def fit_calibration(distances, pairs: Pairs, seed=0) -> Calibration:
    """Fit the probability of "same class" by distance to validation pairs.

    The curve has the shape of `choose_shape` and never rises: where same pairs are not closer than different pairs, it
    is flat. Same and different pairs weigh alike, so the probability is that among pairs of which half are the same.
    Platt's softened labels keep it from 0 and 1: so many pairs cannot show that there are no exceptions.

    The interval reaches from the lowest to the highest end of the intervals of all SHAPES, as so few images leave the
    shape open. Each is symmetric in log odds, by `standard_errors`: images are drawn anew. Images without exceptions
    have none when drawn anew, so the interval never excludes what Wilson's (1927) leaves open for none of
    so many images.

    Args:
        distances: Of the pairs, float (P,), in [0, 2].
        pairs: The P validation pairs, of both kinds.
        seed: Of the folds and the resampling of images.

    Returns:
        The probability and its 95 % interval at KNOTS distances from 0 to 2.

    Source: Platt 1999, Probabilistic outputs for support vector machines; Zadrozny and Elkan 2002, Transforming
    classifier scores into accurate multiclass probability estimates; Kull et al. 2017, Beta calibration.
    """
    grid = np.linspace(0, 2, KNOTS)
    chosen = list(SHAPES).index(choose_shape(distances, pairs, seed))

    def measure(weights):
        return np.concatenate([fit(distances, pairs.labels, weights, grid) for fit in SHAPES.values()])

    log_odds, errors = (part.reshape(-1, KNOTS) for part in standard_errors(measure, pairs, seed))
    same, different = np.bincount(pairs.labels, minlength=2)
    curve = np.clip(log_odds[chosen], -np.log(different + 1), np.log(same + 1))
    exceptions = logit(Z**2 / (image_count(pairs) + Z**2))
    low = np.minimum((log_odds - Z * errors).min(axis=0), np.minimum(curve, -exceptions))
    high = np.maximum((log_odds + Z * errors).max(axis=0), np.maximum(curve, exceptions))
    columns = [isotonic_regression(expit(column), increasing=False).x for column in (curve, low, high)]
    return Calibration(torch.from_numpy(grid).float(), torch.from_numpy(np.stack(columns, axis=1)).float())


def choose_shape(distances, pairs: Pairs, seed=0) -> str:
    """Choose the shape of the calibration curve, a key of SHAPES, by log loss over folds of images.

    Images, not pairs, are dealt into FOLDS folds. A pair is scored once, by fits to all pairs that have no image in the
    folds of its two images. Both kinds weigh alike. Where the folds leave nothing to fit or score: "sigmoid".

    Args:
        distances: Of the pairs, float (P,), in [0, 2].
        pairs: The P validation pairs.
        seed: Of the folds.
    """
    count, images = numbered_images(pairs)
    folds = np.random.default_rng(seed).permutation(count) % FOLDS
    folds = np.sort(folds[images], axis=0)  # (2, P): of both images, the lower first
    losses = np.full((len(SHAPES), len(pairs)), np.nan)
    for held in np.unique(folds, axis=1).T:
        scored = (folds == held[:, None]).all(axis=0)
        kept = (~np.isin(folds, held).any(axis=0)).astype(float)
        for row, fit in enumerate(SHAPES.values()):
            log_odds = fit(distances, pairs.labels, kept, distances[scored])
            losses[row, scored] = np.logaddexp(0, np.where(pairs.labels[scored] == 0, -log_odds, log_odds))
    measured = ~np.isnan(losses[0])  # all shapes fail together: where a kind is missing
    weights = _balanced(pairs.labels, measured.astype(float))
    if np.isnan(weights).any():
        return "sigmoid"
    return list(SHAPES)[(losses[:, measured] @ weights[measured]).argmin()]


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
    """The bin of each probability, int64 (P,); one on an edge is in the lower bin, as in Guo et al. 2017."""
    edges = np.linspace(0, 1, BINS + 1)
    return np.searchsorted(edges[1:-1], probabilities)


def _sigmoid(distances, labels, weights, places):
    """Log odds of "same" at distances `places`, float (G,); NaN where a kind is missing."""
    return _logistic([-distances], labels, weights, [-places])


def _beta(distances, labels, weights, places):
    """The same, linear in the logarithms of the similarity and of its difference to 1 (Kull et al. 2017, section 3)."""
    return _logistic(_logarithms(distances), labels, weights, _logarithms(places))


def _isotonic(distances, labels, weights, places):
    """The same, of a curve whose shape is open; linear between the distances of the fit, flat beyond them."""
    targets, weights = _softened(labels, weights)
    if targets is None:
        return np.full(len(places), np.nan)
    counted = weights > 0
    knots, rows = np.unique(distances[counted], return_inverse=True)
    sums = np.bincount(rows, weights[counted])
    shares = np.bincount(rows, (weights * targets)[counted]) / sums
    return logit(np.interp(places, knots, isotonic_regression(shares, weights=sums, increasing=False).x))


SHAPES = {"sigmoid": _sigmoid, "beta": _beta, "isotonic": _isotonic}  # the simplest first: it is taken of equals


def _logarithms(distances):
    """The two features of beta calibration, each float (P,) and falling with distance."""
    share = np.clip(distances / 2, EDGE, 1 - EDGE)
    return [np.log(1 - share), -np.log(share)]


def _logistic(features, labels, weights, features_of_places):
    """Log odds by logistic regression, float (G,), with softened labels and no negative coefficient.

    The feature with the most negative coefficient is left out, until none is. scikit-learn's is as exact, but takes
    several times as long for so few pairs, and is fitted a thousand times.

    Args:
        features: Of the pairs, each float (P,).
        labels: int (P,), 0 same.
        weights: Of the pairs, float (P,).
        features_of_places: The same features at G distances, each float (G,).
    """
    targets, weights = _softened(labels, weights)
    if targets is None:
        return np.full(len(features_of_places[0]), np.nan)
    counted = weights > 0
    inputs = np.stack([np.ones(len(targets)), *features], axis=1)[counted]
    places = np.stack([np.ones(len(features_of_places[0])), *features_of_places], axis=1)
    while True:
        coefficients = _newton(inputs, targets[counted], weights[counted])
        if coefficients[1:].min(initial=0) >= 0:
            return places @ coefficients
        lowest = coefficients[1:].argmin() + 1
        inputs, places = np.delete(inputs, lowest, axis=1), np.delete(places, lowest, axis=1)


def _newton(inputs, targets, weights):
    """The coefficients of a logistic regression, float (K,), by Newton's method.

    A step moves no log odds by more than 1, with which the loss always falls (Bach 2010, Self-concordant analysis for
    logistic regression, proposition 1).

    Args:
        inputs: float (P, K).
        targets: float (P,), in (0, 1).
        weights: float (P,), positive.
    """
    coefficients = np.zeros(inputs.shape[1])
    ridge = 1e-10 * weights.sum() * np.eye(len(coefficients))  # equal distances have no curvature
    for _ in range(STEPS):
        chances = expit(inputs @ coefficients)
        curvature = inputs.T @ (inputs * (weights * chances * (1 - chances))[:, None])
        step = np.linalg.solve(curvature + ridge, inputs.T @ (weights * (targets - chances)))
        farthest = np.abs(inputs @ step).max()
        coefficients += step / max(1, farthest)
        if farthest < TOLERANCE:
            break
    return coefficients


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
