"""Distance, similarity, the contrastive loss and the pair rule, in loops.

Written without reading the implementation.
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from utils.data.splits import draw_pairs
from utils.network.distance import distance, similarity, unit
from utils.train.losses import contrastive_loss, loss_of_all_pairs


def plain_distance(vector, other):
    total = 0.0
    for value, counterpart in zip(vector, other, strict=True):
        total += (value - counterpart) ** 2
    return math.sqrt(total)


def plain_loss(separation, different, margin):
    """Hadsell, Chopra and LeCun 2006, equation 4."""
    similar_part = (1 - different) * separation**2 / 2
    different_part = different * max(0.0, margin - separation) ** 2 / 2
    return similar_part + different_part


def test_distance_and_similarity():
    """Livieris et al. 2023, the Euclidean distance of embeddings of length 1 and the similarity 1 - d / 2. Written
    without reading the implementation.
    """
    vectors = torch.randn(5, 2, 3, dtype=torch.float64)
    embeddings = unit(vectors)
    distances = distance(embeddings[:, 0], embeddings[:, 1])
    for pair in range(5):
        plain = []
        for vector in vectors[pair].tolist():
            length = plain_distance(vector, [0.0, 0.0, 0.0])
            plain.append([value / length for value in vector])
            assert embeddings[pair, len(plain) - 1].tolist() == pytest.approx(plain[-1])
        separation = plain_distance(*plain)
        assert distances[pair].item() == pytest.approx(separation)
        assert similarity(distances)[pair].item() == pytest.approx(1 - separation / 2)


@pytest.mark.parametrize("margin", [0.7, 1.0, 2.0])
def test_loss_of_pairs(margin):
    """Hadsell, Chopra and LeCun 2006, equation 4, as Livieris et al. 2023 take it: the mean over pairs. Written without
    reading the implementation.
    """
    distances = torch.rand(12, dtype=torch.float64) * 2
    labels = torch.tensor([0, 1] * 6)
    total = 0.0
    for separation, label in zip(distances.tolist(), labels.tolist(), strict=True):
        total += plain_loss(separation, label, margin) / 12
    assert contrastive_loss(distances, labels, margin).mean().item() == pytest.approx(total)


@pytest.mark.parametrize("margin", [0.7, 1.0, 2.0])
def test_loss_of_a_batch(margin):
    """Hadsell, Chopra and LeCun 2006, equation 4, of all pairs of a batch: the mean of the mean loss of positive and
    that of negative pairs; its gradient by differences of the vectors before they are brought to length 1. Written
    without reading the implementation.
    """
    classes = [0, 0, 0, 1, 1, 2]
    vectors = torch.randn(6, 3, dtype=torch.float64)

    def plain(vectors):
        rows = []
        for vector in vectors:
            length = plain_distance(vector, [0.0, 0.0, 0.0])
            rows.append([value / length for value in vector])
        sums, counts = [0.0, 0.0], [0, 0]
        for index in range(6):
            for other in range(index):
                different = int(classes[index] != classes[other])
                sums[different] += plain_loss(plain_distance(rows[index], rows[other]), different, margin)
                counts[different] += 1
        return (sums[0] / counts[0] + sums[1] / counts[1]) / 2

    tracked = vectors.clone().requires_grad_()
    loss = loss_of_all_pairs(unit(tracked), torch.tensor(classes), margin)
    assert loss.item() == pytest.approx(plain(vectors.tolist()))
    loss.backward()
    for index in range(6):
        for dimension in range(3):
            above, below = vectors.tolist(), vectors.tolist()
            above[index][dimension] += 1e-6
            below[index][dimension] -= 1e-6
            slope = (plain(above) - plain(below)) / 2e-6
            assert tracked.grad[index, dimension].item() == pytest.approx(slope, abs=1e-6)


def test_pair_rule():
    """Livieris et al. 2023, the rule that `draw_pairs` quotes: at each iteration every image is once the anchor of a
    positive pair, with another image of its class, and once of a negative pair, with an image of any other class; all
    of them equally likely (chi-square). The only image of a class has no positive pair. Written without reading the
    implementation.
    """
    classes = np.array([9, 0, 0, 0, 0, 0, 1, 1, 1, 9, 1, 2, 2, 2, 3])
    indices = np.array([1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14])  # not those of class 9
    iterations = 400
    pairs = draw_pairs(indices, classes, iterations, np.random.default_rng(0))
    counts = {}
    for first, second, label in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.labels.tolist(), strict=True):
        assert first in indices
        assert second in indices
        assert first != second
        assert label == int(classes[first] != classes[second])
        counts[first, second] = counts.get((first, second), 0) + 1
    for anchor in indices.tolist():
        for label in (0, 1):
            possible = []
            for other in indices.tolist():
                if other != anchor and int(classes[anchor] != classes[other]) == label:
                    possible.append(other)
            if not possible:
                assert classes[anchor] == 3
                continue
            drawn = [counts.get((anchor, other), 0) for other in possible]
            assert sum(drawn) == iterations
            expected = iterations / len(possible)
            statistic = 0.0
            for count in drawn:
                statistic += (count - expected) ** 2 / expected
            assert chi2.sf(statistic, len(possible) - 1) > 1e-4
