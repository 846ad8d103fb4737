"""All commands: `python -m utils COMMAND`, with `--help` for each."""

import argparse
import os
import sys
from pathlib import Path

from .files import FileError, end_quietly, message_alone, print_any_name, write_text

if __name__ == "__main__":  # while torch is being loaded, Ctrl-C ends the process with one line
    end_quietly()
if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is loaded: how long a thread spins before it sleeps
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # where two processes share the cores, spinning starves both


def run(options):
    """Execute the notebooks; copies, figures and a report go to `results_path`."""
    from .notebooks import run_notebooks

    notebooks, config = _notebooks_and_config(options)
    run_notebooks(notebooks, config, options.inplace)


def lab(options):
    """Open copies of the notebooks in JupyterLab."""
    from .notebooks import open_lab

    notebooks, _ = _notebooks_and_config(options)
    sys.exit(open_lab(notebooks))


def train(options):
    """Train and test without a notebook; with several GPUs: torchrun --nproc-per-node N -m utils train."""
    import torch.distributed as dist

    from .audit.diagnosis import diagnose
    from .data.images import write_unreadable
    from .data.sample import ensure_sample
    from .data.splits import load_splits
    from .device import from_first, rank, start
    from .train.evaluation import frozen_baseline
    from .train.loop import fit
    from .train.runs import claimed
    from .trained import calibrate, load_trained, write_metrics

    config = _config(options)
    runtime = start(config)
    with claimed(config.checkpoints_path):  # from training to its results
        if rank() == 0:
            ensure_sample(config.data_path)
        from_first(None)  # the others wait for the sample
        splits = load_splits(config)
        write_unreadable(splits.unreadable, config.results_path)
        baseline = frozen_baseline(config, splits, runtime)
        if rank() == 0:
            print(baseline)
        fit(config, splits, runtime)
        from_first(None)  # and for the last checkpoint
        trained = load_trained(config, runtime)
        distances = trained.distances(splits, splits.test_pairs)
        first = rank() == 0
        if dist.is_initialized():
            dist.destroy_process_group()
        if not first:
            return
        trained = calibrate(trained, splits, distances)
        metrics = write_metrics(trained, splits, distances, baseline)
        print(trained.measurements)
        print(diagnose(trained, splits, distances))
        print(f"{metrics}\nTest AUC {metrics['auc'].interval} ({config.results_path}/metrics.json)")


def explain(options):
    """Explain many pairs of image files: heatmaps, pictures and a table."""
    from .show.folder import SCORES, explain_folder
    from .trained import load_trained

    trained = load_trained(_config(options))
    table = explain_folder(trained, options.pairs or options.folders, options.out, options.judged)
    print(f"{len(table)} pairs: {options.out}/{SCORES}")


def audit(options):
    """Say what is wrong with the images of `data_path`, before training."""
    from .audit.images import audit_images
    from .data.sample import ensure_sample
    from .data.splits import load_images

    config = _config(options)
    ensure_sample(config.data_path)
    print(audit_images(*load_images(config)))


def search(options):
    """List the images of a folder, or the test images, that are most similar to one image."""
    from .search.gallery import gallery, most_similar
    from .search.ranked import scores_table
    from .trained import load_trained

    trained = load_trained(_config(options))
    images = gallery(trained, options.folder)
    print(scores_table(most_similar(trained, options.image, options.count, images)).to_string(index=False))


def report(options):
    """Write report.html, one page about the current run, to `results_path`."""
    from .audit.labels import find_suspects
    from .audit.shortcuts import find_shortcuts
    from .explanations.methods import methods_of
    from .show.report import report
    from .train.evaluation import frozen_baseline
    from .trained import load_trained, write_metrics
    from .trust.comparison import choose_pairs, compare

    trained = load_trained(_config(options))
    config = trained.config
    splits = trained.load_splits()
    distances = trained.distances(splits, splits.test_pairs)
    metrics = write_metrics(trained, splits, distances, frozen_baseline(config, splits, trained.runtime))
    pairs = choose_pairs(splits, config.explanation.test_pairs, config.seed)
    comparison = compare(methods_of(trained.settings), trained, pairs, splits, config.seed)
    page = report(
        trained, splits, distances, metrics, comparison, find_suspects(trained, splits), find_shortcuts(trained, splits)
    )
    page.saved(config.results_path)
    print(f"{config.results_path}/report.html: {page}")


def sample(options):
    """Make the bundled sample in a folder."""
    from .data.sample import make_sample

    make_sample(options.folder)


def _config(options):
    from .config import load_config

    return load_config(options.config, options.set)


def _notebooks_and_config(options):
    """The notebooks that are named, or all; their kernels read the config file that is named."""
    from .config import CONFIG_VARIABLE, PROJECT
    from .files import check_writable
    from .notebooks import NOTEBOOKS

    config = _config(options)
    check_writable(config.results_path, "results_path")
    if options.set:
        options.config = str(config.results_path / "config.yml")
        write_text(Path(options.config), f"{config.absolute()}\n")
    if options.config:
        os.environ[CONFIG_VARIABLE] = options.config
    notebooks = options.notebooks or sorted(Path().glob(NOTEBOOKS))
    if not notebooks:
        raise FileError(f"{Path.cwd()} holds no notebook {NOTEBOOKS}: start in {PROJECT}, or name notebooks.")
    return notebooks, config


def _parser():
    parser = argparse.ArgumentParser(prog="python -m utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function):
        added = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        added.set_defaults(function=function)
        if function is not sample:
            added.add_argument("--config", help="config file (default: config.yml)")
            added.add_argument(
                "--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that replace the file's"
            )
        return added

    notebooks = command(run)
    notebooks.add_argument("notebooks", nargs="*", type=Path, help="default: all of the project")
    notebooks.add_argument("--inplace", action="store_true", help="refresh the notebooks instead of writing copies")
    command(train)
    pairs = command(explain)
    source = pairs.add_mutually_exclusive_group(required=True)
    source.add_argument("--pairs", help="CSV file with columns image1 and image2")
    source.add_argument("--folders", nargs=2, help="two folders: every image of one beside every image of the other")
    pairs.add_argument("--out", required=True, help="folder that is written to; an unfinished one is continued")
    pairs.add_argument("--judged", action="store_true", help="also say how faithful each map is")
    command(audit)
    similar = command(search)
    similar.add_argument("image", help="the image that others are compared with")
    similar.add_argument("--folder", help="folder of the images to search (default: the test images)")
    similar.add_argument("--count", type=int, default=5, help="how many images are listed (default: 5)")
    command(report)
    opened = command(lab)
    opened.add_argument("notebooks", nargs="*", type=Path, help="default: all of the project")
    command(sample).add_argument("folder", nargs="?", default="Data/Shapes", help="default: Data/Shapes")
    return parser


@message_alone()
def main():
    print_any_name()
    options = _parser().parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
