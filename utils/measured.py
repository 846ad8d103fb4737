"""What is measured once after training: what explanations and probabilities need, and the metrics of the test."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from .config import AUTO, MORE
from .data.splits import Splits, pairs_of_files
from .device import progress
from .explanations.methods import METHODS, explain, replace_auto
from .explanations.references import References, embed_references
from .files import write_text
from .score.calibration import fit_calibration
from .score.intervals import auc_interval, mean_interval
from .score.metrics import Metric, Metrics, evaluate, retrieval_metrics, retrieval_rates
from .train import runs
from .train.evaluation import Baseline, embed_images
from .train.runs import CheckpointError
from .trained import ENOUGH, Measurements, Trained
from .trust.faithfulness import insertion_deletion

REFERENCES = 96  # training images, at least
OF_EACH_CLASS = 5  # at least: enough to show what images of the class look like
PAIRS = 32  # of validation
LAYERS = 6  # at most, spread from the first to the last
FINALISTS = 3  # layers: the best of the first batch of pairs, which are compared on all PAIRS
FIRST_STEPS = 2  # with which layers are compared
STEPS = (1, 2, 4)  # tried at the chosen layer
UNMEASURED = {"test_pairs", "opacity"}  # keys of `explanation` that change nothing that is measured here


def calibrate(trained: Trained, splits: Splits, distances: np.ndarray) -> Trained:
    """Measure what explanations and probabilities need, save it in best.pt, and return the network with it.

    References are training images; layer and steps of `auto` are those of `choose_layer`;
    probabilities are fitted on the validation pairs; the test AUC comes with its interval.

    Args:
        trained: The network; one that was calibrated with these settings is returned unchanged.
        splits: Those of the training run.
        distances: Of the test pairs, float32 (P,).
    """
    settings = trained.config.explanation.model_dump(exclude=UNMEASURED)
    settings["threshold"] = trained.threshold  # maps explain decisions
    if trained.measurements is not None and trained.measurements.settings == settings:
        return trained
    files = [Path(splits.folder.paths[index]) for index in _reference_images(splits)]
    names = tuple(file.relative_to(splits.folder.root).as_posix() for file in files)
    references = embed_references(trained.network, trained.load_images(*files), names)
    layer, steps, gaps = choose_layer(trained, splits, references)
    seed = trained.config.seed
    valid_pairs, valid_distances = trained.validation
    measurements = Measurements(
        settings,
        layer,
        steps,
        gaps,
        names,
        references.embeddings.cpu(),
        auc_interval(distances, splits.test_pairs, seed),
        fit_calibration(valid_distances, valid_pairs, seed),
    )
    return save_measurements(trained, measurements)


def save_measurements(trained: Trained, measurements: Measurements) -> Trained:
    """Write the measurements into best.pt, whole, and return the network with them.

    Raises:
        CheckpointError: Another process trains in the folder of the runs, or the run was trained further since the
            network was loaded.
    """
    path = trained.folder / runs.BEST
    with runs.claimed(trained.folder.parent):
        content = runs.load_checkpoint(path)
        if len(content["history"]) != len(trained.history):
            raise CheckpointError(f"{path} was trained further since it was loaded: load it again with load_trained.")
        runs.save_checkpoint(path, content | {"measurements": asdict(measurements)})
    return replace(trained, measurements=measurements)


def choose_layer(trained: Trained, splits: Splits, references: References) -> tuple[str, int, dict[str, float]]:
    """Choose the layer and the number of steps to explain at.

    The gap, insertion minus deletion towards the decision, is measured on at most PAIRS validation pairs. Layers are
    compared with FIRST_STEPS, at first on one batch of pairs, the FINALISTS on all. Of these, the finest that reaches
    ENOUGH of the best is chosen; of STEPS there, the fewest. `contrastive` reads several layers instead, from
    `path_start` on, where the 95 % interval of what the gap gains by that lies above 0. What config.yml names is not
    searched.

    Returns:
        The layer, the steps, and the mean gap of each choice that was tried.
    """
    settings = trained.config.explanation
    given = replace_auto(settings)
    layers = [given.layer]
    if settings.layer == AUTO:
        layers = _spread(trained.network.layers, LAYERS)
    numbers = [given.steps]
    if settings.steps == AUTO and METHODS[settings.method].takes_steps:
        numbers = STEPS
    if settings.method == "occlusion" or len(layers) == len(numbers) == 1:
        return given.layer, given.steps, {}
    seed = trained.config.seed
    files = splits.files(splits.valid_pairs, PAIRS, seed)
    batches = trained.load_batches(files)
    first_steps = numbers[0]
    if len(numbers) > 1:
        first_steps = FIRST_STEPS
    show = trained.config.hyperparameters.verbose
    gaps = {}  # of each pair

    def gaps_of(layer, steps, some=batches):
        name = f"{layer} in {steps}"
        if len(some) < len(batches):
            name += f" ({len(some[0])} pairs)"
        if name not in gaps:
            gaps[name] = _gaps(trained, some, references, layer, steps)
        return gaps[name]

    def gap(layer, steps, some=batches):
        return gaps_of(layer, steps, some).mean()

    if len(layers) > FINALISTS and len(batches) > 1:
        first_gaps = {layer: gap(layer, first_steps, batches[:1]) for layer in progress(layers, "Layers", show)}
        best = sorted(layers, key=first_gaps.get)[-FINALISTS:]
        layers = [layer for layer in layers if layer in best]
    layer = _first_good({layer: gap(layer, first_steps) for layer in progress(layers, "Layers", show)})
    steps = _first_good({steps: gap(layer, steps) for steps in progress(numbers, "Steps", show)})
    start = trained.network.path_start
    if settings.layer == AUTO and METHODS[settings.method].reads_several and start:
        several = f"{start}{MORE}"
        gained = gaps_of(several, given.steps) - gaps_of(layer, steps)
        if mean_interval(gained, pairs_of_files(files), seed).low > 0:
            layer, steps = several, given.steps
    means = {name: float(values.mean()) for name, values in gaps.items()}
    return layer, steps, means


def _gaps(trained, batches, references, layer, steps) -> np.ndarray:
    """Return insertion minus deletion of each pair."""
    settings = replace_auto(trained.config.explanation, layer, steps).model_dump()
    gaps = []
    for images in batches:
        explanation = explain(trained.network, images, trained.threshold, references, **settings)
        gaps.append(insertion_deletion(trained.network, explanation).decisive.cpu())
    return torch.cat(gaps).double().numpy()


def _first_good(gaps: dict):
    """Return the first name whose gap reaches ENOUGH of the best; the best itself if that is below 0."""
    best = max(gaps.values())
    return next(name for name, gap in gaps.items() if gap >= min(ENOUGH * best, best))


def _reference_images(splits) -> list[int]:
    """Choose training images: REFERENCES or OF_EACH_CLASS, spread over each class."""
    labels = splits.folder.labels[splits.train]
    each = max(OF_EACH_CLASS, math.ceil(REFERENCES / len(np.unique(labels))))
    chosen = []
    for label in np.unique(labels):
        chosen += _spread(splits.train[labels == label], each)
    return chosen


def _spread(values, count) -> list:
    """Return at most `count` of the values, the first and the last included."""
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return np.asarray(values)[places].tolist()


def write_metrics(trained: Trained, splits: Splits, distances: np.ndarray, baseline: Baseline) -> Metrics:
    """Compute all metrics of the test pairs and of the test images as a gallery; write results_path/metrics.json.

    The file also has the run, the rule of the decision, and `seconds`: training time up to the chosen epoch.

    Args:
        trained: The network.
        splits: Those of the training run.
        distances: Of the test pairs, float32 (P,).
        baseline: Of the same test pairs.

    Raises:
        CheckpointError: The network was trained on other splits.
    """
    pairs = splits.test_pairs
    config = trained.config
    images = trained.validation[0].first, trained.validation[0].second
    if not np.array_equal(images, (splits.valid_pairs.first, splits.valid_pairs.second)):
        raise CheckpointError(
            f"{trained.folder} is a run with other splits: its training images may be among these test images. "
            "Give each config its own checkpoints_path, or run notebook 01 from its beginning."
        )
    metrics = evaluate(distances, pairs, trained.threshold, trained.band, trained.probabilities(distances), config.seed)
    embeddings = embed_images(trained.network, splits.pixels, splits.test, config, trained.runtime)
    retrieval = retrieval_metrics(retrieval_rates(embeddings, splits.folder.labels[splits.test]))
    if baseline.auc is not None:
        retrieval += (Metric("frozen_auc", baseline.auc, "AUC of the pretrained backbone without training"),)
    facts = metrics.facts | {
        "decision": config.decision.model_dump(),
        "seconds": round(sum(epoch["seconds"] for epoch in trained.history), 1),
        "run": trained.folder.name,
    }
    metrics = Metrics(metrics.metrics + retrieval, facts)
    write_text(config.results_path / "metrics.json", json.dumps(metrics.as_dict(), indent=2) + "\n")
    return metrics
