"""Figures of images of any number of channels, pixel by pixel against NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from utils import (
    Source,
    ask,
    decompose,
    edit_figure,
    explain,
    figure,
    grid,
    grid_figure,
    hide_windows,
    images_figure,
    judge,
    matches_figure,
    methods_figure,
    region_figure,
    saved,
    smallest_edit,
    view,
)
from utils.config import Normalization
from utils.network.cut import Cut
from utils.show.drawing import photos

SIZE = (24, 30)


def network_of(channels):
    torch.manual_seed(0)
    first = nn.Conv2d(channels, 6, 5, stride=2, padding=2)
    return Cut(nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)), layer="1")


def explanation_of(count, images=None, **source):
    torch.manual_seed(1)
    images = torch.rand(2, 2, count, *SIZE) if images is None else images
    return explain(network_of(count), images, 0.01, source=Source(**source), method="hirescam")


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_channels_without_names_are_one_grey(channels):
    explanation = explanation_of(channels)
    for image, shown in zip(explanation.images[0].double().numpy(), photos(explanation), strict=True):
        assert shown.shape == (*SIZE, 3)
        expected = 255 * image.mean(axis=0)
        for colour in range(3):
            assert np.abs(shown[..., colour] - expected).max() <= 0.51


@pytest.mark.parametrize(("channels", "named"), [(4, (3, 2, 1)), (12, (7, 0, 11)), (3, (2, 1, 0)), (1, (0, 0, 0))])
def test_named_channels_are_red_green_and_blue(channels, named):
    explanation = explanation_of(channels, channels=named)
    for image, shown in zip(explanation.images[0].double().numpy(), photos(explanation), strict=True):
        for colour, channel in enumerate(named):
            assert np.abs(shown[..., colour] - 255 * image[channel]).max() <= 0.51


@pytest.mark.parametrize(("channels", "named"), [(1, None), (4, None), (12, (7, 0, 11)), (3, (2, 1, 0))])
def test_each_channel_has_a_normalization_of_its_own(channels, named):
    torch.manual_seed(2)
    pixels = torch.rand(1, 2, channels, *SIZE, dtype=torch.float64)
    mean = torch.linspace(0.2, 0.7, channels, dtype=torch.float64)
    std = torch.linspace(0.1, 0.9, channels, dtype=torch.float64)
    images = ((pixels - mean[:, None, None]) / std[:, None, None]).float()
    normalization = Normalization(mean=mean.tolist(), std=std.tolist())
    explanation = explanation_of(channels, images, normalization=normalization, channels=named)
    for image, shown in zip(pixels[0].numpy(), photos(explanation), strict=True):
        expected = image[list(named)] if named else np.repeat(image.mean(axis=0)[None], 3, axis=0)
        assert np.abs(shown - 255 * expected.transpose(1, 2, 0)).max() <= 1.01  # rounded once more for the mean


def test_brightness_is_stretched_over_what_is_shown():
    """A channel that is not shown, of larger values by far, leaves the others their contrast."""
    images = torch.rand(1, 2, 4, *SIZE)
    images[:, :, 0] *= 10_000
    images[:, :, 1] *= 50
    explanation = explanation_of(4, images, channels=(1, 2, 3))
    most = images[:, :, 1:].max().item()
    shown = photos(explanation)[0]
    assert np.abs(shown[..., 0] - 255 * images[0, 0, 1].numpy() / most).max() <= 0.51
    assert "brightness stretched" in words(images_figure(explanation))


def words(shown):
    return " ".join(" ".join(axes.get_xlabel() for axes in shown.axes).split())


def test_images_say_which_channels_are_shown():
    assert "24 x 30 pixels, channels 3, 2 and 1 of 4 in red, green and blue" in words(
        images_figure(explanation_of(4, channels=(3, 2, 1))[0])
    )
    assert "24 x 30 pixels, the mean of 12 channels" in words(images_figure(explanation_of(12)[0]))
    for channels in (1, 3):
        assert "channels" not in words(images_figure(explanation_of(channels)[0]))


def test_named_channels_are_shown_where_files_would_be(tmp_path):
    path = str(tmp_path / "red.png")
    Image.new("RGB", (60, 48), "red").save(path)
    paths = [(path, path)] * 2
    assert photos(explanation_of(3, paths=paths))[0].shape == (48, 60, 3)
    turned = photos(explanation_of(3, paths=paths, channels=(2, 1, 0)))
    assert np.array_equal(turned[0], photos(explanation_of(3))[0][..., ::-1])


def test_two_choices_of_channels_are_two_files(tmp_path):
    explanation = explanation_of(4)[0]
    for channels in (None, (3, 2, 1), (0, 1, 2)):
        saved(figure(replace(explanation, source=replace(explanation.source, channels=channels))), tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize(("channels", "named"), [(1, None), (4, (3, 2, 1))])
def test_every_figure_and_page_draws_them(channels, named, tmp_path):
    network = network_of(channels)
    explanation = explanation_of(channels, channels=named)
    verdict = judge(network, explanation)
    pair = explanation[0]
    matches = decompose(network, pair)
    change = smallest_edit(network, pair)
    figures = (
        figure(explanation, verdict),
        grid_figure(explanation, verdict),
        images_figure(pair),
        methods_figure({"hirescam": verdict[0]}),
        matches_figure(matches),
        region_figure(ask(network, matches, box2=(0.2, 0.3, 0.6, 0.7))),
        edit_figure(change),
    )
    for shown in figures:
        saved(shown, tmp_path)
    windows = hide_windows(network, pair)
    for page in (view(pair, verdict[0], matches, change, windows), grid(explanation, network, verdict)):
        page.saved(tmp_path)
    pictures = [np.asarray(Image.open(path)) for path in tmp_path.glob("*.png")]
    assert len(pictures) == len(figures)
    assert all(picture.std() > 5 for picture in pictures)
    assert len(list(tmp_path.glob("*.html"))) == 2
