"""Figures of explanations: heatmaps over images, matches between them, counterfactuals before and after.

Those of a pair take what they show from its explanation alone and say method, layer and both file names. Each is
closed, so that a notebook cell that ends with it shows it once.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.patches import ConnectionPatch, Rectangle

from utils.explain import Counterfactual, Explanation, Matches, only_pair
from utils.figures.drawing import COLORMAP, OPACITY, closed, file_name, overlay, photos, pixels, show, wrapped
from utils.trust import Verdict

KINDS = ("factual", "counterfactual")
MOST_PAIRS = 8  # in one figure
FAINT = 0.2  # a map that stays below is told in words too
BLOCK = 4  # methods side by side
LARGE = 4  # cells along a side that leave room for text
EXTREME = 1e-9  # strength of a match below which all lines are thin
LABEL = {"facecolor": "black", "alpha": 0.5, "edgecolor": "none", "pad": 1}
NAME = 34  # characters of a small name that fit it
COLUMN = 30  # characters that fit a column of 2.4 inches


def images_figure(explanation: Explanation):
    """Both images of a pair side by side, with their names."""
    names = only_pair(explanation).names[0]
    drawn, axes = plt.subplots(1, 2, figsize=(5, 2.8), layout="constrained")
    for number, (column, image, name) in enumerate(zip(axes, photos(explanation), names, strict=True), start=1):
        show(column, image)
        column.set_title(wrapped(f"image {number}: {name}", COLUMN), fontsize=9)
    return closed(drawn, file_name("images", explanation))


def figure(explanation: Explanation, verdict: Verdict | None = None, kinds=KINDS, opacity=OPACITY):
    """The heatmaps of an explanation: a row for each image, with the map of each of `kinds` over it.

    Score, decision, method and verdict stand above. Pairs stand below each other, MOST_PAIRS at most. verdict: of this
    explanation, on its factual maps. opacity: of the heatmap over the image, in (0, 1].

    Raises ValueError when the verdict is of another explanation, or for more pairs.
    """
    if len(explanation) > MOST_PAIRS:
        raise ValueError(f"{len(explanation)} pairs are too many for one figure: show explanation[:{MOST_PAIRS}]")
    if verdict is not None and not verdict.explanation.same_as(explanation):
        raise ValueError("the verdict is of another explanation: pass judge(network, explanation)")
    shown = [photos(pair) for pair in explanation]
    heights = [2.2 * sum(_aspects(images)) + 1.6 for images in shown]
    size = (2.4 * (1 + len(kinds)) + 0.8, sum(heights))
    drawn = plt.figure(figsize=size, layout="constrained")
    panels = drawn.subfigures(len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
    for index, (panel, images) in enumerate(zip(panels, shown, strict=True)):
        _draw_pair(panel, images, explanation[index], verdict and verdict[index], kinds, opacity)
    kind = "explanation" if tuple(kinds) == KINDS else "_".join([*kinds, "map"])
    return closed(drawn, file_name(kind, explanation, explanation.method, explanation.layer))


def methods_figure(verdicts: dict[str, Verdict], opacity=OPACITY):
    """The factual maps of several methods for one pair, BLOCK methods in a row, each with its gap and verdict.

    Raises ValueError when the verdicts are not all of the same one pair.
    """
    explanations = {name: only_pair(verdict.explanation) for name, verdict in verdicts.items()}
    first = next(iter(explanations.values()))
    for other in explanations.values():
        alike = other.threshold == first.threshold and other.names == first.names
        if not alike or not torch.equal(other.images, first.images):
            raise ValueError("these verdicts are of different pairs: one figure shows one pair")
    images = photos(first)
    blocks = math.ceil(len(verdicts) / BLOCK)
    size = (2.0 * BLOCK, (2.0 * sum(_aspects(images)) + 0.7) * blocks + 0.8)
    heights = _aspects(images) * blocks
    drawn, grid = plt.subplots(
        2 * blocks, BLOCK, figsize=size, height_ratios=heights, layout="constrained", squeeze=False
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (name, explanation) in enumerate(explanations.items()):
        block, column = divmod(number, BLOCK)
        upper, lower = grid[2 * block : 2 * block + 2, column]
        for axes, image, heatmap in zip((upper, lower), images, explanation.factual[0].cpu(), strict=True):
            axes.set_axis_on()
            show(axes, overlay(image, heatmap, opacity))
        verdict = verdicts[name]
        upper.set_title(wrapped(name, 24), fontsize=9)
        lower.set_xlabel(f"insertion - deletion {verdict.gap.decisive[0]:+.3f}\n{verdict.word()}", fontsize=9)
    drawn.suptitle(_heading(first, "factual maps of all methods", COLUMN * 3), fontsize=10)
    return closed(drawn, file_name("methods", first))


def matches_figure(matches: Matches, count=5):
    """The `count` strongest matches as lines between the two images, each with what it adds to the inner product.

    A line joins two cells of the feature map; within a cell, ends are spread so that none hides another. A large cell
    says what it adds in all.
    """
    drawn, axes = plt.subplots(1, 2, figsize=(8, 5.2), layout="constrained")
    images = photos(matches.explanation)
    for column, image, region in zip(axes, images, matches.regions, strict=True):
        show(column, image)
        _draw_cells(column, image, region.cpu().numpy())
    colours = plt.get_cmap("Set1")
    strongest = matches.strongest(count)
    scale = max(strongest[0].value, EXTREME)
    down = matches.bias1.shape[0]
    for number, match in enumerate(strongest):
        shift = 0.6 * ((number + 0.5) / len(strongest) - 0.5) / down  # down within the cell
        ends = [
            (x * image.shape[1], (y + shift) * image.shape[0])
            for (y, x), image in zip((match.place1, match.place2), images, strict=True)
        ]
        line = ConnectionPatch(
            *ends,
            "data",
            axesA=axes[0],
            axesB=axes[1],
            label=f"{match.value:+.3f}",
            color=colours(number % 9),
            linewidth=1 + 3 * max(match.value, 0) / scale,
            zorder=4 - number / count,
        )
        drawn.add_artist(line)
        for column, end in zip(axes, ends, strict=True):
            column.plot(*end, "o", color=colours(number % 9), markeredgecolor="white", markersize=8)
    drawn.legend(handles=drawn.artists, loc="outside lower center", ncols=count, frameon=False)
    what = f"strongest matches at {matches.layer}: what each adds to the inner product of {matches.cosine:.3f}"
    drawn.suptitle(_heading(matches.explanation, what, 90), fontsize=10)
    return closed(drawn, file_name("matches", matches.explanation, matches.layer))


def point_figure(matches: Matches, point, opacity=OPACITY):
    """A point of image 1, (y, x) in [0, 1), and what its cell matches over image 2, as a share of the strongest."""
    drawn, axes = plt.subplots(1, 2, figsize=(7, 4.2), layout="constrained")
    first, second = photos(matches.explanation)
    down, across = matches.bias1.shape
    height, width = first.shape[:2]
    show(axes[0], first)
    axes[0].plot(point[1] * width, point[0] * height, "o", color="white", markeredgecolor="black")
    corner = int(point[1] * across) * width / across, int(point[0] * down) * height / down
    limits = axes[0].axis()
    axes[0].add_patch(Rectangle(corner, width / across, height / down, fill=False, edgecolor="white"))
    axes[0].axis(limits)  # which a cell at the border has widened
    matched = matches.matches_of(*point).clamp(min=0).cpu()
    strongest = float(matched.max())
    show(axes[1], overlay(second, matched / (strongest or 1), opacity))
    axes[1].set_xlabel(f"at most {strongest:+.3f} of {matches.cosine:.3f}")
    drawn.colorbar(ScalarMappable(cmap=COLORMAP), ax=axes[1], label="share of the strongest match", shrink=0.8)
    what = f"what the marked cell at {matches.layer} matches"
    drawn.suptitle(_heading(matches.explanation, what, 80), fontsize=10)
    return closed(drawn, file_name("point", matches.explanation, matches.layer))


def counterfactual_figure(found: Counterfactual):
    """Both images before and after the change, its outline drawn, with the similarity of each pair."""
    explanation = found.explanation
    before = pixels(explanation.images[0], explanation)
    after = pixels(found.edited, explanation)
    drawn, axes = plt.subplots(2, 2, figsize=(5, 6), layout="constrained")
    for column in range(2):
        show(axes[0, column], before[column])
        show(axes[1, column], after[column])
        _outline(axes[1, column], found.regions[column].cpu().numpy())
        axes[0, column].set_title(f"image {column + 1}", fontsize=10)
    axes[0, 0].set_ylabel(f"before: similarity {found.before:.3f}")
    axes[1, 0].set_ylabel(f"after: similarity {found.after:.3f}")
    what = f"along the maps of {explanation.source}: {found.sentence()}"
    drawn.suptitle(_heading(explanation, what, 62), fontsize=10)
    return closed(drawn, file_name("counterfactual", explanation, explanation.method, explanation.layer))


def sanity_figure(curves: dict[str, dict[str, float]]):
    """Rank correlation with the trained network's maps, by the stage down to which the weights are random.

    Methods whose curves are one share a line.
    """
    drawn, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    lines = {}
    for name, curve in curves.items():
        rounded = tuple(round(value, 2) for value in curve.values())
        lines.setdefault(rounded, []).append(name)
    for names in lines.values():
        curve = curves[names[0]]
        axes.plot(["none", *curve], [1, *curve.values()], "o-", label="\n".join(names))
    axes.axhline(0, color="grey", linestyle=":")
    axes.set(xlabel="weights shuffled from the top down to", ylabel="rank correlation", ylim=(-0.4, 1.05))
    axes.legend(frameon=False, fontsize=8)
    return closed(drawn, "sanity")


def _draw_pair(panel, images, explanation, verdict, kinds, opacity):
    """One pair: a row for each image, the image itself and its maps."""
    columns = 1 + len(kinds)
    axes = panel.subplots(2, columns, height_ratios=_aspects(images))  # rows as high as their images: no gaps
    decision = explanation.decision()
    other = "same" if decision == "different" else "different"
    headings = {"factual": f'factual: speaks for "{decision}"', "counterfactual": f'counterfactual: for "{other}"'}
    for row, image in enumerate(images):
        show(axes[row, 0], image)
        axes[row, 0].set_ylabel(f"image {row + 1}")
        axes[row, 0].set_xlabel(wrapped(explanation.names[0][row], NAME), fontsize=8)
        for column, kind in enumerate(kinds, start=1):
            heatmap = getattr(explanation, kind)[0, row].cpu().numpy()
            show(axes[row, column], overlay(image, heatmap, opacity))
            if heatmap.max() < FAINT:
                faint = f"at most {heatmap.max():.1%}" if heatmap.any() else explanation.cause_of_blank(0, row)
                axes[row, column].set_xlabel(wrapped(faint, COLUMN))
    for column, kind in enumerate(kinds, start=1):
        axes[0, column].set_title(headings[kind], fontsize=10)
    scale = ScalarMappable(cmap=COLORMAP)
    panel.colorbar(scale, ax=axes[:, -1], label="share of the image's strongest evidence", shrink=0.8)
    lines = [explanation.sentence(), explanation.source]
    if verdict is not None:
        lines.append(verdict.sentence())
    panel.suptitle(wrapped("\n".join(lines), COLUMN * columns), fontsize=11)


def _draw_cells(axes, image, region):
    """The grid of a feature map over an image and, where cells are large, what each adds in all."""
    down, across = region.shape
    height, width = image.shape[:2]
    if across <= LARGE:
        for (row, cell), share in np.ndenumerate(region):
            place = (cell + 0.05) * width / across, (row + 0.05) * height / down
            axes.text(*place, f"{share:+.2f}", va="top", fontsize=8, color="white", bbox=LABEL)
    axes.set_xticks(np.arange(1, across) * width / across - 0.5, [])
    axes.set_yticks(np.arange(1, down) * height / down - 0.5, [])
    axes.grid(color="white", linewidth=0.5)
    axes.tick_params(length=0)


def _outline(axes, region):
    """The border of a region, bool (H, W), drawn at the border of the image too."""
    if not region.any():
        return
    limits = axes.axis()
    frame = np.pad(region, 1)
    height, width = region.shape
    axes.contour(np.arange(-1, width + 1), np.arange(-1, height + 1), frame, [0.5], colors="white")
    axes.axis(limits)  # which the frame has widened


def _heading(explanation, what, width):
    """The lines above a figure of one pair: score and decision, what is shown, and both names."""
    name1, name2 = explanation.names[0]
    lines = [explanation.sentence(), what[0].upper() + what[1:], f"Image 1: {name1}, image 2: {name2}"]
    return wrapped("\n".join(lines), width)


def _aspects(images):
    """Height over width of each image."""
    return [image.shape[0] / image.shape[1] for image in images]
