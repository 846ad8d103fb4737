"""Checkpoints and runs: a checkpoint is never half-written and never executed; each run has a folder of its own."""

import hashlib
import io
import json
import os
import pickle
import socket
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ..config import LOCAL_DIR, Config, ConfigError, key_names, local_folder
from ..data.images import content_digest
from ..data.splits import Splits
from ..device import rank
from ..files import UserError, atomic, check_archive, check_writable, write_text
from ..network.backbones import WEIGHTS_FILES
from .stopping import is_finished, why_it_ended

TRAINING = 5  # raise it when the same settings train in another way, so that no older run is resumed
# settings that may differ between an interrupted run and the run that resumes it
FREE_KEYS = {"data_path", "checkpoints_path", "results_path", "explanation", "inference", "cuda", "gpu"}
FREE_KEYS |= {"cache_path", "gpu_cache_share", "deterministic", "compile"}
FREE_KEYS |= {"decision", "retrain", "run", "unreadable", "max_megapixels"}
FREE_KEYS |= {"corrections"}  # their content counts, with the images
FREE_HYPERPARAMETERS = {"epochs", "verbose", "num_workers"}
# settings of a trained network that later changes of config.yml cannot change: which images are in which split, ...
SPLIT_KEYS = ("image", "number_of_iterations", "test_size", "valid_size", "seed")
SPLIT_KEYS += ("split", "group_pattern", "duplicate_radius")
TRAINED_KEYS = (*SPLIT_KEYS, "backbone_model", "embedding_size", "margin")  # ... and the network itself
COURSE_KEYS = set(Config.model_fields) - FREE_KEYS - set(TRAINED_KEYS)  # the others that training depends on

BEST = "best.pt"
LAST = "last.pt"
CURRENT = "current"
LOCK = ".lock"
OWNER = ".lock.owner"  # names the process that holds the lock
NAMES = "????-??-??_??-??-??_????????????"  # of the folders of runs, as a pattern
HALF = 6  # digits of the settings, and of the images, at the end of these names


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be loaded; the message names the file, the cause and the cure."""


def save_checkpoint(path: Path, content: dict):
    """Write tensors and plain Python values to a file, whole: an interrupted or failed save leaves the old file.

    Raises:
        FileError: The file cannot be written.
    """
    buffer = io.BytesIO()  # in memory first: torch turns a full disk and Ctrl-C into errors of its archive
    torch.save(content, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict:
    """Read what `save_checkpoint` wrote, its tensors on the CPU. Code inside the file is refused, not executed.

    Raises:
        CheckpointError: The file is missing or damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: run 01.Train_Siamese_model.ipynb first.")
    with reading(path):
        check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def reading(path: Path):
    """Turn every error inside into a CheckpointError that names the file, the cause and the cure."""
    try:
        yield
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".partition("\n")[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's own message advises to load the file all the same
            cause = "it holds more than tensors and plain values"
        raise CheckpointError(
            f"{path} is damaged or of another version ({cause}): delete {path.parent} and train again, or set `run` to "
            "another run."
        ) from error


def fingerprint_of(config: Config, splits: Splits) -> dict[str, str]:
    """Return digests of all that a training run depends on: most settings; names, content and corrections of images."""
    return {"settings": settings_digest(config), "images": images_digest(splits)}


def settings_digest(config: Config) -> str:
    """Return the digest of all settings that training depends on; of files that they name, the name and content."""
    settings = config.model_dump(mode="json", exclude=FREE_KEYS | {"hyperparameters"})
    settings["version"] = TRAINING
    settings["hyperparameters"] = config.hyperparameters.model_dump(mode="json", exclude=_free_hyperparameters(config))
    settings["trained"] = config.hyperparameters.epochs > 0  # without training the network has no embedding of its own
    if isinstance(config.pretrained, Path):
        settings["pretrained"] = [config.pretrained.name]
        if config.pretrained.is_file():  # a missing file is refused when it is loaded
            settings["pretrained"].append(content_digest(config.pretrained))
    folder = local_folder(config.backbone_model)
    if folder:
        settings["backbone_model"] = [folder.name]
        files = ["config.json"]
        if config.pretrained is True:
            files += WEIGHTS_FILES
        for file in files:
            if (folder / file).is_file():
                settings["backbone_model"].append(content_digest(folder / file))
    return digest(settings)


def images_digest(splits: Splits) -> str:
    """Return the digest of the names, content and corrections of all readable images, wherever their folder is.

    No file is read: the digests of the files were computed when they were decoded.
    """
    folder = splits.folder
    images = []
    for index, (name, content) in enumerate(zip(folder.names, splits.pixels.digests, strict=True)):
        if index in splits.pixels.unreadable:
            continue
        image = [name, content]
        if name in folder.corrections:
            image.append(folder.corrections[name])
        images.append(image)
    return digest(images)


def _free_hyperparameters(config):
    """Return the hyperparameters that may differ between an interrupted run and the run that resumes it."""
    if config.LRScheduler.schedule == "cosine":  # its rates depend on the number of epochs
        return FREE_HYPERPARAMETERS - {"epochs"}
    return FREE_HYPERPARAMETERS


def changed_since(then: Config, config: Config, keys) -> list[str]:
    """Return a line for each setting below `keys` that had another value in the config `then` of a training run."""
    before = then.model_dump(mode="json")
    now = config.model_dump(mode="json")
    free = _free_hyperparameters(config)
    lines = []
    for name in key_names():
        section, _, key = name.partition(".")
        if section not in keys or (section == "hyperparameters" and key in free):
            continue
        old, new = _value(before, name), _value(now, name)
        if new != old:
            lines.append(f"{name} is {new}, the network was trained with {old}")
    return lines


def _value(settings, name):
    """Return the value of a dotted key; of a file of weights or the folder of a backbone only the name."""
    for key in name.split("."):
        settings = settings[key]
    if name == "pretrained" and isinstance(settings, str):
        return Path(settings).name
    if name == "backbone_model" and local_folder(settings):
        return f"{LOCAL_DIR}:{local_folder(settings).name}"
    return settings


def short_name(fingerprint: dict) -> str:
    """Return the digits of a fingerprint in the name of a folder: six of the settings, six of the images."""
    return fingerprint["settings"][:HALF] + fingerprint["images"][:HALF]


def digest(values) -> str:
    """Return the SHA-256 digest of plain values, in 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@contextmanager
def claimed(checkpoints_path: Path):
    """Hold the folder of checkpoints, which is made if necessary; a process that holds it may do so again inside.

    The system releases it when the process ends, however it ends. What interrupted processes left half-written is
    deleted. Under torchrun the first process holds it for all.

    Raises:
        CheckpointError: Another process holds it; the message names the process.
        FileError: No file can be written there.
    """
    if rank() > 0:
        yield
        return
    check_writable(checkpoints_path, "checkpoints_path")
    owner = checkpoints_path / OWNER
    lock = FileLock(checkpoints_path / LOCK, is_singleton=True)  # the same object within a process: it counts
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        holder = "another process"
        if owner.is_file():
            holder = owner.read_text(encoding="utf-8", errors="replace").strip()
        raise CheckpointError(
            f"checkpoints_path: {holder} is training in {checkpoints_path}. Wait until it has ended, stop it, or set "
            "another checkpoints_path."
        ) from error
    try:
        if lock.lock_counter == 1:
            write_text(owner, f"process {os.getpid()} on {socket.gethostname()} ({Path(sys.argv[0]).name})\n")
            _clean(checkpoints_path)
        yield
    finally:
        lock.release()


def _clean(checkpoints_path):
    """Delete half-written files, and folders of runs without a whole epoch: no other process writes here now."""
    for folder in (checkpoints_path, *checkpoints_path.glob(NAMES)):
        for name in (BEST, LAST, CURRENT):
            for leftover in folder.glob(f".{name}.*"):
                leftover.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


@dataclass(frozen=True)
class Run:
    """An earlier run."""

    folder: Path
    history: list[dict]
    config: Config
    """Its settings then."""
    fingerprint: dict[str, str]


def read_run(folder: Path) -> Run:
    """Return a run as its latest checkpoint describes it. Raises CheckpointError."""
    path = folder / LAST
    if not path.exists():
        path = folder / BEST
    content = load_checkpoint(path)
    with reading(path):
        config = Config.model_validate(content["config"])
        return Run(folder, content["history"], config, content["fingerprint"])


def find_run(config: Config, fingerprint: dict) -> Run | None:
    """Return the run that `fit` shows or resumes, and print which it is; None where a new one begins.

    Args:
        config: The settings.
        fingerprint: Of the settings and images.

    Raises:
        CheckpointError, ConfigError: As `fit` does.
    """
    if config.run:
        return _named_run(config, fingerprint)
    unfinished = []
    for run in _runs_of(config.checkpoints_path, fingerprint):
        finished = is_finished(run.history, config)
        if finished and not config.retrain:
            print(f"The run {run.folder.name} is finished: its results are shown; `retrain: True` trains it again.")
            print(why_it_ended(run.history, config))
            make_current(run.folder)
            return run
        epochs = config.hyperparameters.epochs
        extended = run.config.hyperparameters.epochs != epochs
        if not finished and len(run.history) < epochs and not (config.retrain and extended):
            unfinished.append(run)
    if not unfinished:
        return None
    run = max(unfinished, key=lambda run: len(run.history))
    print(f"Resuming after epoch {len(run.history)} of {run.folder}.")
    make_current(run.folder)
    return run


def _runs_of(checkpoints_path, fingerprint):
    """Yield the runs with this fingerprint, from the latest to the earliest."""
    for name in reversed(run_names(checkpoints_path)):
        folder = checkpoints_path / name
        if name.endswith(f"_{short_name(fingerprint)}") and (folder / LAST).exists():
            run = read_run(folder)
            if run.fingerprint == fingerprint:
                yield run


def _named_run(config, fingerprint):
    """Return the run that `run` names. Raises ConfigError if its splits differ from those of the config."""
    run = read_run(current_run(config.checkpoints_path, config.run))
    changes = changed_since(run.config, config, SPLIT_KEYS)
    if changes:
        raise ConfigError(
            f"run: {config.run} had other splits, so its training images may be among the test images here. Set these "
            "keys as they were, or use only notebook 02, which splits as the run did.\n" + "\n".join(changes)
        )
    print(f"The run {config.run} is shown, as `run` says; nothing is trained.")
    if is_finished(run.history, run.config):
        print(why_it_ended(run.history, run.config))
    else:
        print(f"Its training was interrupted after epoch {len(run.history)}.")
    if run.fingerprint["images"] != fingerprint["images"]:
        print("The images or their corrections have changed since its training: test pairs may hold training images.")
    return run


def folder_for(run: Run | None, config: Config, fingerprint: dict) -> Path:
    """Return the folder that training writes to: a new one, or that of the run that it resumes.

    A run that has had all its epochs is not changed: training continues from it in a new folder.
    """
    if run is not None and len(run.history) < run.config.hyperparameters.epochs:
        return run.folder
    folder = begin_run(config.checkpoints_path, fingerprint)
    if run is not None:
        with atomic(folder / BEST) as file:
            file.write((run.folder / BEST).read_bytes())
        make_current(folder)
    return folder


def begin_run(checkpoints_path: Path, fingerprint: dict) -> Path:
    """Return the folder of a new run: a new one, or that of a run that was interrupted in its first epoch."""
    name = short_name(fingerprint)
    for folder in checkpoints_path.glob(NAMES):
        if folder.name.endswith(f"_{name}") and not (folder / LAST).exists():
            return folder
    begin = datetime.now()
    while True:
        folder = checkpoints_path / f"{begin:%Y-%m-%d_%H-%M-%S}_{name}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            begin += timedelta(seconds=1)  # another run has begun in this second


def make_current(folder: Path):
    """Make this run the one that is loaded by default."""
    write_text(folder.parent / CURRENT, f"{folder.name}\n")


def run_names(checkpoints_path: Path) -> list[str]:
    """Return the names of all runs that can be loaded, from the earliest to the latest."""
    return sorted(path.parent.name for path in checkpoints_path.glob(f"{NAMES}/{BEST}"))


def current_run(checkpoints_path: Path, name: str | None = None) -> Path:
    """Return the folder of the run of this name; without a name, of the current one.

    Raises:
        CheckpointError: There is no such run; the message lists the runs that are there.
    """
    names = run_names(checkpoints_path)
    if not names:
        raise CheckpointError(f"{checkpoints_path} holds no training run: run 01.Train_Siamese_model.ipynb first.")
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
    """Return the folder of the run that `run` names, else of the latest run with the settings of the config, the
    current run before all others; else of the current run.

    So neither another process that trains in this folder nor settings changed and changed back load another network.
    Raises CheckpointError as `current_run` does.
    """
    current = current_run(config.checkpoints_path, config.run)
    pattern = f"*_{settings_digest(config)[:HALF]}{'?' * HALF}"
    if config.run or current.match(pattern):
        return current
    for name in reversed(run_names(config.checkpoints_path)):
        folder = config.checkpoints_path / name
        if folder.match(pattern):
            print(f"The run {name} is loaded: it has the settings of the config; {current.name} has others.")
            return folder
    return current
