"""Saving and loading a training state: never half-written, never executing what a file contains."""

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
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any

import torch
from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from ..config import Config, ConfigError, key_names
from ..data.images import content_digest
from ..data.splits import Splits
from ..device import rank
from ..files import (
    UNLOADABLE,
    DamagedArchiveError,
    UserError,
    atomic,
    check_archive,
    check_writable,
    is_archive,
    leftovers,
    write_text,
)
from .stopping import is_finished, why_it_ended

FORMAT = "explainable-image-similarity checkpoint"
TRAINING = 5  # to be raised when the same settings come to train in another way, so that no older run is resumed
# settings that may differ between a killed run and the run that resumes it
FREE_KEYS = {"data_path", "checkpoints_path", "results_path", "explanation", "inference", "cuda", "gpu"}
FREE_KEYS |= {"cache_path", "gpu_cache_share", "deterministic", "compile"}
FREE_KEYS |= {"decision", "retrain", "run", "unreadable", "max_megapixels"}
FREE_HYPERPARAMETERS = {"epochs", "verbose", "num_workers"}
# settings that hold for a network ever after, whatever config.yml says later: which images are in which split, ...
SPLIT_KEYS = ("image", "number_of_iterations", "test_size", "valid_size", "seed")
SPLIT_KEYS += ("split", "group_pattern", "duplicate_radius")
TRAINED_KEYS = (*SPLIT_KEYS, "backbone_model", "embedding_size", "margin")  # ... and the network itself
COURSE_KEYS = set(Config.model_fields) - FREE_KEYS - set(TRAINED_KEYS)  # the others that training depends on


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be loaded; the message names the file, the cause and the cure."""


def save_checkpoint(path, content: dict):
    """Write tensors and plain Python values to `path`, whole: an interrupted or failed save leaves the old file.

    Raises FileError, naming the file and the room that it needs, where it cannot be written.
    """
    buffer = io.BytesIO()  # in memory first: torch turns a full disk and Ctrl-C into errors of its archive
    torch.save({"format": FORMAT, **content}, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path, device="cpu", whole=True) -> dict:
    """Read what `save_checkpoint` wrote, with its tensors on `device`. Code inside the file is refused, not run.

    whole: False spares the reading of all tensors, for a look at the other values; then no damage to them is noticed.
    Raises CheckpointError for a file that is missing, truncated, damaged, or not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: run 01.Train_Siamese_model.ipynb first.")
    foreign = f"{path} is not a checkpoint of this project: move it elsewhere or name another checkpoints_path"
    if not is_archive(path):
        raise CheckpointError(f"{foreign}.")
    try:
        check_archive(path, whole)
        content = torch.load(path, map_location=device, weights_only=True, mmap=not whole)
    except DamagedArchiveError as error:
        raise damaged(path, str(error)) from error
    except pickle.UnpicklingError as error:  # whose own message advises to load it all the same
        raise CheckpointError(f"{foreign}. It holds more than tensors and plain values, or is damaged.") from error
    except UNLOADABLE as error:
        raise damaged(path, f"{type(error).__name__} {str(error).partition(chr(10))[0]}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{foreign}.")
    return content


def damaged(path: Path, cause: str) -> CheckpointError:
    """The error of a checkpoint that cannot be used."""
    return CheckpointError(
        f"{path} is damaged: {cause}. Move the folder {path.parent} elsewhere and run 01.Train_Siamese_model.ipynb "
        "again, or set `run` to another run."
    )


def fingerprint(config: Config, splits: Splits) -> dict[str, str]:
    """Digests of all that the course of a training run depends on: most settings; names and content of the images."""
    return {"settings": settings_digest(config), "images": images_digest(splits)}


def settings_digest(config: Config) -> str:
    """Of all settings that the course of a training run depends on.

    A file of `pretrained` weights counts by its name and content, wherever it lies.
    """
    settings = config.model_dump(mode="json", exclude=FREE_KEYS | {"hyperparameters"})
    if config.image.value_range is None:
        del settings["image"]["value_range"]  # as in runs from before there was this key
    settings["version"] = TRAINING
    settings["hyperparameters"] = config.hyperparameters.model_dump(mode="json", exclude=FREE_HYPERPARAMETERS)
    settings["trained"] = config.hyperparameters.epochs > 0  # without training the network has no embedding of its own
    if isinstance(config.pretrained, Path):
        settings["pretrained"] = [config.pretrained.name, _content_of(config.pretrained)]
    return digest(settings)


def _content_of(path):
    """The digest of a file; None where it cannot be read, which is refused when it is loaded."""
    try:
        return content_digest(path).hex()
    except OSError:
        return None


def images_digest(splits: Splits) -> str:
    """Of the names and the content of all images that can be read, wherever their folder lies and whatever its times.

    No file is read: their digests were taken when they were decoded.
    """
    folder = splits.folder
    below = len(str(folder.root)) + 1
    images = []
    for index, (path, content) in enumerate(zip(folder.paths, splits.pixels.digests.tolist(), strict=True)):
        if index not in splits.pixels.unreadable:
            images.append((path[below:].replace(os.sep, "/"), content.hex()))
    return digest(images)


def changed_since(then: dict, config: Config, keys) -> list[str]:
    """A line for each setting below `keys` that had another value in the settings `then` of a training run."""
    now = config.model_dump(mode="json")
    free = {f"hyperparameters.{name}" for name in FREE_HYPERPARAMETERS}
    names = [name for name in key_names() if name.split(".")[0] in keys and name not in free]
    values = [(name, _value(now, name), _value(then, name)) for name in names]
    return [f"{name} is {new}, the network was trained with {old}" for name, new, old in values if new != old]


def _value(settings, name):
    """Of a nested key, by its dotted name; of a file of weights its name, wherever it lies."""
    value = reduce(getitem, name.split("."), settings)
    return Path(value).name if name == "pretrained" and isinstance(value, str) else value


def short_name(mark: dict) -> str:
    """12 digits that stand for a fingerprint in the name of a folder."""
    return digest(mark)[:12]


def digest(part) -> str:
    """64 hexadecimal digits that stand for plain values."""
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


ROUNDING = 1e-3  # beyond 2, for distances
SHOWN = 3  # parts that an error names


def load_run(path: Path, device="cpu") -> dict:
    """The checkpoint of a training run, as `Contents` has it, with its tensors on `device`.

    Raises CheckpointError as `load_checkpoint` does, and for a file whose parts are missing, of another type or shape,
    not finite or beyond their range.
    """
    content = load_checkpoint(path, device)
    try:
        contents = Contents.model_validate(content)
    except ValidationError as error:
        raise damaged(path, "; ".join(map(_explained, error.errors()[:SHOWN]))) from error
    if not path.parent.name.endswith(f"_{short_name(content['fingerprint'])}"):
        raise damaged(path, "fingerprint: it is not that of the name of its folder")
    return content | {"config": contents.config}


def _explained(problem) -> str:
    """One error of pydantic in words."""
    place = ".".join(map(str, problem["loc"])) or "the whole"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}"


def _dense(values: torch.Tensor) -> torch.Tensor:
    """A few stored numbers may claim to be billions, which the next copy would allocate."""
    if values.numel() * values.element_size() > values.untyped_storage().nbytes():
        raise ValueError(f"claims {values.numel():,} values and holds fewer")
    return values


def _finite(values):
    if not values.isfinite().all():
        raise ValueError("holds values that are not finite")
    return values


def _of(dtype, dimensions):
    """A check that a tensor has this dtype and so many dimensions."""

    def check(values):
        if values.dtype != dtype or values.dim() != dimensions:
            raise ValueError(f"should be {dtype} of {dimensions} dimensions, not {values.dtype} of {values.dim()}")
        return values

    return AfterValidator(check)


def _within(low, high):
    """A check that all values of a tensor lie between these."""

    def check(values):
        if len(values) and not low <= values.min() <= values.max() <= high:
            raise ValueError(f"should lie in [{low:g}, {high:g}]")
        return values

    return AfterValidator(check)


def _settings(values: dict) -> dict:
    """All settings: those of an earlier version of this project with what newer keys stand for."""
    try:
        return Config.model_validate(values).model_dump(mode="json")
    except ValidationError as error:
        raise ValueError(f"holds refused settings, {_explained(error.errors()[0])}") from error


def _names_of_folders(names: list[str]) -> list[str]:
    if names != sorted(set(names)) or len(names) < 2:
        raise ValueError("should be the names of two classes or more, sorted, each once")
    return names


Tensor = Annotated[torch.Tensor, AfterValidator(_dense), AfterValidator(_finite)]
Rows = Annotated[Tensor, _of(torch.float32, 2)]
Values = Annotated[Tensor, _of(torch.float32, 1)]
Indices = Annotated[Tensor, _of(torch.int64, 1), _within(0, 2**62)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]


class Part(BaseModel):
    """Of a checkpoint; of exact types."""

    model_config = {"strict": True, "extra": "forbid", "arbitrary_types_allowed": True}


class Epoch(Part):
    train_loss: Number
    valid_loss: Number
    valid_auc: Share
    valid_auc_error: Share
    learning_rate: Positive
    seconds: Positive


class Validation(Part):
    """The validation pairs and their distances."""

    distances: Annotated[Values, _within(0, 2 + ROUNDING)]
    first: Indices
    second: Indices
    labels: Annotated[Indices, _within(0, 1)]

    @model_validator(mode="after")
    def _fit_together(self):
        if len({len(self.distances), len(self.first), len(self.second), len(self.labels)}) != 1:
            raise ValueError("its parts are of different lengths")
        if len(self.labels.unique()) != 2:
            raise ValueError("lacks pairs of the same class or of different ones")
        return self


class Measured(Part):
    """A rate and its interval."""

    value: Share
    low: Share
    high: Share


class Curve(Part):
    """A calibration."""

    distances: Values
    probabilities: Annotated[Rows, _within(0, 1)]

    @model_validator(mode="after")
    def _fits(self):
        if len(self.distances) < 2 or self.probabilities.shape != (len(self.distances), 3):
            raise ValueError("should be of some distances, with three probabilities for each")
        if not (self.distances.diff() > 0).all():
            raise ValueError("its distances should rise")
        return self


class Asked(Part):
    """The settings that were in force."""

    method: str
    layer: str
    steps: str | int
    output_stride: int | None = None  # an earlier version did not keep it, and is prepared anew
    threshold: Number


class Preparation(Part):
    """What `utils.trained.Measurements` is made of."""

    asked: Asked
    layer: str
    steps: Annotated[int, Field(ge=1, le=10000)]
    gaps: dict[str, Number]
    names: Annotated[tuple[str, ...], Field(min_length=1)]
    embeddings: Rows
    auc: Measured
    calibration: Curve

    @model_validator(mode="after")
    def _fits(self):
        if len(self.names) != len(self.embeddings):
            raise ValueError(f"{len(self.names)} references with {len(self.embeddings)} embeddings")
        return self


class Fingerprint(Part):
    settings: str
    images: str


class Contents(Part):
    """best.pt; last.pt has the states of optimizer, scheduler and scaler as well."""

    format: str
    network: dict[str, Tensor]
    config: Annotated[dict[str, Any], AfterValidator(_settings)]
    fingerprint: Fingerprint
    history: list[Epoch]
    validation: Validation
    classes: Annotated[list[str], AfterValidator(_names_of_folders)]
    versions: dict[str, str]
    measurements: Preparation | None = None
    optimizer: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _was_trained(self):
        epochs = self.config["hyperparameters"]["epochs"]
        if not min(epochs, 1) <= len(self.history) <= epochs:
            raise ValueError(f"history: is of {len(self.history)} epochs, and {epochs} were asked for")
        return self


LOCK = ".lock"
OWNER = ".lock.owner"  # says who holds it; without meaning when no one does


@contextmanager
def claimed(checkpoints_path: Path):
    """Hold a folder of checkpoints, which is made where it lacks; a process that holds it may do so again inside.

    The system lets go of it when the process ends, however it ends. What processes that were killed left half-written
    is deleted. Of several processes that train as one the first holds it for all. Raises CheckpointError, naming the
    process, where another one holds it, FileError where no file can be written there.
    """
    if rank() > 0:
        yield
        return
    check_writable(checkpoints_path, "checkpoints_path")
    lock = FileLock(checkpoints_path / LOCK, is_singleton=True)  # one object a process, which counts
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise CheckpointError(_held(checkpoints_path)) from error
    try:
        if lock.lock_counter == 1:
            write_text(checkpoints_path / OWNER, _this_process())
            _clean(checkpoints_path)
        yield
    finally:
        lock.release()


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} ({Path(sys.argv[0]).name})\n"


def _held(checkpoints_path) -> str:
    owner = checkpoints_path / OWNER
    known = owner.read_text(encoding="utf-8", errors="replace").strip() if owner.is_file() else "another process"
    return (
        f"checkpoints_path: {known} is training in {checkpoints_path}. Wait until it has ended, stop it, "
        "or set another checkpoints_path."
    )


def _clean(checkpoints_path):
    """Delete what was half-written when a process was killed, and folders of runs that never had a whole epoch: no
    other process writes here now.
    """
    for folder in (checkpoints_path, *checkpoints_path.glob(NAMES)):
        for name in (BEST, LAST, CURRENT):
            for leftover in leftovers(folder, name):
                leftover.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


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
