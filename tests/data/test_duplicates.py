import itertools
import warnings
from functools import cache

import numpy as np
import pytest
from helpers import pixels_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.data import duplicates
from utils.data.butterflies import SPECIES, draw
from utils.data.cache import Decoder
from utils.data.duplicates import contradictions, groups_of_several, joined, near_duplicates, pairs_within
from utils.data.images import scan
from utils.data.splits import load_splits

SIZE = (96, 96)


@cache
def drawings(count, seed=0):
    """Different pictures of one kind: `count` images of each class of the sample."""
    random = np.random.RandomState(seed)
    return [Image.fromarray(draw(name, random)[0]) for name in SPECIES for _ in range(count)]


def margins_cut(image, share=0.02):
    width, height = round(share * image.width), round(share * image.height)
    return image.crop((width, height, image.width - width, image.height - height))


COPIES = {
    "half.png": lambda image: (image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS), {}),
    "again60.jpg": lambda image: (image, {"quality": 60}),
    "again90.jpg": lambda image: (image, {"quality": 90}),
    "cropped.png": lambda image: (margins_cut(image), {}),
    "mirrored.png": lambda image: (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), {}),
}


def written(folder, images):
    """A folder of two classes, the images in turn, and its pixels."""
    for number, image in enumerate(images):
        place = folder / f"class_{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number:04}.png")
    return opened(folder)


def opened(folder, cache=None):
    return scan(folder), pixels_of(folder, SIZE, cache)


def groups_found(folder, pixels, radius=6):
    groups = groups_of_several(near_duplicates(pixels, radius))
    return [[folder.paths[index].rpartition("/")[2] for index in group] for group in groups]


@pytest.mark.parametrize("kind", COPIES)
def test_planted_copies_are_found_and_nothing_else(kind, tmp_path):
    for number, image in enumerate(drawings(4)):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "b").mkdir(exist_ok=True)
        image.save(tmp_path / "a" / f"{number:02}.png")
        copy, options = COPIES[kind](image)
        copy.save(tmp_path / "b" / f"{number:02}_{kind}", **options)
    groups = groups_found(*opened(tmp_path))
    assert all(len(group) == 2 and group[0][:2] == group[1][:2] for group in groups)
    assert len(groups) >= 23  # of 24
    folder, pixels = opened(tmp_path)
    assert len(contradictions(near_duplicates(pixels, 6), folder.labels)) == len(groups)
    assert groups_found(folder, pixels, None) == []


def test_pictures_alike_are_not_joined(tmp_path):
    """100 pairs of one scene with another object in one place."""
    random = np.random.RandomState(3)
    images = []
    near = 0
    for scene in drawings(17)[:100]:
        left, top = random.randint(0, 88, 2)
        pair = []
        for turns in (0, 1):
            image = np.array(scene)
            stripes = np.arange(40) // random.randint(4, 9) % 2 == 0
            colours = random.randint(0, 100, 3), random.randint(156, 256, 3)
            patch = np.where(np.rot90(np.tile(stripes, (40, 1)), turns)[..., None], *colours)
            image[top : top + 40, left : left + 40] = patch
            pair.append(image)
        near += bool(np.bitwise_count(hash_of(pair[0]) ^ hash_of(pair[1])) <= 6)
        images += map(Image.fromarray, pair)
    assert near > 25  # their hashes alone would join these
    assert groups_found(*written(tmp_path, images)) == []


def hash_of(pixels):
    return np.uint64(duplicates._hashes(pixels)[0])


def test_noise_and_single_tones_are_not_joined(tmp_path):
    random = np.random.default_rng(0)
    noise = [np.clip(random.normal(128, 3, (*SIZE, 3)), 0, 255).astype(np.uint8) for _ in range(40)]
    tones = [np.full((*SIZE, 3), value, np.uint8) for value in range(100, 140)]
    assert groups_found(*written(tmp_path, map(Image.fromarray, [*noise, *tones]))) == []


def test_a_chain_of_copies_is_one_group(tmp_path):
    (image,) = drawings(1)[:1]
    once = margins_cut(image)
    twice = margins_cut(once)
    folder, pixels = written(tmp_path, [image, once, twice, *drawings(1, seed=5)])
    assert groups_found(folder, pixels) == [["0000.png", "0002.png", "0001.png"]]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 16))
def test_the_search_against_all_pairs(seed, radius):
    """Hashes near a few centres, so that some lie within the radius and some just beyond it."""
    random = np.random.default_rng(seed)
    centres = random.integers(2**64, size=4, dtype=np.uint64)
    first, second = (centres[random.integers(4, size=30)] ^ flipped(random, 30) for _ in range(2))
    near = [pair for block in pairs_within(first, second, radius) for pair in zip(*map(list, block), strict=True)]
    expected = [
        (row, column)
        for row, column in itertools.product(range(30), range(30))
        if (int(first[row]) ^ int(second[column])).bit_count() <= radius
    ]
    assert sorted(near) == expected


def flipped(random, count):
    """Numbers with up to twelve bits set."""
    flips = random.integers(64, size=(count, 12)).astype(np.uint64)
    kept = np.arange(12) < random.integers(13, size=(count, 1))
    return np.bitwise_or.reduce(np.where(kept, np.uint64(1) << flips, np.uint64(0)), axis=1)


def test_the_search_in_small_blocks(monkeypatch):
    monkeypatch.setattr(duplicates, "COMPARED", 47)
    same = np.full(20, 5, np.uint64)
    blocks = list(pairs_within(same, same, 0))
    assert [len(first) for first, _ in blocks] == [40] * 10
    pairs = np.concatenate([np.stack(block, axis=1) for block in blocks])
    assert pairs.tolist() == [[first, second] for first in range(20) for second in range(20)]
    nothing = np.zeros(0, np.uint64)
    assert sum(len(first) for first, _ in pairs_within(same, nothing, 6)) == 0
    assert list(pairs_within(nothing, same, 6)) == []


@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=20))
def test_joined_against_sets(edges):
    sets = [{number} for number in range(15)]
    for one, other in edges:
        union = sets[one] | sets[other]
        for member in union:
            sets[member] = union
    first, second = np.array(edges, np.int64).reshape(-1, 2).T
    groups = joined(np.arange(15), first[:5], second[:5])
    groups = joined(groups, first[5:], second[5:])
    assert groups.tolist() == [min(one) for one in sets]


def test_hashes_are_stored_and_computed_again_when_damaged(tmp_path, monkeypatch):
    written(tmp_path / "data", drawings(1))
    computed = []
    real = duplicates._hashes
    monkeypatch.setattr(duplicates, "_hashes", lambda image: computed.append(0) or real(image))

    def hashed():
        _, pixels = opened(tmp_path / "data", tmp_path / "cache")
        before = len(computed)
        return duplicates.hashes_of(pixels), len(computed) - before

    first, count = hashed()
    again, none = hashed()
    assert (count, none) == (6, 0)
    assert first.tolist() == again.tolist()
    (file,) = (tmp_path / "cache").glob("*.hashes")
    content = file.read_bytes()
    for damaged in (content[:-9], b"", b"no archive"):
        file.write_bytes(damaged)
        repaired, count = hashed()
        assert count == 6
        assert repaired.tolist() == first.tolist()
    for place in range(0, len(content), 37):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert hashed()[0].tolist() == first.tolist()
    drawings(1, seed=9)[0].save(tmp_path / "data" / "class_0" / "0000.png")
    changed, count = hashed()
    assert count == 6
    assert (changed[:, 0] != first[:, 0]).tolist() == [True] + [False] * 5


def test_hashes_that_cannot_be_stored_warn(tmp_path, monkeypatch):
    written(tmp_path / "data", drawings(1))
    _, pixels = opened(tmp_path / "data", tmp_path / "cache")

    def full(file):
        raise OSError("disk full")

    monkeypatch.setattr(duplicates, "atomic", full)
    with pytest.warns(RuntimeWarning, match=r"cache_path: .*\.hashes cannot be written \(disk full\)"):
        assert duplicates.hashes_of(pixels).all()


def test_without_a_cache_nothing_is_stored(tmp_path):
    _, pixels = written(tmp_path / "data", drawings(1))
    with warnings.catch_warnings(action="error"):
        duplicates.hashes_of(pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_unreadable_images_have_no_hash_and_no_group(tmp_path):
    written(tmp_path, [*drawings(1), *drawings(1)])
    (tmp_path / "class_0" / "broken.png").write_bytes(b"no image")
    (tmp_path / "class_1" / "broken.png").write_bytes(b"none either")
    _, pixels = opened(tmp_path)
    assert not duplicates.hashes_of(pixels)[list(pixels.unreadable)].any()
    assert len(groups_of_several(near_duplicates(pixels, 6))) == 6


def test_byte_identical_files_are_one_group_without_a_look():
    pixels = Decoder(list("abcd"), (32, 40))
    pixels.digests = ["x", "y", "x", ""]
    pixels.unreadable = {3: "is empty"}
    assert near_duplicates(pixels, None).tolist() == [0, 1, 0, 3]
    pixels.unreadable = {0: "is empty", 2: "is empty"}
    assert near_duplicates(pixels, None).tolist() == [0, 1, 2, 3]  # two empty files are not copies of a picture


def test_copies_stay_in_one_split(make_config, tmp_path):
    """Every picture twice, the copy smaller and mirrored: without the search they would be separated."""
    for number, image in enumerate(drawings(5)):
        place = tmp_path / "data" / f"class_{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((64, 64)).save(place / f"{number}_copy.jpg")
    data = {"data_path": str(tmp_path / "data"), "image.size": [96, 96]}

    def torn(radius):
        splits = load_splits(make_config({**data, "duplicate_radius": radius}))
        part = np.zeros(60, np.int64)
        part[splits.valid], part[splits.test] = 1, 2
        numbers = [path.rpartition("/")[2].split("_")[0].split(".")[0] for path in splits.folder.paths]
        return sum(len({part[index] for index in range(60) if numbers[index] == one}) > 1 for one in set(numbers))

    assert torn(6) == 0
    assert torn(None) > 5
