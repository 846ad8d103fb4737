"""Metrics of the test: of pairs, and of retrieval, each with its interval and its meaning."""

import math
from dataclasses import asdict, dataclass

import numpy as np
from sklearn.metrics import auc, average_precision_score, confusion_matrix, roc_curve
from sklearn.neighbors import NearestNeighbors

from ..data.splits import Pairs
from .calibration import calibration_error, chance_calibration_error
from .intervals import ROUNDING, Interval, image_count, independent_mean, intervals, weighted_mean

FMRS = (0.1, 0.01, 0.001)
FNMR_AT = "fnmr_at_fmr_{:g}"
HOW = "images are resampled, because pairs share them; in retrieval, the queries of a fixed gallery"
MEANINGS = {
    "auc": "chance that the distance of a different pair is larger than that of a same pair; 0.5 is guessing",
    "average_precision": "precision of finding different pairs, averaged over their ranks",
    "eer": "error rate at the threshold where it is equal for same and different pairs",
    "accuracy": "share of pairs decided correctly",
    "fmr": 'false match rate: share of different pairs decided "same"',
    "fnmr": 'false non-match rate: share of same pairs decided "different"',
    "undecided": "share of pairs left undecided",
    "wrong_of_decided": "share of the decided pairs that are wrong; `abstain` limits it for each side, in nine of ten "
    "validation sets",
    "recall_at_1": "share of test images whose nearest other test image is of their class",
    "r_precision": "share of its class among the R test images nearest to one, R being all others of its class",
    "map_at_r": "the same, where nearer images of its class count more (MAP@R)",
    "calibration_error": "mean difference between the probabilities and how often pairs are the same (ECE)",
}
for most in FMRS:
    MEANINGS[FNMR_AT.format(most)] = f"same pairs missed where at most {most:.1%} of different pairs pass"


@dataclass(frozen=True)
class Metric:
    """One number of the test."""

    name: str
    interval: Interval
    """The value with its 95 % interval; NaN where it cannot be estimated."""
    meaning: str

    @property
    def shown(self) -> str:
        """The value and its interval in words."""
        if math.isnan(self.interval.value):
            return "cannot be estimated"
        return str(self.interval)


@dataclass(frozen=True)
class Metrics:
    """All numbers of the test. `metrics["auc"]` is one of them."""

    metrics: tuple[Metric, ...]
    facts: dict
    """What else metrics.json holds: counts, the threshold, the confusion matrix."""

    def __getitem__(self, name: str) -> Metric:
        """Return the metric of a name. Raises KeyError for one that was not measured."""
        return {metric.name: metric for metric in self.metrics}[name]

    def __str__(self):
        names = max(len(metric.name) for metric in self.metrics)
        values = max(len(metric.shown) for metric in self.metrics)
        lines = [f"{metric.name:{names}}  {metric.shown:{values}}  {metric.meaning}" for metric in self.metrics]
        return "\n".join(lines)

    def as_dict(self) -> dict:
        """Return plain numbers and texts, ready for JSON; null for what cannot be estimated."""
        content = {}
        for metric in self.metrics:
            ends = asdict(metric.interval)
            if math.isnan(metric.interval.value):
                ends = dict.fromkeys(ends)
            content[metric.name] = ends | {"meaning": metric.meaning}
        return content | {"intervals": f"95 %: {HOW}"} | self.facts


def evaluate(distances, pairs: Pairs, threshold: float, band=None, probabilities=None, seed=0) -> Metrics:
    """Measure pairs at a threshold; each metric has an interval from `intervals`.

    Args:
        distances: Of the pairs, float (P,).
        pairs: The P pairs.
        threshold: The distance up to which a pair is "same".
        band: Two distances between which pairs are left undecided, or None.
        probabilities: Of "same", float (P,), or None.
        seed: Of the resampling.
    """
    labels = pairs.labels

    def measure(weights):
        rates = curve_rates(distances, labels, weights) | decision_rates(distances, labels, weights, threshold, band)
        if probabilities is not None:
            rates["calibration_error"] = calibration_error(probabilities, labels, weights)
        return rates

    different = int((labels == 1).sum())
    meanings = MEANINGS.copy()
    for most in FMRS:
        if different * most < 1:
            needed = math.ceil(1 / most)
            meanings[FNMR_AT.format(most)] += (
                f": cannot be estimated from {different} different pairs (at least {needed} are needed)"
            )
    if probabilities is not None:
        by_chance = chance_calibration_error(probabilities, seed)
        meanings["calibration_error"] += f"; correct ones would show {by_chance:.3f} by chance"
    measured = intervals(lambda weights: list(measure(weights).values()), pairs, seed)
    metrics = []
    for name, interval in zip(measure(np.ones(len(labels))), measured, strict=True):
        metrics.append(Metric(name, interval, meanings[name]))
    facts = {
        "threshold": float(threshold),
        "confusion_matrix": confusion_matrix(labels, (distances > threshold).astype(int), labels=[0, 1]).tolist(),
        "pairs": len(pairs),
        "images": image_count(pairs),
    }
    return Metrics(tuple(metrics), facts)


def curve_rates(distances, labels, weights) -> dict[str, float]:
    """Return what needs no threshold: AUC, average precision, EER, and FNMRs at FMRS; NaN where a kind is missing.

    An FMR that not even one of the pairs can show has an FNMR of NaN.

    Args:
        distances: float (P,).
        labels: int (P,), 0 same.
        weights: float (P,).
    """
    rates = {"auc": math.nan, "average_precision": math.nan, "eer": math.nan}
    for most in FMRS:
        rates[FNMR_AT.format(most)] = math.nan
    different = (labels == 1).sum()
    counted = weights > 0
    distances, labels, weights = distances[counted], labels[counted], weights[counted]
    if len(np.unique(labels)) < 2:
        return rates
    fmr, fnmr = error_rates(distances, labels, weights)
    rates["auc"] = auc(fnmr, 1 - fmr)
    rates["average_precision"] = average_precision_score(labels, distances, sample_weight=weights)
    rates["eer"] = equal_error_rate(fmr, fnmr)
    for most in FMRS:
        if different * most >= 1:
            rates[FNMR_AT.format(most)] = fnmr_at(fmr, fnmr, most)
    return rates


def decision_rates(distances, labels, weights, threshold, band=None) -> dict[str, float]:
    """Return accuracy, FMR and FNMR at a threshold and, with a band, what leaving pairs undecided costs and saves."""
    wrong = (distances > threshold) != labels
    rates = {
        "accuracy": 1 - weighted_mean(wrong, weights),
        "fmr": weighted_mean(wrong, weights * (labels == 1)),
        "fnmr": weighted_mean(wrong, weights * (labels == 0)),
    }
    if band is not None:
        same_up_to, different_from = band
        undecided = (distances > same_up_to) & (distances <= different_from)
        rates["undecided"] = weighted_mean(undecided, weights)
        rates["wrong_of_decided"] = weighted_mean((distances > different_from) != labels, weights * ~undecided)
    return rates


def retrieval_rates(embeddings, labels) -> dict[str, np.ndarray]:
    """Return rates of each query that has another image of its class, float (Q,) in [0, 1].

    Each image is a query; all others are its gallery, nearest first. recall_at_1: whether the nearest image is of its
    class. r_precision: share of its class among the R nearest, where R is the number of others of its class. map_at_r:
    mean over these R places of the precision up to it, counted where the image there is of its class.

    Args:
        embeddings: float (N, D).
        labels: int (N,).

    Source: Musgrave, Belongie and Lim 2020, A Metric Learning Reality Check, section 4.
    """
    labels = np.asarray(labels)
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    relevant = counts[classes] - 1  # R of each query
    queries = np.flatnonzero(relevant)
    if not len(queries):
        return dict.fromkeys(("recall_at_1", "r_precision", "map_at_r"), np.empty(0))
    search = NearestNeighbors(n_neighbors=int(relevant.max()), algorithm="brute").fit(np.asarray(embeddings))
    nearest = search.kneighbors(return_distance=False)[queries]  # without the query itself
    relevant = relevant[queries]
    places = np.arange(1, nearest.shape[1] + 1)
    hits = (labels[nearest] == labels[queries, None]) & (places <= relevant[:, None])
    precision = hits.cumsum(axis=1) / places
    return {
        "recall_at_1": hits[:, 0].astype(float),
        "r_precision": hits.sum(axis=1) / relevant,
        "map_at_r": (hits * precision).sum(axis=1) / relevant,
    }


def retrieval_metrics(rates: dict[str, np.ndarray]) -> tuple[Metric, ...]:
    """Return the means of the rates of `retrieval_rates`, over queries that are resampled from a fixed gallery."""
    return tuple(Metric(name, independent_mean(values), MEANINGS[name]) for name, values in rates.items())


def equal_error_rate(fmr, fnmr) -> float:
    """Return the error rate in [0, 1] where FMR and FNMR are equal (EER), between two points of the curve.

    fmr, fnmr: float (T,), by falling threshold: fmr falls, fnmr rises.
    """
    gaps = fmr - fnmr
    after = np.argmax(gaps <= 0)  # the curves cross between this point and the one before
    share = gaps[after - 1] / (gaps[after - 1] - gaps[after])
    return float(fmr[after - 1] + share * (fmr[after] - fmr[after - 1]))


def fnmr_at(fmr, fnmr, most: float) -> float:
    """Return the lowest FNMR of a curve whose FMR is at most `most`; fmr, fnmr: float (T,)."""
    return float(fnmr[fmr <= most + ROUNDING].min())


def error_rates(distances, labels, weights=None) -> tuple[np.ndarray, np.ndarray]:
    """Return FMR and FNMR, float (T,), at every threshold, falling.

    FMR, the false match rate: share of different pairs up to the threshold. FNMR: share of same pairs beyond it.
    """
    fnmr, true_rate, _ = roc_curve(labels, distances, sample_weight=weights, drop_intermediate=False)
    return 1 - true_rate, fnmr
