"""Figures of the decision on test pairs: distances, ROC and DET curves, whether the probabilities are right.

Distances are float (P,), labels int (P,): 0 same class, 1 different classes. Pyplot knows none, as in `training`.
"""

import numpy as np
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from utils.figures.drawing import closed, new_figure, wrapped
from utils.training import Reliability, error_rates
from utils.training.metrics import FMRS, fnmr_at

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
    errors = [found.found - found.low, found.high - found.found]
    axes.errorbar(
        found.said, found.found, errors, fmt="o", capsize=3, label="test pairs, 95 % interval\n(and how many)"
    )
    for said, share, count in zip(found.said, found.found, found.counts, strict=True):
        axes.annotate(str(count), (said, share), xytext=(5, -10), textcoords="offset points", fontsize=8)
    title = f"Expected calibration error {found.error}; right probabilities would show {found.by_chance:.3f} by chance"
    axes.set_title(wrapped(title, 48), fontsize=10)
    axes.set(xlabel='said: probability of "same class"', ylabel="found: share of same pairs", xlim=(-0.03, 1.03))
    axes.set_ylim(-0.05, 1.05)
    figure.legend(loc="outside right upper", frameon=False)
    return closed(figure, "reliability")


def _deviates(rates):
    """Error rates as normal deviates, cut off near 0 and 1."""
    return norm.ppf(np.clip(rates, LEAST, 0.98))
