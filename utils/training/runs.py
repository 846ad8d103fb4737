"""Each training run in a folder of its own below `checkpoints_path`: `<date>_<time>_<fingerprint>`, never overwritten.

A run is there as soon as it has its best.pt; the file `current` names the one that is loaded by default.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from utils.config import Config, ConfigError
from utils.files import atomic, write_text
from utils.training.checkpoint import (
    SPLIT_KEYS,
    CheckpointError,
    changed_since,
    load_checkpoint,
    settings_digest,
    short_name,
)
from utils.training.contents import load_run
from utils.training.stopping import is_finished, why_it_ended

BEST = "best.pt"
LAST = "last.pt"
CURRENT = "current"
NAMES = "????-??-??_??-??-??_????????????"  # of runs, as a pattern


@dataclass(frozen=True)
class Run:
    """An earlier run: its folder, its history, the settings that it had then, and its fingerprint."""

    folder: Path
    history: list[dict]
    config: dict
    fingerprint: dict[str, str]

    @property
    def epochs(self) -> int:
        """How many it was started for."""
        return self.config["hyperparameters"]["epochs"]


def find_run(config: Config, mark: dict) -> Run | None:
    """The run that `fit` shows or goes on with, and a line that says which it is; None where a new one begins.

    mark: the fingerprint of the settings and images. Raises CheckpointError and ConfigError as `fit` does.
    """
    if config.run:
        return _named(config, mark)
    runs = _runs_of(config.checkpoints_path, mark)
    finished = [run for run in runs if is_finished(run.history, config)]
    if finished and not config.retrain:
        run = finished[0]
        print(f"The run {run.folder.name} is finished: its results are shown; `retrain: True` trains anew.")
        print(why_it_ended(run.history, config))
    else:
        started = [run for run in runs if _goes_on(run, config)]
        if not started:
            return None
        run = max(started, key=lambda run: len(run.history))
        print(f"Resuming after epoch {len(run.history)} of {run.folder}.")
    make_current(run.folder)
    return run


def folder_of(run: Run | None, config: Config, mark: dict) -> Path:
    """Where training writes: a new folder, or that of the run that it goes on with.

    A run that has had all its epochs stays as it is: training goes on from it in a new folder.
    """
    if run is not None and len(run.history) < run.epochs:
        return run.folder
    folder = begin_run(config.checkpoints_path, mark)
    if run is not None:
        with atomic(folder / BEST) as file:
            file.write((run.folder / BEST).read_bytes())
        make_current(folder)
    return folder


def begin_run(checkpoints_path: Path, mark: dict) -> Path:
    """The folder of a new run with the fingerprint `mark`: a new one, or that of one that ended in its first epoch."""
    for folder in checkpoints_path.glob(NAMES):
        if folder.name.endswith(f"_{short_name(mark)}") and not (folder / LAST).exists():
            return folder
    when = datetime.now()
    while True:
        folder = checkpoints_path / f"{when:%Y-%m-%d_%H-%M-%S}_{short_name(mark)}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            when += timedelta(seconds=1)  # another run has begun in this second


def make_current(folder: Path):
    """Let this run be the one that is loaded by default."""
    write_text(folder.parent / CURRENT, f"{folder.name}\n")


def run_names(checkpoints_path: Path) -> list[str]:
    """The names of all runs that can be loaded, from the earliest to the latest."""
    return sorted(path.parent.name for path in checkpoints_path.glob(f"{NAMES}/{BEST}"))


def current_run(checkpoints_path: Path, name: str | None = None) -> Path:
    """The folder of the run of this name; without a name, of the current one.

    Raises CheckpointError, naming the runs that are there, where there is no such run.
    """
    names = run_names(checkpoints_path)
    if not names:
        raise CheckpointError(_nothing_in(checkpoints_path))
    file = checkpoints_path / CURRENT
    cure = f"set `run` to one of {', '.join(names)}"
    if name is None and file.is_file():
        name = file.read_text(encoding="utf-8", errors="replace").strip()
        cure = f"{file} names it: delete that file, or {cure}"
    if name is None:
        name = names[-1]
    if name not in names:
        raise CheckpointError(f"{checkpoints_path} holds no run {name}: {cure}.")
    return checkpoints_path / name


def run_to_load(config: Config) -> Path:
    """The folder of the run that `run` names; else of the latest that was trained with the settings of the config, the
    current one before all others; else of the current one.

    So a process that trained in this folder meanwhile, or settings changed and changed back, hand over no other
    network. Raises CheckpointError as `current_run` does.
    """
    current = current_run(config.checkpoints_path, config.run)
    wanted = settings_digest(config)
    if config.run or _settings_of(current) == wanted:
        return current
    for name in reversed(run_names(config.checkpoints_path)):
        folder = config.checkpoints_path / name
        if folder != current and _settings_of(folder) == wanted:
            print(f"The run {name} is loaded: it has the settings of the config; {current.name} has others.")
            return folder
    return current


def _settings_of(folder):
    """The digest of the settings of a run; None, and a line, where its checkpoint cannot be read."""
    try:
        fingerprint = load_checkpoint(folder / BEST, whole=False).get("fingerprint")
    except CheckpointError as error:
        print(f"Left out: {error}")
        return None
    return fingerprint.get("settings") if isinstance(fingerprint, dict) else None


def _runs_of(checkpoints_path, mark):
    """The runs of this fingerprint, from the latest to the earliest."""
    names = [name for name in reversed(run_names(checkpoints_path)) if name.endswith(f"_{short_name(mark)}")]
    runs = [_read(checkpoints_path / name) for name in names if (checkpoints_path / name / LAST).exists()]
    return [run for run in runs if run.fingerprint == mark]


def _read(folder):
    """A run as its latest checkpoint has it."""
    last = folder / LAST
    content = load_run(last if last.exists() else folder / BEST)
    return Run(folder, content["history"], content["config"], content["fingerprint"])


def _goes_on(run, config):
    """Whether training may go on from this run; with `retrain`, not beyond the epochs that it was started for."""
    epochs = config.hyperparameters.epochs
    if config.retrain and run.epochs != epochs:
        return False
    return len(run.history) < epochs and not is_finished(run.history, config)


def _named(config, mark):
    """The run that the config names. Raises ConfigError where its splits were others than those of the config."""
    run = _read(current_run(config.checkpoints_path, config.run))
    changes = changed_since(run.config, config, SPLIT_KEYS)
    if changes:
        raise ConfigError(
            f"run: {config.run} had other splits, so its training images may be among the test images here. Set these "
            "keys as they were, or use notebook 02 alone, which splits as the run did.\n" + "\n".join(changes)
        )
    print(f"The run {config.run} is shown, as `run` says; nothing is trained.")
    own = Config.model_validate(run.config)
    if is_finished(run.history, own):
        print(why_it_ended(run.history, own))
    else:
        print(f"Its training was interrupted after epoch {len(run.history)}.")
    if run.fingerprint["images"] != mark["images"]:
        older = "or it is of an earlier version of this project"
        print(f"The images have changed since its training, {older}: test pairs may hold training images.")
    return run


def _nothing_in(checkpoints_path):
    """Why nothing can be loaded from a folder without runs."""
    old = checkpoints_path / BEST
    if old.exists():
        return (
            f"{old} is of an earlier version of this project, when runs had no folders of their own. It is left as it "
            "is; to have a network for this version, run 01.Train_Siamese_model.ipynb."
        )
    return f"{checkpoints_path} holds no training run: run 01.Train_Siamese_model.ipynb first."
