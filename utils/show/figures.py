"""Figures of explanations: heatmaps over images, edits, and regions that match.

A figure of a pair shows only what its explanation holds, and names method, layer and both files.
"""

import math

import cv2
import numpy as np
import torch
from matplotlib.patches import ConnectionPatch, Patch, Rectangle

from ..explanations.edits import Edit
from ..explanations.explanation import Explanation, only_pair
from ..explanations.matches import Matches
from ..explanations.references import in_classes
from ..explanations.regions import Answer
from ..trust.faithfulness import CHANCE, FAITHFUL, HARDLY, WEAK, Verdict
from .drawing import (
    LINE,
    OPACITY,
    TITLE,
    Drawing,
    check_verdict,
    colour_bar,
    colours_of,
    file_name,
    finished,
    finished_pair,
    named,
    nothing,
    overlay,
    photos,
    pixels,
    set_texts,
    show,
    show_map,
    shown_as,
    styled,
    wrapped,
)
from .words import (
    KINDS,
    NOTHING,
    details_of,
    is_believed,
    maps_in_short,
    symbol_of,
    texts_of,
    title_of,
    titles_of_maps,
)

MOST_PAIRS = 8  # in one figure
WORDS_FROM_BEST = (FAITHFUL, WEAK, CHANCE, HARDLY)
WIDTH = 10.4  # inches of a figure of one pair
TALLEST = 4.6  # inches of the larger maps, so that the figure fits the screen of a laptop
BESIDE = (1, 0.12)  # widths of the larger maps and of the scale of their colours
SMALLER = 0.65  # of the larger maps: how large the counterfactual ones are
WORDS = 0.8  # inches of the title of a pair, and of a caption that is broken into more lines
BETWEEN = 0.6  # inches of the words above and below the maps of a kind
COLUMN = 30  # characters that fit a column of 2.4 inches
BLOCK = 4  # methods side by side, at most
ACROSS = 2  # pairs side by side in a grid
MOST_MATCHES = 6  # in one figure: colours that can be distinguished
UNCHANGED = 0.5  # rank correlation: above it, maps of shuffled weights look like those of the trained network
FADED = 0.5  # how close to white all is that lies outside the regions
CENTRED = {"ha": "center", "va": "center"}


@styled
def images_figure(explanation: Explanation):
    """Show both images of a pair side by side as the network sees them, with their names."""
    drawing = Drawing(7, 4.4)
    images = pixels(only_pair(explanation).images[0], explanation)
    for number, axes in enumerate(drawing.subplots(1, 2)):
        show(axes, images[number])
        axes.set_title(named(f"image {number + 1}: {explanation.names[0][number]}", COLUMN))
        axes.set_xlabel(wrapped(shown_as(explanation), COLUMN + 14))
    return finished(drawing, file_name("images", explanation), explanation.source.warning)


@styled
def figure(explanation: Explanation, verdict: Verdict | None = None, kinds=KINDS, opacity=OPACITY):
    """Show the heatmaps of an explanation: both images with their factual maps, and smaller the counterfactual ones.

    Maps that are not better than chance are grey.

    Args:
        explanation: Of MOST_PAIRS pairs at most, which stand below each other.
        verdict: On this explanation.
        kinds: "factual", "counterfactual" or both; the first is large. An undecided pair shows both.
        opacity: Of the heatmap over the image, in [0, 1]. 0: the strongest tenth of the pixels is outlined instead.

    Raises:
        ValueError: The verdict is of another explanation, or there are too many pairs.
    """
    if len(explanation) > MOST_PAIRS:
        raise ValueError(f"{len(explanation)} pairs are too many for one figure: show explanation[:{MOST_PAIRS}]")
    check_verdict(verdict, explanation)
    warning = explanation.source.warning
    if not len(explanation):
        return nothing(NOTHING, "explanation_nothing", warning)
    if explanation.undecided.any():
        kinds = KINDS
    images = [photos(pair) for pair in explanation]
    texts = [texts_of(pair, verdict, index) for index, pair in enumerate(explanation)]
    heights = []
    for both, (_, caption) in zip(images, texts, strict=True):
        rows = [_height(both) * scale + BETWEEN for scale in (1, SMALLER)[: len(kinds)]]
        heights.append(sum(rows) + WORDS + LINE * len(caption.splitlines()))
    drawing = Drawing(WIDTH, sum(heights))
    panels = drawing.subfigures(len(images), 1, height_ratios=heights, squeeze=False)[:, 0]
    for index, panel in enumerate(panels):
        _draw_pair(panel, images[index], explanation[index], verdict, index, kinds, opacity)
        set_texts(panel, *texts[index])
    kind = "explanation" if tuple(kinds) == KINDS else "_".join([*kinds, "map"])
    return finished(drawing, file_name(kind, explanation, explanation.method, explanation.layer), warning)


@styled
def methods_figure(verdicts: dict[str, Verdict], opacity=OPACITY, default=""):
    """Show the factual maps of several methods for one pair, the best verdict first.

    Args:
        verdicts: By the name of the method.
        opacity: As in `figure`.
        default: The name of the method that is marked.

    Raises:
        ValueError: The verdicts are not all of the same one pair.
    """
    if not verdicts:
        return nothing("No method was judged.", "methods_nothing")
    pair = only_pair(next(iter(verdicts.values())).explanation)
    for verdict in verdicts.values():
        if not pair.of_same_pairs(verdict.explanation):
            raise ValueError("these verdicts are of different pairs: one figure shows one pair")
    images = photos(pair)
    blocks = math.ceil(len(verdicts) / BLOCK)
    columns = math.ceil(len(verdicts) / blocks)
    drawing = Drawing(2.6 * columns + 0.8, (2.3 * sum(_aspects(images)) + 0.6) * blocks + 1)
    grid = drawing.subplots(2 * blocks, columns, height_ratios=_aspects(images) * blocks, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, name in enumerate(sorted(verdicts, key=lambda name: _rank(verdicts[name]))):
        verdict = verdicts[name]
        block, column = divmod(number, columns)
        upper, lower = grid[2 * block : 2 * block + 2, column]
        for image, axes in enumerate((upper, lower)):
            axes.set_axis_on()
            weak = show_map(axes, images[image], verdict.explanation, image, opacity, colours=colours_of(verdict))
            axes.set_xlabel(wrapped(weak, COLUMN))
        title = f"{name} (default)" if name == default else name
        weight = "bold" if name == default else "normal"
        upper.set_title(wrapped(title, COLUMN), fontweight=weight)
        lower.set_xlabel(f"{lower.get_xlabel()}\n{wrapped(_in_short(verdict), COLUMN)}".strip())
    colour_bar(drawing, f"share of the image's strongest evidence; in grey: {CHANCE}", ax=grid, shrink=0.5)
    return finished_pair(drawing, pair, "methods", "Factual maps of all methods, the best first", "")


def _in_short(verdict):
    """The word for a pair, and the share of what is possible where the maps are believed."""
    word = f"{symbol_of(verdict.word())} {verdict.word()}"
    if not is_believed(verdict):
        return word
    return f"{word} ({verdict.share()[0]:.2f})"


def _rank(verdict: Verdict):
    """Where a method stands among others: by its word, then by its gap."""
    return WORDS_FROM_BEST.index(verdict.word()), -float(verdict.gap.decisive[0])


@styled
def grid_figure(explanation: Explanation, verdict: Verdict | None = None, opacity=OPACITY, title=""):
    """Show the pairs of an explanation, ACROSS in a row: each with its factual maps over both images.

    Args:
        explanation: Of any number of pairs; a sentence is shown where there is none.
        verdict: On this explanation.
        opacity: As in `figure`.
        title: What these pairs are, above all of them.

    Raises:
        ValueError: The verdict is of another explanation.
    """
    check_verdict(verdict, explanation)
    warning = explanation.source.warning
    if not len(explanation):
        return nothing(f"{title}. {NOTHING}" if title else NOTHING, "grid_nothing", warning)
    rows = math.ceil(len(explanation) / ACROSS)
    drawing = Drawing(12.6, (3.9 + 0.3 * (verdict is not None)) * rows)
    body, side = drawing.subfigures(1, 2, width_ratios=[1, 0.09])
    panels = body.subfigures(rows, ACROSS, squeeze=False).flat
    for index, pair in enumerate(explanation):
        images = photos(pair)
        for number, axes in enumerate(panels[index].subplots(1, 2)):
            weak = show_map(axes, images[number], pair, number, opacity, colours=colours_of(verdict, index))
            axes.set_title(wrapped(weak, COLUMN))
            axes.set_xlabel(named(pair.names[0][number], COLUMN + 8))
        set_texts(panels[index], f"{title_of(pair)}\n{maps_in_short(verdict, index)}", details_of(pair))
    colour_bar(drawing, cax=side.add_axes([0.05, 0.3, 0.25, 0.4]))
    drawing.suptitle(wrapped(title, TITLE), fontsize=13)
    return finished(drawing, file_name("grid", explanation[0], str(len(explanation))), warning)


@styled
def sanity_figure(curves: dict[str, dict[str, float]]):
    """Plot the rank correlation with the trained network's maps by the stage down to which the weights are random.

    The title names the methods whose maps stay similar. Methods of equal curves share a line.
    """
    if not curves:
        return nothing("The maps of no method were tried.", "sanity")
    names_of = {}
    for name, curve in curves.items():
        rounded = tuple(np.round(list(curve.values()), 2))
        names_of.setdefault(rounded, []).append(name)
    drawing = Drawing(9.6, 3.6)
    unchanged = [name for name, curve in curves.items() if list(curve.values())[-1] > UNCHANGED]
    message = "All maps change as the weights of the network are shuffled"
    if unchanged:
        message = f"Still similar with shuffled weights: {'; '.join(unchanged)}"
    drawing.suptitle(wrapped(message, 2 * TITLE))
    axes = drawing.subplots()
    for names in names_of.values():
        curve = curves[names[0]]
        axes.plot(["none", *curve], [1, *curve.values()], "o-", label="\n".join(names))
    axes.axhline(0, color="grey", linestyle=":")
    axes.set(xlabel="weights shuffled from the top down to", ylabel="rank correlation of maps")
    drawing.legend(loc="outside right center")
    return finished(drawing, "sanity")


def _draw_pair(panel, images, pair, verdict, index, kinds, opacity):
    """The maps of both images: those of the first kind large, those of the second smaller below."""
    colours = colours_of(verdict, index)
    rows = panel.subfigures(len(kinds), 1, height_ratios=[1, SMALLER][: len(kinds)], squeeze=False)[:, 0]
    body, side = rows[0].subfigures(1, 2, width_ratios=BESIDE)
    large = body.subplots(1, 2)
    weak = _draw_maps(rows[0], large, images, pair, kinds[0], opacity, colours)
    for image, axes in enumerate(large):
        name = named(pair.names[0][image], COLUMN + 10)
        axes.set_xlabel(f"{name}\n{wrapped(weak[image], COLUMN + 10)}".strip())
    if opacity > 0:
        colour_bar(rows[0], colours=colours, cax=side.add_axes([0.05, 0.2, 0.2, 0.6]))
    for row, kind in zip(rows[1:], kinds[1:], strict=True):
        body, _ = row.subfigures(1, 2, width_ratios=BESIDE)
        margin = (1 - SMALLER) / 2
        left, *small, right = body.subplots(1, 4, width_ratios=[margin, 1, 1, margin])
        left.set_axis_off()
        right.set_axis_off()
        weak = _draw_maps(row, small, images, pair, kind, opacity, colours)
        for image, axes in enumerate(small):
            axes.set_xlabel(wrapped(weak[image], COLUMN + 10))


def _draw_maps(row, pair_of_axes, images, pair, kind, opacity, colours) -> list[str]:
    """Draw the maps of a kind over both images, with their title; return the remarks on them."""
    row.suptitle(titles_of_maps(pair)[kind], fontsize=10)
    remarks = []
    for image, axes in enumerate(pair_of_axes):
        remarks.append(show_map(axes, images[image], pair, image, opacity, kind, colours))
    return remarks


def _aspects(images):
    """Height over width of both images of a pair."""
    return [images[0].shape[0] / images[0].shape[1], images[1].shape[0] / images[1].shape[1]]


def _height(images) -> float:
    """Inches of the larger maps of both images side by side."""
    return min(0.43 * WIDTH * max(_aspects(images)), TALLEST)


@styled
def edit_figure(edit: Edit):
    """Show both images before and after an edit, with the similarity of each pair and the nearest references, if known.

    What was changed is outlined in white; where its pixels are from, in yellow: in image 2, or in a third image.
    """
    pair = edit.explanation
    third_image = edit.donor is not None and edit.donor is not pair
    columns = 3 if third_image else 2
    drawing = Drawing(3.3 * columns, 8)
    grid = drawing.subplots(2, columns)
    _show_with_nearest(grid[0], pixels(pair.images[0], pair), edit.nearest_before, edit.corrected)
    _show_with_nearest(grid[1], pixels(edit.edited, pair), edit.nearest_after, edit.corrected)
    for image in range(2):
        grid[0, image].set_title(f"image {image + 1}")
        _outline(grid[1, image], edit.regions[image], "white")
    if third_image:
        show(grid[0, 2], pixels(edit.donor.images[0], pair)[1])
        grid[0, 2].set_title("source of the new pixels")
        grid[0, 2].set_xlabel(named(edit.donor.names[0][1], 46))
        grid[1, 2].set_axis_off()
    if edit.donor is not None:
        _outline(grid[0, columns - 1], edit.donor_region, "yellow")
    grid[0, 0].set_ylabel(f"before: similarity {edit.before:.3f}")
    grid[1, 0].set_ylabel(f"after: similarity {edit.after:.3f}")
    text = f"Edit along the maps of {pair.description}: {edit.sentence()}"
    decision = "same" if pair.different[0] == edit.flipped else "different"
    title = f"After an edit: {decision} (similarity {edit.after:.2f})"
    return finished_pair(drawing, pair, "edit", title, text, pair.method, pair.layer)


def _show_with_nearest(row, images, nearest, corrected):
    for number, image in enumerate(images):
        show(row[number], image)
        if nearest is not None:
            classes = wrapped(f"nearest training images: {in_classes(nearest[number], corrected)}", 46)
            row[number].set_xlabel(f"{classes}\n{named(f'the very nearest: {nearest[number][0]}', 46)}")


def _outline(axes, region, colour):
    """Draw the border of a region, bool (H, W), also along the border of the image."""
    if not region.any():
        return
    limits = axes.axis()
    frame = np.pad(region.cpu().numpy(), 1)
    height, width = region.shape
    axes.contour(np.arange(-1, width + 1), np.arange(-1, height + 1), frame, [0.5], colors=colour)
    axes.axis(limits)  # which the frame has widened


@styled
def matches_figure(matches: Matches, count=5):
    """Show the strongest mutual matches: in both images the places that match, outlined and joined by a line.

    Args:
        matches: Of one pair.
        count: How many matches, at most; the legend says what share of the inner product each adds.

    Raises:
        ValueError: There are more than MOST_MATCHES.
    """
    if count > MOST_MATCHES:
        raise ValueError(f"{count} matches are too many for one figure: at most {MOST_MATCHES}")
    areas = matches.areas(count)
    images = photos(matches.explanation)
    drawing = Drawing(WIDTH, _height(images) + 1.5)
    body, side = drawing.subfigures(1, 2, width_ratios=[1, 0.15])
    pair = body.subplots(1, 2)
    ends = _show_areas(pair[0], images[0], [(area.places1, area.match.place1) for area in areas])
    other_ends = _show_areas(pair[1], images[1], [(area.places2, area.match.place2) for area in areas])
    handles = []
    for number, area in enumerate(areas):
        line = ends[number], other_ends[number], "data", "data"
        body.add_artist(ConnectionPatch(*line, axesA=pair[0], axesB=pair[1], color=f"C{number}"))
        share = f"{area.value / matches.cosine:.0%}" if matches.cosine > 0 else f"{area.value:+.3f}"
        handles.append(Patch(color=f"C{number}", label=f"{number + 1}: {share}"))
    title, unit = "What matches what", None
    if matches.cosine > 0:
        title = f"What matches what: {matches.sum_of(areas) / matches.cosine:.0%} of the inner product"
        unit = "share of the\ninner product"
    side.legend(handles=handles, loc="center", title=unit)
    text = f"At {matches.layer}, {matches.parts_in_words(areas)}."
    return finished_pair(drawing, matches.explanation, "matches", title, text, matches.layer)


def _show_areas(axes, image, areas) -> list[tuple[float, float]]:
    """Show an image, paler outside its areas, with their outlines and numbers.

    Args:
        axes: Where.
        image: uint8 (H, W, 3).
        areas: Bool (h, w) and the strongest place (y, x) in [0, 1) of each.

    Returns:
        The strongest places (x, y) in pixels.
    """
    height, width = image.shape[:2]
    masks = []
    for places, _ in areas:
        values = places.cpu().numpy().astype(np.float32)
        masks.append(cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5)
    inside = np.any(masks, axis=0)[..., None]
    show(axes, np.where(inside, image, _faded(image)))
    middles = []
    for number, mask in enumerate(masks):
        _outline(axes, torch.from_numpy(mask), f"C{number}")
        y, x = areas[number][1]
        middles.append((x * width, y * height))
        patch = {"boxstyle": "circle", "facecolor": f"C{number}", "edgecolor": "white"}
        axes.text(*middles[-1], number + 1, color="white", fontweight="bold", bbox=patch, **CENTRED)
    return middles


def _faded(image):
    """An image (H, W, 3) in paler colours."""
    return (image + FADED * (255.0 - image)).round().astype(np.uint8)


@styled
def region_figure(answer: Answer, opacity=OPACITY):
    """Show a region of an image, and over the other image what matches it; both boxes are outlined.

    The outline in the other image is that of the counterpart, or of the second box of the question.

    Args:
        answer: Of `ask`.
        opacity: Of the map over the other image, in (0, 1]; its colours are shares of the strongest match.
    """
    pair = answer.matches.explanation
    number = answer.number
    images = photos(pair)
    shown, other = images[number - 1], images[2 - number]
    drawing = Drawing(WIDTH, _height(images) + 1.9)
    body, side = drawing.subfigures(1, 2, width_ratios=BESIDE)
    left, right = body.subplots(1, 2)
    box = answer.box1 or answer.box2
    rows, columns = _pixels_of(box, shown)
    faded = _faded(shown)
    faded[rows, columns] = shown[rows, columns]
    show(left, faded)
    _frame(left, box, shown)
    left.set_title(f"the box, in image {number}")
    values = answer.partners.clamp(min=0)
    strongest = values.max().item()
    show(right, overlay(other, values / (strongest or 1), opacity))
    _frame(right, answer.counterpart or answer.box2, other)
    outlined = "the second box" if answer.counterpart is None else "its counterpart"
    right.set_title(f"what matches it in image {3 - number}; outlined: {outlined}")
    if not strongest:
        right.set_xlabel("no place adds anything")
    colour_bar(body, "share of the strongest match", cax=side.add_axes([0.05, 0.2, 0.2, 0.6]))
    what = "Both boxes add" if answer.counterpart is None else "The box adds"
    title = f"{what} {answer.value:+.3f} to the inner product"
    if answer.share is not None:
        title = f"{what} {answer.share:.0%} of what all pairs of places add"
    return finished_pair(drawing, pair, "region", title, f"\n{answer}", answer.matches.layer)


def _pixels_of(box, image) -> tuple[slice, slice]:
    """The rows and columns of an image (H, W, 3) in a box: top, left, bottom and right end, in [0, 1]."""
    height, width = image.shape[:2]
    top, left, bottom, right = np.round(np.array(box) * [height, width, height, width]).astype(int)
    return slice(top, bottom), slice(left, right)


def _frame(axes, box, image):
    """Outline a box of an image that is shown."""
    rows, columns = _pixels_of(box, image)
    corner = columns.start - 0.5, rows.start - 0.5  # a pixel reaches half a pixel to each side
    limits = axes.axis()
    for colour, width in (("black", 5), ("white", 2.5)):
        size = columns.stop - columns.start, rows.stop - rows.start
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=width))
    axes.axis(limits)  # which a box at the border has widened
