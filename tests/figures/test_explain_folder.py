import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import write_images

from utils import DataError, explain_folder, overlay
from utils.data import read_image
from utils.figures.drawing import OPACITY
from utils.figures.folder import LETTERS, NARROWEST, _lettered, pairs_of
from utils.search.__main__ import main


@pytest.fixture
def pairs(trained):
    splits = trained.load_splits()
    return splits.files(splits.test_pairs, 5)


def test_files_hold_what_the_explanations_say(trained, pairs, tmp_path):
    table = explain_folder(trained, pairs, tmp_path / "out", judged=True)
    explanation = trained.explain(*pairs)
    assert pd.read_csv(tmp_path / "out" / "scores.csv")["distance"].tolist() == table["distance"].tolist()
    for index, row in enumerate(table.to_dict("records")):
        assert (row["image 1"], row["image 2"]) == explanation.names[index]
        assert row["distance"] == pytest.approx(explanation.distance[index].item(), abs=1e-3)
        assert row["decision"] == explanation.decision(index)
        assert row["map of pair"]
        with np.load(tmp_path / "out" / f"{row['files']}.npz", allow_pickle=False) as content:
            assert np.allclose(content["factual"], explanation.factual[index].numpy(), atol=2e-2)
            assert np.allclose(content["counterfactual"], explanation.counterfactual[index].numpy(), atol=2e-2)
        picture = read_image(tmp_path / "out" / f"{row['files']}.png")
        for number, (path, heatmap) in enumerate(zip(pairs[index], explanation.factual[index], strict=True)):
            expected = overlay(read_image(path), heatmap, OPACITY)
            column = picture[:, number * NARROWEST : number * NARROWEST + 48].astype(int)
            misses = [np.abs(column[top : top + 40] - expected).mean() for top in range(len(column) - 39)]
            assert min(misses) < 1, number  # somewhere below the words


def test_words_of_a_picture_are_drawn_in_lines_that_fit():
    assert _lettered("", 100).shape == (0, 100, 3)
    short, long = _lettered("at most 16.0%", 160), _lettered("at most 16.0% of something that is long to say", 160)
    assert short.shape[1] == long.shape[1] == 160
    assert len(long) >= len(short) + 2 * LETTERS
    assert (short[:, -3:] == 255).all()  # nothing is cut off
    assert short.min() < 60


def test_a_killed_run_goes_on_and_a_pair_is_explained_once(trained, pairs, tmp_path, monkeypatch):
    whole = explain_folder(trained, pairs, tmp_path / "whole")
    explain_folder(trained, pairs[:2], tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.npz")}
    asked = []
    explain = type(trained).explain
    monkeypatch.setattr(type(trained), "explain", lambda self, *some: asked.extend(some) or explain(self, *some))
    table = explain_folder(trained, pairs, tmp_path / "out")
    assert asked == pairs[2:]
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in before.items())
    assert table["files"].tolist() == whole["files"].tolist()
    assert table["distance"].tolist() == pytest.approx(whole["distance"].tolist(), abs=1e-3)


def test_a_changed_image_is_explained_anew(trained, tmp_path):
    write_images(tmp_path / "a", 2)
    pair = str(tmp_path / "a" / "0.png"), str(tmp_path / "a" / "1.png")
    before = explain_folder(trained, [pair], tmp_path / "out")
    write_images(tmp_path / "a", 1, size=(40, 40), seed=7)  # another 0.png
    after = explain_folder(trained, [pair], tmp_path / "out")
    assert before["distance"][0] != after["distance"][0]


def test_maps_of_other_weights_are_not_mixed(trained, pairs, tmp_path):
    explain_folder(trained, pairs[:1], tmp_path / "out")
    other = copy.deepcopy(trained.network)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(DataError, match="made otherwise \\(network\\)"):
        explain_folder(replace(trained, network=other), pairs[:1], tmp_path / "out")


def test_maps_made_otherwise_are_not_mixed(trained, pairs, tmp_path):
    explain_folder(trained, pairs[:1], tmp_path / "out")
    content = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(DataError, match="made otherwise \\(threshold\\): name another folder"):
        explain_folder(replace(trained, threshold=0.1), pairs, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == content


def test_an_image_that_cannot_be_decoded_has_a_line_that_says_why(trained, pairs, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    asked = [*pairs[:2], (str(broken), pairs[0][1])]
    table = explain_folder(trained, asked, tmp_path / "out")
    assert table["error"].notna().tolist() == [False, False, True]
    assert "broken.png" in table["error"][2]
    assert len(list((tmp_path / "out").glob("*.npz"))) == 2
    strict = replace(trained, config=trained.config.model_copy(update={"unreadable": "stop"}))
    with pytest.raises(DataError, match=r"broken\.png"):
        explain_folder(strict, asked, tmp_path / "strict")


def test_pairs_of_a_csv_file_and_of_two_folders(tmp_path):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b", 3)
    csv = tmp_path / "pairs.csv"
    csv.write_text("image1,image2\na/0.png,b/2.png\n")
    assert pairs_of(csv) == [(str(tmp_path / "a" / "0.png"), str(tmp_path / "b" / "2.png"))]
    assert len(pairs_of((tmp_path / "a", tmp_path / "b"))) == 6
    assert len(pairs_of((tmp_path / "a", tmp_path / "a"))) == 2  # no image beside itself


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("image1,other\na,b\n", "no column image2"),
        ("image1,image2\n", "holds no pair"),
        ("image1,image2\n\na/0.png,a/1.png\na/0.png,\n", "line 4: image2 is empty"),
        ("image1,image2\na/0.png,absent.png\n", r"line 2: image2 absent\.png is no file"),
        ("", "no column image1"),
        ("image1,image2\n\0,a", "no file"),
    ],
)
def test_a_csv_file_that_cannot_be_used(tmp_path, text, cause):
    write_images(tmp_path / "a", 2)
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(DataError, match=cause):
        pairs_of(tmp_path / "pairs.csv")


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "one", 1)
    for name, cause in (
        ("empty", "holds no image"),
        ("absent", "is not a folder"),
        ("one", "hold one image, the same"),
    ):
        with pytest.raises(DataError, match=cause):
            pairs_of((tmp_path / name, tmp_path / name))
    with pytest.raises(DataError, match="pairs: there is none"):
        pairs_of([])


def test_command_line(make_config, checkpoints, pairs, tmp_path, monkeypatch, capsys):
    make_config({"checkpoints_path": str(checkpoints)})
    lines = "\n".join(f"{one},{two}" for one, two in pairs[:2])
    (tmp_path / "pairs.csv").write_text(f"image1,image2\n{lines}\n")
    command = ["search", "--config", str(tmp_path / "config.yml"), "--pairs", str(tmp_path / "pairs.csv")]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out")])
    main()
    assert "2 pairs" in capsys.readouterr().out
    made_by = json.loads((tmp_path / "out" / "made_by.json").read_text())
    assert made_by["run"] == Path(made_by["run"]).name
    assert len(pd.read_csv(tmp_path / "out" / "scores.csv")) == 2
