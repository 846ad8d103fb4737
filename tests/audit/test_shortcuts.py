from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from helpers import COLOURS, by_pillow, tiny_settings
from PIL import Image
from torch import nn

from utils import fit, load_config, load_trained
from utils.audit import shortcuts
from utils.audit.shortcuts import (
    QUALITY,
    PropertyImages,
    border_and_middle,
    equalize_aspect,
    equalize_brightness,
    equalize_size,
    find_shortcuts,
    load_property_images,
    properties_of,
)
from utils.data.splits import Pairs, draw_pairs, load_splits

SIZE = (40, 48)
FRAME = 4  # pixels
MIDDLE = (slice(14, 26), slice(17, 31))
TINTS = np.array(list(COLOURS.values()))


class Reads(nn.Module):
    """The embedding is the sum of colours, weighted by places, brought to length 1: these alone are evidence."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.from_numpy(weights)

    def forward(self, images):
        return nn.functional.normalize((images * self.weights).sum(dim=(2, 3)))


class ReadsLight(nn.Module):
    """The embedding is (cos a, sin a), where the angle a is the mean of all pixels."""

    def forward(self, images):
        angles = images.mean(dim=(1, 2, 3))
        return torch.stack([angles.cos(), angles.sin()], dim=1)


def framed(pixels, colour):
    pixels[:FRAME] = pixels[-FRAME:] = pixels[:, :FRAME] = pixels[:, -FRAME:] = colour
    return pixels


def write_classes(root, draw, count=10, ending="png"):
    """Three classes of `count` images; draw: from a class 0 to 2 and a generator to uint8 (H, W, 3)."""
    random = np.random.default_rng(0)
    for label, name in enumerate(COLOURS):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw(label, random).astype(np.uint8)).save(root / name / f"{name}_{number}.{ending}")
    return root


def noise(random):
    return random.integers(60, 196, (*SIZE, 3))


def patched(label, random):
    """The middle tells the class; the frame is of any colour."""
    pixels = framed(noise(random), random.integers(0, 256, 3))
    pixels[MIDDLE] = TINTS[label]
    return pixels


@pytest.fixture
def planted(trained, make_config, tmp_path):
    """planted(draw, network): a dataset drawn class by class, and a network with known evidence as a trained one."""

    def make(draw, network, **changes):
        root = write_classes(tmp_path / "Planted", draw)
        config = make_config({"data_path": str(root), "image.size": list(SIZE), "duplicate_radius": None, **changes})
        return replace(trained, config=config, network=network), load_splits(config)

    return make


def by_name(shortcuts):
    return {shortcut.name.split(" (")[0]: shortcut for shortcut in shortcuts.properties}


def frame_alone():
    where = np.ones(SIZE, bool)
    where[FRAME:-FRAME, FRAME:-FRAME] = False
    return where


def middle_alone():
    where = np.zeros(SIZE, bool)
    where[MIDDLE] = True
    return where


def test_a_frame_that_a_network_reads_is_named_first(planted):
    found = find_shortcuts(*planted(lambda label, random: framed(noise(random), TINTS[label]), Reads(frame_alone())))
    first = found.properties[0]
    assert first.name == "border (outer 10%)"
    assert first.share.value == pytest.approx(1, abs=0.01)
    assert first.control == pytest.approx(0, abs=0.01)
    assert first.matters
    assert first.auc.value == 1
    assert str(found).splitlines()[1].startswith("The border (outer 10%) carries 100% (100% to 100%) of the score")
    assert "by itself, without the network" in first.sentence()


def test_a_frame_of_any_colour_is_not_named(planted):
    """Neither where the network reads the middle alone, nor where it reads a little of the frame."""
    trained, splits = planted(patched, Reads(middle_alone()))
    border = by_name(find_shortcuts(trained, splits))["border"]
    assert border.share.value == 0
    assert border.control == pytest.approx(1, abs=0.01)
    a_little = replace(trained, network=Reads(middle_alone() + 0.05 * frame_alone()))
    found = find_shortcuts(a_little, splits)
    border = by_name(found)["border"]
    assert border.share.value != 0
    assert not border.matters
    assert not border.tells
    assert "The border" not in str(found)


def test_brightness_is_named_by_what_it_carries_and_by_itself(planted):
    found = find_shortcuts(*planted(lambda label, random: noise(random) // (label + 1), ReadsLight()))
    light = by_name(found)["brightness"]
    assert light.share.value > 0.95
    assert light.auc.value == 1
    assert light.matters
    assert light.tells
    assert light.sentence().endswith("check whether classes were photographed in different light.")


def test_a_class_revealed_by_size_or_format_only(trained, make_config, tmp_path):
    """The pixels of all classes are alike, and the network sees nothing."""
    root = write_classes(tmp_path / "Files", lambda label, random: noise(random))
    kinds = {"blue": (1, ".bmp"), "green": (2, ".png"), "red": (4, ".tif")}
    for path in list(root.glob("*/*.png")):
        scale, ending = kinds[path.parent.name]
        image = Image.open(path).resize((48 * scale, 40 * scale))
        path.unlink()
        image.save(path.with_suffix(ending))
    config = make_config({"data_path": str(root), "duplicate_radius": None})
    found = find_shortcuts(replace(trained, config=config, network=ReadsLight()), load_splits(config))
    properties = by_name(found)
    assert properties["size"].tells
    assert properties["file format"].tells
    assert not properties["aspect"].tells
    assert not properties["brightness"].tells
    assert "The size separates pairs by itself" in str(found)


def test_without_a_score_there_are_no_shares(planted):
    """Labels that mean nothing: it says so instead of shares of noise."""
    found = find_shortcuts(*planted(lambda label, random: noise(random), Reads(middle_alone())))
    assert found.score.low <= 0
    assert all(np.isnan(shortcut.share.value) for shortcut in found.properties)
    assert not any(shortcut.matters for shortcut in found.properties)
    assert "no share of it was measured" in str(found)


def test_background_where_there_are_masks(planted, tmp_path):
    """The background tells the class, then the object does; both are known from masks."""

    def draw(label, random):
        pixels = noise(random) * 0 + TINTS[label]
        pixels[MIDDLE] = random.integers(0, 256, 3)
        return pixels

    trained, splits = planted(draw, Reads(~frame_alone() & ~middle_alone()))
    assert "background" not in by_name(find_shortcuts(trained, splits))
    mask = np.zeros(SIZE, np.uint8)
    mask[MIDDLE] = 255
    for path in splits.folder.paths:
        file = path.replace("Planted", "Planted_masks")
        (tmp_path / "Planted_masks" / file.split("/")[-2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(file)
    background = by_name(find_shortcuts(trained, splits))["background"]
    assert background.share.value == pytest.approx(1, abs=0.01)
    assert background.control == pytest.approx(0, abs=0.01)
    assert background.auc.value == 1
    of_object = by_name(find_shortcuts(replace(trained, network=Reads(middle_alone())), splits))["background"]
    assert not of_object.matters


def images_of(pixels, sizes=None, formats=None):
    count = len(pixels)
    sizes = np.array([pixels.shape[1:3]] * count) if sizes is None else np.array(sizes)
    formats = np.array(["PNG"] * count if formats is None else formats)
    return PropertyImages(pixels, sizes, formats, None, np.array([9, 8, 7], np.uint8))


def random_pixels(count=6, size=(30, 50), top=256):
    return np.random.default_rng(0).integers(0, top, (count, *size, 3)).astype(np.uint8)


def test_border_and_middle_have_one_area_and_nothing_else_changes():
    images = images_of(random_pixels())
    border, middle = border_and_middle((30, 50))
    assert border[:3].all()
    assert border[:, -3:].all()
    assert not border[3:-3, 3:-3].any()
    assert middle.mean() == pytest.approx(border.mean(), abs=0.05)
    assert np.array_equal(middle, middle[::-1, ::-1])
    hidden = images.hidden(border)
    assert (hidden[:, border] == [9, 8, 7]).all()
    assert np.array_equal(hidden[:, ~border], images.pixels[:, ~border])
    (of_border, *_) = properties_of(images)
    assert np.array_equal(of_border.equalized, hidden)
    assert np.array_equal(of_border.control, images.hidden(middle))


def test_one_brightness_for_all():
    pixels = random_pixels(top=120)
    pixels[0] //= 2
    equalized = equalize_brightness(pixels)
    light = [np.asarray(Image.fromarray(image).convert("L"), float).mean() for image in equalized]
    assert np.ptp(light) < 1
    black = np.zeros((2, 8, 8, 3), np.uint8)
    assert np.array_equal(equalize_brightness(black), black)


def test_one_size_removes_what_small_files_never_had():
    """A sharp image and the same from a file of a third of its sides end up nearly equal, and were not before."""
    sharp = random_pixels(count=1, size=(60, 60))[0]
    small = np.asarray(Image.fromarray(sharp).resize((20, 20), Image.Resampling.BILINEAR))
    soft = np.asarray(Image.fromarray(small).resize((60, 60), Image.Resampling.BILINEAR))
    pixels = np.stack([sharp, soft])
    before = abs(sharp.astype(float) - soft).mean()
    equalized = equalize_size(pixels, np.array([(20, 20)] * 2)).astype(float)
    assert abs(equalized[0] - equalized[1]).mean() < 0.2 * before
    assert np.array_equal(equalize_size(pixels, np.array([(600, 700)] * 2)), pixels)


def test_one_aspect_cuts_the_wider_and_the_higher():
    """A disk that was squeezed into the square is as wide as high again, up to the median's own squeeze."""
    rows, columns = np.mgrid[:120, :120]
    wide = ((rows - 60) ** 2 + (2 * (columns - 60)) ** 2 < 40**2) * np.uint8(255)  # of a file twice as wide as high
    square = ((rows - 60) ** 2 + (columns - 60) ** 2 < 40**2) * np.uint8(255)
    high = wide.T.copy()
    pixels = np.stack([wide, square, high])[..., None].repeat(3, axis=3)
    equalized = equalize_aspect(pixels, np.array([2.0, 1.0, 0.5])) > 127
    assert np.array_equal(equalized[1], pixels[1] > 127)
    for image in equalized:
        height, width = (image[..., 0].any(axis=axis).sum() for axis in (1, 0))
        assert height == pytest.approx(width, abs=2)


def format_equalized(pixels):
    (of_format,) = [item for item in properties_of(images_of(pixels)) if item.name == "file format"]
    return of_format.equalized


def test_one_format_is_jpeg():
    pixels = random_pixels(size=(32, 32))
    equalized = format_equalized(pixels)
    assert equalized.shape == pixels.shape
    assert abs(equalized.astype(float) - pixels).mean() > 5  # noise does not survive
    flat = np.full((1, 32, 32, 3), (200, 50, 40), np.uint8)
    assert abs(format_equalized(flat).astype(float) - flat).max() <= 4  # colours stay in their places
    for image, decoded in zip(pixels, equalized, strict=True):
        assert abs(decoded.astype(int) - by_pillow(image, QUALITY)).max() <= 2


def test_values_are_what_they_are_named_for():
    pixels = np.stack([np.full((20, 20, 3), value, np.uint8) for value in (10, 200)])
    images = images_of(pixels, [(100, 100), (100, 400)], ["PNG", "JPEG"])
    values = {item.name.split(" (")[0]: item.values for item in properties_of(images)}
    assert values["brightness"].ravel() == pytest.approx([10, 200])
    assert np.diff(values["size"].ravel()) == pytest.approx(np.log(4))
    assert np.diff(values["aspect"].ravel()) == pytest.approx(np.log(4))
    assert values["border"] == pytest.approx(np.array([[10] * 3, [200] * 3]))
    assert sorted(values["file format"].tolist()) == [[0, 1], [1, 0]]


def test_files_lying_on_their_side_have_the_aspect_that_is_seen(trained, make_config, tmp_path):
    root = write_classes(tmp_path / "Sideways", lambda label, random: noise(random), ending="jpg")
    path = sorted((root / "red").iterdir())[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    config = make_config({"data_path": str(root), "duplicate_radius": None})
    splits = load_splits(config)
    places = [splits.folder.paths.index(str(path)), 0]
    images = load_property_images(replace(trained, config=config), splits, np.array(places), splits.train)
    assert images.sizes.tolist() == [[48, 40], [40, 48]]
    assert images.formats.tolist() == ["JPEG", "JPEG"]
    training = [np.asarray(Image.open(splits.folder.paths[index]), float) for index in splits.train]
    assert images.colour == pytest.approx(np.mean(training, axis=(0, 1, 2)), abs=1.5)


def test_score_and_share_of_weighted_pairs_by_repeating_them():
    """A pair of weight 3 counts as three pairs would."""
    random = np.random.default_rng(0)
    pairs = Pairs(np.array([0, 1, 2, 3, 0, 1]), np.array([1, 2, 3, 0, 2, 3]), np.array([0, 1, 0, 1, 1, 1]))
    distances = random.random(6)
    for _ in range(10):
        weights = random.integers(0, 4, 6)
        labels = np.repeat(pairs.labels, weights)
        repeated = np.repeat(distances, weights)
        found = shortcuts._score(distances, pairs, weights.astype(float))
        if len(set(labels)) < 2:
            assert np.isnan(found)
        else:
            means = [repeated[labels == kind].mean() for kind in (0, 1)]
            assert found == pytest.approx(means[1] - means[0])
    halved = shortcuts.share_of_score(distances, distances / 2, pairs)
    assert (halved.value, halved.low, halved.high) == pytest.approx((0.5, 0.5, 0.5))


def draw_distances(random, images=48, classes=4):
    """Distances before and after a change that takes a part of what tells the classes, of images of unequal noise."""
    labels = np.arange(images) % classes
    centres = np.eye(8)[labels]
    noise = random.normal(size=(images, 8)) * 0.25 * random.lognormal(0, 0.5, (images, 1))
    lost = random.random((images, 1)) < 0.5
    pairs = draw_pairs(np.arange(images), labels, 4, random)
    found = []
    for embeddings in (centres + noise, centres * (1 - 0.8 * lost) + noise):
        found.append(np.linalg.norm(embeddings[pairs.first] - embeddings[pairs.second], axis=1))
    return pairs, *found


def test_intervals_of_shares_cover_the_truth_and_are_no_wider_than_they_must_be():
    """The truth is of a simulated world of many images; each draw has 48, in 4 pairs of each kind an image.

    Resampling images without the correction for the noise of a pair (the way that this test replaces) is too wide.
    """
    random = np.random.default_rng(3)
    shares = []
    covered = []
    widths = []
    uncorrected = []
    for seed in range(200):
        pairs, before, after = draw_distances(random)
        found = shortcuts.share_of_score(before, after, pairs, seed)
        shares.append(found.value)
        covered.append((found.low, found.high))
        widths.append((found.high - found.low) / (2 * 1.96))
        if seed < 20:
            drawn = random.multinomial(48, np.full(48, 1 / 48), 100)
            scores = [
                shortcuts._score(one, pairs, row)
                for row in drawn[:, pairs.first] * drawn[:, pairs.second]
                for one in (before, after)
            ]
            low, high = np.nanpercentile(1 - np.array(scores[1::2]) / np.array(scores[::2]), (2.5, 97.5))
            uncorrected.append((high - low) / (2 * 1.96))
    truth = np.mean(shares)  # of a ratio of means, whose bias is small beside its spread
    within = np.mean([low <= truth <= high for low, high in covered])
    assert 0.9 <= within <= 0.98
    assert np.mean(widths) == pytest.approx(np.std(shares), rel=0.15)
    assert np.mean(uncorrected) > 1.25 * np.std(shares)


@pytest.fixture(scope="module")
def taught_by_frames(tmp_path_factory):
    """A small network trained on images of noise in a frame of the colour of their class."""
    folder = tmp_path_factory.mktemp("framed")
    root = write_classes(folder / "Data", lambda label, random: framed(noise(random), TINTS[label]), count=12)
    content = tiny_settings(root, folder)
    content["backbone_model"] = "ResNet18"
    content["hyperparameters"]["epochs"] = 2
    (folder / "config.yml").write_text(yaml.safe_dump(content | {"duplicate_radius": None}))
    config = load_config(folder / "config.yml")
    fit(config)
    return load_trained(config)


def test_a_network_taught_by_frames_is_found_out_and_its_maps_show_it(taught_by_frames):
    trained = taught_by_frames
    splits = trained.load_splits()
    found = find_shortcuts(trained, splits)
    assert found.properties[0].name == "border (outer 10%)"
    assert found.properties[0].share.value > 0.8
    assert found.properties[0].matters
    factual = trained.explain(*splits.files(splits.test_pairs, 12), layer="layer2").factual
    frame = torch.from_numpy(frame_alone() * 1.0)[None, None]
    frame = nn.functional.interpolate(frame, factual.shape[2:])[0, 0]
    strongest = factual.flatten(2).topk(frame.numel() // 20).indices
    assert frame.flatten()[strongest].mean() > 1.5 * frame.mean()
