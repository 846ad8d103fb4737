from functools import partial

import numpy as np
import pytest
import torch

from utils.data import Pairs
from utils.network import Calibration
from utils.training import calibration, calibration_error, fit_calibration, reliability
from utils.training.calibration import chance_calibration_error
from utils.training.intervals import standard_errors


def sigmoid_truth(distances):
    return 1 / (1 + np.exp(6 * (distances - 0.8)))


def stepped_truth(distances):
    """No sigmoid: half at medium distances."""
    return np.select([distances < 0.5, distances < 1.1], [0.95, 0.5], 0.05)


def draw(truth, count, seed=0):
    """Distances in [0, 1.6] and pairs whose chance to be of one class is known; half of them are, as truth is
    symmetric around 0.8.
    """
    random = np.random.default_rng(seed)
    distances = random.uniform(0, 1.6, count)
    different = random.random(count) >= truth(distances)
    images = np.arange(2 * count).reshape(2, -1)
    return distances, Pairs(images[0], images[1], different.astype(int))


def said(calibration, distances):
    return calibration(torch.from_numpy(distances))[:, 0].numpy()


@pytest.fixture
def drawn_less(monkeypatch):
    """Fits of images drawn anew take long: fewer are enough here."""
    monkeypatch.setattr(calibration, "standard_errors", partial(standard_errors, draws=60))


@pytest.mark.usefixtures("drawn_less")
@pytest.mark.parametrize(("truth", "count"), [(sigmoid_truth, 900), (sigmoid_truth, 4000), (stepped_truth, 4000)])
def test_probabilities_are_those_of_a_known_world(truth, count):
    distances, pairs = draw(truth, count)
    places = np.array([0.3, 0.7, 0.9, 1.4])
    assert said(fit_calibration(distances, pairs), places) == pytest.approx(truth(places), abs=0.08)
    others, other_pairs = draw(truth, 20000, seed=1)
    assert calibration_error(said(fit_calibration(distances, pairs), others), other_pairs.labels) < 0.04


@pytest.mark.usefixtures("drawn_less")
def test_the_sigmoid_cannot_follow_a_step_but_the_isotonic_can():
    """Below 1,000 pairs a sigmoid is fitted, and it shows."""
    distances, pairs = draw(stepped_truth, 990)
    other, other_pairs = draw(stepped_truth, 6000, seed=1)
    few = said(fit_calibration(distances, pairs), other)
    distances, pairs = draw(stepped_truth, 1000)
    many = said(fit_calibration(distances, pairs), other)
    assert calibration_error(few, other_pairs.labels) > 2 * calibration_error(many, other_pairs.labels)


@pytest.mark.usefixtures("drawn_less")
def test_both_kinds_weigh_alike_and_nothing_is_certain():
    """Three times as many different pairs change nothing; perfectly separated pairs leave Laplace's doubt."""
    distances, pairs = draw(sigmoid_truth, 400)
    different = np.flatnonzero(pairs.labels == 1)
    rows = np.concatenate([np.arange(len(pairs)), different, different])
    more = Pairs(pairs.first[rows], pairs.second[rows], pairs.labels[rows])
    grid = np.linspace(0, 2, 11)
    expected = said(fit_calibration(distances, pairs), grid)
    assert said(fit_calibration(distances[rows], more), grid) == pytest.approx(expected, abs=0.02)  # softer labels
    apart = np.array([0.1] * 10 + [1.5] * 10)
    split = Pairs(np.arange(20), np.arange(20, 40), np.arange(20) // 10)
    low, high = said(fit_calibration(apart, split), np.array([1.5, 0.1]))
    assert (low, high) == pytest.approx((1 / 12, 11 / 12), abs=0.01)


@pytest.mark.usefixtures("drawn_less")
def test_the_interval_covers_the_truth():
    inside = 0
    grid = torch.tensor([0.2, 0.6, 0.8, 1.0, 1.6])
    for seed in range(5):
        found = fit_calibration(*draw(sigmoid_truth, 300, seed), seed)(grid).numpy()
        inside += ((found[:, 1] <= sigmoid_truth(grid.numpy())) & (sigmoid_truth(grid.numpy()) <= found[:, 2])).sum()
    assert inside >= 22  # of 25


@pytest.mark.usefixtures("drawn_less")
def test_far_from_the_threshold_the_interval_narrows():
    """Four same pairs of one odd image lie far away: the chance of "same" is unsure, and falls to either end."""
    random = np.random.default_rng(0)
    same = np.append(np.abs(random.normal(0, 0.2, 122)), np.full(4, 1.3))
    different = random.uniform(0.6, 2, 126)
    images = np.arange(2 * 252).reshape(2, -1)
    first, second = images
    first[122:126] = first[122]
    pairs = Pairs(first, second, np.repeat([0, 1], 126))
    found = fit_calibration(np.append(same, different), pairs)
    assert (found.probabilities.diff(dim=0) <= 0).all()
    low, high = found(torch.tensor([2.0]))[0, 1:]
    assert low < 0.01
    assert 0.01 < high < 0.2


def test_between_the_knots_it_is_linear_and_beyond_them_flat():
    calibration = Calibration(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[1.0] * 3, [0.5] * 3, [0.1] * 3]))
    found = calibration(torch.tensor([-1.0, 0.0, 0.5, 1.5, 2.0, 3.0]))[:, 0]
    assert found.tolist() == pytest.approx([1.0, 1.0, 0.75, 0.3, 0.1, 0.1])


def test_the_calibration_error_by_hand():
    """Two same pairs weigh 3/4 each and one different pair 3/2. Bin [0.2, 0.3): 0.25 is said twice, of one same and one
    different pair; bin [0.9, 1]: 0.95 of a same pair.
    """
    said_of = np.array([0.25, 0.25, 0.95])
    labels = np.array([0, 1, 0])
    gaps = abs(0.75 * (0.25 - 1) + 1.5 * 0.25), 0.75 * 0.05
    assert calibration_error(said_of, labels) == pytest.approx(sum(gaps) / 3)
    assert calibration_error(np.array([1.0, 0.0, 1.0]), labels) == 0
    weights = np.array([0.0, 2.0, 1.0])  # 1.5 for each kind
    assert calibration_error(said_of, labels, weights) == pytest.approx((1.5 * 0.25 + 1.5 * 0.05) / 3)
    assert np.isnan(calibration_error(said_of, np.zeros(3, int)))


def test_unequal_kinds_are_judged_as_if_they_were_equal():
    """Nine different pairs to each same one: right probabilities stay right."""
    distances, pairs = draw(sigmoid_truth, 40000)
    same = np.flatnonzero(pairs.labels == 0)
    rows = np.concatenate([same[: len(same) // 9], np.flatnonzero(pairs.labels == 1)])
    error = calibration_error(sigmoid_truth(distances[rows]), pairs.labels[rows])
    assert error < 0.02


def test_reliability_tells_right_probabilities_from_overconfident_ones():
    distances, pairs = draw(sigmoid_truth, 3000)
    right = reliability(sigmoid_truth(distances), pairs)
    bold = reliability(1 / (1 + np.exp(20 * (distances - 0.8))), pairs)
    covered = (right.low <= right.said) & (right.said <= right.high)
    assert covered.mean() >= 0.8
    assert right.counts.sum() == len(pairs)
    assert right.error.value < 2 * right.by_chance
    assert bold.error.low > right.error.high


def test_the_error_of_right_probabilities_falls_with_the_number_of_pairs():
    few, many = (chance_calibration_error(np.full(count, 0.5)) for count in (100, 10000))
    assert few == pytest.approx(np.sqrt(2 / np.pi) * 0.05, rel=0.15)  # mean of |N(0, 0.05)|
    assert many == pytest.approx(few / 10, rel=0.3)
