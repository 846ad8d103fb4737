"""What explanations and probabilities rest on, measured once after training and kept in the checkpoint."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .config import AUTO, Config, ConfigError, ExplanationSettings
from .data.cache import decode
from .data.splits import Pairs, Splits, load_splits
from .data.transforms import evaluation_transform, stored_size
from .device import Runtime, find_runtime, progress
from .explanations.explanation import UNTESTED, Explanation, Source, embed_explained, only_pair
from .explanations.methods import BY_PATH, explain, measured, methods_of, name_of
from .explanations.path import References, embed_references
from .files import printable, write_text
from .network.distance import distance, evaluating, paired
from .network.siamese import SiameseNetwork
from .network.variants import folded
from .score.calibration import Calibration, fit_calibration
from .score.decision import choose_band, images_to_decide, threshold_by_rule
from .score.intervals import Interval, auc_interval, image_count
from .score.metrics import Metric, Metrics, evaluate, retrieval_metrics, retrieval_rates
from .train.evaluation import Baseline, embed_images, pair_distances
from .train.runs import (
    BEST,
    COURSE_KEYS,
    TRAINED_KEYS,
    CheckpointError,
    changed_since,
    claimed,
    damaged,
    images_digest,
    load_run,
    run_to_load,
    save_checkpoint,
)
from .trust.faithfulness import insertion_deletion


@dataclass(frozen=True)
class Measurements:
    """What explanations of a network rest on, measured once after training and kept in its checkpoint.

    asked: method, layer, output_stride and steps of the config then, and the threshold. layer, steps: what `auto` among
    them means, chosen on validation pairs. gaps: insertion minus deletion of each choice tried. names, embeddings: of
    the reference images, "class/file", float32 (R, D). auc: of the test pairs, with its 95 % interval. calibration:
    from distance to probability.
    """

    asked: dict[str, str | int | float]
    layer: str
    steps: int
    gaps: dict[str, float]
    names: tuple[str, ...]
    embeddings: torch.Tensor
    auc: Interval
    calibration: Calibration

    @classmethod
    def from_dict(cls, content: dict) -> "Measurements":
        """The opposite of `dataclasses.asdict`."""
        parts = {"auc": Interval(**content["auc"]), "calibration": Calibration(**content["calibration"])}
        return cls(**content | parts)

    @property
    def warning(self) -> str:
        """What every figure says first of a network that may know nothing."""
        if not self.auc.low <= 0.5 <= self.auc.high:
            return ""
        return f"BEWARE: this network may know nothing: its test AUC is {self.auc}, and 0.5 is guessing."

    def __str__(self):
        tried = ", ".join(f"{name} {gap:+.3f}" for name, gap in self.gaps.items())
        measured_on = f"\nInsertion minus deletion on validation pairs: {tried}" if tried else ""
        return (
            f"`auto` is {self.layer} and {self.steps} steps, chosen for {self.asked['method']}; "
            f"test AUC {self.auc}{measured_on}"
        )


BATCH = 16  # pairs that are explained together
UNCALIBRATED = "Not calibrated: `auto` stands for the last layer, and there are no references"


@dataclass(frozen=True)
class Trained:
    """A trained network with all that its use needs. A pair of image files is a tuple of two paths.

    threshold: distance up to which a pair is decided "same"; band: two distances between which pairs are undecided, or
    None; both chosen on validation, as `decision` in config.yml says. validation: the validation pairs and their
    distances, float32 (P,). config: the current settings, with the TRAINED_KEYS of the training run. images_digest: of
    the image files then. folder: of the run. measurements: None before `calibrate`.
    """

    network: SiameseNetwork
    config: Config
    runtime: Runtime
    threshold: float
    band: tuple[float, float] | None
    validation: tuple[Pairs, np.ndarray]
    classes: tuple[str, ...]
    history: tuple[dict, ...]
    images_digest: str
    folder: Path
    measurements: Measurements | None = None

    @property
    def settings(self) -> ExplanationSettings:
        """Those of `explanation` in config.yml, with `auto` replaced by what was measured."""
        if self.measurements is None:
            return measured(self.config.explanation)
        return measured(self.config.explanation, self.measurements.layer, self.measurements.steps)

    @property
    def method(self) -> str:
        """The name of the method of the settings, as `methods_of` has it."""
        return name_of(self.settings)

    @property
    def references(self) -> References | None:
        """The reference images as the network sees them; None before `calibrate`."""
        if self.measurements is None:
            return None
        return References(self.measurements.embeddings.to(self.runtime.device), self.measurements.names)

    @property
    def warning(self) -> str:
        """What every figure and page says first of a network that may know nothing; "" of one that knows something."""
        return self.measurements.warning if self.measurements else UNTESTED

    @property
    def source(self) -> Source:
        """What is known of any pair of image files: all but the files and their classes."""
        return Source(
            normalization=self.config.image.normalization,
            value_range=self.config.image.value_range,
            warning=self.warning,
            band=self.band,
            calibration=self.measurements and self.measurements.calibration,
        )

    @property
    def seconds(self) -> float:
        """Training time up to the chosen epoch."""
        return sum(epoch["seconds"] for epoch in self.history)

    def load_splits(self) -> Splits:
        """The splits of the training run; one line says so if the image files have changed since."""
        splits = load_splits(self.config)
        if images_digest(splits) != self.images_digest:
            root = splits.folder.root
            older = "or the run is of an earlier version of this project"
            print(f"The images in {root} have changed since training, {older}: test pairs may hold training images.")
        return splits

    def load_images(self, *paths) -> torch.Tensor:
        """N image files as the network takes them: float32 (N, 3, h, w) on its device.

        Raises DataError for an image that cannot be decoded.
        """
        settings = stored_size(self.config.image), self.config.max_megapixels, self.config.image.value_range
        pixels = np.stack([decode(path, *settings) for path in paths])  # (N, h, w, 3)
        return self.runtime.place(evaluation_transform(self.config.image)(torch.from_numpy(pixels)))

    def load_pairs(self, *pairs) -> torch.Tensor:
        """B pairs of image files as the network takes them: float32 (B, 2, 3, h, w) on its device.

        Raises ValueError for what is no pair, DataError for an image that cannot be decoded.
        """
        return paired(self.load_images(*files_of(pairs)))

    def load_batches(self, pairs) -> list[torch.Tensor]:
        """The same in batches of BATCH pairs."""
        return [self.load_pairs(*pairs[start : start + BATCH]) for start in range(0, len(pairs), BATCH)]

    def load_references(self) -> torch.Tensor:
        """The reference images themselves, (R, 3, h, w): another network sees them otherwise."""
        return self.load_images(*(self.config.data_path / name for name in self.measurements.names))

    def distances(self, splits: Splits, pairs: Pairs) -> np.ndarray:
        """Distances float32 (P,) of the pairs."""
        return pair_distances(self.network, splits, pairs, self.config, self.runtime)

    def probabilities(self, distances: np.ndarray) -> np.ndarray | None:
        """That pairs of these distances, float (P,), are of one class, float32 (P,); None before preparing."""
        if self.measurements is None:
            return None
        return self.measurements.calibration(torch.from_numpy(distances))[:, 0].numpy()

    def explain(self, *pairs, **changes) -> Explanation:
        """Explain B pairs of image files by the method of `explanation` in config.yml, with `changes` to its keys."""
        settings = self.settings.model_dump() | changes
        images = self.load_pairs(*pairs)
        return explain(self.network, images, self.threshold, self.references, self._source_of(pairs), **settings)

    def explain_by_all(self, *pairs) -> dict[str, Explanation]:
        """The same by every method of `methods_of`, by name."""
        images = self.load_pairs(*pairs)
        return {
            name: method(self.network, images, self.threshold, self.references, self._source_of(pairs))
            for name, method in methods_of(self.settings).items()
        }

    def donors(self, explanation: Explanation, count=2) -> Explanation | None:
        """Image 1 of one explained pair beside the nearest reference images of other classes, explained; None without.

        What `smallest_edit` puts into image 1 of a pair decided "same": `count` references of as many classes, each
        decided "different" from both images. Not of image 1's class, or, where that is not known, of its nearest
        reference's.
        """
        only_pair(explanation)
        references = self.references
        if references is None or explanation.source.paths is None:
            return None
        with evaluating(self.network), torch.no_grad():
            embeddings = embed_explained(self.network, explanation)[0].float()  # (2, D)
        apart = distance(references.embeddings[:, None], embeddings)  # (R, 2)
        far = (apart > explanation.threshold).all(dim=1)
        order = apart[:, 0].argsort().tolist()
        classes = [name.split("/")[0] for name in references.names]
        known = explanation.classes()
        own = known[0] if known else classes[order[0]]
        nearest = {}  # of each class
        for index in order:
            if far[index] and classes[index] != own:
                nearest.setdefault(classes[index], references.names[index])
        path1 = explanation.source.paths[0][0]
        pairs = [(path1, str(self.config.data_path / name)) for name in list(nearest.values())[:count]]
        return self.explain(*pairs) if pairs else None

    def _source_of(self, pairs) -> Source:
        """What is known of pairs of image files."""
        classes = tuple(self._classes_of(pair) for pair in pairs)
        return replace(self.source, paths=pairs, classes=classes)

    def _classes_of(self, pair):
        """The true classes of two files of the dataset; None where one is from elsewhere."""
        folders = [Path(path).parent for path in pair]
        root = self.config.data_path.resolve()
        if any(folder.parent.resolve() != root for folder in folders):
            return None
        return tuple(folder.name for folder in folders)

    def _decides(self):
        """How a pair is decided, in words."""
        decision = self.config.decision
        rules = {
            "balanced": "the best balanced accuracy",
            "eer": "equal error rates",
            "fmr": f"a false match rate of at most {decision.fmr:g}",
        }
        lines = [
            f'decides "same" up to a distance of {self.threshold:.3f} (similarity {1 - self.threshold / 2:.3f}), for '
            f"{rules[decision.rule]} on {len(self.validation[0])} validation pairs"
        ]
        if self.band is not None:
            low, high = self.band
            most = f"{100 * decision.abstain:.4g} %"
            lines.append(
                f"undecided from {max(low, 0):.3f} to {min(high, 2):.3f}, so that in nine of ten validation sets at "
                f'most {most} of the pairs decided "same", and of those decided "different", are wrong'
            )
            for word, limit in (("same", low), ("different", high)):
                if not math.isfinite(limit):
                    lines.append(f'no pair is decided "{word}": {self._why_undecided()}')
        return "\n".join(lines)

    def _why_undecided(self):
        """Why a side is never decided, and what helps."""
        abstain = self.config.decision.abstain
        images = image_count(self.validation[0])
        needed = images_to_decide(abstain)
        if images < needed:
            return (
                f"abstain: {abstain:g} needs at least {needed} validation images, and there are {images}; raise "
                "valid_size, add images or raise abstain (a higher number_of_iterations does not help)"
            )
        return (
            f"its error rate on {images} validation images is too high or too uncertain for abstain: {abstain:g}; "
            "raise abstain or improve the network, or, where few of the validation pairs are wrong, raise valid_size"
        )

    def __str__(self):
        if self.history:
            state = f"after epoch {len(self.history)}, validation AUC {self.history[-1]['valid_auc']:.3f}"
        else:
            state = "as it comes, not trained here (epochs: 0)"
        return printable(
            f"Run {self.folder.name} of {self.folder.parent}, config {self.config.source}\n"
            f"{self.config.backbone_model} {state}\n"
            f"{len(self.classes)} classes: {', '.join(self.classes)}\n"
            f"{self._decides()}\n"
            f"{self.measurements or UNCALIBRATED}"
        )


def files_of(pairs) -> list:
    """The files of pairs, one after the other. Raises ValueError where there is no pair, or what is no pair."""
    if not pairs or any(isinstance(pair, str | Path) or len(pair) != 2 for pair in pairs):
        raise ValueError("a pair is a tuple of two image files: (path1, path2), (path3, path4), ...")
    return [path for pair in pairs for path in pair]


def load_trained(config: Config, runtime: Runtime | None = None) -> Trained:
    """The best network of the current training run, or of the one that `run` names, folded for evaluation, on the
    device of `runtime`.

    Where config.yml has changed since in a key that the network depends on, the checkpoint's value is used and a line
    says so. Nothing random is drawn or seeded. Raises CheckpointError when there is no such run or its best.pt cannot
    be loaded, ConfigError when `explanation.layer` is no layer of the backbone.
    """
    runtime = runtime or find_runtime(config)
    folder = run_to_load(config)
    path = folder / BEST
    content = load_run(path, runtime.device)
    then = content["config"]
    for change in changed_since(then, config, TRAINED_KEYS):
        print(f"{change}: the latter is used.")
    for change in changed_since(then, config, COURSE_KEYS):
        print(f"{change}: notebook 01 would train anew.")
    settings = config.model_dump(mode="json") | {key: then[key] for key in TRAINED_KEYS}
    config = Config.model_validate(settings).from_source(config.source)
    own = "embedding.weight" not in content["network"]  # the backbone's own embedding, with `epochs: 0`
    with torch.random.fork_rng(devices=[]):  # the weights are those of the checkpoint
        network = SiameseNetwork(
            config.backbone_model, None if own else config.embedding_size, image_size=config.image.size
        )
    try:
        network.load_state_dict(content["network"])
    except RuntimeError as error:
        cause = "its network is another one, perhaps of an earlier version of this project, whose backbones were others"
        raise damaged(path, cause) from error
    if config.explanation.layer != AUTO:
        network.check_layer(config.explanation.layer)
    measurements = content.get("measurements")
    if measurements:
        _check_measurements(measurements, network, path)
    pairs, distances = _validation(content)
    threshold = threshold_by_rule(distances, pairs.labels, config.decision)  # whatever the network is worth
    abstain = config.decision.abstain
    return Trained(
        runtime.place(folded(network, runtime.dtype)),
        config,
        runtime,
        threshold,
        abstain and choose_band(distances, pairs, threshold, abstain),
        (pairs, distances),
        tuple(content["classes"]),
        tuple(content["history"]),
        content["fingerprint"]["images"],
        folder,
        measurements and Measurements.from_dict(measurements),
    )


def _check_measurements(measurements, network, path):
    """Raises CheckpointError for a layer that the network does not have, and references of another length."""
    try:
        network.check_layer(measurements["layer"])
    except ConfigError as error:
        raise damaged(path, f"measurements.layer: {error}") from error
    if measurements["embeddings"].shape[1] != network.embedding_size:
        raise damaged(path, "measurements.embeddings: they are of another length than those of the network")


def _validation(content) -> tuple[Pairs, np.ndarray]:
    """The validation pairs of a checkpoint and their distances."""
    parts = {name: values.cpu().numpy() for name, values in content["validation"].items()}
    distances = parts.pop("distances")
    return Pairs(**parts), distances


def keep(trained: Trained, measurements: Measurements) -> Trained:
    """Write what was measurements into best.pt, whole, and hand on the network that knows it.

    Raises CheckpointError while another process trains in the folder of the runs, and where the run has gone on since
    the network was loaded.
    """
    path = trained.folder / BEST
    with claimed(trained.folder.parent):
        content = load_run(path)
        if len(content["history"]) != len(trained.history):
            raise CheckpointError(f"{path} has gone on since it was loaded: load it again with load_trained.")
        save_checkpoint(path, content | {"measurements": asdict(measurements)})
    return replace(trained, measurements=measurements)


def write_metrics(trained: Trained, splits: Splits, distances: np.ndarray, baseline: Baseline) -> Metrics:
    """All metrics of the test pairs and of the test images as a gallery, written to `results_path`/metrics.json.

    distances: float32 (P,), of the test pairs. The file also has the run, the rule of the decision, and
    `seconds`: training time up to the chosen epoch.

    Raises CheckpointError for a network that was trained on other splits.
    """
    pairs = splits.test_pairs
    config = trained.config
    if not _same(trained.validation[0], splits.valid_pairs):
        raise CheckpointError(
            f"{trained.folder} is a run with other splits: its training images may be among these test images. "
            "Give each config a checkpoints_path of its own, or run notebook 01 from its beginning."
        )
    metrics = evaluate(distances, pairs, trained.threshold, trained.band, trained.probabilities(distances), config.seed)
    embeddings = embed_images(trained.network, splits.pixels, splits.test, config, trained.runtime)
    found = retrieval_metrics(retrieval_rates(embeddings, splits.folder.labels[splits.test]))
    if baseline.auc is not None:
        found += (Metric("frozen_auc", baseline.auc, "AUC of the pretrained backbone as it comes, before training"),)
    facts = metrics.facts | {
        "decision": config.decision.model_dump(),
        "seconds": round(trained.seconds, 1),
        "run": trained.folder.name,
    }
    metrics = Metrics(metrics.metrics + found, facts)
    write_text(config.results_path / "metrics.json", json.dumps(metrics.as_dict(), indent=2) + "\n")
    return metrics


def _same(pairs: Pairs, others: Pairs) -> bool:
    """Whether both are the same pairs of images."""
    return np.array_equal(pairs.first, others.first) and np.array_equal(pairs.second, others.second)


def inference_pair(config: Config, default: tuple[str, str]) -> tuple[str, str]:
    """The two images of `inference` in config.yml; without them, `default`."""
    if config.inference.image1 is None:
        return default
    return str(config.inference.image1), str(config.inference.image2)


def typical_pairs(trained: Trained, splits: Splits):
    """The image files of a test pair decided "same" and of one decided "different", each rightly if there is such a
    pair, at the median distance of its kind. Where all pairs are decided alike, the pair nearest to the other decision
    stands for it, and a line says so.
    """
    distances = trained.distances(splits, splits.test_pairs)
    same = _typical_pair(trained, splits, distances, label=0)
    different = _typical_pair(trained, splits, distances, label=1)
    return same, different


def _typical_pair(trained, splits, distances, label):
    """The pair at the median distance of those decided as `label` says, 0 "same" or 1 "different"."""
    pairs = splits.test_pairs
    same_up_to, different_from = trained.band or (trained.threshold, trained.threshold)
    decided = distances > different_from if label else distances <= same_up_to
    leaning = (distances > trained.threshold) == label
    candidates = np.flatnonzero(decided if decided.any() else leaning)
    if not len(candidates):
        word = ("same", "different")[label]
        print(f'No test pair is decided "{word}": the one nearest to it stands for it. Has the network learnt enough?')
        candidates = np.array([distances.argmax() if label else distances.argmin()])
    rightly = candidates[pairs.labels[candidates] == label]
    if len(rightly):
        candidates = rightly
    by_distance = candidates[np.argsort(distances[candidates])]
    median = by_distance[len(by_distance) // 2]
    return splits.folder.paths[pairs.first[median]], splits.folder.paths[pairs.second[median]]


REFERENCES = 96  # training images, at least
OF_EACH_CLASS = 5  # at least: so many say what an image looks like
PAIRS = 48  # of validation
LAYERS = 6  # at most, spread from the first to the last
FIRST_STEPS = 2  # with which layers are compared
STEPS = (1, 2, 4)  # tried at the chosen layer
UNMEASURED = {"test_pairs", "opacity"}  # keys of `explanation` that change nothing of what is measured here
ENOUGH = 0.85  # of the best gap: a finer map, or a quicker one, is worth the rest


def calibrate(trained: Trained, splits: Splits, distances: np.ndarray) -> Trained:
    """Measure what explanations rest on, keep it in best.pt, and hand on the network that knows it; one that was
    measurements for these settings is handed on as it is.

    References are training images, REFERENCES at least and OF_EACH_CLASS, where there are as many; the layer and the
    steps that `auto` stands for are those of `choose_place`; probabilities are fitted on the validation pairs; the test
    AUC comes with its interval. distances: float32 (P,), of the test pairs.
    """
    asked = trained.config.explanation.model_dump(exclude=UNMEASURED)
    asked |= {"threshold": trained.threshold}  # decisions are what maps explain
    if trained.measurements is not None and trained.measurements.asked == asked:
        return trained
    files = [Path(splits.folder.paths[index]) for index in _references(splits)]
    names = tuple(file.relative_to(splits.folder.root).as_posix() for file in files)
    images = trained.load_images(*files)
    references = embed_references(trained.network, images, names)
    layer, steps, gaps = choose_place(trained, splits, references)
    seed = trained.config.seed
    valid_pairs, valid_distances = trained.validation
    measurements = Measurements(
        asked,
        layer,
        steps,
        gaps,
        names,
        references.embeddings.cpu(),
        auc_interval(distances, splits.test_pairs, seed),
        fit_calibration(valid_distances, valid_pairs, seed),
    )
    return keep(trained, measurements)


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
