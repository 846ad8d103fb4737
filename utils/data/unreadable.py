"""Images that cannot be decoded: an error, or a list that names each with its cause."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from utils.data.images import ImageFolder, listed
from utils.data.reading import DataError
from utils.files import remove, write_text
from utils.runtime import FIRST

LIST = "unreadable.csv"
FEW = 5  # named on screen; the list names all


def check_readable(folder: ImageFolder, unreadable: dict[int, str], setting: str):
    """Raises DataError that names the unreadable images, each an index into the folder with its cause: with `setting`
    "stop" if there are any, with "skip" if fewer than two classes keep an image.
    """
    kept = np.delete(folder.labels, list(unreadable))
    enough = len(np.unique(kept)) > 1
    if unreadable and (setting == "stop" or not enough):
        if not enough:
            cure = "Pairs need images of two classes: replace them"
        elif len(np.unique(kept)) < len(folder.classes):  # a class without images is refused
            cure = "Replace them, or set unreadable: skip"
        else:
            cure = "Replace or delete them, or set unreadable: skip"
        names = listed([f"{folder.paths[index]}: {cause}" for index, cause in unreadable.items()], separator="\n")
        raise DataError(f"data_path: {_count(folder, unreadable)} cannot be read. {cure}:\n{names}")


def list_unreadable(folder: ImageFolder, unreadable: dict[int, str], results_path: Path):
    """Write `results_path`/unreadable.csv, columns file and cause, and print how many images are left out, the first of
    them, and which classes lost all of theirs; without unreadable images, delete an earlier list and print nothing.

    Of several processes only the first acts. Raises FileError where the list can be neither written nor deleted.
    """
    if not FIRST:
        return
    file = results_path / LIST
    if not unreadable:
        remove(file)
        return
    rows = [(folder.paths[index], cause) for index, cause in unreadable.items()]
    write_text(file, pd.DataFrame(rows, columns=["file", "cause"]).to_csv(index=False))
    few = listed([f"{os.path.relpath(path, folder.root)} ({cause})" for path, cause in rows], shown=FEW)
    print(f"{_count(folder, unreadable)} cannot be read and are left out: {few}. All with their causes: {file}")
    kept = np.bincount(np.delete(folder.labels, list(unreadable)), minlength=len(folder.classes))
    lost = [name for name, count in zip(folder.classes, kept, strict=True) if not count]
    if lost:
        print(f"No image is left of {listed(lost)}.")


def _count(folder, unreadable):
    return f"{len(unreadable)} of {len(folder.paths)} images"
