import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import tiny_images
from PIL import Image

from utils import find_problems
from utils.audit.problems import COLUMNS, DROP, FOLDS, judge_out_of_sample


@pytest.fixture
def folder(tmp_path):
    """The tiny dataset with a moved image, a copy, a broken file, a black image and a narrow one."""
    root = tmp_path / "data"
    tiny_images(root)
    shutil.move(root / "red" / "red_3.png", root / "blue" / "moved.png")
    shutil.copy(root / "green" / "green_0.png", root / "green" / "z_copy.png")
    (root / "green" / "broken.png").write_bytes(b"no image")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 20, (40, 48, 3), dtype=np.uint8)).save(root / "blue" / "black.png")
    Image.fromarray(random.integers(0, 255, (12, 200, 3), dtype=np.uint8)).save(root / "red" / "strip.png")
    return root


def test_every_problem_has_a_row(make_config, folder, tmp_path):
    problems = find_problems(make_config({"data_path": str(folder), "image.size": [64, 64]}))
    table = problems.table
    assert list(table) == list(COLUMNS)
    by_problem = table.groupby("problem")["image"].agg(list).to_dict()
    assert by_problem["unreadable"] == ["green/broken.png"]
    assert by_problem["near-duplicate"] == ["green/z_copy.png"]
    assert by_problem["dark"] == ["blue/black.png"]
    assert by_problem["size"] == ["red/strip.png"]
    assert (table["suggestion"][table["problem"] != "label"] == DROP).all()
    labels = table[table["problem"] == "label"]
    moved = labels[labels["image"] == "blue/moved.png"].iloc[0]
    assert moved["suggestion"] == "red"
    assert moved["beside"].startswith("red/")
    assert table.index[table["problem"] == "label"].min() > table.index[table["problem"] != "label"].max()
    problems.write(tmp_path)
    assert len(pd.read_csv(tmp_path / "problems.csv")) == len(table)
    for text in ("33 of 34 labels were judged", "embedding of tf_efficientnet_lite0", "Look like another class: "):
        assert text in str(problems)


def planted(random, count=300, flips=15):
    """Embeddings of three classes, with some labels flipped, and which."""
    true = np.repeat(np.arange(3), count // 3)
    embeddings = random.normal(size=(3, 16))[true] + 0.6 * random.normal(size=(count, 16))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    flipped = random.permutation(count)[:flips]
    labels = true.copy()
    labels[flipped] = (labels[flipped] + random.integers(1, 3, flips)) % 3
    return embeddings.astype(np.float32), labels, flipped


def folder_of(labels):
    paths = tuple(f"/data/{label}/{number}.png" for number, label in enumerate(labels))
    return SimpleNamespace(root="/data", paths=paths, labels=labels, classes=("a", "b", "c"))


@pytest.mark.parametrize("seed", range(3))
def test_flipped_labels_come_first(seed):
    embeddings, labels, flipped = planted(np.random.default_rng(seed))
    count = np.arange(len(labels))
    rows = judge_out_of_sample(embeddings, folder_of(labels), count, count)
    first = {int(row["image"].split("/")[1].removesuffix(".png")) for row in rows[:30]}
    assert len(first & set(flipped.tolist())) >= 12
    blind = np.random.default_rng(9).normal(size=embeddings.shape).astype(np.float32)
    rows = judge_out_of_sample(blind, folder_of(labels), count, count)
    first = {int(row["image"].split("/")[1].removesuffix(".png")) for row in rows[:30]}
    assert len(first & set(flipped.tolist())) < 8  # an embedding that knows nothing


def test_a_copy_does_not_vouch_for_its_incorrect_label():
    """Each flipped image has many copies of the same label: in one fold, none of them is fitted to."""
    embeddings, labels, flipped = planted(np.random.default_rng(0))
    copied = np.repeat(flipped, 4)
    embeddings = np.concatenate([embeddings, embeddings[copied]])
    labels = np.concatenate([labels, labels[copied]])
    groups = np.concatenate([np.arange(300), copied])
    count = np.arange(len(labels))
    found = len(judge_out_of_sample(embeddings, folder_of(labels), count, groups))
    leaking = len(judge_out_of_sample(embeddings, folder_of(labels), count, count))
    assert found > 0.8 * (len(copied) + len(flipped))
    assert leaking < found


def test_classes_too_small_to_be_judged(make_config, tmp_path):
    tiny_images(tmp_path / "data")
    for name in ("red", "green"):
        for path in sorted((tmp_path / "data" / name).iterdir())[FOLDS - 1 :]:
            path.unlink()
    problems = find_problems(make_config({"data_path": str(tmp_path / "data")}))
    assert "No label was judged: that needs two classes of at least 5 different images each." in str(problems)
    assert problems.table.empty


def test_a_label_that_a_person_decided_on_is_not_listed_again(make_config, folder, tmp_path):
    settings = {"data_path": str(folder), "image.size": [64, 64]}
    assert "blue/moved.png" in find_problems(make_config(settings)).table["image"].tolist()
    for name in ("red", "blue"):  # corrected, and confirmed
        (tmp_path / "corrections.csv").write_text(f"image,class\nblue/moved.png,{name}\n")
        table = find_problems(make_config(settings | {"corrections": str(tmp_path / "corrections.csv")})).table
        assert "blue/moved.png" not in table["image"][table["problem"] == "label"].tolist()


@pytest.mark.parametrize("name", ["a.png", "z.png"])  # before and after the other images of its class
def test_of_copies_in_two_classes_the_suspect_one_is_dropped(make_config, tmp_path, name):
    tiny_images(tmp_path / "data")
    shutil.copy(tmp_path / "data" / "red" / "red_3.png", tmp_path / "data" / "blue" / name)
    shutil.copy(tmp_path / "data" / "blue" / "blue_3.png", tmp_path / "data" / "red" / name)
    table = find_problems(make_config({"data_path": str(tmp_path / "data"), "image.size": [64, 64]})).table
    copies = table[table["problem"] == "near-duplicate"].sort_values("image")
    assert copies["image"].tolist() == [f"blue/{name}", f"red/{name}"]
    assert copies["beside"].tolist() == ["red/red_3.png", "blue/blue_3.png"]
    assert copies["evidence"].str.endswith("in another class: one label is incorrect").all()
