import ast
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
from helpers import ROOT

from utils import __main__ as commands
from utils import notebooks

NOTEBOOKS = sorted(ROOT.glob(notebooks.NOTEBOOKS))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_short_cells_under_headings(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown"
            assert before.source.startswith("#")
            assert len(cell.source.splitlines()) <= 8
            assert not any(word in cell.source for word in ("def ", "class ", "lambda", "for ", "while ", "if "))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_sentence_tells_a_result(path):
    """Text around the cells holds for any dataset: what was found on one is in the outputs, where code writes it."""
    notebook = nbformat.read(path, as_version=4)
    text = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "the sample" not in text
    numbers = re.findall(r"\d+(?:\.\d+)? ?%|\d\.\d\d", text)
    assert set(numbers) <= {"95 %"}  # of intervals


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_are_executed_in_order(path):
    notebook = nbformat.read(path, as_version=4)
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 2_000_000


def test_all_notebooks_run_on_any_dataset(make_config, tmp_path, monkeypatch, capsys):
    make_config({"hyperparameters.epochs": 5, "explanation.test_pairs": 4})
    committed = [path.read_bytes() for path in NOTEBOOKS]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(notebooks.CONFIG_VARIABLE, "")  # restored afterwards
    monkeypatch.setattr(sys, "argv", ["utils", "run", "--config", str(tmp_path / "config.yml")])
    commands.main()
    printed = capsys.readouterr().out
    results = tmp_path / "results"
    metrics = json.loads((results / "metrics.json").read_text())
    assert "Epoch 5/5" in printed  # progress on the terminal
    assert f"Test AUC {metrics['auc']['value']:.4f}" in printed.splitlines()[-3]
    assert all(str(results / f"{path.stem}.html") in printed.splitlines()[-2] for path in NOTEBOOKS)
    assert str(results / "report.html") in printed.splitlines()[-2]
    assert "\r" not in printed  # progress bars would draw over themselves, which a file shows as one long line
    assert [path.read_bytes() for path in NOTEBOOKS] == committed
    names = {path.name for path in results.iterdir()}
    assert {path.name for path in NOTEBOOKS} | {f"{path.stem}.html" for path in NOTEBOOKS} <= names
    assert {"history.png", "roc.png", "distances.png", "sanity.png"} <= names
    kinds = ("factual_map_", "explanation_same", "explanation_different", "methods_", "matches_", "edit_same")
    assert all(any(name.startswith(kind) for name in names) for kind in kinds)
    for path in NOTEBOOKS:
        executed = nbformat.read(results / path.name, as_version=4)
        assert all(cell.outputs for cell in code_cells(executed))  # every cell shows something
        assert not any(output.get("name") == "stderr" for cell in code_cells(executed) for output in cell.outputs)


def test_bars_are_left_out_where_no_one_looks_on(tmp_path, capsys):
    texts = ("Epoch 1\n\rTraining:  50%", "\rTraining: 100%", "\r            \rEpoch", " 2\nEnd\n")
    source = f"import sys\nfor text in {texts}:\n    sys.stdout.write(text)\n    sys.stdout.flush()"
    path = tmp_path / "bars.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    notebooks.execute(path)
    assert capsys.readouterr().out == "Epoch 1\nEpoch 2\nEnd\n"


def test_widgets_are_dropped_and_the_text_beside_them_stays(tmp_path):
    source = "from ipywidgets import IntSlider\nIntSlider()"
    path = tmp_path / "widgets.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    (output,) = notebooks.execute(path).cells[0].outputs
    assert list(output.data) == ["text/plain"]


def test_lab_opens_copies_and_keeps_those_that_were_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(notebooks.CONFIG_VARIABLE, "mine.yml")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / NOTEBOOKS[0].name).write_text("mine")
    started = []

    def run(command, env, check):
        started.append((command, env))
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(notebooks.subprocess, "run", run)
    assert notebooks.open_lab(NOTEBOOKS) == 3
    ((command, environment),) = started
    assert command[1:4] == ["-m", "jupyter", "lab"]
    assert f"--ServerApp.root_dir={tmp_path}" in command  # images, config.yml and results can be reached
    assert f"--LabApp.default_url=/lab/tree/notebooks/{NOTEBOOKS[0].name}" in command
    assert ("--allow-root" in command) == (os.geteuid() == 0)
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path)  # `utils` is found from the copies' folder
    assert environment[notebooks.CONFIG_VARIABLE] == str(tmp_path / "mine.yml")
    assert (tmp_path / "notebooks" / NOTEBOOKS[0].name).read_text() == "mine"
    for path in NOTEBOOKS[1:]:
        copy, original = (nbformat.read(file, as_version=4) for file in (tmp_path / "notebooks" / path.name, path))
        assert [cell.source for cell in copy.cells] == [cell.source for cell in original.cells]
        assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(copy))


def test_exported_pages_load_nothing(tmp_path):
    for path in NOTEBOOKS:
        notebooks.write(nbformat.read(path, as_version=4), tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert not re.findall(r"""(?:src|href)=["']https?:[^"']*|import\(["']https?:[^"']*""", page)


@pytest.mark.parametrize(("name", "python"), [("pytorch_siamese", "/some/where/bin/python"), ("", ".venv/bin/python")])
def test_each_target_is_a_python_command_of_the_environment_in_use(name, python):
    environment = os.environ | {"CONDA_DEFAULT_ENV": name, "CONDA_PREFIX": "/some/where"}
    for target, module in {"run": "utils run", "lab": "utils lab", "test": "pytest"}.items():
        command = ["make", "--dry-run", "--no-print-directory", "--old-file", "requirements.txt", target]
        lines = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        assert f"{python} -m {module}" in lines
        assert name == "" or ".venv" not in lines


def test_in_place_refreshes_the_notebook_itself(make_config, tmp_path, monkeypatch):
    make_config()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "metrics.json").write_text('{"auc": {"value": 0.5}, "pairs": 2}')
    path = tmp_path / "small.ipynb"
    source = "import os\nfrom utils.config import CONFIG_VARIABLE\nos.environ[CONFIG_VARIABLE]"
    cell = nbformat.v4.new_code_cell(source)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    monkeypatch.setenv(notebooks.CONFIG_VARIABLE, "")
    arguments = ["utils", "run", "--config", str(tmp_path / "config.yml"), "--inplace", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    commands.main()
    shown = nbformat.read(path, as_version=4).cells[0].outputs[0].data["text/plain"]
    assert shown == repr(str(tmp_path / "config.yml"))


def run_cells(order, cells, namespace, results):
    """Run code cells in this order; returns the figures that lie in `results` then, by name."""
    for number in order:
        exec(compile(cells[number], f"cell {number}", "exec"), namespace)
    return {path.name: path.read_bytes() for path in results.glob("*.png")}


def test_cells_run_in_any_order_show_the_same(make_config, checkpoints, monkeypatch):
    """Every cell of notebook 02 again, backwards: each has now run before and after each other one, and each saved
    figure stays as it was.
    """
    config = make_config({"checkpoints_path": str(checkpoints)})
    monkeypatch.setenv(notebooks.CONFIG_VARIABLE, str(config.results_path.parent / "config.yml"))
    cells = [cell.source for cell in code_cells(nbformat.read(NOTEBOOKS[1], as_version=4))]
    numbers = list(range(len(cells)))
    namespace = {}
    once = run_cells(numbers, cells, namespace, config.results_path)
    assert len(once) >= 8
    assert run_cells(numbers[::-1], cells, namespace, config.results_path) == once


def test_no_variable_serves_two_pairs():
    """In notebook 02 no cell changes what an earlier cell has set."""
    names = []
    for cell in code_cells(nbformat.read(NOTEBOOKS[1], as_version=4)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.append(node.id)
    assert len(set(names)) == len(names)
