import numpy as np
import pytest
from helpers import write_images
from hypothesis import given
from hypothesis import strategies as st

from utils.data.batches import draw_batches, draw_epoch
from utils.data.reading import DataError
from utils.data.splits import draw_pairs, load_splits, pairs_of_files

class_sizes = st.lists(st.integers(1, 9), min_size=2, max_size=6)
seeds = st.integers(0, 2**32 - 1)


def labels_of(sizes, seed):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


@given(class_sizes, st.integers(1, 3), seeds)
def test_the_pair_rule(sizes, iterations, seed):
    labels = labels_of(sizes, seed)
    indices = np.random.default_rng(seed).permutation(len(labels))[: max(2, len(labels) - 2)]
    if len(set(labels[indices])) < 2:
        indices = np.arange(len(labels))
    pairs = draw_pairs(indices, labels, iterations, np.random.default_rng(seed))
    counts = {label: int((labels[indices] == label).sum()) for label in set(labels[indices])}
    for image in indices:
        of_image = pairs.first == image
        partners, kinds = pairs.second[of_image], pairs.labels[of_image]
        can_be_positive = counts[labels[image]] > 1
        assert (kinds == 0).sum() == (iterations if can_be_positive else 0)  # a lone image is a negative only
        assert (kinds == 1).sum() == iterations
        assert image not in partners
        assert set(partners) <= set(indices)
        assert ((labels[partners] != labels[image]) == kinds).all()
    assert set(pairs.first) == set(indices)


def test_partners_are_drawn_evenly():
    labels = np.repeat([0, 1, 2], [4, 3, 5])
    pairs = draw_pairs(np.arange(12), labels, 6000, np.random.default_rng(0))
    positives = np.bincount(pairs.second[(pairs.first == 1) & (pairs.labels == 0)], minlength=12)
    negatives = np.bincount(pairs.second[(pairs.first == 1) & (pairs.labels == 1)], minlength=12)
    assert positives.tolist()[1] == 0
    np.testing.assert_allclose(positives[[0, 2, 3]] / 6000, 1 / 3, atol=0.03)
    np.testing.assert_allclose(negatives[4:] / 6000, 1 / 8, atol=0.02)


def test_same_seed_same_pairs():
    labels = labels_of([5, 6, 7], 0)
    first, again, other = (draw_pairs(np.arange(18), labels, 2, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.second.tolist() == again.second.tolist() != other.second.tolist()


@given(st.lists(st.integers(1, 200), min_size=2, max_size=8), st.integers(4, 64), seeds)
def test_batches(sizes, batch_size, seed):
    labels = labels_of(sizes, seed)
    batches = draw_batches(np.arange(len(labels)), labels, batch_size, np.random.default_rng(seed))
    for batch in batches:
        assert len(batch) <= batch_size
        assert len(set(labels[batch])) >= 2
        assert len(set(batch)) == len(batch)
    if max(sizes) * 2 <= sum(sizes):  # no class outnumbers all others: few images have to give way
        assert len(set(np.concatenate(batches))) >= 0.8 * len(labels)


def test_nearly_every_image_of_a_batch_has_a_positive():
    labels = np.repeat(np.arange(50), 20)  # many classes: random batches of 16 would rarely hold two of one
    batches = draw_batches(np.arange(1000), labels, 16, np.random.default_rng(0))
    with_positive = sum((labels[batch] == labels[image]).sum() > 1 for batch in batches for image in batch)
    assert with_positive >= 0.99 * 1000
    assert sorted(np.concatenate(batches)) == list(range(1000))


def test_paper_epochs_draw_the_rule_again(make_config):
    config = make_config({"pairs": "paper", "hyperparameters.batch_size": 5})
    splits = load_splits(config)
    epochs = [draw_epoch(splits, config, number) for number in (1, 2)]
    again = draw_epoch(splits, config, 1)
    assert [batch.tolist() for batch in epochs[0]] == [batch.tolist() for batch in again]
    assert np.concatenate(epochs[0]).tolist() != np.concatenate(epochs[1]).tolist()
    anchors = np.concatenate(epochs[0])[0::2]
    assert max(len(batch) for batch in epochs[0]) == 2 * 5
    assert np.bincount(anchors)[splits.train].tolist() == [2] * len(splits.train)


def test_validation_and_test_pairs_are_fixed(make_config):
    first, again = load_splits(make_config()), load_splits(make_config())
    assert first.test_pairs.second.tolist() == again.test_pairs.second.tolist()
    assert set(first.test_pairs.second) <= set(first.test)
    assert set(first.valid_pairs.second) <= set(first.valid)
    table = first.table()
    assert table.index.tolist() == [*first.folder.classes, "all images", "pairs"]
    assert table.loc["all images"].tolist() == [len(first.train), len(first.valid), len(first.test)]
    blue = first.folder.classes.index("blue")
    assert table.loc["blue", "test"] == (first.folder.labels[first.test] == blue).sum()
    assert table.loc["pairs", "test"] == len(first.test_pairs)


def test_too_few_images_for_a_split(make_config, tmp_path):
    write_images(tmp_path / "data" / "a", 4)
    write_images(tmp_path / "data" / "b", 4, seed=1)
    with pytest.raises(DataError, match=r"validation split has no two images of one class\. Add images"):
        load_splits(make_config({"data_path": str(tmp_path / "data"), "hyperparameters.verbose": False}))


def test_pairs_of_files_share_the_index_of_a_file():
    pairs = pairs_of_files([("d/a/1.png", "d/b/1.png"), ("d/b/1.png", "d/b/2.png"), ("d/a/1.png", "d/a/1.png")])
    assert [pairs.first[0], pairs.second[0]] == [pairs.second[2], pairs.first[1]]
    assert len({*pairs.first.tolist(), *pairs.second.tolist()}) == 3
    assert pairs.labels.tolist() == [1, 0, 0]
