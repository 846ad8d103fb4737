"""Corrections: read, refused by line, and applied wherever a class is asked for."""

import os
import shutil
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import write_images

from utils import audit_images, compare, explain, fit, gallery, load_splits, load_trained, scan
from utils.audit.labels import find_suspects
from utils.data import cache
from utils.data.corrections import DROP, Corrections, apply_corrections, apply_review, read_corrections, reviewed_images
from utils.data.images import images_below
from utils.data.reading import DataError, decode
from utils.data.splits import load_images, pairs_of_files
from utils.show import charts
from utils.show.folder import explain_folder
from utils.train.runs import current_run, fingerprint_of, load_checkpoint, run_names, save_checkpoint

ONE = {"hyperparameters.epochs": 1, "hyperparameters.verbose": False}
HEADER = "image,class,by,note\n"
REVIEW = "image,problem,suggestion,decision,note,by\n"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "corrections.csv"


@pytest.fixture
def corrected(make_config, file):
    """corrected(lines, changes) is a config with a file of these corrections."""

    def make(lines, changes=()):
        file.write_text(HEADER + lines)
        return make_config(dict(changes) | {"corrections": str(file)})

    return make


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images."""
    for seed, name in enumerate("ab"):
        write_images(tmp_path / "Data" / name, 3, seed=seed)
    return scan(tmp_path / "Data")


def classes_of(folder):
    """The class of each image by its name."""
    return {name: folder.classes[label] for name, label in zip(folder.names, folder.labels, strict=True)}


def message_of(work, *arguments):
    with pytest.raises(DataError) as caught:
        work(*arguments)
    return str(caught.value)


def test_images_have_another_class_or_are_left_out_and_the_others_stay(folder, file):
    file.write_text(f"{HEADER}a/0.png,b,me,clear\nb/2.png,{DROP},,\n")
    found = apply_corrections(folder, file)
    assert classes_of(found) == {"a/0.png": "b", "a/1.png": "a", "a/2.png": "a", "b/0.png": "b", "b/1.png": "b"}
    assert set(found.paths) == set(folder.paths) - {str(folder.root / "b" / "2.png")}
    assert len(found.stats) == len(found.labels) == len(found.paths) == 5
    assert "corrections: 1 of another class, 1 left out" in found.report()
    assert "corrections" not in folder.report()
    assert all(os.path.exists(path) for path in folder.paths)
    assert classes_of(apply_corrections(folder, None)) == classes_of(folder)


def test_each_image_keeps_its_own_pixels(corrected):
    config = corrected(f"blue/blue_3.png,{DROP},,\nred/red_0.png,blue,,\n")
    folder, pixels, duplicates = load_images(config)
    assert len(folder.paths) == len(pixels) == len(duplicates) == 29
    for index in (2, 3, 28):
        assert np.array_equal(pixels[np.array([index])][0], decode(folder.paths[index], pixels.size))


def test_the_cache_does_not_know_classes_and_decodes_nothing_again(corrected, make_config, monkeypatch):
    load_images(make_config())
    monkeypatch.setattr(cache, "decode", lambda *_: pytest.fail("decoded again"))
    before = {path: path.stat().st_mtime_ns for path in make_config().cache_path.iterdir()}
    load_images(corrected("red/red_0.png,blue,,\n"))
    assert {path: path.stat().st_mtime_ns for path in make_config().cache_path.iterdir()} == before
    load_images(corrected(f"red/red_0.png,{DROP},,\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,note\na/0.png,x\n", "lacks one of the columns image and class"),
        ("", "lacks one of the columns image and class"),
        ("image,class\na/9.png,b\n", "line 2: image a/9.png is no image of"),
        ("image,class\n0.png,b\n", "line 2: image 0.png is no image of"),
        ("image,class\n../Data/a/0.png,b\n", "line 2: image ../Data/a/0.png is no image of"),
        ("image,class\na/0.png,b\n\na\\1.png,b\n", "line 4: image a\\1.png is no image of"),
        ("image,class\n,b\n", "line 2: image is empty and is no image of"),
        ("image,class\na/0.png,c\n", "line 2: class c is no class of"),
        ("image,class\na/0.png,\n", "line 2: class is empty and is no class of"),
        (
            "image,class\na/0.png,b\na/1.png,b\na/0.png,drop\n",
            "line 4: the class of a/0.png is drop here and b in line 2",
        ),
        ("image,class\na/0.png,b\na/0.png,a\n", "line 3: the class of a/0.png is a here and b in line 2"),
        ('image,class,note\na/0.png,b,"two\nlines"\na/7.png,b,\n', "line 4: image a/7.png"),
        ("image,class,note\na/0.png,b,blurred, dark\n", "line 2: there are 4 values in 3 columns"),
        ('image,class\na/0.png,"b\n', "line 2: unexpected end of data"),
    ],
)
def test_errors_name_file_line_and_cure(folder, file, text, message):
    file.write_text(text)
    found = message_of(read_corrections, file, folder)
    assert message in found
    assert str(file) in found
    assert found.rstrip(".").rpartition(". ")[2]  # the cure


def test_files_that_are_missing_or_no_text(folder, file):
    assert "does not exist: name a CSV file, or set corrections: null" in message_of(read_corrections, file, folder)
    file.write_bytes("image,class\na/caf\u00e9.png,b\n".encode("cp1252"))
    assert "is not UTF-8" in message_of(read_corrections, file, folder)
    file.unlink()
    file.mkdir()
    assert "does not exist" in message_of(read_corrections, file, folder)


def test_two_equal_lines_and_the_class_of_the_own_folder_change_nothing_more(folder, file):
    file.write_text(f"{HEADER}a/0.png,b,me,\na/1.png,a,,fine\n\na/0.png , b,you,\n")
    assert read_corrections(file, folder) == {"a/0.png": "b"}
    assert read_corrections(None, folder) == {}


def test_a_class_named_as_the_word_for_leaving_out(folder, file):
    write_images(folder.root / DROP, 1)
    file.write_text(f"{HEADER}a/0.png,{DROP},,\n")
    assert "Rename its folder" in message_of(read_corrections, file, scan(folder.root))
    file.write_text(f"{HEADER}{DROP}/0.png,a,,\n")
    assert read_corrections(file, scan(folder.root)) == {f"{DROP}/0.png": "a"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_unicode_forms_and_the_files_of_spreadsheets(tmp_path, file, delimiter, encoding, forms):
    written, stored = (unicodedata.normalize(form, "caf\u00e9") for form in forms)
    assert written != stored
    write_images(tmp_path / "Data" / stored, 1)
    write_images(tmp_path / "Data" / "b", 1, seed=1)
    (tmp_path / "Data" / stored / "0.png").rename(tmp_path / "Data" / stored / f"{stored}.png")
    lines = [("note", "class", "image"), ("x", "b", f"{written}/{written}.png"), ("y", written, "b/0.png")]
    text = "\r\n".join(delimiter.join(cells) for cells in lines)
    file.write_bytes(text.encode(encoding))
    found = read_corrections(file, scan(tmp_path / "Data"))
    assert found == {f"{stored}/{stored}.png": "b", "b/0.png": stored}


def test_of_two_files_of_one_name_in_two_forms_each_is_found(tmp_path, file):
    composed, decomposed = (unicodedata.normalize(form, "\u00e9") for form in ("NFC", "NFD"))
    for seed, name in enumerate("ab"):
        write_images(tmp_path / "Data" / name, 1, seed=seed)
    for name in (composed, decomposed):
        shutil.copy(tmp_path / "Data" / "a" / "0.png", tmp_path / "Data" / "a" / f"{name}.png")
    if len(os.listdir(tmp_path / "Data" / "a")) < 3:
        pytest.skip("the file system has one form only")
    file.write_text(f"{HEADER}a/{composed}.png,b,,\na/{decomposed}.png,{DROP},,\n", encoding="utf-8")
    found = read_corrections(file, scan(tmp_path / "Data"))
    assert found == {f"a/{composed}.png": "b", f"a/{decomposed}.png": None}


def test_the_fingerprint_is_of_the_content(corrected, make_config, file, tmp_path):
    def fingerprint(config):
        return fingerprint_of(config, load_splits(config))

    plain = fingerprint(make_config())
    first = fingerprint(corrected("red/red_0.png,blue,me,\nred/red_1.png,green,,\n"))
    assert first["settings"] == plain["settings"]
    assert first["images"] != plain["images"]
    assert fingerprint(corrected("red/red_0.png,blue,,\n")) not in (plain, first)
    assert fingerprint(corrected("red/red_0.png,green,,\nred/red_1.png,blue,,\n")) not in (plain, first)
    assert fingerprint(corrected(f"red/red_0.png,{DROP},,\n")) not in (plain, first)
    other_words = "red/red_1.png,green,you,sure\nblue/blue_0.png,blue,,fine\nred/red_0.png,blue,,\n"
    assert fingerprint(corrected(other_words)) == first
    shutil.move(file, tmp_path / "elsewhere.csv")
    assert fingerprint(make_config({"corrections": str(tmp_path / "elsewhere.csv")})) == first
    assert fingerprint(corrected("red/red_0.png,red,,\n")) == plain


def test_other_corrections_are_another_run_and_are_told(corrected, make_config, capsys):
    config = make_config(ONE)
    fit(config)
    load_trained(config)
    assert "corrections" not in capsys.readouterr().out
    lines = "red/red_0.png,blue,,\n"
    config = corrected(lines, ONE)
    assert load_trained(config)
    output = capsys.readouterr().out
    assert "corrections: those of 1 images have changed since training: red/red_0.png." in output
    fit(config)
    names = run_names(config.checkpoints_path)
    assert len(names) == 2
    assert len({name[-6:] for name in names}) == 2
    capsys.readouterr()
    trained = load_trained(config)
    trained.load_splits()
    assert "changed" not in capsys.readouterr().out
    fit(config)
    assert len(run_names(config.checkpoints_path)) == 2
    load_trained(corrected(f"{lines}red/red_1.png,{DROP},,\n", ONE)).load_splits()
    output = capsys.readouterr().out
    assert "corrections: those of 1 images have changed since training: red/red_1.png." in output
    assert "or their corrections have changed since training: test pairs may hold training images" in output


def test_a_checkpoint_of_an_earlier_version_loads(make_config, capsys):
    config = make_config(ONE)
    fit(config)
    path = current_run(config.checkpoints_path) / "best.pt"
    content = load_checkpoint(path)
    del content["corrections"], content["config"]["corrections"]
    save_checkpoint(path, content)
    capsys.readouterr()
    load_trained(config).load_splits()
    assert "changed" not in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(4))
def test_no_split_holds_a_dropped_image_and_each_has_the_corrected_class(corrected, seed):
    dropped = [f"green/green_{number}.png" for number in range(4)]
    lines = "".join(f"{name},{DROP},,\n" for name in dropped)
    splits = load_splits(corrected(f"{lines}red/red_0.png,blue,,\n", {"seed": seed}))
    everywhere = np.concatenate([splits.train, splits.valid, splits.test])
    names = np.array(splits.folder.names)
    assert not set(names[everywhere]) & set(dropped)
    assert sorted(everywhere) == list(range(26))
    assert splits.table().loc["blue", ["train", "validation", "test"]].sum() == 11
    assert splits.table().loc["green", ["train", "validation", "test"]].sum() == 6
    labels = splits.folder.labels
    for pairs in (splits.valid_pairs, splits.test_pairs):
        assert ((labels[pairs.first] != labels[pairs.second]) == pairs.labels).all()


def test_a_dropped_image_is_not_among_the_unreadable_ones(folder, make_config, file):
    for seed, name in enumerate("ab"):
        write_images(folder.root / name, 8, seed=seed)
    (folder.root / "a" / "broken.png").write_bytes(b"no image")
    changes = {"data_path": str(folder.root), "unreadable": "stop"}
    assert "broken.png" in message_of(load_splits, make_config(changes))
    file.write_text(f"{HEADER}a/broken.png,{DROP},,\n")
    config = make_config(changes | {"corrections": str(file)})
    assert load_splits(config).unreadable.empty
    assert "Cannot be read" not in str(audit_images(*load_images(config)))


def test_a_class_without_images_is_told(corrected, capsys):
    lines = "".join(f"red/red_{number}.png,{DROP},,\n" for number in range(10))
    config = corrected(lines)
    assert load_splits(config).table().loc["red", "train"] == 0
    assert "No image is left of red." in capsys.readouterr().out
    audit = str(audit_images(*load_images(config)))
    assert "No image is left of red" in audit
    assert "Small classes (1): red (0)" in audit
    assert "Unequal classes (1): red (0)" in audit
    lines += "".join(f"green/green_{number}.png,blue,,\n" for number in range(10))
    assert "Pairs need images of two classes" in message_of(load_splits, corrected(lines))
    lines = "".join(f"{name},{DROP},,\n" for name in scan(config.data_path).names)
    assert "all images of" in message_of(load_splits, corrected(lines))


def test_copies_of_two_classes_no_longer_contradict_once_one_is_corrected(folder, make_config, file):
    shutil.copy(folder.root / "a" / "0.png", folder.root / "b" / "copy.png")
    changes = {"data_path": str(folder.root)}
    assert "Contradictions (1): a/0.png = b/copy.png" in str(audit_images(*load_images(make_config(changes))))
    file.write_text(f"{HEADER}b/copy.png,a,,\n")
    images, pixels, duplicates = load_images(make_config(changes | {"corrections": str(file)}))
    assert "Contradictions" not in str(audit_images(images, pixels, duplicates))
    labels = [axes.get_xlabel() for axes in charts.duplicates_figure(images, duplicates).axes]
    assert labels == ["a\n0.png", "a\ncopy.png"]


@pytest.fixture
def loaded(corrected, calibrated_checkpoints):
    """loaded(lines) is the calibrated network, with corrections."""
    return lambda lines: load_trained(corrected(lines, {"checkpoints_path": str(calibrated_checkpoints)}))


def test_explanations_have_the_actual_classes(loaded, tiny_data, tmp_path):
    paths = [str(tiny_data / name) for name in ("red/red_0.png", "blue/blue_0.png", "red/red_1.png")]
    pairs = [(paths[0], paths[1]), (paths[0], paths[2])]
    before, after = loaded(""), loaded("red/red_0.png,blue,,\n")
    explanation = after.explain(*pairs)
    assert before.explain(*pairs).source.classes == (("red", "blue"), ("red", "red"))
    assert explanation.source.classes == (("blue", "blue"), ("blue", "red"))
    assert "both are blue" in explanation.sentence(0)
    assert explanation.names[0][0] == before.explain(*pairs).names[0][0]
    elsewhere = tmp_path / "other" / "red"
    elsewhere.mkdir(parents=True)
    shutil.copy(paths[0], elsewhere)
    assert after.explain((str(elsewhere / "red_0.png"), paths[1])).source.classes == (None,)
    drawn = pairs_of_files(pairs, after.corrections.folder_of)
    assert drawn.labels.tolist() == [0, 1]
    table = explain_folder(after, pairs, tmp_path / "maps")
    assert table["class 1"].tolist() == ["blue", "blue"]
    with pytest.raises(DataError, match="of other settings \\(corrections\\)"):
        explain_folder(loaded("red/red_0.png,green,,\n"), pairs, tmp_path / "maps")


def test_galleries_have_the_actual_classes_and_no_dropped_image(loaded, tiny_data, capsys):
    trained = loaded(f"red/red_0.png,blue,,\nred/red_1.png,{DROP},,\n")
    for root, start in ((tiny_data, ""), (tiny_data.parent, f"{tiny_data.name}/")):
        images = gallery(trained, root)
        found = dict(zip(images.names, images.classes, strict=True))
        assert len(images) == 29
        assert found[f"{start}red/red_0.png"] == f"{start}blue"
        assert found[f"{start}red/red_2.png"] == f"{start}red"
        assert f"{start}red/red_1.png" not in found
        assert "left out, as corrections say: 1" in capsys.readouterr().out
    assert set(gallery(trained, tiny_data / "red").classes) == {""}
    splits = trained.load_splits()
    images = gallery(trained)
    assert images.classes == tuple(splits.folder.classes[label] for label in splits.folder.labels[splits.test])
    lines = "".join(f"red/red_{number}.png,{DROP},,\n" for number in range(10))
    assert "name another folder" in message_of(gallery, loaded(lines), tiny_data / "red")


def test_a_folder_beside_the_dataset_has_its_own_classes(loaded, tiny_data, tmp_path):
    shutil.copytree(tiny_data / "red", tmp_path / "other" / "red")
    images = gallery(loaded(f"red/red_0.png,blue,,\nred/red_1.png,{DROP},,\n"), tmp_path / "other")
    assert set(images.classes) == {"red"}
    assert len(images) == len(images_below(tmp_path / "other")[0]) == 10


def test_suspects_and_references_have_the_actual_classes(loaded):
    plain = loaded("")
    reference = next(name for name in plain.references.names if name.startswith("red/"))
    splits = plain.load_splits()
    suspect = next(
        splits.folder.names[index] for index in splits.test if splits.folder.names[index].startswith("green")
    )
    trained = loaded(f"{reference},blue,,\n{suspect},red,,\n")
    assert trained.references.corrected == {reference: "blue"}
    table = find_suspects(trained, trained.load_splits()).images.set_index("image")
    assert suspect not in table.index or table.loc[suspect, "label"] == "red"
    lines = "".join(f"{name},blue,,\n" for name in plain.references.names if name.startswith("red/"))
    paths = splits.folder.paths
    blue = [path for path in paths if Path(path).parent.name == "blue"][:2]
    donors = loaded(lines).donors(loaded(lines).explain(tuple(blue)))
    assert donors is not None
    assert all(Path(path).parent.name == "green" for _, path in donors.source.paths)


def test_methods_are_compared_by_the_actual_classes(loaded, tiny_data):
    """Of one pair, the share that is correctly decided is turned over when the pair becomes one of two classes."""
    method = {"gradcam": partial(explain, method="gradcam", layer="last")}
    pair = str(tiny_data / "red" / "red_0.png"), str(tiny_data / "red" / "red_1.png")
    rows = []
    for trained in (loaded(""), loaded("red/red_0.png,blue,,\n")):
        rows += compare(method, trained, [pair], trained.load_splits(), probed={"gradcam": 1})
    assert rows[0].inserted + rows[1].inserted == pytest.approx(1)
    assert rows[0].deleted + rows[1].deleted == pytest.approx(1)
    assert rows[0].inserted != rows[1].inserted


def test_where_the_images_are_out_of_reach_the_network_loads(corrected, calibrated_checkpoints, tmp_path):
    changes = {"checkpoints_path": str(calibrated_checkpoints), "data_path": str(tmp_path / "absent")}
    assert load_trained(corrected("red/red_0.png,blue,,\n", changes)).corrections.classes == {}


def test_folders_of_images_by_their_corrections(tmp_path, monkeypatch):
    (tmp_path / "Data" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    corrections = Corrections(Path("Data"), {"a/0.png": "b", "a/1.png": None})
    assert corrections.folder_of("Data/a/0.png") == Path("Data/b")
    assert corrections.folder_of(tmp_path / "Data" / "a" / "0.png") == tmp_path / "Data" / "b"
    assert corrections.folder_of("Data/a/1.png") == corrections.folder_of("Data/a/2.png") == Path("Data/a")
    assert corrections.folder_of("a/0.png") == Path("a")
    assert [corrections.drops(f"Data/a/{number}.png") for number in range(3)] == [False, True, False]
    assert not corrections.drops("a/1.png")


def test_a_review_becomes_corrections(folder, tmp_path, file):
    review = tmp_path / "review.csv"
    lines = [
        "a/0.png,label,b,wrong,clear,me",
        "a/1.png,label,b,correct,,me",
        "a/2.png,near-duplicate,,wrong,,me",
        "b/0.png,dark,,unsure,,me",
        'b/1.png,size,,wrong,"small, blurred",me',
        "b/0.png,unreadable,,correct,,",
    ]
    review.write_text(REVIEW + "\n".join(lines))
    text = apply_review(review, file, folder)
    assert "another class: 1, dropped: 2, labels confirmed: 1, left as they are: 1." in " ".join(text.split())
    assert read_corrections(file, folder) == {"a/0.png": "b", "a/2.png": None, "b/1.png": None}
    table = pd.read_csv(file, keep_default_na=False)
    assert table.columns.tolist() == ["image", "class", "by", "note"]
    assert table[["image", "class"]].to_numpy().tolist()[0] == ["a/1.png", "a"]  # confirmed
    assert table["note"].tolist() == ["", "clear", "", "small, blurred"]
    assert table["by"].tolist() == ["me"] * 4
    assert reviewed_images(file, folder.root) == {"a/0.png", "a/1.png", "a/2.png", "b/1.png"}
    before = file.read_bytes()
    assert "4 of these lines stood in" in apply_review(review, file, folder)
    assert file.read_bytes() == before


def test_a_second_review_adds_to_the_first_and_wins(folder, tmp_path, file):
    review = tmp_path / "review.csv"
    file.write_text("image;class;date;note\na/1.png;b;May;old\na/0.png;b;June;x\nb/0.png;drop;;kept\na/1.png;b;July;\n")
    review.write_text(
        "decision,image,problem,suggestion\nwrong,a/1.png,dark,\nwrong,b/2.png,label,a\ncorrect,b/0.png,dark,"
    )
    text = apply_review(review, file, folder)
    assert f"Replaced in {file}, as the review is newer: a/1.png (b, now drop)." in text
    table = pd.read_csv(file, keep_default_na=False)
    assert table[["image", "class"]].to_numpy().tolist() == [
        ["a/0.png", "b"],
        ["b/0.png", "drop"],
        ["a/1.png", "drop"],
        ["b/2.png", "a"],
    ]
    assert table["date"].tolist() == ["June", "", "", ""]
    assert table["note"].tolist() == ["x", "kept", "", ""]


def test_a_review_of_unsure_ones_writes_nothing(folder, tmp_path, file):
    review = tmp_path / "review.csv"
    review.write_text(f"{REVIEW}a/0.png,label,b,unsure,,\n")
    assert "labels confirmed: 0, left as they are: 1." in apply_review(review, file, folder)
    assert not file.exists()


def test_a_change_of_mind_withdraws_a_correction(folder, tmp_path, file):
    """The suggestion that was taken is now incorrect; a correction to another class is confirmed."""
    file.write_text("image,class\na/0.png,b\na/1.png,b\n")
    review = tmp_path / "review.csv"
    review.write_text(f"{REVIEW}a/0.png,label,b,correct,,\na/1.png,label,a,correct,,\n")
    text = apply_review(review, file, folder)
    assert "a/0.png (b, now a)" in text
    assert read_corrections(file, folder) == {"a/1.png": "b"}


@pytest.mark.parametrize("chosen", ["c", "drop"])
def test_a_change_of_mind_withdraws_a_choice_that_was_not_suggested(tmp_path, file, chosen):
    """The page suggests b, another class is chosen and applied, and then the label is found to be correct."""
    for name in "abc":
        write_images(tmp_path / "Data" / name, 1, (8, 8))
    folder = scan(tmp_path / "Data")
    review = tmp_path / "review.csv"
    for suggestion, decision in ((chosen, "wrong"), ("b", "correct")):
        review.write_text(f"image,class,problem,suggestion,decision\na/0.png,a,label,{suggestion},{decision}\n")
        text = apply_review(review, file, folder)
    assert f"a/0.png ({chosen}, now a)" in text
    assert read_corrections(file, folder) == {}


def test_leaving_out_wins_over_another_class(folder, tmp_path, file):
    review = tmp_path / "review.csv"
    for lines in (["label,b,wrong", "dark,,wrong"], ["dark,,wrong", "label,b,wrong", "dark,,unsure"]):
        file.unlink(missing_ok=True)
        review.write_text("image,problem,suggestion,decision\n" + "".join(f"a/0.png,{line}\n" for line in lines))
        apply_review(review, file, folder)
        assert read_corrections(file, folder) == {"a/0.png": None}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a/9.png,label,b,wrong,,\n", "line 2: image a/9.png is no image of"),
        ("a/0.png,label,b,correct,,\na/1.png,label,c,wrong,,\n", "line 3: suggestion c is no class of"),
        ("a/0.png,label,,wrong,,\n", "line 2: suggestion is empty and is no class of"),
        ("a/0.png,colour,,wrong,,\n", "line 2: problem colour is refused. Write one of label, near-duplicate"),
        ("a/0.png,dark,,yes,,\n", "line 2: decision yes is refused. Write one of correct, wrong, unsure"),
        ("a/0.png,dark,,,,\n", "line 2: decision is empty and is refused"),
        (
            "a/0.png,label,b,wrong,,\na/0.png,label,a,wrong,,\n",
            "line 3: the class of a/0.png is a here and b in line 2",
        ),
        (
            "a/0.png,dark,,wrong,,\na/0.png,dark,,correct,,\n",
            "line 3: dark of a/0.png is correct here and wrong in line 2",
        ),
    ],
)
def test_errors_of_a_review_name_its_line_and_nothing_is_written(folder, tmp_path, file, lines, message):
    review = tmp_path / "review.csv"
    review.write_text(REVIEW + lines)
    found = message_of(apply_review, review, file, folder)
    assert found.startswith(f"{review}, {message}")
    assert not file.exists()


def test_a_file_that_cannot_be_used_is_not_overwritten(folder, tmp_path, file):
    review = tmp_path / "review.csv"
    review.write_text(f"{REVIEW}a/0.png,label,b,wrong,,\n")
    for content, message in (("image,class\na/8.png,b\n", f"{file}, line 2"), ("x\n", "lacks one of the columns")):
        file.write_text(content)
        assert message in message_of(apply_review, review, file, folder)
        assert file.read_text() == content
    review.write_text("image,problem\n")
    assert "image, problem, suggestion and decision" in message_of(apply_review, review, file, folder)
    assert "cannot be read" in message_of(apply_review, tmp_path / "absent.csv", tmp_path / "new.csv", folder)


def test_a_delimiter_in_the_name_of_a_column(folder, file):
    file.write_text('image,"note, free",class\na/0.png,"clear, to me",b\n')
    assert read_corrections(file, folder) == {"a/0.png": "b"}


def test_bytes_of_a_name_that_are_not_text_as_tables_write_them(folder, tmp_path, file):
    odd = folder.root / "a" / "\udcff.png"
    os.rename(folder.paths[0], odd)
    folder = scan(folder.root)
    review = tmp_path / "review.csv"
    review.write_text(REVIEW + "a/\\udcff.png,label,b,wrong,,me\n")
    apply_review(review, file, folder)
    assert read_corrections(file, folder) == {"a/\udcff.png": "b"}
