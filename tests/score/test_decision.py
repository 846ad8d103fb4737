import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binomtest

from utils.config import ConfigError, DecisionSettings
from utils.data.splits import Pairs, draw_pairs
from utils.score.decision import _highest_rates, choose_band, choose_threshold, images_to_decide, threshold_by_rule

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
        with pytest.raises(ConfigError, match="cannot be estimated from"):
            choose_threshold(distances, labels, settings)
        return
    fmr, fnmr = error_rates(distances, labels, choose_threshold(distances, labels, settings))
    assert fmr <= most
    rates = [error_rates(distances, labels, threshold) for threshold in GRID]
    assert fnmr <= min(counterpart for rate, counterpart in rates if rate <= most) + 1e-9


def test_threshold_lies_midway_between_separated_classes():
    distances, labels = np.array([0.1, 0.2, 1.0, 1.2]), np.array([0, 0, 1, 1])
    assert choose_threshold(distances, labels) == pytest.approx(0.6)
    assert choose_threshold(distances, labels, DecisionSettings(rule="eer")) == pytest.approx(0.6)


TARGETS = (0.05, 0.1)


@dataclass(frozen=True)
class World:
    """Where images come from: the centres of their classes, and how they are scattered around them.

    spread: of the logarithm of an image's noise. odd: share of images that are near to all others, and as many that are
    far from all. flipped: share of images that are of another class than their label says. step: to which distances are
    rounded. blind: images do not depend on their class. star: the share of different pairs that have image 0 in them,
    in validation, where it is near to all others.
    """

    classes: int
    noise: float = 0.45
    spread: float = 0.0
    odd: float = 0.0
    flipped: float = 0.0
    step: float = 0.0
    blind: bool = False
    star: float = 0.0

    def centres(self, random):
        if self.odd or self.star:
            return np.eye(max(8, self.classes))[: self.classes]  # whatever is wrong comes from odd images
        return random.normal(size=(self.classes, 8)) * (not self.blind)

    def images(self, random, centres, labels):
        """Unit vectors, float (..., D), and what is odd about them: 0 nothing, 1 near to all, 2 far from all."""
        counterpart = random.integers(0, self.classes, labels.shape)
        labels = np.where(random.random(labels.shape) < self.flipped, counterpart, labels)
        noise = self.noise * np.exp(self.spread * random.normal(size=labels.shape))
        vectors = centres[labels] + noise[..., None] * random.normal(size=(*labels.shape, centres.shape[1]))
        odd = np.where(random.random(labels.shape) < 2 * self.odd, random.integers(1, 3, labels.shape), 0)
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), odd

    def distances(self, random, image, counterpart):
        (vectors, odd), (others, odd_too) = image, counterpart
        result = np.linalg.norm(vectors - others, axis=-1)
        odd = np.maximum(odd, odd_too)
        result[odd == 1] = 0.02 * random.random((odd == 1).sum())
        result[odd == 2] = 2 - 0.02 * random.random((odd == 2).sum())
        return np.round(result / self.step) * self.step if self.step else result

    def population(self, random, centres, count):
        """Distances of as many same and different pairs of images that share none, each float (count,), sorted."""
        labels = random.integers(0, self.classes, count)
        others = (labels + random.integers(1, self.classes, count)) % self.classes
        pairs = [(labels, labels), (labels, others)]
        return [
            np.sort(self.distances(random, *(self.images(random, centres, part) for part in pair))) for pair in pairs
        ]

    def validation(self, random, centres, count, iterations):
        """Distances and pairs of `count` images, by the pair rule."""
        labels = np.arange(count) % self.classes
        vectors, odd = self.images(random, centres, labels)
        pairs = draw_pairs(np.arange(count), labels, iterations, random)
        if self.star:
            odd[0] = 1
            away = (pairs.labels == 1) & (labels[pairs.first] != labels[0]) & (random.random(len(pairs)) < self.star)
            pairs = Pairs(pairs.first, np.where(away, 0, pairs.second), pairs.labels)
        low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
        keys, rows = np.unique(low * count + high, return_inverse=True)  # the same two images have one distance
        low, high = keys // count, keys % count
        result = self.distances(random, (vectors[low], odd[low]), (vectors[high], odd[high]))
        return result[rows], pairs


def true_rates(population, band):
    """The error rates of pairs decided "same" and "different", 0 where none is, and the share left undecided."""
    same, different = population
    near = [np.searchsorted(kind, band[0], side="right") / len(kind) for kind in (same, different)]
    far = [1 - np.searchsorted(kind, band[1], side="right") / len(kind) for kind in (same, different)]
    wrong_of_same = near[1] / sum(near) if sum(near) else 0.0
    wrong_of_different = far[0] / sum(far) if sum(far) else 0.0
    return wrong_of_same, wrong_of_different, 1 - sum(near + far) / 2


def promises(world, count, iterations, worlds, draws, seed=0, targets=TARGETS, choose=choose_band):
    """For each target, of worlds times draws validation sets: true error rates and what is undecided, float (N, 3)."""
    random = np.random.default_rng(seed)
    result = {target: [] for target in targets}
    for _ in range(worlds):
        centres = world.centres(random)
        population = world.population(random, centres, 10_000)
        for _ in range(draws):
            distances, pairs = world.validation(random, centres, count, iterations)
            threshold = threshold_by_rule(distances, pairs.labels)
            for target in targets:
                band = choose(distances, pairs, threshold, target)
                result[target].append(true_rates(population, band))
    return {target: np.array(rates) for target, rates in result.items()}


EQUAL = [World(classes, noise) for classes, noise in ((2, 0.55), (8, 0.55), (20, 0.3))]
UNEQUAL = [World(2, 0.3, spread=1.0), World(8, 0.45, spread=0.6), World(20, 0.3, spread=1.0)]
HOSTILE = [
    (World(8, blind=True), 200),
    (World(8, 0.4, spread=0.5, step=0.25), 200),
    (World(8, 0.25, flipped=0.03), 200),
    (World(8, 0.25, flipped=0.1), 200),
    (World(8, 0.1, star=0.2), 150),
    (World(8, 0.05, odd=0.0275), 120),  # just too many, and in the fewest images that can be decided upon
    (World(8, 0.05, odd=0.058), 60),
]


@pytest.mark.parametrize(
    ("world", "count", "iterations"),
    [
        *[(world, count, 1) for world in EQUAL + UNEQUAL for count in (80, 200)],
        *[(world, count, iterations) for world in EQUAL + UNEQUAL for count, iterations in ((80, 10), (200, 3))],
        *[(World(15, 0.3, spread), 30, iterations) for spread in (0, 0.8) for iterations in (1, 3, 10)],
        *[(World(40, 0.3, spread), 80, 3) for spread in (0, 0.8)],  # two images a class, as in the line above
        *[(world, count, 1) for world, count in HOSTILE],
    ],
)
def test_the_promise_holds_in_nine_of_ten_validation_sets(world, count, iterations):
    """Truth: the error rates of 20,000 pairs of other images of the same classes. Here, 60 to 80 sets of each kind.

    A wide simulation with 200 sets of each of more than 200 kinds (these worlds and more, 30 to 2,000 images, 2 to 40
    classes, 1 to 10 iterations) found a side above its target in at most 7 % of the sets of a kind, at most 3.5 % where
    images are odd. Conformal risk control, which was taken before, exceeded it in up to 69 %.
    """
    targets = TARGETS if count > 30 else (*TARGETS, 0.3)  # 30 images decide nothing below 0.19
    draws = 20 if count * iterations < 600 else 15
    for target, rates in promises(world, count, iterations, 4, draws, targets=targets).items():
        assert (rates[:, :2] > target).any(axis=1).mean() <= 0.1
        if count < images_to_decide(target):
            assert (rates[:, 2] == 1).all()


def test_what_images_allow_is_decided():
    """Undecided are few where classes lie apart, fewer with more images; else leaving all undecided would be easy."""
    shares = [promises(World(8, 0.3), count, 1, 4, 10, targets=(0.05,))[0.05][:, 2].mean() for count in (140, 400)]
    assert shares[0] < 0.5
    assert shares[1] < 0.1
    hard = promises(World(8, 0.45, spread=0.6), 400, 1, 4, 10)
    assert hard[0.1][:, 2].mean() < hard[0.05][:, 2].mean() < 0.9


@pytest.mark.parametrize("wrong", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("iterations", [1, 3])
def test_as_many_images_as_are_named_decide(wrong, iterations):
    """Also of classes of two images each; with fewer images nothing is decided, however far apart the classes lie."""
    named = images_to_decide(wrong)
    assert named == {0.05: 117, 0.1: 57, 0.3: 17}[wrong]  # 2 log(0.05) / log(1 - wrong), upwards
    for count in (named, named - 2):
        labels = np.arange(count) % (count // 2)
        pairs = draw_pairs(np.arange(count), labels, iterations, np.random.default_rng(0))
        distances = pairs.labels + 0.001 * np.arange(len(pairs)) / len(pairs)
        band = choose_band(distances, pairs, 0.5, wrong)
        assert np.isfinite(band).all() == (count == named)
        if count < named:
            assert band == (-math.inf, math.inf)


def own_images(distances, labels):
    """Pairs that share no image."""
    images = np.arange(2 * len(labels)).reshape(2, -1)
    return np.array(distances), Pairs(images[0], images[1], np.array(labels))


def highest_by_scipy(errors, trials):
    """Clopper and Pearson's upper end of 95 % to one side."""
    return binomtest(errors, trials).proportion_ci(0.9, "exact").high


def test_pairs_that_share_no_image_are_independent_trials():
    """The bound is scipy's then, so the side "same" ends where scipy's first exceeds the target."""
    random = np.random.default_rng(0)
    labels = (random.random(600) < np.linspace(0, 1, 600) ** 3).astype(int)  # errors are rare at first
    distances, pairs = own_images(np.linspace(0.1, 1.9, 600), labels)
    same_up_to, _ = choose_band(distances, pairs, 2.0, 0.1)
    decided = int((distances <= same_up_to).sum())
    errors = np.cumsum(labels)
    assert 60 < decided < 500
    assert highest_by_scipy(int(errors[decided - 1]), decided) <= 0.1
    beyond = [
        highest_by_scipy(int(errors[count - 1]), count) for count in range(decided, decided + 12)
    ]  # up to the next candidate
    assert max(beyond) > 0.1
    assert choose_band(distances, pairs, 0.2, 0.1)[0] == 0.2  # never beyond the threshold


def test_the_bound_of_pairs_that_share_images_in_loops():
    """Cameron and Miller's sum over all pairs of pairs that share an image, Korn and Graubard's number of trials, and
    scipy's quantile. Pairs that come twice are one of twice the weight.
    """
    random = np.random.default_rng(0)
    labels = np.arange(24) % 6
    pairs = draw_pairs(np.arange(24), labels, 3, random)
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    scores = random.random((24, 24))[low, high] + 0.1 * pairs.labels
    candidates = np.sort(scores)[[40, 70, 110]]
    mistaken = pairs.labels == 1
    result = _highest_rates(scores, mistaken, pairs, candidates, 6.0)
    for candidate, bound in zip(candidates, result, strict=True):
        weights = {}
        for pair in range(len(pairs)):
            if scores[pair] <= candidate:
                key = (low[pair], high[pair], mistaken[pair])
                weights[key] = weights.get(key, 0) + 1
        assert max(weights.values()) > 1
        total = sum(weights.values())
        errors = sum(weight for (_, _, wrong), weight in weights.items() if wrong)
        rate = errors / total
        variance = 0.0
        for (a, b, wrong), weight in weights.items():
            for (c, d, wrong_too), weight_too in weights.items():
                if {a, b} & {c, d}:
                    variance += weight * (wrong - rate) * weight_too * (wrong_too - rate)
        times = max(1, variance / (total * rate * (1 - rate)))
        times = (errors * times + 6 * 6) / (errors + 6)
        trials = total / times
        assert errors > 0
        assert bound == pytest.approx(beta.ppf(0.95, rate * trials + 1, (1 - rate) * trials))


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
        with pytest.raises(ValueError, match=r"larger distances.*0 for the same class and 1 for different classes"):
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
    ("distances", "labels", "message"),
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
def test_what_is_no_labelled_distance_is_refused(distances, labels, message):
    with pytest.raises(ValueError, match=message):
        choose_threshold(np.array(distances), np.array(labels))


def test_lists_are_labelled_distances_too():
    assert choose_threshold([0.1, 0.2, 1.0, 1.2], [0, 0, 1, 1]) == pytest.approx(0.6)
    assert choose_threshold([0.1, 0.2, 1.0, 1.2], [False, False, True, True]) == pytest.approx(0.6)


def test_a_network_that_learned_the_opposite_can_be_loaded():
    """As `load_trained` does: the doctor says what is wrong with it."""
    distances, labels = overlapping()
    assert np.isfinite(threshold_by_rule(distances, 1 - labels))
