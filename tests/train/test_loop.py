import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import forked, write_images
from test_config import PAPER_CONFIG

from utils import load_config, load_splits, load_trained, write_metrics
from utils.config import ConfigError, inference_pair
from utils.data.cache import PixelCache
from utils.device import start
from utils.network.distance import distance
from utils.network.siamese import build_network
from utils.score.intervals import Interval
from utils.search import ranked
from utils.search.ranked import typical_pairs
from utils.train import loop
from utils.train.evaluation import Baseline, pair_distances
from utils.train.loop import WARM_UP, TrainingError, build_optimizer, fit, set_rates
from utils.train.runs import changed_since, current_run, load_checkpoint
from utils.train.stopping import kept_epoch
from utils.trained import Trained
from utils.trust.faithfulness import Effect


def without_times(history):
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]


@pytest.mark.parametrize("pairs", ["batch", "paper"])
def test_training_learns_what_can_be_learned(make_config, pairs):
    config = make_config({"hyperparameters.epochs": 4, "pairs": pairs})
    splits = load_splits(config)
    history = fit(config, splits)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    trained = load_trained(config)
    distances, labels = trained.distances(splits, splits.test_pairs), splits.test_pairs.labels
    metrics = write_metrics(trained, splits, distances, Baseline(Interval(0.75, 0.7, 0.8)))
    assert metrics["auc"].interval.value > 0.9  # three colours
    written = json.loads((config.results_path / "metrics.json").read_text())
    assert written == metrics.as_dict()
    assert written["frozen_auc"]["value"] == 0.75
    assert written["pairs"] == len(labels) == 2 * len(splits.test)
    kept = load_checkpoint(trained.folder / "best.pt")
    assert len(kept["history"]) == kept_epoch(history)
    assert trained.classes == ("blue", "green", "red")
    same, different = typical_pairs(trained, splits)
    assert same[0].split("/")[-2] == same[1].split("/")[-2]
    assert different[0].split("/")[-2] != different[1].split("/")[-2]


def test_the_papers_config_trains_as_it_is_but_small(tiny_data, tmp_path):
    (tmp_path / "paper.yml").write_text(PAPER_CONFIG)
    changes = [f"data_path={tiny_data}", "pretrained=False", "image.size=[32, 40]", "hyperparameters.epochs=1"]
    changes += [f"checkpoints_path={tmp_path}", f"cache_path={tmp_path}", f"results_path={tmp_path}", "valid_size=0.3"]
    config = load_config(tmp_path / "paper.yml", [*changes, "test_size=0.3"])
    assert len(fit(config)) == 1
    trained = load_trained(config)
    splits = trained.load_splits()
    assert len(trained.distances(splits, splits.test_pairs)) == len(splits.test_pairs)


def test_an_output_stride_that_the_backbone_cannot_take_is_refused_before_training(make_config):
    changes = {"backbone_model": "convnext_atto", "image.size": [64, 64]}
    changes |= {"explanation.layer": "last", "explanation.output_stride": 16}
    with pytest.raises(ConfigError, match="output_stride: 16 is refused for convnext_atto"):
        fit(make_config(changes))


def _fit(path, _):
    fit(load_config(path))


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_killed_training_resumes_to_the_identical_history(make_config, tmp_path, schedule):
    common = {"hyperparameters.epochs": 5, "LRScheduler.schedule": schedule}
    whole = fit(make_config({**common, "checkpoints_path": str(tmp_path / "whole")}))
    config = make_config({**common, "checkpoints_path": str(tmp_path / "killed")}, "killed.yml")
    process, _ = forked(_fit, tmp_path / "killed.yml")
    while not list((tmp_path / "killed").glob("*/last.pt")) and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    done = len(load_checkpoint(current_run(tmp_path / "killed") / "last.pt")["history"])
    assert 1 <= done < 5
    resumed = fit(config)
    assert without_times(resumed) == without_times(whole)
    ends = [load_checkpoint(current_run(tmp_path / name) / "last.pt")["network"] for name in ("whole", "killed")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_deterministic_training_repeats_to_the_bit(make_config, tmp_path, monkeypatch):
    """With all that is random in training: flips, turns, crops and colours."""
    observed, real = [], loop.train_epoch

    def observing(*arguments):
        observed.append(torch.are_deterministic_algorithms_enabled())
        return real(*arguments)

    monkeypatch.setattr(loop, "train_epoch", observing)
    changes = {
        "image.RandomRotationDegrees": 20,
        "image.RandomCropScale": 0.5,
        "image.hue": 0.1,
        "image.brightness": 0.3,
    }
    weights = []
    for name in ("first", "second"):
        config = make_config(changes | {"deterministic": True, "checkpoints_path": str(tmp_path / name)})
        fit(config)
        weights.append(load_checkpoint(current_run(config.checkpoints_path) / "last.pt")["network"])
    assert observed == [True] * 4
    for name, values in weights[0].items():
        assert torch.equal(values, weights[1][name]), name
    fit(make_config({"checkpoints_path": str(tmp_path / "third")}))
    assert observed[4:] == [False] * 2


def test_training_that_cannot_repeat_is_refused_by_the_name_of_the_operation(make_config, monkeypatch):
    def unrepeatable(*arguments):
        return torch.zeros(3).put_(torch.tensor([0]), torch.ones(1)).sum().item()

    monkeypatch.setattr(loop, "train_epoch", unrepeatable)
    with pytest.raises(ConfigError, match="deterministic: True is refused: put_, which the backbone needs"):
        fit(make_config({"deterministic": True}))


def test_what_was_drawn_before_does_not_change_training(make_config, tmp_path):
    config = make_config({"hyperparameters.epochs": 1})
    undisturbed = fit(config)
    runtime = start(config)
    torch.rand(3)
    config = make_config({"hyperparameters.epochs": 1, "checkpoints_path": str(tmp_path / "other")})
    assert without_times(fit(config, load_splits(config), runtime)) == without_times(undisturbed)


def test_a_moved_dataset_is_found_and_a_changed_one_is_told(make_config, tiny_data, tmp_path, capsys):
    fit(make_config({"hyperparameters.epochs": 1}))
    shutil.copytree(tiny_data, tmp_path / "moved")
    moved = make_config({"data_path": str(tmp_path / "moved")})
    assert len(load_trained(moved).load_splits().test) == 9
    assert "changed since training" not in capsys.readouterr().out
    write_images(tmp_path / "moved" / "red", 1)
    load_trained(moved).load_splits()
    output = capsys.readouterr().out
    assert "have changed since training: test pairs may" in output


def test_a_loss_that_is_not_finite_stops_training(make_config, monkeypatch):
    def large(config):
        network = build_network(config)
        network.embedding.weight.data *= 1e38  # a length that cannot be computed
        return network

    monkeypatch.setattr(loop, "build_network", large)
    config = make_config({"hyperparameters.epochs": 5})
    with pytest.raises(TrainingError, match=r"became (nan|inf) in epoch \d\. Lower hyperparameters"):
        fit(config)
    for path in config.checkpoints_path.glob("*/*.pt"):
        assert load_checkpoint(path)["history"]  # what is left is whole


@pytest.mark.parametrize(
    ("kind", "text", "size"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total", "20.00 MiB"),
        (
            RuntimeError,
            "[enforce fail] DefaultCPUAllocator: you tried to allocate 99 bytes.",
            "99 bytes",
        ),
        (MemoryError, "Unable to allocate 1.50 GiB for an array", "1.50 GiB"),
    ],
)
def test_a_step_that_takes_more_memory_than_is_free(make_config, monkeypatch, kind, text, size):
    """In the second epoch: the first one is kept."""
    config = make_config()
    real = loop.optimize

    def fails_later(model, loss, *arguments):
        if list(config.checkpoints_path.glob("*/last.pt")):
            raise kind(text)
        real(model, loss, *arguments)

    monkeypatch.setattr(loop, "optimize", fails_later)
    message = rf"batch_size: 8 with image\.size: \[32, 40\] takes more memory than is free \({size} could"
    with pytest.raises(ConfigError, match=message):
        fit(config)
    assert len(load_checkpoint(current_run(config.checkpoints_path) / "last.pt")["history"]) == 1
    monkeypatch.setattr(loop, "optimize", real)
    assert len(fit(config)) == 2


def test_an_allocation_that_fails_is_named(make_config, monkeypatch):
    """Of memory that no machine has."""
    monkeypatch.setattr(loop, "optimize", lambda *_: torch.empty(2**60))
    with pytest.raises(ConfigError, match=r"takes more memory than is free \(4611686018427387904 bytes could"):
        fit(make_config())


def test_another_error_is_not_taken_for_a_lack_of_memory(make_config, monkeypatch):
    def fails(*_):
        raise RuntimeError("another error")

    monkeypatch.setattr(loop, "optimize", fails)
    with pytest.raises(RuntimeError, match="another error"):
        fit(make_config())


def test_collapsed_embeddings_are_warned_of(make_config, monkeypatch):
    def collapsed(config):
        network = build_network(config)
        torch.nn.init.zeros_(network.embedding.weight)
        torch.nn.init.ones_(network.embedding.bias)
        return network

    monkeypatch.setattr(loop, "build_network", collapsed)
    with pytest.warns(RuntimeWarning, match="embeddings have collapsed"):
        fit(make_config({"hyperparameters.epochs": 1, "hyperparameters.learning_rate": 1e-9, "LRScheduler.min_lr": 0}))


def test_each_image_is_embedded_once_per_evaluation(make_config, monkeypatch, trained):
    config = make_config({"number_of_iterations": 4})
    splits = load_splits(config)
    assert len(splits.test_pairs) == 8 * len(splits.test)
    read, real = [], PixelCache.__getitem__
    monkeypatch.setattr(PixelCache, "__getitem__", lambda self, wanted: read.extend(wanted) or real(self, wanted))
    runtime = start(config)
    network = build_network(config)
    distances = pair_distances(network, splits, splits.test_pairs, config, runtime)
    assert sorted(read) == splits.test.tolist()
    assert network.training
    pair = [splits.folder.paths[part[5]] for part in (splits.test_pairs.first, splits.test_pairs.second)]
    trained = replace(trained, network=network.eval(), config=config, runtime=runtime)
    with torch.no_grad():
        expected = distance(*network(trained.load_pairs(pair)[0])).item()
    assert distances[5] == pytest.approx(expected, abs=1e-5)


def test_optimizers_take_all_their_settings(make_config):
    network = build_network(make_config())
    for name in ("Adam", "AdamW", "SGD"):
        config = make_config(
            {"hyperparameters.optimizer": name, "hyperparameters.nesterov": True, "hyperparameters.weight_decay": 0.3}
        )
        optimizer = build_optimizer(network, config)
        assert type(optimizer).__name__ == name
        group = optimizer.param_groups[0]
        assert (group["lr"], group["weight_decay"]) == (0.001, 0.3)
        if name == "SGD":
            assert (group["momentum"], group["nesterov"]) == (0.9, True)


def test_more_epochs_of_the_cosine_schedule_are_a_new_run(make_config, tmp_path):
    """Its rates depend on their number: a finished run that goes on would not be what training from the start is."""
    schedule = {"LRScheduler.schedule": "cosine"}
    fit(make_config({**schedule, "hyperparameters.epochs": 1}))
    longer = make_config({**schedule, "hyperparameters.epochs": 2})
    whole = {**schedule, "hyperparameters.epochs": 2, "checkpoints_path": str(tmp_path / "whole")}
    assert without_times(fit(longer)) == without_times(fit(make_config(whole)))
    shorter = make_config({**schedule, "hyperparameters.epochs": 1})
    assert changed_since(shorter, longer, {"hyperparameters"}) == [
        "hyperparameters.epochs is 2, the network was trained with 1"
    ]


def test_the_cosine_schedule_is_that_of_torch(make_config):
    """After the warm-up; in it, rates rise in a straight line. The backbone's are a tenth of the embedding's."""
    config = make_config({"backbone_rate": 0.1})
    optimizer = build_optimizer(build_network(config), config)
    steps = 100
    peer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.001)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(peer, round((1 - WARM_UP) * steps))
    for step in range(steps + 1):
        set_rates(optimizer, config, step / steps)
        embedding, backbone = (group["lr"] for group in optimizer.param_groups)
        assert backbone == pytest.approx(0.1 * embedding)
        if step <= WARM_UP * steps:
            assert embedding == pytest.approx(0.001 * step / (WARM_UP * steps))
        else:
            peer.step()
            cosine.step()
            assert embedding == pytest.approx(peer.param_groups[0]["lr"], abs=1e-9)


def test_gradients_are_clipped(make_config, monkeypatch):
    config = make_config({"hyperparameters.epochs": 1, "hyperparameters.max_norm": 1e-3})
    lengths = []
    real = torch.optim.AdamW.step

    def step(self, *args):
        gradients = [parameter.grad.norm() for group in self.param_groups for parameter in group["params"]]
        lengths.append(torch.stack(gradients).norm().item())
        return real(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    fit(config)
    assert max(lengths) <= 1e-3 * 1.001


def test_loading_draws_and_seeds_nothing(make_config, checkpoints):
    config = make_config({"checkpoints_path": str(checkpoints)})
    torch.manual_seed(5)
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    load_trained(config)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_the_checkpoint_rules_where_config_has_changed(make_config, capsys):
    fit(make_config({"hyperparameters.epochs": 1}))
    trained = load_trained(make_config({"image.size": [64, 64], "embedding_size": 4, "explanation.opacity": 0.3}))
    output = capsys.readouterr().out.splitlines()
    assert "image.size is [64, 64], the network was trained with [32, 40]: the latter is used." in output
    assert "embedding_size is 4, the network was trained with 8: the latter is used." in output
    assert sum("the latter is used" in line for line in output) == 2
    assert trained.config.image.size == (32, 40)
    assert trained.config.explanation.opacity == 0.3


def test_inference_images_from_config_or_the_default(make_config, tmp_path):
    default = ("a.png", "b.png")
    assert inference_pair(make_config(), default) == default
    write_images(tmp_path / "own", 2)
    own = (str(tmp_path / "own" / "0.png"), str(tmp_path / "own" / "1.png"))
    assert inference_pair(make_config({"inference.image1": own[0], "inference.image2": own[1]}), default) == own
    with pytest.raises(ConfigError, match=r"inference\.image2: .*absent\.png does not exist"):
        inference_pair(make_config({"inference.image1": own[0], "inference.image2": "absent.png"}), default)


def test_a_typical_pair_can_be_explained(trained, monkeypatch):
    """The pair at the median is passed over where hiding its images changes nothing."""
    splits = trained.load_splits()
    spans = torch.zeros(3, 8)
    spans[:, 2] = 1
    explained = []

    def span(network, explanation):
        explained.append(explanation)
        return Effect(*spans[:, : len(explanation)], explanation.different)

    monkeypatch.setattr(ranked, "span_of", span)
    passed_over, _ = typical_pairs(trained, splits)
    assert passed_over == explained[0].source.paths[2]
    spans[:] = 0
    assert typical_pairs(trained, splits)[0] == explained[-2].source.paths[0]


def test_typical_pairs_without_a_right_or_without_any_decision(monkeypatch, trained, capsys):
    trained = replace(trained, threshold=0.5)
    splits = trained.load_splits()
    labels = splits.test_pairs.labels
    monkeypatch.setattr(Trained, "distances", lambda *_: np.where(labels == 1, 0.1, 0.9))  # every decision is wrong
    same, different = typical_pairs(trained, splits)
    assert same[0].split("/")[-2] != same[1].split("/")[-2]
    assert different[0].split("/")[-2] == different[1].split("/")[-2]
    distances = np.linspace(0.1, 0.2, len(labels))
    monkeypatch.setattr(Trained, "distances", lambda *_: distances)
    same, different = typical_pairs(trained, splits)  # so that images named in `inference` are explained all the same
    farthest = splits.test_pairs.first[-1], splits.test_pairs.second[-1]
    assert different == tuple(splits.folder.paths[index] for index in farthest)
    assert 'No test pair is decided "different": the nearest pair is shown instead.' in capsys.readouterr().out


def test_training_on_a_gpu(make_config, device):
    config = make_config({"cuda": device.type == "cuda", "hyperparameters.epochs": 1, "precision": "auto"})
    assert np.isfinite(fit(config)[0]["train_loss"])
    assert next(load_trained(config).network.parameters()).device.type == device.type
