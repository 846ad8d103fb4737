"""Several processes compute what one does: the same loss, gradients and metrics from the same batches.

On CPUs this holds only without batch norm, whose statistics are then those of each process's own share.
"""

import json
import math

import numpy as np
import pytest
import torch
from together import in_processes
from worker import epochs, gradients, gradients_of_both, train

from utils import device as parallel
from utils.device import start
from utils.score.metrics import evaluate
from utils.train.loop import fit
from utils.train.runs import current_run, load_checkpoint, run_names
from utils.trained import load_trained

# what is random is drawn by each process for itself, so the comparison goes without augmentation
PLAIN = {"image.HorizontalFlip": 0.0, "image.VerticalFlip": 0.0, "hyperparameters.max_norm": None}
PLAIN |= {"backbone_model": "test_convnext", "image.size": [64, 64]}  # which has no batch norm


def test_alone_nothing_changes():
    rows, network = torch.rand(5, 3, requires_grad=True), torch.nn.Linear(2, 2)
    assert parallel.gather(rows, 5) is rows
    assert parallel.share(np.arange(3)).tolist() == [0, 1, 2]
    assert parallel.distributed(network) is network
    assert parallel.from_first("value") == "value"
    assert (parallel.rank(), parallel.world()) == (0, 1)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("total", [4, 7, 12])
def test_shares_make_up_the_batch(monkeypatch, processes, total):
    monkeypatch.setattr(parallel, "world", lambda: processes)
    shares = []
    for number in range(processes):
        monkeypatch.setattr(parallel, "rank", lambda number=number: number)
        shares.append(parallel.share(np.arange(total)))
    assert np.concatenate(shares).tolist() == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_gradients_are_those_of_one_process(make_config, tmp_path):
    """Of three processes, whose shares are of unequal size."""
    configs = {}
    runs = [("batch", "test_convnext"), ("paper", "test_convnext"), ("batch", "test_vit")]
    for number, (pairs, backbone) in enumerate(runs):
        changes = {**PLAIN, "pairs": pairs, "backbone_model": backbone, "explanation.layer": "last"}
        changes |= {"hyperparameters.batch_size": 11}
        configs[tmp_path / f"{number}.yml"] = make_config(changes, f"{number}.yml")
    printed, results = in_processes(3, gradients_of_both, tmp_path, *configs)
    assert "batch norm" not in "".join(printed)
    for path, config in configs.items():
        check_gradients(results[0][str(path)], config)


def check_gradients(results, config):
    """Compare loss and gradients with those of this process alone."""
    for dtype, tolerance in ((torch.float32, 1e-2), (torch.float64, 1e-12)):  # a float32 near 0 may be on either side
        actual = results[str(dtype)]
        expected = gradients(config, start(config), dtype)
        assert actual["loss"] == pytest.approx(expected["loss"], abs=tolerance)
        assert len(actual["gradients"]) == len(expected["gradients"]) >= 2
        for ours, theirs in zip(actual["gradients"], expected["gradients"], strict=True):
            ours, theirs = (torch.cat([part.flatten() for part in parts]) for parts in (ours, theirs))
            assert (ours - theirs).abs().max() <= tolerance * theirs.norm()  # as clipped to length 1


def test_batch_norm_is_each_processs_own_and_says_so(make_config, tmp_path):
    """Gradients are averaged all the same, and the running statistics are those of the first process in all."""
    path = tmp_path / "config.yml"
    config = make_config({**PLAIN, "backbone_model": "test_resnet", "hyperparameters.epochs": 1})
    printed, results = in_processes(2, gradients_of_both, tmp_path, path)
    message = "batch norm uses only the images of each process"
    assert [text.count(message) for text in printed] == [2, 0]  # for float32 and for float64
    first, second = (result[str(path)] for result in results)
    for dtype in (str(torch.float32), str(torch.float64)):
        torch.testing.assert_close(first[dtype]["gradients"], second[dtype]["gradients"], atol=0, rtol=0)
        torch.testing.assert_close(first[dtype]["buffers"], second[dtype]["buffers"], atol=0, rtol=0)
    alone = gradients(config, start(config), torch.float64)["buffers"]
    together = first[str(torch.float64)]["buffers"]
    assert any(not torch.allclose(ours, theirs) for ours, theirs in zip(together, alone, strict=True))


def test_a_run_of_two_processes_ends_like_one_of_one(make_config, tmp_path):
    changes = {**PLAIN, "hyperparameters.epochs": 2, "hyperparameters.learning_rate": 1e-5}
    alone = fit(make_config({**changes, "checkpoints_path": str(tmp_path / "alone")}))
    make_config(changes)
    (first, second), _ = in_processes(2, train, tmp_path, tmp_path / "config.yml")
    assert first.count("Test AUC") == first.count("Epoch 2/2: loss") == 1
    assert second == ""
    together = load_checkpoint(current_run(tmp_path / "checkpoints") / "last.pt")["history"]
    for key in ("train_loss", "valid_loss", "valid_auc"):
        assert [epoch[key] for epoch in together] == pytest.approx([epoch[key] for epoch in alone], abs=1e-4), key
    trained = load_trained(make_config({**changes, "checkpoints_path": str(tmp_path / "alone")}))
    splits = trained.load_splits()
    expected = evaluate(trained.distances(splits, splits.test_pairs), splits.test_pairs, trained.threshold)
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert metrics["confusion_matrix"] == expected.facts["confusion_matrix"]
    for metric in expected.metrics:
        value = metrics[metric.name]["value"]
        value = math.nan if value is None else value
        assert value == pytest.approx(metric.interval.value, abs=1e-4, nan_ok=True), metric.name
    printed, results = in_processes(2, epochs, tmp_path, tmp_path / "config.yml")
    assert "".join(printed).count("is finished: its results are shown") == 1
    assert [list(result.values()) for result in results] == [[2], [2]]
    more = make_config({**changes, "hyperparameters.epochs": 3})  # and one process can go on with it
    assert len(fit(more)) == 3
    assert len(run_names(tmp_path / "checkpoints")) == 2
