import copy
import json
import re
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import write_images

from utils import DataError, explain_folder, overlay
from utils.__main__ import main
from utils.data.reading import read_image
from utils.files import FileError
from utils.show import folder
from utils.show.drawing import COLORMAP, GREY, OPACITY
from utils.show.folder import LETTERS, NARROWEST, _lettered, pairs_of
from utils.trust.faithfulness import FAITHFUL, WEAK


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
        colours = COLORMAP if row["maps"] in (FAITHFUL, WEAK) else GREY
        with np.load(tmp_path / "out" / f"{row['files']}.npz", allow_pickle=False) as content:
            assert np.allclose(content["factual"], explanation.factual[index].numpy(), atol=2e-2)
            assert np.allclose(content["counterfactual"], explanation.counterfactual[index].numpy(), atol=2e-2)
        picture = read_image(tmp_path / "out" / f"{row['files']}.png")
        for number, (path, heatmap) in enumerate(zip(pairs[index], explanation.factual[index], strict=True)):
            expected = overlay(read_image(path), heatmap, OPACITY, colours)
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


def test_a_full_disk_ends_the_run_before_all_is_explained(trained, pairs, tmp_path, monkeypatch):
    def refused(*content):
        raise FileError("No space left on device")

    explained, batches = folder._explained, []
    monkeypatch.setattr(folder, "BATCH", 1)
    monkeypatch.setattr(folder, "_write", refused)
    monkeypatch.setattr(folder, "_explained", lambda *given: batches.append(given) or explained(*given))
    with pytest.raises(FileError, match="No space left"):
        explain_folder(trained, pairs, tmp_path / "out")
    assert len(batches) == folder.WRITERS + 1 < len(pairs)


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
    with pytest.raises(DataError, match="of other settings \\(network\\)"):
        explain_folder(replace(trained, network=other), pairs[:1], tmp_path / "out")


def test_maps_made_otherwise_are_not_mixed(trained, pairs, tmp_path):
    explain_folder(trained, pairs[:1], tmp_path / "out")
    content = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(DataError, match="of other settings \\(threshold\\): name another folder"):
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
        ("image1,other\na,b\n", "lacks one of the columns image1 and image2"),
        ("image1,image2\n", "holds no pair"),
        ("image1,image2\n\na/0.png,a/1.png\na/0.png,\n", "line 4: image2 is empty"),
        ("image1,image2\na/0.png,absent.png\n", r"line 2: image2 absent\.png is no file"),
        ("", "lacks one of the columns image1 and image2"),
        ("image1,image2\n\0,a", "no file"),
    ],
)
def test_a_csv_file_that_cannot_be_used(tmp_path, text, cause):
    write_images(tmp_path / "a", 2)
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(DataError, match=cause):
        pairs_of(tmp_path / "pairs.csv")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_csv_files_as_spreadsheets_save_them(tmp_path, delimiter, encoding):
    """Excel writes commas or semicolons, by country, with a byte order mark; "Unicode text" is UTF-16 with tabs."""
    write_images(tmp_path / "caf\u00e9", 2)
    header = delimiter.join((" image1 ", "note", " image2"))
    line = delimiter.join(("caf\u00e9/0.png", "x", " caf\u00e9/1.png "))
    text = f"{header}\r\n{line}\r\n"
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    (tmp_path / "pairs.csv").write_bytes(mark + text.encode(encoding))
    assert pairs_of(tmp_path / "pairs.csv") == [
        tuple(str(tmp_path / "caf\u00e9" / name) for name in ("0.png", "1.png"))
    ]


@pytest.mark.parametrize("name", ["caf\u00e9", "\u00c5ngstr\u00f6m", "\uac00"])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_of_a_csv_file_in_another_unicode_form(tmp_path, name, forms):
    told, stored = (unicodedata.normalize(form, name) for form in forms)
    assert told != stored
    write_images(tmp_path / stored, 1)
    (tmp_path / stored / "0.png").rename(tmp_path / stored / f"{stored}.png")
    (tmp_path / "pairs.csv").write_text(f"image1,image2\n{told}/{told}.png,{stored}/{told}.png\n")
    assert pairs_of(tmp_path / "pairs.csv") == [(str(tmp_path / stored / f"{stored}.png"),) * 2]


def test_empty_rows_and_further_columns_of_a_csv_file_are_skipped(tmp_path):
    write_images(tmp_path / "a", 2)
    file = tmp_path / "pairs.csv"
    file.write_text("image2,note,image1,,\n\na/0.png,x,a/1.png,,\n,,,,\na/1.png,,a/0.png,,,\n")
    first, second = (str(tmp_path / "a" / name) for name in ("0.png", "1.png"))
    assert pairs_of(file) == [(second, first), (first, second)]


def test_names_with_spaces_at_their_ends_stay_as_they_are(tmp_path):
    write_images(tmp_path, 2)
    (tmp_path / "0.png").rename(tmp_path / " 1.png")
    (tmp_path / "pairs.csv").write_text("image1,image2\n 1.png,1.png\n")
    assert pairs_of(tmp_path / "pairs.csv") == [(str(tmp_path / " 1.png"), str(tmp_path / "1.png"))]


def test_cures_of_csv_files_end_their_errors(tmp_path):
    write_images(tmp_path / "caf\u00e9", 2)
    file = tmp_path / "pairs.csv"
    good = "caf\u00e9/0.png,caf\u00e9/1.png\n"
    file.write_bytes(f"image1,image2\n{good}".encode("cp1252"))
    with pytest.raises(DataError, match='is not UTF-8: save it as "CSV UTF-8"'):
        pairs_of(file)
    file.write_text(f"image1,image2\n{good}", encoding="utf-8-sig")
    assert len(pairs_of(file)) == 1
    for header in ("first,second", "image1;image 2", "sep=;", "my_image1,image2"):
        file.write_text(f"{header}\n{good}")
        with pytest.raises(DataError, match="Name the columns image1 and image2 there") as caught:
            pairs_of(file)
        assert repr(header) in str(caught.value)
    file.write_text(f"image1,image2\n{good}")
    assert len(pairs_of(file)) == 1
    for line in ("absent.png,absent.png", "caf\u00e9\\0.png,caf\u00e9\\1.png", ",caf\u00e9/1.png"):
        file.write_text(f"image1,image2\n{good}{line}\n{good}")
        with pytest.raises(DataError, match=r"line 3: .* Correct or delete the line; paths are relative to"):
            pairs_of(file)
        file.write_text(f"image1,image2\n{good}{good}")  # the line is deleted
        assert len(pairs_of(file)) == 2


def test_a_pair_that_comes_twice_is_explained_once_and_has_two_lines(trained, pairs, tmp_path, monkeypatch):
    asked = []
    explain = type(trained).explain
    monkeypatch.setattr(type(trained), "explain", lambda self, *some: asked.extend(some) or explain(self, *some))
    lines = "\n".join(f"{one},{two}" for one, two in [pairs[0], pairs[1], pairs[0], pairs[0]])
    (tmp_path / "pairs.csv").write_text(f"image1,image2\n{lines}\n")
    table = explain_folder(trained, tmp_path / "pairs.csv", tmp_path / "out")
    assert asked == pairs[:2]
    names = table["files"].tolist()
    assert names[0] == names[2] == names[3] != names[1]
    assert table["distance"][0] == table["distance"][2]
    assert len(list((tmp_path / "out").glob("*.npz"))) == 2
    swapped = explain_folder(trained, [pairs[0], pairs[0][::-1], pairs[0]], tmp_path / "swapped")
    assert swapped["files"].nunique() == 2


def test_what_a_folder_holds_besides_images_is_counted_and_passed_over(tmp_path, capsys):
    write_images(tmp_path / "a", 2)
    for name in ("._0.png", ".DS_Store", "Thumbs.db"):
        (tmp_path / "a" / name).write_bytes(b"\0\5\26\7")
    (tmp_path / "a" / "album.png").mkdir()
    (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
    assert len(pairs_of((tmp_path / "a", tmp_path / "a"))) == 2
    assert f"{tmp_path}/a: skipped: 2 hidden, 1 .db, 1 broken links, 1 subfolders" in capsys.readouterr().out


def test_what_is_no_pair_is_told_so(tmp_path):
    write_images(tmp_path, 2)
    files = [str(tmp_path / name) for name in ("0.png", "1.png")]
    with pytest.raises(DataError, match=re.escape("is not a folder: name two folders of images; a pair of files is [")):
        pairs_of(files)
    assert pairs_of([(files[0], files[1])]) == [tuple(files)]
    for wrong in ([files[0]], [(files[0],)], [(*files, files[0])], files * 2):
        with pytest.raises(DataError, match="is no pair: give tuples of two image files"):
            pairs_of(wrong)


@pytest.mark.parametrize("content", ["", "{", "[1, 2", "\x00"])
def test_a_damaged_note_of_what_made_the_maps(trained, pairs, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "made_by.json").write_text(content)
    with pytest.raises(DataError, match=r"made_by\.json is damaged.*: name another folder"):
        explain_folder(trained, pairs[:1], tmp_path / "out")
    assert (tmp_path / "out" / "made_by.json").read_text() == content
    assert len(explain_folder(trained, pairs[:1], tmp_path / "other")) == 1


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
    command = ["utils", "explain", "--config", str(tmp_path / "config.yml"), "--pairs", str(tmp_path / "pairs.csv")]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out")])
    main()
    assert "2 pairs" in capsys.readouterr().out
    made_by = json.loads((tmp_path / "out" / "made_by.json").read_text())
    assert made_by["run"] == Path(made_by["run"]).name
    assert len(pd.read_csv(tmp_path / "out" / "scores.csv")) == 2
