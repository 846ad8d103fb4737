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

from utils import __main__ as commands
from utils.config import CONFIG_VARIABLE, ConfigError
from utils.data.reading import DataError
from utils.files import GOES_ON, Interrupted, UserError, is_ctrl_c, without_traceback
from utils.train import loop
from utils.train.loop import TrainingError
from utils.train.runs import CheckpointError

KINDS = {ConfigError: ValueError, DataError: ValueError, CheckpointError: RuntimeError, TrainingError: RuntimeError}


@pytest.mark.parametrize("kind", KINDS)
def test_ipython_shows_the_message_alone(kind):
    assert issubclass(kind, UserError)
    assert issubclass(kind, KINDS[kind])
    output = io.StringIO()
    with redirect_stdout(output):
        shell = InteractiveShell()
        shell.run_cell(f"from {kind.__module__} import {kind.__name__}\nraise {kind.__name__}('seed: cure it')")
    assert output.getvalue().strip() == f"{kind.__name__}: seed: cure it"
    with redirect_stdout(output):
        shell.run_cell("1 / 0")
    assert "Traceback" in output.getvalue()


def test_a_command_ends_with_the_message_and_status_1():
    @without_traceback()
    def command(error):
        raise error

    with pytest.raises(SystemExit, match="seed: cure it"):
        command(ConfigError("seed: cure it"))
    with pytest.raises(ZeroDivisionError):
        command(ZeroDivisionError())


@pytest.mark.parametrize("arguments", [["train"], ["run", "01.Train_Siamese_model.ipynb"]])
def test_no_traceback_on_a_terminal(arguments, make_config, tmp_path, monkeypatch, capsys):
    """test_package.py reads what a process leaves on its standard error."""
    make_config()
    path = tmp_path / "config.yml"
    path.write_text(path.read_text() + "sed: 1\n")
    monkeypatch.setattr(sys, "argv", ["utils", *arguments, "--config", str(path)])
    with pytest.raises(SystemExit) as caught:
        commands.main()
    assert caught.value.code == f"\n{path}: sed: unknown key; did you mean seed?"
    assert capsys.readouterr().err == f"{commands.LOADING}\n"


@pytest.mark.parametrize(
    ("source", "whole"),
    [("from utils import load_config\nload_config('absent.yml')", True), ("def f():\n    1 / 0\nf()", False)],
)
def test_a_notebook_that_fails_says_why_and_leaves_nothing(source, whole, make_config, tmp_path, monkeypatch):
    make_config()
    cell = nbformat.v4.new_code_cell(source)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "small.ipynb")
    monkeypatch.setenv(CONFIG_VARIABLE, "")  # restored afterwards
    arguments = ["run", "--config", str(tmp_path / "config.yml"), str(tmp_path / "small.ipynb")]
    monkeypatch.setattr(sys, "argv", ["utils", *arguments])
    with pytest.raises(SystemExit) as caught:
        commands.main()
    message = str(caught.value).strip()
    if whole:
        assert re.fullmatch(r"ConfigError: \S*absent\.yml: no such file\. .*", message)
    else:
        assert "ZeroDivisionError" in message
        assert "f()" in message
    assert list((tmp_path / "results").iterdir()) == []


def test_ipython_says_one_line_of_an_interruption():
    output = io.StringIO()
    with redirect_stdout(output):
        InteractiveShell().run_cell("from utils.files import Interrupted\nraise Interrupted('in epoch 3')")
    assert output.getvalue().strip() == "Interrupted: in epoch 3"


def _imported_with_an_interrupt(pipe):
    class Torch:
        """Stands for an import that swallows exceptions."""

        def find_spec(self, name, path=None, target=None):
            with suppress(BaseException):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)

    sys.modules.pop("torch", None)
    sys.meta_path.insert(0, Torch())
    commands._load_torch()
    pipe.send("half imported")


def test_ctrl_c_cannot_be_swallowed_by_what_is_imported():
    process, pipe = forked(_imported_with_an_interrupt)
    process.join()
    assert process.exitcode == -signal.SIGINT
    with pytest.raises(EOFError):
        pipe.recv()


def test_a_command_that_has_started_stops_by_itself():
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        commands._load_torch()
        with pytest.raises(SystemExit) as caught, without_traceback():
            signal.raise_signal(signal.SIGINT)
        assert caught.value.code == 130
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_command_that_starts_with_one_line(make_config, tmp_path):
    make_config()
    command = [sys.executable, "-u", "-m", "utils", "train", "--config", str(tmp_path / "config.yml")]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "libtorch_cpu" not in Path(f"/proc/{run.pid}/maps").read_text():  # torch is being imported
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, message = run.communicate(timeout=60)
    assert run.returncode == -signal.SIGINT
    assert message.split("\n\n") == [commands.LOADING, f"{GOES_ON}\n"]


def _train(folder, pipe):
    sys.stdout = (folder / "stdout").open("w", buffering=1)
    sys.stderr = (folder / "stderr").open("w", buffering=1)
    sys.argv = ["utils", "train", "--config", str(folder / "config.yml")]
    commands.main()


def test_ctrl_c_ends_training_with_one_line(make_config, tmp_path):
    make_config({"hyperparameters.epochs": 1000})
    process, _ = forked(_train, tmp_path)
    printed = tmp_path / "stdout"
    while not printed.exists() or "Epoch 2/1000" not in printed.read_text():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    cure = r"Run the same again: it goes on after the last whole epoch\."
    message = (tmp_path / "stderr").read_text().removeprefix(commands.LOADING).strip()
    assert re.fullmatch(rf"Interrupted in epoch \d+\. {cure}", message)
    assert process.exitcode == 130
    assert not list((tmp_path / "checkpoints").glob("**/.*.pt.*"))


@pytest.mark.parametrize("kind", [SystemError, RuntimeError, ValueError])  # the last one is pydantic's
def test_ctrl_c_that_native_code_has_turned_into_another_error(kind, make_config, monkeypatch, capsys):
    def interrupted(*_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise kind("returned a result with an exception set") from error

    monkeypatch.setattr(loop, "optimize", interrupted)
    with pytest.raises(Interrupted, match="Interrupted in epoch 1"):
        loop.fit(make_config())
    with pytest.raises(SystemExit) as caught, without_traceback():
        interrupted()
    assert caught.value.code == 130
    assert capsys.readouterr().err.strip() == GOES_ON
    assert is_ctrl_c(RuntimeError("KeyboardInterrupt: <EMPTY MESSAGE>"))
    with pytest.raises(RuntimeError, match="another cause"), without_traceback():
        raise RuntimeError("another cause")


def test_notebooks_are_not_begun_where_results_cannot_be_written(make_config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    make_config({"results_path": str(tmp_path / "file" / "results")})
    monkeypatch.setattr(sys, "argv", ["utils", "run", "--config", str(tmp_path / "config.yml"), "absent.ipynb"])
    with pytest.raises(SystemExit, match=r"results_path: .*results cannot be written: Not a directory"):
        commands.main()
