"""Execute notebooks from a terminal, and open them in JupyterLab: the commands `run` and `lab`."""

import json
import os
import subprocess
import sys
import tempfile
import webbrowser
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ClearOutputPreprocessor
from traitlets.config import Config as ClientConfig

from .config import CONFIG_FILE, CONFIG_VARIABLE, Config
from .files import FileError, LogLines, write_text

NOTEBOOKS = "0?.*.ipynb"  # pattern of the project's notebooks
COPIES = Path("notebooks")  # that `lab` opens; not under version control
WIDGET = "application/vnd.jupyter.widget-view+json"
# without the scripts from elsewhere for formulas and diagrams, of which no notebook here has any
OFFLINE = """
{%- extends 'lab/index.html.j2' -%}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
"""


class LiveClient(NotebookClient):
    """A notebook client that prints what the cells print, and drops widgets, which are dead without a kernel.

    A file or a pipe gets lines instead of bars, which overwrite themselves.
    """

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.shown = sys.stdout
        if not sys.stdout.isatty():
            self.shown = LogLines()

    def output(self, outs, msg, display_id, cell_index):
        if msg["msg_type"] == "stream":
            self.shown.write(msg["content"]["text"])
            self.shown.flush()
        msg["content"].get("data", {}).pop(WIDGET, None)
        return super().output(outs, msg, display_id, cell_index)


def execute(path: Path):
    """Run all cells of a notebook in a new kernel, in the current folder; return the executed notebook.

    Raises:
        CellExecutionError: A cell fails.
        FileError: The notebook cannot be read.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except (AttributeError, OSError, ValueError, nbformat.ValidationError) as error:
        cause = getattr(error, "strerror", None) or "it is not a notebook"
        raise FileError(f"{path} cannot be read: {cause}. Name a notebook, a file that ends in .ipynb.") from error
    with tempfile.TemporaryDirectory(prefix="kernel") as folder:
        connection = {"transport": "ipc", "ip": f"{folder}/socket"}  # opens no port; sockets of its own
        if os.name == "nt":
            connection = {"transport": "tcp"}
        client = LiveClient(
            notebook,
            kernel_name="python3",
            timeout=None,
            config=ClientConfig({"KernelManager": connection}),
            record_timing=False,  # timestamps would change the file in every run
            coalesce_streams=True,  # progress bars leave their last state, not every step
            store_widget_state=False,
        )
        return client.execute()


def write(notebook, path: Path):
    """Write a notebook as ipynb, or as HTML if the name of the file ends so, whole or not at all."""
    if path.suffix == ".html":
        text, _ = HTMLExporter(raw_template=OFFLINE).from_notebook_node(notebook)
    else:
        text = nbformat.writes(notebook)
    write_text(path, text)


def run_notebooks(notebooks: list[Path], config: Config, inplace=False):
    """Execute notebooks and write executed copies, as ipynb and HTML, to `results_path`.

    Args:
        notebooks: Paths of the notebooks, executed in this order.
        config: The settings; the notebooks read theirs from the file that CONFIG_VARIABLE names.
        inplace: Write the executed notebooks over the notebooks themselves instead of to copies.
    """
    results = config.results_path
    pages = []
    for path in notebooks:
        print(f"--- {path}")
        try:
            notebook = execute(path)
        except CellExecutionError as error:
            sys.exit(f"\n{_message(error)}")
        target = results / path.name
        if inplace:
            target = path
        write(notebook, target)
        pages.append(results / f"{path.stem}.html")
        write(notebook, pages[-1])
    metrics_path = results / "metrics.json"
    if metrics_path.exists():
        metrics = json.loads(metrics_path.read_text(encoding="utf-8"))
        print(f"\nTest AUC {metrics['auc']['value']:.4f} on {metrics['pairs']} pairs ({metrics_path})")
    if (results / "report.html").exists():
        pages.append(results / "report.html")
    print(f"Pages: {', '.join(map(str, pages))}")
    print(f"Figures: {results}/*.png")
    if sys.stdout.isatty():  # somebody looks on
        webbrowser.open(pages[-1].resolve().as_uri())


def _message(error: CellExecutionError):
    """Return the message of an error that shows no traceback, otherwise the cell and the traceback."""
    message = f"{error.ename}: {error.evalue}"
    if "Traceback" not in error.traceback and message in error.traceback:
        return message
    return str(error)


def open_lab(notebooks: list[Path]) -> int:
    """Open JupyterLab in the current folder with copies of notebooks in COPIES.

    They have no outputs, which would be taken for those of one's own images. Existing copies stay as the user left
    them.

    Returns:
        The exit status of JupyterLab.
    """
    COPIES.mkdir(exist_ok=True)
    for path in notebooks:
        if not (COPIES / path.name).exists():
            notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(path, as_version=4), {})
            write(notebook, COPIES / path.name)
    print(f"These are copies, yours to change; a copy that you delete from {COPIES}/ is copied again.")
    folders = [os.getcwd()]  # where kernels find this package
    if "PYTHONPATH" in os.environ:
        folders.append(os.environ["PYTHONPATH"])
    config = os.path.abspath(os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), CONFIG_VARIABLE: config}
    command = [sys.executable, "-m", "jupyter", "lab", f"--ServerApp.root_dir={os.getcwd()}"]
    command += [f"--LabApp.default_url=/lab/tree/{COPIES}/{notebooks[0].name}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # as in most containers
        command.append("--allow-root")
    return subprocess.run(command, env=environment, check=False).returncode
