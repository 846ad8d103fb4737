"""Figures of explanations: heatmaps over images, matches between them, counterfactuals before and after."""

import textwrap
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.patches import ConnectionPatch, Rectangle

from utils.config import Config
from utils.counterfactuals import Counterfactual
from utils.decomposition import Decomposition
from utils.explanation import Explanation
from utils.faithfulness import Verdict
from utils.plots import closed, photo, show
from utils.transforms import to_pixels

COLORMAP = "turbo"
SOLID = 0.25  # from this share of the strongest evidence on, the colour alone tells the value
FAINT = 0.2  # a map that stays below is told in words too
BLOCK = 4  # methods side by side
LARGE = 4  # cells along a side that leave room for text
LABEL = {"facecolor": "black", "alpha": 0.5, "edgecolor": "none", "pad": 1}


def overlay(image, heatmap, opacity: float) -> np.ndarray:
    """A heatmap laid over an image: uint8 (H, W, 3) RGB.

    image: uint8 (H, W, 3) RGB. heatmap: (h, w) in [0, 1], resized to the image. Where the map is 0 the image is
    untouched; from SOLID on the colour covers it with `opacity`.
    """
    heatmap = cv2.resize(np.asarray(heatmap, np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    heatmap = heatmap.clip(0, 1)[..., None]
    colours = 255 * colormaps[COLORMAP](heatmap[..., 0])[..., :3]
    return (image + opacity * (heatmap / SOLID).clip(max=1) * (colours - image)).round().astype(np.uint8)


def images_figure(path1, path2):
    """Two image files side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(6, 3), layout="constrained")
    for number, (column, path) in enumerate(zip(axes, (path1, path2), strict=True), start=1):
        show(column, photo(path))
        column.set_title(f"image {number}: {Path(path).parent.name}/{Path(path).name}", fontsize=9)
    return closed(figure)


def explanation_figure(
    explanation: Explanation,
    path1,
    path2,
    config: Config,
    kinds=("factual", "counterfactual"),
    verdict: Verdict | None = None,
):
    """One row per image: the image, then the map of each of `kinds` over it; decision and verdict in the title."""
    photos = [photo(path) for path in (path1, path2)]
    aspects = [photo.shape[0] / photo.shape[1] for photo in photos]  # rows as high as their images: no gaps
    columns = 1 + len(kinds)
    size = (2.8 * columns + 0.6, 2.6 * sum(aspects) + 1.3)
    figure, axes = plt.subplots(2, columns, figsize=size, height_ratios=aspects, layout="constrained")
    decision, other = ("different", "same") if explanation.different[0] else ("same", "different")
    words = {"factual": f'factual: speaks for "{decision}"', "counterfactual": f'counterfactual: for "{other}"'}
    for row, image in enumerate(photos):
        show(axes[row, 0], image)
        axes[row, 0].set_ylabel(f"image {row + 1}")
        for column, kind in enumerate(kinds, start=1):
            heatmap = getattr(explanation, kind)[0, row].cpu().numpy()
            show(axes[row, column], overlay(image, heatmap, config.explanation.opacity))
            if heatmap.max() < FAINT:
                cause = f"at most {heatmap.max():.1%}" if heatmap.any() else explanation.cause_of_blank(0, row)
                axes[row, column].set_xlabel(textwrap.fill(cause, 34))
            if row == 0:
                axes[row, column].set_title(words[kind], fontsize=10)
    figure.colorbar(
        ScalarMappable(cmap=COLORMAP), ax=axes[:, -1], label="share of the image's strongest evidence", shrink=0.8
    )
    lines = [explanation.sentence()] + ([verdict.sentence()] if verdict else [])
    figure.suptitle("\n".join(textwrap.fill(line, 34 * columns) for line in lines), fontsize=11)
    return closed(figure)


def comparison_figure(explanations: dict[str, Explanation], verdicts: dict[str, Verdict], path1, path2, config: Config):
    """The factual maps of several methods for one pair, BLOCK methods in a row, each with its gap and verdict."""
    photos = [photo(path) for path in (path1, path2)]
    aspects = [image.shape[0] / image.shape[1] for image in photos]
    blocks = -(-len(explanations) // BLOCK)
    size = (2.1 * BLOCK, (2.1 * sum(aspects) + 0.8) * blocks)
    figure, grid = plt.subplots(
        2 * blocks, BLOCK, figsize=size, height_ratios=aspects * blocks, layout="constrained", squeeze=False
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (name, explanation) in enumerate(explanations.items()):
        axes = grid[2 * (number // BLOCK) :, number % BLOCK][:2]
        for row, image in enumerate(photos):
            axes[row].set_axis_on()
            show(axes[row], overlay(image, explanation.factual[0, row].cpu(), config.explanation.opacity))
        axes[0].set_title(textwrap.fill(name, 24), fontsize=9)
        axes[1].set_xlabel(f"telling gap {verdicts[name].gap.telling[0]:+.3f}\n{verdicts[name].word()}", fontsize=9)
    return closed(figure)


def matches_figure(decomposition: Decomposition, path1, path2, count=5):
    """The `count` strongest matches as lines between the two images, each with what it adds to the inner product.

    A line joins two cells of the feature map; within a cell, ends are spread so that none hides another. A large cell
    says what it adds in all.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.4), layout="constrained")
    photos, (down, across) = [photo(path) for path in (path1, path2)], decomposition.bias1.shape
    for column, image, region in zip(axes, photos, decomposition.regions, strict=True):
        show(column, image)
        for (row, cell), share in np.ndenumerate(region.cpu().numpy() if across <= LARGE else np.empty((0, 0))):
            place = (cell + 0.05) * image.shape[1] / across, (row + 0.05) * image.shape[0] / down
            column.text(*place, f"{share:+.2f}", va="top", fontsize=8, color="white", bbox=LABEL)
        column.set_xticks(np.arange(1, across) * image.shape[1] / across - 0.5, [])
        column.set_yticks(np.arange(1, down) * image.shape[0] / down - 0.5, [])
        column.grid(color="white", linewidth=0.5)
        column.tick_params(length=0)
    colours, matches = plt.get_cmap("Set1"), decomposition.strongest(count)
    for number, (*points, value) in enumerate(matches):
        shift = 0.6 * ((number + 0.5) / len(matches) - 0.5) / down  # down within the cell
        ends = [
            (x * image.shape[1], (y + shift) * image.shape[0]) for (y, x), image in zip(points, photos, strict=True)
        ]
        style = {"color": colours(number % 9), "linewidth": 1 + 3 * value / matches[0][2], "zorder": 4 - number / count}
        figure.add_artist(ConnectionPatch(*ends, "data", axesA=axes[0], axesB=axes[1], label=f"{value:+.3f}", **style))
        for column, end in zip(axes, ends, strict=True):
            column.plot(*end, "o", color=style["color"], markeredgecolor="white", markersize=8)
    figure.legend(handles=figure.artists, loc="outside lower center", ncols=count, frameon=False)
    figure.suptitle(
        f"Strongest matches: what each adds to the inner product of {decomposition.cosine:.3f}", fontsize=11
    )
    return closed(figure)


def point_figure(decomposition: Decomposition, point, path1, path2, config: Config):
    """A point of image 1, (y, x) in [0, 1), and what its cell matches over image 2, as a share of the strongest."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
    first, second = photo(path1), photo(path2)
    show(axes[0], first)
    axes[0].plot(point[1] * first.shape[1], point[0] * first.shape[0], "o", color="white", markeredgecolor="black")
    (down, across), (height, width) = decomposition.bias1.shape, first.shape[:2]
    corner = int(point[1] * across) * width / across, int(point[0] * down) * height / down
    axes[0].add_patch(Rectangle(corner, width / across, height / down, fill=False, edgecolor="white"))
    matched = decomposition.matches_of(*point).clamp(min=0).cpu()
    strongest = float(matched.max())
    show(axes[1], overlay(second, matched / (strongest or 1), config.explanation.opacity))
    axes[1].set_xlabel(f"at most {strongest:+.3f} of {decomposition.cosine:.3f}")
    figure.colorbar(ScalarMappable(cmap=COLORMAP), ax=axes[1], label="share of the strongest match", shrink=0.8)
    return closed(figure)


def counterfactual_figure(found: Counterfactual, path1, path2, config: Config):
    """Both images before and after the change, its outline drawn, with the network's word on each pair."""
    after = to_pixels(found.edited, config.image).cpu().numpy()
    figure, axes = plt.subplots(2, 2, figsize=(6, 6.4), layout="constrained")
    for column, (path, image, region) in enumerate(zip((path1, path2), after, found.regions, strict=True)):
        show(axes[0, column], cv2.resize(photo(path), image.shape[1::-1], interpolation=cv2.INTER_AREA))
        show(axes[1, column], image)
        if region.any():
            frame, limits = np.pad(region.cpu().numpy(), 1), axes[1, column].axis()  # an outline at the border too
            axes[1, column].contour(
                np.arange(-1, frame.shape[1] - 1), np.arange(-1, frame.shape[0] - 1), frame, [0.5], colors="white"
            )
            axes[1, column].axis(limits)  # which the frame has widened
        axes[0, column].set_title(f"image {column + 1}", fontsize=10)
    axes[0, 0].set_ylabel(f"before: similarity {found.before:.3f}")
    axes[1, 0].set_ylabel(f"after: similarity {found.after:.3f}")
    figure.suptitle(textwrap.fill(found.sentence(), 64), fontsize=11)
    return closed(figure)


def sanity_figure(curves: dict[str, dict[str, float]]):
    """Rank correlation with the trained network's maps, by the stage down to which the weights are random.

    Methods whose curves are one share a line.
    """
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    lines = {}
    for name, curve in curves.items():
        lines.setdefault(tuple(round(value, 2) for value in curve.values()), []).append((name, curve))
    for methods in lines.values():
        (_, curve), names = methods[0], [name for name, _ in methods]
        axes.plot(["none", *curve], [1, *curve.values()], "o-", label="\n".join(names))
    axes.axhline(0, color="grey", linestyle=":")
    axes.set(xlabel="weights shuffled from the top down to", ylabel="rank correlation", ylim=(-0.4, 1.05))
    axes.legend(frameon=False, fontsize=8)
    return closed(figure)
