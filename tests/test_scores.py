"""A score on its way from the validation pairs of a checkpoint to sentences, figures and metrics.json."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from utils import (
    CheckpointError,
    ConfigError,
    calibrate,
    fit,
    load_config,
    load_splits,
    load_trained,
    typical_pairs,
    write_metrics,
)
from utils.score.calibration import fit_calibration
from utils.score.decision import choose_band, choose_threshold
from utils.train.evaluation import Baseline
from utils.train.runs import run_names


@pytest.fixture
def abstaining(make_config, calibrated_checkpoints):
    """The calibrated network, which leaves pairs undecided."""
    return load_trained(make_config({"checkpoints_path": str(calibrated_checkpoints), "decision.abstain": 0.625}))


def test_the_decision_can_change_without_training(make_config, calibrated_checkpoints, abstaining):
    pairs, distances = abstaining.validation
    assert abstaining.threshold == choose_threshold(distances, pairs.labels)
    assert abstaining.band == choose_band(distances, pairs, abstaining.threshold, 0.625)
    assert np.isfinite(abstaining.band).any()
    at_rate = {"checkpoints_path": str(calibrated_checkpoints), "decision": {"fmr": 0.4}}
    strict = load_trained(make_config(at_rate))
    assert (distances <= strict.threshold)[pairs.labels == 1].mean() <= 0.4
    assert strict.band is None
    assert "a false match rate of at most 0.4 on 18 validation pairs" in str(strict)


def test_why_a_side_is_never_decided_and_what_helps(abstaining):
    pairs, _ = abstaining.validation
    images = len(np.unique([pairs.first, pairs.second]))
    assert images == 9
    decision = abstaining.config.decision
    config = abstaining.config.model_copy(update={"decision": decision.model_copy(update={"abstain": 0.3})})
    never = str(replace(abstaining, band=(-math.inf, math.inf), config=config))
    assert 'in nine of ten validation sets at most 30 % of the pairs decided "same", and of those' in never
    for word in ("same", "different"):
        assert f'no pair is decided "{word}": abstain: 0.3 needs a low error rate on at least 17 validation' in never
    assert "images, and there are 9; raise abstain or valid_size" in never
    one_side = str(replace(abstaining, band=(0.2, math.inf)))
    assert 'at most 62.5 % of the pairs decided "same"' in one_side
    assert 'no pair is decided "same"' not in one_side
    assert 'no pair is decided "different": abstain: 0.625 needs a low error rate' in one_side


def test_probabilities_are_kept_in_the_checkpoint(abstaining):
    pairs, distances = abstaining.validation
    repeated = fit_calibration(distances, pairs, abstaining.config.seed)
    np.testing.assert_array_equal(abstaining.measurements.calibration.probabilities, repeated.probabilities)
    nearest, farthest = abstaining.probabilities(np.array([0.0, 2.0]))
    assert nearest > 0.5 > farthest


def test_explanations_carry_probability_and_band(abstaining):
    paths = abstaining.load_splits().folder.paths
    explanation = abstaining.explain((paths[0], paths[1]), (paths[0], paths[-1]))
    assert explanation.source.band == abstaining.band
    expected = abstaining.probabilities(explanation.distance.cpu().numpy())
    np.testing.assert_allclose(explanation.probability[:, 0], expected)
    assert "of one class with probability" in explanation.sentence()


def test_metrics_of_the_test_are_written_with_interval_and_meaning(abstaining):
    splits = abstaining.load_splits()
    distances = abstaining.distances(splits, splits.test_pairs)
    write_metrics(abstaining, splits, distances, Baseline(None))
    content = json.loads((abstaining.config.results_path / "metrics.json").read_text())
    decided = (distances <= abstaining.band[0]) | (distances > abstaining.band[1])
    assert content["undecided"]["value"] == pytest.approx(1 - decided.mean())
    for name in ("auc", "calibration_error", "recall_at_1", "map_at_r"):
        assert content[name]["low"] <= content[name]["value"] <= content[name]["high"]
        assert content[name]["meaning"]
    assert content["run"] == abstaining.folder.name
    assert content["decision"]["abstain"] == 0.625


def test_classes_held_out_are_scored_and_explained(make_config, tmp_path, tiny_data):
    """Six classes, of which the network sees two; pairs and references are of the classes of their splits."""
    for number, folder in enumerate(sorted(tiny_data.iterdir())):
        for half in range(2):
            target = tmp_path / "six" / f"{folder.name}_{half}"
            target.mkdir(parents=True)
            for file in sorted(folder.iterdir())[half::2]:
                (target / f"{number}{file.name}").write_bytes(file.read_bytes())
    config = make_config({"data_path": str(tmp_path / "six"), "split": "classes", "duplicate_radius": None})
    fit(config)
    trained = load_trained(config)
    splits = trained.load_splits()
    parts = [set(splits.folder.labels[part].tolist()) for part in (splits.train, splits.valid, splits.test)]
    assert [len(part) for part in parts] == [2, 2, 2]
    assert len(set.union(*parts)) == 6
    ready = calibrate(trained, splits, trained.distances(splits, splits.test_pairs))
    seen = {splits.folder.classes[label] for label in parts[0]}
    assert {name.split("/")[0] for name in ready.references.names} == seen
    same, _ = typical_pairs(ready, splits)
    assert ready.explain(same).evidence.any()


def test_a_network_of_other_splits_is_not_tested(make_config, abstaining):
    """As when another run of the same folder has become the current one."""
    others = load_splits(make_config({"seed": 5}))
    distances = abstaining.distances(others, others.test_pairs)
    with pytest.raises(CheckpointError, match="was trained or calibrated on other splits: its training images"):
        write_metrics(abstaining, others, distances, Baseline(None))
    assert not abstaining.config.results_path.exists()


def test_settings_that_have_changed_since_are_named_with_both_values(make_config, calibrated_checkpoints, capsys):
    changes = {"hyperparameters.learning_rate": 0.5, "hyperparameters.verbose": False, "decision.rule": "eer"}
    load_trained(make_config({"checkpoints_path": str(calibrated_checkpoints), **changes}))
    lines = [line for line in capsys.readouterr().out.splitlines() if "trained" in line]
    expected = "hyperparameters.learning_rate is 0.5, the network was trained with 0.001: "
    expected += "notebook 01 would train again."
    assert lines == [expected]


def test_a_change_of_one_key_leaves_a_rule_in_its_short_form(make_config, tmp_path):
    make_config({"decision": "eer"}, "short.yml")
    decision = load_config(tmp_path / "short.yml", ["decision.abstain=0.1"]).decision
    assert (decision.rule, decision.abstain) == ("eer", 0.1)


def test_a_rate_that_no_pair_can_show_is_refused_before_training(make_config):
    config = make_config({"decision": {"fmr": 0.001}})
    with pytest.raises(ConfigError, match=r"decision\.fmr: 0\.001 cannot be estimated from 9 different validation"):
        fit(config)
    assert not run_names(config.checkpoints_path)
