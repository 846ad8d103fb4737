import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.config import EarlyStopping
from utils.training import best_epoch, choose_threshold, equal_error_rate, evaluate_distances, stopped_early

# distances on a coarse grid, so that ties are common
scored_pairs = st.lists(
    st.tuples(st.integers(0, 8).map(lambda n: n / 4), st.integers(0, 1)), min_size=2, max_size=40
).filter(lambda pairs: {label for _, label in pairs} == {0, 1})


def arrays(pairs):
    distances, labels = zip(*pairs, strict=True)
    return np.array(distances, np.float32), np.array(labels)


def balanced_accuracy(distances, labels, threshold):
    same = [d <= threshold for d, y in zip(distances, labels, strict=True) if y == 0]
    different = [d > threshold for d, y in zip(distances, labels, strict=True) if y == 1]
    return (sum(same) / len(same) + sum(different) / len(different)) / 2


@given(scored_pairs)
def test_auc_is_the_chance_to_rank_a_different_pair_farther(pairs):
    distances, labels = arrays(pairs)
    wins = [
        1.0 if far > near else 0.5 if far == near else 0.0
        for far in distances[labels == 1]
        for near in distances[labels == 0]
    ]
    assert evaluate_distances(distances, labels, 1.0)["auc"] == pytest.approx(sum(wins) / len(wins))


@given(scored_pairs)
def test_no_threshold_beats_the_chosen_one(pairs):
    distances, labels = arrays(pairs)
    chosen = balanced_accuracy(distances, labels, choose_threshold(distances, labels))
    grid = np.arange(-0.125, 2.25, 0.125)  # between and on all distances
    assert chosen >= max(balanced_accuracy(distances, labels, threshold) for threshold in grid[1:]) - 1e-9


def test_threshold_lies_midway_between_separated_classes():
    distances, labels = np.array([0.1, 0.2, 1.0, 1.2]), np.array([0, 0, 1, 1])
    assert choose_threshold(distances, labels) == pytest.approx(0.6)


def test_everything_by_hand():
    distances = np.array([0.1, 0.3, 0.6, 0.4, 0.8, 0.9])
    labels = np.array([0, 0, 0, 1, 1, 1])
    metrics = evaluate_distances(distances, labels, threshold=0.5)
    assert metrics["auc"] == pytest.approx(8 / 9)  # of nine orderings only 0.6 before 0.4 is wrong
    assert metrics["confusion_matrix"] == [[2, 1], [1, 2]]
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)  # ranks 1, 2 and 4
    assert metrics["eer"] == pytest.approx(1 / 3)
    assert metrics["pairs"] == 6
    assert json.loads(json.dumps(metrics)) == metrics


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
    assert equal_error_rate(np.array(distances), np.array(labels)) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("aucs", "stops"),
    [([0.5], False), ([0.5, 0.6, 0.6, 0.605], True), ([0.5, 0.6, 0.6, 0.62], False), ([0.9, 0.8, 0.7], True)],
)
def test_early_stopping_waits_for_a_higher_auc(aucs, stops):
    history = [{"valid_auc": auc} for auc in aucs]
    assert stopped_early(history, EarlyStopping(patience=2, min_delta=0.01)) is stops


def test_best_epoch_is_highest_auc_then_lowest_loss():
    scores = [(0.8, 0.1), (0.9, 0.3), (0.9, 0.2), (0.85, 0.05)]
    assert best_epoch([{"valid_auc": auc, "valid_loss": loss} for auc, loss in scores]) == 3
