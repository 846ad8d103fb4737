"""Errors say how to end them: each cure is followed here, as its message states it, and what failed is run again."""

import re
import shutil

import nbformat
import numpy as np
import pytest
import yaml
from helpers import changed

from utils import __main__ as commands
from utils import fit, load_config, load_trained, notebooks
from utils.config import ConfigError, DecisionSettings
from utils.device import find_runtime
from utils.files import FileError, UserError, check_writable, write_text
from utils.score.decision import check_decision
from utils.train.loop import TrainingError
from utils.train.runs import CheckpointError, current_run, run_names

ONE = {"hyperparameters.epochs": 1, "hyperparameters.verbose": False}
CONFIGS = {  # changes that do not fit together: what their error says, and the changes that follow each of its cures
    "shares": (
        {"test_size": 0.5, "valid_size": 0.5},
        "must stay below 1",
        [{"test_size": 0.4}, {"valid_size": 0.4}],
    ),
    "batch": (
        {"hyperparameters.batch_size": 3},
        "pairs: batch needs hyperparameters.batch_size of at least 4",
        [{"hyperparameters.batch_size": 4}],
    ),
    "nesterov": (
        {"hyperparameters.optimizer": "SGD", "hyperparameters.nesterov": True, "hyperparameters.momentum": 0},
        "needs hyperparameters.momentum above 0",
        [{"hyperparameters.momentum": 0.1}],
    ),
    "inference": (
        {"inference.image1": "a.png"},
        "name both image1 and image2, or neither",
        [{"inference.image2": "b.png"}, {"inference.image1": None}],
    ),
    "groups": (
        {"split": "groups"},
        "needs group_pattern, say '^[a-z]+_([0-9]+)_'",
        [{"group_pattern": "^[a-z]+_([0-9]+)_"}],
    ),
    "rates": (
        {"LRScheduler.min_lr": 0.1},
        "must not be above hyperparameters.learning_rate",
        [{"LRScheduler.min_lr": 0.001}, {"hyperparameters.learning_rate": 0.1}],
    ),
    "epochs": (
        {"hyperparameters.epochs": 0},
        "needs `pretrained`",
        [{"pretrained": True}, {"hyperparameters.epochs": 1}],
    ),
}


def refusal(error, work, *arguments):
    """The message with which `work(*arguments)` is refused."""
    with pytest.raises(error) as caught:
        work(*arguments)
    assert isinstance(caught.value, UserError)
    return str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_that_do_not_fit_together(name, settings, tmp_path):
    changes, message, cures = CONFIGS[name]
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(changed(settings, changes)))
    assert message in refusal(ConfigError, load_config, path)
    for cure in cures:
        path.write_text(yaml.safe_dump(changed(settings, changes | cure)))
        load_config(path)


def test_a_precision_that_the_processor_lacks(make_config):
    message = refusal(ConfigError, find_runtime, make_config({"precision": "float16"}))
    cures = re.search(r"set (.*), (.*) or (.*)$", message).groups()
    assert len(cures) == 3
    for precision in cures:
        find_runtime(make_config({"precision": precision}))


@pytest.mark.parametrize("cure", ["fmr", "number_of_iterations"])
def test_a_rate_that_no_pair_can_show(make_config, cure):
    changes = ONE | {"decision": {"fmr": 0.02}}
    message = refusal(ConfigError, fit, make_config(changes))
    fmr, times = re.search(r"set it to (.*) or more, or multiply number_of_iterations by (\d+),", message).groups()
    if cure == "fmr":
        changes["decision"] = {"fmr": float(fmr)}
    else:
        changes["number_of_iterations"] = int(times)
    assert fit(make_config(changes))


def test_the_rate_that_is_named_is_the_least_that_can_be_shown_in_four_decimals():
    for different in range(1, 400):
        labels = np.repeat([0, 1], [1, different])
        message = refusal(ConfigError, check_decision, labels, DecisionSettings(rule="fmr", fmr=1e-4))
        if different == 1:
            assert "set it" not in message  # no rate below 1 can be shown
            continue
        fmr = float(re.search(r"set it to (.*?) or more", message)[1])
        check_decision(labels, DecisionSettings(rule="fmr", fmr=fmr))
        assert fmr * different < 1.1


@pytest.mark.filterwarnings("ignore:The embeddings have collapsed")
def test_training_that_diverges(make_config):
    """Weights grow 10,000 times a step."""
    changes = ONE | {"hyperparameters.optimizer": "SGD", "hyperparameters.weight_decay": 100}
    changes |= {"hyperparameters.epochs": 12, "hyperparameters.learning_rate": 100}
    message = refusal(TrainingError, fit, make_config(changes))
    assert "Lower hyperparameters.learning_rate" in message
    assert fit(make_config(changes | {"hyperparameters.learning_rate": 0.001}))


def test_a_network_that_was_not_trained_yet(make_config):
    config = make_config(ONE)
    assert "run 01.Train_Siamese_model.ipynb first" in refusal(CheckpointError, load_trained, config)
    fit(config)
    assert load_trained(config)


@pytest.mark.parametrize(
    ("file", "damage", "cure"),
    [
        ("best.pt", "truncated", "delete it"),
        ("best.pt", "flipped", "another run"),
        ("last.pt", "empty", "delete it"),
        ("last.pt", "truncated", "another run"),
        ("best.pt", "foreign", "delete it"),
        ("last.pt", "foreign", "another run"),
    ],
)
def test_checkpoints_that_are_damaged(make_config, file, damage, cure):
    config = make_config(ONE)
    fit(config)
    (earlier,) = run_names(config.checkpoints_path)
    config = make_config(ONE | {"seed": 7})
    fit(config)
    path = current_run(config.checkpoints_path) / file
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half] ^= 1
    damaged = {"truncated": content[:half], "flipped": content, "foreign": b"not a checkpoint", "empty": b""}
    path.write_bytes(damaged[damage])

    def train_and_load(config):
        fit(config)
        return load_trained(config)

    message = refusal(CheckpointError, train_and_load, config)
    assert message.startswith(f"{path} is damaged or of another version (")
    assert message.endswith(f": delete {path.parent} and train again, or set `run` to another run.")
    if cure == "another run":
        config = make_config(ONE | {"run": earlier})
    else:
        shutil.rmtree(path.parent)
    assert train_and_load(config)


@pytest.mark.parametrize("cure", ["delete the file", "set run"])
def test_a_run_that_was_moved_is_still_named(make_config, tmp_path, cure):
    config = make_config(ONE)
    fit(config)
    config = make_config(ONE | {"seed": 7})
    fit(config)
    shutil.move(current_run(config.checkpoints_path), tmp_path / "elsewhere")
    message = refusal(CheckpointError, load_trained, config)
    file, run = re.search(r": (\S+) names it: delete that file, or set `run` to one of (\S+)\.$", message).groups()
    if cure == "delete the file":
        assert file == str(config.checkpoints_path / "current")
        (config.checkpoints_path / "current").unlink()
    else:
        config = make_config(ONE | {"run": run})
    assert load_trained(config).folder.name == run


def test_a_run_of_other_splits(make_config):
    config = make_config(ONE)
    fit(config)
    (name,) = run_names(config.checkpoints_path)
    other = ONE | {"run": name, "test_size": 0.4, "seed": 7}
    message = refusal(ConfigError, fit, make_config(other))
    assert load_trained(make_config(other))  # as notebook 02 does
    for key, trained_with in re.findall(r"^(\w+) is .*, the network was trained with (.*)$", message, re.MULTILINE):
        other[key] = yaml.safe_load(trained_with)
    assert fit(make_config(other))


@pytest.mark.parametrize("kind", ["a file in the way", "a folder in place of the file"])
def test_a_place_that_cannot_be_written(tmp_path, kind):
    if kind == "a file in the way":
        (tmp_path / "results").write_text("in the way")
    else:
        (tmp_path / "results" / "metrics.json").mkdir(parents=True)
    message = refusal(FileError, write_text, tmp_path / "results" / "metrics.json", "{}")
    assert message.endswith("Set another folder, or allow writing there.")
    write_text(tmp_path / "another" / "metrics.json", "{}")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = refusal(FileError, check_writable, tmp_path / "file" / "results", "results_path")
    assert message.startswith("results_path: ")
    assert message.endswith("Set another folder, or allow writing there.")
    check_writable(tmp_path / "another", "results_path")


@pytest.mark.parametrize("kind", ["absent", "a folder", "no JSON", "text", "a list", "no cells"])
def test_notebooks_that_cannot_be_read(tmp_path, kind):
    """The next test executes a file that ends in .ipynb and is a notebook."""
    path = tmp_path / "mine.ipynb"
    if kind == "a folder":
        path.mkdir()
    elif kind != "absent":
        path.write_text({"no JSON": "x = 1", "text": '"x"', "a list": "[1]", "no cells": "{}"}[kind])
    message = refusal(FileError, notebooks.execute, path)
    assert message.startswith(f"{path} cannot be read: ")
    assert message.endswith("Name a notebook, a file that ends in .ipynb.")


def test_a_kernel_leaves_nothing_in_the_current_folder(tmp_path, monkeypatch):
    """Two kernels that start in the same folder would take each other's sockets."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os; print(os.listdir())")])
    nbformat.write(notebook, tmp_path / "other.ipynb")
    assert notebooks.execute(tmp_path / "other.ipynb").cells[0].outputs[0].text == "[]\n"


def test_no_notebook_where_the_command_is_started(make_config, tmp_path, monkeypatch):
    make_config()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(notebooks.CONFIG_VARIABLE, "")  # restored afterwards
    monkeypatch.setattr("sys.argv", ["utils", "run", "--config", "config.yml"])
    with pytest.raises(SystemExit) as caught:
        commands.main()
    folder = re.search(r"start in (.*), or name notebooks\.$", str(caught.value))[1]
    assert str(tmp_path) in str(caught.value)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["utils", "run", "--config", str(tmp_path / "config.yml")])
    started = []
    monkeypatch.setattr(notebooks, "execute", lambda path: started.append(path.name) or nbformat.v4.new_notebook())
    commands.main()
    assert started == ["01.Train_Siamese_model.ipynb", "02.Inferences.ipynb", "03.Explore.ipynb"]
