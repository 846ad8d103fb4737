"""Seconds of the exact search by both backends: `PYTHONPATH=. python tests/benchmarks/search.py`."""

import argparse
from functools import partial

import numpy as np
from side_by_side import rounds

from utils.search.gallery import nearest

DIMENSIONS = 128
HITS = 10
ROUNDS = 7


def unit_vectors(count, seed):
    vectors = np.random.default_rng(seed).normal(size=(count, DIMENSIONS)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", nargs="*", type=int, default=[100_000, 1_000_000], help="images to search")
    for count in parser.parse_args().counts:
        embeddings = unit_vectors(count, 0)
        for number in (1, 100):
            queries = unit_vectors(number, 1)
            search = partial(nearest, embeddings, queries, HITS)
            procedures = {"sklearn": partial(search, "sklearn"), "faiss": partial(search, "faiss")}
            for backend, seconds in rounds(procedures, ROUNDS).items():
                median, low, high = np.percentile(seconds, [50, 25, 75])
                name = f"{number} of {count:,} x {DIMENSIONS}, {backend}"
                print(f"{name}: {median:.3f} s ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
