import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import drawn, explanation_of, network_and_images, write_images
from matplotlib.colors import to_hex
from matplotlib.patches import ConnectionPatch, Rectangle

from utils import ask, matches_figure, region_figure
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


def asked(matches, **settings):
    """The figure of a region of matches that `matches_of` has made."""
    boxes = {name: settings.pop(name) for name in ("box1", "box2") if name in settings}
    network, _ = network_and_images(count=1)
    return region_figure(ask(network, matches, **boxes), **settings)


def outline(axes):
    """Left, top, right and bottom end of the box that is outlined, in pixels."""
    boxes = {tuple(patch.get_bbox().extents) for patch in axes.patches if isinstance(patch, Rectangle)}
    (box,) = boxes
    return box


def numbers_of(axes):
    """The numbers that stand in the image, with the pixel (x, y) of each and its colour."""
    return [
        (int(text.get_text()), text.get_position(), to_hex(text.get_bbox_patch().get_facecolor()))
        for text in axes.texts
    ]


def test_matches_are_drawn_where_they_are_and_all_else_is_paler(paths):
    shown = matches_figure(matches_of(two_matches(), paths))
    first, second = shown.axes
    assert [place for _, place, _ in numbers_of(first)] == [(6, 30), (30, 10)]  # of 48 x 40 pixels
    assert [place for _, place, _ in numbers_of(second)] == [(28, 16), (12, 48)]  # of 32 x 64
    image = read_image(paths[0])
    pixels = np.asarray(first.images[0].get_array())
    np.testing.assert_array_equal(pixels[32:, :4], image[32:, :4])
    np.testing.assert_array_equal(pixels[2:8, 28:32], image[2:8, 28:32])
    np.testing.assert_allclose(pixels[:8, :10], 127.5 + image[:8, :10] / 2, atol=0.51)
    assert len(first.collections) == 2  # outlines


def test_a_match_has_one_colour_on_both_images_and_in_the_legend(paths):
    shown = matches_figure(matches_of(two_matches(), paths))
    numbers = [[(number, colour) for number, _, colour in numbers_of(axes)] for axes in shown.axes]
    (legend,) = shown.subfigs[1].legends
    assert [text.get_text() for text in legend.get_texts()] == ["1: 56%", "2: 28%"]  # of 0.9
    colours = [to_hex(patch.get_facecolor()) for patch in legend.get_patches()]
    assert len(set(colours)) == 2
    assert numbers[0] == numbers[1] == list(enumerate(colours, start=1))
    lines = [part for part in shown.subfigs[0].artists if isinstance(part, ConnectionPatch)]
    assert [to_hex(line.get_edgecolor()) for line in lines] == colours


def test_both_figures_say_what_is_shown_and_of_what(paths):
    matches = matches_of(two_matches(), paths, classes=(("rose", "tall"),))
    for shown, kind in ((matches_figure(matches), "matches"), (asked(matches, box1=(0, 0, 0.5, 0.5)), "region")):
        words = texts(shown)
        assert matches.explanation.sentence() in words
        for part in ("rose/0.png", "tall/1.png", "layer3", "error of the sum +0.150"):
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
    (legend,) = shown.subfigs[1].legends
    listed = [int(text.get_text().split(": ")[1].rstrip("%")) for text in legend.get_texts()]
    found = re.search(
        r"embeddings 0\.900: the .*strongest mutual match(es)? (?P<shown>\S+) \((?P<share>\d+)%\), all other pairs of "
        r"places (?P<others>\S+) \(.*biases, which have no place (?P<biases>\S+) .*error of the sum (?P<error>\S+)",
        told,
    )
    parts = [float(found[name]) for name in ("shown", "others", "biases", "error")]
    assert sum(parts) == pytest.approx(0.9, abs=0.003)
    assert parts[0] + parts[1] == pytest.approx(sum(places.flatten().tolist()), abs=0.002)
    assert f"What matches what: {found['share']}% of the inner product" in told
    assert float(found["share"]) == pytest.approx(sum(listed), abs=len(listed))
    assert "%" not in replace(matches, cosine=-0.3).parts_in_words(matches.mutual())  # no share of what is negative


@pytest.mark.parametrize("value", [0.0, -0.5])
@pytest.mark.parametrize("cells", [1, 3])
def test_matches_that_add_nothing_are_drawn(value, cells):
    matches = matches_of(torch.full((cells,) * 4, value), names=(("a$b.png", "$x_1$.png"),))
    shown = matches_figure(matches)
    assert drawn(shown).std() > 5  # a dollar sign would open a formula
    shown = asked(matches, box1=(0.9, 0.0, 1.0, 0.1))
    assert "no place adds anything" in texts(shown)
    assert drawn(shown).std() > 5


def test_more_matches_than_colours_are_refused():
    with pytest.raises(ValueError, match="7 matches are too many for one figure"):
        matches_figure(matches_of(two_matches()), 7)


def test_a_box_its_counterpart_and_what_matches_it(paths):
    shown = asked(matches_of(two_matches(), paths), box1=(0.5, 0.0, 1.0, 0.25), opacity=1.0)
    first, second = shown.axes[:2]
    assert outline(first) == (-0.5, 19.5, 11.5, 39.5)  # of 48 x 40 pixels
    assert outline(second) == (23.5, -0.5, 31.5, 31.5)  # of 32 x 64
    image1, image2 = (read_image(path).astype(int) for path in paths)
    pixels = np.asarray(first.images[0].get_array())
    np.testing.assert_array_equal(pixels[20:, :12], image1[20:, :12])
    np.testing.assert_allclose(pixels[:20], 127.5 + image1[:20] / 2, atol=0.51)
    changed = np.abs(np.asarray(second.images[0].get_array()).astype(int) - image2).sum(axis=2) > 0
    assert changed[:16, 28:].all()  # the middle of its match, and outwards
    assert not changed[48:, :16].any()


def test_a_box_of_image_2_and_two_boxes(paths):
    matches = matches_of(two_matches(), paths)
    first, second = asked(matches, box2=(0.0, 0.75, 0.5, 1.0)).axes[:2]
    assert (first.get_title(), outline(first)) == ("the box, in image 2", (23.5, -0.5, 31.5, 31.5))
    assert "in image 1; outlined: its counterpart" in second.get_title()
    assert outline(second) == (-0.5, 19.5, 11.5, 39.5)
    first, second = asked(matches, box1=(0, 0, 1, 1), box2=(0.5, 0.25, 1.0, 0.5)).axes[:2]
    assert first.get_title() == "the box, in image 1"
    assert second.get_title() == "what matches it in image 2; outlined: the second box"
    assert outline(second) == (7.5, 31.5, 15.5, 63.5)


def test_the_title_says_the_share_and_the_caption_the_numbers(paths):
    matches = matches_of(two_matches(), paths)
    shown = asked(matches, box1=(0.5, 0.0, 1.0, 0.25))
    title = shown.get_suptitle().splitlines()
    assert len(title) == 2
    assert title[1] == "The box adds 67% of what all pairs of places add"
    answer = ask(network_and_images(count=1)[0], matches, box1=(0.5, 0.0, 1.0, 0.25))
    for line in str(answer).splitlines():
        assert line in texts(shown)
    shown = asked(replace(matches, places=-matches.places), box1=(0.5, 0.0, 1.0, 0.25), box2=(0, 0, 1, 1))
    assert shown.get_suptitle().splitlines()[1] == "Both boxes add -0.500 to the inner product"
