from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from helpers import drawn
from matplotlib.colors import to_rgba

from utils import edit_figure
from utils.explanations.edits import Edit
from utils.explanations.explanation import Explanation, Source


def explanation_of(count=1, names=(), **source):
    """An explanation, decided "different", of pairs of noise."""
    images = torch.rand(count, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(2, count, 2, 8, 8)
    return Explanation(
        images,
        torch.full((count,), 0.8),
        0.5,
        *maps,
        method="gradcam",
        layer="layer3",
        names=names,
        source=Source(**{"warning": ""} | source),
    )


def texts(shown):
    """All words of a figure, in one line."""
    return " ".join(" ".join(text.get_text().split()) for text in shown.findobj(plt.Text))


def outlines(axes):
    """What is outlined in a panel: the colour and the (left, right, top, bottom) of each outline."""
    found = []
    for outline in axes.collections:
        points = np.concatenate([path.vertices for path in outline.get_paths()])
        (left, top), (right, bottom) = points.min(0), points.max(0)
        found.append((tuple(outline.get_edgecolor()[0]), (left, right, top, bottom)))
    return found


def test_the_figure_says_what_made_it_and_of_what():
    explanation = explanation_of(names=(("rose/0.png", "rose/1.png"),), classes=(("rose", "rose"),))
    regions = torch.ones(2, 8, 8, dtype=torch.bool)
    shown = edit_figure(Edit(explanation, explanation.images[0], regions, 0.3))
    words = texts(shown)
    for part in (
        "rose/0.png",
        "rose/1.png",
        "Different (similarity 0.600; limit 0.750); incorrect: both are rose",
        "gradcam at layer3",
    ):
        assert part in words
    assert shown.get_label().startswith("edit_different_0_1_")
    assert drawn(shown).std() > 5
    assert plt.get_fignums() == []


def test_what_changed_and_where_it_is_from_are_outlined():
    explanation = explanation_of()
    regions = torch.zeros(2, 8, 8, dtype=torch.bool)
    regions[0, 1:3, 4:7] = True
    source = torch.zeros(8, 8, dtype=torch.bool)
    source[5:7, 0:3] = True
    edited = explanation.images[0]
    shown = edit_figure(Edit(explanation, edited, regions, 0.3, explanation, source))
    panels = [outlines(axes) for axes in shown.axes]
    assert panels == [
        [],
        [(to_rgba("yellow"), (-0.5, 2.5, 4.5, 6.5))],
        [(to_rgba("white"), (3.5, 6.5, 0.5, 2.5))],
        [],
    ]


def test_a_third_image_is_shown_with_its_name_and_source():
    explanation = explanation_of()
    donor = replace(explanation_of(), images=torch.rand(1, 2, 3, 8, 8), names=(("rose/0.png", "tulip/7.png"),))
    regions = torch.ones(2, 8, 8, dtype=torch.bool)
    source = torch.ones(8, 8, dtype=torch.bool)
    shown = edit_figure(Edit(explanation, explanation.images[0], regions, 0.3, donor, source))
    axes = shown.axes[2]
    expected = (255 * donor.images[0, 1]).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    assert axes.get_xlabel() == "tulip/7.png"
    assert len(outlines(axes)) == 1
    assert outlines(shown.axes[1]) == []


def test_the_class_of_most_references_is_not_taken_for_that_of_the_nearest():
    """The nearest file may be of another class than most: each is said of what it is."""
    explanation = explanation_of()
    regions = torch.ones(2, 8, 8, dtype=torch.bool)
    before = ("tulip/3.png", "rose/1.png", "rose/2.png"), ("tulip/4.png",) * 3
    after = ("tulip/5.png", "tulip/6.png", "rose/7.png"), ("tulip/4.png",) * 3
    found = Edit(explanation, explanation.images[0], regions, 0.3, None, None, before, after)
    labels = [axes.get_xlabel() for axes in edit_figure(found).axes]
    assert labels == [
        "nearest training images: 2 of 3 are rose\nthe very nearest: tulip/3.png",
        "nearest training images: 3 of 3 are tulip\nthe very nearest: tulip/4.png",
        "nearest training images: 2 of 3 are tulip\nthe very nearest: tulip/5.png",
        "nearest training images: 3 of 3 are tulip\nthe very nearest: tulip/4.png",
    ]
    touched = "Of the training images nearest to image 1, 2 of 3 are rose before, 2 of 3 are tulip after."
    assert touched in found.sentence()


def test_before_and_after_share_one_scale():
    """Without a normalisation: an edit that takes the brightest pixel away must not change the others."""
    explanation = explanation_of()
    images = explanation.images.clone()
    images[0, 0, :, 0, 0] = 5.0
    explanation = replace(explanation, images=images)
    edited = images[0].clone()
    edited[0, :, 0, 0] = 0.0
    regions = edited.ne(images[0]).any(dim=1)
    shown = edit_figure(Edit(explanation, edited, regions, 0.3))
    before, _, after, _ = (axes.images[0].get_array() for axes in shown.axes)
    np.testing.assert_array_equal(before.reshape(64, 3)[1:], after.reshape(64, 3)[1:])
    assert (before[0, 0] != after[0, 0]).any()


def test_an_edit_shows_both_images_before_and_after():
    explanation = explanation_of()
    edited = 1 - explanation.images[0]
    regions = torch.ones(2, 8, 8, dtype=torch.bool)
    shown = edit_figure(Edit(explanation, edited, regions, 0.3))
    for number, axes in enumerate(shown.axes[:4]):
        source = (explanation.images[0], edited)[number // 2][number % 2]
        expected = (255 * source).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    assert "before: similarity 0.600" in texts(shown)
    assert "after: similarity 0.850" in texts(shown)
    assert {axes.get_xlim() for axes in shown.axes} == {(-0.5, 7.5)}  # the outline leaves the image its size
