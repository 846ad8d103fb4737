"""Executes notebooks from a terminal, their output shown as it comes: behind `make run` and `make notebooks`.

`python -m utils.notebooks NOTEBOOK...` leaves the notebooks as they are and writes executed copies, as ipynb and HTML,
to `results_path`; with `--inplace` the notebooks themselves are refreshed.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from traitlets.config import Config

from utils.config import CONFIG_VARIABLE, load_config
from utils.errors import message_alone
from utils.files import write_text


class LiveClient(NotebookClient):
    """A notebook client that repeats what the cells print on the terminal while they run."""

    def output(self, outs, msg, display_id, cell_index):
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().output(outs, msg, display_id, cell_index)


def execute(path: Path, show=True):
    """Run all cells of a notebook in a fresh kernel, in the current folder; returns the executed notebook.

    Raises CellExecutionError, with the cell and its traceback, where a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    kind = LiveClient if show else NotebookClient
    client = kind(
        notebook,
        kernel_name="python3",
        timeout=None,
        config=Config({"KernelManager": {"transport": "tcp" if os.name == "nt" else "ipc"}}),  # ipc opens no port
        record_timing=False,  # timestamps would change the file at every run
        coalesce_streams=True,  # progress bars leave their last state, not every step
        resources={"metadata": {"path": os.getcwd()}},
    )
    return client.execute()


def write(notebook, path: Path):
    """Write a notebook as ipynb, or as HTML where the path says so, and move it into place whole."""
    text = HTMLExporter().from_notebook_node(notebook)[0] if path.suffix == ".html" else nbformat.writes(notebook)
    write_text(path, text)


def said_alone(error: CellExecutionError) -> str:
    """What a failing cell says: the message of an error that shows no traceback, else the cell and its traceback."""
    message = f"{error.ename}: {error.evalue}"
    return message if "Traceback" not in error.traceback and message in error.traceback else str(error)


@message_alone()
def main():
    parser = argparse.ArgumentParser(description="Execute notebooks with their output on the terminal.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--config", help="config file, also for the notebooks (default: config.yml)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that replace the file's")
    parser.add_argument("--inplace", action="store_true", help="refresh the notebooks instead of writing copies")
    options = parser.parse_args()
    config = load_config(options.config, options.set)
    config.results_path.mkdir(parents=True, exist_ok=True)
    if options.set:
        options.config = str(config.results_path / "config.yml")
        write_text(Path(options.config), f"{config.absolute()}\n")
    if options.config:
        os.environ[CONFIG_VARIABLE] = options.config
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
    print(f"Look at: {', '.join(str(config.results_path / f'{path.stem}.html') for path in options.notebooks)}")
    print(f"Figures: {config.results_path}/*.png")


if __name__ == "__main__":
    main()
