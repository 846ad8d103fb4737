import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from utils import review
from utils.audit.labels import COLUMNS, find_suspects, judge_labels, pairs_to_review

CLASSES = np.array(["ash", "birch", "cedar", "fir", "oak"])


def on_sphere(points):
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def planted(random, count=400, structure=3.0, flips=0.05):
    """Embeddings around a centre for each class, their labels with some flipped, which, and the true labels."""
    true = random.integers(0, len(CLASSES), count)
    centres = on_sphere(random.normal(size=(len(CLASSES), 16)))
    embeddings = on_sphere(structure * centres[true] + random.normal(size=(count, 16)) / 2)
    flipped = random.permutation(count) < flips * count
    given = np.where(flipped, (true + random.integers(1, len(CLASSES), count)) % len(CLASSES), true)
    return embeddings, CLASSES[given], flipped, CLASSES[true]


def names(count):
    return np.array([f"{number:04}.png" for number in range(count)])


def share_of_flips_first(table, flipped):
    """Of the flipped ones, the share that is among the first tenth."""
    first = table["image"][: len(table) // 10].str.removesuffix(".png").astype(int)
    return flipped[first].sum() / flipped.sum()


@pytest.mark.parametrize("seed", range(3))
def test_flipped_labels_come_first(seed):
    embeddings, labels, flipped, true = planted(np.random.default_rng(seed))
    table = judge_labels(embeddings, labels, names(len(labels)))
    assert list(table.columns) == list(COLUMNS)
    assert share_of_flips_first(table, flipped) >= 0.8
    assert table["quality"].is_monotonic_increasing
    by_image = table.sort_values("image")
    assert (by_image["neighbours say"].to_numpy() == true)[flipped].mean() > 0.9
    assert by_image["label issue"].to_numpy()[flipped].mean() > 0.8
    assert by_image["label issue"].to_numpy()[~flipped].mean() < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_embeddings_that_know_no_class_find_no_flips(seed):
    embeddings, labels, flipped, _ = planted(np.random.default_rng(seed), structure=0)
    assert share_of_flips_first(judge_labels(embeddings, labels, names(len(labels))), flipped) < 0.4


def test_quality_class_and_nearest_by_plain_loops():
    embeddings, labels, _, _ = planted(np.random.default_rng(0), count=60, structure=1.0)
    table = judge_labels(embeddings, labels, names(60)).sort_values("image")
    for index, row in zip(range(60), table.itertuples(index=False), strict=True):
        weights = dict.fromkeys(CLASSES, 0.0)
        for neighbour in range(60):
            if neighbour != index:
                weights[labels[neighbour]] += np.exp(float(embeddings[index] @ embeddings[neighbour]) / 0.07)
        winner = max(weights, key=weights.get)
        members = [member for member in range(60) if labels[member] == winner and member != index]
        nearest = max(members, key=lambda member: embeddings[index] @ embeddings[member])
        _, label, suggested, quality, beside, _ = row
        assert (label, suggested, beside) == (labels[index], winner, f"{nearest:04}.png")
        assert quality == pytest.approx(weights[label] / sum(weights.values()), abs=1e-4)


def test_a_small_class_is_not_outvoted_by_large_ones():
    random = np.random.default_rng(0)
    sizes = (120, 120, 4)
    labels = np.repeat(["ash", "birch", "rare"], sizes)
    centres = np.repeat(on_sphere(random.normal(size=(3, 16))), sizes, axis=0)
    table = judge_labels(on_sphere(4 * centres + random.normal(size=(244, 16)) / 2), labels, names(244))
    assert (table["label"] == table["neighbours say"]).all()


def test_a_copy_under_another_class_comes_first():
    embeddings, labels, _, _ = planted(np.random.default_rng(0), count=100, flips=0)
    copied = np.concatenate([embeddings, embeddings[:1]])
    other = CLASSES[(np.flatnonzero(labels[0] == CLASSES) + 1) % len(CLASSES)]
    table = judge_labels(copied, np.concatenate([labels, other]), names(101))
    assert table["image"][0] == "0100.png"
    assert table["nearest image of that class"][0] == "0000.png"


def flipped_folder(splits, index, step=1):
    labels = splits.folder.labels.copy()
    labels[index] = (labels[index] + step) % len(splits.folder.classes)
    return replace(splits, folder=replace(splits.folder, labels=labels))


def test_each_label_of_the_dataset_flipped_in_turn_is_found(trained):
    """The network knows colours; labels go wrong one at a time, and the image comes among the first two of eighteen."""
    splits = trained.load_splits()
    judged = np.concatenate([splits.valid, splits.test])
    found = 0
    for index in judged:
        suspects = find_suspects(trained, flipped_folder(splits, index))
        assert len(suspects.images) == len(judged)
        files = [str(splits.folder.root / image) for image in suspects.images["image"][:2]]
        found += splits.folder.paths[index] in files
    assert found >= 0.8 * len(judged)


def test_training_images_are_not_judged_and_the_text_says_so(trained):
    splits = trained.load_splits()
    suspects = find_suspects(trained, splits)
    files = {str(splits.folder.root / image) for image in suspects.images["image"]}
    assert files == {splits.folder.paths[index] for index in [*splits.valid, *splits.test]}
    assert f"The {len(splits.train)} training images were not judged" in str(suspects)
    assert "`seed`" in str(suspects)


def test_a_network_that_confuses_classes_is_doubted_before_the_labels(trained):
    suspects = find_suspects(trained, trained.load_splits())
    assert "more likely mistakes of the network" not in str(suspects)
    confused = suspects.images.assign(**{"neighbours say": "blue"})
    assert "more likely mistakes of the network" in str(replace(suspects, images=confused))


def test_held_out_classes_are_judged_by_one_another(trained):
    """As with `split: classes`: no image of theirs was trained on, and no other class is suggested."""
    splits = trained.load_splits()
    blue, green, red = (np.flatnonzero(splits.folder.labels == label) for label in range(3))
    splits = replace(splits, train=blue, valid=green, test=red)
    suspects = find_suspects(trained, flipped_folder(splits, red[0], step=-1))
    assert set(suspects.images["neighbours say"]) == {"green", "red"}
    assert len(suspects.images) == 20
    assert str(splits.folder.root / suspects.images["image"][0]) == splits.folder.paths[red[0]]


def test_an_image_without_another_of_its_class_cannot_be_judged(trained):
    splits = trained.load_splits()
    blue = np.flatnonzero(splits.folder.labels == 0)
    others = np.flatnonzero(splits.folder.labels > 0)
    suspects = find_suspects(trained, replace(splits, train=blue[1:], valid=blue[:1], test=others))
    assert len(suspects.images) == len(others)
    assert "1 could not be judged: no other image of their class" in str(suspects)
    assert set(suspects.images["label"]) == {"green", "red"}


def test_table_pairs_and_file(trained, tmp_path):
    splits = trained.load_splits()
    index = splits.test[0]
    suspects = find_suspects(trained, flipped_folder(splits, index))
    table = suspects.table(1)
    assert len(table) <= 1
    assert len(suspects.table()) == len(suspects.suspected) >= 1
    assert list(suspects.table().index) == list(range(1, len(suspects.suspected) + 1))
    path, beside = suspects.pairs(1)[0]
    assert path in splits.folder.paths
    assert beside == str(splits.folder.root / table["nearest image of that class"][1])
    assert f"{len(suspects.suspected)} look like another class" in str(suspects)
    suspects.write(tmp_path / "results")
    written = pd.read_csv(tmp_path / "results" / "suspects.csv")
    assert list(written.columns) == list(COLUMNS)
    assert written["image"].tolist() == suspects.images["image"].tolist()
    assert written["quality"].is_monotonic_increasing


def test_mistakes_uncertain_pairs_and_suspects_as_problems(calibrated, tmp_path):
    splits = calibrated.load_splits()
    root, paths = splits.folder.root, splits.folder.paths
    names = [str(path).removeprefix(f"{root}/") for path in paths]
    explanation = calibrated.explain((paths[0], paths[-1]), (paths[0], paths[1]))  # blue and red, both blue
    outside = tmp_path / "image.png"
    shutil.copy(paths[0], outside)
    assert pairs_to_review(calibrated.explain((outside, paths[0])), root).empty
    incorrect = replace(explanation, distance=torch.tensor([0.0, 2.0]))
    table = pairs_to_review(incorrect, root)
    correct = pairs_to_review(explanation, root)
    columns = ["image", "class", "suggestion", "beside"]
    assert correct[columns].equals(table[columns])  # a correct decision may be uncertain
    assert correct["evidence"][2].startswith("same (similarity")
    assert table["image"].tolist() == [names[0], names[-1], names[0], names[1]]
    assert table["class"].tolist() == ["blue", "red", "blue", "blue"]
    assert table["suggestion"].tolist() == ["red", "blue", "drop", "drop"]
    assert table["beside"].tolist() == [names[-1], names[0], names[1], names[0]]
    assert table["evidence"][2].endswith("both are blue")
    assert review(table, root).title == "Problems to review: 3"  # each image once
    suspects = find_suspects(calibrated, splits)
    assert suspects.problems()["image"].tolist() == suspects.suspected["image"].tolist()
