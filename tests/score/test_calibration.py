from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import binomtest
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from utils.data.splits import Pairs, draw_pairs
from utils.score import calibration
from utils.score.calibration import (
    Calibration,
    calibration_error,
    chance_calibration_error,
    choose_shape,
    fit_calibration,
    fit_shape,
    reliability,
)
from utils.score.intervals import standard_errors


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


def probabilities_of(calibration, distances):
    return calibration(torch.from_numpy(distances))[:, 0].numpy()


@pytest.fixture
def drawn_less(monkeypatch):
    """Fits of images drawn anew take long: fewer are enough here."""
    monkeypatch.setattr(calibration, "standard_errors", partial(standard_errors, draws=60))


@pytest.fixture
def hardly_drawn(monkeypatch):
    """For tests of probabilities, and not of how wide their intervals are."""
    monkeypatch.setattr(calibration, "standard_errors", partial(standard_errors, draws=4))


@pytest.mark.usefixtures("hardly_drawn")
@pytest.mark.parametrize(("truth", "count"), [(sigmoid_truth, 900), (sigmoid_truth, 4000), (stepped_truth, 4000)])
def test_probabilities_are_those_of_a_known_world(truth, count):
    distances, pairs = draw(truth, count)
    places = np.array([0.3, 0.7, 0.9, 1.4])
    fitted = fit_calibration(distances, pairs)
    assert probabilities_of(fitted, places) == pytest.approx(truth(places), abs=0.08)
    others, other_pairs = draw(truth, 20000, seed=1)
    assert calibration_error(probabilities_of(fitted, others), other_pairs.labels) < 0.04


@pytest.mark.usefixtures("hardly_drawn")
def test_few_pairs_follow_a_step_too():
    """A sigmoid, as it was fitted to fewer than 1,000 pairs, is off by more than 0.05."""
    distances, pairs = draw(stepped_truth, 990)
    assert choose_shape(distances, pairs) == "isotonic"
    others, other_pairs = draw(stepped_truth, 6000, seed=1)
    assert calibration_error(probabilities_of(fit_calibration(distances, pairs), others), other_pairs.labels) < 0.05


def unlike_images(power, count, random):
    """Simulate images of nine classes, of unequal difficulty: centers in 8 dimensions and log-normal noise.

    Returns:
        Their classes, int64 (count,), and a function of Pairs to distances, float (P,). power: 1 leaves them Euclidean;
        4 gathers them near 0, so that no sigmoid fits.
    """
    centers = np.random.default_rng(0).normal(size=(9, 8))
    classes = np.arange(count) % 9
    noise = random.lognormal(-0.6, 0.6, (count, 1))
    embeddings = centers[classes] + noise * random.normal(size=(count, 8))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)

    def distances_of(pairs):
        return 2 * (np.linalg.norm(embeddings[pairs.first] - embeddings[pairs.second], axis=1) / 2) ** power

    return classes, distances_of


def bins_within(calibration, distances, labels):
    """Whether the share of same pairs lies within the predicted interval, for each filled bin: bool (K,).

    Both kinds have the same weight.
    """
    result = calibration(torch.from_numpy(distances)).numpy()
    weights = np.where(labels == 0, 1 / (labels == 0).sum(), 1 / (labels == 1).sum())
    within = []
    for start in range(10):
        inside = (result[:, 0] >= start / 10) & (result[:, 0] < (start + 1) / 10)
        if inside.any():
            share = np.average(labels[inside] == 0, weights=weights[inside])
            _, low, high = np.average(result[inside], axis=0, weights=weights[inside])
            within.append(low <= share <= high)
    return within


@pytest.mark.parametrize("power", [1, 4])
def test_probabilities_fit_other_images(power, monkeypatch):
    """Random halves of images: fitted on one half, probabilities hold on the other, and intervals hold the truth.

    The bounds: an error of 1.5 times chance and 0.01, 78 % of bins within the interval (both halves vary, so that even
    right intervals of single bins would hold 83 %), 90 % of truths. The truth is counted in pairs of 3,000 more images.
    """
    monkeypatch.setattr(calibration, "standard_errors", partial(standard_errors, draws=30))
    random = np.random.default_rng(1)
    classes, distances_of = unlike_images(power, 3000, random)
    many = draw_pairs(np.arange(3000), classes, 20, random)
    order = np.argsort(distances_of(many))
    places = distances_of(many)[order].reshape(40, -1).mean(axis=1)
    truth = (many.labels[order] == 0).reshape(40, -1).mean(axis=1)
    errors, chances, within, held = [], [], [], []
    for seed in range(10):
        classes, distances_of = unlike_images(power, 252, random)
        images = random.permutation(252)
        pairs = draw_pairs(images[:126], classes, 3, random)
        fitted = fit_calibration(distances_of(pairs), pairs, seed)
        others = draw_pairs(images[126:], classes, 3, random)
        probabilities = probabilities_of(fitted, distances_of(others))
        errors.append(calibration_error(probabilities, others.labels))
        chances.append(chance_calibration_error(probabilities, draws=50))
        within.extend(bins_within(fitted, distances_of(others), others.labels))
        _, low, high = fitted(torch.from_numpy(places)).numpy().T
        held.append((low <= truth) & (truth <= high))
    assert np.mean(errors) <= 1.5 * np.mean(chances) + 0.01
    assert np.mean(within) >= 0.78
    assert np.mean(held) >= 0.9


def test_a_pair_is_scored_once_by_pairs_of_other_images(monkeypatch):
    random = np.random.default_rng(0)
    pairs = draw_pairs(np.arange(40), np.arange(40) % 4, 2, random)
    distances = random.uniform(0, 2, len(pairs))  # a distance names its pair
    scored = []

    def fit(fitted_distances, targets, weights, places):
        rows = np.flatnonzero(np.isin(distances, places))
        fitted = np.isin(distances, fitted_distances)
        of_fit = np.concatenate([pairs.first[fitted], pairs.second[fitted]])
        assert fitted.sum() > len(pairs) / 2
        assert not np.isin(np.concatenate([pairs.first[rows], pairs.second[rows]]), of_fit).any()
        scored.extend(rows)
        return np.zeros(len(places))

    monkeypatch.setattr(calibration, "SHAPES", {"the only one": fit})
    assert choose_shape(distances, pairs) == "the only one"
    assert sorted(scored) == list(range(len(pairs)))


def test_an_open_shape_is_not_chosen_for_knowing_the_images():
    """Each image is in many pairs: distances say nothing of new images, but isotonic regression learns old pairs."""
    for seed in range(6):
        random = np.random.default_rng(seed)
        pairs = draw_pairs(np.arange(40), np.arange(40) % 4, 20, random)  # 1,600, many of them twice
        embeddings = random.normal(size=(40, 8))
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        distances = np.linalg.norm(embeddings[pairs.first] - embeddings[pairs.second], axis=1)
        assert choose_shape(distances, pairs, seed) != "isotonic"


def beta_truth(distances):
    share = distances / 2
    return 1 / (1 + np.exp(-1) * share**3 / (1 - share) ** 0.3)


def test_each_shape_is_chosen_where_it_is_the_truth():
    truths = {"sigmoid": sigmoid_truth, "beta": beta_truth, "isotonic": stepped_truth}
    for shape, truth in truths.items():
        assert choose_shape(*draw(truth, 6000, seed=1)) == shape


@pytest.mark.usefixtures("hardly_drawn")
def test_the_curve_falls_whatever_the_distances():
    """Same pairs may lie farther apart than different ones: distances then say nothing, and the curve is flat."""
    distances, pairs = draw(sigmoid_truth, 300)
    spread = np.random.default_rng(0).uniform(0, 2, 300)
    result = {
        "as it should be": fit_calibration(distances, pairs),
        "the other way round": fit_calibration(1.6 - distances, pairs),
        "equal": fit_calibration(np.full(300, 0.7), pairs),
        "at either end": fit_calibration(2.0 * pairs.labels, pairs),
        "at either end, the other way round": fit_calibration(2.0 - 2 * pairs.labels, pairs),
        "hardly apart": fit_calibration(0.5 + 1e-4 * pairs.labels, pairs),
        "piled up": fit_calibration(np.where(spread < 0.7, 0, np.where(spread > 1.4, 2, distances)), pairs),
        "of five pairs": fit_calibration(distances[:5], Pairs(pairs.first[:5], pairs.second[:5], np.arange(5) % 2)),
    }
    for name, curve in result.items():
        value, low, high = curve.probabilities.T
        assert (curve.probabilities.diff(dim=0) <= 0).all(), name
        assert ((low <= value) & (value <= high) & (value > 0) & (value < 1) & (low >= 0) & (high <= 1)).all(), name
    for name in ("the other way round", "equal", "at either end, the other way round"):
        assert result[name].probabilities[:, 0].numpy() == pytest.approx(0.5, abs=0.02), name


def equal_kinds(truth, count):
    """As draw, with as many same as different pairs, so that all weights are alike."""
    distances, pairs = draw(truth, 3 * count)
    rows = np.concatenate([np.flatnonzero(pairs.labels == kind)[:count] for kind in (0, 1)])
    return distances[rows], pairs.labels[rows]


def test_the_sigmoid_is_that_of_scikit_learn():
    distances, labels = equal_kinds(sigmoid_truth, 200)
    inputs = distances[:, None]
    any_slope = FrozenEstimator(LogisticRegression().fit(inputs, labels == 0))
    expected = CalibratedClassifierCV(any_slope, method="sigmoid").fit(inputs, labels == 0)
    grid = np.linspace(0, 2, 21)
    result = fit_shape("sigmoid", distances, labels, np.ones(400), grid)
    assert 1 / (1 + np.exp(-result)) == pytest.approx(expected.predict_proba(grid[:, None])[:, 1], abs=1e-4)


def weighted():
    """Distances with ties, labels, weights of which some are 0, softened labels, and weights that balance the kinds,
    one pair after the other.
    """
    distances, pairs = draw(beta_truth, 300)
    distances = distances.round(2)
    weights = np.random.default_rng(0).poisson(1, 300).astype(float)
    same = sum(weight for weight, label in zip(weights, pairs.labels, strict=True) if label == 0)
    different = weights.sum() - same
    targets = [1 / (different + 2) if label else (same + 1) / (same + 2) for label in pairs.labels]
    balanced = weights / np.where(pairs.labels == 0, same, different)
    return distances, pairs.labels, weights, np.array(targets), balanced


def test_the_isotonic_curve_is_that_of_scikit_learn():
    distances, labels, weights, targets, balanced = weighted()
    model = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(distances, targets, balanced)
    grid = np.linspace(0, 2, 201)
    result = 1 / (1 + np.exp(-fit_shape("isotonic", distances, labels, weights, grid)))
    assert result == pytest.approx(model.predict(grid), abs=1e-9)


def beta_of_the_paper(distances, targets, weights):
    """Kull et al. 2017, equation 4, p = 1 / (1 + 1 / (e^c s^a / (1 - s)^b)) with a, b >= 0, at the highest likelihood
    of SciPy's bounded search; s: similarity.
    """
    score = 1 - distances / 2

    def loss(parameters):
        a, b, c = parameters
        odds = np.exp(c) * score**a / (1 - score) ** b
        return (weights * (targets * np.log1p(1 / odds) + (1 - targets) * np.log1p(odds))).sum()

    return minimize(loss, (1, 1, 0), bounds=[(0, None), (0, None), (None, None)], tol=1e-12).x


@pytest.mark.parametrize("bound", [None, 0, 1])
def test_beta_calibration_is_that_of_the_paper(bound):
    """Also where the first or second power would be negative."""
    distances, labels, weights, targets, balanced = weighted()
    if bound is not None:  # the share of same pairs rises again near one end
        near = distances > 1.2 if bound == 0 else distances < 0.4
        labels = np.where(near, np.arange(len(labels)) % 2, labels)
        same, different = (weights[labels == kind].sum() for kind in (0, 1))
        targets = np.where(labels == 0, (same + 1) / (same + 2), 1 / (different + 2))
        balanced = weights / np.where(labels == 0, same, different)
    distances = np.clip(distances, 0.01, 1.99)
    a, b, c = beta_of_the_paper(distances, targets, balanced)
    if bound is not None:
        assert (a, b)[bound] == 0
    score = 1 - np.array([0.1, 0.4, 0.8, 1.2, 1.5]) / 2
    expected = c + a * np.log(score) - b * np.log(1 - score)
    assert fit_shape("beta", distances, labels, weights, 2 - 2 * score) == pytest.approx(expected, abs=0.01)


@pytest.mark.usefixtures("hardly_drawn")
def test_both_kinds_weigh_alike_and_nothing_is_certain():
    """Three times as many different pairs change nothing; perfectly separated pairs leave Laplace's doubt."""
    distances, pairs = draw(sigmoid_truth, 400)
    different = np.flatnonzero(pairs.labels == 1)
    rows = np.concatenate([np.arange(len(pairs)), different, different])
    more = Pairs(pairs.first[rows], pairs.second[rows], pairs.labels[rows])
    grid = np.linspace(0, 2, 11)
    expected = probabilities_of(fit_calibration(distances, pairs), grid)
    assert probabilities_of(fit_calibration(distances[rows], more), grid) == pytest.approx(
        expected, abs=0.02
    )  # softer labels
    apart = np.array([0.1] * 10 + [1.5] * 10)
    split = Pairs(np.arange(20), np.arange(20, 40), np.arange(20) // 10)
    low, high = probabilities_of(fit_calibration(apart, split), np.array([1.5, 0.1]))
    assert (low, high) == pytest.approx((1 / 12, 11 / 12), abs=0.01)


@pytest.mark.usefixtures("drawn_less")
def test_the_interval_covers_the_truth():
    inside = 0
    grid = torch.tensor([0.2, 0.6, 0.8, 1.0, 1.6])
    for seed in range(5):
        result = fit_calibration(*draw(sigmoid_truth, 300, seed), seed)(grid).numpy()
        inside += ((result[:, 1] <= sigmoid_truth(grid.numpy())) & (sigmoid_truth(grid.numpy()) <= result[:, 2])).sum()
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
    result = fit_calibration(np.append(same, different), pairs)
    assert (result.probabilities.diff(dim=0) <= 0).all()
    low, high = result(torch.tensor([2.0]))[0, 1:]
    assert low < 0.01
    assert 0.01 < high < 0.2


@pytest.mark.usefixtures("drawn_less")
def test_images_without_exceptions_leave_what_wilson_leaves_open():
    """Forty images whose 400 pairs are perfectly separated; Wilson's interval is SciPy's."""
    pairs = draw_pairs(np.arange(40), np.arange(40) % 4, 5, np.random.default_rng(0))
    distances = np.random.default_rng(1).uniform(0, 0.5, 400) + pairs.labels
    result = fit_calibration(distances, pairs).probabilities
    left_open = binomtest(0, 40).proportion_ci(method="wilson").high
    assert result[:, 2].min() >= left_open - 1e-4
    assert result[:, 1].max() <= 1 - left_open + 1e-4


def test_between_the_knots_it_is_linear_and_beyond_them_flat():
    calibration = Calibration(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[1.0] * 3, [0.5] * 3, [0.1] * 3]))
    result = calibration(torch.tensor([-1.0, 0.0, 0.5, 1.5, 2.0, 3.0]))[:, 0]
    assert result.tolist() == pytest.approx([1.0, 1.0, 0.75, 0.3, 0.1, 0.1])


def test_the_calibration_error_by_hand():
    """Two same pairs weigh 3/4 each and one different pair 3/2. Bin [0.2, 0.3): 0.25 is predicted of one same and of
    one different pair; bin [0.9, 1]: 0.95 of a same pair.
    """
    predicted = np.array([0.25, 0.25, 0.95])
    labels = np.array([0, 1, 0])
    gaps = abs(0.75 * (0.25 - 1) + 1.5 * 0.25), 0.75 * 0.05
    assert calibration_error(predicted, labels) == pytest.approx(sum(gaps) / 3)
    assert calibration_error(np.array([1.0, 0.0, 1.0]), labels) == 0
    weights = np.array([0.0, 2.0, 1.0])  # 1.5 for each kind
    assert calibration_error(predicted, labels, weights) == pytest.approx((1.5 * 0.25 + 1.5 * 0.05) / 3)
    assert np.isnan(calibration_error(predicted, np.zeros(3, int)))


def test_the_calibration_error_is_that_of_the_calibration_curve():
    """Of scikit-learn, with as many pairs of either kind."""
    distances, labels = equal_kinds(stepped_truth, 500)
    probabilities = sigmoid_truth(distances)
    shares, means = calibration_curve(labels == 0, probabilities, n_bins=10)
    counts, _ = np.histogram(probabilities, bins=10, range=(0, 1))
    expected = (np.abs(shares - means) * counts[counts > 0]).sum() / 1000
    assert calibration_error(probabilities, labels) == pytest.approx(expected)


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
    covered = (right.low <= right.predicted) & (right.predicted <= right.high)
    assert covered.mean() >= 0.8
    assert right.counts.sum() == len(pairs)
    assert right.error.value < 2 * right.error_by_chance
    assert bold.error.low > right.error.high


def test_the_error_of_right_probabilities_falls_with_the_number_of_pairs():
    few, many = (chance_calibration_error(np.full(count, 0.5)) for count in (100, 10000))
    assert few == pytest.approx(np.sqrt(2 / np.pi) * 0.05, rel=0.15)  # mean of |N(0, 0.05)|
    assert many == pytest.approx(few / 10, rel=0.3)


def test_a_probability_on_the_edge_of_a_bin_is_in_the_lower_one():
    """Guo et al. 2017, section 2: bins are ((m - 1) / M, m / M]. Same pairs weigh as much as different ones.

    Bin (0.2, 0.3] holds 0.3, same, and 0.25, different; (0.3, 0.4] holds 0.35, different; (0.9, 1] holds 0.95, same.
    """
    probabilities = np.array([0.3, 0.25, 0.35, 0.95])
    expected = (abs(0.3 + 0.25 - 1) + abs(0.35 - 0) + abs(0.95 - 1)) / 4
    assert calibration_error(probabilities, np.array([0, 1, 1, 0])) == pytest.approx(expected)
