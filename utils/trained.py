"""A trained network with all that its use needs, and what is measured once after training."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .config import AUTO, Config, ConfigError, ExplanationSettings
from .data.batches import evaluation_transform
from .data.reading import decode, stored_size
from .data.splits import Pairs, Splits, load_splits
from .device import Runtime, find_runtime, progress
from .explanations.explanation import UNTESTED, Explanation, Source, embed_explained, only_pair
from .explanations.methods import METHODS, explain, methods_of, name_of, replace_auto
from .explanations.references import References, embed_references
from .files import printable, write_text
from .network.distance import distance, evaluating, paired
from .network.siamese import SiameseNetwork
from .network.variants import folded
from .score.calibration import Calibration, fit_calibration
from .score.decision import choose_band, images_to_decide, threshold_by_rule
from .score.intervals import Interval, auc_interval, image_count
from .score.metrics import Metric, Metrics, evaluate, retrieval_metrics, retrieval_rates
from .train import runs
from .train.evaluation import Baseline, embed_images, pair_distances
from .train.runs import CheckpointError
from .trust.faithfulness import LEAST_SPAN, insertion_deletion, span_of

BATCH = 16  # pairs that are explained together
REFERENCES = 96  # training images, at least
OF_EACH_CLASS = 5  # at least: enough to show what images of the class look like
PAIRS = 32  # of validation
LAYERS = 6  # at most, spread from the first to the last
FINALISTS = 3  # layers: the best on BATCH pairs, which are compared on all PAIRS
FIRST_STEPS = 2  # with which layers are compared
STEPS = (1, 2, 4)  # tried at the chosen layer
UNMEASURED = {"test_pairs", "opacity"}  # keys of `explanation` that change nothing that is measured here
TYPICAL = 8  # pairs around the median, of which the first that can be explained is shown
ENOUGH = 0.85  # of the best gap: a finer map, or a quicker one, is worth the rest
RULES = {  # of the key `decision.rule`, in words
    "balanced": "the best balanced accuracy",
    "eer": "equal error rates",
    "fmr": "a false match rate of at most {:g}",
}
UNCALIBRATED = "Not calibrated: `auto` is the last layer, and there are no references"


@dataclass(frozen=True)
class Measurements:
    """What is measured once after training and saved in the checkpoint: explanations and probabilities need it."""

    settings: dict[str, str | int | float]
    """Method, layer, output_stride and steps of the config then, and the threshold."""
    layer: str
    """The value of `auto`, chosen on validation pairs."""
    steps: int
    """The value of `auto`, chosen on validation pairs."""
    gaps: dict[str, float]
    """Insertion minus deletion of each layer and number of steps that was tried."""
    names: tuple[str, ...]
    """Reference images, as "class/file"."""
    embeddings: torch.Tensor
    """Of the reference images, float32 (R, D)."""
    auc: Interval
    """Of the test pairs, with its 95 % interval."""
    calibration: Calibration
    """From distance to probability."""

    @classmethod
    def from_dict(cls, content: dict) -> "Measurements":
        """Invert `dataclasses.asdict`."""
        parts = {"auc": Interval(**content["auc"]), "calibration": Calibration(**content["calibration"])}
        return cls(**content | parts)

    def table(self) -> pd.DataFrame:
        """Return insertion minus deletion of each layer and number of steps that was tried, the best first."""
        gaps = pd.Series(self.gaps, name="insertion minus deletion", dtype=float)
        return gaps.rename_axis("layer and steps").sort_values(ascending=False).round(3).to_frame()

    def __str__(self):
        return (
            f"`auto` is {self.layer} and {self.steps} steps for {self.settings['method']}, chosen on validation pairs: "
            f"the finest layer and the fewest steps within {1 - ENOUGH:.0%} of the best; test AUC {self.auc}"
        )


@dataclass(frozen=True)
class Trained:
    """A trained network with all that its use needs. A pair of image files is a tuple of two paths."""

    network: SiameseNetwork
    config: Config
    """The current settings, with the TRAINED_KEYS of the training run."""
    runtime: Runtime
    threshold: float
    """Distance up to which a pair is decided "same", chosen on validation pairs."""
    band: tuple[float, float] | None
    """Two distances between which pairs are undecided, chosen on validation pairs."""
    validation: tuple[Pairs, np.ndarray]
    """The validation pairs and their distances, float32 (P,)."""
    classes: tuple[str, ...]
    history: tuple[dict, ...]
    """One dict per epoch, up to the chosen one."""
    images_digest: str
    """Of the image files during training."""
    folder: Path
    """Of the run."""
    measurements: Measurements | None = None
    """None before `calibrate`."""

    @property
    def settings(self) -> ExplanationSettings:
        """The settings `explanation` of config.yml, with `auto` replaced by what was measured."""
        if self.measurements is None:
            return replace_auto(self.config.explanation)
        return replace_auto(self.config.explanation, self.measurements.layer, self.measurements.steps)

    @property
    def method(self) -> str:
        """The name of the method of the settings, a key of `methods_of`."""
        return name_of(self.settings)

    @property
    def references(self) -> References | None:
        """The reference images as the network sees them; None before `calibrate`."""
        if self.measurements is None:
            return None
        return References(self.measurements.embeddings.to(self.runtime.device), self.measurements.names)

    @property
    def warning(self) -> str:
        """What every figure and page of a network that may know nothing begins with; "" for other networks."""
        if self.measurements is None:
            return UNTESTED
        auc = self.measurements.auc
        if auc.low <= 0.5 <= auc.high:
            return f"CAUTION: this network may know nothing: its test AUC is {auc}, and 0.5 is guessing."
        return ""

    @property
    def source(self) -> Source:
        """What is known of any pair of image files: all except the files and their classes."""
        return Source(
            normalization=self.config.image.normalization,
            value_range=self.config.image.value_range,
            warning=self.warning,
            band=self.band,
            calibration=self.measurements and self.measurements.calibration,
        )

    def load_splits(self) -> Splits:
        """Return the splits of the training run; print a line if the image files have changed since."""
        splits = load_splits(self.config)
        if runs.images_digest(splits) != self.images_digest:
            root = splits.folder.root
            print(f"The images in {root} have changed since training: test pairs may hold training images.")
        return splits

    def load_images(self, *paths) -> torch.Tensor:
        """Load N image files as the network takes them: float32 (N, 3, h, w) on its device.

        Raises:
            DataError: An image cannot be decoded.
        """
        image = self.config.image
        settings = stored_size(image), self.config.max_megapixels, image.value_range
        pixels = np.stack([decode(path, *settings) for path in paths])  # (N, h, w, 3)
        return self.runtime.place(evaluation_transform(image)(torch.from_numpy(pixels)))

    def load_pairs(self, *pairs) -> torch.Tensor:
        """Load B pairs of image files as the network takes them: float32 (B, 2, 3, h, w) on its device.

        Raises:
            ValueError: There is no pair, or a pair is not a tuple of two paths.
            DataError: An image cannot be decoded.
        """
        return paired(self.load_images(*files_of(pairs)))

    def load_batches(self, pairs) -> list[torch.Tensor]:
        """Load pairs of image files in batches of BATCH."""
        return [self.load_pairs(*pairs[start : start + BATCH]) for start in range(0, len(pairs), BATCH)]

    def load_references(self) -> torch.Tensor:
        """Load the reference images, (R, 3, h, w), for another network to embed."""
        return self.load_images(*[self.config.data_path / name for name in self.measurements.names])

    def distances(self, splits: Splits, pairs: Pairs) -> np.ndarray:
        """Return the distances of the pairs, float32 (P,)."""
        return pair_distances(self.network, splits, pairs, self.config, self.runtime)

    def probabilities(self, distances: np.ndarray) -> np.ndarray | None:
        """Return the probabilities, float32 (P,), that pairs of these distances are of one class.

        Args:
            distances: float (P,).

        Returns:
            None before `calibrate`.
        """
        if self.measurements is None:
            return None
        return self.measurements.calibration(torch.from_numpy(distances))[:, 0].numpy()

    def explain(self, *pairs, **changes) -> Explanation:
        """Explain B pairs of image files by the method of `explanation` in config.yml, with `changes` to its keys."""
        settings = self.settings.model_dump() | changes
        images = self.load_pairs(*pairs)
        return explain(self.network, images, self.threshold, self.references, self._source_of(pairs), **settings)

    def explain_by_all(self, *pairs) -> dict[str, Explanation]:
        """Explain B pairs of image files by every method of `methods_of`, by name."""
        images = self.load_pairs(*pairs)
        source = self._source_of(pairs)
        explanations = {}
        for name, method in progress(methods_of(self.settings).items(), "Methods"):
            explanations[name] = method(self.network, images, self.threshold, self.references, source)
        return explanations

    def donors(self, explanation: Explanation) -> Explanation | None:
        """Explain image 1 of a pair beside the two nearest reference images of other classes.

        `smallest_edit` puts parts of them into image 1 of a pair decided "same".

        Args:
            explanation: Of one pair.

        Returns:
            Of at most two pairs: each reference is of another class and decided "different" from both images. None if
            there is no such reference. An unknown class of image 1 is taken to be that of its nearest reference.
        """
        only_pair(explanation)
        references = self.references
        if references is None or explanation.source.paths is None:
            return None
        with evaluating(self.network), torch.no_grad():
            embeddings = embed_explained(self.network, explanation)[0].float()  # (2, D)
        distances = distance(references.embeddings[:, None], embeddings).cpu()  # (R, 2)
        table = pd.DataFrame({"name": references.names, "nearness": distances[:, 0], "far": distances.amin(dim=1)})
        table["class"] = table["name"].str.split("/").str[0]
        table = table.sort_values("nearness")
        own = table["class"].iloc[0]
        if explanation.classes():
            own = explanation.classes()[0]
        others = table[(table["far"] > explanation.threshold) & (table["class"] != own)]
        nearest = others.drop_duplicates("class")["name"][:2]
        if nearest.empty:
            return None
        path1 = explanation.source.paths[0][0]
        return self.explain(*[(path1, str(self.config.data_path / name)) for name in nearest])

    def _source_of(self, pairs) -> Source:
        """Return what is known of these pairs of image files."""
        classes = tuple(self._classes_of(pair) for pair in pairs)
        return replace(self.source, paths=pairs, classes=classes)

    def _classes_of(self, pair):
        """Return the actual classes of two files of the dataset; None if a file is from elsewhere."""
        root = self.config.data_path.resolve()
        folder1, folder2 = Path(pair[0]).parent, Path(pair[1]).parent
        if folder1.parent.resolve() != root or folder2.parent.resolve() != root:
            return None
        return folder1.name, folder2.name

    def _decision_lines(self):
        """Say how a pair is decided."""
        decision = self.config.decision
        rule = RULES[decision.rule].format(decision.fmr)
        lines = [
            f'decides "same" up to a distance of {self.threshold:.3f} (similarity {1 - self.threshold / 2:.3f}), for '
            f"{rule} on {len(self.validation[0])} validation pairs"
        ]
        if self.band is None:
            return lines
        low, high = self.band
        lines.append(
            f"undecided from {max(low, 0):.3f} to {min(high, 2):.3f}, so that in nine of ten validation sets at most "
            f'{100 * decision.abstain:.4g} % of the pairs decided "same", and of those decided "different", are wrong'
        )
        needed = images_to_decide(decision.abstain)
        why = f"abstain: {decision.abstain:g} needs a low error rate on at least {needed} validation images, and there "
        why += f"are {image_count(self.validation[0])}; raise abstain or valid_size, or improve the network"
        for word, limit in (("same", low), ("different", high)):
            if not math.isfinite(limit):
                lines.append(f'no pair is decided "{word}": {why}')
        return lines

    def __str__(self):
        state = "without training (epochs: 0)"
        if self.history:
            state = f"after epoch {len(self.history)}, validation AUC {self.history[-1]['valid_auc']:.3f}"
        lines = [
            f"Run {self.folder.name} of {self.folder.parent}, config {self.config.source}",
            f"{self.config.backbone_model} {state}",
            f"{len(self.classes)} classes: {', '.join(self.classes)}",
            *self._decision_lines(),
            str(self.measurements or UNCALIBRATED),
        ]
        return printable("\n".join(lines))


def files_of(pairs) -> list[str]:
    """Return the files of pairs, one after the other. Raises ValueError for what is no pair, or none at all."""
    files = np.array(pairs, str)
    if files.ndim != 2 or files.shape[1] != 2:
        raise ValueError("a pair is a tuple of two image files: (path1, path2), (path3, path4), ...")
    return files.ravel().tolist()


def load_trained(config: Config, runtime: Runtime | None = None) -> Trained:
    """Load the best network of the current training run, or of the run that `run` names.

    It is folded for evaluation and placed on the device of `runtime`. If config.yml has changed since in a key that the
    network depends on, the value of the checkpoint is used, which is printed. No random numbers are drawn or seeded.

    Raises:
        CheckpointError: There is no such run, or its best.pt cannot be loaded.
        ConfigError: `explanation.layer` is no layer of the backbone.
    """
    runtime = runtime or find_runtime(config)
    folder = runs.run_to_load(config)
    path = folder / runs.BEST
    content = runs.load_checkpoint(path)
    with runs.reading(path):
        then = Config.model_validate(content["config"])
        network = _network_of(content["network"], then, content.get("backbone"))
        validation = content["validation"]
        pairs = Pairs(validation["first"].numpy(), validation["second"].numpy(), validation["labels"].numpy())
        distances = validation["distances"].numpy()
        classes, history = tuple(content["classes"]), tuple(content["history"])
        digest = content["fingerprint"]["images"]
        measurements = content.get("measurements")
        if measurements is not None:
            measurements = Measurements.from_dict(measurements)
    for change in runs.changed_since(then, config, runs.TRAINED_KEYS):
        print(f"{change}: the latter is used.")
    for change in runs.changed_since(then, config, runs.COURSE_KEYS):
        print(f"{change}: notebook 01 would train again.")
    settings = config.model_dump(mode="json") | then.model_dump(mode="json", include=set(runs.TRAINED_KEYS))
    config = Config.model_validate(settings).from_source(config.source)
    if config.explanation.layer != AUTO:
        network.check_layer(config.explanation.layer)
    threshold = threshold_by_rule(distances, pairs.labels, config.decision)
    band = None
    if config.decision.abstain is not None:
        band = choose_band(distances, pairs, threshold, config.decision.abstain)
    network = runtime.place(folded(network, runtime.dtype))
    validation = pairs, distances
    return Trained(
        network, config, runtime, threshold, band, validation, classes, history, digest, folder, measurements
    )


def _network_of(weights, config, arguments):
    """Build the network of a checkpoint.

    Args:
        weights: Of the network.
        config: Its settings.
        arguments: Of its backbone, if that is a model of the hub or of a folder, which may be out of reach now.
    """
    size = config.embedding_size
    if "embedding.weight" not in weights:  # the backbone's own embedding, with `epochs: 0`
        size = None
    if ":" not in config.backbone_model:  # a model of timm's own
        arguments = None
    with torch.random.fork_rng(devices=[]):  # every weight is replaced
        network = SiameseNetwork(config.backbone_model, size, image_size=config.image.size, arguments=arguments)
    network.load_state_dict(weights)
    for name, values in weights.items():
        if not values.isfinite().all():
            raise ValueError(f"{name} is not finite")
    return network


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


def inference_pair(config: Config, default: tuple[str, str]) -> tuple[str, str]:
    """Return the two images of `inference` in config.yml; without them, `default`.

    Raises:
        ConfigError: A file does not exist.
    """
    if config.inference.image1 is None:
        return default
    for key in ("image1", "image2"):
        path = getattr(config.inference, key)
        if not path.is_file():
            raise ConfigError(f"inference.{key}: {path} does not exist: name an image file")
    return str(config.inference.image1), str(config.inference.image2)


def typical_pairs(trained: Trained, splits: Splits):
    """Return the image files of a test pair decided "same" and of one decided "different".

    Each is near the median distance of those decided so, of the correct ones if there are any: of the TYPICAL pairs
    nearest to it, the first whose score depends on what is hidden, so that there is something to explain. If there are
    none decided so, the nearest pair is returned, which is printed.
    """
    distances = trained.distances(splits, splits.test_pairs)
    same = _typical_pair(trained, splits, distances, "same")
    different = _typical_pair(trained, splits, distances, "different")
    return same, different


def _typical_pair(trained, splits, distances, word):
    pairs = splits.test_pairs
    low, high = trained.band or (trained.threshold, trained.threshold)
    if word == "same":
        label, candidates, nearest = 0, np.flatnonzero(distances <= low), distances.argmin()
    else:
        label, candidates, nearest = 1, np.flatnonzero(distances > high), distances.argmax()
    if not len(candidates):
        print(f'No test pair is decided "{word}": the nearest pair is shown instead. Has the network learnt enough?')
        candidates = np.array([nearest])
    correct = candidates[pairs.labels[candidates] == label]
    if len(correct):
        candidates = correct
    by_distance = candidates[np.argsort(distances[candidates])]
    from_median = np.abs(np.arange(len(by_distance)) - len(by_distance) // 2)
    typical = by_distance[np.argsort(from_median, kind="stable")][:TYPICAL]
    files = []
    for index in typical:
        files.append((splits.folder.paths[pairs.first[index]], splits.folder.paths[pairs.second[index]]))
    explanation = trained.explain(*files, method="gradcam", layer="last")  # any method: its span is asked
    explained = span_of(trained.network, explanation).decisive >= LEAST_SPAN
    return files[int(explained.float().argmax())]  # the first of all where none is explained


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


def choose_layer(trained: Trained, splits: Splits, references: References) -> tuple[str, int, dict[str, float]]:
    """Choose the layer and the number of steps to explain at.

    The gap, insertion minus deletion towards the decision, is measured on at most PAIRS validation pairs. Layers are
    compared with FIRST_STEPS, at first on BATCH pairs, the FINALISTS on all. Of these, the finest that reaches ENOUGH
    of the best is chosen; of STEPS there, the fewest. What config.yml names is not searched.

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
    batches = trained.load_batches(splits.files(splits.valid_pairs, PAIRS, trained.config.seed))
    first_steps = numbers[0]
    if len(numbers) > 1:
        first_steps = FIRST_STEPS
    show = trained.config.hyperparameters.verbose
    gaps = {}

    def gap(layer, steps, few=False):
        name = f"{layer} in {steps}"
        part = batches
        if few:
            name += f" ({len(batches[0])} pairs)"
            part = batches[:1]
        if name not in gaps:
            gaps[name] = _mean_gap(trained, part, references, layer, steps)
        return gaps[name]

    if len(layers) > FINALISTS and len(batches) > 1:
        first_gaps = {layer: gap(layer, first_steps, few=True) for layer in progress(layers, "Layers", show)}
        best = sorted(layers, key=first_gaps.get)[-FINALISTS:]
        layers = [layer for layer in layers if layer in best]
    layer = _first_good({layer: gap(layer, first_steps) for layer in progress(layers, "Layers", show)})
    steps = _first_good({steps: gap(layer, steps) for steps in progress(numbers, "Steps", show)})
    return layer, steps, gaps


def _mean_gap(trained, batches, references, layer, steps) -> float:
    """Return insertion minus deletion, averaged over all pairs."""
    settings = replace_auto(trained.config.explanation, layer, steps).model_dump()
    gaps = []
    for images in batches:
        explanation = explain(trained.network, images, trained.threshold, references, **settings)
        gaps.append(insertion_deletion(trained.network, explanation).decisive.cpu())
    return float(torch.cat(gaps).mean())


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
