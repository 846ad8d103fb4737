"""A trained network with all that its use needs."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .config import AUTO, Config, DecisionSettings, ExplanationSettings
from .data.batches import evaluation_transform
from .data.corrections import Corrections, read_corrections
from .data.images import listed, scan
from .data.reading import decode, stored_size
from .data.splits import Pairs, Splits, load_splits
from .device import Runtime, find_runtime, progress, rank
from .explanations.explanation import UNTESTED, Explanation, Source, embed_explained, only_pair
from .explanations.methods import explain, methods_of, name_of, replace_auto
from .explanations.references import References, class_of
from .files import printable
from .network.distance import Explainable, distance, evaluating, paired
from .network.siamese import SiameseNetwork
from .network.variants import folded
from .score.calibration import Calibration
from .score.decision import choose_band, images_to_decide, threshold_by_rule
from .score.intervals import Interval, image_count
from .train import runs
from .train.evaluation import pair_distances

BATCH = 16  # pairs that are explained together
RULES = {  # of the key `decision.rule`, in words
    "balanced": "the best balanced accuracy",
    "eer": "equal error rates",
    "fmr": "a false match rate of at most {:g}",
}
UNCALIBRATED = "Not calibrated: there are no references"


@dataclass(frozen=True)
class Measurements:
    """What is measured once after training and saved in the checkpoint: explanations and probabilities need it."""

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
        auc, calibration = Interval(**content["auc"]), Calibration(**content["calibration"])
        return cls(tuple(content["names"]), content["embeddings"], auc, calibration)

    def __str__(self):
        return f"test AUC {self.auc}, {len(self.names)} training images as references"


@dataclass(frozen=True)
class Trained:
    """A trained network with all that its use needs. A pair of image files is a tuple of two paths."""

    network: Explainable
    """A SiameseNetwork, or a `Cut` that was trained elsewhere."""
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
    """Of the image files and their corrections during training."""
    folder: Path | None
    """Of the run; None for a network that was trained elsewhere."""
    corrections: Corrections
    """Of the images in `data_path`, as they are now."""
    measurements: Measurements | None = None
    """None before `calibrate`."""

    @property
    def run(self) -> str:
        """The name of the run; of a network that was trained elsewhere, the name of its class."""
        if self.folder is None:
            return type(getattr(self.network, "module", self.network)).__name__
        return self.folder.name

    @property
    def description(self) -> str:
        """What the network is, in words."""
        if self.folder is None:
            return f"{self.run}, trained elsewhere"
        return self.config.backbone_model + (", pretrained" if self.config.pretrained else "")

    @property
    def settings(self) -> ExplanationSettings:
        """The settings `explanation` of config.yml, with `auto` replaced by the layers of this network."""
        return replace_auto(self.config.explanation, self.network)

    @property
    def method(self) -> str:
        """The name of the method of the settings, a key of `methods_of`."""
        return name_of(self.settings)

    @property
    def references(self) -> References | None:
        """The reference images as the network sees them; None before `calibrate`."""
        if self.measurements is None:
            return None
        names = self.measurements.names
        corrected = self.corrections.of_names(names)
        return References(self.measurements.embeddings.to(self.runtime.device), names, corrected)

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
        """Return the splits of the training run; print a line if files or corrections have changed since."""
        splits = load_splits(self.config)
        if runs.images_digest(splits) != self.images_digest and rank() == 0:
            root = splits.folder.root
            print(
                f"The images in {root} or their corrections have changed since training: test pairs may hold training "
                "images."
            )
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

    def load_references(self) -> torch.Tensor | None:
        """Load the reference images, (R, 3, h, w), for another network to embed; None before `calibrate`."""
        if self.measurements is None:
            return None
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
        table["class"] = [class_of(name, references.corrected) for name in references.names]
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
        folder1, folder2 = map(self.corrections.folder_of, pair)
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

    def __repr__(self):
        return str(self)

    def __str__(self):
        state = "without training (epochs: 0)"
        if self.history:
            state = f"after epoch {len(self.history)}, validation AUC {self.history[-1]['valid_auc']:.3f}"
        if self.folder is None:
            image = self.config.image
            mean, std = map(list, (image.normalization.mean, image.normalization.std))
            network = [
                f"{self.description}, config {self.config.source}",
                f"takes images of {image.size[0]} x {image.size[1]}, normalised by mean {mean} and std {std}",
            ]
        else:
            network = [
                f"Run {self.run} of {self.folder.parent}, config {self.config.source}",
                f"{self.config.backbone_model} {state}",
            ]
        lines = [
            *network,
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
        corrections = dict(content.get("corrections", {}))  # which runs of earlier versions have not
        measurements = content.get("measurements")
        if measurements is not None:
            measurements = Measurements.from_dict(measurements)
    if rank() == 0:
        for change in runs.changed_since(then, config, runs.TRAINED_KEYS):
            print(f"{change}: the latter is used.")
        for change in runs.changed_since(then, config, runs.COURSE_KEYS):
            print(f"{change}: notebook 01 would train again.")
    corrections = _corrections_now(config, corrections)
    settings = config.model_dump(mode="json") | then.model_dump(mode="json", include=set(runs.TRAINED_KEYS))
    config = Config.model_validate(settings).from_source(config.source)
    if config.explanation.layer != AUTO:
        network.check_layer(config.explanation.layer)
    threshold, band = limits(distances, pairs, config.decision)
    network = runtime.place(folded(network, runtime.dtype))
    validation = pairs, distances
    return Trained(
        network,
        config,
        runtime,
        threshold,
        band,
        validation,
        classes,
        history,
        digest,
        folder,
        corrections,
        measurements,
    )


def limits(distances: np.ndarray, pairs: Pairs, decision: DecisionSettings) -> tuple[float, tuple[float, float] | None]:
    """Choose the threshold and the band of undecided distances (None without one) on validation pairs.

    Args:
        distances: float32 (P,).
        pairs: The P pairs.
        decision: The section `decision` of config.yml.
    """
    threshold = threshold_by_rule(distances, pairs.labels, decision)
    band = None
    if decision.abstain is not None:
        band = choose_band(distances, pairs, threshold, decision.abstain)
    return threshold, band


def _corrections_now(config, then) -> Corrections:
    """Return the corrections as they are now; print a line if they differ from `then`, those during training.

    Where the images are out of reach, those during training are returned.
    """
    root = config.data_path
    if not root.is_dir():
        return Corrections(root, then)
    now = {}
    if config.corrections is not None:
        now = read_corrections(config.corrections, scan(root))
    changed = [name for name in now | then if now.get(name, "") != then.get(name, "")]
    if changed:
        print(f"corrections: those of {len(changed)} images have changed since training: {listed(changed, shown=3)}.")
    return Corrections(root, now)


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
