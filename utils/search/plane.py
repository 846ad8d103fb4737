"""A map of a gallery: its embeddings in two dimensions."""

from importlib.util import find_spec

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

FEW = 5  # images that need no map of neighbourhoods
PERPLEXITY = 30  # neighbours that count: scikit-learn's own, fewer where there are few images


def dataset_map(embeddings: np.ndarray, seed=0) -> np.ndarray:
    """Two coordinates of each image, float32 (N, 2), that keep neighbours near: images near each other are alike.

    Distances between far groups, and the axes, mean nothing. By UMAP where umap-learn is installed, else by t-SNE (van
    der Maaten and Hinton 2008, Visualizing Data using t-SNE), started from the principal components. embeddings:
    float32 (N, D), of a Gallery. The same seed gives the same map.
    """
    count = len(embeddings)
    if count == 1:
        return np.zeros((1, 2), np.float32)
    if count < FEW:
        kept = min(2, count, embeddings.shape[1])
        return np.pad(PCA(kept).fit_transform(embeddings), ((0, 0), (0, 2 - kept))).astype(np.float32)
    if find_spec("umap"):
        import umap

        return umap.UMAP(n_neighbors=min(15, count - 1), random_state=seed, n_jobs=1).fit_transform(embeddings)
    return TSNE(perplexity=min(PERPLEXITY, (count - 1) / 3), init="pca", random_state=seed).fit_transform(embeddings)
