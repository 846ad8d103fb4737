"""Numbers at their limits: images, embeddings, training and metrics; and explanations by the hundred.

Images and weights that are not finite, thresholds, maps of one place and other precisions: tests/explanations and
tests/network.
"""

import gc
import io
import json
import os
import tempfile
import warnings
from contextlib import redirect_stdout
from functools import partial
from unittest import mock

import numpy as np
import psutil
import torch
from faults.damage import limited
from faults.outcomes import TRACEBACK, UNCLEAR, WRONG, Outcome, attempt, judged
from helpers import tiny_images
from PIL import Image
from torch import nn

from utils import Cut, Source, evaluate, explain, figure, fit, load_splits, load_trained, saved, view
from utils.config import DecisionSettings
from utils.data.splits import Pairs
from utils.explanations.methods import METHODS
from utils.score.calibration import fit_calibration
from utils.score.decision import choose_band, threshold_by_rule
from utils.score.intervals import intervals
from utils.score.metrics import retrieval_metrics, retrieval_rates

SIZE = (32, 40)
BRIGHT = 1e6  # of the pixels of an image
ROUNDING = 1e-5  # of a distance in float32, beyond which it is not in [0, 2]
NEAR = 2e-3  # of distances computed in two ways
SECONDS = 60  # for a training
DRAWS = 20  # of intervals: how wide they are is not looked at
OF_VALUES = ("images", "maps", "embedding", "distances")  # what a refusal is about
IMAGES = {  # given to the trained and to a foreign network, and what each has once brought to light
    "constant images": WRONG,
    "images of 1e30": WRONG,
    "images of float16": TRACEBACK,
    "no pairs": TRACEBACK,
}
EMBEDDINGS = {  # of a foreign network: all, or that of a bright image, times a factor
    "embeddings of 0": (0.0, WRONG),
    "embeddings of NaN": (np.nan, WRONG),
    "embeddings of infinity": (np.inf, WRONG),
    "embeddings of 1e30": (1e30, WRONG),
    "embeddings of 1e-30": (1e-30, WRONG),
    "one embedding of 0": (0.0, WRONG),
    "one embedding of NaN": (np.nan, WRONG),
    "one embedding of infinity": (np.inf, WRONG),
    "opposite embeddings": (-1.0, WRONG),
}
QUICKLY = {"hyperparameters.epochs": 1, "hyperparameters.verbose": False}
TRAININGS = {  # settings, and what each has once brought to light
    "a learning rate of 1e6": ({"hyperparameters.learning_rate": 1e6}, TRACEBACK),
    "embeddings of one number": ({"embedding_size": 1}, WRONG),
    "one image under all names of a class": ({"duplicate_radius": None}, UNCLEAR),
    "one image under all names": ({"duplicate_radius": None}, TRACEBACK),
    "black images under all names": ({"duplicate_radius": None}, TRACEBACK),
}
DISTANCES = {  # of same and of different pairs, and what each has once brought to light
    "all distances 0": (0, 0, WRONG),
    "all distances 1": (1, 1, WRONG),
    "all distances 2": (2, 2, WRONG),
    "distances of 2 and 0": (2, 0, WRONG),
    "distances that differ in the last digit": (1, 1 + 1.2e-7, WRONG),
}
ALIKE = "all embeddings alike"  # WRONG once: retrieval
OF_SOAK = 5  # different pairs
FIGURES = 10  # explanations between two figures
GROWTH = 50 << 20  # bytes that the process may grow by after its first fifth


class Foreign(nn.Module):
    """A small network of somebody else, whose embeddings are changed as EMBEDDINGS says."""

    def __init__(self, kind=""):
        super().__init__()
        self.map = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(8))
        self.head = nn.Linear(6, 5)
        self.kind = kind

    def forward(self, images):
        pooled = self.map(images).mean(dim=(2, 3))
        vectors = self.head(pooled)
        if self.kind not in EMBEDDINGS:
            return vectors
        factor, _ = EMBEDDINGS[self.kind]
        bright = pooled.abs().amin(dim=1, keepdim=True) > 0.5  # the map is saturated
        if self.kind.startswith("opposite"):
            return vectors * 1e-6 + torch.where(bright, factor, 1.0)
        return vectors * torch.where(bright | self.kind.startswith("embeddings"), factor, 1.0)


def at_their_limits(project, random, tries, folder):
    torch.manual_seed(int(random.integers(2**32)))
    trained = project.trained(folder / "trained")
    cases = []
    for kind in IMAGES:
        cases += [(_explained, kind, trained), (_explained, kind, None)]
    for kind in EMBEDDINGS:
        cases.append((_explained, kind, None))
    for table, inject in ((TRAININGS, _trained), (DISTANCES, _measured), ([ALIKE], _retrieved)):
        for kind in table:
            cases.append((inject, kind, project))
    for number in range(tries):
        inject, kind, subject = cases[number % len(cases)]
        yield inject(kind, subject, folder / str(number), random)


def _explained(kind, trained, folder, random) -> Outcome:
    """Explain two pairs by a trained network; None: by a foreign one."""
    images = _images(kind, torch.from_numpy(random.normal(size=(2, 2, 3, *SIZE))).float())
    method = str(random.choice(list(METHODS)))
    settings = {"method": method, "steps": 2, "layer": "last"}
    if trained is None:
        network, threshold = Cut(Foreign(kind).eval(), layer="map"), 0.5
    else:
        network, threshold = trained.network, trained.threshold
        settings |= {
            "references": trained.references,
            "source": Source(calibration=trained.measurements.calibration),
        }

    def act():
        with limited():
            return explain(network, images, threshold, **settings)

    complaint = partial(complaint_of, images, threshold, distances_by_hand(network, images.float()))
    return attempt(f"{kind}, {method}, {type(network).__name__}", act, complaint, OF_VALUES, of_program=True)


def _images(kind, noise) -> torch.Tensor:
    """Return images of two pairs, made of noise, as IMAGES says; the first of each pair is bright for EMBEDDINGS."""
    match kind:
        case "constant images":
            return noise.mean(dim=(3, 4), keepdim=True).expand_as(noise).clone()
        case "images of 1e30":
            return noise * 1e30
        case "images of float16":
            return noise.half()
        case "no pairs":
            return noise[:0]
    noise[:, 0] = BRIGHT
    return noise


def distances_by_hand(network, images) -> np.ndarray:
    """Return the distances float64 (B,) of the vectors that the network makes, brought to length 1 here."""
    flat = images.flatten(0, 1)
    with torch.no_grad():
        if isinstance(network, Cut):
            vectors = network.module(flat)
        else:
            vectors = network.eval().project_features(network.features(flat))
    vectors = vectors.double().numpy().reshape(len(images), 2, vectors.shape[1])
    with np.errstate(all="ignore"):  # what is not finite cannot be correct, and must be refused
        lengths = np.linalg.norm(vectors, axis=2, keepdims=True)
        units = vectors / np.where(lengths > 0, lengths, 1)
        return np.linalg.norm(units[:, 0] - units[:, 1], axis=1)


def complaint_of(images, threshold, right, explanation):
    """Say what of an explanation cannot be."""
    distances = explanation.distance.numpy()
    sentences = ""
    for index in range(len(explanation)):
        sentences += explanation.sentence(index)
    problems = {
        f"distances of {distances}": not _within(distances, 0, 2 + ROUNDING),
        f"distances of {distances}, by hand {right}": not (np.abs(distances - right) < NEAR).all(),
        f"similarities of {explanation.similarity}": not _within(explanation.similarity, 0, 1),
        f"decided {explanation.different}": explanation.different.tolist() != (distances > threshold).tolist(),
        f"says {sentences}": "nan" in sentences or "inf" in sentences,
    }
    if explanation.probability is not None:
        problems[f"probabilities of {explanation.probability}"] = not _within(explanation.probability, 0, 1)
    for maps in (explanation.factual, explanation.counterfactual):
        problems[f"maps of {tuple(maps.shape)}"] = maps.shape != (len(images), 2, *images.shape[3:])
        problems["maps beyond [0, 1]"] = not _within(maps, 0, 1)
    return next((problem for problem, holds in problems.items() if holds), None)


def _within(values, least, most) -> bool:
    values = np.asarray(values)
    return bool(((values >= least) & (values <= most)).all())


def _trained(kind, project, folder, random) -> Outcome:
    """Train: a history of finite numbers and a network that explains, or a refusal."""
    settings = QUICKLY | TRAININGS[kind][0]
    names = [key.rpartition(".")[2] for key in settings]
    if "names" in kind:
        settings["data_path"] = str(folder / "Data")
        names = ["data_path", str(folder / "Data")]
        _draw_images(kind, folder / "Data")

    def act():
        with warnings.catch_warnings(record=True), redirect_stdout(io.StringIO()), limited(SECONDS):
            warnings.simplefilter("always")  # of collapse, for example
            config = project.config(folder, settings)
            splits = load_splits(config)
            history = fit(config, splits)
            trained = load_trained(config)
            return history, trained, trained.explain(*splits.files(splits.test_pairs, 1))

    return attempt(kind, act, _trained_incorrectly, names)


def _draw_images(kind, folder):
    """Show the same picture in all files, or in those of one class; their bytes differ."""
    tiny_images(folder)
    paths = sorted(folder.rglob("*.png"))
    if kind.startswith("black"):
        Image.new("RGB", (48, 40)).save(paths[0])
    content = paths[0].read_bytes()
    if kind.endswith("of a class"):
        paths = sorted(paths[0].parent.iterdir())
    for number, path in enumerate(paths):
        path.write_bytes(content + bytes([number]))


def _trained_incorrectly(result):
    history, trained, explanation = result
    for epoch in history:
        if not np.isfinite(list(epoch.values())).all() or not 0 <= epoch["valid_auc"] <= 1:
            return f"a history of {history}"
    right = distances_by_hand(trained.network, explanation.images)
    return complaint_of(explanation.images, trained.threshold, right, explanation)


def _measured(kind, project, folder, random) -> Outcome:
    """Compute threshold, band, probabilities and metrics of 40 pairs of 20 images."""
    first, second = random.integers(0, 20, (2, 40))
    pairs = Pairs(first, second, np.arange(40) % 2)
    same, different, _ = DISTANCES[kind]
    distances = np.where(pairs.labels == 1, different, same).astype(np.float32)
    rule = ("balanced", "eer", "fmr")[random.integers(3)]

    @mock.patch("utils.score.metrics.intervals", partial(intervals, draws=DRAWS))
    @mock.patch("utils.score.calibration.intervals", partial(intervals, draws=DRAWS))
    def act():
        threshold = threshold_by_rule(distances, pairs.labels, DecisionSettings(rule=rule, fmr=0.1))
        band = choose_band(distances, pairs, threshold, 0.1)
        calibration = fit_calibration(distances, pairs)
        chances = calibration(torch.from_numpy(distances))[:, 0].numpy()
        return threshold, band, calibration, evaluate(distances, pairs, threshold, band, chances)

    return attempt(f"{kind}, {rule}", act, _measured_incorrectly)


def _measured_incorrectly(result):
    threshold, (low, high), calibration, metrics = result
    if not -ROUNDING <= threshold <= 2 + ROUNDING or not low <= threshold <= high:
        return f"a threshold of {threshold}, a band from {low} to {high}"
    if not _within(calibration.probabilities, 0, 1):
        return f"probabilities of {calibration.probabilities}"
    json.dumps(metrics.as_dict(), allow_nan=False)  # raises ValueError for a NaN
    return f"says nan: {metrics}" if "nan" in str(metrics) else None


def _retrieved(kind, project, folder, random) -> Outcome:
    """Retrieve among images that are all alike: each value is a share."""
    rates = retrieval_rates(torch.eye(8)[:1].expand(12, -1), np.repeat([0, 1, 2], 4))
    values = [metric.interval.value for metric in retrieval_metrics(rates)]
    return judged(kind, "" if _within(values, 0, 1) else f"values of {values}")


def soak(project, random, tries, folder):
    """Explain and draw pair after pair by one network: always the same of the same, and nothing piles up."""
    trained = project.trained(folder / "run")
    temporary = folder / "temporary"
    temporary.mkdir()
    with mock.patch.object(tempfile, "tempdir", str(temporary)):
        splits = trained.load_splits()
        pairs = splits.files(splits.test_pairs, OF_SOAK)
        firsts = [trained.explain(pair) for pair in pairs]
        for number in range(tries):
            explanation = trained.explain(pairs[number % OF_SOAK])
            same = torch.equal(explanation.evidence, firsts[number % OF_SOAK].evidence)
            yield judged(f"explanation {number}", "" if same else "another map")
            if number % FIGURES == 0:
                saved(figure(explanation), trained.config.results_path)
                view(explanation)._repr_html_()
            if number == tries // 5:
                early = _used(temporary)
        late = _used(temporary)
    for name, allowed in (("memory", GROWTH), ("open files", 0), ("threads", 0), ("temporary files", 0)):
        grown = late[name] - early[name]
        yield judged(name, f"grew by {grown}" if grown > allowed else "")


def _used(temporary) -> dict[str, int]:
    """Count what this process holds now."""
    gc.collect()
    process = psutil.Process()
    return {
        "memory": process.memory_info().rss,
        "open files": process.num_fds(),
        "threads": process.num_threads(),
        "temporary files": len(os.listdir(temporary)),
    }
