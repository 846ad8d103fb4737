"""Milliseconds a query of the exact search, beside scikit-learn's brute force: `PYTHONPATH=. python
tests/benchmarks/search.py`.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.neighbors import NearestNeighbors

from utils.search.gallery import nearest

DIMENSIONS = 128
HITS = 10
REPEATS = 20


def unit_vectors(count, seed):
    vectors = np.random.default_rng(seed).normal(size=(count, DIMENSIONS)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def milliseconds(search, queries):
    """The median and the ends of the middle half of the times of single queries."""
    times = []
    for query in queries:
        start = time.perf_counter()
        search(query[None])
        times.append(1000 * (time.perf_counter() - start))
    return np.percentile(times, [50, 25, 75])


def main():
    queries = unit_vectors(REPEATS, 1)
    for count in (100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "embeddings.npy"
            np.save(path, unit_vectors(count, 0))
            embeddings = np.load(path, mmap_mode="r")
            sklearn = NearestNeighbors(n_neighbors=HITS, algorithm="brute").fit(np.asarray(embeddings))
            ours = milliseconds(lambda query, embeddings=embeddings: nearest(embeddings, query, HITS), queries)
            theirs = milliseconds(sklearn.kneighbors, queries)
        for name, (median, low, high) in (("ours", ours), ("scikit-learn", theirs)):
            print(f"{count:,} x {DIMENSIONS}, {name}: {median:.1f} ms a query ({low:.1f} to {high:.1f})")
        print(f"ratio of medians: {ours[0] / theirs[0]:.2f}")


if __name__ == "__main__":
    main()
