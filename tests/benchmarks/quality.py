"""Time to quality: the textbook procedure and ours train for the same wall-clock budget; the test AUC of each."""

import time

import numpy as np
import textbook
import torch
from side_by_side import Row, config
from sklearn.metrics import roc_auc_score

from utils.data import Pairs, draw_pairs, load_splits
from utils.network import build_network, folded
from utils.runtime import seed_everything, start
from utils.training import build_optimizer, build_scaler, pair_distances, train_epoch

RATES = (1e-3, 1e-4)  # of the textbook's Adam; the better one counts
SETTINGS = {
    "image.size": [104, 104],
    "image.VerticalFlip": 0.0,
    "hyperparameters.batch_size": 64,
    "hyperparameters.weight_decay": 0.05,
    "hyperparameters.verbose": False,
    "test_size": 0.15,
    "valid_size": 0.05,
    "number_of_iterations": 5,
    "explanation.layer": "last",
}


def run(folder, data_path, budget: float) -> tuple[list[Row], list[str]]:
    """One row: our test AUC over the textbook's. budget: seconds of training for each."""
    settings = config({**SETTINGS, "data_path": str(data_path), "cache_path": str(folder / "cache")})
    runtime = start(settings)
    splits = load_splits(settings)
    labels = splits.test_pairs.labels
    network = _ours(splits, settings, runtime, budget)
    ours = roc_auc_score(
        labels, pair_distances(folded(network, runtime.dtype), splits, splits.test_pairs, settings, runtime)
    )
    theirs = {}
    for rate in RATES:
        plain = _textbook(splits, settings, rate, budget)
        distances = pair_distances(plain, splits, splits.test_pairs, settings, start(settings))
        theirs[rate] = roc_auc_score(labels, distances)
    best = max(theirs.values())
    name = f"{splits.folder.root.name}, {len(splits.folder.paths)} images"
    note = f"test AUC {ours:.3f} against {best:.3f}"
    others = ", ".join(f"{auc:.3f} with a learning rate of {rate:g}" for rate, auc in theirs.items())
    return [Row(f"test AUC after {budget:.0f} s of training ({name})", "textbook", ours / best, 1, note=note)], [
        f"Time to quality: ResNet18, 104 x 104, {len(labels)} test pairs; the textbook's test AUC: {others}."
    ]


def _ours(splits, settings, runtime, budget):
    seed_everything(settings.seed)
    network = runtime.place(build_network(settings))
    optimizer = build_optimizer(network, settings)
    parts, began, number = {"optimizer": optimizer, "scaler": build_scaler(runtime)}, time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < budget:
        number += 1
        for group in optimizer.param_groups:
            group["lr"] = settings.hyperparameters.learning_rate * (1 - spent / budget)
        train_epoch(network, parts, splits, settings, runtime, number)
    return network


def _textbook(splits, settings, rate, budget):
    seed_everything(settings.seed)
    network = textbook.contiguous(build_network(settings))
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    random, began, portion = np.random.default_rng(settings.seed), time.perf_counter(), 100
    while True:
        pairs = draw_pairs(splits.train, splits.folder.labels, 1, random)
        for chosen in np.array_split(random.permutation(len(pairs)), -(-len(pairs) // portion)):
            if (spent := time.perf_counter() - began) >= budget:
                return network
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - spent / budget)
            part = Pairs(pairs.first[chosen], pairs.second[chosen], pairs.labels[chosen])
            textbook.train(network, optimizer, part, splits.folder.paths, settings.image)
