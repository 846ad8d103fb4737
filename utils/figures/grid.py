"""Figure of many pairs, small: both images with their factual maps, what is true and what was decided."""

import math

from matplotlib.cm import ScalarMappable

from utils.explain import Explanation
from utils.figures.drawing import (
    COLORMAP,
    OPACITY,
    UNJUDGED,
    check_verdict,
    closed,
    file_name,
    named,
    new_figure,
    nothing,
    overlay,
    photos,
    remark,
    show,
    wrapped,
)
from utils.figures.explanations import NOTHING
from utils.trust import Verdict
from utils.trust.verdict import PARTS

ACROSS = 2  # pairs side by side
NAME = 24  # characters below an image
TITLE = 52  # characters above a pair


def grid_figure(explanation: Explanation, verdict: Verdict | None = None, opacity=OPACITY):
    """The pairs of an explanation, ACROSS in a row: each with its factual maps over both images.

    Above each stand what was decided, whether rightly, similarity and probability, and how faithful the maps are, or
    that they were not judged; without a pair, a line that says so.

    Args:
        explanation: Of any number of pairs.
        verdict: On this explanation.
        opacity: Of the maps over the images, in (0, 1].

    Raises:
        ValueError: The verdict is of another explanation.
    """
    check_verdict(verdict, explanation)
    if not len(explanation):
        return nothing(NOTHING, "grid_nothing", explanation.caution)
    rows = math.ceil(len(explanation) / ACROSS)
    drawn = new_figure(9, (2.9 if verdict is None else 3.7) * rows)
    body, side = drawn.subfigures(1, 2, width_ratios=[1, 0.09])
    panels = body.subfigures(rows, ACROSS, squeeze=False).flat
    for index, (panel, pair) in enumerate(zip(panels, explanation, strict=False)):
        axes = panel.subplots(1, 2)
        for image, (column, photograph) in enumerate(zip(axes, photos(pair), strict=True)):
            heatmap = pair.factual[0, image].cpu()
            show(column, overlay(photograph, heatmap, opacity))
            column.set_xlabel(named(pair.names[0][image], NAME), fontsize=8)
            column.set_title(wrapped(remark(pair, image, heatmap), NAME), fontsize=8)
        judged = judgement(verdict, index)
        panel.suptitle(f"{named(caption(pair), TITLE)}\n{wrapped(judged, TITLE)}", fontsize=9)
    scale = ScalarMappable(cmap=COLORMAP)
    drawn.colorbar(scale, cax=side.subplots(), label="share of the image's strongest evidence")
    name = file_name("grid", explanation[0], str(len(explanation)))
    return closed(drawn, name, explanation.caution)


def judgement(verdict: Verdict | None, index=0) -> str:
    """How faithful the maps of a pair, and of each image, are in words."""
    if verdict is None:
        return UNJUDGED
    pair, image1, image2 = (verdict.word(index, part) for part in PARTS)
    if pair == image1 == image2:
        return f"Maps of the pair and of each image: {pair}."
    return f"Maps: {pair} (image 1: {image1}; image 2: {image2})."


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
