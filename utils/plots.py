"""Every figure of the project; the only user of matplotlib.

Each function returns a closed figure, so that a notebook cell that ends with it shows it once.
"""

import textwrap
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from sklearn.metrics import roc_auc_score, roc_curve

from utils.cache import decode
from utils.config import Config
from utils.gradcam import Explanation
from utils.images import read_image
from utils.metrics import best_epoch
from utils.pairs import Pairs, Splits
from utils.transforms import stored_size, to_pixels, training_transform

COLORMAP = "turbo"
SAME, DIFFERENT = "tab:blue", "tab:orange"
FAINT = 0.2  # a map that stays below is told in words: hardly anyone would see it
SHOWN_PIXELS = 768  # longest side of an image in a figure


def overlay(image, heatmap, opacity: float) -> np.ndarray:
    """A heatmap laid over an image: uint8 (H, W, 3) RGB.

    image: uint8 (H, W, 3) RGB. heatmap: (h, w) in [0, 1], resized to the image. Where the map is 0 the image is
    untouched; where it is 1 the colour covers it with `opacity`.
    """
    heatmap = cv2.resize(np.asarray(heatmap, np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    heatmap = heatmap.clip(0, 1)[..., None]
    colours = 255 * colormaps[COLORMAP](heatmap[..., 0])[..., :3]
    return (image + opacity * heatmap * (colours - image)).round().astype(np.uint8)


def history_figure(history):
    """Loss and validation AUC by epoch, the kept epoch marked."""
    epochs = range(1, len(history) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.plot(epochs, [epoch["train_loss"] for epoch in history], label="training")
    left.plot(epochs, [epoch["valid_loss"] for epoch in history], label="validation")
    left.set(xlabel="epoch", ylabel="contrastive loss")
    right.plot(epochs, [epoch["valid_auc"] for epoch in history], color="tab:orange", label="validation")
    right.set(xlabel="epoch", ylabel="AUC")
    for axes in (left, right):
        axes.axvline(best_epoch(history), color="grey", linestyle=":", label="kept")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
    return _closed(figure)


def pairs_figure(splits: Splits, pairs: Pairs, count=6):
    """Positive and negative pairs in turn, spread over all `pairs`: one column each, with classes and label."""
    figure, axes = plt.subplots(2, count, figsize=(1.6 * count, 3.6), layout="constrained", squeeze=False)
    for column in range(count):
        label = column % 2
        candidates = np.flatnonzero(pairs.labels == label)
        position = candidates[len(candidates) * column // count]
        for row, index in enumerate((pairs.first[position], pairs.second[position])):
            _show(axes[row, column], _photo(splits.folder.paths[index]))
            axes[row, column].set_xlabel(splits.folder.classes[splits.folder.labels[index]], fontsize=8)
        axes[0, column].set_title(f"{('same', 'different')[label]} ({label})", fontsize=9)
    return _closed(figure)


def augmentation_figure(path, config: Config, count=6):
    """One training image as the network sees it: `count` random augmentations."""
    pixels = torch.from_numpy(decode(path, stored_size(config.image)))
    images = training_transform(config.image)(pixels.expand(count, -1, -1, -1))
    figure, axes = plt.subplots(1, count, figsize=(1.6 * count, 1.8), layout="constrained")
    for column, image in zip(axes, to_pixels(images, config.image).numpy(), strict=True):
        _show(column, image)
    return _closed(figure)


def roc_figure(distances, labels, threshold: float):
    """ROC curve of the test pairs with the operating point of the chosen threshold."""
    false_alarms, hits, _ = roc_curve(labels, distances)
    decided = distances > threshold
    figure, axes = plt.subplots(figsize=(4, 4), layout="constrained")
    axes.plot(false_alarms, hits, label=f"AUC {roc_auc_score(labels, distances):.3f}")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.plot(decided[labels == 0].mean(), decided[labels == 1].mean(), "o", label=f"threshold {threshold:.3f}")
    axes.set(xlabel="same pairs called different", ylabel="different pairs called different", aspect="equal")
    axes.legend(frameon=False, loc="lower right")
    return _closed(figure)


def distances_figure(distances, labels, threshold: float):
    """Histograms of the distances of same and of different pairs, with the threshold."""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    bins = np.linspace(0, max(float(distances.max()), threshold), 31)
    for label, name, colour in ((0, "same class", SAME), (1, "different classes", DIFFERENT)):
        axes.hist(distances[labels == label], bins, alpha=0.6, color=colour, label=name)
    axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3f}")
    axes.set(xlabel="distance", ylabel="test pairs")
    axes.legend(frameon=False)
    return _closed(figure)


def images_figure(path1, path2):
    """Two image files side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(6, 3), layout="constrained")
    for number, (column, path) in enumerate(zip(axes, (path1, path2), strict=True), start=1):
        _show(column, _photo(path))
        column.set_title(f"image {number}: {Path(path).parent.name}/{Path(path).name}", fontsize=9)
    return _closed(figure)


def explanation_figure(
    explanation: Explanation, path1, path2, config: Config, kinds=("factual", "counterfactual"), index=0
):
    """One row per image: the image, then the map of each of `kinds` over it; the decision in the title."""
    photos = [_photo(path) for path in (path1, path2)]
    aspects = [photo.shape[0] / photo.shape[1] for photo in photos]  # rows as high as their images: no gaps
    columns = 1 + len(kinds)
    size = (2.8 * columns + 0.6, 2.6 * sum(aspects) + 0.9)
    figure, axes = plt.subplots(2, columns, figsize=size, height_ratios=aspects, layout="constrained")
    decision, other = ("different", "same") if explanation.different[index] else ("same", "different")
    words = {"factual": f'factual: speaks for "{decision}"', "counterfactual": f'counterfactual: for "{other}"'}
    for row, image in enumerate(photos):
        _show(axes[row, 0], image)
        axes[row, 0].set_ylabel(f"image {row + 1}")
        for column, kind in enumerate(kinds, start=1):
            heatmap = getattr(explanation, kind)[index, row].cpu().numpy()
            _show(axes[row, column], overlay(image, heatmap, config.explanation.opacity))
            if heatmap.max() < FAINT:
                axes[row, column].set_xlabel(f"at most {heatmap.max():.1%}" if heatmap.any() else "no such evidence")
            if row == 0:
                axes[row, column].set_title(words[kind], fontsize=10)
    figure.colorbar(
        ScalarMappable(cmap=COLORMAP), ax=axes[:, -1], label="share of the image's strongest evidence", shrink=0.8
    )
    figure.suptitle(textwrap.fill(explanation.sentence(index), 34 * columns), fontsize=11)
    return _closed(figure)


def saved(figure, name: str, config: Config):
    """Write a figure to `results_path`/<name>.png and hand it on, so that a cell shows it."""
    config.results_path.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.results_path / f"{name}.png", dpi=120)
    return figure


def _photo(path):
    """An image file for a figure, shrunk to SHOWN_PIXELS where it is larger."""
    image = read_image(path)
    scale = SHOWN_PIXELS / max(image.shape[:2])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image


def _show(axes, image):
    axes.imshow(image, interpolation="nearest")  # smoothing would invent detail, and triple the size of a notebook
    axes.set(xticks=[], yticks=[])


def _closed(figure):
    plt.close(figure)  # else the notebook shows it a second time
    return figure
