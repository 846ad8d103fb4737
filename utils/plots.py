"""Figures of data and training, and what all figures share; with `heatmaps` the only user of matplotlib.

Each function returns a closed figure, so that a notebook cell that ends with it shows it once.
"""

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from utils.cache import decode
from utils.config import Config
from utils.images import read_image
from utils.metrics import best_epoch
from utils.pairs import Pairs, Splits
from utils.transforms import stored_size, to_pixels, training_transform

SAME, DIFFERENT = "tab:blue", "tab:orange"
SHOWN_PIXELS = 768  # longest side of an image in a figure


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
    return closed(figure)


def pairs_figure(splits: Splits, pairs: Pairs, count=6):
    """Positive and negative pairs in turn, spread over all `pairs`: one column each, with classes and label."""
    figure, axes = plt.subplots(2, count, figsize=(1.6 * count, 3.6), layout="constrained", squeeze=False)
    for column in range(count):
        label = column % 2
        candidates = np.flatnonzero(pairs.labels == label)
        position = candidates[len(candidates) * column // count]
        for row, index in enumerate((pairs.first[position], pairs.second[position])):
            show(axes[row, column], photo(splits.folder.paths[index]))
            axes[row, column].set_xlabel(splits.folder.classes[splits.folder.labels[index]], fontsize=8)
        axes[0, column].set_title(f"{('same', 'different')[label]} ({label})", fontsize=9)
    return closed(figure)


def augmentation_figure(path, config: Config, count=6):
    """One training image as the network sees it: `count` random augmentations."""
    pixels = torch.from_numpy(decode(path, stored_size(config.image)))
    images = training_transform(config.image)(pixels.expand(count, -1, -1, -1))
    figure, axes = plt.subplots(1, count, figsize=(1.6 * count, 1.8), layout="constrained")
    for column, image in zip(axes, to_pixels(images, config.image).numpy(), strict=True):
        show(column, image)
    return closed(figure)


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
    return closed(figure)


def distances_figure(distances, labels, threshold: float):
    """Histograms of the distances of same and of different pairs, with the threshold."""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    bins = np.linspace(0, max(float(distances.max()), threshold), 31)
    for label, name, colour in ((0, "same class", SAME), (1, "different classes", DIFFERENT)):
        axes.hist(distances[labels == label], bins, alpha=0.6, color=colour, label=name)
    axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3f}")
    axes.set(xlabel="distance", ylabel="test pairs")
    axes.legend(frameon=False)
    return closed(figure)


def saved(figure, name: str, config: Config):
    """Write a figure to `results_path`/<name>.png and hand it on, so that a cell shows it."""
    config.results_path.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.results_path / f"{name}.png", dpi=120)
    return figure


def photo(path):
    """An image file for a figure, shrunk to SHOWN_PIXELS where it is larger."""
    image = read_image(path)
    scale = SHOWN_PIXELS / max(image.shape[:2])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image


def show(axes, image):
    """An image without ticks."""
    axes.imshow(image, interpolation="nearest")  # smoothing would invent detail, and triple the size of a notebook
    axes.set(xticks=[], yticks=[])


def closed(figure):
    """Hand a finished figure on."""
    plt.close(figure)  # else the notebook shows it a second time
    return figure
