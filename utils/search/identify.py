"""Identification: the class of a gallery that an image is of, or none of them ("unknown").

Terms are those of ISO/IEC 19795-1 and of NIST's test of face recognition (FRTE 1:N). A search is mated if the gallery
has the class of the image. FPIR is the share of other searches that have a candidate within the limit, FNIR the share
of mated searches whose first candidate is of another class or beyond the limit.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import torch
from sklearn.metrics.pairwise import euclidean_distances

from ..data.reading import DataError
from ..data.splits import Splits
from ..explanations.choice import Choice, choose
from ..explanations.methods import replace_auto
from ..files import ExplanationError, printable
from ..score.intervals import Interval, independent_mean
from ..score.metrics import Metric, Metrics
from ..train.evaluation import embed_images
from ..trained import Trained
from .gallery import Gallery, gallery

NEIGHBOURS = (1, 3, 5)  # among which the number of a class's images is chosen
SHOWN = 5  # candidates
UNKNOWN = "unknown"
MEANINGS = {
    "rank_1": "share of images whose first candidate is of their class",
    "fnir": "false negative identification rate: the same, but missed or beyond the limit",
    "fpir": "false positive identification rate: share of images identified although their class was left out; that "
    "leaves one class less than the limit is for",
}


@dataclass(frozen=True)
class SearchRule:
    """How the classes of a gallery are ranked, and which first candidate is accepted."""

    neighbours: int
    """How many images of a class, the nearest ones, its distance is averaged over."""
    limit: float
    """Distance below which the first candidate is accepted; NaN where it cannot be estimated."""
    fpir: float
    """The highest false positive identification rate that is accepted, in (0, 1)."""
    searches: int
    """Validation images that the limit was estimated from."""
    needed: int
    """How many of them it takes at least."""

    def accepts(self, distances) -> np.ndarray:
        """Return which first candidates, of distances float (Q,), are accepted: bool (Q,)."""
        return distances < self.limit  # NaN is above none

    def __str__(self):
        if math.isnan(self.limit):
            return (
                f"none, as an FPIR of {self.fpir:g} cannot be estimated from {self.searches} validation images (at "
                f"least {self.needed} are needed): raise decision.fpir, or valid_size"
            )
        return f"similarity above {1 - self.limit / 2:.3f} for an FPIR of {self.fpir:g}"


@dataclass(frozen=True, eq=False)
class Identification:
    """The classes of a gallery that an image is most similar to, and whether the first of them is accepted."""

    path: str
    """The image file."""
    candidates: pd.DataFrame
    """A row for each of SHOWN classes at most, the nearest first, numbered from 1: `class`, mean `similarity` to its
    nearest images, `nearest` of them (a file), and the `probability` that this one is of the class of the image."""
    accepted: bool
    """Whether the first candidate lies within the limit."""
    rule: SearchRule
    neighbours: tuple[np.ndarray, ...]
    """Embeddings of the nearest images of each candidate, float32 (K, D)."""
    warning: str
    """What every sentence begins with."""

    @property
    def name(self) -> str | None:
        """The class, or "unknown"; None where no limit could be estimated."""
        if math.isnan(self.rule.limit):
            return None
        return self.candidates["class"].iloc[0] if self.accepted else UNKNOWN

    @property
    def decision(self) -> str:
        """The name, or "no decision"."""
        return self.name or "no decision"

    @property
    def title(self) -> str:
        """The decision in one line."""
        first = self.candidates.iloc[0]
        nearest = f"{first['class']} (similarity {first['similarity']:.3f})"
        if self.name is None:
            return f"No decision, nearest class: {nearest}"
        return f"Identified as {nearest}" if self.accepted else f"Unknown, nearest class: {nearest}"

    def sentence(self) -> str:
        """Return the decision and what it rests on in words."""
        text = f"{self.warning} {self.title}"
        if len(self.candidates) > 1:
            second = self.candidates.iloc[1]
            text += f"; then {second['class']} ({second['similarity']:.3f})"
        return printable(f"{text}. Accepted: {self.rule}.".lstrip())

    def __str__(self):
        return f"{self.sentence()}\n{self.candidates.to_string()}"


def search_rule(trained: Trained, images: Gallery, fpir: float | None = None) -> SearchRule:
    """Choose on validation images how the classes of a gallery are ranked, and which first candidate is accepted.

    The number of neighbours is the one with the highest rank-1 rate among validation images. For the limit, each
    validation image is searched in the gallery without its own class. Of C classes, C - 1 are left then, so the share
    of searches with a candidate within the limit may be (C - 1) / C of `fpir`. A new image of no class of the gallery
    has such a candidate with a probability of `fpir` at most, if it is drawn as the validation images are; with `split:
    images` these are of classes that the network was trained on. The limit falls as the gallery grows: more classes
    have more chances of a false hit.

    Args:
        trained: The network.
        images: The gallery. A class is a folder; each file of the gallery's own folder is a class of its own.
        fpir: In (0, 1); by default `decision.fpir` of config.yml.

    Raises:
        DataError: A class of the gallery is named "unknown".
        ValueError: `fpir` lies outside (0, 1).

    Source: the quantile of split conformal prediction, Vovk et al. 2005, Algorithmic Learning in a Random World.
    """
    if fpir is None:
        fpir = trained.config.decision.fpir
    if not 0 < fpir < 1:
        raise ValueError(f"fpir: {fpir} is refused: it is a share of searches, above 0 and below 1")
    splits = trained.load_splits()
    embeddings = embed_images(trained.network, splits.pixels, splits.valid, trained.config, trained.runtime).numpy()
    count = _choose_neighbours(embeddings, splits.folder.labels[splits.valid], splits.groups[splits.valid])
    names = np.array(splits.folder.classes)[splits.folder.labels[splits.valid]]
    classes, codes = np.unique(classes_of(images), return_inverse=True)
    if UNKNOWN in classes:
        raise DataError(f"{images.root}: a class is named {UNKNOWN}, as what is of no class: rename its folder")
    folders = np.array([PurePosixPath(name).name for name in classes])
    distances = euclidean_distances(embeddings, images.embeddings)
    own = names[:, None] == folders[codes]
    distances[own] = np.inf
    _leave_out_itself(distances, [splits.folder.paths[index] for index in splits.valid], images)
    nearest = class_distances(distances, codes, count).min(axis=1)
    possible = np.isfinite(nearest)
    lost = own[possible].any(axis=1).mean() / len(classes) if possible.any() else 0  # of the classes that are searched
    rate = fpir * (1 - lost)
    return SearchRule(count, limit_of(nearest[possible], rate), fpir, int(possible.sum()), math.ceil(1 / rate) - 1)


def limit_of(distances, fpir: float) -> float:
    """Return the distance below which a share `fpir` at most of first candidates lies, on average.

    Args:
        distances: Of the first candidates of searches without the class of the image, float (V,).
        fpir: In (0, 1).

    Returns:
        NaN where V searches are too few.
    """
    allowed = math.floor(fpir * (len(distances) + 1))
    if not allowed:
        return math.nan
    return float(np.sort(distances)[allowed - 1])


def _leave_out_itself(distances, paths, images: Gallery):
    """Set the distance of each of Q image files to itself in a gallery, float (Q, N), to infinity."""
    places = {os.path.realpath(path): index for index, path in enumerate(images.paths)}
    for query, path in enumerate(paths):
        index = places.get(os.path.realpath(path))
        if index is not None:
            distances[query, index] = np.inf


def check_trained(trained):
    """Raise ExplanationError for a network without validation images."""
    if not isinstance(trained, Trained):
        raise ExplanationError(
            f"{type(trained).__name__} has no validation images, which the limit of an identification needs: pass what "
            "load_trained or trained_elsewhere returns, or search with most_similar"
        )


def _choose_neighbours(embeddings, labels, groups) -> int:
    """Return the number of NEIGHBOURS with the highest rank-1 rate among images, the lowest of equally good ones."""
    distances = euclidean_distances(embeddings)
    distances[groups[:, None] == groups] = np.inf
    rates = []
    for count in NEIGHBOURS:
        nearest = class_distances(distances, labels, count)
        rates.append((nearest.argmin(axis=1) == labels).mean())
    return NEIGHBOURS[int(np.argmax(rates))]


def classes_of(images: Gallery) -> list[str]:
    """Return the class of each image of a gallery: its folder, or its own file in the gallery's own folder."""
    return [own or name for own, name in zip(images.classes, images.names, strict=True)]


def class_distances(distances, codes, count: int) -> np.ndarray:
    """Return the mean distance of each query to the `count` nearest images of each class.

    Args:
        distances: float (Q, N), infinite to images that are left out.
        codes: int (N,), the class of each image.
        count: At least 1; all images of a class that has fewer are taken.

    Returns:
        float (Q, C), infinite for a class without images; C is one more than the highest code.
    """
    means = np.full((len(distances), codes.max() + 1), np.inf)
    for code in np.unique(codes):
        nearest = np.sort(distances[:, codes == code], axis=1)[:, :count]
        finite = np.isfinite(nearest)
        totals = np.where(finite, nearest, 0).sum(axis=1)
        np.divide(totals, finite.sum(axis=1), out=means[:, code], where=finite.any(axis=1))
    return means


def identify(
    trained: Trained, image, images: Gallery | str | Path | None = None, fpir: float | None = None
) -> Identification:
    """Say which class of a gallery an image file is of, or that it is of none: "unknown".

    The file itself is left out of the gallery; a copy of it in another place counts.

    Args:
        trained: The network.
        image: The path of the image file.
        images: The gallery, of the same network, or its folder; the test images by default.
        fpir: As `search_rule` takes it.

    Raises:
        DataError: The image cannot be decoded, or the gallery has no other image.
        ExplanationError: `trained` is no Trained.
        ValueError: `fpir` lies outside (0, 1).
    """
    check_trained(trained)
    if not isinstance(images, Gallery):
        images = gallery(trained, images)
    with torch.no_grad():
        embedding = trained.network(trained.load_images(image)).float().cpu().numpy()
    results = identify_all(trained, [str(image)], embedding, images, search_rule(trained, images, fpir))
    if not results:
        raise DataError(f"{images.root} has no image besides {image}: name a folder of more images")
    return results[str(image)]


def identify_all(trained: Trained, paths, embeddings, images: Gallery, rule: SearchRule) -> dict[str, Identification]:
    """Identify Q image files by their embeddings, float32 (Q, D), in a gallery, as `identify` does.

    Returns:
        By path; without those beside which the gallery holds nothing.
    """
    classes, codes = np.unique(classes_of(images), return_inverse=True)
    distances = euclidean_distances(embeddings, images.embeddings)
    _leave_out_itself(distances, paths, images)
    of_classes = class_distances(distances, codes, rule.neighbours)
    results = {}
    for query, path in enumerate(paths):
        order = of_classes[query].argsort(kind="stable")[:SHOWN]
        order = order[np.isfinite(of_classes[query, order])]
        if not len(order):
            continue
        members = []  # the nearest images of each candidate
        for code in order:
            own = np.flatnonzero((codes == code) & np.isfinite(distances[query]))
            members.append(own[distances[query, own].argsort(kind="stable")][: rule.neighbours])
        nearest = [indices[0] for indices in members]
        candidates = pd.DataFrame(
            {
                "class": classes[order],
                "similarity": 1 - of_classes[query, order] / 2,
                "nearest": [str(images.paths[index]) for index in nearest],
            },
            index=pd.RangeIndex(1, len(order) + 1, name="rank"),
        )
        probabilities = trained.probabilities(distances[query, nearest])
        if probabilities is not None:
            candidates["probability"] = probabilities
        accepted = bool(rule.accepts(of_classes[query, order[0]]))
        neighbours = tuple(images.embeddings[indices] for indices in members)
        results[path] = Identification(str(path), candidates, accepted, rule, neighbours, trained.warning)
    return results


def why(trained: Trained, identification: Identification) -> Choice:
    """Explain why an image is more similar to its first candidate than to the second: to the nearest images of each.

    The layer is `explanation.layer` of config.yml.

    Raises:
        DataError: The image cannot be decoded.
        ValueError: There is only one candidate.
    """
    if len(identification.neighbours) < 2:
        raise ValueError(f"{identification.path} has only one candidate: add images of other classes to the gallery")
    first, second = identification.neighbours[:2]
    (image,) = trained.load_images(identification.path)
    settings = trained.config.explanation.changed(method="thorough", output_stride=32)
    layer = replace_auto(settings, trained.network).layer
    return choose(trained.network, image, torch.from_numpy(first), torch.from_numpy(second), layer)


def identification_metrics(trained: Trained, splits: Splits, fpir: float | None = None) -> Metrics:
    """Measure identification on the test images, each searched among all others.

    A search is mated, or without its class: then all images of its class are left out of the gallery. Images of its own
    group (near-duplicates, or those that `group_pattern` joins) are left out of both.

    Args:
        trained: The network.
        splits: Those of the run.
        fpir: As `search_rule` takes it.

    Returns:
        The metrics of MEANINGS, each with its interval; images are resampled as queries of a fixed gallery.
    """
    images = gallery(trained)
    rule = search_rule(trained, images, fpir)
    tests = splits.test
    labels, groups = splits.folder.labels[tests], splits.groups[tests]
    distances = euclidean_distances(images.embeddings)
    distances[groups[:, None] == groups] = np.inf
    mated = class_distances(distances, labels, rule.neighbours)
    distances[labels[:, None] == labels] = np.inf
    without = class_distances(distances, labels, rule.neighbours).min(axis=1)
    has_class = np.isfinite(mated[np.arange(len(tests)), labels])
    first = (mated.argmin(axis=1) == labels)[has_class]
    values = {
        "rank_1": first,
        "fnir": ~(first & rule.accepts(mated.min(axis=1)[has_class])),
        "fpir": rule.accepts(without[np.isfinite(without)]),
    }
    metrics = []
    for name, meaning in MEANINGS.items():
        interval = Interval(math.nan, math.nan, math.nan)
        if len(values[name]) and (name == "rank_1" or not math.isnan(rule.limit)):
            interval = independent_mean(values[name])
        metrics.append(Metric(name, interval, meaning))
    facts = {"neighbours": rule.neighbours, "limit": str(rule), "images": len(tests), "classes": len(np.unique(labels))}
    return Metrics(tuple(metrics), facts)
