"""Exact search among many embeddings, block by block, or by a library made for it where one is installed."""

from importlib.util import find_spec

import numpy as np
import torch

BLOCK = 65_536  # embeddings at once: 32 MB of 128 dimensions
SPARE = 16  # more than are asked for: an inner product tells very near embeddings apart too coarsely
ROUNDING = 4e-6  # of a squared distance that is made from an inner product in float32


def nearest(embeddings: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` embeddings nearest to each query, nearest first, of equally near ones the first: indices int64 and
    distances float32, (Q, count).

    embeddings: float32 (N, D), of length 1, also memory-mapped: they are read block by block. queries: float32 (Q, D),
    of length 1. Fewer than `count` where there are fewer.

    The result is exact: candidates come from one matrix product a block, or from the exact search of faiss or usearch
    where one is installed, and are ordered by their distances in float64. Beyond some millions, build an approximate
    index of theirs from `Gallery.embeddings`.
    """
    count = min(count, len(embeddings))
    search = _by_faiss if find_spec("faiss") else _by_usearch if find_spec("usearch") else _by_blocks
    asked = min(count + SPARE, len(embeddings))
    while True:
        found = search(embeddings, queries, asked)  # (Q, asked)
        apart = np.linalg.norm(embeddings[found].astype(np.float64) - queries[:, None], axis=2)
        order = np.lexsort((found, apart), axis=1)
        found, apart = (np.take_along_axis(values, order, axis=1) for values in (found, apart))
        left_out = apart[:, -1] ** 2 - apart[:, count - 1] ** 2  # what was not found is no nearer than the last
        if asked == len(embeddings) or (left_out > ROUNDING).all():
            return found[:, :count], apart[:, :count].astype(np.float32)
        asked = min(2 * asked, len(embeddings))


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
