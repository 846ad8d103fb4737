"""One list of a folder's images, wherever a folder is named; and folders as archives, phones and other systems leave
them: found, or refused with a cure that, followed to the letter, ends the error."""

import os
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
from helpers import write_images

from utils.data.images import actual_path, images_below, list_folder, scan
from utils.data.reading import DataError
from utils.search.gallery import _images_below
from utils.show.folder import pairs_of

COMPOSED = "caf\u00e9"
DECOMPOSED = "cafe\u0301"


def below(root, paths):
    return sorted(os.path.relpath(path, root) for path in paths)


def message_of(root):
    with pytest.raises(DataError) as caught:
        scan(root)
    return str(caught.value)


@pytest.fixture
def littered(tmp_path):
    """Two classes, the second a link, with what other programs leave between the images."""
    root = tmp_path / "Data"
    write_images(root / "A", 2)
    write_images(tmp_path / "elsewhere", 2, seed=1)
    (root / "B").symlink_to(tmp_path / "elsewhere")
    write_images(root / "A" / ".ipynb_checkpoints", 1)
    for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information", ".AppleDouble"):
        write_images(root / name, 1)
        write_images(root / "A" / name, 1)
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt", "noending"):
        (root / "A" / name).write_bytes(b"\0\5\26\7")
    (root / "A" / "album.png").mkdir()
    (root / "A" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(root / "A" / "pipe.png")
    return root


def test_all_who_list_a_folder_list_the_same(littered, capsys):
    expected = ["A/0.png", "A/1.png", "B/0.png", "B/1.png"]
    assert below(littered, scan(littered).paths) == expected
    assert below(littered, _images_below(littered)) == expected
    pairs = pairs_of((littered / "A", littered / "B"))
    assert below(littered, {path for pair in pairs for path in pair}) == expected
    assert len(pairs) == 4
    assert "1 __MACOSX" in capsys.readouterr().out


def test_all_that_is_skipped_is_counted(littered):
    entries = [name for name in os.listdir(littered / "A") if name not in ("0.png", "1.png", "album.png")]
    assert list_folder(littered / "A").skipped.total() == len(entries)
    found = scan(littered)
    kinds = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information")
    assert {kind: found.skipped[kind] for kind in kinds} == dict.fromkeys(kinds, 2)
    assert [found.skipped[kind] for kind in (".db", ".ini", "no files", "broken links", "subfolders")] == [1] * 5
    assert found.skipped["hidden"] == 5
    assert images_below(littered)[1]["hidden"] == 5


@pytest.mark.parametrize("name", ["@EADIR", "#recycle", "$Recycle.Bin"])
def test_system_folders_in_any_letter_case(tmp_path, name):
    for seed, folder in enumerate((name, "a", "b")):
        write_images(tmp_path / folder, 1, seed=seed)
    assert scan(tmp_path).classes == ("a", "b")


def test_each_folder_is_listed_once_however_many_links_lead_to_it(tmp_path):
    root = tmp_path / "above" / "Data"
    write_images(tmp_path / "above" / "foreign", 1)
    for seed, name in enumerate(("a", "b")):
        write_images(root / name, 1, seed=seed)
    (root / "a" / "to_b").symlink_to(root / "b")
    (root / "b" / "to_a").symlink_to(root / "a")
    (root / "a" / "here").symlink_to(".")
    (root / "b" / "root").symlink_to(root)
    (root / "b" / "up").symlink_to(tmp_path / "above")
    paths, skipped = images_below(root)
    assert below(root, paths) == ["a/0.png", "b/0.png"]
    assert skipped == {"links to folders that are listed already": 5}


def test_links_from_outside_are_followed_at_any_depth(tmp_path):
    write_images(tmp_path / "disk" / "deep" / "er", 1)
    write_images(tmp_path / "Data" / "a", 1)
    (tmp_path / "Data" / "a" / "more").symlink_to(tmp_path / "disk")
    assert below(tmp_path / "Data", images_below(tmp_path / "Data")[0]) == ["a/0.png", "a/more/deep/er/0.png"]


# Each layout as {folder: number of images}, and how to follow its cure, given the root and the error.


def set_data_path(root, message):
    return Path(re.search(r"set data_path: (.+?)(?: \(or|; to use all|$)", message)[1])


def merge_classes(root, message):
    """All classes of train, val and test into a new folder, those of one name together."""
    assert "to use all, move the images of each class into one folder of a new data_path" in message
    for part in sorted(root.iterdir()):
        for folder in sorted(part.iterdir()):
            target = root.with_name("merged") / folder.name
            target.mkdir(parents=True, exist_ok=True)
            for image in folder.glob("*.png"):
                image.rename(target / f"{part.name}_{image.name}")
    return root.with_name("merged")


def move_up(root, message):
    """What lies deeper into the root, as the message says, and a second class where it asks for one."""
    deeper = re.search(r"Images lie deeper, in (.+): move these", message)[1].split(", ")
    emptied = re.search(r"into one folder, and move (.+?) out of it", message)[1].split(", ")
    for number, place in enumerate(deeper):
        target = root / f"{Path(place).name}.new"
        target.mkdir(exist_ok=True)
        for image in (root / place).glob("*.png"):
            image.rename(target / f"{number}_{image.name}")
    for name in emptied:
        (root / name).rename(root.with_name(f"{name}_out"))
    if "add a folder of images of a second class" in message:
        write_images(root / "second", 2)
    return root


def into_classes(root, message):
    """The images of a folder in each class into the class."""
    classes = re.search(r"If (.+) are the classes, move their images up into them instead", message)[1].split(" and ")
    for name in classes:
        for image in list((root / name).rglob("*.png")):
            image.rename(root / name / image.name)
    assert scan(root).classes == tuple(classes)
    return root


def move_empty_out(root, message):
    assert "move it out of" in message
    for folder in list(root.iterdir()):
        if not list(folder.glob("*.png")):
            folder.rename(root.with_name(f"{folder.name}_out"))
    return root


def add_images(root, message):
    assert "Add images to each of these folders" in message
    for folder in root.iterdir():
        if not list(folder.glob("*.png")):
            write_images(folder, 1)
    return root


def add_both(root, message):
    assert "Add images to it, and a second folder of images" in message
    write_images(root / "a", 1)
    write_images(root / "second", 1)
    return root


def add_second(root, message):
    assert "Add a second folder of images" in message
    write_images(root / "second", 2)
    return root


def put_classes(root, message):
    assert re.search("folder of images for each class.*at least two", message)
    for name in "xy":
        write_images(root / name, 1)
    return root


LAYOUTS = {
    "kaggle": ({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1, "test/a": 2, "test/b": 2}, set_data_path),
    "kaggle, merged": ({"train/a": 3, "train/b": 3, "valid/a": 1, "valid/b": 1}, merge_classes),
    "kaggle, a test set without classes": ({"train/a": 3, "train/b": 3, "test": 4}, set_data_path),
    "kaggle, unpacked one level too deep": ({"archive/train/a": 2, "archive/train/b": 2}, set_data_path),
    "train and test of one class": ({"train/a": 2, "test/a": 2}, move_up),
    "a folder of the same name in each class": ({"cat/images": 2, "dog/images": 2}, into_classes),
    "the same deeper": ({"a/b/raw": 1, "c/b/raw": 2, "d/raw": 1}, into_classes),
    "a folder in itself": ({"flowers/rose": 2, "flowers/tulip": 2}, set_data_path),
    "two levels": ({"data/flowers/rose": 2, "data/flowers/tulip": 2}, set_data_path),
    "classes in classes": ({"animals/cat": 2, "animals/dog": 1, "plants/rose": 1, "plants/tulip": 1}, set_data_path),
    "one class in each": ({"animals/cat": 2, "plants/rose": 2}, move_up),
    "some classes deeper": ({"animals/cat": 2, "bird": 1}, move_up),
    "folders of images beside their masks": ({"Shapes/a": 1, "Shapes/b": 1, "masks": 0}, set_data_path),
    "an empty class": ({"a": 1, "b": 1, "c": 0, "d": 0}, move_empty_out),
    "an empty class, filled": ({"a": 1, "b": 1, "c": 0}, add_images),
    "only one class with images": ({"a": 1, "b": 0}, add_images),
    "one empty class": ({"a": 0}, add_both),
    "two empty classes": ({"a": 0, "b": 0}, add_images),
    "one class": ({"a": 2}, add_second),
    "nothing": ({}, put_classes),
    "not there": (None, put_classes),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_cure_followed_ends_the_error(tmp_path, layout):
    folders, follow = LAYOUTS[layout]
    root = tmp_path / "Data"
    if folders is not None:
        root.mkdir()
    for seed, (name, count) in enumerate((folders or {}).items()):
        write_images(root / name, count, seed=seed)
    message = message_of(root)
    assert str(root) in message
    before = sum(1 for _ in tmp_path.rglob("*.png"))
    assert len(scan(follow(root, message)).classes) >= 2
    assert sum(1 for _ in tmp_path.rglob("*.png")) >= before  # no cure deletes images


def test_kaggles_layout_is_named_with_its_largest_part_first(tmp_path):
    for part, count in (("test", 2), ("train", 5), ("val", 1)):
        for name in "ab":
            write_images(tmp_path / part / name, count)
    message = message_of(tmp_path)
    assert "holds no image in test, train, val" in message
    assert "itself. Images lie deeper, in test/a, test/b, train/a, and 3 more" in message
    assert f"set data_path: {tmp_path}/train (or {tmp_path}/test or {tmp_path}/val)" in message
    assert "delete" not in message


def test_a_class_for_data_path_is_told_its_parent(tmp_path):
    for name in "ab":
        write_images(tmp_path / "Data" / name, 2)
    message = message_of(tmp_path / "Data" / "a")
    assert "It is one of the classes" in message
    assert scan(set_data_path(None, message)).classes == ("a", "b")


def test_an_archive_for_data_path(tmp_path):
    for name in "ab":
        write_images(tmp_path / "Data" / name, 2)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "Data")
    assert "It is a file" in message_of(archive)
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    assert len(scan(tmp_path / "unpacked").paths) == 4


def test_folders_in_a_class_that_has_images_are_counted_and_passed_over(tmp_path):
    for name in ("a", "a/deeper", "b"):
        write_images(tmp_path / name, 2)
    assert scan(tmp_path).skipped == {"subfolders": 1}
    assert len(scan(tmp_path).paths) == 4


@pytest.mark.parametrize("names", [(COMPOSED, DECOMPOSED), ("\u212b", "\u00c5"), ("\uac00", "\u1100\u1161")])
def test_two_classes_of_one_name_are_refused_with_both(tmp_path, names):
    for seed, name in enumerate((*names, "z")):
        write_images(tmp_path / name, 2, seed=seed)
    message = message_of(tmp_path)
    for name in names:
        assert name.encode("ascii", "backslashreplace").decode() in message
    for image in (tmp_path / names[1]).iterdir():
        image.rename(tmp_path / names[0] / f"moved_{image.name}")
    (tmp_path / names[1]).rmdir()
    assert [unicodedata.normalize("NFC", name) for name in scan(tmp_path).classes] == sorted(
        ["z", unicodedata.normalize("NFC", names[0])]
    )


def test_names_are_found_in_the_form_that_the_disk_has(tmp_path):
    write_images(tmp_path / DECOMPOSED / f"{DECOMPOSED}s", 1)
    actual = tmp_path / DECOMPOSED / f"{DECOMPOSED}s" / "0.png"
    assert actual_path(tmp_path / COMPOSED / f"{COMPOSED}s" / "0.png") == actual
    assert actual_path(actual) == actual
    assert actual_path(tmp_path / COMPOSED / "absent.png") == tmp_path / COMPOSED / "absent.png"
    write_images(tmp_path / COMPOSED, 1)
    assert actual_path(tmp_path / COMPOSED / "0.png") == tmp_path / COMPOSED / "0.png"  # what is exact comes first


def test_a_folder_that_cannot_be_opened(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        write_images(tmp_path / name, 2)
    opened = os.scandir

    def refusing(path):
        if str(path).endswith("c"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"/c cannot be listed: Permission denied\. Correct its permissions, or move"):
        scan(tmp_path)
    paths, skipped = images_below(tmp_path)
    assert len(paths) == 4
    assert skipped == {"folders that cannot be opened": 1}
    with pytest.raises(DataError, match="cannot be listed"):
        images_below(tmp_path / "c")
