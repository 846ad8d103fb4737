"""All commands: `python -m utils COMMAND`; add `--help` to any."""

import argparse
import os
import signal
import sys
import webbrowser
from pathlib import Path

from .files import GOES_ON, FileError, UserError, check_writable, prepare_output, without_traceback, write_text

LOADING = "Loading PyTorch ..."
CORRECTIONS_FILE = "corrections.csv"  # beside the config, where it names no other
utils = sys.modules[__package__]  # whose names load their modules when they are first used


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
    from .data.images import write_unreadable
    from .device import from_first, leave, rank
    from .train.runs import claimed

    config = utils.load_config(options.config, options.set)
    runtime = utils.start(config)
    with claimed(config.checkpoints_path):  # from training to its results
        if rank() == 0:
            utils.ensure_sample(config.data_path)
        from_first(None)  # the others wait for the sample
        splits = utils.load_splits(config)
        write_unreadable(splits.unreadable, config.results_path)
        baseline = utils.frozen_baseline(config, splits, runtime)
        if rank() == 0:
            print(baseline)
        utils.fit(config, splits, runtime)
        from_first(None)  # and for the last checkpoint
        trained = utils.load_trained(config, runtime)
        distances = trained.distances(splits, splits.test_pairs)
        if not leave():
            return
        trained = utils.calibrate(trained, splits, distances)
        metrics = utils.write_metrics(trained, splits, distances, baseline)
        print(trained.measurements)
        print(utils.diagnose(trained, splits, distances))
        print(f"{metrics}\nTest AUC {metrics['auc'].interval} ({config.results_path}/metrics.json)")


def explain(options):
    """Explain two image files without training, on one page, or many pairs with the trained network, in a folder.

    With several GPUs: torchrun --nproc-per-node N -m utils explain --pairs FILE --out FOLDER.
    """
    from .device import leave

    many = options.pairs or options.folders
    if bool(options.images) == bool(many):
        raise UserError("explain: name two image files, --pairs or --folders")
    if options.images:
        _explain_untrained(options)
        return
    if options.out is None:
        raise UserError("--out: name the folder that is written to")
    trained = utils.load_trained(utils.load_config(options.config, options.set))
    table = utils.explain_folder(trained, many, options.out, options.judged)
    if leave():
        print(f"{len(table)} pairs: {options.out}/scores.csv")


def _explain_untrained(options):
    """Write the page of two image files, and open it."""
    if len(options.images) != 2:
        raise UserError(f"explain: {len(options.images)} image files are named; name two, or a list of pairs: --pairs")
    folder = Path(options.out or "results")
    check_writable(folder, "--out")
    page = utils.explain_files(*options.images, options.backbone).saved(folder)
    path = folder / f"{page.name}.html"
    print(path)
    if not options.no_browser:
        webbrowser.open(path.resolve().as_uri())


def audit(options):
    """List problems of the images in `data_path`, and a page to review them; or turn a review into corrections."""
    from .config import config_file
    from .data.corrections import apply_review

    config = utils.load_config(options.config, options.set)
    if options.apply is None:
        utils.ensure_sample(config.data_path)
        problems = utils.find_problems(config)
        problems.write(config.results_path)
        utils.review(problems.table, config.data_path, config.image.value_range).saved(config.results_path)
        print(f"{problems}\n{config.results_path}/problems.csv, and to review them {config.results_path}/review.html")
        return
    path = config_file(options.config)
    file = config.corrections or path.with_name(CORRECTIONS_FILE)
    print(apply_review(options.apply, file, utils.scan(config.data_path)))
    if config.corrections is None and file.exists():
        print(f"To use {file}, set in {path}: corrections: {file.name}")


def search(options):
    """List the images of a folder, or the test images, that are most similar to one image."""
    from .device import leave

    trained = utils.load_trained(utils.load_config(options.config, options.set))
    pairs = utils.most_similar(trained, options.image, options.count, utils.gallery(trained, options.folder))
    if leave():
        print(utils.scores_table(pairs).to_string(index=False))


def identify(options):
    """Say of each image of a folder which class of a gallery it is of, or that it is unknown: a table and a page."""
    from .device import leave

    trained = utils.load_trained(utils.load_config(options.config, options.set))
    out = options.out or trained.config.results_path / "identified"
    table = utils.identify_folder(trained, options.images, options.gallery, out)
    if leave():
        print(f"{len(table)} images: {out}/identified.csv, {out}/identified.html")


def report(options):
    """Write report.html, one page about the current run, to `results_path`."""
    trained = utils.load_trained(utils.load_config(options.config, options.set))
    config = trained.config
    splits = trained.load_splits()
    distances = trained.distances(splits, splits.test_pairs)
    metrics = utils.write_metrics(trained, splits, distances, utils.frozen_baseline(config, splits, trained.runtime))
    pairs = utils.choose_pairs(splits, config.explanation.test_pairs, config.seed)
    comparison = utils.compare(utils.methods_of(trained.settings), trained, pairs, splits, config.seed)
    suspects = utils.find_suspects(trained, splits)
    page = utils.report(
        trained, splits, distances, metrics, comparison, suspects, utils.find_shortcuts(trained, splits)
    )
    page.saved(config.results_path)
    print(f"{config.results_path}/report.html: {page}")


def sample(options):
    """Make the bundled sample in a folder."""
    from .data.sample import make_sample

    make_sample(options.folder)


def _notebooks_and_config(options):
    """Return the notebooks that are named, or all of the project, and the config, which their kernels read too."""
    from .config import CONFIG_VARIABLE, PROJECT
    from .notebooks import NOTEBOOKS

    config = utils.load_config(options.config, options.set)
    check_writable(config.results_path, "results_path")
    if options.set:
        options.config = str(config.results_path / "config.yml")
        write_text(options.config, f"{config.absolute()}\n")
    if options.config:
        os.environ[CONFIG_VARIABLE] = options.config
    notebooks = options.notebooks or sorted(Path().glob(NOTEBOOKS))
    if not notebooks:
        raise FileError(f"{Path.cwd()} holds no notebook {NOTEBOOKS}: start in {PROJECT}, or name notebooks.")
    return notebooks, config


def _parser():
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(function):
        command = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        command.set_defaults(function=function)
        return command

    def add_with_config(function):
        command = add(function)
        command.add_argument("--config", help="config file (default: config.yml)")
        changes = "settings that replace the file's"
        command.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help=changes)
        return command

    command = add_with_config(run)
    command.add_argument("notebooks", nargs="*", type=Path, help="default: all of the project")
    command.add_argument("--inplace", action="store_true", help="refresh the notebooks instead of writing copies")
    add_with_config(train)
    command = add_with_config(explain)
    command.add_argument("images", nargs="*", metavar="IMAGE", help="two image files, explained without any training")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--pairs", help="CSV file with columns image1 and image2")
    source.add_argument("--folders", nargs=2, help="two folders: every image of one with every image of the other")
    out = "folder that is written to (of two images: results); an unfinished one of many pairs is continued"
    command.add_argument("--out", help=out)
    command.add_argument("--judged", action="store_true", help="of many pairs: also say how faithful each map is")
    backbone = "of two images: pretrained model of timm (default: tf_efficientnet_lite0, which is installed)"
    command.add_argument("--backbone", default="tf_efficientnet_lite0", help=backbone)
    command.add_argument("--no-browser", action="store_true", help="of two images: write the page and do not open it")
    command = add_with_config(audit)
    applied = "a saved review (CSV), whose decisions are added to the file of `corrections`"
    command.add_argument("--apply", metavar="REVIEW", help=applied)
    command = add_with_config(search)
    command.add_argument("image", help="the image that others are compared with")
    command.add_argument("--folder", help="folder of the images to search (default: the test images)")
    command.add_argument("--count", type=int, default=5, help="how many images are listed (default: 5)")
    command = add_with_config(identify)
    command.add_argument("images", help="folder of the images that are identified")
    command.add_argument("--gallery", required=True, help="folder of known images, with a folder for each class")
    command.add_argument("--out", help="folder that is written to (default: identified in results_path)")
    add_with_config(report)
    command = add_with_config(lab)
    command.add_argument("notebooks", nargs="*", type=Path, help="default: all of the project")
    add(sample).add_argument("folder", nargs="?", default="Data/Butterflies", help="default: Data/Butterflies")
    return parser


@without_traceback()
def main():
    """Run the command of `sys.argv`."""
    prepare_output()
    options = _parser().parse_args()
    print(LOADING, file=sys.stderr)
    _load_torch()
    options.function(options)


def _end_at_once(number, _):
    print(f"\n{GOES_ON}", file=sys.stderr)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)  # so that the shell knows what ended the process


def _load_torch():
    """Load torch. Ctrl-C meanwhile ends the process with one line: an exception would leave torch half loaded."""
    if "OMP_WAIT_POLICY" not in os.environ:  # read now: how long a thread spins before it sleeps
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # two processes that share cores would slow each other
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # or the shell has it ignored
    if interruptible:
        signal.signal(signal.SIGINT, _end_at_once)
    import torch  # noqa: F401

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    main()
