"""Patience by uncertainty: on histories by hand, and on simulated training whose truth is known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from utils.config import EarlyStopping
from utils.data.splits import Pairs
from utils.score.intervals import auc_interval
from utils.train.loop import _build_scheduler
from utils.train.stopping import (
    best_epoch,
    epochs_waited,
    is_finished,
    kept_epoch,
    lowering_patience,
    stopped_early,
    stopping_patience,
    why_it_ended,
)

OLD = EarlyStopping(patience=10, min_delta=0.0001)
NEW = EarlyStopping(patience="auto", min_delta=0.0001)


def history_of(areas, error=0.01):
    return [{"valid_auc": area, "valid_loss": 0.1, "valid_auc_error": error} for area in areas]


@pytest.mark.parametrize(
    ("areas", "stops"), [([0.5, 0.6, 0.7], False), ([0.7, 0.6, 0.705], True), ([0.7, 0.6], False), ([], False)]
)
def test_early_stopping_counts_epochs_without_improvement(areas, stops):
    assert stopped_early(history_of(areas), EarlyStopping(patience=2, min_delta=0.01)) is stops


def test_best_epoch_is_highest_auc_then_lowest_loss():
    scores = [(0.7, 0.3), (0.9, 0.4), (0.9, 0.2), (0.8, 0.1)]
    assert best_epoch([{"valid_auc": auc, "valid_loss": loss} for auc, loss in scores]) == 3


@pytest.mark.parametrize(("error", "kept"), [(0.0, 3), (0.048, 3), (0.05, 5), (0.2, 6)])
def test_the_latest_epoch_within_one_standard_error_of_the_best_is_kept(error, kept):
    """0.025 below the best is one standard error where half the 95 % interval is 0.049."""
    history = history_of([0.7, 0.8, 0.9, 0.86, 0.875, 0.82], error)
    assert kept_epoch(history) == kept


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.sampled_from([0.0, 0.1, 0.3]))
def test_what_is_kept_at_the_end_was_kept_when_it_was_there(areas, error):
    """Else its checkpoint would have been overwritten, or never written."""
    history = history_of([area / 20 for area in areas], error)
    written = [number for number in range(1, len(history) + 1) if kept_epoch(history[:number]) == number]
    assert written[-1] == kept_epoch(history)


@pytest.mark.parametrize(("error", "epochs"), [(0, 10), (0.02, 10), (0.021, 11), (0.03, 15), (0.13, 65)])
def test_auto_waits_in_proportion_to_the_error_of_the_best_epoch(error, epochs):
    history = [*history_of([0.6], error=0.5), *history_of([0.8], error), *history_of([0.7], error=0.5)]
    assert stopping_patience(history, "auto") == epochs
    assert lowering_patience(history, "auto") == math.ceil(2 * max(1, error / 0.02)) - 1
    assert stopping_patience(history, 3) == lowering_patience(history, 3) == 3
    flat = [*history, *history_of([0.8] * (epochs - 1), error)]
    assert stopped_early(flat, NEW)
    assert not stopped_early(flat[:-1], NEW)


def simulated(images, epochs=40, seed=0, draws=20):
    """A history whose truth rises slowly: two pairs an image, `epochs` times measured anew."""
    random = np.random.default_rng(seed)
    first = np.repeat(np.arange(images), 2)
    second = (first + 1 + random.integers(0, images - 1, len(first))) % images
    pairs = Pairs(first, second, np.arange(len(first)) % 2)
    history = []
    for number in range(epochs):
        apart = 0.6 + 0.02 * number  # an AUC from 0.66 to 0.84, by 0.005 an epoch
        distances = random.normal(apart * pairs.labels)
        auc = auc_interval(distances, pairs, draws=draws)
        area = roc_auc_score(pairs.labels, distances)
        history += history_of([area], (auc.high - auc.low) / 2)
    return history


def times_lowered(history, setting):
    """How often the scheduler of training lowers the rate."""
    config = SimpleNamespace(LRScheduler=SimpleNamespace(factor=0.5, min_lr=0.0), backbone_rate=1.0, early_stopping=NEW)
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=1.0)
    scheduler = _build_scheduler(optimizer, config)
    for number, epoch in enumerate(history, start=1):
        scheduler.patience = lowering_patience(history[:number], setting)
        optimizer.step()
        scheduler.step(epoch["valid_auc"])
    return -math.log2(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("seed", range(3))
def test_noise_of_54_pairs_is_not_chased(seed):
    history = simulated(images=27, seed=seed)
    assert any(stopped_early(history[:number], OLD) for number in range(len(history)))
    assert times_lowered(history, 1) >= 4
    assert not any(stopped_early(history[:number], NEW) for number in range(len(history)))
    assert times_lowered(history, "auto") <= 2


def test_where_the_auc_is_certain_nothing_has_changed():
    history = simulated(images=2500, epochs=2, draws=300)
    assert all(epoch["valid_auc_error"] < 0.02 for epoch in history)
    flat = [*history, *history_of([history[-1]["valid_auc"]] * 9, history[-1]["valid_auc_error"])]
    for number in range(1, len(flat) + 1):
        assert stopping_patience(flat[:number], "auto") == 10
        assert lowering_patience(flat[:number], "auto") == 1


def test_a_run_is_finished_by_its_epochs_or_early(make_config):
    three = make_config({"hyperparameters.epochs": 3})
    rising = history_of([0.5, 0.6, 0.7])
    assert is_finished(rising, three)
    assert not is_finished(rising[:2], three)
    assert not is_finished(history_of([0.5, 0.6, 0.7, 0.8]), three)  # more epochs than are asked for
    impatient = make_config({"hyperparameters.epochs": 9, "early_stopping.patience": 1})
    assert is_finished(history_of([0.7, 0.6]), impatient)


def test_a_schedule_that_ends_is_not_stopped_early(make_config):
    impatient = {"hyperparameters.epochs": 3, "early_stopping.patience": 1, "LRScheduler.schedule": "cosine"}
    config = make_config(impatient)
    assert not is_finished(history_of([0.7, 0.6]), config)
    assert is_finished(history_of([0.7, 0.6, 0.5]), config)


def test_why_it_ended(make_config):
    config = make_config({"hyperparameters.epochs": 20})
    assert why_it_ended(history_of([0.7] * 20), config) == "Training ended after 20 epochs: all of `epochs`."
    history = [*history_of([0.6, 0.7]), *history_of([0.8], 0.024), *history_of([0.8] * 12)]
    assert epochs_waited(history, 0.0001) == 12
    assert why_it_ended(history, config) == (
        "Training ended after 15 epochs: the validation AUC has not risen by more than 0.0001 for 12 epochs, since "
        "epoch 3 (early_stopping.patience: auto is 12 at an uncertainty of ±0.024)."
    )
    counted = make_config({"hyperparameters.epochs": 20, "early_stopping.patience": 12})
    assert why_it_ended(history, counted).endswith("since epoch 3 (early_stopping.patience: 12).")
