"""Numbers at their limits: images, embeddings, thresholds, training and metrics; scores and maps stay what they are."""

import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from faults.damage import limited
from faults.outcomes import WRONG, Outcome, attempt
from helpers import tiny_images
from PIL import Image
from torch import nn

from utils import Cut, choose_threshold, evaluate, explain, fit, load_splits, load_trained
from utils.explain import BY_PATH, FORMULAS
from utils.training import choose_band, fit_calibration, kept_epoch, retrieval_metrics, retrieval_rates

WORK = "numbers at their limits"
TRIES = 120
QUICK = 40
METHODS = (*BY_PATH, *FORMULAS, "occlusion")
SIZE = (32, 40)
PAIRS = 2
ROUNDING = 1e-5  # of a distance in float32, beyond which it is not in [0, 2]
NEAR = 2e-3  # of distances found in two ways
NAMES = ("threshold", "images", "maps", "embedding", "distances", "data_path", "learning_rate", "layer")


class Foreign(nn.Module):
    """A small network of somebody else. side: of its map. change: of its embeddings (N, 5)."""

    def __init__(self, change, side=8):
        super().__init__()
        self.map = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(side))
        self.head = nn.Linear(6, 5)
        self.change = change

    def forward(self, images):
        return self.change(self.head(self.map(images).mean(dim=(2, 3))))


def faults(project, random, tries, folder):
    torch.manual_seed(int(random.integers(2**32)))
    trained = load_trained(project.config(folder / "trained", {"checkpoints_path": str(project.checkpoints)}))
    kinds = [*EXPLAINED, *TRAINED, *MEASURED]
    for number in range(tries):
        kind = kinds[number % len(kinds)]
        method = METHODS[number // len(kinds) % len(METHODS)]
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
        with limited():
            settings = {"method": method, "steps": 2, "layer": "last"}
            references = trained.references if own else None
            calibration = trained.prepared.calibration
            return explain(network, images, threshold, references, calibration=calibration, **settings)

    right = distances_by_hand(network, images)
    return attempt(fault, act, lambda found: complaint(found, images, threshold, right), NAMES)


def distances_by_hand(network, images) -> np.ndarray:
    """The distances float64 (B,) of the vectors that the network makes, brought to length 1 here."""
    flat = images.flatten(0, 1)
    with torch.no_grad():
        if isinstance(network, Cut):
            vectors = network.module(flat)
        else:
            vectors = network.eval().project_features(network.features(flat))
    vectors = vectors.double().numpy().reshape(len(images), 2, -1)
    with np.errstate(all="ignore"):  # what is not finite cannot be right, and is to be refused
        largest = np.abs(vectors).max(axis=2, keepdims=True)
        scaled = vectors / np.where(largest > 0, largest, 1)
        lengths = np.linalg.norm(scaled, axis=2, keepdims=True)
        units = scaled / np.where(lengths > 0, lengths, 1)
        return np.linalg.norm(units[:, 0] - units[:, 1], axis=1)


def complaint(found, images, threshold, right):
    """What of an explanation cannot be."""
    distances = found.distance.numpy()
    if not np.isfinite(threshold) or not 0 <= threshold <= 2:
        return f"a threshold of {threshold} is accepted"
    if not np.isfinite(distances).all() or (distances < 0).any() or (distances > 2 + ROUNDING).any():
        return f"distances of {distances}"
    if not (np.abs(distances - right) < NEAR).all():
        return f"distances of {distances}, by hand {right}"
    if not ((found.similarity >= 0) & (found.similarity <= 1)).all():
        return f"similarities of {found.similarity}"
    if not ((found.probability >= 0) & (found.probability <= 1)).all():
        return f"probabilities of {found.probability}"
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


def _foreign(change=lambda vectors: vectors, side=8) -> Cut:
    return Cut(Foreign(change, side).eval(), layer="map")


def _images(make):
    """A case for each of both networks: what `make(noise)` makes of images of noise, at a threshold between."""
    return {
        "trained": lambda trained, random: (trained.network, make(_noise(random)), trained.threshold),
        "foreign": lambda trained, random: (_foreign(), make(_noise(random)), 0.5),
    }


def _embeddings(change):
    """A case of a foreign network whose embeddings are changed."""
    return lambda trained, random: (_foreign(change), _noise(random), 0.5)


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
    embeddings = {
        "embeddings of 0": torch.zeros_like,
        "embeddings of NaN": lambda vectors: vectors * np.nan,
        "embeddings of infinity": lambda vectors: vectors * np.inf,
        "one embedding of 0": lambda vectors: vectors * (torch.arange(len(vectors)) > 0)[:, None],
        "one embedding of NaN": lambda vectors: torch.where(torch.arange(len(vectors))[:, None] > 0, vectors, np.nan),
        "embeddings of 1e30": lambda vectors: vectors * 1e30,
        "embeddings of 1e-30": lambda vectors: vectors * 1e-30,
        "equal embeddings": lambda vectors: vectors * 0 + 1,
        "opposite embeddings": lambda vectors: torch.where(
            torch.arange(len(vectors))[:, None] % 2 == 0, vectors[:1], -vectors[:1]
        ),
        "saturated embeddings": lambda vectors: torch.tanh(vectors * 1e6),
        "embeddings in steps": torch.sign,
    }
    kinds |= {name: _embeddings(change) for name, change in embeddings.items()}
    for value in (np.nan, -1.0, 3.0, np.inf, -np.inf, 0.0, 2.0):
        kinds[f"a threshold of {value}"] = _threshold(value)
    kinds["maps of 1 x 1"] = lambda trained, random: (_foreign(side=1), _noise(random), 0.5)
    return kinds | {"float64": _as_double, "float16": _as_half, "float16 images": _half_for_float}


EXPLAINED = _explained_kinds()  # (trained, random) to network, images and threshold


def _fitted(kind, config, names) -> Outcome:
    """What comes of a training: a history of finite numbers and a network that explains, or a refusal."""

    def act():
        with limited(seconds=60), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of collapse, which is told and right here
            splits = load_splits(config)
            history = fit(config, splits)
            trained = load_trained(config)
            pair = splits.test_pairs.first[0], splits.test_pairs.second[0]
            return history, trained.explain(tuple(splits.folder.paths[index] for index in pair))

    def found_wrong(found):
        history, explanation = found
        unreal = [epoch for epoch in history if not all(np.isfinite(value) for value in epoch.values())]
        if unreal or not 1 <= kept_epoch(history) <= len(history):
            return f"a history of {history}"
        if any(not 0 <= epoch["valid_auc"] <= 1 for epoch in history):
            return f"an AUC beyond [0, 1]: {history}"
        right = explanation.distance.double().numpy()  # by the network itself: checked by hand above
        return complaint(replace(explanation, calibration=ANY), explanation.images, explanation.threshold, right)

    return attempt(kind, act, found_wrong, names)


def _trained_with(names, **changes):
    """A training of one epoch with other settings."""

    def case(kind, project, folder, random):
        changed = {name.replace("__", "."): value for name, value in changes.items()}
        return _fitted(kind, project.config(folder, QUICKLY | changed), names)

    return case


def _trained_on(draw):
    """A training on other images: `draw(folder)` makes them."""

    def case(kind, project, folder, random):
        draw(folder / "Data")
        config = project.config(folder, QUICKLY | {"data_path": str(folder / "Data"), "duplicate_radius": None})
        return _fitted(kind, config, ("data_path", str(folder / "Data")))

    return case
