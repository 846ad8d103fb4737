"""A network at work on a split: the embeddings of its images, each computed once, and the distances of its pairs."""

import numpy as np
import torch

from utils.config import Config
from utils.data import Pairs, Splits, deliver, evaluation_transform
from utils.network import distance, evaluating
from utils.parallel import gather, share
from utils.runtime import Runtime, progress


@torch.no_grad()
def embed_images(network, pixels, indices, config: Config, runtime: Runtime) -> torch.Tensor:
    """Embeddings of the images `indices`, int64 (N,), of `pixels`: float32 (N, embedding_size) on the CPU.

    The network is in evaluation mode meanwhile; one that `folded` made is faster. Under torchrun each process embeds
    its share and gets all.
    """
    transform = evaluation_transform(config.image)
    own = share(indices)
    count = max(1, -(-len(own) // config.hyperparameters.batch_size))
    batches = np.array_split(own, count)
    delivered = deliver(pixels, batches, runtime)
    bar = progress(delivered, "Embedding", config.hyperparameters.verbose, count)
    with evaluating(network):
        embeddings = torch.cat([network(runtime.place(transform(part))) for part in bar])
    return gather(embeddings, len(indices)).cpu()


def pair_distances(network, splits: Splits, pairs: Pairs, config: Config, runtime: Runtime) -> np.ndarray:
    """Distances float32 (P,) of the pairs; each image is embedded once, however many pairs it is in."""
    images = np.stack([pairs.first, pairs.second])  # (2, P)
    used, rows = np.unique(images, return_inverse=True)
    embeddings = embed_images(network, splits.pixels, used, config, runtime)
    first, second = torch.from_numpy(rows.reshape(images.shape))
    return distance(embeddings[first], embeddings[second]).numpy()
