import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from utils.search.gallery import BLOCK, _by_blocks, _by_faiss, _by_usearch, nearest

module = sys.modules["utils.search.gallery"]


def unit_vectors(count, dimensions=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_loops(embeddings, query, count):
    """The indices and distances of the nearest, in float64."""
    apart = [float(np.sqrt(((one.astype(float) - query) ** 2).sum())) for one in embeddings]
    order = sorted(range(len(apart)), key=lambda index: apart[index])[:count]
    return order, [apart[index] for index in order]


@pytest.mark.parametrize("block", [1, 7, 100, BLOCK])
def test_it_is_exact_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    embeddings = unit_vectors(50)
    queries = unit_vectors(3, seed=1)
    indices, distances = nearest(embeddings, queries, 5)
    for row, query in enumerate(queries):
        order, apart = by_loops(embeddings, query, 5)
        assert indices[row].tolist() == order
        assert distances[row] == pytest.approx(apart, abs=1e-6)


def test_a_planted_copy_is_first_and_its_distance_is_not_lost_to_rounding():
    embeddings = unit_vectors(1000, 128)
    query = embeddings[[400]].copy()
    query[0, 0] += 3e-4
    indices, distances = nearest(embeddings, query, 3)
    assert indices[0, 0] == 400
    assert distances[0, 0] == pytest.approx(3e-4, rel=0.05)


@pytest.mark.parametrize("search", [_by_blocks, None], ids=["alone", "exact"])
def test_very_near_neighbours_are_told_apart(search):
    """Inner products in float32 alone cannot; the distances can."""
    query = unit_vectors(1, 128, seed=3)
    wrong = 0
    for seed in range(10):
        random = np.random.default_rng(seed)
        aside = random.normal(size=(200, 128))
        aside -= (aside @ query[0].astype(float))[:, None] * query.astype(float)
        aside /= np.linalg.norm(aside, axis=1, keepdims=True)
        near = (query + random.uniform(1e-5, 4e-4, 200)[:, None] * aside).astype(np.float32)
        embeddings = np.concatenate([near, unit_vectors(300, 128, seed + 50)])
        found = search(embeddings, query, 5) if search else nearest(embeddings, query, 5)[0]
        wrong += set(found[0].tolist()) != set(by_loops(embeddings, query[0].astype(float), 5)[0])
    assert wrong == 0 if search is None else wrong > 5


@pytest.mark.parametrize("block", [7, 300, BLOCK])
def test_of_equal_embeddings_the_first_come_first(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    embeddings = unit_vectors(2000, 16)
    embeddings[[5, 50, 500, 1500, 1900]] = embeddings[5]
    assert nearest(embeddings, embeddings[[5]], 3)[0].tolist() == [[5, 50, 500]]


def test_more_than_there_are_gives_all():
    indices, distances = nearest(unit_vectors(4), unit_vectors(2, seed=1), 9)
    assert indices.shape == distances.shape == (2, 4)
    assert sorted(indices[0].tolist()) == [0, 1, 2, 3]
    assert (np.diff(distances, axis=1) >= 0).all()


def test_embeddings_on_disk_are_searched_as_they_lie_there(tmp_path):
    np.save(tmp_path / "embeddings.npy", unit_vectors(60))
    on_disk = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    queries = unit_vectors(2, seed=1)
    for ours, theirs in zip(nearest(on_disk, queries, 4), nearest(unit_vectors(60), queries, 4), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("library", "search"), [("faiss", _by_faiss), ("usearch", _by_usearch)])
def test_the_libraries_find_the_same(library, search):
    if not find_spec(library):
        pytest.skip(f"{library} is not installed")
    embeddings, queries = unit_vectors(200), unit_vectors(3, seed=1)
    assert np.array_equal(search(embeddings, queries, 5), _by_blocks(embeddings, queries, 5))


def test_faiss_is_asked_where_it_is_installed(monkeypatch):
    def knn(queries, embeddings, count, metric):
        assert metric == "inner product"
        return None, np.argsort(-queries @ embeddings.T, axis=1)[:, :count]

    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(knn=knn, METRIC_INNER_PRODUCT="inner product"))
    monkeypatch.setattr(module, "find_spec", lambda name: name == "faiss")
    embeddings, queries = unit_vectors(40), unit_vectors(2, seed=1)
    assert np.array_equal(nearest(embeddings, queries, 5)[0], _by_blocks(embeddings, queries, 5))
