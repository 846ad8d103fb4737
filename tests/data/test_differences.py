"""The pairs of the benchmark that differ in the pattern of a butterfly."""

import hashlib
import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from helpers import ROOT

from utils.data.butterflies import SPECIES, draw
from utils.data.reading import read_image

sys.path.append(str(ROOT / "tests" / "benchmarks"))
import differences
from differences import draw_difference, load_differences, make_differences

DIGEST = "76ba5138fc1d4a8d3a4dcb4f9683426f98ae8d8750560a261b7fdf173e7ccd13"  # of four pairs, in sorted order


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    folder = tmp_path_factory.mktemp("differences")
    make_differences(folder, count=4)
    return folder


def test_same_bytes_everywhere(few, tmp_path):
    assert digest(few) == DIGEST
    make_differences(tmp_path, count=4, seed=2)
    assert digest(tmp_path) != DIGEST


def test_images_differ_inside_the_mask_and_nowhere_else():
    random = np.random.RandomState(3)
    for names in permutations(SPECIES, 2):
        image1, image2, mask = draw_difference(*names, random)
        differs = (image1 != image2).any(axis=2)
        assert np.array_equal(image1[mask == 0], image2[mask == 0])
        assert differs[mask == 255].mean() > 0.2
        assert 0.004 < (mask == 255).mean() < 0.3


def test_each_image_shows_its_species():
    """Against the sample's own way to draw one image, from the same random numbers."""
    for names in permutations(SPECIES, 2):
        *images, _ = draw_difference(*names, np.random.RandomState(7))
        for name, image in zip(names, images, strict=True):
            expected, _ = draw(name, np.random.RandomState(7))
            assert np.array_equal(image, expected)


def test_all_pairs_of_species_come_in_turn(monkeypatch, tmp_path):
    drawn = []

    def record(name1, name2, random):
        drawn.append((name1, name2))
        return [np.zeros((2, 2), np.uint8)] * 3

    monkeypatch.setattr(differences, "draw_difference", record)
    make_differences(tmp_path)
    assert len(drawn) == 128
    assert set(drawn[:30]) == set(permutations(SPECIES, 2))
    assert drawn[30:60] == drawn[:30]


def test_no_scene_is_one_of_the_sample(few):
    image = read_image(few / "image1" / "000.bmp")
    first, _ = draw("banded", np.random.RandomState(0))
    assert (image != first).any(axis=2).mean() > 0.9


def test_loading(few):
    pairs, masks = load_differences(few, (128, 128))
    assert masks.shape == (4, 128, 128)
    assert masks.dtype == torch.bool
    for (path1, path2), mask in zip(pairs, masks, strict=True):
        differs = torch.from_numpy((read_image(path1) != read_image(path2)).any(axis=2))
        assert differs.any()
        assert not differs[~mask].any()
        assert path1.endswith("bmp")
        assert path1.replace("image1", "image2") == path2
    _, larger = load_differences(few, (256, 256))
    assert (larger[:, ::2, ::2] == masks).float().mean() > 0.98
