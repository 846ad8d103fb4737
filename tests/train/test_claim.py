"""One process at a time writes into a folder of checkpoints; what was killed leaves nothing behind."""

import os
import re

import pytest
from helpers import forked

from utils import fit, load_trained
from utils.files import FileError
from utils.train.runs import CheckpointError, claimed


def _hold(folder, pipe):
    """Say "held" or what is refused, and hold the folder until something comes through the pipe."""
    try:
        with claimed(folder):
            pipe.send("held")
            pipe.recv()
    except CheckpointError as error:
        pipe.send(str(error))


def holding(folder):
    """Another process that tries to hold a folder of checkpoints, the pipe to it, and what it says."""
    process, pipe = forked(_hold, folder)
    return process, pipe, pipe.recv()


def test_a_second_process_is_refused_until_the_first_has_ended(make_config, tmp_path):
    config = make_config({"hyperparameters.epochs": 1})
    process, _, held = holding(tmp_path / "checkpoints")
    assert held == "held"
    message = rf"checkpoints_path: process {process.pid} on .* is training in .*checkpoints\. Wait until it has ended"
    with pytest.raises(CheckpointError, match=message):
        fit(config)
    assert not list((tmp_path / "checkpoints").glob("*/"))
    process.kill()  # which lets it clean up nothing
    process.join()
    assert len(fit(config)) == 1


def test_one_process_may_hold_it_twice(tmp_path):
    with claimed(tmp_path):
        with claimed(tmp_path):
            pass
        process, _, refused = holding(tmp_path)
        process.join()
        assert f"process {os.getpid()} on" in refused
    with claimed(tmp_path):
        pass


def test_what_killed_processes_left_is_deleted(tmp_path):
    run = tmp_path / "2026-01-01_00-00-00_0123456789ab"
    run.mkdir()
    gone = [tmp_path / ".current.77", run / ".best.pt.123", run / ".last.pt.4567"]
    kept = [tmp_path / "current", run / "best.pt", run / "notes.txt"]
    for path in (*gone, *kept):
        path.write_text("x")
    with claimed(tmp_path):
        assert not any(path.exists() for path in gone)
        assert all(path.exists() for path in kept)


@pytest.mark.parametrize("key", ["checkpoints_path", "results_path"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(key, make_config, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    config = make_config({key: str(tmp_path / "file" / "below")})
    with pytest.raises(FileError, match=rf"{key}: {re.escape(str(tmp_path))}.*cannot be written: Not a directory"):
        fit(config)
    assert "Epoch" not in capsys.readouterr().out


def test_two_configs_that_share_a_folder_get_their_own_networks(make_config, capsys):
    """As where one process has trained in the folder of another, between its training and its test."""
    changes = {"hyperparameters.epochs": 1}
    mine = make_config(changes)
    fit(mine)
    before = load_trained(mine)
    other = make_config(changes | {"hyperparameters.learning_rate": 0.002}, "other.yml")
    fit(other)
    capsys.readouterr()
    assert load_trained(mine).folder == before.folder
    assert f"The run {before.folder.name} is loaded: it has the settings of the config" in capsys.readouterr().out
    assert load_trained(other).folder != before.folder
    assert capsys.readouterr().out == ""
    (before.folder / "best.pt").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(before.folder))}.* is damaged or of another version"):
        load_trained(mine)  # not the network of the other settings
    assert load_trained(other).folder != before.folder
