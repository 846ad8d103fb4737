"""What explanations rest on, measured once after training: references, layer, steps, probabilities, the AUC."""

import math
from pathlib import Path

import numpy as np
import torch

from utils.config import AUTO
from utils.data import Splits
from utils.explain import BY_PATH, References, embed_references, explain, measured
from utils.prepared import Prepared
from utils.runtime import progress
from utils.trained import Trained, keep
from utils.training import auc_interval, fit_calibration
from utils.trust.faithfulness import insertion_deletion

REFERENCES = 96  # training images, at least
OF_EACH_CLASS = 5  # at least: so many say what an image looks like
PAIRS = 48  # of validation
LAYERS = 6  # at most, spread from the first to the last
FIRST_STEPS = 2  # with which layers are compared
STEPS = (1, 2, 4)  # tried at the chosen layer
UNMEASURED = {"test_pairs", "opacity"}  # keys of `explanation` that change nothing of what is measured here
ENOUGH = 0.85  # of the best gap: a finer map, or a quicker one, is worth the rest


def prepare_explanations(trained: Trained, splits: Splits, distances: np.ndarray) -> Trained:
    """Measure what explanations rest on, keep it in best.pt, and hand on the network that knows it; one that was
    prepared for these settings is handed on as it is.

    References are training images, REFERENCES at least and OF_EACH_CLASS, where there are as many; the layer and the
    steps that `auto` stands for are those of `choose_place`; probabilities are fitted on the validation pairs; the test
    AUC comes with its interval. distances: float32 (P,), of the test pairs.
    """
    asked = trained.config.explanation.model_dump(exclude=UNMEASURED)
    asked |= {"threshold": trained.threshold}  # decisions are what maps explain
    if trained.prepared is not None and trained.prepared.asked == asked:
        return trained
    files = [Path(splits.folder.paths[index]) for index in _references(splits)]
    names = tuple(file.relative_to(splits.folder.root).as_posix() for file in files)
    images = trained.load_images(*files)
    references = embed_references(trained.network, images, names)
    layer, steps, gaps = choose_place(trained, splits, references)
    seed = trained.config.seed
    valid_pairs, valid_distances = trained.validation
    prepared = Prepared(
        asked,
        layer,
        steps,
        gaps,
        names,
        references.embeddings.cpu(),
        auc_interval(distances, splits.test_pairs, seed),
        fit_calibration(valid_distances, valid_pairs, seed),
    )
    return keep(trained, prepared)


def choose_place(trained: Trained, splits: Splits, references: References) -> tuple[str, int, dict[str, float]]:
    """The layer and the number of steps to explain at, and the mean gap of each that was tried.

    The gap is the decisive one, insertion minus deletion, on at most PAIRS validation pairs. Of the layers, compared
    with FIRST_STEPS, the finest that reaches ENOUGH of the best is taken; of STEPS there, the fewest. What config.yml
    names is not looked for.
    """
    settings = trained.config.explanation
    given = measured(settings)
    layers = _spread(trained.network.layers) if settings.layer == AUTO else [given.layer]
    numbers = STEPS if settings.steps == AUTO and settings.method in BY_PATH else [given.steps]
    if settings.method == "occlusion" or len(layers) == len(numbers) == 1:
        return given.layer, given.steps, {}
    batches = trained.load_batches(splits.files(splits.valid_pairs, PAIRS, trained.config.seed))
    first = FIRST_STEPS if len(numbers) > 1 else numbers[0]
    candidates = progress(layers, "Layers", trained.config.hyperparameters.verbose)
    by_layer = {layer: _gaps(trained, batches, references, layer, first) for layer in candidates}
    layer = _first_good(by_layer)
    others = {steps: _gaps(trained, batches, references, layer, steps) for steps in numbers if steps != first}
    by_steps = dict(sorted({first: by_layer[layer], **others}.items()))
    tried = {f"{name} in {first}": gaps for name, gaps in by_layer.items()}
    tried |= {f"{layer} in {steps}": gaps for steps, gaps in by_steps.items()}
    return layer, _first_good(by_steps), {name: float(gaps.mean()) for name, gaps in tried.items()}


def _gaps(trained, batches, references, layer, steps) -> torch.Tensor:
    """Insertion minus deletion of all pairs: float32 (B,) on the CPU."""
    settings = measured(trained.config.explanation, layer, steps).model_dump()
    found = []
    for images in batches:
        explanation = explain(trained.network, images, trained.threshold, references, **settings)
        found.append(insertion_deletion(trained.network, explanation).decisive.cpu())
    return torch.cat(found)


def _first_good(gaps: dict):
    """The first name whose mean gap reaches ENOUGH of the best; the best itself where that is below 0."""
    means = {name: float(one.mean()) for name, one in gaps.items()}
    best = max(means.values())
    return next(name for name, mean in means.items() if mean >= min(ENOUGH * best, best))


def _references(splits) -> list[int]:
    """Training images, spread over each class."""
    labels = splits.folder.labels[splits.train]
    each = max(OF_EACH_CLASS, math.ceil(REFERENCES / len(np.unique(labels))))
    chosen = []
    for label in range(len(splits.folder.classes)):
        members = splits.train[labels == label]
        places = np.linspace(0, len(members) - 1, min(each, len(members))).round().astype(int)
        chosen += members[places].tolist()
    return chosen


def _spread(layers) -> list[str]:
    """At most LAYERS of them, the first and the last included."""
    places = np.linspace(0, len(layers) - 1, min(LAYERS, len(layers))).round().astype(int)
    return [layers[place] for place in places]
