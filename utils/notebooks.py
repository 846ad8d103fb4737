"""Runs notebooks from a terminal: behind `make run`, `make notebooks` and `make lab`.

`python -m utils.notebooks` executes all notebooks of the project, or those that are named, leaves them as they are and
writes executed copies, as ipynb and HTML, to `results_path`; with `--inplace` the notebooks themselves are refreshed.
`--lab` opens copies in JupyterLab, which saves whatever is changed or run.
"""

import argparse
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
from traitlets.config import Config

from utils.config import CONFIG_FILE, CONFIG_VARIABLE, PROJECT, load_config
from utils.errors import message_alone
from utils.files import FileError, check_writable, write_text
from utils.pages.chooser import EXECUTING

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
        config=Config({"KernelManager": {"transport": "tcp" if os.name == "nt" else "ipc"}}),  # ipc opens no port
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


@message_alone()
def main():
    parser = argparse.ArgumentParser(description="Execute notebooks with their output on the terminal.")
    parser.add_argument("notebooks", nargs="*", type=Path, help=f"default: {NOTEBOOKS}")
    parser.add_argument("--config", help="config file, also for the notebooks (default: config.yml)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that replace the file's")
    parser.add_argument("--inplace", action="store_true", help="refresh the notebooks instead of writing copies")
    parser.add_argument("--lab", action="store_true", help="open copies in JupyterLab instead")
    options = parser.parse_args()
    options.notebooks = options.notebooks or sorted(Path().glob(NOTEBOOKS))
    config = load_config(options.config, options.set)
    check_writable(config.results_path, "results_path")
    if options.set:
        options.config = str(config.results_path / "config.yml")
        write_text(Path(options.config), f"{config.absolute()}\n")
    if options.config:
        os.environ[CONFIG_VARIABLE] = options.config
    if not options.notebooks:
        raise FileError(f"{Path.cwd()} holds no notebook {NOTEBOOKS}: start in {PROJECT}, or name notebooks.")
    if options.lab:
        sys.exit(open_lab(options.notebooks))
    os.environ[EXECUTING] = "1"
    try:
        for path in options.notebooks:
            print(f"--- {path}")
            notebook = execute(path)
            targets = [path] if options.inplace else [config.results_path / path.name]
            for target in [*targets, config.results_path / f"{path.stem}.html"]:
                write(notebook, target)
    except CellExecutionError as error:
        sys.exit(f"\n{said_alone(error)}")
    path = config.results_path / "metrics.json"
    if path.exists():
        metrics = json.loads(path.read_text(encoding="utf-8"))
        print(f"\nTest AUC {metrics['auc']['value']:.4f} on {metrics['pairs']} pairs ({path})")
    pages = [f"{path.stem}.html" for path in options.notebooks]
    pages += ["report.html"] * (config.results_path / "report.html").exists()
    print(f"Look at: {', '.join(str(config.results_path / page) for page in pages)}")
    print(f"Figures: {config.results_path}/*.png")


if __name__ == "__main__":
    main()
