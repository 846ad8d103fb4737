"""Numbers at their limits: images, embeddings, thresholds, training and metrics; scores and maps stay what they are."""

import io
import json
import traceback
import warnings
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from faults.damage import limited
from faults.outcomes import Outcome, attempt
from helpers import ROOT, tiny_images
from PIL import Image
from torch import nn

from utils import Cut, Source, evaluate, explain, fit, load_splits, load_trained
from utils.config import DecisionSettings
from utils.data.splits import Pairs
from utils.explanations.methods import METHODS
from utils.files import UserError
from utils.score.calibration import fit_calibration
from utils.score.decision import choose_band, threshold_by_rule
from utils.score.intervals import intervals
from utils.score.metrics import retrieval_metrics, retrieval_rates

WORK = "numbers at their limits"
TRIES = 124  # each kind twice
QUICK = 62  # each once
SIZE = (32, 40)
BRIGHT = 1e6  # of the pixels of an image
PAIRS = 2
ROUNDING = 1e-5  # of a distance in float32, beyond which it is not in [0, 2]
NEAR = 2e-3  # of distances found in two ways
SECONDS = 60  # for a training
DRAWS = 20  # of intervals: how wide they are is not looked at
OF_VALUES = ("threshold", "images", "maps", "embedding", "distances")  # what a refusal is about


class Foreign(nn.Module):
    """A small network of somebody else. side: of its map. change: of its embeddings (N, 5), by who is bright (N, 1)."""

    def __init__(self, change, side=8):
        super().__init__()
        self.map = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(side))
        self.head = nn.Linear(6, 5)
        self.change = change

    def forward(self, images):
        pooled = self.map(images).mean(dim=(2, 3))
        bright = pooled.abs().amin(dim=1, keepdim=True) > 0.5  # the map is saturated
        return self.change(self.head(pooled), bright)


def faults(project, random, tries, folder):
    torch.manual_seed(int(random.integers(2**32)))
    trained = load_trained(project.config(folder / "trained", {"checkpoints_path": str(project.checkpoints)}))
    kinds = [*EXPLAINED, *TRAINED, *MEASURED]
    for number in range(tries):
        kind = kinds[number % len(kinds)]
        method = list(METHODS)[number % len(METHODS)]
        if kind in EXPLAINED:
            network, images, threshold = EXPLAINED[kind](trained, random)
            yield explained(f"{kind}, {method}", trained, network, images, threshold, method)
        elif kind in TRAINED:
            yield TRAINED[kind](kind, project, folder / str(number), random)
        else:
            yield MEASURED[kind](kind, random)


def explained(fault, trained, network, images, threshold, method) -> Outcome:
    """What comes of explaining these pairs."""
    own = network is trained.network

    def act():
        source = Source(calibration=trained.measurements.calibration)
        references = trained.references if own else None
        settings = {"method": method, "steps": 2, "layer": "last"}
        with limited():
            return explained_or_refused(network, images, threshold, references, source, **settings)

    right = distances_by_hand(network, images)
    names = OF_VALUES if " of " in fault else (*OF_VALUES, "layer")  # it is not the layer that is wrong
    return attempt(fault, act, lambda found: complaint(found, images, threshold, right), names)


def explained_or_refused(*arguments, **settings):
    """The explanation; a ValueError that the project raises itself is how it refuses what a program hands over."""
    try:
        return explain(*arguments, **settings)
    except ValueError as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if Path(place.filename).is_relative_to(ROOT / "utils") and place.line.startswith("raise "):
            raise UserError(str(error)) from error
        raise


def distances_by_hand(network, images) -> np.ndarray:
    """The distances float64 (B,) of the vectors that the network makes, brought to length 1 here."""
    flat = images.flatten(0, 1)
    with torch.no_grad():
        if isinstance(network, Cut):
            vectors = network.module(flat)
        else:
            vectors = network.eval().project_features(network.features(flat))
    vectors = vectors.double().numpy().reshape(len(images), 2, vectors.shape[1])
    with np.errstate(all="ignore"):  # what is not finite cannot be right, and is to be refused
        largest = np.abs(vectors).max(axis=2, keepdims=True)
        scaled = vectors / np.where(largest > 0, largest, 1)
        lengths = np.linalg.norm(scaled, axis=2, keepdims=True)
        units = scaled / np.where(lengths > 0, lengths, 1)
        return np.linalg.norm(units[:, 0] - units[:, 1], axis=1)


def complaint(found, images, threshold, right):
    """What of an explanation cannot be."""
    distances = found.distance.numpy()
    if not -ROUNDING <= threshold <= 2 + ROUNDING:
        return f"a threshold of {threshold} is accepted"
    if not np.isfinite(distances).all() or (distances < 0).any() or (distances > 2 + ROUNDING).any():
        return f"distances of {distances}"
    if not (np.abs(distances - right) < NEAR).all():
        return f"distances of {distances}, by hand {right}"
    if not ((found.similarity >= 0) & (found.similarity <= 1)).all():
        return f"similarities of {found.similarity}"
    chances = found.probability
    if chances is not None and not ((chances >= 0) & (chances <= 1)).all():
        return f"probabilities of {chances}"
    if found.different.tolist() != [bool(one > threshold) for one in distances.tolist()]:
        return f"decided {found.different} at {distances} and {threshold}"
    for maps in (found.factual, found.counterfactual):
        if maps.shape != (len(images), 2, *images.shape[3:]):
            return f"maps of {tuple(maps.shape)}"
        if not ((maps >= 0) & (maps <= 1)).all():
            return f"maps from {maps.min()} to {maps.max()}"
    sentences = [found.sentence(index) for index in range(len(found))]
    silly = [text for text in sentences if "nan" in text or "inf" in text]
    return silly[0] if silly else None


def _noise(random, count=PAIRS) -> torch.Tensor:
    return torch.from_numpy(random.normal(size=(count, 2, 3, *SIZE))).float()


def _foreign(change=lambda vectors, bright: vectors, side=8) -> Cut:
    return Cut(Foreign(change, side).eval(), layer="map")


def _images(make):
    """A case for each of both networks: what `make(noise)` makes of images of noise, at a threshold between."""
    return {
        "trained": lambda trained, random: (trained.network, make(_noise(random)), trained.threshold),
        "foreign": lambda trained, random: (_foreign(), make(_noise(random)), 0.5),
    }


def _embeddings(change):
    """A case of a foreign network whose embeddings are changed; the first image of each pair is bright."""

    def case(trained, random):
        images = _noise(random)
        images[:, 0] = BRIGHT
        return _foreign(change), images, 0.5

    return case


def _threshold(value):
    return lambda trained, random: (trained.network, _noise(random), value)


def _with(value, only_one=True):
    """Images with a value that is not finite: in one place, or everywhere."""

    def make(noise):
        noise = noise.clone()
        noise[-1, 0, 1, 5, 7] = value
        return noise if only_one else torch.full_like(noise, value)

    return make


def _as_double(trained, random):
    return Cut(_foreign().module.double(), layer="map"), _noise(random).double(), 0.5


def _as_half(trained, random):
    return Cut(_foreign().module.half(), layer="map"), _noise(random).half(), 0.5


def _half_for_float(trained, random):
    """Images of 16 bits for weights of 32, whose product torch refuses."""
    return Cut(Autocast(_foreign().module), layer="module.map"), _noise(random).half(), 0.5


class Autocast(nn.Module):
    """Takes images of any precision, as people's modules do."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, images):
        return self.module(images.float())


def _explained_kinds() -> dict:
    kinds = {}
    images = {
        "black images": torch.zeros_like,
        "white images": torch.ones_like,
        "constant images": lambda noise: noise.mean(dim=(3, 4), keepdim=True).expand_as(noise).clone(),
        "images of 1e30": lambda noise: noise * 1e30,
        "images of 1e-30": lambda noise: noise * 1e-30,
        "images of denormal values": lambda noise: noise * 1e-42,
        "a NaN in an image": _with(np.nan),
        "an infinity in an image": _with(np.inf),
        "images of NaN": _with(np.nan, only_one=False),
        "identical images": lambda noise: noise[:, :1].expand(-1, 2, -1, -1, -1).clone(),
        "a batch of no pairs": lambda noise: noise[:0],
    }
    for name, make in images.items():
        kinds |= {f"{name}, {network}": case for network, case in _images(make).items()}
    embeddings = {  # of all images, or of the bright ones
        "embeddings of 0": lambda vectors, bright: vectors * 0,
        "embeddings of NaN": lambda vectors, bright: vectors * np.nan,
        "embeddings of infinity": lambda vectors, bright: vectors * np.inf,
        "one embedding of 0": lambda vectors, bright: vectors * ~bright,
        "one embedding of NaN": lambda vectors, bright: torch.where(bright, np.nan, vectors),
        "one embedding of infinity": lambda vectors, bright: torch.where(bright, np.inf, vectors),
        "embeddings of 1e30": lambda vectors, bright: vectors * 1e30,
        "embeddings of 1e-30": lambda vectors, bright: vectors * 1e-30,
        "equal embeddings": lambda vectors, bright: vectors * 1e-9 + 1,
        "opposite embeddings": lambda vectors, bright: vectors * 1e-6 + torch.where(bright, -1.0, 1.0),
        "saturated embeddings": lambda vectors, bright: torch.tanh(vectors * 1e6),
        "embeddings in steps": lambda vectors, bright: vectors.sign() + vectors * 0,
    }
    kinds |= {name: _embeddings(change) for name, change in embeddings.items()}
    for value in (np.nan, -1.0, 3.0, np.inf, -np.inf, 0.0, 2.0):
        kinds[f"a threshold of {value}"] = _threshold(value)
    kinds["maps of 1 x 1"] = lambda trained, random: (_foreign(side=1), _noise(random), 0.5)
    return kinds | {"float64": _as_double, "float16": _as_half, "float16 images": _half_for_float}


EXPLAINED = _explained_kinds()  # (trained, random) to network, images and threshold


def _fitted(kind, make_config, names) -> Outcome:
    """What comes of a training: a history of finite numbers and a network that explains, or a refusal."""

    def act():
        with warnings.catch_warnings(record=True), redirect_stdout(io.StringIO()), limited(SECONDS):
            warnings.simplefilter("always")  # of collapse, which may be told
            config = make_config()
            splits = load_splits(config)
            history = fit(config, splits)
            trained = load_trained(config)
            pair = splits.test_pairs.first[0], splits.test_pairs.second[0]
            return history, trained, trained.explain(tuple(splits.folder.paths[index] for index in pair))

    def found_wrong(found):
        history, trained, explanation = found
        if not all(np.isfinite(value) for epoch in history for value in epoch.values()):
            return f"a history of {history}"
        if any(not 0 <= epoch["valid_auc"] <= 1 for epoch in history):
            return f"an AUC beyond [0, 1]: {history}"
        right = distances_by_hand(trained.network, explanation.images)
        return complaint(explanation, explanation.images, trained.threshold, right)

    return attempt(kind, act, found_wrong, names)


def _trained_with(changes):
    """A training of one epoch with other settings."""

    def case(kind, project, folder, random):
        names = [key.split(".")[-1] for key in changes]
        return _fitted(kind, lambda: project.config(folder, QUICKLY | changes), names)

    return case


def _trained_on(draw):
    """A training on other images: `draw(folder)` makes them."""

    def case(kind, project, folder, random):
        draw(folder / "Data")
        changes = QUICKLY | {"data_path": str(folder / "Data"), "duplicate_radius": None}
        return _fitted(kind, lambda: project.config(folder, changes), ("data_path", str(folder / "Data")))

    return case


def _one_class_alike(folder):
    """All images of one class are the same file."""
    tiny_images(folder)
    first, *others = sorted((folder / "blue").iterdir())
    for path in others:
        path.write_bytes(first.read_bytes())


def _all_alike(folder):
    """All files show the same picture; their bytes differ."""
    tiny_images(folder)
    content = next((folder / "blue").iterdir()).read_bytes()
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.write_bytes(content + bytes([number]))


def _all_black(folder):
    tiny_images(folder)
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        Image.new("RGB", (48, 40)).save(path)
        path.write_bytes(path.read_bytes() + bytes([number]))


QUICKLY = {"backbone_model": "test_resnet", "hyperparameters.epochs": 1, "hyperparameters.verbose": False}
TRAINED = {  # (kind, project, folder, random) to the outcome
    "a learning rate of 1e6": _trained_with({"hyperparameters.learning_rate": 1e6}),
    "a learning rate of 100": _trained_with(
        {"hyperparameters.learning_rate": 100.0, "hyperparameters.optimizer": "SGD", "hyperparameters.max_norm": None}
    ),
    "a margin of 2": _trained_with({"margin": 2.0}),
    "embeddings of one number": _trained_with({"embedding_size": 1}),
    "bfloat16": _trained_with({"precision": "bfloat16"}),
    "a class of one image, ten times": _trained_on(_one_class_alike),
    "one image under all names": _trained_on(_all_alike),
    "black images under all names": _trained_on(_all_black),
}


def _pairs(random, count=40) -> Pairs:
    """Pairs of 20 images, as many of either kind."""
    first, second = random.integers(0, 20, (2, count))
    return Pairs(first, second, np.arange(count) % 2)


def _measured(distances_of):
    """Threshold, band, probabilities and metrics of pairs whose distances are `distances_of(labels, random)`."""

    def case(kind, random):
        pairs = _pairs(random)
        distances = distances_of(pairs.labels, random).astype(np.float32)
        rule = ("balanced", "eer", "fmr")[random.integers(3)]

        @mock.patch("utils.score.metrics.intervals", partial(intervals, draws=DRAWS))
        @mock.patch("utils.score.calibration.intervals", partial(intervals, draws=DRAWS))
        def act():
            threshold = threshold_by_rule(distances, pairs.labels, DecisionSettings(rule=rule, fmr=0.1))
            band = choose_band(distances, pairs, threshold, 0.1)
            calibration = fit_calibration(distances, pairs)
            chances = calibration(torch.from_numpy(distances))[:, 0].numpy()
            return threshold, band, calibration, evaluate(distances, pairs, threshold, band, chances)

        return attempt(f"{kind}, {rule}", act, lambda found: _measured_wrong(found, distances, pairs.labels))

    return case


def _measured_wrong(found, distances, labels):
    """What of the measures cannot be, or is not what is counted here."""
    threshold, (low, high), calibration, metrics = found
    if not -ROUNDING <= threshold <= 2 + ROUNDING:
        return f"a threshold of {threshold}"
    if not low <= threshold <= high:
        return f"a band from {low} to {high} around {threshold}"
    chances = calibration.probabilities
    if not ((chances >= 0) & (chances <= 1)).all():
        return f"probabilities of {chances}"
    same, different = distances[labels == 0], distances[labels == 1]
    higher = (different[:, None] > same).mean() + (different[:, None] == same).mean() / 2
    counted = {
        "auc": higher,
        "accuracy": ((distances > threshold) == labels).mean(),
        "fmr": (different <= threshold).mean(),
        "fnmr": (same > threshold).mean(),
    }
    for name, value in counted.items():
        if abs(metrics[name].interval.value - value) > 1e-9:
            return f"{name} {metrics[name].interval.value}, by hand {value}"
    json.dumps(metrics.as_dict(), allow_nan=False)  # raises ValueError for a NaN
    return f"says nan: {metrics}" if "nan" in str(metrics) else None


def _retrieved(kind, random):
    """Retrieval among images that are all alike: each value is a share."""
    embeddings = torch.eye(8)[:1].expand(12, -1)
    labels = np.repeat([0, 1, 2], 4)

    def found_wrong(metrics):
        values = [metric.interval.value for metric in metrics]
        return None if all(0 <= value <= 1 for value in values) else f"values of {values}"

    return attempt(kind, lambda: retrieval_metrics(retrieval_rates(embeddings, labels)), found_wrong)


MEASURED = {  # (kind, random) to the outcome
    "all distances 0": _measured(lambda labels, random: labels * 0.0),
    "all distances 1": _measured(lambda labels, random: labels * 0.0 + 1),
    "all distances 2": _measured(lambda labels, random: labels * 0.0 + 2),
    "distances of 0 and 2": _measured(lambda labels, random: labels * 2.0),
    "distances of 2 and 0": _measured(lambda labels, random: 2 - labels * 2.0),
    "distances that differ in the last digit": _measured(lambda labels, random: 1 + labels * 1.2e-7),
    "one distance unlike all others": _measured(lambda labels, random: np.eye(1, len(labels))[0]),
    "all embeddings alike": _retrieved,
}
