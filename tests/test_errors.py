"""Errors of a user are one message in a notebook and on a terminal; all others keep their traceback."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT, forked
from IPython.core.interactiveshell import InteractiveShell

from utils import notebooks
from utils.config import ConfigError
from utils.data.reading import DataError
from utils.files import GOES_ON, UserError, end_quietly, message_alone
from utils.train.loop import TrainingError
from utils.train.runs import CheckpointError

KINDS = {ConfigError: ValueError, DataError: ValueError, CheckpointError: RuntimeError, TrainingError: RuntimeError}


@pytest.mark.parametrize("kind", KINDS)
def test_ipython_shows_the_message_alone(kind):
    assert issubclass(kind, UserError)
    assert issubclass(kind, KINDS[kind])
    said = io.StringIO()
    with redirect_stdout(said):
        shell = InteractiveShell()
        shell.run_cell(f"from {kind.__module__} import {kind.__name__}\nraise {kind.__name__}('seed: cure it')")
    assert said.getvalue().strip() == f"{kind.__name__}: seed: cure it"
    with redirect_stdout(said):
        shell.run_cell("1 / 0")
    assert "Traceback" in said.getvalue()


def test_a_command_ends_with_the_message_and_status_1():
    @message_alone()
    def command(error):
        raise error

    with pytest.raises(SystemExit, match="seed: cure it"):
        command(ConfigError("seed: cure it"))
    with pytest.raises(ZeroDivisionError):
        command(ZeroDivisionError())


@pytest.mark.parametrize("arguments", [["utils.training"], ["utils.notebooks", "01.Train_Siamese_model.ipynb"]])
def test_no_traceback_on_a_terminal(arguments, make_config, tmp_path):
    make_config()
    path = tmp_path / "config.yml"
    path.write_text(path.read_text() + "sed: 1\n")
    run = subprocess.run(
        [sys.executable, "-m", *arguments, "--config", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr.strip() == f"{path}: sed: unknown key; did you mean seed?"


@pytest.mark.parametrize(
    ("source", "whole"),
    [("from utils import load_config\nload_config('absent.yml')", True), ("def f():\n    1 / 0\nf()", False)],
)
def test_a_notebook_that_fails(source, whole, make_config, tmp_path, monkeypatch):
    make_config()
    cell = nbformat.v4.new_code_cell(source)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "small.ipynb")
    monkeypatch.setenv(notebooks.CONFIG_VARIABLE, "")
    monkeypatch.setattr(
        sys, "argv", ["notebooks", "--config", str(tmp_path / "config.yml"), str(tmp_path / "small.ipynb")]
    )
    with pytest.raises(SystemExit) as caught:
        notebooks.main()
    said = str(caught.value)
    if whole:
        assert said.strip().startswith("ConfigError: absent.yml: no such file in ")
        assert len(said.strip().splitlines()) == 1
    else:
        assert "ZeroDivisionError" in said
        assert "f()" in said


def test_ipython_says_one_line_of_an_interruption():
    said = io.StringIO()
    with redirect_stdout(said):
        InteractiveShell().run_cell("from utils.files import Interrupted\nraise Interrupted('in epoch 3')")
    assert said.getvalue().strip() == "Interrupted: in epoch 3"


def _imported_with_an_interrupt(pipe):
    end_quietly()
    with suppress(BaseException):  # as what is imported may do
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    pipe.send("half imported")


def test_ctrl_c_cannot_be_swallowed_by_what_is_imported():
    process, pipe = forked(_imported_with_an_interrupt)
    process.join()
    assert process.exitcode == -signal.SIGINT
    with pytest.raises(EOFError):  # nothing was said
        pipe.recv()


def test_a_command_that_has_started_stops_by_itself():
    signals = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        end_quietly()
        with pytest.raises(SystemExit) as caught, message_alone():
            signal.raise_signal(signal.SIGINT)
        assert caught.value.code == 130
        assert signal.getsignal(signal.SIGINT) not in (signals, signal.default_int_handler)  # once more: at once
    finally:
        signal.signal(signal.SIGINT, signals)


@pytest.mark.parametrize("moment", ["while it starts", "in training"])
def test_ctrl_c_ends_a_command_with_one_line(moment, make_config, tmp_path):
    make_config({"hyperparameters.epochs": 1000})
    command = [sys.executable, "-u", "-m", "utils", "train", "--config", str(tmp_path / "config.yml")]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if moment == "in training":
        while not run.stdout.readline().startswith("Epoch 2/1000"):
            assert run.poll() is None
    else:
        while "libtorch_cpu" not in Path(f"/proc/{run.pid}/maps").read_text():  # torch is being imported
            assert run.poll() is None
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    if moment == "in training":
        assert run.returncode == 130
        cure = r"Run the same again: it goes on after the last whole epoch\."
        assert re.fullmatch(rf"Interrupted in epoch \d+\. {cure}", said.strip())
        assert not list((tmp_path / "checkpoints").glob("**/.*.pt.*"))
    else:
        assert run.returncode == -signal.SIGINT
        assert said.strip() == GOES_ON


def test_notebooks_are_not_begun_where_results_cannot_be_written(make_config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    make_config({"results_path": str(tmp_path / "file" / "results")})
    monkeypatch.setattr(sys, "argv", ["notebooks", "--config", str(tmp_path / "config.yml"), "absent.ipynb"])
    with pytest.raises(SystemExit, match=r"results_path: .*results cannot be written: Not a directory"):
        notebooks.main()
