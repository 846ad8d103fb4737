import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from utils.score.metrics import retrieval_rates


def by_loops(embeddings, labels):
    """Recall@1, R-precision and MAP@R of each query that has a match, as their definitions read."""
    rows = []
    for query in range(len(labels)):
        others = [index for index in range(len(labels)) if index != query]
        others.sort(key=lambda index: np.linalg.norm(embeddings[query] - embeddings[index]))
        wanted = sum(labels[index] == labels[query] for index in others)
        if not wanted:
            continue
        hits = [labels[index] == labels[query] for index in others[:wanted]]
        average = sum(sum(hits[: place + 1]) / (place + 1) for place in range(wanted) if hits[place])
        rows.append((hits[0], sum(hits) / wanted, average / wanted))
    return np.array(rows, float)


def test_against_plain_loops():
    """Classes of 1 to 9 images; the only image of its class is no query but is in the gallery."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat(np.arange(6), [1, 2, 3, 6, 8, 9]))
    embeddings = random.normal(size=(len(labels), 4)) + 0.8 * random.normal(size=(6, 4))[labels]
    result = retrieval_rates(torch.from_numpy(embeddings), labels)
    expected = by_loops(embeddings, labels)
    assert list(result) == ["recall_at_1", "r_precision", "map_at_r"]
    for values, column in zip(result.values(), expected.T, strict=True):
        assert values == pytest.approx(column)


def test_against_pytorch_metric_learning():
    """The mean of each class and of all queries; the lone image of class 0 is no query there either."""
    random = np.random.default_rng(1)
    labels = random.permutation(np.repeat(np.arange(6), [1, 2, 3, 6, 8, 9]))
    embeddings = torch.from_numpy(random.normal(size=(len(labels), 4)) + 0.8 * random.normal(size=(6, 4))[labels])
    result = retrieval_rates(embeddings, labels)
    queries = labels[labels > 0]  # in the order in which rates come
    names = {"recall_at_1": "precision_at_1", "r_precision": "r_precision", "map_at_r": "mean_average_precision_at_r"}
    nearest = CustomKNN(LpDistance(normalize_embeddings=False))
    for by_class in (False, True):
        peer = AccuracyCalculator(
            include=tuple(names.values()), return_per_class=by_class, knn_func=nearest, device=torch.device("cpu")
        )
        expected = peer.get_accuracy(embeddings, torch.from_numpy(labels))
        for name, values in result.items():
            means = [values[queries == number].mean() for number in range(1, 6)] if by_class else values.mean()
            assert means == pytest.approx(expected[names[name]])


def test_a_perfect_and_a_useless_embedding():
    labels = np.repeat(np.arange(4), 5)
    perfect = retrieval_rates(
        torch.nn.functional.one_hot(torch.from_numpy(labels)).double() + 1e-3 * torch.rand(20, 4), labels
    )
    assert all((values == 1).all() for values in perfect.values())
    torch.manual_seed(0)
    useless = retrieval_rates(torch.randn(20, 4), labels)
    assert useless["r_precision"].mean() < 0.5


def test_no_class_of_two_images_leaves_nothing():
    result = retrieval_rates(torch.rand(3, 2), np.arange(3))
    assert all(len(values) == 0 for values in result.values())
