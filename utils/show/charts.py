"""Figures of data, training, and the decision on test pairs.

Distances are float (P,), labels int (P,): 0 same class, 1 different classes.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from ..audit.labels import Suspects
from ..audit.shortcuts import Shortcuts
from ..config import Config
from ..data.batches import to_pixels, training_transform
from ..data.duplicates import contradictions, groups_of_several
from ..data.images import ImageFolder
from ..data.reading import decode, stored_size
from ..data.splits import Pairs, Splits
from ..score.calibration import Reliability
from ..score.metrics import FMRS, error_rates, fnmr_at
from ..train.stopping import kept_epoch
from ..trained import Trained
from ..trust.faithfulness import judge
from .drawing import OPACITY, Drawing, finished, named, nothing, photo, set_texts, show, styled
from .figures import figure
from .words import texts_of

WRONG = "tab:red"
SIDE = 2.9  # inches of an image
TICKS = (0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95)  # of a DET curve
LEAST = 5e-4  # error rate at which a DET curve begins


@styled
def distances_figure(distances, labels, threshold: float, band=None):
    """Plot histograms of the distances of same and of different pairs, with the threshold and the undecided band."""
    drawing = Drawing(8, 3.4)
    axes = drawing.subplots()
    bins = np.linspace(0, max(float(distances.max()), threshold), 31)
    axes.hist(distances[labels == 0], bins, alpha=0.6, color="C0", label="same class")
    axes.hist(distances[labels == 1], bins, alpha=0.6, color="C1", label="different classes")
    axes.axvline(
        threshold, color="black", linestyle="--", label=f"threshold {threshold:.3f}: similarity {1 - threshold / 2:.3f}"
    )
    axes.yaxis.get_major_locator().set_params(integer=True)
    if band is not None:
        axes.axvspan(*np.clip(band, bins[0], bins[-1]), color="grey", alpha=0.3, label="undecided")
    axes.set(xlabel="distance", ylabel="test pairs")
    drawing.suptitle("Same pairs should lie left of the threshold, different ones right")
    return _with_legend(drawing, "distances", ncols=4)


@styled
def roc_figure(distances, labels, threshold: float):
    """Plot the ROC curve of the test pairs, with the operating point of the threshold."""
    fmr, fnmr = error_rates(distances, labels)
    decided = distances > threshold
    area = roc_auc_score(labels, distances)
    drawing = Drawing(5, 5.4)
    axes = drawing.subplots()
    drawing.suptitle(f"AUC {area:.3f}: 1 is perfect, the diagonal is guessing")
    axes.plot(fnmr, 1 - fmr, label="test pairs")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.plot(decided[labels == 0].mean(), decided[labels == 1].mean(), "o", label=f"threshold {threshold:.3f}")
    axes.set(xlabel="same pairs called different", ylabel="different pairs called different", aspect="equal")
    return _with_legend(drawing, "roc")


@styled
def det_figure(distances, labels, threshold: float):
    """Plot the DET curve of the test pairs: both error rates on normal deviates, with operating points.

    The points are the FMRs of FMRS that can be measured with so many different pairs, and the threshold. Error rates
    below LEAST are drawn there.

    Martin et al. 1997, The DET curve in assessment of detection task performance.
    """
    fmr, fnmr = error_rates(distances, labels)
    drawing = Drawing(8, 4.4)
    axes = drawing.subplots()
    axes.plot(_deviates(fmr), _deviates(fnmr), drawstyle="steps-post")
    ends = _deviates([LEAST, 1])
    axes.plot(ends, ends, color="grey", linestyle=":", label="both errors equal")
    for most in FMRS:
        if (labels == 1).sum() * most >= 1:
            missed = fnmr_at(fmr, fnmr, most)
            label = f"FMR {most:.1%}: FNMR {missed:.1%}"
            axes.plot(_deviates(most), _deviates(missed), "s", label=label, clip_on=False)
    passed = (distances <= threshold)[labels == 1].mean()
    missed = (distances > threshold)[labels == 0].mean()
    label = f"threshold {threshold:.3f}: FMR {passed:.1%}, FNMR {missed:.1%}"
    axes.plot(_deviates(passed), _deviates(missed), "o", label=label, clip_on=False)
    title = f"At the threshold {passed:.1%} of different pairs pass, {missed:.1%} of same pairs are missed"
    drawing.suptitle(title.replace("%", " %"))
    names = [f"{100 * rate:g} %" for rate in TICKS]
    axes.set_xticks(_deviates(TICKS), names)
    axes.set_yticks(_deviates(TICKS), names)
    axes.set(xlabel="different pairs that pass (FMR)", ylabel="same pairs missed (FNMR)", xlim=ends, ylim=ends)
    return _with_legend(drawing, "det")


def _deviates(rates):
    """Error rates as normal deviates, cut off near 0 and 1."""
    return norm.ppf(np.clip(rates, LEAST, 0.98))


@styled
def reliability_figure(reliability: Reliability):
    """Plot how often pairs are the same by the predicted probability, with 95 % intervals."""
    predicted, observed = reliability.predicted, reliability.observed
    drawing = Drawing(6, 4)
    axes = drawing.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="correct probabilities")
    errors = [observed - reliability.low, reliability.high - observed]
    label = "test pairs, 95 % interval\n(and how many)"
    axes.errorbar(predicted, observed, errors, fmt="o", capsize=3, label=label)
    for place, count in zip(zip(predicted, observed, strict=True), reliability.counts, strict=True):
        axes.annotate(str(count), place, xytext=(5, -10), textcoords="offset points")
    error = f"calibration error {reliability.error}; by chance {reliability.error_by_chance:.3f}"
    drawing.suptitle(f"On the line, probabilities are as they should be\n{error}")
    axes.set(xlabel='predicted probability of "same class"', ylabel="observed share of same pairs")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.05, 1.05))
    return _with_legend(drawing, "reliability")


@styled
def history_figure(history):
    """Plot loss and validation AUC by epoch, with its 95 % interval and the epoch that was selected."""
    if not history:
        return nothing("The network was not trained (epochs: 0).", "history")
    drawing = Drawing(9, 3.4)
    selected = kept_epoch(history)
    title = f"Epoch {selected} of {len(history)} was selected: validation AUC {history[selected - 1]['valid_auc']:.3f}"
    drawing.suptitle(title)
    left, right = drawing.subplots(1, 2)
    left.set(xlabel="epoch", ylabel="contrastive loss")
    right.set(xlabel="epoch", ylabel="AUC")
    table = pd.DataFrame(history, index=range(1, len(history) + 1))
    aucs, errors = table["valid_auc"], table["valid_auc_error"]
    left.plot(table["train_loss"], label="training")
    left.plot(table["valid_loss"], label="validation")
    right.plot(aucs, color="C1", label="validation")
    shade = {"color": "C1", "alpha": 0.2, "label": "95 % interval"}
    right.fill_between(table.index, aucs - errors, (aucs + errors).clip(upper=1), **shade)
    for axes in (left, right):
        axes.axvline(selected, color="grey", linestyle=":", label="selected")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)  # never on the curves
    return finished(drawing, "history")


def _with_legend(drawing, name, ncols=2):
    """Finish a figure with a legend below its axes."""
    drawing.legend(loc="outside lower center", ncols=ncols)
    return finished(drawing, name)


@styled
def pairs_figure(splits: Splits, pairs: Pairs, count=4):
    """Show `count` pairs, same and different in turn, spread over all pairs: one column each, with classes."""
    drawing = Drawing(SIDE * count, 2 * SIDE + 0.9)
    drawing.suptitle("Pairs that the network learns to call same (label 0) and different (label 1)")
    grid = drawing.subplots(2, count, squeeze=False)
    for column in range(count):
        label = column % 2
        grid[0, column].set_title(("same (0)", "different (1)")[label])
        candidates = np.flatnonzero(pairs.labels == label)
        if not len(candidates):
            grid[0, column].set_axis_off()
            grid[1, column].set_axis_off()
            grid[0, column].text(0.5, 0.5, "no such pair", ha="center", va="center")
            continue
        pair = candidates[len(candidates) * column // count]
        for axes, index in zip(grid[:, column], (pairs.first[pair], pairs.second[pair]), strict=True):
            show(axes, photo(splits.folder.paths[index], splits.pixels.value_range))
            axes.set_xlabel(named(splits.folder.classes[splits.folder.labels[index]], 18))
    return finished(drawing, "pairs")


@styled
def augmentation_figure(path, config: Config, count=4):
    """Show one training image as the network sees it: `count` random augmentations."""
    settings = config.image
    decoded = torch.from_numpy(decode(path, stored_size(settings), config.max_megapixels, settings.value_range))
    images = training_transform(settings)(decoded.expand(count, -1, -1, -1))
    drawing = Drawing(SIDE * count, SIDE + 0.4)
    drawing.suptitle("One training image, as the network sees it in several epochs")
    grid = drawing.subplots(1, count)
    for axes, image in zip(grid, to_pixels(images, settings.normalization).numpy(), strict=True):
        show(axes, image)
    return finished(drawing, "augmentation")


@styled
def duplicates_figure(folder: ImageFolder, duplicates: np.ndarray, rows=6, columns=4, value_range=None):
    """Show groups of near-duplicates, one row each; those under several classes come first, framed.

    Args:
        folder: The images.
        duplicates: int64 (N,), the index of the first image of each group, as `near_duplicates` returns them.
        rows: Most groups that are shown; the title says how many there are.
        columns: Most images of a group.
        value_range: Of `image` in config.yml.
    """
    wrong = contradictions(duplicates, folder.labels)
    within = [group for group in groups_of_several(duplicates) if len(np.unique(folder.labels[group])) == 1]
    groups = wrong + within
    if not groups:
        return nothing(f"No near-duplicates among {len(folder.paths)} images.", "duplicates")
    shown = groups[:rows]
    columns = min(columns, max(map(len, shown)))
    drawing = Drawing(SIDE * max(columns, 2), (SIDE + 0.4) * len(shown) + 0.5)
    grid = drawing.subplots(len(shown), columns, squeeze=False)
    for row, group in enumerate(shown):
        for axes, index in zip(grid[row], group, strict=False):
            _show_file(axes, folder, index, value_range, framed=row < len(wrong))
        for axes in grid[row, len(group) :]:
            axes.set_axis_off()
        if len(group) > columns:
            grid[row, -1].set_title(f"and {len(group) - columns} more")
    title = f"Groups of near-duplicates: {len(groups)}"
    if len(shown) < len(groups):
        title += f", of which {len(shown)} shown"
    if wrong:
        title += f"\nframed: {len(wrong)} under several classes, so that a label is incorrect"
    drawing.suptitle(title)
    return finished(drawing, "duplicates")


def _show_file(axes, folder, index, value_range, framed):
    """Show an image with its class and file below, in a frame where its label is incorrect."""
    path = folder.paths[index]
    show(axes, photo(path, value_range))
    label = folder.classes[folder.labels[index]]
    axes.set_xlabel(f"{named(label, 20)}\n{named(Path(path).name, 20)}")
    if framed:
        axes.xaxis.label.set_color(WRONG)
        axes.spines[:].set(color=WRONG, linewidth=3)


@styled
def shortcuts_figure(shortcuts: Shortcuts):
    """Plot what share of the score is lost once a property is equal in all images, and the AUC of the property itself.

    Whiskers are 95 % intervals; squares are the shares that are lost when something else is hidden instead. Below
    stands an image before and after the change that costs most.
    """
    properties = shortcuts.properties
    warning = ""
    if shortcuts.score.low <= 0:
        warning = f"This score may be nothing: different pairs have distances {shortcuts.score} larger than same pairs."
    if not properties:
        return nothing("No property was tried.", "shortcuts", warning)
    height = 0.4 * len(properties) + 1
    drawing = Drawing(9.6, height + SIDE + 0.9)
    worst = max(properties, key=lambda shortcut: shortcut.share.value)
    message = "None of these properties carries much of the score"
    if warning:
        message = "What these properties carry of the score cannot be measured"
    elif worst.matters:
        message = f"The score loses {worst.share.value:.0%} once this is equal in all images: {worst.name}"
    drawing.suptitle(message)
    upper, lower = drawing.subfigures(2, 1, height_ratios=(height, SIDE + 0.4))
    shares, aucs = upper.subplots(1, 2, sharey=True, width_ratios=(4, 3))
    _draw_intervals(shares, [shortcut.share for shortcut in properties])
    _draw_intervals(aucs, [shortcut.auc for shortcut in properties])
    labels = []
    for row, shortcut in enumerate(properties):
        if not np.isnan(shortcut.control):
            shares.plot(shortcut.control, row, "s", color="C1")
            labels.append(f"{shortcut.control_name} (row {row + 1})")
    if labels:
        label = f"hidden instead: {', '.join(labels)}"
        upper.legend(shares.lines[-1:], [label], loc="outside lower center")
    shares.set_yticks(range(len(properties)), [shortcut.name for shortcut in properties])
    shares.invert_yaxis()
    shares.set_xlabel("share of the score that is lost")
    shares.axvline(0, color="grey", linestyle=":")
    aucs.set(xlabel="AUC of the property without the network (0.5: chance)", xlim=(0.3, 1.03))
    aucs.axvline(0.5, color="grey", linestyle=":")
    titles = "original", f"{worst.name}: equal in all images"
    for axes, image, title in zip(lower.subplots(1, 2), worst.example, titles, strict=True):
        show(axes, image)
        axes.set_title(title)
    return finished(drawing, "shortcuts", warning)


def _draw_intervals(axes, intervals):
    """Draw an interval in each row."""
    values, low, high = np.array([(interval.value, interval.low, interval.high) for interval in intervals]).T
    errors = np.clip([values - low, high - values], 0, None)
    axes.errorbar(values, range(len(values)), xerr=errors, fmt="o", color="C0", capsize=3)


@styled
def suspects_figure(trained: Trained, suspects: Suspects, count=3, opacity=OPACITY):
    """Show the worst suspects, `count` at most, with the maps of the pairs: what makes the images similar.

    Above each pair stands what is suspected, below it how faithful its maps are, which takes 108 network passes.
    """
    pairs = suspects.pairs(count)
    if not pairs:
        return nothing("No label is suspected: all images look like their own class.", "suspects", trained.warning)
    explanation = trained.explain(*pairs)
    verdict = judge(trained.network, explanation, trained.config.seed)
    drawing = figure(explanation, verdict, ["factual"], opacity)
    for index, suspect in enumerate(suspects.table(count).to_dict("records")):
        suspicion = f"Check this label: {suspect['image']}\n{suspect['label']}, but its neighbours are "
        suspicion += f"{suspect['neighbours say']} (quality {suspect['quality']:.2f})"
        title, text = texts_of(explanation[index], verdict, index)
        set_texts(drawing.subfigs[index], suspicion, f"{title}\n{text}")
    drawing.set_figheight(drawing.get_figheight() + 0.5 * len(pairs))  # for the longer captions
    drawing.set_label("suspects")
    return drawing
