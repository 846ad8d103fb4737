"""Many pairs to files: maps as pictures and numbers, scores in one table; a run that was stopped goes on."""

import codecs
import csv
import io
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
import pandas as pd
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from ..data.images import SUBFOLDERS, actual_path, counted, list_folder, print_skipped
from ..data.reading import DataError
from ..device import progress
from ..explanations.explanation import Explanation
from ..files import atomic, write_text
from ..search.from_files import FromFiles, check_reads_files, tensors_digest
from ..search.gallery import files_digest, network_digest
from ..search.ranked import scores_table
from ..trained import BATCH, Trained
from ..trust.faithfulness import judge
from .drawing import OPACITY, overlay, photos, remark, wrapped
from .figures import judgement

COLUMNS = ("image1", "image2")  # of a CSV file of pairs
DELIMITERS = ",;\t"  # of CSV files; Excel takes the second in most of Europe, and the third for "Unicode text"
MADE_BY = "made_by.json"  # what all maps of a folder were made by
SCORES = "scores.csv"
HEIGHT = 224  # pixels of the images in a picture, at most
QUICK = [cv2.IMWRITE_PNG_COMPRESSION, 1]
KINDS = ("factual", "counterfactual")
WRITERS = 2  # threads, at work while the network is
_lock = Lock()  # around the note of what made the maps of a folder
LETTERS = 12  # pixels of the words in a picture
NARROWEST = 160  # pixels of an image's column in a picture, which holds words too


@dataclass(frozen=True)
class Job:
    """One pair and the name of its files."""

    pair: tuple[str, str]
    name: str


def explain_folder(trained: Trained | FromFiles, pairs, folder, judged=False) -> pd.DataFrame:
    """Explain many pairs of image files, to files of `folder`; returns their scores.

    Of each pair there are <name>.png, both images with their factual maps and how faithful they are, and <name>.npz:
    `factual` and `counterfactual`, float16 (2, H, W), and `row`, its line of scores.csv as JSON. A pair that is there
    already is not explained again; a pair with an image that cannot be decoded has a line that says why, unless a
    Trained's config says `unreadable: stop`.

    Args:
        trained: A trained network, explained by the method of its config; or any other in FromFiles.
        pairs: A CSV file with columns image1 and image2, paths relative to it (comma, semicolon or tab; UTF-8, or
            UTF-16 as Excel writes it); or two folders: every image of the first beside every image of the second; or
            tuples of two paths.
        folder: Where the files go.
        judged: Also give a verdict on each map, which takes up to 108 network passes a pair.

    Raises:
        DataError: There are no pairs, or `folder` holds maps of another network or other settings: nothing is
            overwritten.
        ExplanationError: A network alone is given, which does not say how files are loaded.
    """
    check_reads_files(trained)
    folder = Path(folder)
    jobs = [Job(pair, _name(pair)) for pair in pairs_of(pairs)]
    _claim(folder, trained, judged, jobs[0].pair[0])
    missing = {job.name: job for job in jobs if not (folder / f"{job.name}.npz").exists()}  # a pair may come twice
    waiting = list(missing.values())
    failed = {}
    config = _config(trained)
    show = config is None or config.hyperparameters.verbose
    with ThreadPoolExecutor(WRITERS) as pool, progress(jobs, "Pairs", show) as bar:
        bar.update(len(jobs) - len(waiting))
        written = []
        for start in range(0, len(waiting), BATCH):
            part = waiting[start : start + BATCH]
            for explained in _explained(trained, part, failed):
                written += _written(pool, trained, explained, folder, judged)
            bar.update(len(part))
        for one in written:
            one.result()  # raises what a writer has met
    rows = [_row(folder, job, failed) for job in jobs]
    table = pd.DataFrame(rows).dropna(axis="columns", how="all")
    write_text(folder / SCORES, table.to_csv(index=False))
    return table


def pairs_of(source) -> list[tuple[str, str]]:
    """The pairs of a CSV file, of two folders, or as they are. Raises DataError where there are none."""
    if isinstance(source, str | Path):
        return _pairs_of_csv(Path(source))
    source = list(source)
    if len(source) == 2 and all(isinstance(one, str | Path) for one in source):
        first, second = (_images_of(Path(one)) for one in source)
        pairs = [pair for pair in product(first, second) if pair[0] != pair[1]]
        if not pairs:
            raise DataError(f"{source[0]} and {source[1]} hold one image, the same: name a folder with another one.")
        return pairs
    if not source:
        raise DataError("pairs: there is none: give tuples of two image files, a CSV file or two folders.")
    for pair in source:
        if isinstance(pair, str | Path) or len(pair) != 2:
            raise DataError(f"pairs: {pair} is no pair: give tuples of two image files, a CSV file or two folders.")
    return [(str(one), str(two)) for one, two in source]


def _pairs_of_csv(path):
    """The pairs of a CSV file, whose paths are relative to its folder."""
    try:
        lines = _lines_of_csv(path)
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV file of pairs: {error}") from error
    if not lines:
        raise DataError(f"{path} holds no pair: add lines of two files.")
    pairs = []
    for number, row in lines:
        pair = []
        for column in COLUMNS:
            cell = row[column] or ""
            file = _file_of(path.parent, cell)
            if file is None:
                raise DataError(
                    f"{path}, line {number}: {column} {cell or 'is empty and'} is no file. Correct or delete the line; "
                    f"paths are relative to {path.parent}, with / between folders."
                )
            pair.append(file)
        pairs.append(tuple(pair))
    return pairs


def _lines_of_csv(path):
    """The lines of a CSV file below the names of its columns: (number, {column: cell}). Excel saves several kinds."""
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f'{path} is not UTF-8: save it as "CSV UTF-8" (Excel), or in UTF-8 encoding.') from error
    for delimiter in DELIMITERS:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        if set(COLUMNS) <= set(reader.fieldnames):
            return [(reader.line_num, row) for row in reader]
    first = text.partition("\n")[0].strip()
    names = [name.strip() for name in re.split(f"[{DELIMITERS}]", first)]
    missing = [column for column in COLUMNS if column not in names]
    raise DataError(
        f"{path} has no column {' and '.join(missing)}: its first line is {first!r}. Name the columns of the two "
        "files of each pair image1 and image2 there, with a comma, a semicolon or a tab between all columns."
    )


def _file_of(folder, cell):
    """The file that a cell of a CSV file names, as it is spelled on disk; None where there is none."""
    for name in (cell, cell.strip()):
        path = actual_path(folder / name)
        if path.is_file():
            return str(path)
    return None


def _images_of(folder):
    """The image files of a folder, sorted; how many entries were skipped is printed."""
    if folder.is_file():
        raise DataError(f"{folder} is not a folder: name two folders of images; a pair of files is [(file1, file2)].")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name two folders of images.")
    listing = list_folder(folder)
    skipped = listing.skipped + Counter({SUBFOLDERS: len(listing.folders)})
    if not listing.images:
        cure = "name two folders that hold images themselves"
        raise DataError(f"{folder} holds no image (skipped: {counted(skipped)}): {cure}.")
    print_skipped(folder, skipped)
    return [str(folder / entry.name) for entry in listing.images]


def _name(pair):
    """A name of files that tells pairs apart, and a file from what it was before it changed."""
    stems = ["".join(letter if letter.isalnum() else "_" for letter in Path(path).stem)[:24] for path in pair]
    return "_".join([*stems, files_digest(pair)])


def _claim(folder, trained, judged, first_image):
    """Note in the folder what its maps are made by. Raises DataError where that is something else already."""
    if isinstance(trained, FromFiles):
        run = ""
        network = trained.digest_of(first_image)
    else:
        run = trained.folder.name
        network = network_digest(trained)
    references = [trained.references.embeddings] if trained.references else []
    source = trained.source
    calibration = source.calibration
    made_by = {
        "run": run,
        "network": network,
        "threshold": trained.threshold,
        "band": [float(edge) for edge in source.band or ()],
        "calibration": tensors_digest("", [calibration.distances, calibration.probabilities]) if calibration else "",
        "references": tensors_digest("", references),
        "warning": source.warning,
        "judged": judged,
        "explanation": trained.settings.model_dump(mode="json"),
    }
    note = folder / MADE_BY
    with _lock:
        if not note.exists():
            write_text(note, json.dumps(made_by, indent=2))
            return
    try:
        there = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{note} is damaged, so what made the maps is unknown: name another folder.") from error
    changed = [key for key in made_by if there.get(key) != made_by[key]]
    if changed:
        raise DataError(f"{folder} holds maps that were made otherwise ({', '.join(changed)}): name another folder.")


def _config(trained):
    """The config of a Trained; any other network has none."""
    return None if isinstance(trained, FromFiles) else trained.config


def _explained(trained, jobs, failed):
    """The explanations of jobs, and these: all in one, or, where an image cannot be decoded, one by one."""
    try:
        return [(trained.explain(*(job.pair for job in jobs)), jobs)]
    except DataError as error:
        config = _config(trained)
        if config is not None and config.unreadable == "stop":
            raise
        if len(jobs) == 1:
            failed[jobs[0].name] = str(error)
            return []
    return [found for job in jobs for found in _explained(trained, [job], failed)]


def _written(pool, trained, explained, folder, judged):
    """Writers at work on each pair of a batch."""
    explanation, jobs = explained
    config = _config(trained)
    verdict = judge(trained.network, explanation, config.seed if config else 0) if judged else None
    rows = scores_table(explanation, verdict).to_dict("records")
    maps = {kind: getattr(explanation, kind).half().cpu().numpy() for kind in KINDS}
    written = []
    for index, (job, row) in enumerate(zip(jobs, rows, strict=True)):
        own = {kind: maps[kind][index] for kind in KINDS}
        written.append(pool.submit(_write, folder / job.name, explanation[index], row, own, judgement(verdict, index)))
    return written


def _write(stem, explanation: Explanation, row, maps, judged):
    """The picture first: where the numbers are, a pair is done."""
    picture = cv2.imencode(".png", _picture(explanation, maps["factual"], judged)[..., ::-1], QUICK)[1]
    with atomic(f"{stem}.png") as file:
        file.write(picture.tobytes())
    with atomic(f"{stem}.npz") as file:
        np.savez(file, row=np.array(json.dumps(row)), **maps)


def _picture(explanation, heatmaps, judged):
    """Both images with their maps, words above them and below a map that is too weak to be seen: uint8 (H, W, 3)."""
    images = photos(explanation)
    height = min(HEIGHT, *(image.shape[0] for image in images))
    columns = []
    for number, (image, heatmap) in enumerate(zip(images, heatmaps, strict=True)):
        width = max(round(height * image.shape[1] / image.shape[0]), 1)
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        side = max(width, NARROWEST)
        shown = np.full((height, side, 3), 255, np.uint8)
        shown[:, :width] = overlay(small, heatmap, OPACITY)
        columns.append((shown, _lettered(remark(explanation, number, heatmap), side)))
    below = max(len(words) for _, words in columns)
    body = []
    for shown, words in columns:
        space = np.full((below - len(words), shown.shape[1], 3), 255, np.uint8)
        body.append(np.vstack([shown, words, space]))
    body = np.hstack(body)
    words = [line for line in (explanation.source.warning, judged) if line]
    return np.vstack([_lettered("\n".join(words), body.shape[1]), body])


def _lettered(text, width):
    """Text in black on white, in lines that fit `width` pixels: uint8 (H, width, 3); no line, no height."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), LETTERS)
    lines = wrapped(text, max(int(width / font.getlength("n")), 1)).replace(r"\$", "$").splitlines()
    if not lines:
        return np.empty((0, width, 3), np.uint8)
    picture = Image.new("RGB", (width, len(lines) * (LETTERS + 4) + 2), "white")
    ImageDraw.Draw(picture).text((2, 1), "\n".join(lines), "black", font, spacing=2)
    return np.asarray(picture)


def _row(folder, job, failed):
    """The line of a pair in scores.csv."""
    if job.name in failed:
        return {"image 1": job.pair[0], "image 2": job.pair[1], "error": failed[job.name]}
    with np.load(folder / f"{job.name}.npz", allow_pickle=False) as content:
        return json.loads(str(content["row"])) | {"files": job.name}
