import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.config import ConfigError, DecisionSettings
from utils.data import Pairs, draw_pairs
from utils.training import choose_band, choose_threshold
from utils.training.decision import threshold_by_rule

# distances on a coarse grid, so that ties are common
scored_pairs = st.lists(
    st.tuples(st.integers(0, 8).map(lambda n: n / 4), st.integers(0, 1)), min_size=2, max_size=40
).filter(lambda pairs: {label for _, label in pairs} == {0, 1})
GRID = np.arange(-0.125, 2.25, 0.125)  # between and on all distances


def arrays(pairs):
    distances, labels = zip(*pairs, strict=True)
    return np.array(distances, np.float32), np.array(labels)


def error_rates(distances, labels, threshold):
    """FMR and FNMR by counting."""
    passed = [d <= threshold for d, y in zip(distances, labels, strict=True) if y == 1]
    missed = [d > threshold for d, y in zip(distances, labels, strict=True) if y == 0]
    return sum(passed) / len(passed), sum(missed) / len(missed)


@given(scored_pairs)
def test_no_threshold_is_more_balanced_than_the_chosen_one(pairs):
    distances, labels = arrays(pairs)
    chosen = sum(error_rates(distances, labels, choose_threshold(distances, labels)))
    assert chosen <= min(sum(error_rates(distances, labels, threshold)) for threshold in GRID) + 1e-9


@given(scored_pairs)
def test_no_threshold_has_more_equal_errors(pairs):
    distances, labels = arrays(pairs)
    fmr, fnmr = error_rates(distances, labels, choose_threshold(distances, labels, DecisionSettings(rule="eer")))
    gaps = [abs(np.subtract(*error_rates(distances, labels, threshold))) for threshold in GRID]
    assert abs(fmr - fnmr) <= min(gaps) + 1e-9


@given(scored_pairs, st.sampled_from([0.2, 0.5, 0.9]))
def test_the_false_match_rate_is_kept_with_the_fewest_misses(pairs, most):
    distances, labels = arrays(pairs)
    settings = DecisionSettings(rule="fmr", fmr=most)
    if (labels == 1).sum() * most < 1:
        with pytest.raises(ConfigError, match="is not to be had from"):
            choose_threshold(distances, labels, settings)
        return
    fmr, fnmr = error_rates(distances, labels, choose_threshold(distances, labels, settings))
    assert fmr <= most
    rates = [error_rates(distances, labels, threshold) for threshold in GRID]
    assert fnmr <= min(other for rate, other in rates if rate <= most) + 1e-9


def test_threshold_lies_midway_between_separated_classes():
    distances, labels = np.array([0.1, 0.2, 1.0, 1.2]), np.array([0, 0, 1, 1])
    assert choose_threshold(distances, labels) == pytest.approx(0.6)
    assert choose_threshold(distances, labels, DecisionSettings(rule="eer")) == pytest.approx(0.6)


def own_images(distances, labels):
    """Pairs that share no image."""
    images = np.arange(2 * len(labels)).reshape(2, -1)
    return np.array(distances), Pairs(images[0], images[1], np.array(labels))


def test_the_band_by_hand():
    """At most a fifth wrong. From below: after 4 right pairs (0 + 1) / (4 + 1) is a fifth; one wrong pair more, 2 / 6,
    is too much. From above: four right pairs down to 1.6, then a wrong one at 1.5.
    """
    distances = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9]
    labels = [0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1]
    distances, pairs = own_images(distances, labels)
    assert choose_band(distances, pairs, 1.0, 0.2) == pytest.approx((0.45, 1.55))
    assert choose_band(distances, pairs, 0.42, 0.2) == pytest.approx((0.42, 1.55))  # never beyond the threshold
    assert choose_band(distances, pairs, 1.0, 0.05) == (-math.inf, math.inf)  # 19 right pairs would be needed


def test_the_decided_are_right_as_often_as_asked():
    """500 draws of images: on average at most 5 % of the decided pairs are wrong, where deciding all errs in more."""
    random = np.random.default_rng(0)
    labels = np.arange(80) % 8
    centres = random.normal(size=(8, 8))
    wrong, plain, undecided = [], [], []
    for _ in range(500):
        drawn = []
        for iterations in (1, 3):
            images = centres[labels] + 0.55 * random.normal(size=(80, 8))
            images /= np.linalg.norm(images, axis=1, keepdims=True)
            pairs = draw_pairs(np.arange(80), labels, iterations, random)
            drawn.append((np.linalg.norm(images[pairs.first] - images[pairs.second], axis=1), pairs))
        (valid, valid_pairs), (test, test_pairs) = drawn
        threshold = choose_threshold(valid, valid_pairs.labels)
        same_up_to, different_from = choose_band(valid, valid_pairs, threshold, 0.05)
        decided = (test <= same_up_to) | (test > different_from)
        mistaken = (test > threshold) != test_pairs.labels
        plain.append(mistaken.mean())
        undecided.append(1 - decided.mean())
        if decided.any():
            wrong.append(mistaken[decided].mean())
    assert np.mean(plain) > 0.08
    assert np.mean(wrong) <= 0.05
    assert np.mean(undecided) < 0.6  # leaving all undecided would be easy


def overlapping(count=60, seed=0):
    """Distances of `count` same and as many different pairs that overlap a little."""
    random = np.random.default_rng(seed)
    labels = np.arange(2 * count) % 2
    return np.clip(0.6 + 0.5 * labels + random.normal(0, 0.25, len(labels)), 0, 2), labels


@pytest.mark.parametrize("count", [20, 60, 1000])
@pytest.mark.parametrize("rule", ["balanced", "eer", "fmr"])
def test_labels_the_other_way_round_are_refused(count, rule):
    distances, labels = overlapping(count)
    settings = DecisionSettings(rule=rule, fmr=0.2)
    assert 0 < choose_threshold(distances, labels, settings) < 2
    for wrong in ((distances, 1 - labels), (1 - distances / 2, labels)):  # and similarities in place of distances
        with pytest.raises(ValueError, match=r"farther apart.*pass 0 for the same class and 1 for different classes"):
            choose_threshold(*wrong, settings)


def test_a_useless_network_is_not_taken_for_reversed_labels():
    """In 1,000 draws of images without any classes, whose pairs share images as the pair rule has it."""
    random = np.random.default_rng(0)
    labels = np.arange(90) % 3
    for _ in range(1000):
        images = random.normal(size=(90, 4))
        pairs = draw_pairs(np.arange(90), labels, 1, random)
        choose_threshold(np.linalg.norm(images[pairs.first] - images[pairs.second], axis=1), pairs.labels)


@pytest.mark.parametrize(
    ("distances", "labels", "said"),
    [
        ([0.1, 0.2, 1.0], [0, 1], r"distances \(3,\) and labels \(2,\) must both be \(P,\)"),
        ([[0.1, 0.2]], [[0, 1]], r"must both be \(P,\)"),
        ([0.1, np.nan, 1.0], [0, 0, 1], "distances: 1 of 3 are not finite"),
        ([0.1, np.inf, -np.inf], [0, 0, 1], "distances: 2 of 3 are not finite"),
        ([0.1, 0.2, 1.0], [0, 0, 2], "labels: 2 is refused: 0 is a pair of the same class"),
        ([0.1, 0.2, 1.0], [1, 1, -1], "labels: -1 is refused"),
        ([0.1, 0.2], [0, 0], r"labels: no pair is different \(1\)"),
        ([0.1, 0.2], [1, 1], r"labels: no pair is same \(0\)"),
        ([], [], "labels: no pair is"),
    ],
)
def test_what_is_no_labelled_distance_is_refused(distances, labels, said):
    with pytest.raises(ValueError, match=said):
        choose_threshold(np.array(distances), np.array(labels))


def test_lists_are_labelled_distances_too():
    assert choose_threshold([0.1, 0.2, 1.0, 1.2], [0, 0, 1, 1]) == pytest.approx(0.6)
    assert choose_threshold([0.1, 0.2, 1.0, 1.2], [False, False, True, True]) == pytest.approx(0.6)


def test_a_network_that_learned_the_opposite_can_be_loaded():
    """As `load_trained` does: the doctor says what is wrong with it."""
    distances, labels = overlapping()
    assert np.isfinite(threshold_by_rule(distances, 1 - labels))
