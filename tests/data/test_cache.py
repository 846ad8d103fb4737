"""The cache of pixels: never stale, never corrupt, never half-written, and dispensable."""

import hashlib
import json
import os
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers import forked, pixels_of, write_images
from PIL import Image

from utils.data import cache
from utils.data.batches import deliver, resident
from utils.data.cache import Decoder, PixelCache
from utils.data.images import scan
from utils.data.reading import DataError, decode, read_image
from utils.device import Runtime

SIZE = (32, 40)


@pytest.fixture
def data(tmp_path):
    for label, name in enumerate("ab"):
        write_images(tmp_path / "data" / name, 5, (48, 56), seed=label)
    return tmp_path / "data"


def opened(data, tmp_path, size=SIZE):
    return pixels_of(data, size, tmp_path / "cache")


def rows(pixels):
    return pixels[np.arange(len(pixels))]


def decoded(data, size=SIZE):
    """The pixels by another way: OpenCV reads, torch resizes."""
    images = [torch.from_numpy(cv2.imread(path)[..., ::-1].copy()).movedim(-1, 0)[None] for path in scan(data).paths]
    resized = [torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True) for image in images]
    return torch.cat(resized).movedim(1, -1).numpy()


@pytest.fixture
def counted(monkeypatch):
    """The paths decoded so far, in a list that grows."""
    paths, real = [], cache.decode

    def counting(path, *settings):
        paths.append(os.path.relpath(path).split("data/")[-1])
        return real(path, *settings)

    monkeypatch.setattr(cache, "decode", counting)
    return paths


def test_each_image_is_decoded_once_for_all_runs(data, tmp_path, counted):
    for _ in range(3):
        pixels = opened(data, tmp_path)
        assert isinstance(pixels, PixelCache)
        np.testing.assert_array_equal(rows(pixels), decoded(data))
    assert len(counted) == 10
    np.testing.assert_array_equal(pixels[np.array([7, 2, 7])], decoded(data)[[7, 2, 7]])


def test_edited_added_and_removed_images_are_never_served_stale(data, tmp_path, counted):
    opened(data, tmp_path)
    counted.clear()
    before = os.stat(data / "a" / "0.png")
    image = Image.open(data / "a" / "0.png").rotate(180)
    image.save(data / "a" / "0.png")
    with open(data / "a" / "0.png", "ab") as file:
        file.write(bytes(max(0, before.st_size - os.path.getsize(data / "a" / "0.png"))))
    write_images(data / "c", 2, seed=7)
    (data / "b" / "3.png").unlink()
    np.testing.assert_array_equal(rows(opened(data, tmp_path)), decoded(data))
    assert sorted(counted) == ["a/0.png", "c/0.png", "c/1.png"]  # the other rows were taken over


def test_a_change_of_the_time_alone_is_a_change(data, tmp_path, counted):
    opened(data, tmp_path)
    counted.clear()
    os.utime(data / "a" / "1.png", ns=(0, os.stat(data / "a" / "1.png").st_mtime_ns + 1))
    opened(data, tmp_path)
    assert counted == ["a/1.png"]


def hashed(data):
    """The digest of each file, by another way of reading it."""
    return [hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest() for path in scan(data).paths]


@pytest.mark.parametrize("cached", [True, False])
def test_the_content_of_each_file_is_known_without_another_look(data, tmp_path, monkeypatch, cached):
    folder = tmp_path / "cache" if cached else None
    first = pixels_of(data, SIZE, folder)
    assert first.digests == hashed(data)
    (data / "a" / "2.png").write_bytes(b"damaged")
    write_images(data / "b", 1, (48, 56), seed=6)
    pixels = pixels_of(data, SIZE, folder)  # with a cache, 8 rows are taken over
    expected = hashed(data)
    expected[2] = ""
    assert pixels.digests == expected
    assert list(pixels.unreadable) == [2]
    if cached:
        monkeypatch.setattr(cache, "content_digest", lambda path: pytest.fail(f"{path} is read again"))
        assert opened(data, tmp_path).digests == expected


@pytest.mark.parametrize("cached", [True, False])
def test_a_file_that_goes_while_it_is_looked_at_is_unreadable(data, tmp_path, monkeypatch, cached):
    def gone(path):
        if path.endswith("4.png"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return "digest"

    monkeypatch.setattr(cache, "content_digest", gone)
    pixels = pixels_of(data, SIZE, tmp_path / "cache" if cached else None)
    assert pixels.unreadable == {4: "No such file or directory", 9: "No such file or directory"}


def test_sizes_and_folders_do_not_share_a_cache(data, tmp_path):
    other = data.rename(tmp_path / "first")
    write_images(data / "a", 5, (48, 56), seed=8)
    write_images(data / "b", 5, (48, 56), seed=9)
    assert rows(opened(other, tmp_path)).tolist() != rows(opened(data, tmp_path)).tolist()
    assert rows(opened(data, tmp_path, (33, 47))).shape == (10, 33, 47, 3)
    assert len(list((tmp_path / "cache").glob("*.json"))) == 3


def files_of(tmp_path):
    """The array and the JSON file of the one cache."""
    (array,) = (tmp_path / "cache").glob("*.npy")
    (file,) = (tmp_path / "cache").glob("*.json")
    return array, file


@pytest.mark.parametrize("damaged", ["array", "json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "deleted", "header"])
def test_a_broken_file_is_built_again(data, tmp_path, damaged, damage, counted):
    opened(data, tmp_path)
    file = files_of(tmp_path)[("array", "json").index(damaged)]
    content = file.read_bytes()
    if damage == "deleted":
        file.unlink()
    else:
        changed = {
            "cut": content[:-200],
            "empty": b"",
            "foreign": b"not a cache at all" * 400,
            "header": content[:9] + bytes([content[9] ^ 1]) + content[10:],
        }
        file.write_bytes(changed[damage])
    counted.clear()
    np.testing.assert_array_equal(rows(opened(data, tmp_path)), decoded(data))
    assert len(counted) == 10
    files_of(tmp_path)  # no other array is left


def test_an_array_of_another_shape_is_built_again(data, tmp_path, counted):
    opened(data, tmp_path)
    array, file = files_of(tmp_path)
    for other in (np.zeros((9, *SIZE, 3), np.uint8), np.zeros((10, *SIZE), np.uint8), np.zeros((10, *SIZE, 3))):
        np.save(array, other)
        np.testing.assert_array_equal(rows(opened(data, tmp_path)), decoded(data))
        array, file = files_of(tmp_path)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"keys": content["keys"][:-1]}))
    counted.clear()
    np.testing.assert_array_equal(rows(opened(data, tmp_path)), decoded(data))
    assert len(counted) == 10


def test_the_cache_is_a_plain_array_and_a_list(data, tmp_path):
    (data / "a" / "2.png").write_bytes(b"damaged")
    pixels = opened(data, tmp_path)
    array, file = files_of(tmp_path)
    content = json.loads(file.read_text())
    assert content["array"] == array.name
    assert content["digests"] == pixels.digests
    assert content["causes"] == [None] * 2 + [pixels.unreadable[2]] + [None] * 7
    assert len(set(content["keys"])) == 10
    assert (np.load(array)[2] == 0).all()
    (data / "a" / "2.png").unlink()
    np.testing.assert_array_equal(np.delete(np.load(array), 2, axis=0), decoded(data))


def test_no_flipped_bit_of_the_header_is_read_as_other_pixels(data, tmp_path):
    whole = opened(data, tmp_path)
    expected = rows(whole)
    array, file = files_of(tmp_path)
    content = array.read_bytes()
    for place in range(np.load(array, mmap_mode="r").offset):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            array.write_bytes(changed)
            stored = cache._read(file, SIZE)
            if stored is not None:
                np.testing.assert_array_equal(stored.pixels, expected)


def _build(data, folder, pipe):
    def slow(path, *settings):
        time.sleep(0.05)
        return decode(path, *settings)

    cache.decode = slow
    cache.BLOCK = 2
    pipe.send(type(pixels_of(data, SIZE, folder)).__name__)


@pytest.mark.parametrize("seconds", [0, 0.1, 0.2])  # of half a second
def test_an_interrupted_build_leaves_nothing_that_is_read(data, tmp_path, counted, seconds):
    process, _ = forked(_build, data, tmp_path / "cache")
    while not list((tmp_path / "cache").glob(".*.npy.*")) and process.is_alive():
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    process.join()
    assert list((tmp_path / "cache").glob(".*.npy.*"))
    assert not list((tmp_path / "cache").glob("*.json"))
    np.testing.assert_array_equal(rows(opened(data, tmp_path)), decoded(data))
    assert len(counted) == 10
    assert not list((tmp_path / "cache").glob(".*.npy.*"))  # and the remains are gone


def test_two_builds_at_once_do_the_work_once(data, tmp_path):
    builds = [forked(_build, data, tmp_path / "cache") for _ in range(3)]
    assert [pipe.recv() for _, pipe in builds] == ["PixelCache"] * 3
    for process, _ in builds:
        process.join()
    np.testing.assert_array_equal(rows(opened(data, tmp_path)), decoded(data))


def test_a_reader_keeps_what_it_opened_while_another_rebuilds(data, tmp_path):
    reader, before = opened(data, tmp_path), decoded(data)
    write_images(data / "a", 5, (48, 56), seed=5)
    opened(data, tmp_path)
    np.testing.assert_array_equal(rows(reader), before)


def _limited(data, folder, limit, pipe):
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails with an error, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels = pixels_of(data, SIZE, folder)
    pipe.send((type(pixels).__name__, [str(warning.message) for warning in caught], rows(pixels), os.listdir(folder)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs limits on the size of files")
def test_a_full_disk_falls_back_to_decoding_with_one_warning(data, tmp_path):
    process, pipe = forked(_limited, data, tmp_path / "cache", 9000)
    kind, messages, pixels, left = pipe.recv()
    process.join()
    assert kind == "Decoder"
    assert len(messages) == 1
    assert "cannot be written" in messages[0]
    np.testing.assert_array_equal(pixels, decoded(data))
    assert [name for name in left if not name.endswith(".lock")] == []


def test_a_folder_that_cannot_be_written_falls_back_with_one_warning(data, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="cannot be written") as caught:
        pixels = opened(data, tmp_path)
    assert len(caught) == 1
    np.testing.assert_array_equal(rows(pixels), decoded(data))


def test_no_cache_path_decodes_without_a_word(data, tmp_path):
    pixels = pixels_of(data, SIZE)
    assert type(pixels) is Decoder
    np.testing.assert_array_equal(rows(pixels), decoded(data))


def test_large_jpegs_at_reduced_scale_are_nearly_exact(tmp_path):
    """Against decoding in full; the bounds are in grey levels of 255."""
    random = np.random.default_rng(0)
    coarse = [cv2.resize(random.uniform(0, 255, (n, n * 4 // 3, 3)), (1600, 1200)) for n in (3, 12, 48, 300)]
    photograph = np.clip(np.average(coarse, axis=0, weights=(4, 2, 1, 1)), 0, 255).astype(np.uint8)
    Image.fromarray(photograph).save(tmp_path / "large.jpg", quality=90)
    reduced = decode(tmp_path / "large.jpg", (120, 160)).astype(float)
    assert read_image(tmp_path / "large.jpg", at_least=2 * 160).shape == (600, 800, 3)  # half of it was not decoded
    full = torch.from_numpy(read_image(tmp_path / "large.jpg")).movedim(-1, 0)[None]
    full = torch.nn.functional.interpolate(full, (120, 160), mode="bilinear", antialias=True)[0].movedim(0, -1).numpy()
    assert np.abs(reduced - full).mean() < 0.5
    assert np.abs(reduced - full).max() <= 4


def test_batches_arrive_in_order_and_on_the_device(data, tmp_path, device, monkeypatch):
    pixels, batches = opened(data, tmp_path), [np.array(part) for part in ([3, 1], [0], [9, 8, 7], [2], [5, 5])]
    runtime = Runtime(device, torch.float32)
    monkeypatch.setattr(Runtime, "free_memory", lambda self: pixels.stored.pixels.nbytes)
    for source in (pixels, resident(pixels, runtime, 1.0)):
        parts = list(deliver(source, iter(batches), runtime))
        assert all(part.device.type == device.type for part in parts)
        for part, batch in zip(parts, batches, strict=True):
            np.testing.assert_array_equal(part.cpu().numpy(), decoded(data)[batch])


def test_pixels_stay_on_the_device_where_they_fit(data, tmp_path, monkeypatch):
    pixels, runtime = opened(data, tmp_path), Runtime(torch.device("cpu"), torch.float32)
    assert resident(pixels, runtime, 1.0) is pixels  # the CPU has no memory of its own
    monkeypatch.setattr(Runtime, "free_memory", lambda self: 2 * 10 * 32 * 40 * 3)
    assert isinstance(resident(pixels, runtime, 0.5), torch.Tensor)
    assert resident(pixels, runtime, 0.49) is pixels


def test_an_error_while_reading_ahead_reaches_the_caller(data, tmp_path):
    pixels = pixels_of(data, SIZE)
    (data / "a" / "2.png").write_text("no longer an image")
    batches = [np.array([0]), np.array([2]), np.array([1])]
    with pytest.raises(DataError, match=r"2\.png"):
        list(deliver(pixels, batches, Runtime(torch.device("cpu"), torch.float32)))


def test_an_edit_that_keeps_size_and_time_is_noticed(data, tmp_path, counted):
    opened(data, tmp_path)
    path = data / "a" / "1.png"
    before = os.stat(path)
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    counted.clear()
    opened(data, tmp_path)
    assert counted == ["a/1.png"]


def test_a_cache_that_would_fill_the_disk_is_not_begun(data, tmp_path, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.warns(RuntimeWarning, match=r"cannot be written \(0\.0 MB are needed, 0\.0 MB are free\)"):
        pixels = opened(data, tmp_path)
    assert type(pixels) is cache.Decoder
