import numpy as np
import pytest

from utils.search.gallery import nearest


def unit_vectors(count, dimensions=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_loops(embeddings, query, count):
    """The indices and distances of the nearest, in float64."""
    distances = [float(np.sqrt(((one.astype(float) - query) ** 2).sum())) for one in embeddings]
    order = sorted(range(len(distances)), key=distances.__getitem__)[:count]
    return order, [distances[index] for index in order]


@pytest.mark.parametrize("backend", ["sklearn", "faiss"])
def test_it_is_exact(backend):
    embeddings = unit_vectors(50)
    for queries in (unit_vectors(3, seed=1), unit_vectors(40, seed=2)):  # faiss computes many in another way
        indices, distances = nearest(embeddings, queries, 5, backend)
        assert indices.dtype == np.int64
        assert distances.dtype == np.float32
        for row, query in enumerate(queries):
            order, expected = by_loops(embeddings, query, 5)
            assert indices[row].tolist() == order
            assert distances[row] == pytest.approx(expected, abs=1e-6)


def test_a_planted_copy_is_first_and_its_distance_is_not_lost_to_rounding():
    embeddings = unit_vectors(1000, 128)
    query = embeddings[[400]].copy()
    query[0, 0] += 3e-4
    indices, distances = nearest(embeddings, query, 3)
    assert indices[0, 0] == 400
    assert distances[0, 0] == pytest.approx(3e-4, rel=0.05)


def test_very_near_neighbours_are_distinguished():
    """Inner products in float32 alone could not."""
    query = unit_vectors(1, 128, seed=3)
    for seed in range(10):
        random = np.random.default_rng(seed)
        aside = random.normal(size=(200, 128))
        aside -= (aside @ query[0].astype(float))[:, None] * query.astype(float)
        aside /= np.linalg.norm(aside, axis=1, keepdims=True)
        near = (query + random.uniform(1e-5, 4e-4, 200)[:, None] * aside).astype(np.float32)
        embeddings = np.concatenate([near, unit_vectors(300, 128, seed + 50)])
        indices, _ = nearest(embeddings, query, 5)
        assert set(indices[0].tolist()) == set(by_loops(embeddings, query[0].astype(float), 5)[0])


@pytest.mark.parametrize("backend", ["sklearn", "faiss"])
def test_more_than_there_are_gives_all(backend):
    indices, distances = nearest(unit_vectors(4), unit_vectors(2, seed=1), 9, backend)
    assert indices.shape == distances.shape == (2, 4)
    assert sorted(indices[0].tolist()) == [0, 1, 2, 3]
    assert (np.diff(distances, axis=1) >= 0).all()


@pytest.mark.parametrize("backend", ["sklearn", "faiss"])
def test_embeddings_on_disk_are_searched_as_they_are(tmp_path, backend):
    np.save(tmp_path / "embeddings.npy", unit_vectors(60))
    on_disk = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    queries = unit_vectors(2, seed=1)
    for ours, theirs in zip(nearest(on_disk, queries, 4, backend), nearest(unit_vectors(60), queries, 4), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_another_backend_is_refused():
    with pytest.raises(ValueError, match="backend: 'usearch' is refused"):
        nearest(unit_vectors(4), unit_vectors(1), 2, "usearch")
