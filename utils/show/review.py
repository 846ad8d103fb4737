"""A page on which a person reviews the problems of a dataset, one after another."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from ..audit.problems import COLUMNS
from ..data.corrections import DROP, LABEL
from ..data.images import list_folder
from ..data.reading import DataError
from ..files import encodable, printable
from .drawing import photo, shrunk
from .html import Element, component, encoded_uri

QUESTIONS = {
    "label": "Is the class {name} correct?",
    "near-duplicate": "Does this image belong in the dataset beside the other one?",
    "unreadable": "Does this file belong in the dataset?",
    "dark": "Is this image bright enough for the dataset?",
    "size": "Does this image belong in the dataset at its size?",
}
NOTHING = "No problems to review."
SIDE = 256  # pixels of a picture
MOST_BYTES = 17_000  # of a picture: a page holds a card of two in less than 50 KB
QUALITIES = (88, 75, 60, 45, 30, 15, 5)  # of JPEG, tried in turn


def review(problems: pd.DataFrame, root, value_range=None, name="review", warning="") -> Element:
    """Make a page that asks about one problem after another and saves the answers as review.csv.

    It works without a network, by mouse, finger or keys. Of a label, any other class of the dataset can be chosen in
    place of the suggested one. The browser keeps the answers: this page, and any later one that asks the same of the
    same picture, continues with them.

    Args:
        problems: A row for each problem, in the order of the review; of equal problems of one image, the first counts.
            Columns: `image`, a file below the root; `class`, the one that it has; `problem`, one of QUESTIONS;
            `evidence`, in words; `suggestion`, a class or "drop"; `beside`, another file below the root that is shown
            for comparison, or "" or NaN.
        root: The folder of the dataset.
        value_range: As `read_image` takes it.
        name: Of the page's file, without ending.
        warning: Plain text that stands above.

    Returns:
        An element of less than 50 KB for each problem. In place of a picture that cannot be decoded it has the cause.

    Raises:
        ValueError: A column is missing, a problem is none of QUESTIONS, or an image or a suggestion is empty.
        DataError: The folder cannot be listed.
    """
    rows = _checked(problems)
    files = set()
    for row in rows:
        files.update([row["image"], row["beside"]])
    files = sorted(files - {""})

    def picture(file):
        return _picture(Path(root) / file, value_range)

    with ThreadPoolExecutor() as pool:
        pictures = dict(zip(files, pool.map(picture, files), strict=True))
    content = {"problems": [_card(row, pictures) for row in rows], "choices": _choices(rows, root), "nothing": NOTHING}
    title = f"Problems to review: {len(rows)}"
    return component("review", content, name, title, warning)


def _checked(problems) -> list[dict[str, str]]:
    """The rows as text; what is not there is ""."""
    missing = [column for column in COLUMNS if column not in problems]
    if missing:
        raise ValueError(f"problems have no column {', '.join(missing)}: {', '.join(COLUMNS)} are needed")
    table = problems[list(COLUMNS)].drop_duplicates(["image", "problem"]).astype(object)
    rows = table.where(table.notna(), "").astype(str).to_dict("records")
    for number, row in enumerate(rows):
        if row["problem"] not in QUESTIONS:
            raise ValueError(f'row {number}: problem "{row["problem"]}" is none of {", ".join(QUESTIONS)}')
        if not row["image"] or not row["suggestion"]:
            raise ValueError(f"row {number}: an image and a suggestion, a class or {DROP}, are needed")
    return rows


def _choices(rows, root) -> list[dict[str, str]]:
    """What an image can get in place of its class: the classes of the dataset, in order, and to be dropped."""
    classes = {entry.name for entry in list_folder(root).folders}
    for row in rows:
        classes.update([row["class"], row["suggestion"]])
    choices = []
    for name in sorted(classes - {DROP}):
        shown = printable(name)
        choices.append({"value": encodable(name), "name": shown, "meaning": f"the image gets the class {shown}"})
    choices.append({"value": DROP, "name": "none: drop the image", "meaning": "this image is dropped"})
    return choices


def _card(row, pictures) -> dict:
    """What the script shows of a problem, and what it writes to the table."""
    shown = [{"caption": f"this image: {printable(row['image'])}", **pictures[row["image"]]}]
    if row["beside"]:
        shown.append({"caption": f"for comparison: {printable(row['beside'])}", **pictures[row["beside"]]})
    question = QUESTIONS[row["problem"]].format(name=printable(row["class"]))
    return {
        "key": _key(row, pictures),
        "image": encodable(row["image"]),
        "class": encodable(row["class"]),
        "problem": row["problem"],
        "suggestion": encodable(row["suggestion"]),
        "question": question,
        "evidence": printable(row["evidence"]),
        "meanings": _meanings(row),
        "pictures": shown,
    }


def _key(row, pictures) -> str:
    """A fingerprint of what is asked, of which pictures: the browser keeps the answer under it."""
    files = [row["image"]]
    if row["problem"] != LABEL:  # whose answer is the same beside any picture
        files.append(row["beside"])
    asked = [row["class"], row["problem"]]
    for file in files:
        asked += [file, pictures.get(file)]
    return hashlib.blake2b(repr(asked).encode(), digest_size=12).hexdigest()


def _meanings(row) -> dict[str, str]:
    """What each decision means for the dataset; of a label, a choice says what "wrong" means."""
    thing = "file" if row["problem"] == "unreadable" else "image"
    correct = f"the {thing} stays"
    if row["problem"] == LABEL:
        correct = f"the image keeps the class {printable(row['class'])}"
    elif row["problem"] == "near-duplicate":
        correct = "both images stay"
    return {"correct": correct, "wrong": f"this {thing} is dropped", "unsure": "nothing changes"}


def _picture(path, value_range) -> dict:
    """The `source` of a picture and whether it is `tall`; or the `cause`, in words, why there is none."""
    try:
        image = shrunk(photo(path, value_range), SIDE)
    except DataError as error:
        return {"cause": printable(str(error).removeprefix(f"{path}: "))}
    return {"source": _jpeg_uri(image), "tall": image.shape[0] > image.shape[1]}


def _jpeg_uri(image: np.ndarray) -> str:
    """A JPEG of at most MOST_BYTES."""
    for quality in QUALITIES:
        encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        if len(encoded) <= MOST_BYTES:
            break
    return encoded_uri("jpeg", encoded)
