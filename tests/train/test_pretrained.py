"""Pretrained weights: the frozen baseline, no training at all, parts frozen, rates, checkpoints of before."""

import json

import numpy as np
import pytest
import torch
from helpers import warmed
from sklearn.metrics import roc_auc_score

from utils import fit, frozen_baseline, history_figure, load_splits, load_trained, write_metrics
from utils.config import ConfigError
from utils.data.batches import evaluation_transform
from utils.device import find_runtime
from utils.network.siamese import SiameseNetwork, build_network
from utils.score.decision import choose_threshold
from utils.train.loop import _build_scheduler, build_optimizer
from utils.train.runs import CheckpointError, current_run, load_checkpoint, run_names, save_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights of a small ResNet whose batch norm has seen images."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(warmed(SiameseNetwork("test_resnet", None, image_size=(32, 40)), (32, 40)).backbone.state_dict(), path)
    return str(path)


def distances_by_hand(weights, splits, pairs, config):
    """Distances of the pooled last maps of timm's own model, image by image."""
    backbone = SiameseNetwork("test_resnet", None, image_size=config.image.size).backbone.eval()
    backbone.load_state_dict(torch.load(weights, weights_only=True))
    distances = []
    for first, second in zip(pairs.first, pairs.second, strict=True):
        vectors = []
        for index in (first, second):
            pixels = torch.from_numpy(splits.pixels[np.array([index])])
            with torch.no_grad():
                features = backbone.forward_features(evaluation_transform(config.image)(pixels))
            vector = features[0].mean(dim=(1, 2))
            vectors.append(vector / vector.norm())
        distances.append((vectors[0] - vectors[1]).norm().item())
    return np.array(distances)


def test_the_frozen_baseline_is_the_auc_of_the_pooled_features(make_config, weights):
    config = make_config({"pretrained": weights})
    splits = load_splits(config)
    state = torch.get_rng_state()
    baseline = frozen_baseline(config, splits, find_runtime(config))
    assert torch.equal(torch.get_rng_state(), state)
    expected = distances_by_hand(weights, splits, splits.test_pairs, config)
    assert baseline.auc.value == pytest.approx(roc_auc_score(splits.test_pairs.labels, expected), abs=1e-6)
    assert f"test AUC {baseline.auc}" in str(baseline)
    none = frozen_baseline(make_config(), splits, find_runtime(config))
    assert none.auc is None
    assert "no embedding before training" in str(none)


def test_no_epochs_keep_the_pretrained_embedding_and_choose_a_threshold(make_config, weights):
    config = make_config({"pretrained": weights, "hyperparameters.epochs": 0})
    splits = load_splits(config)
    assert fit(config, splits) == []
    trained = load_trained(config)
    assert "test_resnet without training (epochs: 0)" in str(trained)
    valid = distances_by_hand(weights, splits, splits.valid_pairs, config)
    assert trained.threshold == pytest.approx(choose_threshold(valid, splits.valid_pairs.labels), abs=1e-4)
    distances = trained.distances(splits, splits.test_pairs)
    expected = distances_by_hand(weights, splits, splits.test_pairs, config)
    np.testing.assert_allclose(distances, expected, atol=1e-4)
    baseline = frozen_baseline(config, splits, trained.runtime)
    metrics = write_metrics(trained, splits, distances, baseline)
    assert metrics["auc"].interval.value == pytest.approx(metrics["frozen_auc"].interval.value, abs=1e-6)
    assert json.loads((config.results_path / "metrics.json").read_text())["seconds"] == 0
    paths = splits.folder.paths
    assert trained.explain((paths[0], paths[-1])).evidence.any()
    assert "not trained (epochs: 0)" in history_figure([]).axes[0].texts[0].get_text()


def test_training_after_no_epochs_starts_again(make_config, weights, capsys):
    fit(make_config({"pretrained": weights, "hyperparameters.epochs": 0}))
    config = make_config({"pretrained": weights, "hyperparameters.epochs": 1})
    assert len(fit(config)) == 1
    assert "Nothing was trained: hyperparameters.epochs is 0." in capsys.readouterr().out
    assert len(run_names(config.checkpoints_path)) == 2
    again = make_config({"pretrained": weights, "hyperparameters.epochs": 0})
    assert fit(again) == []  # found again
    assert len(run_names(config.checkpoints_path)) == 2
    assert "without training" in str(load_trained(again))


def test_no_epochs_need_pretrained_weights(make_config):
    with pytest.raises(ConfigError, match="epochs: 0 needs `pretrained`"):
        make_config({"hyperparameters.epochs": 0})


@pytest.mark.parametrize("training", ["last", "frozen"])
def test_frozen_stages_and_their_batch_norm_come_out_as_they_went_in(training, make_config, weights):
    config = make_config({"pretrained": weights, "backbone_training": training, "hyperparameters.epochs": 1})
    fit(config)
    before = torch.load(weights, weights_only=True)
    before = {name: value for name, value in before.items() if not name.endswith("num_batches_tracked")}
    after = load_checkpoint(current_run(config.checkpoints_path) / "last.pt")["network"]
    kept = {name for name in before if torch.equal(before[name], after[f"backbone.{name}"])}
    trained = ("layer3", "layer4") if training == "last" else ("nothing",)
    assert {name for name in before if not name.startswith(trained)} <= kept
    if training == "last":
        assert "layer4.0.conv1.weight" not in kept
        assert "layer4.0.bn1.running_mean" not in kept


@pytest.mark.parametrize("training", ["last", "frozen"])
def test_norms_that_hold_an_activation_can_be_frozen(training, make_config):
    changes = {"backbone_model": "mobilenetv2_035", "backbone_training": training, "explanation.layer": "last"}
    config = make_config({**changes, "hyperparameters.epochs": 1})
    assert len(fit(config)) == 1
    after = load_checkpoint(current_run(config.checkpoints_path) / "last.pt")["network"]
    assert not after["backbone.bn1.running_mean"].any()  # as it was made


@pytest.mark.parametrize(("changes", "factor"), [({}, 1), ({"backbone_rate": 0.2}, 0.2)])
def test_the_backbone_has_a_learning_rate_of_its_own(changes, factor, make_config, weights):
    config = make_config({"pretrained": weights, "backbone_training": "last", **changes})
    network = build_network(config)
    optimizer = build_optimizer(network, config)
    embedding, backbone = optimizer.param_groups
    assert embedding["lr"] == config.hyperparameters.learning_rate
    assert backbone["lr"] == pytest.approx(factor * config.hyperparameters.learning_rate)
    assert all(weight.requires_grad for weight in backbone["params"])
    own = {id(weight) for weight in network.parameters() if weight.requires_grad}
    assert {id(weight) for group in (embedding, backbone) for weight in group["params"]} == own
    scheduler = _build_scheduler(optimizer, config)
    for _ in range(40):
        scheduler.step(0.0)
    assert backbone["lr"] == pytest.approx(factor * embedding["lr"])  # at the floor too


def test_weights_of_another_network_are_refused_with_the_cure(make_config, checkpoints, tmp_path):
    run = current_run(checkpoints)
    content = load_checkpoint(run / "best.pt")
    content["network"] = {f"backbone.stem.{name}": value for name, value in content["network"].items()}
    save_checkpoint(tmp_path / run.name / "best.pt", content)
    with pytest.raises(
        CheckpointError,
        match=r"best\.pt is damaged or of another version \(RuntimeError: Error\(s\) in loading state_dict",
    ):
        load_trained(make_config({"checkpoints_path": str(tmp_path)}))
