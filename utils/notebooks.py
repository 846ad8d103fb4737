"""Notebooks executed from a terminal, and opened in JupyterLab: the commands `run` and `lab`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from traitlets.config import Config as ClientConfig

from .config import CONFIG_FILE, CONFIG_VARIABLE, Config
from .files import FileError, write_text
from .show.chooser import EXECUTING

NOTEBOOKS = "0?.*.ipynb"  # those of the project, as a pattern
COPIES = Path("notebooks")  # that `--lab` opens; not under version control
# scripts from elsewhere, for formulas and diagrams that no notebook here has
OFFLINE = "{% extends 'lab/index.html.j2' %}" + "".join(
    f"{{% block html_head_js_{name} %}}{{% endblock %}}" for name in ("requirejs", "mathjax", "mermaidjs")
)


class LiveClient(NotebookClient):
    """A notebook client that repeats what the cells print on the terminal while they run.

    Where that is a file or a pipe, progress bars, which draw over themselves, are left out.
    """

    unfinished = ""  # the line that is being written

    def output(self, outs, msg, display_id, cell_index):
        if msg["msg_type"] == "stream":
            self.repeat(msg["content"]["text"])
        return super().output(outs, msg, display_id, cell_index)

    def repeat(self, text):
        if sys.stdout.isatty():
            print(text, end="", flush=True)
            return
        *lines, self.unfinished = (self.unfinished + text).split("\n")
        for line in lines:
            print(line.rpartition("\r")[2], flush=True)


def execute(path: Path, show=True):
    """Run all cells of a notebook in a fresh kernel, in the current folder; returns the executed notebook.

    Raises CellExecutionError, with the cell and its traceback, where a cell fails, and FileError where there is no such
    notebook.
    """
    notebook = _read(path)
    kind = LiveClient if show else NotebookClient
    client = kind(
        notebook,
        kernel_name="python3",
        timeout=None,
        config=ClientConfig({"KernelManager": {"transport": "tcp" if os.name == "nt" else "ipc"}}),  # ipc opens no port
        record_timing=False,  # timestamps would change the file at every run
        coalesce_streams=True,  # progress bars leave their last state, not every step
        store_widget_state=False,  # lists do nothing without a kernel
        resources={"metadata": {"path": os.getcwd()}},
    )
    return client.execute()


def _read(path):
    try:
        return nbformat.read(path, as_version=4)
    except (AttributeError, OSError, ValueError, nbformat.ValidationError) as error:
        cause = getattr(error, "strerror", None) or "it is no notebook"
        raise FileError(f"{path} cannot be read: {cause}. Name a notebook, a file that ends in .ipynb.") from error


def write(notebook, path: Path):
    """Write a notebook as ipynb, or as HTML where the path says so, and move it into place whole."""
    if path.suffix == ".html":
        text = HTMLExporter(raw_template=OFFLINE).from_notebook_node(notebook)[0]
    else:
        text = nbformat.writes(notebook)
    write_text(path, text)


def open_lab(notebooks: list[Path], folder=COPIES) -> int:
    """Open JupyterLab on copies of the notebooks in `folder`; a copy that is there stays as the user left it.

    Returns the exit status of JupyterLab.
    """
    folder.mkdir(exist_ok=True)
    for path in notebooks:
        if not (folder / path.name).exists():
            shutil.copy(path, folder / path.name)
    print(f"These are copies, yours to change; one that you delete from {folder}/ is copied anew.")
    paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        CONFIG_VARIABLE: os.path.abspath(os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE),
    }
    command = [sys.executable, "-m", "jupyter", "lab", str(folder)]
    return subprocess.run(command, env=environment, check=False).returncode


def said_alone(error: CellExecutionError) -> str:
    """What a failing cell says: the message of an error that shows no traceback, else the cell and its traceback."""
    message = f"{error.ename}: {error.evalue}"
    return message if "Traceback" not in error.traceback and message in error.traceback else str(error)


def run_notebooks(notebooks: list[Path], config: Config, inplace=False):
    """Execute notebooks and write executed copies, as ipynb and HTML, to `results_path`.

    Args:
        notebooks: Paths of the notebooks, executed in this order.
        config: The settings; the notebooks read theirs from the file that CONFIG_VARIABLE names.
        inplace: Refresh the notebooks themselves instead of writing ipynb copies.
    """
    os.environ[EXECUTING] = "1"
    try:
        for path in notebooks:
            print(f"--- {path}")
            notebook = execute(path)
            target = path if inplace else config.results_path / path.name
            write(notebook, target)
            write(notebook, config.results_path / f"{path.stem}.html")
    except CellExecutionError as error:
        sys.exit(f"\n{said_alone(error)}")
    path = config.results_path / "metrics.json"
    if path.exists():
        metrics = json.loads(path.read_text(encoding="utf-8"))
        print(f"\nTest AUC {metrics['auc']['value']:.4f} on {metrics['pairs']} pairs ({path})")
    pages = [f"{path.stem}.html" for path in notebooks]
    if (config.results_path / "report.html").exists():
        pages.append("report.html")
    print(f"Look at: {', '.join(str(config.results_path / page) for page in pages)}")
    print(f"Figures: {config.results_path}/*.png")
