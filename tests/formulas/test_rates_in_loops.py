"""Error rates, thresholds and retrieval by trying everything. Written without reading the implementation."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from utils.config import DecisionSettings
from utils.score.decision import choose_threshold
from utils.score.metrics import equal_error_rate, error_rates, fnmr_at, retrieval_rates


def rates_at(distances, labels, threshold):
    """False match and false non-match rate where distances up to the threshold are decided "same"."""
    accepted, different, refused, same = 0, 0, 0, 0
    for separation, label in zip(distances, labels, strict=True):
        if label == 1:
            different += 1
            accepted += separation <= threshold
        else:
            same += 1
            refused += separation > threshold
    return accepted / different, refused / same


def curve_of(distances, labels):
    """The rates at every threshold, from below all distances up."""
    points = []
    for threshold in [-1.0, *sorted(set(distances))]:
        points.append(rates_at(distances, labels, threshold))
    return points


def some_pairs(seed, count, digits):
    """Distances and labels, the different ones farther on average; few digits make ties."""
    random = np.random.default_rng(seed)
    labels = np.array([0, 1] * (count // 2))
    distances = np.clip(random.normal(0.8 + 0.4 * labels, 0.3), 0, 2).round(digits)
    return distances, labels


@pytest.mark.parametrize("digits", [1, 6])
def test_error_rates(digits):
    """ISO/IEC 19795-1: the false match and false non-match rate at every threshold, the lowest FNMR of those whose FMR
    is low enough, and the EER where the straight line between two of them has FMR = FNMR. Written without reading the
    implementation.
    """
    for seed in range(20):
        distances, labels = some_pairs(seed, 30, digits)
        plain = curve_of(distances.tolist(), labels.tolist())
        fmr, fnmr = error_rates(distances, labels)
        result = list(zip(fmr.tolist(), fnmr.tolist(), strict=True))
        assert {tuple(np.round(point, 9)) for point in result} == {tuple(np.round(point, 9)) for point in plain}
        assert result == sorted(result, reverse=True, key=lambda point: (point[0], -point[1]))
        for most in (0.0, 0.05, 0.2, 0.5):
            lowest = min(misses for matches, misses in plain if matches <= most)
            assert fnmr_at(fmr, fnmr, most) == pytest.approx(lowest)
        equal = None
        for (matches, misses), (more_matches, fewer_misses) in pairwise(plain):
            before, after = misses - matches, fewer_misses - more_matches
            if before >= 0 >= after and before > after:
                share = before / (before - after)
                equal = matches + share * (more_matches - matches)
        assert equal_error_rate(fmr, fnmr) == pytest.approx(equal)


def badness(rule, fmr, fnmr):
    if rule == "balanced":
        return (fmr + fnmr) / 2
    return abs(fmr - fnmr)


@pytest.mark.parametrize("digits", [1, 6])
@pytest.mark.parametrize("rule", ["balanced", "eer"])
def test_best_threshold(rule, digits):
    """Of all thresholds midway between two distances that follow each other, the best by the rule, and of equally good
    ones the middle one (either of two). Written without reading the implementation.
    """
    for seed in range(30):
        distances, labels = some_pairs(seed, 14 + seed, digits)
        observed = sorted(set(distances.tolist()))
        scores = {}
        for lower, upper in pairwise(observed):
            threshold = (lower + upper) / 2
            scores[threshold] = badness(rule, *rates_at(distances.tolist(), labels.tolist(), threshold))
        best = []
        for threshold, score in scores.items():
            if score <= min(scores.values()) + 1e-9:
                best.append(threshold)
        middle = best[(len(best) - 1) // 2 : len(best) // 2 + 1]
        chosen = choose_threshold(distances, labels, DecisionSettings(rule=rule))
        assert min(abs(chosen - threshold) for threshold in middle) < 1e-6


@pytest.mark.parametrize("digits", [1, 6])
@pytest.mark.parametrize("most", [0.05, 0.1, 0.3])
def test_threshold_of_a_false_match_rate(most, digits):
    """The largest threshold midway between two distances that follow each other whose FMR is at most `most`. Written
    without reading the implementation.
    """
    for seed in range(30):
        distances, labels = some_pairs(seed, 60, digits)
        observed = sorted(set(distances.tolist()))
        largest = None
        for lower, upper in pairwise(observed):
            threshold = (lower + upper) / 2
            if rates_at(distances.tolist(), labels.tolist(), threshold)[0] <= most:
                largest = threshold
        if largest is None:
            continue  # the nearest pair of all is already a false match too many
        chosen = choose_threshold(distances, labels, DecisionSettings(rule="fmr", fmr=most))
        assert chosen == pytest.approx(largest, abs=1e-6)


def test_retrieval():
    """Musgrave et al. 2020 (A Metric Learning Reality Check), section 4: Recall@1, R-precision and MAP@R, query by
    query. Written without reading the implementation.
    """
    labels = [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]
    embeddings = torch.nn.functional.normalize(torch.randn(10, 3), dim=1)
    rows = embeddings.double().tolist()
    recalls, precisions, averages = [], [], []
    for query in range(10):
        gallery = []
        for counterpart in range(10):
            if counterpart != query:
                gallery.append((math.dist(rows[query], rows[counterpart]), counterpart))
        gallery.sort()
        relevant = labels.count(labels[query]) - 1
        if relevant == 0:
            continue
        recalls.append(float(labels[gallery[0][1]] == labels[query]))
        hits, average = 0, 0.0
        for place in range(1, relevant + 1):
            if labels[gallery[place - 1][1]] == labels[query]:
                hits += 1
                average += hits / place / relevant
        precisions.append(hits / relevant)
        averages.append(average)
    values = retrieval_rates(embeddings, np.array(labels))
    assert values["recall_at_1"].tolist() == pytest.approx(recalls)
    assert values["r_precision"].tolist() == pytest.approx(precisions)
    assert values["map_at_r"].tolist() == pytest.approx(averages)
