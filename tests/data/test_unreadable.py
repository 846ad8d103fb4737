"""Images that cannot be decoded: left out and listed, or an error; never trained on, never forgotten."""

import csv
import os

import numpy as np
import pytest
import torch
from helpers import pixels_of, refusing, write_images
from PIL import Image

from utils.data import cache
from utils.data import images as listing
from utils.data.batches import draw_epoch, resident
from utils.data.images import check_readable, scan, write_unreadable
from utils.data.reading import DataError, decode
from utils.data.splits import load_splits
from utils.device import Runtime

SIZE = (32, 40)
CAUSES = {"a/cut.jpg": "truncated", "b/empty.jpg": "is empty", "b/text.jpg": "is no image"}


@pytest.fixture
def data(tmp_path):
    """Two classes of ten images, and three files that are none."""
    for seed, name in enumerate("ab"):
        write_images(tmp_path / "data" / name, 10, (48, 56), seed=seed)
    damage(tmp_path / "data")
    return tmp_path / "data"


def damage(root):
    noise = np.random.default_rng(9).integers(0, 256, (48, 56, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "a" / "cut.jpg", quality=95)
    whole = (root / "a" / "cut.jpg").read_bytes()
    (root / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "empty.jpg").write_bytes(b"")
    (root / "b" / "text.jpg").write_text("no image at all")


@pytest.fixture(params=[True, False], ids=["cached", "not cached"])
def cache_path(request, tmp_path):
    return tmp_path / "cache" if request.param else None


@pytest.fixture
def config(make_config, data):
    return make_config({"data_path": str(data)})


@pytest.fixture
def tried(monkeypatch):
    """The names of the files that were decoded or tried so far, in a list that grows."""
    names, real = [], cache.decode

    def trying(path, *settings):
        names.append(os.path.basename(path))
        return real(path, *settings)

    monkeypatch.setattr(cache, "decode", trying)
    return names


def opened(data, cache_path, setting="skip"):
    pixels = pixels_of(data, SIZE, cache_path)
    check_readable(scan(data), pixels.unreadable, setting)
    return pixels


def below(data, path):
    return os.path.relpath(path, data)


def assert_names_all(message):
    for name, cause in CAUSES.items():
        assert sum(name in line and cause in line for line in message.splitlines()) == 1


def test_skipped_images_are_named_and_the_others_are_as_they_were(data, cache_path):
    for _ in range(2):  # the second time from the cache
        pixels = opened(data, cache_path)
        causes = {below(data, pixels.paths[index]): cause for index, cause in pixels.unreadable.items()}
        assert list(causes) == sorted(CAUSES)
        assert all(CAUSES[name] in cause for name, cause in causes.items())
        good = np.array([index for index in range(23) if below(data, pixels.paths[index]) not in CAUSES])
        alone = np.stack([decode(pixels.paths[index], SIZE) for index in good])
        np.testing.assert_array_equal(pixels[good], alone)


def test_an_unreadable_image_is_never_handed_out(data, cache_path):
    pixels = opened(data, cache_path)
    for index in pixels.unreadable:
        for _ in range(2):
            with pytest.raises(DataError, match=os.path.basename(pixels.paths[index])):
                pixels[np.array([0, index])]


def test_pixels_on_the_device_leave_them_out(data, cache_path, monkeypatch):
    monkeypatch.setattr(Runtime, "free_memory", lambda self: 23 * 32 * 40 * 3)
    pixels = opened(data, cache_path)
    good = np.setdiff1d(np.arange(23), list(pixels.unreadable))
    kept = resident(pixels, Runtime(torch.device("cpu"), torch.float32), 1.0)
    assert len(good) == 20
    np.testing.assert_array_equal(kept[good].numpy(), pixels[good])


def test_the_cache_remembers_them(data, tmp_path, tried):
    first = opened(data, tmp_path / "cache").unreadable
    assert len(tried) == 23
    tried.clear()
    assert opened(data, tmp_path / "cache").unreadable == first
    assert sorted(tried) == ["cut.jpg", "empty.jpg", "text.jpg"]


def test_one_that_was_repaired_is_taken_in(data, tmp_path, tried):
    opened(data, tmp_path / "cache")
    tried.clear()
    Image.open(data / "b" / "0.png").rotate(180).save(data / "b" / "text.jpg")
    pixels = opened(data, tmp_path / "cache")
    assert [below(data, pixels.paths[index]) for index in pixels.unreadable] == ["a/cut.jpg", "b/empty.jpg"]
    assert not [name for name in tried if name.endswith(".png")]


def test_one_that_can_be_read_by_now_is_taken_in_though_the_file_is_the_same(data, tmp_path, monkeypatch, tried):
    """As when its permissions were wrong: neither size nor time of change tell."""
    real = cache.decode
    monkeypatch.setattr(cache, "decode", refusing(real, "3.png"))
    assert len(opened(data, tmp_path / "cache").unreadable) == 5
    monkeypatch.setattr(cache, "decode", real)
    tried.clear()
    pixels = opened(data, tmp_path / "cache")
    assert len(pixels.unreadable) == 3
    np.testing.assert_array_equal(pixels[np.array([3])][0], decode(data / "a" / "3.png", SIZE))
    assert {name for name in tried if name.endswith(".png")} == {"3.png"}


def test_stop_names_them_all_and_keeps_what_was_decoded(data, cache_path, tried):
    for expected in (23, 3 if cache_path else 23):
        tried.clear()
        with pytest.raises(DataError, match=r"3 of 23 images cannot be read\. Replace them") as caught:
            opened(data, cache_path, "stop")
        assert_names_all(str(caught.value))
        assert len(tried) == expected


def test_stop_heeds_a_cache_that_remembers(data, cache_path):
    opened(data, cache_path, "skip")
    with pytest.raises(DataError, match="3 of 23 images") as caught:
        opened(data, cache_path, "stop")
    assert_names_all(str(caught.value))
    for name in CAUSES:
        (data / name).unlink()
    assert opened(data, cache_path, "stop").unreadable == {}


def test_they_are_in_no_split_no_pair_and_no_batch(config, data):
    splits = load_splits(config)
    parts = np.concatenate([splits.train, splits.valid, splits.test])
    names = [below(data, splits.folder.paths[index]) for index in parts]
    assert sorted(names) == sorted(f"{name}/{number}.png" for name in "ab" for number in range(10))
    used = [splits.valid_pairs.first, splits.valid_pairs.second, splits.test_pairs.first, splits.test_pairs.second]
    used = np.concatenate([*used, *draw_epoch(splits, config, 0)])
    assert not set(used) & set(splits.pixels.unreadable)


def test_the_table_the_file_and_the_message(config, data, capsys):
    file = config.results_path / "unreadable.csv"
    splits = load_splits(config)
    message = capsys.readouterr().out
    assert "3 of 23 images cannot be read and are left out" in message
    assert "a/cut.jpg" in message
    assert not file.exists()  # splits are read by many commands, a file is written by training
    assert [below(data, path) for path in splits.unreadable["file"]] == list(CAUSES)
    for known, cause in zip(CAUSES.values(), splits.unreadable["cause"], strict=True):
        assert known in cause
    write_unreadable(splits.unreadable, config.results_path)
    assert str(file) in capsys.readouterr().out
    with open(file, newline="") as opened_file:
        assert list(csv.reader(opened_file)) == [["file", "cause"], *splits.unreadable.to_numpy().tolist()]
    for name in CAUSES:
        (data / name).unlink()
    splits = load_splits(config)
    write_unreadable(splits.unreadable, config.results_path)
    assert "cannot be read" not in capsys.readouterr().out
    assert not file.exists()


def test_of_many_the_message_names_a_few_and_the_list_all(config, data, capsys):
    for number in range(40):
        (data / "a" / f"broken{number:02}.jpg").write_text("")
    unreadable = load_splits(config).unreadable
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "cannot be read" in line]
    assert line.count("broken") == 5
    assert "and 38 more" in line
    assert len(unreadable) == 43


def test_of_several_processes_only_the_first_writes(config, monkeypatch, capsys):
    monkeypatch.setattr(listing, "FIRST", False)
    write_unreadable(load_splits(config).unreadable, config.results_path)
    assert "cannot be read" not in capsys.readouterr().out
    assert not config.results_path.exists()


def test_stop_is_an_error_of_the_splits_too(make_config, data):
    with pytest.raises(DataError, match="3 of 23 images"):
        load_splits(make_config({"data_path": str(data), "unreadable": "stop"}))


@pytest.mark.parametrize("cure", ["replace", "unreadable: skip"])
@pytest.mark.parametrize("lost", [False, True])
def test_each_cure_of_stop_ends_the_error(data, cure, lost):
    """Also where a class has no other image."""
    if lost:
        for number in (1, 2):
            (data / "lost").mkdir(exist_ok=True)
            (data / "lost" / f"{number}.jpg").write_text("no image")
    with pytest.raises(DataError) as caught:
        opened(data, None, "stop")
    assert cure in str(caught.value).lower()
    broken = [line.split(": ")[0] for line in str(caught.value).splitlines()[1:]]
    assert len(broken) == 3 + 2 * lost
    if cure == "unreadable: skip":
        opened(data, None, "skip")
        return
    for number, path in enumerate(broken):
        pixels = np.random.default_rng(100 + number).integers(0, 256, (48, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    opened(data, None, "stop")


@pytest.mark.parametrize("classes", ["a", "ab"])
def test_where_no_two_classes_can_be_read_replacing_ends_the_error(data, classes):
    for name in classes:
        for file in (data / name).iterdir():
            file.write_text("no image")
    with pytest.raises(DataError, match="replace them"):
        opened(data, None)
    for number, file in enumerate(sorted(data.glob("a/*"))[:2]):
        Image.fromarray(np.full((9, 9, 3), 80 * number, np.uint8)).save(file)
    if classes == "ab":
        Image.fromarray(np.full((9, 9, 3), 200, np.uint8)).save(data / "b" / "0.png")
    opened(data, None)


@pytest.mark.parametrize("classes", ["a", "ab"])
def test_fewer_than_two_classes_left_is_an_error(data, cache_path, classes):
    for name in classes:
        for file in (data / name).iterdir():
            file.write_text("no image")
    with pytest.raises(DataError, match=r"of 23 images cannot be read\. Pairs need images of two classes") as caught:
        opened(data, cache_path)
    assert len(str(caught.value).splitlines()) <= 22


def test_a_class_that_lost_all_its_images_is_named(config, data, capsys):
    (data / "lost").mkdir()
    (data / "lost" / "one.jpg").write_text("no image")
    load_splits(config)
    assert "No image is left of lost." in capsys.readouterr().out
