import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import drawn, explanation_of, network_and_images, write_images
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from utils import matches_figure, point_figure
from utils.data.reading import read_image
from utils.explanations.matches import Matches


@pytest.fixture
def paths(tmp_path):
    write_images(tmp_path / "rose", 1, (40, 48))
    write_images(tmp_path / "tall", 2, (64, 32), seed=1)
    return str(tmp_path / "rose" / "0.png"), str(tmp_path / "tall" / "1.png")


def matches_of(places, paths=None, names=(("rose/0.png", "tall/1.png"),), **source):
    network, images = network_and_images(count=1)
    source |= {"paths": paths and (paths,)}
    factual = torch.zeros(1, 2, 64, 64)
    explanation = explanation_of(network, images, factual, names=names, method="gradcam", layer="layer4", **source)
    biases = torch.zeros(places.shape[:2])
    return Matches(explanation, "layer3", places, biases, biases, 0.0, 0.9)


def two_matches():
    places = torch.zeros(2, 4, 2, 4)
    places[1, 0, 0, 3] = 0.5
    places[0, 2, 1, 1] = 0.25
    return places


def texts(shown):
    """All words of a figure, in one line."""
    return " ".join(" ".join(text.get_text().split()) for text in shown.findobj(plt.Text))


def outlines(axes):
    """Left, top, right and bottom end of each outlined region, in pixels, and its colour, by number."""
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [
        ((*one.get_xy(), one.get_x() + one.get_width(), one.get_y() + one.get_height()), one.get_edgecolor())
        for one in found
    ]


def test_matches_are_drawn_where_they_are_and_all_else_is_faded(paths):
    shown = matches_figure(matches_of(two_matches(), paths))
    first, second = shown.axes
    assert [box for box, _ in outlines(first)] == [(-0.5, 19.5, 11.5, 39.5), (23.5, -0.5, 35.5, 19.5)]
    assert [box for box, _ in outlines(second)] == [(23.5, -0.5, 31.5, 31.5), (7.5, 31.5, 15.5, 63.5)]
    image = read_image(paths[0])
    pixels = np.asarray(first.images[0].get_array())
    np.testing.assert_array_equal(pixels[20:, :12], image[20:, :12])
    np.testing.assert_array_equal(pixels[:20, 24:36], image[:20, 24:36])
    outside = pixels[:20, :24]
    assert (np.ptp(outside, axis=2) == 0).all()  # grey
    assert outside.min() >= 190  # and nearly white


def test_a_match_has_one_colour_on_both_images_and_in_the_legend(paths):
    shown = matches_figure(matches_of(two_matches(), paths))
    colours = [[to_hex(colour) for _, colour in outlines(axes)] for axes in shown.axes]
    (legend,) = shown.legends
    assert [text.get_text() for text in legend.get_texts()] == ["1: +0.500", "2: +0.250"]
    assert colours[0] == colours[1] == [to_hex(patch.get_facecolor()) for patch in legend.get_patches()]
    assert len(set(colours[0])) == 2
    for axes in shown.axes:
        assert [text.get_text() for text in axes.texts] == ["1", "2"]


def test_both_figures_say_what_is_shown_and_of_what(paths):
    matches = matches_of(two_matches(), paths, classes=(("rose", "tall"),))
    for shown, kind in ((matches_figure(matches), "matches"), (point_figure(matches, (0.5, 0.5)), "point")):
        words = texts(shown)
        assert matches.explanation.sentence() in words
        for part in (
            "rose/0.png",
            "tall/1.png",
            "layer3",
            "residual +0.150" if kind == "matches" else "residual +1.5e-01",
        ):
            assert part in words
        assert shown.get_label().startswith(kind)
        assert drawn(shown).std() > 5
    assert plt.get_fignums() == []


def test_what_is_shown_is_said_as_a_share_of_the_whole():
    """Readers take what is listed for all there is: the parts in the sentence add up to the inner product."""
    random = torch.Generator().manual_seed(3)
    places = torch.rand(4, 4, 4, 4, generator=random) / 100
    places[1, 0, 0, 3] = 0.2
    bias1, bias2 = torch.rand(2, 4, 4, generator=random) / 10 - 0.1
    matches = replace(matches_of(places), bias1=bias1, bias2=bias2, bias=-0.02, cosine=0.9)
    shown = matches_figure(matches)
    told = texts(shown)
    listed = [float(text.get_text().split(": ")[1]) for text in shown.legends[0].get_texts()]
    found = re.search(
        r"of 0\.900 the .*strongest mutual match(es add| adds) (?P<shown>\S+) \((?P<share>\d+)%\), all other pairs "
        r"of places (?P<others>\S+), the biases (?P<biases>\S+), residual (?P<residual>\S+?)(?= Image)",
        told,
    )
    parts = [float(found[name]) for name in ("shown", "others", "biases", "residual")]
    assert sum(parts) == pytest.approx(0.9, abs=0.003)
    assert parts[0] == pytest.approx(sum(listed), abs=0.001 * len(listed))
    assert parts[0] + parts[1] == pytest.approx(sum(places.flatten().tolist()), abs=0.002)
    assert float(found["share"]) == pytest.approx(100 * sum(listed) / 0.9, abs=1)
    assert found["shown"] in str(matches)
    assert "%" not in replace(matches, cosine=-0.3).parts_in_words(matches.mutual())  # no share of what is negative


@pytest.mark.parametrize("value", [0.0, -0.5])
@pytest.mark.parametrize("cells", [1, 3])
def test_matches_that_add_nothing_are_drawn(value, cells):
    matches = matches_of(torch.full((cells,) * 4, value), names=(("a$b.png", "$x_1$.png"),))
    shown = matches_figure(matches)
    assert drawn(shown).std() > 5  # a dollar sign would open a formula
    assert f"1: {value:+.3f}" in texts(shown)
    assert drawn(point_figure(matches, (0.99, 0.0))).std() > 5


def test_more_matches_than_colours_are_refused():
    with pytest.raises(ValueError, match="7 matches are too many for one figure"):
        matches_figure(matches_of(two_matches()), 7)


def test_a_point_and_what_it_matches(paths):
    shown = point_figure(matches_of(two_matches(), paths), (0.9, 0.1), opacity=1.0)
    first, second = shown.axes[:2]
    assert [box for box, _ in outlines(first)] == [(-0.5, 19.5, 11.5, 39.5)]
    assert "at most +0.500 of 0.900" in second.get_xlabel()
    image = read_image(paths[1]).astype(int)
    changed = np.abs(np.asarray(second.images[0].get_array()).astype(int) - image).sum(axis=2) > 0
    assert changed[:16, 28:].all()  # the middle of its match, and outwards
    assert not changed[48:, :16].any()
