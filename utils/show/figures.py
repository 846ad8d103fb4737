"""Figures of explanations: heatmaps over images.

Those of a pair take what they show from its explanation alone and say method, layer and both file names. Pyplot knows
none, so that a notebook cell that ends with one shows it once.
"""

import math

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.patches import Patch, Rectangle

from ..explanations.edits import Edit, in_classes
from ..explanations.explanation import Explanation, only_pair
from ..explanations.matches import Matches
from ..trust.faithfulness import PARTS, Verdict
from .drawing import (
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
    return closed(drawn, file_name("images", explanation), explanation.source.warning)


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
        return nothing(NOTHING, "explanation_nothing", explanation.source.warning)
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
    return closed(drawn, name, explanation.source.warning)


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
    return closed(drawn, file_name("methods", first), first.source.warning)


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
    lean = explanation.closer_to()
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
    made = [part for part in (explanation.description, explanation.sum_of_parts()) if part]
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


CHANGED = "white"  # outline of what was changed
SOURCE = "yellow"  # outline of where its pixels are from
EDIT_NAME_LENGTH = 46  # characters of a name that fit below an image


def edit_figure(found: Edit):
    """Both images before and after the change, with the similarity of each pair and the nearest references, if known.

    What was changed is outlined in white; where its pixels are from, in yellow: in image 2, or in a third image.
    """
    explanation = found.explanation
    donor = found.donor
    third = donor is not None and donor is not explanation
    columns = 3 if third else 2
    drawn = new_figure(3.3 * columns, 8)
    axes = drawn.subplots(2, columns)
    rows = [(explanation.images[0], found.nearest_before), (found.edited, found.nearest_after)]
    for row, (images, names) in enumerate(rows):
        for column, image in enumerate(pixels(images, explanation)):
            show(axes[row, column], image)
            if names is not None:
                classes = wrapped(f"nearest training images: {in_classes(names[column])}", EDIT_NAME_LENGTH)
                nearest = named(f"the very nearest: {names[column][0]}", EDIT_NAME_LENGTH)
                axes[row, column].set_xlabel(f"{classes}\n{nearest}", fontsize=8)
    for column in range(2):
        axes[0, column].set_title(f"image {column + 1}", fontsize=10)
        _outline(axes[1, column], found.regions[column], CHANGED)
    if third:
        show(axes[0, 2], pixels(donor.images[0], explanation)[1])
        axes[0, 2].set_title("pixels put in are from", fontsize=10)
        axes[0, 2].set_xlabel(named(donor.names[0][1], EDIT_NAME_LENGTH), fontsize=8)
        axes[1, 2].set_axis_off()
    if donor is not None:
        _outline(axes[0, columns - 1], found.donor_region, SOURCE)
    axes[0, 0].set_ylabel(f"before: similarity {found.before:.3f}")
    axes[1, 0].set_ylabel(f"after: similarity {found.after:.3f}")
    what = f"along the maps of {explanation.description}: {found.sentence()}"
    drawn.suptitle(heading(explanation, what, 44 * columns), fontsize=10)
    name = file_name("counterfactual", explanation, explanation.method, explanation.layer)
    return closed(drawn, name, explanation.source.warning)


def _outline(axes, region, colour):
    """The border of a region, bool (H, W), drawn at the border of the image too."""
    if not region.any():
        return
    limits = axes.axis()
    frame = np.pad(region.cpu().numpy(), 1)
    height, width = region.shape
    axes.contour(np.arange(-1, width + 1), np.arange(-1, height + 1), frame, [0.5], colors=colour)
    axes.axis(limits)  # which the frame has widened


ACROSS = 2  # pairs side by side
GRID_NAME_LENGTH = 24  # characters below an image
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
        return nothing(NOTHING, "grid_nothing", explanation.source.warning)
    rows = math.ceil(len(explanation) / ACROSS)
    drawn = new_figure(9, (2.9 if verdict is None else 3.7) * rows)
    body, side = drawn.subfigures(1, 2, width_ratios=[1, 0.09])
    panels = body.subfigures(rows, ACROSS, squeeze=False).flat
    for index, (panel, pair) in enumerate(zip(panels, explanation, strict=False)):
        axes = panel.subplots(1, 2)
        for image, (column, photograph) in enumerate(zip(axes, photos(pair), strict=True)):
            heatmap = pair.factual[0, image].cpu()
            show(column, overlay(photograph, heatmap, opacity))
            column.set_xlabel(named(pair.names[0][image], GRID_NAME_LENGTH), fontsize=8)
            column.set_title(wrapped(remark(pair, image, heatmap), GRID_NAME_LENGTH), fontsize=8)
        judged = judgement(verdict, index)
        panel.suptitle(f"{named(caption(pair), TITLE)}\n{wrapped(judged, TITLE)}", fontsize=9)
    scale = ScalarMappable(cmap=COLORMAP)
    drawn.colorbar(scale, cax=side.subplots(), label="share of the image's strongest evidence")
    name = file_name("grid", explanation[0], str(len(explanation)))
    return closed(drawn, name, explanation.source.warning)


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
    word = {True: " \u2713 correct", False: " \u2717 incorrect", None: ""}[pair.correct()]
    chance = "" if pair.probability is None else f", probability of one class {pair.probability[0, 0]:.2f}"
    return f'"{pair.decision()}"{word}: similarity {pair.similarity[0]:.3f}{chance}. {truth_of(pair)}'


def truth_of(pair: Explanation) -> str:
    """The true classes of one pair in words; nothing where they are not known."""
    classes = pair.classes()
    if not classes:
        return ""
    return f"Both are {classes[0]}." if classes[0] == classes[1] else f"In truth {classes[0]} and {classes[1]}."


# colours that the colour-blind tell apart (Okabe and Ito 2008)
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FADED = 0.75  # of what lies outside all regions: how near it is to white


def matches_figure(matches: Matches, count=5):
    """The `count` strongest mutual matches: a region of each image in one colour, with its number.

    All else is faded; the legend says what each match adds to the inner product, the title what share of it they are
    together. Raises ValueError for more matches than there are colours.
    """
    if count > len(COLOURS):
        raise ValueError(f"{count} matches are too many for one figure: at most {len(COLOURS)}")
    found = matches.mutual(count)
    colours = COLOURS[: len(found)]
    drawn = new_figure(8, 5)
    axes = drawn.subplots(1, 2)
    places = zip(*((match.place1, match.place2) for match in found), strict=True)
    for number, (column, image, ends) in enumerate(
        zip(axes, photos(matches.explanation), places, strict=True), start=1
    ):
        bounds = [_pixels(matches.bounds(place), image) for place in ends]
        show(column, _faded(image, bounds))
        for label, (box, colour) in enumerate(zip(bounds, colours, strict=True), start=1):
            _draw_region(column, box, colour, str(label))
        column.set_title(f"image {number}", fontsize=10)
    handles = [
        Patch(color=colour, label=f"{number}: {match.value:+.3f}")
        for number, (match, colour) in enumerate(zip(found, colours, strict=True), start=1)
    ]
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(found), frameon=False)
    what = (
        f"regions that match each other at {matches.description}, and what each match adds to the inner product: "
        f"{matches.parts_in_words(found)}"
    )
    drawn.suptitle(heading(matches.explanation, what, 90), fontsize=10)
    return closed(drawn, file_name("matches", matches.explanation, matches.layer), matches.explanation.source.warning)


def point_figure(matches: Matches, point, opacity=OPACITY):
    """The region around a point of image 1, (y, x) in [0, 1), and what it matches, over image 2.

    The colours are shares of its strongest match. opacity: of the map over image 2, in (0, 1].
    """
    drawn = new_figure(8, 4.4)
    axes = drawn.subplots(1, 2)
    first, second = photos(matches.explanation)
    box = _pixels(matches.bounds(point), first)
    show(axes[0], _faded(first, [box]))
    _draw_region(axes[0], box, COLOURS[0], "")
    axes[0].set_title("a region of image 1", fontsize=10)
    matched = matches.matches_of(*point).clamp(min=0).cpu()
    strongest = float(matched.max())
    show(axes[1], overlay(second, matched / (strongest or 1), opacity))
    axes[1].set_title("what it matches in image 2", fontsize=10)
    axes[1].set_xlabel(f"at most {strongest:+.3f} of {matches.cosine:.3f}")
    drawn.colorbar(ScalarMappable(cmap=COLORMAP), ax=axes[1], label="share of the strongest match", shrink=0.8)
    what = f"what the marked region at {matches.description} matches (residual {matches.residual:+.1e})"
    drawn.suptitle(heading(matches.explanation, what, 90), fontsize=10)
    return closed(drawn, file_name("point", matches.explanation, matches.layer), matches.explanation.source.warning)


def _pixels(bounds, image):
    """Bounds in [0, 1] as rows and columns of an image: (top, left, bottom, right)."""
    height, width = image.shape[:2]
    return tuple(round(share * side) for share, side in zip(bounds, (height, width) * 2, strict=True))


def _faded(image, boxes):
    """The image in full colour inside the boxes; grey and nearly white outside."""
    grey = image.mean(axis=2, keepdims=True)
    faded = np.broadcast_to(grey + FADED * (255 - grey), image.shape).round().astype(np.uint8)
    for top, left, bottom, right in boxes:
        faded[top:bottom, left:right] = image[top:bottom, left:right]
    return faded


def _draw_region(axes, box, colour, label):
    """The outline of a box and its label in the upper left corner."""
    top, left, bottom, right = box
    limits = axes.axis()
    corner = left - 0.5, top - 0.5  # a pixel reaches half a pixel to each side
    axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, linewidth=3))
    axes.axis(limits)  # which a region at the border has widened
    if label:
        patch = {"facecolor": colour, "edgecolor": "none", "pad": 2}
        axes.text(*corner, label, va="top", color="white", fontsize=9, fontweight="bold", bbox=patch)
