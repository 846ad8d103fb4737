import numpy as np
import pytest

from utils import dataset_map


def groups(count=15):
    """Three groups of directions, and which each is of."""
    random = np.random.default_rng(0)
    centres = np.eye(3, 16)
    vectors = np.concatenate([centre + random.normal(0, 0.1, (count, 16)) for centre in centres])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), np.repeat(np.arange(3), count)


def kept_neighbours(coordinates, labels):
    """Share of images whose nearest other on the map is of their group."""
    distances = np.linalg.norm(coordinates[:, None] - coordinates[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return (labels[distances.argmin(axis=1)] == labels).mean()


def test_neighbours_stay_neighbours():
    vectors, labels = groups()
    coordinates = dataset_map(vectors, seed=1)
    assert coordinates.shape == (len(vectors), 2)
    assert kept_neighbours(coordinates, labels) == 1
    blind = np.random.default_rng(0).normal(size=coordinates.shape)
    assert kept_neighbours(blind, labels) < 0.7


def test_a_seed_gives_one_map():
    vectors, _ = groups(6)
    assert np.array_equal(dataset_map(vectors, 3), dataset_map(vectors, 3))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6])
def test_a_few_images_have_a_map_too(count):
    coordinates = dataset_map(groups()[0][:count])
    assert coordinates.shape == (count, 2)
    assert np.isfinite(coordinates).all()
