import hashlib
import itertools
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data import butterflies
from utils.data import sample as sample_module
from utils.data.images import content_digest, scan
from utils.data.reading import read_image
from utils.data.sample import ensure_sample, load_masks, make_sample, masks_folder

# of two images and two masks a class, in sorted order: the sample is the same byte for byte on every machine
DIGEST = "d3335c320d23c210c99d0cc2b4207585655a4092e5c3aa2bb9f68dcb5537ba09"


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "Butterflies"
    make_sample(folder, images_per_class=2)
    return folder


def test_same_bytes_everywhere(sample):
    assert digest(sample.parent) == DIGEST


def test_another_seed_makes_other_images(sample, tmp_path):
    make_sample(tmp_path / "Butterflies", images_per_class=2, seed=1)
    assert digest(tmp_path) != digest(sample.parent)


def test_six_species_and_masks_outside_the_class_folders(sample):
    folder = scan(sample)
    assert folder.classes == tuple(sorted(butterflies.SPECIES))
    assert np.bincount(folder.labels).tolist() == [2] * 6
    assert len({content_digest(path) for path in folder.paths}) == len(folder.paths)
    for path in folder.paths:
        assert read_image(path).shape == (128, 128, 3)
        mask = read_image(path.replace(str(sample), str(masks_folder(sample))))[..., 0]
        assert set(np.unique(mask)) <= {0, *range(143, 256, 16)}
        assert {0, butterflies.BODY, butterflies.WING, butterflies.DARK} <= set(np.unique(mask))
        assert 0.04 < (mask > 127).mean() < 0.3
        assert (mask >= butterflies.DARK).mean() > 0.004  # what tells the species is large enough to be seen


def test_species_differ_in_the_pattern_of_the_wings_only():
    """Drawn twice from one random stream, two species differ inside their masks and nowhere else."""
    for name1, name2 in itertools.combinations(butterflies.SPECIES, 2):
        (image1, mask1), (image2, mask2) = (butterflies.draw(name, np.random.RandomState(5)) for name in (name1, name2))
        assert np.array_equal(mask1 > 0, mask2 > 0)
        pattern = np.maximum(mask1, mask2) >= butterflies.DARK
        differs = (image1 != image2).any(axis=2)
        assert differs[pattern].mean() > 0.25
        assert not differs[~pattern].any()


def test_the_two_that_are_hard_to_tell_differ_in_the_eyespots_of_the_hindwings():
    for seed in range(4):
        (_, two), (_, four) = (
            butterflies.draw(name, np.random.RandomState(seed)) for name in ("two_eyed", "four_eyed")
        )
        new = four != two
        assert (four[new] >= butterflies.DARK).all()
        assert (two[new] < butterflies.DARK).all()
        assert 0.5 < (two >= butterflies.DARK).sum() / new.sum() < 2


def test_nothing_is_overwritten_or_left_half_made(sample, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="delete or rename"):
        make_sample(sample)
    monkeypatch.setattr(sample_module, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_sample(tmp_path / "Butterflies")
    assert list(tmp_path.iterdir()) == []


def test_only_the_bundled_sample_is_made_on_demand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []
    monkeypatch.setattr(sample_module, "make_sample", made.append)
    ensure_sample("Data/Elsewhere")
    assert made == []
    ensure_sample("Data/Butterflies")
    ensure_sample(tmp_path / "Data" / "Butterflies")
    assert len(made) == 2
    (tmp_path / "Data" / "Butterflies").mkdir(parents=True)
    ensure_sample("Data/Butterflies")
    assert len(made) == 2


def test_masks_are_found_beside_the_images(tmp_path):
    pairs = [(tmp_path / "Data" / "a" / "1.png", tmp_path / "Data" / "a" / "2.png")]
    assert load_masks(tmp_path / "Data", pairs, (4, 6)) is None
    (tmp_path / "Data_masks" / "a").mkdir(parents=True)
    mask = np.zeros((8, 12), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(tmp_path / "Data_masks" / "a" / "1.png")
    assert load_masks(tmp_path / "Data", pairs, (4, 6)) is None  # both, or none
    Image.fromarray(mask[::-1]).save(tmp_path / "Data_masks" / "a" / "2.png")
    masks = load_masks(tmp_path / "Data", pairs, (4, 6))
    assert masks.shape == (1, 2, 4, 6)
    assert masks[0, 0, :2].all()
    assert not masks[0, 0, 2:].any()
    assert torch.equal(masks[0, 1], masks[0, 0].flip(0))


def test_masks_are_found_under_names_in_another_unicode_form(tmp_path):
    """An archive of macOS has decomposed names; the masks beside it may come from elsewhere."""
    for name in ("caf\u00e9", "\uac00"):
        stored = unicodedata.normalize("NFD", name)
        (tmp_path / "Data_masks" / stored).mkdir(parents=True)
        Image.fromarray(np.full((4, 6), 255, np.uint8)).save(tmp_path / "Data_masks" / stored / f"{stored}.png")
        image = tmp_path / "Data" / name / f"{name}.png"
        assert load_masks(tmp_path / "Data", [(image, image)], (4, 6)).all()
