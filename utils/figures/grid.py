"""Figure of many pairs, small: both images with their factual maps, what is true and what was decided."""

import math

import matplotlib.pyplot as plt
from matplotlib.cm import ScalarMappable

from utils.explain import Explanation
from utils.figures.drawing import COLORMAP, OPACITY, closed, file_name, named, overlay, photos, show

ACROSS = 2  # pairs side by side
NAME = 24  # characters below an image
TITLE = 52  # characters above a pair
NOTHING = "There is no such pair."


def grid_figure(explanation: Explanation, opacity=OPACITY):
    """The pairs of an explanation, ACROSS in a row: each with its factual maps over both images.

    Above each stand what was decided, whether rightly, similarity and probability; without a pair, a line that says so.
    """
    if not len(explanation):
        drawn, axes = plt.subplots(figsize=(8, 0.6), layout="constrained")
        axes.set_axis_off()
        axes.text(0, 0.5, NOTHING, va="center")
        return closed(drawn, "grid_nothing")
    rows = math.ceil(len(explanation) / ACROSS)
    drawn = plt.figure(figsize=(9, 2.6 * rows), layout="constrained")
    body, side = drawn.subfigures(1, 2, width_ratios=[1, 0.09])
    panels = body.subfigures(rows, ACROSS, squeeze=False).flat
    for panel, pair in zip(panels, explanation, strict=False):
        axes = panel.subplots(1, 2)
        for column, image, heatmap, name in zip(axes, photos(pair), pair.factual[0], pair.names[0], strict=True):
            show(column, overlay(image, heatmap.cpu(), opacity))
            column.set_xlabel(named(name, NAME), fontsize=8)
            if not heatmap.any():
                column.set_title("no such evidence", fontsize=8)
        panel.suptitle(named(caption(pair), TITLE), fontsize=9)
    scale = ScalarMappable(cmap=COLORMAP)
    drawn.colorbar(scale, cax=side.subplots(), label="share of the image's strongest evidence")
    return closed(drawn, file_name("grid", explanation[0], str(len(explanation))))


def caption(pair: Explanation) -> str:
    """What was decided of one pair, whether rightly, its similarity and probability, and what is true."""
    word = {True: " \u2713 rightly", False: " \u2717 wrongly", None: ""}[pair.right()]
    chance = "" if pair.probability is None else f", probability of one class {pair.probability[0, 0]:.2f}"
    return f'"{pair.decision()}"{word}: similarity {pair.similarity[0]:.3f}{chance}. {truth_of(pair)}'


def truth_of(pair: Explanation) -> str:
    """The true classes of one pair in words; nothing where they are not known."""
    classes = pair.classes and pair.classes[0]
    if not classes:
        return ""
    return f"Both are {classes[0]}." if classes[0] == classes[1] else f"In truth {classes[0]} and {classes[1]}."
