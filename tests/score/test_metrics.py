import json
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    det_curve,
    roc_auc_score,
    roc_curve,
)

from utils.data.splits import Pairs
from utils.score import metrics as metrics_module
from utils.score.intervals import intervals
from utils.score.metrics import (
    FMRS,
    curve_rates,
    decision_rates,
    equal_error_rate,
    error_rates,
    evaluate,
    fnmr_at,
)

# distances on a coarse grid, so that ties are common
scored_pairs = st.lists(
    st.tuples(st.integers(0, 8).map(lambda n: n / 4), st.integers(0, 1)), min_size=2, max_size=40
).filter(lambda pairs: {label for _, label in pairs} == {0, 1})


@pytest.fixture(autouse=True)
def drawn_less(monkeypatch):
    """Images are resampled 300 times otherwise."""
    monkeypatch.setattr(metrics_module, "intervals", partial(intervals, draws=60))


def scored(distances, labels):
    """Distances and pairs that share no image."""
    images = np.arange(2 * len(labels)).reshape(2, -1)
    return np.array(distances, np.float32), Pairs(images[0], images[1], np.array(labels))


def values_of(metrics):
    return {metric.name: metric.interval.value for metric in metrics.metrics}


@given(scored_pairs)
def test_auc_is_the_chance_to_rank_a_different_pair_farther(pairs):
    distances, pairs = scored(*zip(*pairs, strict=True))
    wins = [
        1.0 if far > near else 0.5 if far == near else 0.0
        for far in distances[pairs.labels == 1]
        for near in distances[pairs.labels == 0]
    ]
    fmr, fnmr = error_rates(distances, pairs.labels)
    area = ((fnmr[1:] - fnmr[:-1]) * (2 - fmr[1:] - fmr[:-1]) / 2).sum()
    assert area == pytest.approx(sum(wins) / len(wins))


@settings(deadline=None, max_examples=50)
@given(scored_pairs, st.integers(0, 1000))
def test_all_rates_are_those_of_sklearn(pairs, seed):
    """At weights, as they are when images are drawn anew: some are 0."""
    distances, pairs = scored(*zip(*pairs, strict=True))
    labels = pairs.labels
    weights = np.random.default_rng(seed).integers(0, 4, len(pairs)).astype(float)
    weights[[np.argmax(labels == kind) for kind in (0, 1)]] += 1  # something of each kind is left
    threshold, band = 0.9, (0.4, 1.3)
    result = curve_rates(distances, labels, weights) | decision_rates(distances, labels, weights, threshold, band)
    assert result["auc"] == pytest.approx(roc_auc_score(labels, distances, sample_weight=weights))
    expected = average_precision_score(labels, distances, sample_weight=weights)
    assert result["average_precision"] == pytest.approx(expected)
    decisions = (distances > threshold).astype(int)
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, decisions, sample_weight=weights))
    rates = confusion_matrix(labels, decisions, sample_weight=weights, normalize="true")
    assert (result["fmr"], result["fnmr"]) == pytest.approx((rates[1, 0], rates[0, 1]))
    decided = (distances <= band[0]) | (distances > band[1])
    assert result["undecided"] == pytest.approx(1 - np.average(decided, weights=weights))
    if (weights * decided).any():
        errors = 1 - accuracy_score(labels, distances > band[1], sample_weight=weights * decided)
        assert result["wrong_of_decided"] == pytest.approx(errors)
    missed, passed, _ = roc_curve(labels, distances, sample_weight=weights)  # different pairs are its positive event
    assert result["eer"] == pytest.approx(
        brentq(lambda rate: 1 - rate - np.interp(rate, missed, passed), 0, 1), abs=1e-9
    )
    for most in FMRS:
        fmr, fnmr, _ = det_curve(labels == 0, -distances, sample_weight=weights)
        if not np.isnan(result[f"fnmr_at_fmr_{most:g}"]):
            lowest = fnmr[fmr <= most + 1e-9].min() if (fmr <= most + 1e-9).any() else 1.0
            assert result[f"fnmr_at_fmr_{most:g}"] == pytest.approx(lowest)


@pytest.mark.parametrize("count", [5, 40])
def test_intervals_of_no_and_of_only_errors_are_wilsons_in_scipy(count):
    distances, pairs = scored(np.linspace(0.1, 1, 2 * count), np.arange(2 * count) >= count)
    metrics = evaluate(distances, pairs, np.median(distances))
    for name, hits in (("fnmr", 0), ("accuracy", 4 * count)):  # the trials are the images
        expected = binomtest(hits, 4 * count).proportion_ci(0.95, "wilson")
        result = metrics[name].interval
        assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_everything_by_hand():
    distances, pairs = scored([0.1, 0.3, 0.6, 0.4, 0.8, 0.9], [0, 0, 0, 1, 1, 1])
    metrics = evaluate(distances, pairs, 0.5, (0.35, 0.7), np.array([0.95, 0.85, 0.35, 0.55, 0.15, 0.05]))
    result = values_of(metrics)
    assert result["auc"] == pytest.approx(8 / 9)  # of nine orderings only 0.6 before 0.4 is wrong
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert result["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)  # ranks 1, 2 and 4
    assert result["eer"] == pytest.approx(1 / 3)
    assert (result["fmr"], result["fnmr"]) == pytest.approx((1 / 3, 1 / 3))
    assert result["undecided"] == pytest.approx(2 / 6)  # 0.6 and 0.4
    assert result["wrong_of_decided"] == 0
    assert result["calibration_error"] == pytest.approx((0.05 + 0.15 + 0.65 + 0.55 + 0.15 + 0.05) / 6)
    assert metrics.facts["confusion_matrix"] == [[2, 1], [1, 2]]
    assert (metrics.facts["pairs"], metrics.facts["images"]) == (6, 12)


def test_misses_at_false_match_rates_by_hand():
    """20 different pairs at 0.05, 0.15, ..., of which two may pass at 10 %: up to below the third at 0.25. Of the four
    same pairs at 0.1, 0.2, 0.3, 0.4 two are missed. 1 % of 20 pairs is none.
    """
    different = np.arange(20) / 10 + 0.05
    distances, pairs = scored([0.1, 0.2, 0.3, 0.4, *different], [0] * 4 + [1] * 20)
    metrics = evaluate(distances, pairs, 0.5)
    assert values_of(metrics)["fnmr_at_fmr_0.1"] == pytest.approx(0.5)
    rare = metrics["fnmr_at_fmr_0.01"]
    assert math.isnan(rare.interval.value)
    assert rare.shown == "cannot be estimated"
    assert "cannot be estimated from 20 different pairs (at least 100 are needed)" in rare.meaning
    content = metrics.as_dict()
    assert content["fnmr_at_fmr_0.01"]["value"] is None
    assert json.loads(json.dumps(content)) == content
    assert "undecided" not in content
    assert "calibration_error" not in content
    assert [line.split()[0] for line in str(metrics).splitlines()] == [metric.name for metric in metrics.metrics]


@given(scored_pairs, st.sampled_from([0.1, 0.34, 0.5]))
def test_misses_at_a_false_match_rate_against_counting(pairs, most):
    distances, pairs = scored(*zip(*pairs, strict=True))
    same, different = (distances[pairs.labels == kind] for kind in (0, 1))
    thresholds = np.arange(-0.125, 2.25, 0.125)
    kept = [threshold for threshold in thresholds if (different <= threshold).mean() <= most + 1e-9]
    expected = min((same > threshold).mean() for threshold in kept)
    assert fnmr_at(*error_rates(distances, pairs.labels), most) == pytest.approx(expected)


def test_every_interval_holds_its_value_and_narrows_with_more_images():
    widths = []
    for count in (60, 600):
        random = np.random.default_rng(0)
        labels = np.arange(count) % 2
        distances, pairs = scored(random.normal(0.6 + 0.5 * labels, 0.3).clip(0, 2), labels)
        metrics = evaluate(distances, pairs, 0.8, (0.5, 1.0), 1 - distances / 2)
        for metric in metrics.metrics:
            result = metric.interval
            assert math.isnan(result.value) or 0 <= result.low <= result.value <= result.high <= 1
        widths.append(metrics["auc"].interval.high - metrics["auc"].interval.low)
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize(
    ("distances", "labels", "rate"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0.0),
        ([0.8, 0.9, 0.1, 0.2], [0, 0, 1, 1], 1.0),
        ([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1], 0.5),
        # at 0.5 < t < 0.6 one of two same pairs is missed (1/2) and one of four different ones (1/4); the curve crosses
        # the diagonal on the horizontal stretch that follows, at 1/4
        ([0.1, 0.55, 0.5, 0.6, 0.7, 0.8], [0, 0, 1, 1, 1, 1], 0.25),
    ],
)
def test_equal_error_rate(distances, labels, rate):
    assert equal_error_rate(*error_rates(np.array(distances), np.array(labels))) == pytest.approx(rate)
