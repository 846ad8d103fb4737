"""Numbers at their limits: images, embeddings, thresholds, training and metrics; and explanations by the hundred."""

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
from sklearn.metrics import roc_auc_score
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
OF_VALUES = ("threshold", "images", "maps", "embedding", "distances")  # what a refusal is about
FACTORS = {"images of 1e30": 1e30, "images of 1e-30": 1e-30, "images of denormal values": 1e-42}
FACTORS |= {"black images": 0.0, "embeddings of 1e30": 1e30, "embeddings of 1e-30": 1e-30, "embeddings of 0": 0.0}
FACTORS |= {"embeddings of NaN": np.nan, "embeddings of infinity": np.inf}
IMAGES = {  # given to the trained and to a foreign network, and what each has once brought to light
    "black images": "",
    "white images": "",
    "constant images": WRONG,
    "images of 1e30": WRONG,
    "images of 1e-30": "",
    "images of denormal values": "",
    "a NaN in an image": WRONG,
    "an infinity in an image": WRONG,
    "images of NaN": WRONG,
    "identical images": "",
    "no pairs": TRACEBACK,
}
FOREIGN = {  # embeddings of a foreign network, its maps, and precisions
    "embeddings of 0": WRONG,
    "embeddings of NaN": WRONG,
    "embeddings of infinity": WRONG,
    "one embedding of 0": WRONG,
    "one embedding of NaN": WRONG,
    "one embedding of infinity": WRONG,
    "embeddings of 1e30": WRONG,
    "embeddings of 1e-30": WRONG,
    "equal embeddings": "",
    "opposite embeddings": WRONG,
    "saturated embeddings": "",
    "embeddings in steps": "",
    "maps of 1 x 1": TRACEBACK,
    "float64": TRACEBACK,
    "float16": TRACEBACK,
    "float16 images": TRACEBACK,
}
THRESHOLDS = {np.nan: WRONG, -1.0: WRONG, 3.0: WRONG, np.inf: WRONG, -np.inf: WRONG, 0.0: "", 2.0: ""}
QUICKLY = {"hyperparameters.epochs": 1, "hyperparameters.verbose": False}
TRAININGS = {  # settings, and what each has once brought to light
    "a learning rate of 1e6": ({"hyperparameters.learning_rate": 1e6}, TRACEBACK),
    "a learning rate of 100": (
        {"hyperparameters.learning_rate": 100.0, "hyperparameters.optimizer": "SGD", "hyperparameters.max_norm": None},
        TRACEBACK,
    ),
    "a margin of 2": ({"margin": 2.0}, ""),
    "embeddings of one number": ({"embedding_size": 1}, WRONG),
    "bfloat16": ({"precision": "bfloat16"}, ""),
    "one image under all names of a class": ({"duplicate_radius": None}, UNCLEAR),
    "one image under all names": ({"duplicate_radius": None}, TRACEBACK),
    "black images under all names": ({"duplicate_radius": None}, TRACEBACK),
}
DISTANCES = {  # of same and of different pairs, and what each has once brought to light
    "all distances 0": (0, 0, WRONG),
    "all distances 1": (1, 1, WRONG),
    "all distances 2": (2, 2, WRONG),
    "distances of 0 and 2": (0, 2, ""),
    "distances of 2 and 0": (2, 0, WRONG),
    "distances that differ in the last digit": (1, 1 + 1.2e-7, WRONG),
    "one distance unlike all others": (0, 0, ""),
}
ALIKE = "all embeddings alike"  # WRONG once: retrieval
OF_SOAK = 5  # different pairs
FIGURES = 10  # explanations between two figures
VIEWS = 50
GROWTH = 50 << 20  # bytes that the process may grow by after its first fifth


class Foreign(nn.Module):
    """A small network of somebody else, whose embeddings are changed as FOREIGN says. It takes any precision."""

    def __init__(self, kind=""):
        super().__init__()
        side = 8
        if kind == "maps of 1 x 1":
            side = 1
        self.map = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(side))
        self.head = nn.Linear(6, 5)
        self.kind = kind

    def forward(self, images):
        pooled = self.map(images.to(self.head.weight.dtype)).mean(dim=(2, 3))
        vectors = self.head(pooled)
        bright = pooled.abs().amin(dim=1, keepdim=True) > 0.5  # the map is saturated
        match self.kind:
            case kind if kind in FACTORS:
                return vectors * FACTORS[kind]
            case "one embedding of 0":
                return vectors * ~bright
            case "one embedding of NaN":
                return torch.where(bright, np.nan, vectors)
            case "one embedding of infinity":
                return torch.where(bright, np.inf, vectors)
            case "equal embeddings":
                return vectors * 1e-9 + 1
            case "opposite embeddings":
                return vectors * 1e-6 + torch.where(bright, -1.0, 1.0)
            case "saturated embeddings":
                return torch.tanh(vectors * 1e6)
            case "embeddings in steps":
                return vectors.sign() + vectors * 0
        return vectors


def at_their_limits(project, random, tries, folder):
    torch.manual_seed(int(random.integers(2**32)))
    trained = project.trained(folder / "trained")
    cases = []
    for kind in IMAGES:
        cases += [(kind, trained.network, trained.threshold), (kind, None, 0.5)]
    for kind in FOREIGN:
        cases.append((kind, None, 0.5))
    for threshold in THRESHOLDS:
        cases.append((f"a threshold of {threshold}", trained.network, threshold))
    others = {}
    for table, inject in ((TRAININGS, _trained), (DISTANCES, _measured)):
        others |= dict.fromkeys(table, inject)
    others[ALIKE] = _retrieved
    for number in range(tries):
        place = number % (len(cases) + len(others))
        if place < len(cases):
            yield _explained(trained, *cases[place], list(METHODS)[number % len(METHODS)], random)
        else:
            kind = list(others)[place - len(cases)]
            yield others[kind](kind, project, folder / str(number), random)


def _explained(trained, kind, network, threshold, method, random) -> Outcome:
    """Explain two pairs by a network; None: by a foreign one."""
    images = _images(kind, torch.from_numpy(random.normal(size=(2, 2, 3, *SIZE))).float())
    source = Source(calibration=trained.measurements.calibration)
    settings = {"method": method, "steps": 2, "layer": "last"}
    references = trained.references
    if network is None:
        references = None
        dtype = {"float64": torch.float64, "float16": torch.float16}.get(kind, torch.float32)
        network = Cut(Foreign(kind).eval().to(dtype), layer="map")
    names = OF_VALUES
    if " of " not in kind:
        names = (*OF_VALUES, "layer")

    def act():
        with limited():
            return explain(network, images, threshold, references, source, **settings)

    right = distances_by_hand(network, images)
    complaint = partial(complaint_of, images, threshold, right)
    return attempt(f"{kind}, {method}, {type(network).__name__}", act, complaint, names, of_program=True)


def _images(kind, noise) -> torch.Tensor:
    """Return images of two pairs, made of noise, as IMAGES and FOREIGN say."""
    if kind in FACTORS and "images" in kind:
        return noise * FACTORS[kind]
    if "embedding" in kind:
        noise[:, 0] = BRIGHT
    match kind:
        case "white images":
            return torch.ones_like(noise)
        case "constant images":
            return noise.mean(dim=(3, 4), keepdim=True).expand_as(noise).clone()
        case "a NaN in an image":
            noise[-1, 0, 1, 5, 7] = np.nan
        case "an infinity in an image":
            noise[-1, 0, 1, 5, 7] = np.inf
        case "images of NaN":
            return noise * np.nan
        case "identical images":
            return noise[:, :1].expand(-1, 2, -1, -1, -1).clone()
        case "no pairs":
            return noise[:0]
        case "float64":
            return noise.double()
        case "float16" | "float16 images":
            return noise.half()
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
        largest = np.abs(vectors).max(axis=2, keepdims=True)
        scaled = vectors / np.where(largest > 0, largest, 1)
        lengths = np.linalg.norm(scaled, axis=2, keepdims=True)
        units = scaled / np.where(lengths > 0, lengths, 1)
        return np.linalg.norm(units[:, 0] - units[:, 1], axis=1)


def complaint_of(images, threshold, right, explanation):
    """Say what of an explanation cannot be."""
    distances = explanation.distance.numpy()
    sentences = ""
    for index in range(len(explanation)):
        sentences += explanation.sentence(index)
    problems = {
        f"a threshold of {threshold} is accepted": not -ROUNDING <= threshold <= 2 + ROUNDING,
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
    for problem, holds in problems.items():
        if holds:
            return problem
    return None


def _within(values, least, most) -> bool:
    values = np.asarray(values)
    return bool(((values >= least) & (values <= most)).all())


def _trained(kind, project, folder, random) -> Outcome:
    """Train: a history of finite numbers and a network that explains, or a refusal."""
    settings, _ = TRAININGS[kind]
    settings = QUICKLY | settings
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
    content = paths[0].read_bytes()
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
    if kind.startswith("one"):
        distances[0] = 1
    rule = ("balanced", "eer", "fmr")[random.integers(3)]

    @mock.patch("utils.score.metrics.intervals", partial(intervals, draws=DRAWS))
    @mock.patch("utils.score.calibration.intervals", partial(intervals, draws=DRAWS))
    def act():
        threshold = threshold_by_rule(distances, pairs.labels, DecisionSettings(rule=rule, fmr=0.1))
        band = choose_band(distances, pairs, threshold, 0.1)
        calibration = fit_calibration(distances, pairs)
        chances = calibration(torch.from_numpy(distances))[:, 0].numpy()
        return threshold, band, calibration, evaluate(distances, pairs, threshold, band, chances)

    return attempt(f"{kind}, {rule}", act, partial(_measured_incorrectly, distances, pairs.labels))


def _measured_incorrectly(distances, labels, result):
    threshold, (low, high), calibration, metrics = result
    if not -ROUNDING <= threshold <= 2 + ROUNDING or not low <= threshold <= high:
        return f"a threshold of {threshold}, a band from {low} to {high}"
    if not _within(calibration.probabilities, 0, 1):
        return f"probabilities of {calibration.probabilities}"
    decided = distances > threshold
    counted = {
        "auc": roc_auc_score(labels, distances),
        "accuracy": (decided == labels).mean(),
        "fmr": (~decided[labels == 1]).mean(),
        "fnmr": decided[labels == 0].mean(),
    }
    for name, value in counted.items():
        if abs(metrics[name].interval.value - value) > 1e-9:
            return f"{name} {metrics[name].interval.value}, by hand {value}"
    json.dumps(metrics.as_dict(), allow_nan=False)  # raises ValueError for a NaN
    if "nan" in str(metrics):
        return f"says nan: {metrics}"
    return None


def _retrieved(kind, project, folder, random) -> Outcome:
    """Retrieve among images that are all alike: each value is a share."""
    rates = retrieval_rates(torch.eye(8)[:1].expand(12, -1), np.repeat([0, 1, 2], 4))
    values = [metric.interval.value for metric in retrieval_metrics(rates)]
    return judged(kind, "" if _within(values, 0, 1) else f"values of {values}")


def soak(project, random, tries, folder):
    """Explain pair after pair by one network: always the same of the same, and nothing piles up."""
    trained = project.trained(folder / "run")
    temporary = folder / "temporary"
    temporary.mkdir()
    with mock.patch.object(tempfile, "tempdir", str(temporary)):
        splits = trained.load_splits()
        pairs = splits.files(splits.test_pairs, OF_SOAK)
        firsts = {}
        for number in range(tries):
            pair = number % OF_SOAK
            if number >= OF_SOAK:
                pair = random.integers(OF_SOAK)
            act = partial(_shown, trained, pairs[pair], number)
            yield attempt(f"explanation {number}", act, partial(_changed, firsts.setdefault(pair, {})))
            if number == tries // 5:
                early = _used()
        late = _used()
    grown = late["memory"] - early["memory"]
    yield judged("memory", f"it grew by {grown >> 20} MB" if grown >= GROWTH else "")
    for name in ("files", "threads"):
        more = late[name] - early[name]
        yield judged(name, f"{more} more than at first" if more > 0 else "")
    left = os.listdir(temporary)
    yield judged("temporary files", left and f"left: {left[:5]}")


def _shown(trained, pair, number) -> dict:
    """Return all that is said and drawn of a pair, as bytes."""
    explanation = trained.explain(pair)
    shown = {"sentence": explanation.sentence()}
    for name in ("distance", "towards_different", "towards_same", "probability", "images"):
        shown[name] = getattr(explanation, name).numpy().tobytes()
    if number % FIGURES == 0:
        results = trained.config.results_path
        label = saved(figure(explanation), results).get_label()
        shown["figure"] = (results / f"{label}.png").read_bytes()
    if number % VIEWS == 0:
        shown["view"] = view(explanation)._repr_html_()
    return shown


def _changed(first, shown):
    """Compare with what was shown first."""
    for name, content in shown.items():
        if first.setdefault(name, content) != content:
            return f"another {name}"
    return None


def _used() -> dict[str, int]:
    """Count what this process holds now."""
    gc.collect()
    process = psutil.Process()
    return {"memory": process.memory_info().rss, "files": process.num_fds(), "threads": process.num_threads()}
