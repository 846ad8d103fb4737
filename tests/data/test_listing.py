"""One list of a folder's images, wherever a folder is named; and folders as archives, phones and other systems leave
them: found, or refused with a cure that, followed to the letter, ends the error."""

import os
import shutil
import unicodedata
from collections import Counter

import pytest
from helpers import write_images

from utils.data.images import actual_path, images_below, list_folder, scan
from utils.data.reading import DataError
from utils.search.gallery import _images_of
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
    assert below(littered, _images_of(littered)) == expected
    pairs = pairs_of((littered / "A", littered / "B"))
    assert below(littered, {path for pair in pairs for path in pair}) == expected
    assert len(pairs) == 4
    assert "1 __MACOSX" in capsys.readouterr().out


def test_all_that_is_skipped_is_counted(littered):
    entries = [name for name in os.listdir(littered / "A") if name not in ("0.png", "1.png", "album.png")]
    assert list_folder(littered / "A").skipped.total() == len(entries)
    folder = scan(littered)
    kinds = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information")
    assert {kind: folder.skipped[kind] for kind in kinds} == dict.fromkeys(kinds, 2)
    assert [folder.skipped[kind] for kind in (".db", ".ini", "no files", "broken links", "subfolders")] == [1] * 5
    assert folder.skipped["hidden"] == 5
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


# Ways to follow the cure; each returns the new data_path.


def set_data_path(root):
    """To the largest folder that holds a folder of images for each of two classes."""
    counts = {}
    for image in root.rglob("*.png"):
        counts.setdefault(image.parent.parent, Counter())[image.parent] += 1
    usable = {place: images.total() for place, images in counts.items() if len(images) > 1}
    return max(usable, key=usable.get)


def move_images(root):
    """All images into a new folder, those of one class together, and a second class where there is one."""
    target = root.with_name("moved")
    for number, image in enumerate(sorted(root.rglob("*.png"))):
        folder = target / image.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        image.rename(folder / f"{number}.png")
    if len(list(target.iterdir())) == 1:
        write_images(target / "second", 2)
    return target


def move_empty_elsewhere(root):
    for folder in list(root.iterdir()):
        if not list(folder.glob("*.png")):
            folder.rename(root.with_name(f"{folder.name}_elsewhere"))
    return root


def add_images(root):
    """To each folder that has none, and to two more."""
    root.mkdir(exist_ok=True)
    for folder in [*root.iterdir(), root / "x", root / "y"]:
        if not list(folder.glob("*.png")):
            write_images(folder, 1)
    return root


LAYOUTS = {  # {folder: number of images}, or None where there is no folder, and ways to follow the cure
    "kaggle": ({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1}, [set_data_path, move_images, add_images]),
    "kaggle, a test set without classes": ({"train/a": 3, "train/b": 3, "test": 4}, [set_data_path]),
    "train and test of one class": ({"train/a": 2, "test/a": 2}, [move_images]),
    "a folder in itself": ({"flowers/rose": 2, "flowers/tulip": 2}, [set_data_path]),
    "two levels": ({"data/flowers/rose": 2, "data/flowers/tulip": 2}, [set_data_path]),
    "one class in each": ({"animals/cat": 2, "plants/rose": 2}, [move_images]),
    "some classes deeper": ({"animals/cat": 2, "bird": 1}, [move_images]),
    "folders of images beside their masks": ({"Shapes/a": 1, "Shapes/b": 1, "masks": 0}, [set_data_path]),
    "empty classes": ({"a": 1, "b": 1, "c": 0, "d": 0}, [move_empty_elsewhere, add_images]),
    "only one class with images": ({"a": 1, "b": 0}, [add_images]),
    "one empty class": ({"a": 0}, [add_images]),
    "two empty classes": ({"a": 0, "b": 0}, [add_images]),
    "one class": ({"a": 2}, [add_images]),
    "nothing": ({}, [add_images]),
    "not there": (None, [add_images]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_cure_followed_ends_the_error(tmp_path, layout):
    folders, cures = LAYOUTS[layout]
    for number, follow in enumerate(cures):
        root = tmp_path / str(number) / "Data"
        if folders is not None:
            root.mkdir(parents=True)
        for seed, (name, count) in enumerate((folders or {}).items()):
            write_images(root / name, count, seed=seed)
        message = message_of(root)
        assert message.startswith(f"data_path: {root} ")
        assert "It must be a folder that holds one folder of images for each class, at least two" in message
        root.parent.mkdir(exist_ok=True)
        assert len(scan(follow(root)).classes) >= 2


def test_kaggles_layout_is_refused_with_the_names_of_its_folders(tmp_path):
    for part in ("test", "train", "val"):
        for name in "ab":
            write_images(tmp_path / part / name, 1)
    message = message_of(tmp_path)
    assert "holds no image in test, train, val (skipped: 6 subfolders)" in message
    assert "Set data_path to such a folder" in message
    assert len(scan(tmp_path / "train").paths) == 2


def test_an_archive_for_data_path(tmp_path):
    for name in "ab":
        write_images(tmp_path / "Data" / name, 2)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "Data")
    assert "is not a folder" in message_of(archive)
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
