"""Seconds of the exact search by both backends: `PYTHONPATH=. python tests/benchmarks/search.py`."""

import time

import numpy as np

from utils.search.gallery import nearest

DIMENSIONS = 128
HITS = 10
REPEATS = 7


def unit_vectors(count, seed):
    vectors = np.random.default_rng(seed).normal(size=(count, DIMENSIONS)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main():
    for count in (100_000, 1_000_000):
        embeddings = unit_vectors(count, 0)
        for queries in (1, 100):
            for backend in ("sklearn", "faiss"):
                times = []
                for repeat in range(REPEATS):
                    asked = unit_vectors(queries, 1 + repeat)
                    start = time.perf_counter()
                    nearest(embeddings, asked, HITS, backend)
                    times.append(time.perf_counter() - start)
                median, low, high = np.percentile(times, [50, 25, 75])
                name = f"{queries} of {count:,} x {DIMENSIONS}, {backend}"
                print(f"{name}: {median:.3f} s ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
