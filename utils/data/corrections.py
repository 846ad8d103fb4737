"""Corrections: images of the dataset that are of another class than their folder, or that are left out."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..files import encodable, printable, write_text
from .images import ImageFolder, listed, one_form, scan
from .reading import DataError
from .tables import read_table

DROP = "drop"  # in place of a class: the image is left out
NEEDED = ("image", "class")
COLUMNS = (*NEEDED, "by", "note")
REVIEWED = ("image", "problem", "suggestion", "decision")
DECISIONS = ("correct", "wrong", "unsure")
LABEL = "label"  # the problem whose suggestion is a class
PROBLEMS = (LABEL, "near-duplicate", "unreadable", "dark", "size")


@dataclass(frozen=True)
class Corrections:
    """The images of a dataset whose class is not that of their folder."""

    root: Path
    """The folder of the dataset."""
    classes: dict[str, str | None]
    """By "class/file" below the root, as on disk: the actual class; None for an image that is left out."""

    def folder_of(self, path) -> Path:
        """Return the folder of the actual class of an image file; of an image without a correction, its own folder."""
        folder = Path(path).parent
        label = self.classes.get(f"{folder.name}/{Path(path).name}")
        if label is None or not self._holds(folder):
            return folder
        return folder.with_name(label)

    def drops(self, path) -> bool:
        """Return whether an image file is one that is left out."""
        folder = Path(path).parent
        return self.classes.get(f"{folder.name}/{Path(path).name}", "") is None and self._holds(folder)

    def of_names(self, names) -> dict[str, str]:
        """Return the actual class of those images "class/file" that are of another one than their folder."""
        return {name: self.classes[name] for name in names if self.classes.get(name)}

    def _holds(self, folder):
        return folder.parent.resolve() == self.root.resolve()


def apply_corrections(folder: ImageFolder, file: Path | None) -> ImageFolder:
    """Return the images of a folder with their actual classes, without those that are left out.

    Args:
        folder: The folder, as `scan` returns it.
        file: The CSV file of `corrections`, as `read_corrections` takes it.

    Raises:
        DataError: The file cannot be used, or leaves out all images.
    """
    classes = read_corrections(file, folder)
    if not classes:
        return folder
    numbers = {name: number for number, name in enumerate(folder.classes)}
    labels = folder.labels.copy()
    kept = np.ones(len(labels), bool)
    for index, name in enumerate(folder.names):
        if name not in classes:
            continue
        if classes[name] is None:
            kept[index] = False
        else:
            labels[index] = numbers[classes[name]]
    if not kept.any():
        raise DataError(f"corrections: all images of {folder.root} are left out. Delete lines with the class {DROP}.")
    paths = tuple(path for path, stays in zip(folder.paths, kept, strict=True) if stays)
    return replace(folder, paths=paths, labels=labels[kept], stats=folder.stats[kept], corrections=classes)


def read_corrections(file: Path | None, folder: ImageFolder) -> dict[str, str | None]:
    """Read which images of a folder have another class, or are left out.

    Args:
        file: A CSV file with columns image ("class/file" below the folder) and class (one of the folder, or DROP).
        folder: The folder, as `scan` returns it.

    Returns:
        By "class/file" as on disk: the class, or None for an image that is left out. A line that names the class of
        the image's own folder changes nothing and is not among them.

    Raises:
        DataError: The file cannot be read, or a line names no image or no class, or contradicts another one.
    """
    if file is None:
        return {}
    if not file.is_file():
        raise DataError(
            f"corrections: {file} does not exist: name a CSV file, or set corrections: null, until a review is "
            "applied, which makes it."
        )
    return _effective(_Reader(folder).classes_of(read_table(file, NEEDED, "corrections"), file))


def reviewed_images(file: Path | None, data_path) -> set[str]:
    """Return the images "class/file" that a line of the file names, also where it confirms their class.

    Args:
        file: As `read_corrections` takes it.
        data_path: The folder of the dataset, which is listed only if there is a file.

    Raises:
        DataError: The file or the folder cannot be used.
    """
    if file is None:
        return set()
    return set(_Reader(scan(data_path)).classes_of(read_table(file, NEEDED, "corrections"), file))


def _effective(classes) -> dict[str, str | None]:
    """The classes that differ from the folder's."""
    return {image: name for image, name in classes.items() if name != image.partition("/")[0]}


class _Reader:
    """Finds the images and classes of a folder that lines of a file name, in any Unicode form."""

    def __init__(self, folder: ImageFolder):
        self.root = folder.root
        self.images = _spellings(folder.names)
        self.classes = _spellings(folder.classes)

    def image(self, text, place) -> str:
        """Return "class/file" as on disk. Raises DataError."""
        name = _spelled(self.images, text)
        if name is None:
            raise DataError(
                f"{place}: image {text or 'is empty and'} is no image of {self.root}. Correct or delete the line, or "
                "name the config of its dataset (--config); an image is named by its class and file, with / between "
                "them: rose/1.jpg."
            )
        return name

    def label(self, text, place, column="class") -> str | None:
        """Return a class as on disk, or None for DROP. Raises DataError."""
        name = _spelled(self.classes, text)
        dropped = text.strip() == DROP
        if dropped and name is not None:
            raise DataError(f"{place}: {DROP} means to leave an image out, but is a class too. Rename its folder.")
        if name is None and not dropped:
            raise DataError(
                f"{place}: {column} {text or 'is empty and'} is no class of {self.root}. Write one of "
                f"{listed(sorted(set(self.classes.values())))}, or {DROP} to leave the image out."
            )
        return name

    def classes_of(self, table: pd.DataFrame, file) -> dict[str, str | None]:
        """Read the classes of images from a table of corrections. Raises DataError."""
        classes = {}
        lines = {}
        for line, image, name in table[list(NEEDED)].itertuples():
            place = f"{file}, line {line}"
            image = self.image(image, place)
            name = self.label(name, place)
            if classes.setdefault(image, name) != name:
                raise DataError(
                    f"{place}: the class of {image} is {name or DROP} here and {classes[image] or DROP} in line "
                    f"{lines[image]}. Delete one of the two lines."
                )
            lines.setdefault(image, line)
        return classes


def _spellings(names) -> dict[str, str]:
    """Names by themselves, as `write_text` writes them, and by their Unicode form."""
    spellings = {one_form(name): name for name in names}
    for name in names:
        spellings.setdefault(encodable(name), name)
    for name in names:
        spellings[name] = name  # of two files whose names differ only in their form, each is found
    return spellings


def _spelled(spellings, text) -> str | None:
    for name in (text, text.strip()):
        if name in spellings or one_form(name) in spellings:
            return spellings.get(name) or spellings[one_form(name)]
    return None


def apply_review(review, file: Path, folder: ImageFolder) -> str:
    """Turn the decisions of a review into corrections, and add them to a file.

    A label that is "wrong" gives the image the suggested class; any other problem that is "wrong" leaves it out, which
    wins where an image has both. A label that is "correct" is written too, so that nobody is asked again: the class
    of the review. A review without classes means the one that the image has, or that of its folder where an earlier
    correction made it the one that was suggested. All other decisions change nothing. Where the file has another class
    for an image, the review wins; all other lines stay.

    Args:
        review: A CSV file with columns image, problem, suggestion and decision, and perhaps class, by and note.
        file: The CSV file of corrections; it is made if it is missing.
        folder: The images, as `scan` returns them.

    Returns:
        How many images were changed, in words.

    Raises:
        DataError: A file cannot be read, or a line of it cannot be used.
        FileError: The file cannot be written.
    """
    reader = _Reader(folder)
    decided, confirmed, left = _decisions(review, reader)
    earlier = pd.DataFrame(columns=COLUMNS)
    known = {}
    if file.exists():
        earlier = read_table(file, NEEDED, "corrections")
        known = reader.classes_of(earlier, file)
    for image, row in confirmed.items():
        own = image.partition("/")[0]
        name = row.pop("shown")
        if not name:
            name = known.get(image, own) or DROP
            if name == row["class"]:  # the suggestion, which the review says is incorrect
                name = own
        row["class"] = name
    new = []
    replaced = []
    for image, row in (confirmed | decided).items():
        name = None if row["class"] == DROP else row["class"]
        if image not in known:
            new.append(row)
        elif known[image] != name:
            new.append(row)
            replaced.append(f"{image} ({known[image] or DROP}, now {row['class']})")
    if new:
        outdated = {row["image"] for row in new}
        rows = [row for row in earlier.to_dict("records") if reader.image(row["image"], file) not in outdated]
        columns = list(dict.fromkeys([*earlier.columns, *COLUMNS]))
        table = pd.DataFrame(rows + new, columns=columns).fillna("")
        write_text(file, table.to_csv(index=False))
    dropped = sum(row["class"] == DROP for row in decided.values())
    moved = len(decided) - dropped
    lines = [
        f"{review}: of {left + len(confirmed) + len(decided)} images, of another class: {moved}, dropped: {dropped}, "
        f"labels confirmed: {len(confirmed)}, left as they are: {left}."
    ]
    if replaced:
        lines.append(f"Replaced in {file}, as the review is newer: {listed(replaced)}.")
    same = len(confirmed | decided) - len(new)
    if same:
        lines.append(f"{same} of these lines stood in {file} already.")
    return printable("\n".join(lines))


def _decisions(review, reader) -> tuple[dict[str, dict], dict[str, dict], int]:
    """Read a review.

    Returns:
        The rows to write, by image; rows with the suggested class of the other images whose label is correct, and with
        the one that was shown, "" if it is unknown; how many other images there are.
    """
    table = read_table(review, REVIEWED, "a review")
    rows = {}
    confirmed = {}
    lines = {}
    judged = {}  # the decision on each problem of each image, with its line
    images = set()
    for line, cells in zip(table.index, table.to_dict("records"), strict=True):
        place = f"{review}, line {line}"
        image = reader.image(cells["image"], place)
        problem = _one_of(PROBLEMS, cells["problem"], "problem", place)
        decision = _one_of(DECISIONS, cells["decision"], "decision", place)
        images.add(image)
        if decision == "unsure":
            continue
        before, at = judged.setdefault((image, problem), (decision, line))
        if before != decision:
            cause = f"{problem} of {image} is {decision} here and {before} in line {at}"
            raise DataError(f"{place}: {cause}. Delete one of the two lines.")
        name = DROP
        if problem == LABEL:
            name = reader.label(cells["suggestion"], place, "suggestion") or DROP
        row = {"image": image, "class": name, "by": cells.get("by", ""), "note": cells.get("note", "")}
        if decision == "correct":
            if problem == LABEL:
                shown = cells.get("class", "")
                confirmed[image] = row | {"shown": shown and reader.label(shown, place)}
            continue
        other = rows.get(image, row)["class"]
        if DROP not in (name, other) and name != other:
            cause = f"the class of {image} is {name} here and {other} in line {lines[image]}"
            raise DataError(f"{place}: {cause}. Delete one of the two lines.")
        if image not in rows or name == DROP:
            rows[image] = row
            lines[image] = line
    confirmed = {image: row for image, row in confirmed.items() if image not in rows}
    return rows, confirmed, len(images - set(rows) - set(confirmed))


def _one_of(values, text, column, place) -> str:
    """Return a value without spaces around it. Raises DataError where it is none of these."""
    value = text.strip()
    if value not in values:
        raise DataError(f"{place}: {column} {text or 'is empty and'} is refused. Write one of {', '.join(values)}.")
    return value
