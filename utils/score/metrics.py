"""Retrieval: each image is a query, all others of its split are the gallery, nearest first."""

import math
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from sklearn.metrics import auc, roc_curve

from ..data.splits import Pairs
from .calibration import calibration_error, chance_calibration_error
from .intervals import Interval, image_count, interval_of_mean, intervals

BLOCK = 1024  # queries at once


def retrieval_rates(embeddings: torch.Tensor, labels) -> dict[str, np.ndarray]:
    """Values of each query that has another image of its class in the gallery, float (Q,) in [0, 1].

    embeddings: float (N, D). labels: int (N,). recall_at_1: whether the nearest image is of its class. r_precision:
    share of its class among the R nearest, where R is the number of others of its class. map_at_r: mean over these R
    places of the precision up to it, counted where the image there is of its class (Musgrave, Belongie and Lim 2020, A
    Metric Learning Reality Check, section 4).
    """
    labels = torch.as_tensor(labels)
    found = {"recall_at_1": [], "r_precision": [], "map_at_r": []}
    for start in range(0, len(labels), BLOCK):
        queries = torch.arange(start, min(start + BLOCK, len(labels)))
        alike = labels[queries, None] == labels[None]  # (B, N)
        alike[torch.arange(len(queries)), queries] = False
        wanted = alike.sum(dim=1)  # R of each query
        queries, alike, wanted = (part[wanted > 0] for part in (queries, alike, wanted))
        if not len(queries):
            continue
        apart = torch.cdist(embeddings[queries], embeddings)
        apart[torch.arange(len(queries)), queries] = torch.inf  # not its own neighbour
        nearest = apart.topk(int(wanted.max()), largest=False).indices
        hits = alike.gather(1, nearest).float()
        place = torch.arange(1, hits.shape[1] + 1)
        hits = hits * (place <= wanted[:, None])
        precision = hits.cumsum(dim=1) / place
        found["recall_at_1"].append(hits[:, 0])
        found["r_precision"].append(hits.sum(dim=1) / wanted)
        found["map_at_r"].append((hits * precision).sum(dim=1) / wanted)
    return {name: torch.cat(values).numpy() if values else np.empty(0) for name, values in found.items()}


FMRS = (0.1, 0.01, 0.001)
ROUNDING = 1e-9  # of rates that should be equal
HOW = "images are drawn anew, because pairs share them; in retrieval they are the queries of a fixed gallery"
RETRIEVAL = {
    "recall_at_1": "share of test images whose nearest other test image is of their class",
    "r_precision": "share of its class among the R test images nearest to one, R being all others of its class",
    "map_at_r": "the same, where nearer images of its class count more (MAP@R)",
}


@dataclass(frozen=True)
class Metric:
    """One number of the test in words: its value with its 95 % interval, NaN where it is not to be had, its meaning."""

    name: str
    interval: Interval
    meaning: str

    @property
    def shown(self) -> str:
        """The value and its interval in words."""
        return "not to be had" if math.isnan(self.interval.value) else str(self.interval)


@dataclass(frozen=True)
class Metrics:
    """All numbers of the test. facts: what else metrics.json says: counts, the threshold, the confusion matrix."""

    metrics: tuple[Metric, ...]
    facts: dict

    def __getitem__(self, name: str) -> Metric:
        """The metric of a name. Raises KeyError for one that was not measured."""
        return {metric.name: metric for metric in self.metrics}[name]

    def __str__(self):
        names = max(len(metric.name) for metric in self.metrics)
        values = max(len(metric.shown) for metric in self.metrics)
        lines = [f"{metric.name:{names}}  {metric.shown:{values}}  {metric.meaning}" for metric in self.metrics]
        return "\n".join(lines)

    def as_dict(self) -> dict:
        """Plain numbers and texts, ready for JSON; null for what is not to be had."""
        content = {}
        for metric in self.metrics:
            value, low, high = metric.interval.value, metric.interval.low, metric.interval.high
            had = not math.isnan(value)
            ends = {"value": value, "low": low, "high": high} if had else {"value": None, "low": None, "high": None}
            content[metric.name] = ends | {"meaning": metric.meaning}
        return content | {"intervals": f"95 %: {HOW}"} | self.facts


def evaluate(distances, pairs: Pairs, threshold: float, band=None, probabilities=None, seed=0) -> Metrics:
    """All metrics of pairs at a threshold, each with its interval by `intervals`.

    band: two distances between which pairs are left undecided, or None. probabilities: of "same", float (P,), or None.
    """
    labels = pairs.labels
    measures = [_Curves(distances, labels), _Decisions(distances, labels, threshold)]
    if band is not None:
        measures.append(_Decided(distances, labels, band))
    if probabilities is not None:
        measures.append(_Calibrated(probabilities, labels, seed))

    def rates(weights):
        return np.concatenate([measure(weights) for measure in measures])

    values, low, high = intervals(rates, pairs, seed)
    names = [entry for measure in measures for entry in measure.meanings.items()]
    found = [
        Metric(name, Interval(float(value), float(start), float(end)), meaning)
        for (name, meaning), value, start, end in zip(names, values, low, high, strict=True)
    ]
    decisions = distances > threshold
    confusion = [[int(((labels == truth) & (decisions == said)).sum()) for said in (0, 1)] for truth in (0, 1)]
    facts = {
        "threshold": float(threshold),
        "confusion_matrix": confusion,
        "pairs": len(pairs),
        "images": image_count(pairs),
    }
    return Metrics(tuple(found), facts)


def retrieval_metrics(values: dict[str, np.ndarray]) -> tuple[Metric, ...]:
    """The means of what `retrieval_rates` found, over queries drawn anew from a fixed gallery."""
    return tuple(Metric(name, interval_of_mean(values[name]), meaning) for name, meaning in RETRIEVAL.items())


def average_precision(fmr, fnmr, same: float, different: float) -> float:
    """The precision of finding different pairs, averaged over their ranks, in [0, 1].

    fmr, fnmr: float (T,), by falling threshold, the first one beyond all pairs. same, different: weight of all pairs of
    either kind. The curve is there already: sklearn's average_precision_score would sort the pairs once more.
    """
    found = (1 - fmr) * different
    precision = found[1:] / (found[1:] + fnmr[1:] * same)
    return float((-np.diff(fmr) * precision).sum())


def equal_error_rate(fmr, fnmr) -> float:
    """The error rate in [0, 1] where FMR and FNMR are equal (EER), between two points of the curve.

    fmr, fnmr: float (T,), by falling threshold: fmr falls, fnmr rises.
    """
    after = int(np.argmax(fmr <= fnmr))  # the curves cross between the points before and after
    before = max(after - 1, 0)
    gap_before = fmr[before] - fnmr[before]
    gap_after = fmr[after] - fnmr[after]
    share = 0.0 if gap_before == gap_after else gap_before / (gap_before - gap_after)
    return float(fmr[before] + share * (fmr[after] - fmr[before]))


def fnmr_at(fmr, fnmr, most: float) -> float:
    """The lowest FNMR of a curve whose FMR is at most `most`; fmr, fnmr: float (T,)."""
    return float(fnmr[fmr <= most + ROUNDING].min())


def error_rates(distances, labels, weights=None) -> tuple[np.ndarray, np.ndarray]:
    """FMR and FNMR, float (T,), at every threshold, falling.

    FMR, the false match rate: share of different pairs up to the threshold. FNMR: share of same pairs beyond it.
    """
    fnmr, found, _ = roc_curve(labels, distances, sample_weight=weights, drop_intermediate=False)
    return 1 - found, fnmr


class _Curves:
    """What needs no threshold: AUC, average precision, EER, FNMR at given FMRs."""

    def __init__(self, distances, labels):
        self.distances = distances
        self.labels = labels
        self.different = int((labels == 1).sum())
        self.meanings = {
            "auc": "chance that a different pair lies farther apart than a same pair; 0.5 is guessing",
            "average_precision": "precision of finding different pairs, averaged over their ranks",
            "eer": "error rate at the threshold where same and different pairs fail alike",
        }
        for fmr in FMRS:
            meaning = f"same pairs missed where at most {fmr:.1%} of different pairs pass"
            if not self._to_be_had(fmr):
                meaning += (
                    f": not to be had from {self.different} different pairs, at least {math.ceil(1 / fmr)} are needed"
                )
            self.meanings[f"fnmr_at_fmr_{fmr:g}"] = meaning

    def __call__(self, weights):
        labels = self.labels
        counted = weights > 0
        if len(np.unique(labels[counted])) < 2:
            return np.full(len(self.meanings), np.nan)
        labels, distances, weights = labels[counted], self.distances[counted], weights[counted]
        fmr, fnmr = error_rates(distances, labels, weights)
        kinds = weights[labels == 0].sum(), weights[labels == 1].sum()
        found = [auc(fnmr, 1 - fmr), average_precision(fmr, fnmr, *kinds), equal_error_rate(fmr, fnmr)]
        found += [fnmr_at(fmr, fnmr, most) if self._to_be_had(most) else np.nan for most in FMRS]
        return np.array(found)

    def _to_be_had(self, fmr):
        return self.different * fmr >= 1


class _Decisions:
    """The decisions at the threshold: accuracy, FMR, FNMR."""

    meanings = MappingProxyType(
        {
            "accuracy": "share of pairs decided rightly",
            "fmr": 'false match rate: share of different pairs decided "same"',
            "fnmr": 'false non-match rate: share of same pairs decided "different"',
        }
    )

    def __init__(self, distances, labels, threshold):
        self.labels = labels
        self.decisions = (distances > threshold).astype(int)

    def __call__(self, weights):
        wrong = self.decisions != self.labels
        chosen = [weights, weights * (self.labels == 1), weights * (self.labels == 0)]
        errors, fmr, fnmr = (_share(wrong, part) for part in chosen)
        return np.array([1 - errors, fmr, fnmr])


class _Decided:
    """What leaving pairs undecided costs and saves."""

    meanings = MappingProxyType(
        {
            "undecided": "share of pairs left undecided",
            "wrong_of_decided": "share of the decided pairs that are wrong; `abstain` limits it for each side, in nine "
            "of ten validation sets",
        }
    )

    def __init__(self, distances, labels, band):
        same_up_to, different_from = band
        self.decided = (distances <= same_up_to) | (distances > different_from)
        self.wrong = (distances > different_from) != labels

    def __call__(self, weights):
        return np.array([_share(~self.decided, weights), _share(self.wrong, weights * self.decided)])


class _Calibrated:
    """Whether the probabilities are right."""

    def __init__(self, probabilities, labels, seed):
        self.probabilities = probabilities
        self.labels = labels
        chance = chance_calibration_error(probabilities, seed)
        self.meanings = {
            "calibration_error": "how far the probabilities are from how often pairs are the same, on average (ECE); "
            f"right ones would show {chance:.3f} by chance"
        }

    def __call__(self, weights):
        return np.array([calibration_error(self.probabilities, self.labels, weights)])


def _share(chosen, weights) -> float:
    """The share of the weights that is chosen; NaN where there is no weight."""
    total = weights.sum()
    return float((weights * chosen).sum() / total) if total else math.nan
