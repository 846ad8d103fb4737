"""Saving and loading a training state: never half-written, never executing what a file contains."""

import hashlib
import io
import json
import os
import pickle
from functools import reduce
from operator import getitem
from pathlib import Path

import torch

from utils.archives import UNLOADABLE, DamagedArchiveError, check_archive, is_archive
from utils.config import Config, key_names
from utils.data import Splits
from utils.data.contents import content_digest
from utils.errors import UserError
from utils.files import atomic

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
