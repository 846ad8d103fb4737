"""Intervals, standard errors of pairs, and probabilities, in loops. Written without reading the implementation."""

import math

import numpy as np
import pytest
import torch

from utils.data.splits import Pairs
from utils.score.calibration import Calibration, calibration_error, fit_calibration
from utils.score.intervals import independent_mean, intervals, mean_interval, standard_errors

Z = 1.96


def wilson(share, trials):
    """Wilson 1927, by its closed form."""
    middle = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    root = math.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    reach = Z * root / (1 + Z**2 / trials)
    return middle - reach, middle + reach


@pytest.mark.parametrize("share", [0, 1])
@pytest.mark.parametrize("trials", [3, 20])
def test_wilson_interval(share, trials):
    """Wilson 1927 for a rate of 0 or 1: of independent values, of pairs, where each image is a trial, and of trials
    that are given. Written without reading the implementation.
    """
    right = (share, *wilson(share, trials))
    independent = independent_mean(np.full(trials, float(share)))
    assert (independent.value, independent.low, independent.high) == pytest.approx(right, abs=1e-9)
    ring = np.arange(trials)
    pairs = Pairs(ring, (ring + 1) % trials, np.zeros(trials, dtype=int))
    of_pairs = mean_interval(np.full(trials, bool(share)), pairs, rate=True)
    assert (of_pairs.value, of_pairs.low, of_pairs.high) == pytest.approx(right, abs=1e-9)
    (given,) = intervals(lambda weights: float(share), pairs, trials=[7])
    assert (given.value, given.low, given.high) == pytest.approx((share, *wilson(share, 7)), abs=1e-9)


def test_interval_in_log_odds():
    """A mean of independent values: 1.96 standard errors to each side in log odds, where the standard error of the log
    odds is that of the mean over p (1 - p) (delta method). Written without reading the implementation.
    """
    values = np.random.default_rng(0).random(200)
    mean = 0.0
    for value in values:
        mean += value / 200
    variance = 0.0
    for value in values:
        variance += (value - mean) ** 2 / 200
    middle = math.log(mean / (1 - mean))
    reach = Z * math.sqrt(variance / 200) / (mean * (1 - mean))
    result = independent_mean(values)
    assert result.value == pytest.approx(mean)
    assert result.low == pytest.approx(1 / (1 + math.exp(reach - middle)), abs=2e-4)
    assert result.high == pytest.approx(1 / (1 + math.exp(-reach - middle)), abs=2e-4)


def test_standard_error_of_pairs_that_come_twice():
    """Cameron and Miller 2014 where every pair of images stands twice, once the other way round, as the pair rule has
    it in classes of two images: what is the pair's own is no news the second time. Written without reading the
    implementation.
    """
    random = np.random.default_rng(2)
    ring = np.arange(120)
    once = random.normal(size=120)  # the pair's own
    first = np.concatenate([ring, (ring + 1) % 120])
    second = np.concatenate([(ring + 1) % 120, ring])
    values = np.concatenate([once, once])
    pairs = Pairs(first, second, np.zeros(240, dtype=int))
    _, errors = standard_errors(lambda weights: np.average(values, weights=weights), pairs, draws=2000)
    right = sandwich(values.tolist(), first.tolist(), second.tolist())
    assert errors.item() == pytest.approx(right, rel=0.08)


def sandwich(values, first, second):
    """The standard error of a mean over pairs of images: Cameron and Miller 2014 (Robust inference for dyadic data),
    the sum of the products of residuals of any two pairs that share an image.
    """
    count = len(values)
    mean = sum(values) / count
    total = 0.0
    for pair in range(count):
        for counterpart in range(count):
            if {first[pair], second[pair]} & {first[counterpart], second[counterpart]}:
                total += (values[pair] - mean) * (values[counterpart] - mean)
    return math.sqrt(total) / count


@pytest.mark.parametrize("images_matter", [0.0, 0.5, 2.0])
def test_standard_error_of_pairs(images_matter):
    """Cameron and Miller 2014, closed form of the variance of a mean over pairs, no pair of images twice; and Owen 2007
    (The pigeonhole bootstrap), whose surplus of the pairs' own noise is taken off. Equal within the error of 2,000
    draws (1.6 %) and terms of the order of one over the number of images, 100. Written without reading the
    implementation.
    """
    random = np.random.default_rng(1)
    of_images = images_matter * random.normal(size=100)
    drawn = set()
    while len(drawn) < 250:
        image, counterpart = sorted(random.integers(0, 100, 2).tolist())
        if image != counterpart:
            drawn.add((image, counterpart))
    first = [image for image, _ in sorted(drawn)]
    second = [counterpart for _, counterpart in sorted(drawn)]
    values = of_images[first] + of_images[second] + random.normal(size=250)
    pairs = Pairs(np.array(first), np.array(second), np.zeros(250, dtype=int))
    result, errors = standard_errors(lambda weights: np.average(values, weights=weights), pairs, draws=2000)
    right = sandwich(values.tolist(), first, second)
    assert result.item() == pytest.approx(values.mean())
    assert errors.item() == pytest.approx(right, rel=0.08)
    interval = mean_interval(values, pairs, seed=3)
    _, errors = standard_errors(lambda weights: np.average(values, weights=weights), pairs, seed=3)
    assert interval.value == pytest.approx(values.mean())
    assert interval.high == pytest.approx(values.mean() + Z * errors.item())
    assert interval.low == pytest.approx(values.mean() - Z * errors.item())


def plain_calibration_error(probabilities, same, weights):
    """Guo et al. 2017, equation 3, for the probability of "same" in ten bins; every pair with its weight."""
    total = 0.0
    for number in range(10):
        weight, predicted, same_weight = 0.0, 0.0, 0.0
        for probability, is_same, of_pair in zip(probabilities, same, weights, strict=True):
            if number / 10 < probability <= (number + 1) / 10:
                weight += of_pair
                predicted += of_pair * probability
                same_weight += of_pair * is_same
        if weight:
            total += weight / sum(weights) * abs(same_weight / weight - predicted / weight)
    return total


@pytest.mark.parametrize("kinds", ["as many", "more different", "weighted"])
def test_calibration_error(kinds):
    """Guo et al. 2017, equation 3, where pairs of either kind weigh the same together. Written without reading the
    implementation.
    """
    random = np.random.default_rng(0)
    probabilities = random.random(60)
    labels = np.array([0, 1] * 30)
    given = np.ones(60)
    if kinds != "as many":
        labels[:20] = 1
    if kinds == "weighted":
        given = random.integers(0, 4, 60).astype(float)
    of_kind = [0.0, 0.0]
    for label, weight in zip(labels.tolist(), given.tolist(), strict=True):
        of_kind[label] += weight
    weights = []
    for label, weight in zip(labels.tolist(), given.tolist(), strict=True):
        weights.append(weight / of_kind[label])
    right = plain_calibration_error(probabilities.tolist(), (1 - labels).tolist(), weights)
    passed = None if kinds == "more different" else given
    assert calibration_error(probabilities, labels, passed) == pytest.approx(right)


def test_softened_targets():
    """Platt 1999: the targets are (N+ + 1) / (N+ + 2) and 1 / (N- + 2). Where pairs have only two distances, one for
    each kind, any curve that is free at two points meets them. Written without reading the implementation.
    """
    same, different = 10, 30
    labels = np.array([0] * same + [1] * different)
    pairs = Pairs(2 * np.arange(same + different), 2 * np.arange(same + different) + 1, labels)
    calibration = fit_calibration(labels.astype(float), pairs)
    result = calibration(torch.tensor([0.0, 1.0]))[:, 0].tolist()
    assert result == pytest.approx([(same + 1) / (same + 2), 1 / (different + 2)], abs=2e-3)


def test_calibration_between_knots():
    """The straight line between two knots, and the ends beyond them, in loops. Written without reading the
    implementation.
    """
    knots = [0.1, 0.5, 0.6, 1.7]
    heights = [[0.9, 0.8, 0.95], [0.7, 0.6, 0.8], [0.3, 0.2, 0.5], [0.1, 0.0, 0.2]]
    calibration = Calibration(torch.tensor(knots), torch.tensor(heights))
    asked = [0.0, 0.1, 0.2, 0.5, 0.57, 0.6, 1.0, 1.65, 1.7, 2.0]
    result = calibration(torch.tensor(asked))
    for row, separation in enumerate(asked):
        right = heights[0] if separation <= knots[0] else heights[-1]
        for left in range(3):
            if knots[left] <= separation <= knots[left + 1]:
                share = (separation - knots[left]) / (knots[left + 1] - knots[left])
                right = []
                for before, after in zip(heights[left], heights[left + 1], strict=True):
                    right.append(before + share * (after - before))
                break
        assert result[row].tolist() == pytest.approx(right, abs=1e-6)
