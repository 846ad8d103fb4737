"""Figures of data and training. Pyplot knows none, so that a notebook cell that ends with one shows it once."""

import numpy as np
import torch

from utils.config import Config
from utils.data import Pairs, Splits, decode, stored_size, to_pixels, training_transform
from utils.figures.drawing import closed, named, new_figure, photo, show
from utils.training import kept_epoch


def history_figure(history):
    """Loss and validation AUC by epoch, the width of its 95 % interval around it, the kept epoch marked.

    Without an epoch, `epochs: 0`, the axes are empty.
    """
    epochs = range(1, len(history) + 1)
    figure = new_figure(9, 3)
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [epoch["train_loss"] for epoch in history], label="training")
    left.plot(epochs, [epoch["valid_loss"] for epoch in history], label="validation")
    left.set(xlabel="epoch", ylabel="contrastive loss")
    aucs = np.array([epoch["valid_auc"] for epoch in history])
    errors = np.array([epoch["valid_auc_error"] for epoch in history])
    right.plot(epochs, aucs, color="tab:orange", label="validation")
    low, high = aucs - errors, (aucs + errors).clip(max=1)
    right.fill_between(epochs, low, high, color="tab:orange", alpha=0.2, label="95 % interval")
    right.set(xlabel="epoch", ylabel="AUC")
    for axes in (left, right):
        if not history:
            axes.set_title("not trained: epochs: 0")
            continue
        axes.axvline(kept_epoch(history), color="grey", linestyle=":", label="kept")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)  # never on the curves
    return closed(figure, "history")


def pairs_figure(splits: Splits, pairs: Pairs, count=6):
    """Positive and negative pairs in turn, spread over all `pairs`: one column each, with classes and label."""
    figure = new_figure(1.6 * count, 3.6)
    axes = figure.subplots(2, count, squeeze=False)
    for column in range(count):
        label = column % 2
        candidates = np.flatnonzero(pairs.labels == label)
        axes[0, column].set_title(f"{('same', 'different')[label]} ({label})", fontsize=9)
        if not len(candidates):
            for place in axes[:, column]:
                place.set_axis_off()
            axes[0, column].text(0.5, 0.5, "no such pair", ha="center", va="center", fontsize=8)
            continue
        position = candidates[len(candidates) * column // count]
        for row, index in enumerate((pairs.first[position], pairs.second[position])):
            show(axes[row, column], photo(splits.folder.paths[index], splits.pixels.value_range))
            axes[row, column].set_xlabel(named(splits.folder.classes[splits.folder.labels[index]], 18), fontsize=8)
    return closed(figure, "pairs")


def augmentation_figure(path, config: Config, count=6):
    """One training image as the network sees it: `count` random augmentations."""
    decoded = decode(path, stored_size(config.image), config.max_megapixels, config.image.value_range)
    pixels = torch.from_numpy(decoded)
    images = training_transform(config.image)(pixels.expand(count, -1, -1, -1))
    figure = new_figure(1.6 * count, 1.8)
    axes = figure.subplots(1, count)
    for column, image in zip(axes, to_pixels(images, config.image.normalization).numpy(), strict=True):
        show(column, image)
    return closed(figure, "augmentation")
