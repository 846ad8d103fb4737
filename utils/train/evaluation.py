"""Embeddings of the images of a split, each computed once, and the distances of its pairs."""

from dataclasses import dataclass

import numpy as np
import torch

from ..config import Config
from ..data.batches import deliver, evaluation_transform
from ..data.splits import Pairs, Splits
from ..device import Runtime, gather, progress, share
from ..network.distance import distance, evaluating
from ..network.siamese import SiameseNetwork
from ..network.variants import folded
from ..score.intervals import Interval, auc_interval


@torch.no_grad()
def embed_images(network, pixels, indices, config: Config, runtime: Runtime) -> torch.Tensor:
    """Embed images; under torchrun each process embeds its share and gets all.

    Args:
        network: In any mode, which stays as it is; a network that `folded` made is faster.
        pixels: Of all images.
        indices: Of the images to embed, int64 (N,).
        config: The settings.
        runtime: Where to compute.

    Returns:
        float32 (N, embedding_size) on the CPU.
    """
    transform = evaluation_transform(config.image)
    own = share(indices)
    count = max(1, -(-len(own) // config.hyperparameters.batch_size))
    batches = np.array_split(own, count)
    delivered = deliver(pixels, batches, runtime)
    embeddings = []
    with evaluating(network):
        for batch in progress(delivered, "Embedding", config.hyperparameters.verbose, count):
            embeddings.append(network(runtime.place(transform(batch))))
    return gather(torch.cat(embeddings), len(indices)).cpu()


def pair_distances(network, splits: Splits, pairs: Pairs, config: Config, runtime: Runtime) -> np.ndarray:
    """Return the distances of the pairs, float32 (P,); each image is embedded once, however many pairs it is in."""
    images = np.stack([pairs.first, pairs.second])  # (2, P)
    used, rows = np.unique(images, return_inverse=True)
    embeddings = embed_images(network, splits.pixels, used, config, runtime)
    first, second = torch.from_numpy(rows.reshape(images.shape))
    return distance(embeddings[first], embeddings[second]).numpy()


@dataclass(frozen=True)
class Baseline:
    """How well the pretrained embedding decides the test pairs before any training."""

    auc: Interval | None
    """AUC of the test pairs; None without pretrained weights."""

    def __str__(self):
        if self.auc is None:
            return "pretrained: False: there is no embedding before training"
        return f"The pretrained backbone without training: test AUC {self.auc}"


def frozen_baseline(config: Config, splits: Splits, runtime: Runtime) -> Baseline:
    """Measure the backbone's own embedding on the test pairs: its last map, pooled, at length 1.

    No random numbers are drawn.

    Raises:
        ConfigError: The `pretrained` weights cannot be loaded.
    """
    if not config.pretrained:
        return Baseline(None)
    with torch.random.fork_rng(devices=[]):  # every weight is replaced
        network = SiameseNetwork(config.backbone_model, None, config.pretrained, config.image.size)
    network = runtime.place(folded(network, runtime.dtype))
    distances = pair_distances(network, splits, splits.test_pairs, config, runtime)
    return Baseline(auc_interval(distances, splits.test_pairs, config.seed))
