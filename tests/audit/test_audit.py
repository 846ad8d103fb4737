import sys

import numpy as np
import pandas as pd
import pytest
from helpers import write_images
from PIL import Image

from utils.__main__ import main
from utils.audit.images import audit_images
from utils.data.splits import load_images

SIZE = (40, 40)


def noise(random, mean=128, spread=40, size=SIZE):
    pixels = random.normal(mean, spread, (*size, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Three classes of 24 images that no property tells apart."""
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        place = tmp_path / "data" / name
        place.mkdir(parents=True)
        for number in range(24):
            size = tuple(random.integers(36, 60, size=2))
            noise(random, random.uniform(90, 160), size=size).save(place / f"{number}.{('png', 'jpg')[number % 2]}")
    return tmp_path / "data"


@pytest.fixture
def look(make_config, folder):
    def look():
        return audit_images(*load_images(make_config({"data_path": str(folder), "hyperparameters.verbose": False})))

    return look


def cues(audit):
    return {(cue.property, cue.name) for cue in audit.cues}


def changed(folder, name, change):
    """Each image of a class as `change` makes it, under the same file name."""
    for path in sorted((folder / name).iterdir()):
        with Image.open(path) as image:
            image.load()
        change(image).save(path)


def test_no_problems_found(look, folder):
    assert str(look()).splitlines() == [f"72 images of 3 classes in {folder}", "No problems found in the files."]


def test_a_class_revealed_by_its_brightness(look, folder):
    changed(folder, "b", lambda image: image.point(lambda value: value // 3))
    audit = look()
    assert cues(audit) == {("brightness", "b")}
    assert "Revealed by brightness (1): b (AUC 1.00: darker than others)" in str(audit)
    assert "image.brightness" in str(audit)


def test_a_class_revealed_by_its_size(look, folder):
    changed(folder, "a", lambda image: image.resize((2 * image.width, 2 * image.height)))
    audit = look()
    assert cues(audit) == {("size in pixels", "a")}
    assert "a (AUC 1.00: larger than others)" in str(audit)


def test_a_class_revealed_by_its_aspect_and_the_one_size_of_all_its_images(look, folder):
    """No larger and no smaller than others on the whole, but all similar."""
    changed(folder, "c", lambda image: image.resize((96, 24)))
    assert cues(look()) == {("aspect ratio", "c"), ("size in pixels", "c")}
    assert {cue.difference for cue in look().cues} == {"wider than others", "similar in all of its images"}


def test_images_that_exif_turns_are_measured_upright(look, folder):
    """Half of a class is stored lying down: upright, all are higher than wide."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, path in enumerate(sorted((folder / "a").iterdir())):
        upright = Image.new("RGB", (30, 60)) if number % 2 else Image.new("RGB", (60, 30))
        upright.save(path, exif=Image.Exif() if number % 2 else exif)
    assert ("aspect ratio", "a") in cues(look())
    assert any("higher than others" in str(cue) for cue in look().cues)


def test_a_class_revealed_by_its_format(look, folder):
    for path in sorted((folder / "b").iterdir()):
        with Image.open(path) as image:
            image.save(path.with_suffix(".webp"))
        path.unlink()
    audit = look()
    assert cues(audit) == {("file format", "b")}
    assert "100% WEBP, 0% of the others" in str(audit)


def test_few_images_tell_nothing(make_config, tmp_path):
    """By chance the darkest of three: too few to say so."""
    for number, name in enumerate(("a", "b")):
        write_images(tmp_path / "data" / name, 3, seed=number)
    Image.new("RGB", (30, 30)).save(tmp_path / "data" / "a" / "0.png")
    audit = audit_images(*load_images(make_config({"data_path": str(tmp_path / "data")})))
    assert audit.cues == []
    assert audit.small_classes() == {"a": 3, "b": 3}


def test_copies_contradictions_and_unreadable_files(look, folder):
    random = np.random.default_rng(9)
    picture = noise(random, size=(5, 5)).resize(SIZE, Image.Resampling.BICUBIC)
    other = noise(random, size=(5, 5)).resize(SIZE, Image.Resampling.BICUBIC)
    picture.save(folder / "a" / "x.png")
    picture.save(folder / "b" / "y.jpg", quality=80)
    other.save(folder / "c" / "z1.png")
    other.save(folder / "c" / "z2.png")
    (folder / "c" / "broken.png").write_bytes(b"no image")
    text = str(look())
    assert "Cannot be read (1): c/broken.png (" in text
    assert "Byte-identical (1): c/z1.png = c/z2.png. They stay in one split" in text
    assert "Near-duplicates (1): a/x.png = b/y.jpg." in text
    assert "Contradictions (1): a/x.png = b/y.jpg." in text


def test_small_and_unequal_classes(look, folder):
    (folder / "few").mkdir()
    random = np.random.default_rng(5)
    for number in range(2):
        noise(random).save(folder / "few" / f"{number}.png")
    Image.open(folder / "few" / "0.png").save(folder / "few" / "copy.bmp")
    text = str(look())
    assert "Small classes (1): few (2). Fewer than 6 different images" in text  # a copy does not count
    assert "Unequal classes" not in text
    (folder / "few" / "copy.bmp").unlink()
    assert "Unequal classes (1): few (2). The largest class, a, has 24 images" in str(look())


def test_the_command(folder, monkeypatch, capsys, tmp_path):
    """Problems, their review by a person, and the corrections that come from it."""
    (folder / "a" / "broken.png").write_bytes(b"no image")
    file = tmp_path / "corrections.csv"
    file.write_text("image,class,by,note\n")
    settings = "--set", f"data_path={folder}", "cache_path=null", f"results_path={tmp_path}", f"corrections={file}"
    run(monkeypatch, "audit", *settings)
    shown = capsys.readouterr().out
    for text in (
        f"73 images of 3 classes in {folder}",
        "Cannot be read (1)",
        "72 of 73 labels were judged",
        "review.html",
    ):
        assert text in shown
    assert "to review: " in (tmp_path / "review.html").read_text()
    table = pd.read_csv(tmp_path / "problems.csv")
    assert table["image"].iloc[0] == "a/broken.png"
    reviewed = table[["image", "problem", "suggestion"]].assign(decision="wrong", note="", by="me")
    reviewed.to_csv(tmp_path / "saved.csv", index=False)
    run(monkeypatch, "audit", "--apply", str(tmp_path / "saved.csv"), *settings)
    corrected = pd.read_csv(file).set_index("image")["class"]
    assert corrected["a/broken.png"] == "drop"
    assert len(corrected) == len(table)
    capsys.readouterr()
    run(monkeypatch, "audit", *settings)
    assert "Cannot be read" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="data_path: nowhere is not a folder"):
        run(monkeypatch, "audit", "--set", "data_path=nowhere")


def run(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["utils", *options])
    main()
