"""One process at a time writes into a folder of checkpoints; what was killed leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys

import pytest
from helpers import ROOT

from utils import fit, load_trained
from utils.files import FileError
from utils.training import CheckpointError
from utils.training.claim import claimed

HOLDER = """
import sys
from pathlib import Path
from utils.training.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder of checkpoints."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "checkpoints")]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_until_the_first_has_ended(holder, make_config, tmp_path):
    config = make_config({"hyperparameters.epochs": 1})
    said = rf"checkpoints_path: process {holder.pid} on .* is training in .*checkpoints\. Wait until it has ended"
    with pytest.raises(CheckpointError, match=said):
        fit(config)
    assert not list((tmp_path / "checkpoints").glob("*/"))
    holder.send_signal(signal.SIGKILL)  # which lets it clean up nothing
    holder.wait()
    assert len(fit(config)) == 1


def test_one_process_may_hold_it_twice(tmp_path, holder):
    folder = tmp_path / "mine"
    with claimed(folder):
        with claimed(folder):
            pass
        held = subprocess.run(
            [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, input="", capture_output=True, text=True, check=False
        )
        assert f"process {os.getpid()} on" in held.stderr
    with claimed(folder):
        pass


def test_what_killed_processes_left_is_deleted(tmp_path):
    run = tmp_path / "2026-01-01_00-00-00_0123456789ab"
    run.mkdir()
    gone = [tmp_path / ".current.77", run / ".best.pt.123", run / ".last.pt.4567"]
    kept = [tmp_path / "current", run / "best.pt", run / "notes.txt", run / ".best.pt.copy"]
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
    assert load_trained(mine).folder != before.folder  # and says so
    said = capsys.readouterr().out
    assert f"Left out: {before.folder / 'best.pt'} is damaged" in said
    assert "hyperparameters.learning_rate is 0.001, the network was trained with 0.002" in said
