"""A trained network at work: from its checkpoint, through the distances of pairs, to metrics.json."""

import json
import os
from dataclasses import dataclass

import numpy as np
import torch

from utils.cache import decode
from utils.checkpoint import fingerprint, load_checkpoint
from utils.config import Config
from utils.delivery import deliver
from utils.images import DataError
from utils.metrics import evaluate_distances
from utils.pairs import Pairs, Splits, load_splits
from utils.parallel import gather, share
from utils.runtime import Runtime, progress, start
from utils.siamese import SiameseNetwork, distance, evaluating, folded
from utils.transforms import evaluation_transform, stored_size

# what a network was trained with holds for it ever after, whatever config.yml says later
TRAINED_KEYS = (
    "backbone_model",
    "embedding_size",
    "image",
    "margin",
    "number_of_iterations",
    "test_size",
    "valid_size",
    "seed",
)


@dataclass(frozen=True)
class Trained:
    """A trained network with all that its use needs.

    threshold: distance up to which a pair is decided "same", chosen on validation. config: the current settings, with
    the TRAINED_KEYS of the training run. images: digest of the image files then. seconds: training time up to the
    chosen epoch.
    """

    network: SiameseNetwork
    config: Config
    runtime: Runtime
    threshold: float
    classes: tuple[str, ...]
    history: tuple[dict, ...]
    images: str

    @property
    def seconds(self) -> float:
        return sum(epoch["seconds"] for epoch in self.history)

    def load_splits(self) -> Splits:
        """The splits of the training run; one line says so if the image files have changed since."""
        splits = load_splits(self.config)
        if fingerprint(self.config, splits.folder)["images"] != self.images:
            print(
                f"The images in {splits.folder.root} have changed since training: test pairs may hold training images."
            )
        return splits

    def load_images(self, *paths) -> torch.Tensor:
        """Image files as the network takes them: float32 (B, 3, h, w) on its device."""
        pixels = np.stack([decode(path, stored_size(self.config.image)) for path in paths])
        return self.runtime.place(evaluation_transform(self.config.image)(torch.from_numpy(pixels)))

    def distances(self, splits: Splits, pairs: Pairs) -> np.ndarray:
        """Distances float32 (P,) of the pairs."""
        return pair_distances(self.network, splits, pairs, self.config, self.runtime)

    def __str__(self):
        best = self.history[-1]
        return (
            f"{self.config.backbone_model} after epoch {len(self.history)}, validation AUC {best['valid_auc']:.3f}\n"
            f"trained on {len(self.classes)} classes: {', '.join(self.classes)}\n"
            f'decides "same" up to a distance of {self.threshold:.3f} (similarity {1 - self.threshold / 2:.3f})'
        )


def load_trained(config: Config, runtime: Runtime | None = None) -> Trained:
    """The best network of the last training run, folded for evaluation, on the device of `runtime`.

    Where config.yml has changed since in a key that the network depends on, the checkpoint's value is used and one
    line says so. Raises CheckpointError when best.pt cannot be loaded.
    """
    runtime = runtime or start(config)
    content = load_checkpoint(config.checkpoints_path / "best.pt", runtime.device)
    now, then = config.model_dump(mode="json"), content["config"]
    changed = [key for key in TRAINED_KEYS if now[key] != then[key]]
    if changed:
        print(f"config.yml has changed since training in {', '.join(changed)}: the checkpoint's values are used.")
        config = Config.model_validate_json(json.dumps(now | {key: then[key] for key in changed}))
    network = SiameseNetwork(config.backbone_model, config.embedding_size)
    network.load_state_dict(content["network"])
    return Trained(
        runtime.place(folded(network, runtime.dtype)),
        config,
        runtime,
        content["threshold"],
        tuple(content["classes"]),
        tuple(content["history"]),
        content["fingerprint"]["images"],
    )


@torch.no_grad()
def embed_images(network, pixels, indices, config: Config, runtime: Runtime) -> torch.Tensor:
    """Embeddings of the images `indices`, int64 (N,), of `pixels`: float32 (N, embedding_size) on the CPU.

    The network is in evaluation mode meanwhile; one that `folded` made is faster. Under torchrun each process embeds
    its share and gets all.
    """
    transform, size, own = evaluation_transform(config.image), config.hyperparameters.batch_size, share(indices)
    batches = np.array_split(own, -(-len(own) // size) or 1)
    bar = progress(deliver(pixels, batches, runtime), "Embedding", config.hyperparameters.verbose, len(batches))
    with evaluating(network):
        embeddings = torch.cat([network(runtime.place(transform(part))) for part in bar])
    return gather(embeddings, len(indices)).cpu()


def pair_distances(network, splits: Splits, pairs: Pairs, config: Config, runtime: Runtime) -> np.ndarray:
    """Distances float32 (P,) of the pairs; each image is embedded once, however many pairs it is in."""
    used, positions = np.unique(np.concatenate([pairs.first, pairs.second]), return_inverse=True)
    embeddings = embed_images(network, splits.pixels, used, config, runtime)
    return distance(*embeddings[torch.from_numpy(positions)].chunk(2)).numpy()


def test_metrics(trained: Trained, splits: Splits, distances: np.ndarray) -> dict:
    """Metrics of the test pairs at the validation threshold, also written to `results_path`/metrics.json.

    The keys are those of `evaluate_distances`, and `seconds`: training time up to the chosen epoch.
    """
    metrics = evaluate_distances(distances, splits.test_pairs.labels, trained.threshold)
    metrics["seconds"] = round(trained.seconds, 1)
    folder = trained.config.results_path
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".metrics.json"
    temporary.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "metrics.json")
    return metrics


def inference_paths(config: Config, default: tuple[str, str]) -> tuple[str, str]:
    """The two images of `inference` in config.yml; without them, `default`."""
    if config.inference.image1 is not None:
        return str(config.inference.image1), str(config.inference.image2)
    return default


def typical_pairs(trained: Trained, splits: Splits, distances: np.ndarray):
    """Image paths of a test pair decided "same" and of one decided "different", each rightly if there is such a pair.

    Typical: at the median distance of its kind. Raises DataError where all pairs are decided alike.
    """
    labels, decided, chosen = splits.test_pairs.labels, distances > trained.threshold, []
    for label, word in enumerate(("same", "different")):
        candidates = np.flatnonzero(decided == label)
        if not len(candidates):
            raise DataError(f'no test pair is decided "{word}" at the threshold {trained.threshold:.3f}: train longer.')
        rightly = candidates[labels[candidates] == label]
        candidates = rightly if len(rightly) else candidates
        median = candidates[np.argsort(distances[candidates])[len(candidates) // 2]]
        chosen.append(
            tuple(splits.folder.paths[side[median]] for side in (splits.test_pairs.first, splits.test_pairs.second))
        )
    return tuple(chosen)
