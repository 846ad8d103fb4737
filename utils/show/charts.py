"""Figures of the decision on test pairs: distances, ROC and DET curves, whether the probabilities are right.

Distances are float (P,), labels int (P,): 0 same class, 1 different classes. Pyplot knows none, as in `training`.
"""

from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from ..audit.labels import Suspects
from ..audit.shortcuts import Shortcuts
from ..config import Config
from ..data.cache import decode
from ..data.duplicates import contradictions, groups_of_several
from ..data.images import ImageFolder
from ..data.splits import Pairs, Splits
from ..data.transforms import stored_size, to_pixels, training_transform
from ..score.calibration import Reliability
from ..score.metrics import FMRS, error_rates, fnmr_at
from ..train.stopping import kept_epoch
from ..trained import Trained
from ..trust.faithfulness import judge
from .drawing import OPACITY, closed, named, new_figure, nothing, photo, show, wrapped
from .figures import figure

SAME, DIFFERENT = "tab:blue", "tab:orange"
TICKS = (0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95)  # of a DET curve
LEAST = 5e-4  # error rate at which a DET curve begins


def distances_figure(distances, labels, threshold: float, band=None):
    """Histograms of the distances of same and of different pairs, with the threshold and what is left undecided."""
    figure = new_figure(6, 3)
    axes = figure.subplots()
    bins = np.linspace(0, max(float(distances.max()), threshold), 31)
    for label, name, colour in ((0, "same class", SAME), (1, "different classes", DIFFERENT)):
        axes.hist(distances[labels == label], bins, alpha=0.6, color=colour, label=name)
    axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3f}")
    if band is not None:
        axes.axvspan(*np.clip(band, bins[0], bins[-1]), color="grey", alpha=0.3, label="undecided")
    axes.set(xlabel="distance", ylabel="test pairs")
    figure.legend(loc="outside right upper", frameon=False)
    return closed(figure, "distances")


def roc_figure(distances, labels, threshold: float):
    """ROC curve of the test pairs with the operating point of the chosen threshold."""
    fmr, fnmr = error_rates(distances, labels)
    decided = distances > threshold
    figure = new_figure(4, 4)
    axes = figure.subplots()
    axes.plot(fnmr, 1 - fmr, label=f"AUC {roc_auc_score(labels, distances):.3f}")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.plot(decided[labels == 0].mean(), decided[labels == 1].mean(), "o", label=f"threshold {threshold:.3f}")
    axes.set(xlabel="same pairs called different", ylabel="different pairs called different", aspect="equal")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return closed(figure, "roc")


def det_figure(distances, labels, threshold: float):
    """DET curve of the test pairs: both error rates on normal deviates (Martin et al. 1997), with operating points.

    FMRs of FMRS that so many different pairs can show, and the chosen threshold. Error rates below LEAST are drawn
    there.
    """
    fmr, fnmr = error_rates(distances, labels)
    figure = new_figure(6, 4)
    axes = figure.subplots()
    axes.plot(_deviates(fmr), _deviates(fnmr), drawstyle="steps-post")
    ends = _deviates([LEAST, 1])
    axes.plot(ends, ends, color="grey", linestyle=":", label="both errors alike")
    for most in FMRS:
        if (labels == 1).sum() * most >= 1:
            missed = fnmr_at(fmr, fnmr, most)
            label = f"FMR {most:.1%}: FNMR {missed:.1%}"
            axes.plot(_deviates(most), _deviates(missed), "s", label=label, clip_on=False)
    passed = (distances <= threshold)[labels == 1].mean()
    missed = (distances > threshold)[labels == 0].mean()
    label = f"threshold {threshold:.3f}:\nFMR {passed:.1%}, FNMR {missed:.1%}"
    axes.plot(_deviates(passed), _deviates(missed), "o", label=label, clip_on=False)
    ticks = _deviates(TICKS)
    names = [f"{100 * rate:g} %" for rate in TICKS]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.set(xlabel="different pairs that pass (FMR)", ylabel="same pairs missed (FNMR)", xlim=ends, ylim=ends)
    figure.legend(loc="outside right upper", frameon=False)
    return closed(figure, "det")


def reliability_figure(found: Reliability):
    """Reliability diagram: how often pairs are the same, by the probability that was said, with 95 % intervals."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="right probabilities")
    errors = [found.observed - found.low, found.high - found.observed]
    axes.errorbar(
        found.predicted, found.observed, errors, fmt="o", capsize=3, label="test pairs, 95 % interval\n(and how many)"
    )
    for said, share, count in zip(found.predicted, found.observed, found.counts, strict=True):
        axes.annotate(str(count), (said, share), xytext=(5, -10), textcoords="offset points", fontsize=8)
    title = f"Expected calibration error {found.error}; right probabilities would show {found.error_by_chance:.3f} by chance"
    axes.set_title(wrapped(title, 48), fontsize=10)
    axes.set(xlabel='said: probability of "same class"', ylabel="found: share of same pairs", xlim=(-0.03, 1.03))
    axes.set_ylim(-0.05, 1.05)
    figure.legend(loc="outside right upper", frameon=False)
    return closed(figure, "reliability")


def _deviates(rates):
    """Error rates as normal deviates, cut off near 0 and 1."""
    return norm.ppf(np.clip(rates, LEAST, 0.98))


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


WRONG = "tab:red"
WIDTH = 20  # characters below an image


def duplicates_figure(folder: ImageFolder, duplicates: np.ndarray, rows=6, columns=5, value_range=None):
    """Groups of near-duplicates, one row each, with class and file below each image; those under several classes first,
    framed. At most `rows` groups of `columns` images, and how many more there are; a sentence where there is none.

    duplicates: int64 (N,), the index of the first image of each group, as `near_duplicates` returns them.
    value_range: of `image` in config.yml.
    """
    wrong = contradictions(duplicates, folder.labels)
    right = [group for group in groups_of_several(duplicates) if len(np.unique(folder.labels[group])) == 1]
    groups = wrong + right
    if not groups:
        return nothing(f"No near-duplicates among {len(folder.paths)} images.", "duplicates")
    shown = groups[:rows]
    columns = min(columns, max(map(len, shown)))
    figure = new_figure(max(1.9 * columns, 5), 2.2 * len(shown) + 0.5)
    axes = figure.subplots(len(shown), columns, squeeze=False)
    for row, (line, group) in enumerate(zip(axes, shown, strict=True)):
        for place, index in zip(line, group, strict=False):
            image = photo(folder.paths[index], value_range)
            _show_named(place, folder, index, image, WRONG if row < len(wrong) else None)
        for place in line[len(group) :]:
            place.set_axis_off()
        if len(group) > columns:
            line[-1].set_title(f"and {len(group) - columns} more", fontsize=8)
    figure.suptitle(_heading(len(groups), len(wrong), len(shown)), fontsize=10)
    return closed(figure, "duplicates")


def _show_named(axes, folder, index, image, colour):
    path = Path(folder.paths[index])
    show(axes, image)
    axes.set_xlabel(f"{named(path.parent.name, WIDTH)}\n{named(path.name, WIDTH)}", fontsize=8, color=colour or "black")
    if colour:
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=3)


def _heading(groups, wrong, shown):
    more = f"; the first {shown} are shown" if shown < groups else ""
    text = f"{groups} group{'s' * (groups > 1)} of near-duplicates{more}"
    if not wrong:
        return text
    return f"{text}\nframed: {wrong} under several classes, so that a label is wrong"


BLUE = "#0072B2"  # of Okabe and Ito, told apart by the colour-blind
ORANGE = "#E69F00"


def shortcuts_figure(shortcuts: Shortcuts):
    """A row for each property: an image before and after it was made alike, its share of the score, its own AUC.

    Whiskers are 95 % intervals; squares are the shares that go when something else is hidden instead. A score that may
    be nothing is said.
    """
    found = shortcuts.found
    warning = ""
    if shortcuts.score.low <= 0:
        warning = f"This score may be nothing: different pairs lie {shortcuts.score} farther apart than same ones."
    if not found:
        return nothing("No property was tried.", "shortcuts", warning)
    rows = len(found)
    drawn = new_figure(9, 0.9 * rows + 1)
    grid = drawn.subplots(rows, 4, width_ratios=(1, 1, 4, 3), squeeze=False)
    share, alone = (_tall(drawn, grid[:, column]) for column in (2, 3))
    for axes, one in zip(grid, found, strict=True):
        show(axes[0], one.example[0])
        show(axes[1], one.example[1])
        axes[0].set_ylabel(one.name, rotation=0, ha="right", va="center")
    grid[0, 0].set_title("as it is", fontsize=9)
    grid[0, 1].set_title("made alike", fontsize=9)
    places = np.arange(rows)
    _whiskers(share, places, [one.share for one in found])
    elsewhere = [one.elsewhere for one in found]
    if not np.isnan(elsewhere).all():
        named = ", ".join(f"{one.name}: {one.instead}" for one in found if one.instead)
        share.plot(elsewhere, places, "s", color=ORANGE, label=f"hidden instead ({named})")
        drawn.legend(loc="outside lower center", frameon=False, fontsize=8)
    share.set_xlabel("share of the score")
    share.axvline(0, color="grey", linestyle=":")
    _whiskers(alone, places, [one.alone for one in found])
    alone.set(xlabel="AUC by itself (0.5: says nothing)", xlim=(0.3, 1.03))
    alone.axvline(0.5, color="grey", linestyle=":")
    return closed(drawn, "shortcuts", warning)


def _tall(drawn, column):
    """One axes in place of a column of them, with a row for each."""
    grid = column[0].get_gridspec()
    number = column[0].get_subplotspec().colspan.start
    for axes in column:
        axes.remove()
    axes = drawn.add_subplot(grid[:, number])
    axes.set(ylim=(len(column) - 0.5, -0.5), yticks=[])
    return axes


def _whiskers(axes, places, intervals):
    values = np.array([one.value for one in intervals])
    ends = np.array([[one.value - one.low, one.high - one.value] for one in intervals]).T
    axes.errorbar(values, places, xerr=ends.clip(min=0), fmt="o", color=BLUE, capsize=3)


PAIRS = 3  # in one figure
LABEL_WIDTH = 90  # characters that fit above a pair


def suspects_figure(trained: Trained, suspects: Suspects, count=PAIRS, opacity=OPACITY):
    """The worst suspects, `count` at most, with the maps of the pairs: what makes them look alike, and what does not.

    What is suspected stands above each pair, and how faithful its maps are: up to 108 network passes a pair. Without
    suspects the figure says so.
    """
    pairs = suspects.pairs(count)
    if not pairs:
        return nothing("No label is suspected: all images look like their own class.", "suspects", trained.warning)
    explanation = trained.explain(*pairs)
    drawn = figure(explanation, judge(trained.network, explanation, trained.config.seed), opacity=opacity)
    drawn.set_figheight(drawn.get_figheight() + 0.8 * len(pairs))  # for what is suspected
    for panel, row in zip(drawn.subfigs, suspects.table(count).itertuples(), strict=True):
        _, image, label, suggested, quality, *_ = row
        suspicion = f"Suspect label: {image}\n{label}, but like {suggested} to the network (quality {quality:.3f})"
        panel.suptitle(f"{wrapped(suspicion, LABEL_WIDTH)}\n\n{panel.get_suptitle()}", fontsize=11)
    return closed(drawn, "suspects", explanation.source.warning)
