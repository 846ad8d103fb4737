"""Figures of explanations: heatmaps over images.

Those of a pair take what they show from its explanation alone and say method, layer and both file names. Pyplot knows
none, so that a notebook cell that ends with one shows it once.
"""

import math

from matplotlib.cm import ScalarMappable

from utils.explain import Explanation, only_pair
from utils.figures.drawing import (
    COLORMAP,
    OPACITY,
    UNJUDGED,
    check_verdict,
    closed,
    file_name,
    heading,
    named,
    new_figure,
    nothing,
    overlay,
    photos,
    pixels,
    remark,
    show,
    shown_as,
    wrapped,
)
from utils.trust import Verdict

KINDS = ("factual", "counterfactual")
MOST_PAIRS = 8  # in one figure
NOTHING = "There is no such pair."
BLOCK = 4  # methods side by side
NAME = 34  # characters of a small name that fit it
TALLEST = 6.0  # inches of both images of a pair: with the title, what a laptop's screen shows
COLUMN = 30  # characters that fit a column of 2.4 inches


def images_figure(explanation: Explanation):
    """Both images of a pair side by side as the network sees them, stretched to its size, with their names."""
    names = only_pair(explanation).names[0]
    drawn = new_figure(5, 3.5)
    axes = drawn.subplots(1, 2)
    images = pixels(explanation.images[0], explanation)
    for number, (column, image, name) in enumerate(zip(axes, images, names, strict=True), start=1):
        show(column, image)
        column.set_title(named(f"image {number}: {name}", COLUMN), fontsize=9)
        column.set_xlabel(wrapped(shown_as(explanation), COLUMN + 8), fontsize=8)
    return closed(drawn, file_name("images", explanation), explanation.caution)


def figure(explanation: Explanation, verdict: Verdict | None = None, kinds=KINDS, opacity=OPACITY):
    """The heatmaps of an explanation: a row for each image, with the map of each of `kinds` over it.

    Score, decision, method and verdict stand above. Where a pair is undecided, both sides are shown whatever `kinds`
    says. Pairs stand below each other, MOST_PAIRS at most. verdict: of this explanation, on its factual maps. opacity:
    of the heatmap over the image, in (0, 1].

    Raises ValueError when the verdict is of another explanation, or for more pairs.
    """
    if len(explanation) > MOST_PAIRS:
        raise ValueError(f"{len(explanation)} pairs are too many for one figure: show explanation[:{MOST_PAIRS}]")
    check_verdict(verdict, explanation)
    if not len(explanation):
        return nothing(NOTHING, "explanation_nothing", explanation.caution)
    if explanation.undecided.any():
        kinds = KINDS
    shown = [photos(pair) for pair in explanation]
    words = 1.6 if verdict is None else 2.3
    heights = [min(2.2 * sum(_aspects(images)), TALLEST) + words for images in shown]
    drawn = new_figure(2.4 * (1 + len(kinds)) + 0.8, sum(heights))
    panels = drawn.subfigures(len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
    for index, (panel, images) in enumerate(zip(panels, shown, strict=True)):
        _draw_pair(panel, images, explanation[index], verdict and verdict[index], kinds, opacity)
    kind = "explanation" if tuple(kinds) == KINDS else "_".join([*kinds, "map"])
    name = file_name(kind, explanation, explanation.method, explanation.layer)
    return closed(drawn, name, explanation.caution)


def methods_figure(verdicts: dict[str, Verdict], opacity=OPACITY):
    """The factual maps of several methods for one pair, BLOCK methods in a row, each with its gap and verdict.

    Raises ValueError when the verdicts are not all of the same one pair.
    """
    if not verdicts:
        return nothing("No method was judged.", "methods_nothing")
    explanations = {name: only_pair(verdict.explanation) for name, verdict in verdicts.items()}
    first = next(iter(explanations.values()))
    if not all(first.of_same_pairs(other) for other in explanations.values()):
        raise ValueError("these verdicts are of different pairs: one figure shows one pair")
    images = photos(first)
    blocks = math.ceil(len(verdicts) / BLOCK)
    drawn = new_figure(2.0 * BLOCK, (2.0 * sum(_aspects(images)) + 0.7) * blocks + 0.8)
    grid = drawn.subplots(2 * blocks, BLOCK, height_ratios=_aspects(images) * blocks, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (name, explanation) in enumerate(explanations.items()):
        block, column = divmod(number, BLOCK)
        upper, lower = grid[2 * block : 2 * block + 2, column]
        for row, axes in enumerate((upper, lower)):
            axes.set_axis_on()
            heatmap = explanation.factual[0, row].cpu()
            show(axes, overlay(images[row], heatmap, opacity))
            weak = remark(explanation, row, heatmap)
            if weak:
                _say_on(axes, weak)
        verdict = verdicts[name]
        upper.set_title(wrapped(name, 24), fontsize=9)
        gap, span = verdict.gap.decisive[0], verdict.span.decisive[0]
        said = f"insertion - deletion {gap:+.3f} of {span:.3f}\n{verdict.word()}"
        lower.set_xlabel(wrapped(said, COLUMN), fontsize=8)
    drawn.colorbar(ScalarMappable(cmap=COLORMAP), ax=grid, label="share of the image's strongest evidence", shrink=0.5)
    drawn.suptitle(heading(first, "factual maps of all methods", COLUMN * 3), fontsize=10)
    return closed(drawn, file_name("methods", first), first.caution)


def sanity_figure(curves: dict[str, dict[str, float]]):
    """Rank correlation with the trained network's maps, by the stage down to which the weights are random.

    Methods whose curves are one share a line.
    """
    if not curves:
        return nothing("The maps of no method were tried.", "sanity")
    drawn = new_figure(9, 3)
    axes = drawn.subplots()
    lines = {}
    for name, curve in curves.items():
        rounded = tuple(round(value, 2) for value in curve.values())
        lines.setdefault(rounded, []).append(name)
    for names in lines.values():
        curve = curves[names[0]]
        axes.plot(["none", *curve], [1, *curve.values()], "o-", label="\n".join(names))
    axes.axhline(0, color="grey", linestyle=":")
    axes.set(xlabel="weights shuffled from the top down to", ylabel="rank correlation of maps", ylim=(-0.4, 1.05))
    drawn.legend(loc="outside right center", frameon=False, fontsize=8)
    return closed(drawn, "sanity")


def _draw_pair(panel, images, explanation, verdict, kinds, opacity):
    """One pair: a row for each image, the image itself and its maps."""
    columns = 1 + len(kinds)
    axes = panel.subplots(2, columns, height_ratios=_aspects(images))  # rows as high as their images: no gaps
    lean = explanation.lean()
    other = "same" if lean == "different" else "different"
    if explanation.decision() == "undecided":
        headings = {"factual": f'speaks for "{lean}"', "counterfactual": f'speaks for "{other}"'}
    else:
        headings = {"factual": f'factual: speaks for "{lean}"', "counterfactual": f'counterfactual: for "{other}"'}
    for row, image in enumerate(images):
        show(axes[row, 0], image)
        axes[row, 0].set_ylabel(f"image {row + 1}")
        axes[row, 0].set_xlabel(named(explanation.names[0][row], NAME), fontsize=8)
        for column, kind in enumerate(kinds, start=1):
            heatmap = getattr(explanation, kind)[0, row].cpu().numpy()
            show(axes[row, column], overlay(image, heatmap, opacity))
            axes[row, column].set_xlabel(wrapped(remark(explanation, row, heatmap), COLUMN))
    for column, kind in enumerate(kinds, start=1):
        axes[0, column].set_title(headings[kind], fontsize=10)
    scale = ScalarMappable(cmap=COLORMAP)
    panel.colorbar(scale, ax=axes[:, -1], label="share of the image's strongest evidence", shrink=0.8)
    made = [part for part in (explanation.source, explanation.sum_of_parts()) if part]
    judged = UNJUDGED if verdict is None else verdict.sentence()
    lines = [explanation.sentence(), "; ".join(made), judged]
    panel.suptitle(wrapped("\n".join(filter(None, lines)), COLUMN * columns), fontsize=11)


def _say_on(axes, text):
    """Words in the middle of an image, on a light ground."""
    ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    axes.text(0.5, 0.5, wrapped(text, 20), transform=axes.transAxes, ha="center", va="center", fontsize=7, bbox=ground)


def _aspects(images):
    """Height over width of each image."""
    return [image.shape[0] / image.shape[1] for image in images]
