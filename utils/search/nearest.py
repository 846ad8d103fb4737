"""Exact search among many embeddings, block by block, or by a library made for it where one is installed."""

from importlib.util import find_spec

import numpy as np
import torch

from utils.network import distance

BLOCK = 65_536  # embeddings at once: 32 MB of 128 dimensions


def nearest(embeddings: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` embeddings nearest to each query, nearest first: indices int64 and distances float32, (Q, count).

    embeddings: float32 (N, D), of length 1, also memory-mapped: they are read block by block. queries: float32 (Q, D),
    of length 1. Fewer than `count` where there are fewer.

    The result is exact, by one matrix product a block. Where faiss or usearch is installed its exact search is taken
    instead. Beyond some millions, build an approximate index of theirs from `Gallery.embeddings`.
    """
    count = min(count, len(embeddings))
    if find_spec("faiss"):
        found = _by_faiss(embeddings, queries, count)
    elif find_spec("usearch"):
        found = _by_usearch(embeddings, queries, count)
    else:
        found = _by_blocks(embeddings, queries, count)
    vectors = torch.from_numpy(np.array(embeddings[found]))  # (Q, count, D)
    apart = distance(vectors, torch.from_numpy(queries)[:, None])  # an inner product near 1 is too coarse
    order = apart.argsort(dim=1, stable=True)
    return np.take_along_axis(found, order.numpy(), axis=1), apart.gather(1, order).numpy()


def _by_blocks(embeddings, queries, count):
    best = torch.empty(len(queries), 0)
    found = torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(embeddings), BLOCK):
        block = embeddings[start : start + BLOCK]
        cosines, places = torch.from_numpy(queries @ block.T).topk(min(count, len(block)), dim=1)
        best, order = torch.cat([best, cosines], dim=1).topk(min(count, best.shape[1] + cosines.shape[1]), dim=1)
        found = torch.cat([found, places + start], dim=1).gather(1, order)
    return found.numpy()


def _by_faiss(embeddings, queries, count):
    import faiss

    return faiss.knn(queries, np.asarray(embeddings), count, metric=faiss.METRIC_INNER_PRODUCT)[1]


def _by_usearch(embeddings, queries, count):
    from usearch.index import MetricKind, search

    found = search(np.asarray(embeddings), queries, count, MetricKind.IP, exact=True)
    return np.asarray(found.keys).astype(np.int64).reshape(len(queries), count)
