"""What is measured once after training: references, probabilities, and the metrics of the test."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from .config import AUTO, LAST, Config, ConfigError
from .data.corrections import Corrections
from .data.reading import stored_size
from .data.splits import Splits
from .device import Runtime, find_runtime
from .explanations.references import embed_references
from .files import ExplanationError, write_text
from .network.cut import Cut
from .network.distance import copy_of, evaluating, example_of, place_of
from .score.calibration import fit_calibration
from .score.intervals import auc_interval
from .score.metrics import Metric, Metrics, evaluate, retrieval_metrics, retrieval_rates
from .train import runs
from .train.evaluation import Baseline, embed_images, pair_distances
from .train.runs import CheckpointError
from .trained import Measurements, Trained, limits

REFERENCES = 96  # training images, at least
OF_EACH_CLASS = 5  # at least: enough to show what images of the class look like
NO_BASELINE = Baseline(None)


def calibrate(trained: Trained, splits: Splits, distances: np.ndarray) -> Trained:
    """Measure what explanations and probabilities need, save it in best.pt, and return the network with it.

    References are training images; probabilities are fitted on the validation pairs; the test AUC comes with its
    interval.

    Args:
        trained: The network; one that was calibrated is returned unchanged.
        splits: Those of the training run.
        distances: Of the test pairs, float32 (P,).
    """
    if trained.measurements is not None:
        return trained
    return save_measurements(trained, _measure(trained, splits, distances))


def trained_elsewhere(network: Cut, config: Config, splits: Splits, runtime: Runtime | None = None) -> Trained:
    """Return a network that was trained elsewhere as `load_trained` and `calibrate` return one of a run.

    Threshold, band and probabilities are chosen on the validation pairs of `splits`; nothing is trained or saved. All
    that takes a Trained takes it: explanations, search, identification, suspects, shortcuts, `report`. Of the settings,
    those of the network and of its training do not count.

    Args:
        network: A `Cut` of any module that embeds images, float32 (N, 3, H, W). It is not changed: what
            computes is a copy, in float32.
        config: The settings. `image.size` and `image.normalization` must be those that the network expects.
        splits: Of the images in `data_path`. The network should not have been trained on those of its test.
        runtime: Where to compute.

    Raises:
        ConfigError: The splits are of another image size, or `explanation.layer` is not that of the `Cut`.
        ExplanationError: The network is no `Cut`, or it cannot be copied, or a copy of it does not run on its own.
        ValueError: As `Cut` raises it.
    """
    if not isinstance(network, Cut):
        kind = type(network).__name__
        raise ExplanationError(f"{kind} cannot be read at a layer: pass Cut(module, layer=...) of it")
    if config.explanation.layer not in (AUTO, LAST, network.layer):
        raise ConfigError(
            f"explanation.layer: {config.explanation.layer!r} is refused: this Cut reads {network.layer!r}. Set auto, "
            "or cut the module at another layer."
        )
    size, expected = splits.pixels[splits.train[:1]].shape[1:3], stored_size(config.image)
    if tuple(size) != tuple(expected):
        raise ConfigError(
            f"image: the splits hold images of {size[0]} x {size[1]}, and the config asks for {expected[0]} x "
            f"{expected[1]}: pass load_splits(config) of the same config."
        )
    runtime = runtime or find_runtime(config)
    images = example_of(config.image.size)
    with evaluating(network):
        network.features(images.to(*(place_of(network) or ())))  # measures the layer
    try:
        network = runtime.place(copy_of(network).float().eval())
        with evaluating(network):
            network.features(runtime.place(images))
    except (RuntimeError, TypeError, ValueError) as error:  # of copying, or of running the copy
        raise ExplanationError(
            f"{network.layer}: a copy of this Cut in float32 does not run on its own, so that no control can be made. "
            "If it has a lambda as forward=, pass a method of the module, such as module.encode_image, or cut an "
            f"nn.Module that has this forward. The cause: {error}"
        ) from error
    pairs = splits.valid_pairs
    distances = pair_distances(network, splits, pairs, config, runtime)
    threshold, band = limits(distances, pairs, config.decision)
    trained = Trained(
        network=network,
        config=config,
        runtime=runtime,
        threshold=threshold,
        band=band,
        validation=(pairs, distances),
        classes=splits.folder.classes,
        history=(),
        images_digest=runs.images_digest(splits),
        folder=None,
        corrections=Corrections(splits.folder.root, splits.folder.corrections),
    )
    measurements = _measure(trained, splits, trained.distances(splits, splits.test_pairs))
    return replace(trained, measurements=measurements)


def _measure(trained, splits, distances) -> Measurements:
    """Choose references, fit probabilities, and measure the AUC of the test pairs, of these distances."""
    files = [Path(splits.folder.paths[index]) for index in _reference_images(splits)]
    names = tuple(file.relative_to(splits.folder.root).as_posix() for file in files)
    references = embed_references(trained.network, trained.load_images(*files), names)
    seed = trained.config.seed
    valid_pairs, valid_distances = trained.validation
    return Measurements(
        names,
        references.embeddings.cpu(),
        auc_interval(distances, splits.test_pairs, seed),
        fit_calibration(valid_distances, valid_pairs, seed),
    )


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


def write_metrics(trained: Trained, splits: Splits, distances: np.ndarray, baseline: Baseline = NO_BASELINE) -> Metrics:
    """Compute all metrics of the test pairs and of the test images as a gallery; write results_path/metrics.json.

    The file also has the run, the rule of the decision, and `seconds`: training time up to the chosen epoch.

    Args:
        trained: The network.
        splits: Those of the training run.
        distances: Of the test pairs, float32 (P,).
        baseline: Of the same test pairs, or none.

    Raises:
        CheckpointError: The network was trained, or calibrated, on other splits.
    """
    pairs = splits.test_pairs
    config = trained.config
    images = trained.validation[0].first, trained.validation[0].second
    if not np.array_equal(images, (splits.valid_pairs.first, splits.valid_pairs.second)):
        raise CheckpointError(
            f"{trained.run} was trained or calibrated on other splits: its training images may be among these test "
            "images. Give each config its own checkpoints_path, or run notebook 01 from its beginning."
        )
    metrics = evaluate(distances, pairs, trained.threshold, trained.band, trained.probabilities(distances), config.seed)
    embeddings = embed_images(trained.network, splits.pixels, splits.test, config, trained.runtime)
    retrieval = retrieval_metrics(retrieval_rates(embeddings, splits.folder.labels[splits.test]))
    if baseline.auc is not None:
        retrieval += (Metric("frozen_auc", baseline.auc, "AUC of the pretrained backbone without training"),)
    facts = metrics.facts | {
        "decision": config.decision.model_dump(),
        "seconds": round(sum(epoch["seconds"] for epoch in trained.history), 1),
        "run": trained.run,
    }
    metrics = Metrics(metrics.metrics + retrieval, facts)
    write_text(config.results_path / "metrics.json", json.dumps(metrics.as_dict(), indent=2) + "\n")
    return metrics
