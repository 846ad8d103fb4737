import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from helpers import write_images
from hypothesis import given
from hypothesis import strategies as st

from utils.data import splits as pairs
from utils.data.images import ImageFolder
from utils.data.reading import DataError
from utils.data.splits import draw_pairs, groups_by_name, load_splits, split, split_classes

class_sizes = st.lists(st.integers(1, 9), min_size=2, max_size=6)
seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0.05, 0.4)


def labels_of(sizes, seed):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def grouped(labels, count, seed):
    """Groups of images drawn at random, each named by its first image."""
    drawn = np.random.default_rng(seed).integers(count, size=len(labels))
    _, first, numbers = np.unique(drawn, return_index=True, return_inverse=True)
    return first[numbers]


def folder_of(names):
    """A folder of one image for each name, all of one class."""
    count = len(names)
    paths = tuple(f"data/a/{name}" for name in names)
    zeros = np.zeros(count, np.int64)
    return ImageFolder(Path("data"), ("a",), paths, zeros, np.zeros((count, 2), np.int64))


def without_groups(labels, test_size, valid_size, seed):
    """The rule for images without groups, written independently: each class is shuffled, then dealt."""
    random = np.random.default_rng(seed)
    parts = [[], [], []]
    for label in range(labels.max() + 1):
        members = random.permutation(np.flatnonzero(labels == label)).tolist()
        least = 2 if len(members) >= 6 else 0
        tests, valids = (max(round(share * len(members)), least) for share in (test_size, valid_size))
        parts[2] += members[:tests]
        parts[1] += members[tests : tests + valids]
        parts[0] += members[tests + valids :]
    return [sorted(part) for part in parts]


@given(class_sizes, seeds, shares, shares)
def test_images_that_stand_alone_are_dealt_as_ever(sizes, seed, test_size, valid_size):
    labels = labels_of(sizes, seed)
    parts = split(labels, np.arange(len(labels)), test_size, valid_size, seed)
    assert [part.tolist() for part in parts] == without_groups(labels, test_size, valid_size, seed)


def test_the_split_of_the_sample_is_the_one_recorded():
    """Seven classes of 120, as the bundled sample and config.yml have them; recorded before there were groups."""
    parts = split(np.repeat(np.arange(7), 120), np.arange(840), 0.15, 0.15, 42)
    assert [len(part) for part in parts] == [588, 126, 126]
    assert parts[1][:8].tolist() == [4, 18, 21, 27, 28, 33, 38, 55]
    assert parts[2][:8].tolist() == [0, 2, 3, 20, 24, 25, 37, 45]


@given(class_sizes, st.integers(1, 40), seeds, shares, shares)
def test_groups_are_never_separated(sizes, count, seed, test_size, valid_size):
    labels = labels_of(sizes, seed)
    groups = grouped(labels, count, seed)
    parts = split(labels, groups, test_size, valid_size, seed)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    for one in range(3):
        for other in range(one):
            assert not set(groups[parts[one]]) & set(groups[parts[other]])
    again = split(labels, groups, test_size, valid_size, seed)
    assert [part.tolist() for part in parts] == [part.tolist() for part in again]


@given(st.lists(st.integers(6, 60), min_size=2, max_size=5), seeds, shares, shares)
def test_split_is_stratified(sizes, seed, test_size, valid_size):
    labels = labels_of(sizes, seed)
    _, valid, test = split(labels, np.arange(len(labels)), test_size, valid_size, seed)
    for label, size in enumerate(sizes):
        for part, share in ((valid, valid_size), (test, test_size)):
            count = (labels[part] == label).sum()
            assert count >= 2
            assert count == 2 or abs(count - share * size) <= 0.5


@given(st.lists(st.integers(1, 5), min_size=20, max_size=60), seeds)
def test_shares_are_met_with_groups_of_one_class(sizes, seed):
    """Two classes whose groups have one to five images."""
    groups = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    labels = np.repeat(np.arange(len(sizes)) % 2, sizes)
    _, valid, test = split(labels, groups, 0.2, 0.2, seed)
    for label in range(2):
        for part in (valid, test):
            of_class = part[labels[part] == label]
            few = len(np.unique(groups[of_class])) == 2  # the least there is, however large
            assert few or abs(len(of_class) - 0.2 * (labels == label).sum()) <= 3
            assert len(np.unique(groups[of_class])) >= 2


@given(st.integers(0, 1000))
def test_shares_are_met_with_groups_of_several_classes(seed):
    """Patients whose images stand under all three classes: a rule that gave each to one class would miss the others."""
    random = np.random.default_rng(seed)
    patients = np.sort(random.integers(40, size=600))
    _, first, numbers = np.unique(patients, return_index=True, return_inverse=True)
    labels = random.integers(3, size=600)
    parts = split(labels, first[numbers], 0.2, 0.1, seed)
    for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
        for label in range(3):
            assert abs((labels[part] == label).sum() / (labels == label).sum() - share) < 0.08


def test_a_group_that_outgrows_its_share_trains():
    labels = np.repeat([0, 1], 40)
    groups = np.arange(80)
    groups[:20] = 0
    for seed in range(10):
        train, valid, test = split(labels, groups, 0.15, 0.15, seed)
        assert set(range(20)) <= set(train)
        assert [(labels[part] == 0).sum() for part in (valid, test)] == [6, 6]


@given(st.lists(st.integers(1, 30), min_size=6, max_size=20), st.integers(1, 200), seeds)
def test_classes_are_held_out_whole(sizes, count, seed):
    labels = labels_of(sizes, seed)
    groups = grouped(labels, count, seed)
    parts = split_classes(labels, groups, 0.2, 0.2, seed)
    classes = [set(labels[part]) for part in parts]
    together = [set(groups[part]) for part in parts]
    for one in range(3):
        for other in range(one):
            assert not classes[one] & classes[other]
            assert not together[one] & together[other]
    dealt = np.concatenate(parts)
    assert len(set(dealt)) == len(dealt)
    for image in set(range(len(labels))) - set(dealt):  # left out: another of its group is in an earlier split
        assert any(groups[image] in one for one in together)


@given(st.lists(st.integers(20, 40), min_size=12, max_size=30), seeds)
def test_shares_of_held_out_classes(sizes, seed):
    labels = labels_of(sizes, seed)
    parts = split_classes(labels, np.arange(len(labels)), 0.25, 0.25, seed)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    for part, share in zip(parts, (0.5, 0.25, 0.25), strict=True):
        assert abs(len(part) / len(labels) - share) < 0.12
        assert len(set(labels[part])) >= 2


def test_copies_across_held_out_classes_stay_where_they_are_trained():
    labels = np.repeat(np.arange(6), 4)
    single = np.arange(24)
    train, valid, test = split_classes(labels, single, 0.3, 0.3, 0)
    groups = single.copy()
    groups[[train[0], valid[0], test[0]]] = min(train[0], valid[0], test[0])
    groups[[valid[1], test[1]]] = min(valid[1], test[1])
    parts = split_classes(labels, groups, 0.3, 0.3, 0)
    assert [part.tolist() for part in parts] == [train.tolist(), valid[1:].tolist(), test[2:].tolist()]


def test_groups_by_name():
    folder = folder_of(["rose_12_front.jpg", "rose_3_x.jpg", "tulip_12_back.jpg", "rose_3_y.jpg"])
    assert groups_by_name(folder, r"^[a-z]+_([0-9]+)_").tolist() == [0, 1, 0, 1]
    assert groups_by_name(folder, r"^([a-z]+)").tolist() == [0, 0, 2, 0]


def test_names_without_a_group_are_listed():
    folder = folder_of(["rose_12_front.jpg", "flower.jpg", "12_a.jpg", "b.jpg", "c.jpg"])
    with pytest.raises(DataError) as error:
        groups_by_name(folder, r"^[a-z]+_([0-9]+)_")
    assert "group_pattern: '^[a-z]+_([0-9]+)_' is not found in 4 of 5 file names" in str(error.value)
    assert "a/flower.jpg, a/12_a.jpg, a/b.jpg, and 1 more" in str(error.value)
    assert "split: images" in str(error.value)
    with pytest.raises(DataError, match="not found in 4 of 5 file names"):
        groups_by_name(folder, r"^(?:([0-9]+)_|rose_)?")  # matches all, but the group catches nothing in most


def test_a_pattern_without_a_match_is_cured_by_another_split(make_config, tmp_path):
    for name in "ab":
        write_images(tmp_path / "data" / name, 9)
    settings = {"data_path": str(tmp_path / "data"), "split": "groups", "group_pattern": "(jpg)"}
    with pytest.raises(DataError, match=r"Change it or rename the files, or set split: images\."):
        load_splits(make_config(settings))
    load_splits(make_config(settings | {"split": "images"}))


def test_the_key_split(make_config, tmp_path):
    for number in range(8):
        write_images(tmp_path / "data" / f"class_{number}", 10, seed=number)
    data = {"data_path": str(tmp_path / "data")}
    splits = load_splits(make_config({**data, "split": "classes"}))
    held_out = [set(splits.folder.labels[part]) for part in (splits.train, splits.valid, splits.test)]
    assert sum(map(len, held_out)) == len(set.union(*held_out)) == 8
    by_number = {**data, "split": "groups", "group_pattern": "([0-9]+)"}  # 3.png of all eight classes is one group
    splits = load_splits(make_config(by_number))
    numbers = [{Path(splits.folder.paths[index]).name for index in part} for part in (splits.train, splits.test)]
    assert not numbers[0] & numbers[1]
    assert all(numbers)
    assert splits.groups.tolist() == list(range(10)) * 8
    assert splits.duplicates.tolist() == list(range(80))


def test_what_is_left_out_is_told(make_config, tmp_path, capsys):
    """One picture under all eight classes: it trains, and is neither validated nor tested."""
    write_images(tmp_path / "picture", 1, seed=99)
    for number in range(8):
        place = tmp_path / "data" / f"class_{number}"
        write_images(place, 6, seed=number)
        shutil.copy(tmp_path / "picture" / "0.png", place / "x.png")
    splits = load_splits(make_config({"data_path": str(tmp_path / "data"), "split": "classes"}))
    labels = splits.folder.labels
    held_out = len(set(labels[splits.valid])) + len(set(labels[splits.test]))
    assert f"{held_out} near-duplicates of images of another split are left out: class_" in capsys.readouterr().out
    names = [[Path(splits.folder.paths[index]).name for index in part] for part in (splits.valid, splits.test)]
    assert "x.png" not in names[0] + names[1]
    assert len(splits.train) == 7 * (8 - held_out)


@pytest.mark.parametrize("name", ["caf\u00e9", "\u00c5ngstr\u00f6m", "\uac00"])
def test_groups_are_caught_in_either_form_of_a_name(name):
    """macOS stores accents as characters of their own; what was copied from elsewhere has them composed."""
    decomposed = unicodedata.normalize("NFD", name)
    assert name != decomposed
    folder = folder_of([f"{name}_1.jpg", f"{decomposed}_2.jpg", "z_3.jpg"])
    for pattern in (r"^(.+)_", f"^({name}|z)_", f"^({decomposed}|z)_"):
        assert groups_by_name(folder, pattern).tolist() == [0, 0, 2]


# Folders whose splits cannot all form pairs: images of each class, and settings. The cures are followed to the letter.
TOO_SMALL = {
    "two images a class": ([2] * 12, {}),
    "two images a class, many": ([2] * 30, {"test_size": 0.2, "valid_size": 0.1}),
    "two images a class, few classes": ([2] * 5, {}),
    "four images a class": ([4, 4], {}),
    "four images a class, large shares": ([4, 4], {"test_size": 0.45, "valid_size": 0.45}),
    "five images a class": ([5] * 8, {}),
    "one image a class": ([1] * 8, {}),
    "one image a class, two classes": ([1, 1], {}),
    "one class of one image": ([12, 1], {}),
    "one large class": ([40, 3, 3], {}),
    "almost nothing to train on": ([6, 6], {"test_size": 0.45, "valid_size": 0.45}),
    "almost nothing to test on": ([5, 5, 5], {"test_size": 0.01, "valid_size": 0.01}),
    "sizes that leave nothing": ([10, 10, 10], {"test_size": 0.6, "valid_size": 0.39}),
    "whole classes, of one image": ([1] * 8, {"split": "classes"}),
    "whole classes, few of two images": ([2, 2] + [1] * 8, {"split": "classes"}),
    "too few classes to hold any out": ([9] * 5, {"split": "classes"}),
    "too few classes, of few images": ([2, 1, 1], {"split": "classes"}),
    "two groups": ([20, 20], {"split": "groups", "group_pattern": "^(1|)"}),
    "groups of many": ([12, 12], {"split": "groups", "group_pattern": "^([0-9])"}),
    "one group": ([9, 9], {"split": "groups", "group_pattern": "(png)"}),
}


@pytest.mark.parametrize("case", TOO_SMALL)
def test_the_cure_followed_ends_the_error(make_config, tmp_path, case):
    counts, settings = TOO_SMALL[case]
    data = tmp_path / "data"
    settings = {"data_path": str(data), "hyperparameters.verbose": False, "duplicate_radius": None, **settings}
    settings = {"test_size": 0.15, "valid_size": 0.15, "split": "images", **settings}
    for number, count in enumerate(counts):
        write_images(data / f"class{number:02}", count, seed=number)
    with pytest.raises(DataError) as caught:
        load_splits(make_config(settings))
    needs = dict(re.findall(r"split: (\w+) needs ([^;]*)", str(caught.value)))
    follow(needs[settings["split"]], data, settings)
    splits = load_splits(make_config(settings))
    for part in (splits.train, splits.valid, splits.test):
        counts = np.bincount(splits.folder.labels[part])
        assert (counts > 0).sum() >= 2
        assert counts.max() >= 2


def follow(needs, data, settings):
    """Do what a split needs, by adding images and by changing settings, and nothing else."""
    least = int(re.search(r"at least (\d+) (?:images|groups|classes)", needs)[1])
    if settings["split"] == "classes":
        each = int(re.search(r"classes of (\d+) images", needs)[1])
        for number in range(len(list(data.iterdir())), least):
            write_images(data / f"new{number}", 1, seed=200 + number)
        for number, folder in enumerate(sorted(data.iterdir())):
            add_images(folder, each - len(list(folder.iterdir())), 100 + number)
        return
    if settings["split"] == "groups":
        for image in list(data.rglob("*.png")):
            image.rename(image.with_name(f"{image.parent.name}_{image.name}"))
        settings["group_pattern"] = "^(.+)[.]png"
    for number, folder in enumerate(sorted(data.iterdir())[:2]):
        add_images(folder, least - len(list(folder.iterdir())), 50 + number)
    settings["test_size"] = settings["valid_size"] = 0.2


def add_images(folder, count, seed):
    """So many more images, which belong to no group of the others."""
    write_images(folder / "made", max(count, 0), seed=seed)
    for image in sorted((folder / "made").iterdir()):
        letters = image.stem.translate(str.maketrans("0123456789", "abcdefghij"))
        image.rename(folder / f"{seed}{letters}.png")
    (folder / "made").rmdir()


def test_another_split_helps_classes_of_two_images(make_config, tmp_path):
    for number in range(12):
        write_images(tmp_path / "data" / str(number), 2, seed=number)
    settings = {"data_path": str(tmp_path / "data"), "test_size": 0.15, "valid_size": 0.15}
    with pytest.raises(DataError, match=r"the \w+ split has .* split: classes needs at least 6 classes of 2 images"):
        load_splits(make_config(settings))
    load_splits(make_config(settings | {"split": "classes"}))


@pytest.mark.parametrize(("most", "iterations"), [(20, 5), (70, 9)])
def test_too_many_pairs_name_how_many_work(most, iterations, monkeypatch):
    monkeypatch.setattr(pairs, "MOST_PAIRS", most)
    labels = np.repeat([0, 1], 4)
    with pytest.raises(DataError, match="number_of_iterations") as caught:
        draw_pairs(np.arange(8), labels, iterations, np.random.default_rng(0))
    largest = int(re.search("set number_of_iterations: ([0-9]+) or fewer", str(caught.value))[1])
    assert len(draw_pairs(np.arange(8), labels, largest, np.random.default_rng(0))) <= most
    with pytest.raises(DataError):
        draw_pairs(np.arange(8), labels, largest + 1, np.random.default_rng(0))
