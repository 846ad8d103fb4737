from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from utils.data.splits import Pairs, draw_pairs
from utils.score.intervals import (
    Interval,
    auc_interval,
    independent_mean,
    intervals,
    mean_interval,
    standard_errors,
    weighted_mean,
)

CLASSES = 5
IMAGES = 60


def draw_world(random, classes=CLASSES, iterations=1):
    """Pairs of images of a world where images differ in how hard they are, and whether its decision is incorrect."""
    labels = np.arange(IMAGES) % classes
    hardness = random.normal(0, 1, IMAGES)
    pairs = draw_pairs(np.arange(IMAGES), labels, iterations, random)
    own = np.tril(random.normal(0, 1, (IMAGES, IMAGES)))  # of each pair of images, in whatever order it stands
    strain = hardness[pairs.first] + hardness[pairs.second] + (own + own.T)[pairs.first, pairs.second]
    return pairs, strain > 1.5


def test_intervals_cover_the_truth_where_pairs_share_images():
    """95 % of intervals should; drawing pairs as if they were independent falls short, as the test's own check."""
    random = np.random.default_rng(1)
    truth = np.mean([draw_world(random)[1].mean() for _ in range(3000)])
    covered = []
    by_pairs = []
    for seed in range(500):
        pairs, wrong = draw_world(random)
        (result,) = intervals(partial(weighted_mean, wrong), pairs, seed, draws=120)
        covered.append(result.low <= truth <= result.high)
        if seed < 150:
            rows = random.integers(0, len(pairs), (200, len(pairs)))
            low, high = np.percentile(wrong[rows].mean(axis=1), (2.5, 97.5))
            by_pairs.append(low <= truth <= high)
    assert 0.93 <= np.mean(covered) <= 0.97
    assert np.mean(by_pairs) < 0.9


@pytest.mark.parametrize(("classes", "iterations"), [(CLASSES, 1), (CLASSES, 3), (IMAGES // 2, 1), (IMAGES // 2, 3)])
def test_the_variance_is_that_of_sums_over_shared_images(classes, iterations):
    """Cameron and Miller (2014), by plain loops: products of all pairs of pairs that share an image.

    In classes of two images the pair rule makes every positive pair twice.
    """
    random = np.random.default_rng(0)
    pairs, wrong = draw_world(random, classes, iterations)
    ends = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    value = wrong.mean()
    variance = 0.0
    for pair, residual in zip(ends, wrong - value, strict=True):
        for another, second in zip(ends, wrong - value, strict=True):
            if set(pair) & set(another):
                variance += residual * second / len(ends) ** 2
    numbers = 100 * wrong - 30.0  # of any range: the interval is symmetric
    mean = mean_interval(numbers, pairs)
    assert (mean.value, mean.high - mean.value) == pytest.approx((numbers.mean(), mean.value - mean.low))
    assert (mean.high - mean.low) / (2 * 1.96) == pytest.approx(100 * np.sqrt(variance), rel=0.15)
    (result,) = intervals(partial(weighted_mean, wrong), pairs, draws=10_000)
    odds = np.log([end / (1 - end) for end in (result.low, result.high)])
    error = (odds[1] - odds[0]) / (2 * 1.96) * value * (1 - value)
    assert error == pytest.approx(np.sqrt(variance), rel=0.1)


def test_repeated_pairs_add_no_information():
    pairs, wrong = draw_world(np.random.default_rng(0))
    seen = np.unique(np.sort([pairs.first, pairs.second], axis=0), axis=1, return_index=True)[1]
    first, second, labels, wrong = (part[seen] for part in (pairs.first, pairs.second, pairs.labels, wrong))
    once = Pairs(first, second, labels)
    twice = Pairs(np.append(first, second), np.append(second, first), np.append(labels, labels))
    expected = mean_interval(wrong, once, rate=True)
    assert str(mean_interval(np.append(wrong, wrong), twice, rate=True)) == str(expected)


@pytest.mark.parametrize(("size", "iterations"), [(2, 1), (2, 3), (3, 3), (10, 1)])
def test_standard_errors_of_an_auc_where_the_pair_rule_repeats_pairs(size, iterations):
    """Beside the spread of the AUC over worlds with other images, of which difficult ones blur both kinds of pairs."""
    random = np.random.default_rng(0)

    def draw():
        labels = np.arange(IMAGES) // size
        pairs = draw_pairs(np.arange(IMAGES), labels, iterations, random)
        hardness = random.normal(0, 0.5, IMAGES)
        own = np.tril(random.normal(0, 1, (IMAGES, IMAGES)))
        blur = hardness[pairs.first] + hardness[pairs.second]
        distances = 1.2 * pairs.labels + (1 - 2 * pairs.labels) * blur + (own + own.T)[pairs.first, pairs.second]
        same = pairs.labels == 0
        wins = (distances[same, None] < distances[None, ~same]).astype(float)  # as the AUC is defined

        def area(weights):
            total = weights[same].sum() * weights[~same].sum()
            return weights[same] @ wins @ weights[~same] / total if total else np.nan

        return area, pairs

    result = []
    errors = []
    for number in range(800):
        area, pairs = draw()
        result.append(area(np.ones(len(pairs))))
        if number < 60:
            errors.append(standard_errors(area, pairs, number, draws=150)[1][0])
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(result), rel=0.12)


def test_rates_at_the_ends_get_wilsons_interval():
    """20 of 20: from 20 / (20 + 1.96^2) = 0.839 on."""
    pairs = Pairs(np.arange(0, 20), np.arange(20, 40) % 40, np.arange(20) % 2)
    (never,) = intervals(lambda weights: 0.0, pairs)
    assert (never.value, never.low) == (0, 0)
    assert never.high == pytest.approx(3.8416 / (40 + 3.8416))
    (always,) = intervals(lambda weights: 1.0, pairs, trials=[20])
    assert (always.low, always.high) == pytest.approx((20 / 23.8416, 1))


@pytest.mark.parametrize("rate", [0, 1])
def test_rounding_does_not_narrow_the_interval_of_a_rate_at_the_ends(rate):
    pairs = Pairs(np.arange(0, 40, 2), np.arange(1, 40, 2), np.zeros(20, int))
    exact, rounded = (intervals(lambda weights, r=r: r, pairs)[0] for r in (rate, abs(rate - 2e-16)))
    assert exact == rounded
    assert exact.high - exact.low > 0.05


def test_what_hardly_any_draw_can_measure_is_unknown():
    pairs, _ = draw_world(np.random.default_rng(0))

    def measure(weights):
        return 0.5 if (weights == 1).all() else np.nan

    (rate,) = intervals(measure, pairs)
    assert rate == Interval(0.5, 0.0, 1.0)
    (number,) = intervals(measure, pairs, rates=False)
    assert str(number) == "0.500 (interval unknown)"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 1)), min_size=2, max_size=40), st.integers(0, 1000))
def test_the_auc_against_sklearn(scored, seed):
    """On a coarse grid, so that ties are common; also of weighted pairs, as they are when images are drawn anew."""
    distances, labels = np.array(scored).T
    images = np.arange(2 * len(labels)).reshape(2, -1)
    result = auc_interval(distances / 4, Pairs(images[0], images[1], labels), draws=2)
    if len(set(labels)) == 1:
        assert np.isnan(result.value)
    else:
        assert result.value == pytest.approx(roc_auc_score(labels, distances))
        weights = np.random.default_rng(seed).integers(1, 4, len(labels))
        with patch.dict(auc_interval.__globals__, intervals=lambda measure, *others: [measure]):
            measure = auc_interval(distances / 4, Pairs(images[0], images[1], labels))
        assert measure(weights) == pytest.approx(roc_auc_score(labels, distances, sample_weight=weights))


def test_the_auc_and_the_mean():
    pairs = Pairs(np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7]), np.array([0, 0, 1, 1]))
    result = auc_interval(np.array([0.1, 0.6, 0.5, 0.9]), pairs)
    assert result.value == 0.75
    assert result.low < 0.75 < result.high
    mean = independent_mean(np.array([0.0, 1.0] * 50))
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.5, 0.4033, 0.5967), abs=1e-3)
    assert str(mean) == "0.500 (0.403 to 0.597)"


def draw_means(random, images=20):
    """Pairs of few images, and a number for each: what each of its images adds, and noise of its own."""
    first = np.repeat(np.arange(images), 2)
    second = (first + 1 + random.integers(0, images - 1, 2 * images)) % images
    of_image = random.normal(size=images)
    pairs = Pairs(first, second, np.zeros(2 * images, int))
    return pairs, of_image[first] + of_image[second] + random.normal(size=2 * images)


def test_errors_are_less_low_where_there_are_few_images():
    """The truth is the spread of the mean over 6,000 draws of 20 images. The variance comes out a sixth low; without
    what `standard_errors` adds for few images, a third.
    """
    random = np.random.default_rng(0)
    truth = np.var([draw_means(random)[1].mean() for _ in range(6_000)])
    variances = []
    for seed in range(300):
        pairs, numbers = draw_means(random)
        _, error = standard_errors(partial(weighted_mean, numbers), pairs, seed, 100)
        variances.append(error[0] ** 2)
    assert 0.8 * truth < np.mean(variances) < 1.1 * truth


def test_a_single_pair_has_no_interval():
    pair = Pairs(np.array([0]), np.array([1]), np.array([1]))
    result = mean_interval(np.array([0.25]), pair)
    assert np.isnan(result.low)
    assert str(result) == "0.250 (interval unknown)"
