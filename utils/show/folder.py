"""Many pairs to files: maps as pictures and numbers, scores in one table. A run that was stopped continues."""

import json
from concurrent.futures import ThreadPoolExecutor
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
from ..data.tables import read_table
from ..device import from_first, progress, rank, to_first, together, world
from ..explanations.explanation import Explanation
from ..files import atomic, write_text
from ..search.from_files import FromFiles, check_reads_files, tensors_digest
from ..search.gallery import files_digest, network_digest
from ..search.ranked import scores_table
from ..trained import BATCH, Trained
from ..trust.faithfulness import judge
from .drawing import OPACITY, colours_of, overlay, photos, wrapped
from .words import KINDS, maps_in_short, remark

COLUMNS = ("image1", "image2")  # of a CSV file of pairs
CURE = "give tuples of two image files, a CSV file or two folders."
MADE_BY = "made_by.json"  # what the maps of a folder were made by
HEIGHT = 224  # pixels of the images in a picture, at most
NARROWEST = 160  # pixels of an image's column in a picture, which holds words too
LETTERS = 12  # pixels of the words in a picture
WRITERS = 2  # threads that write while the network works
_lock = Lock()  # around the file MADE_BY


def explain_folder(trained: Trained | FromFiles, pairs, folder, judged=False) -> pd.DataFrame:
    """Explain many pairs of image files, and write the explanations to `folder`.

    Of each pair there are <name>.png, both images with their factual maps and how faithful they are, and <name>.npz:
    `factual` and `counterfactual`, float16 (2, H, W), and `row`, its line of scores.csv as JSON. A pair whose files are
    there is not explained again. A pair with an image that cannot be decoded has a line that says why, unless a
    Trained's config says `unreadable: stop`.

    Processes that torchrun has started share the pairs, in one folder that all can write to, and all return the whole
    table. Each explains on the device of its network, and a Trained's is that of its process.

    Args:
        trained: A trained network, explained by the method of its config; or any other in FromFiles.
        pairs: A CSV file with columns image1 and image2, paths relative to it (comma, semicolon or tab; UTF-8, or
            UTF-16 as Excel writes it); or two folders: every image of the first beside every image of the second; or
            tuples of two paths.
        folder: Where the files go.
        judged: Also give a verdict on each map, which takes 108 network passes a pair.

    Returns:
        The scores, also in scores.csv: a row for each pair.

    Raises:
        DataError: There are no pairs, or `folder` holds maps of another network or other settings, or another process
            has another network: nothing is overwritten.
        ExplanationError: A network alone is given, which does not say how files are loaded.
        UserError: Another process has ended.
    """
    check_reads_files(trained)
    folder = Path(folder)
    with together() as group:
        plan = table = None
        if rank() == 0:
            plan = _plan(trained, pairs, folder, judged)
        names, waiting, example, made_by = from_first(plan, group)
        if rank() > 0 and made_by != _made_by(trained, judged, example):
            raise DataError(f"process {rank()} has another network or other settings than process 0: load the same.")
        explained = _explain_share(trained, names, waiting, folder, judged)
        explained = to_first(explained, group)
        if rank() == 0:
            table = _write_table(names, explained, folder)
        return from_first(table, group)


def _plan(trained, pairs, folder, judged):
    """Claim the folder and list what is to do.

    Returns:
        The names of all pairs; those that wait, with their pairs; the first image; what the maps are made by.
    """
    pairs = pairs_of(pairs)
    made_by = _made_by(trained, judged, pairs[0][0])
    _claim(folder, made_by)
    names, waiting = [], {}
    for pair in pairs:
        names.append(_name_of(pair))
        if not (folder / f"{names[-1]}.npz").exists():
            waiting[names[-1]] = pair  # once, also where a pair comes twice
    return names, list(waiting.items()), pairs[0][0], made_by


def _explain_share(trained, names, waiting, folder, judged):
    """Explain and write every batch that is this process's turn; return the rows of scores.csv by name."""
    shown, seed = True, 0
    if isinstance(trained, Trained):
        shown, seed = trained.config.hyperparameters.verbose, trained.config.seed
    rows, tasks = {}, []
    step = BATCH * world()
    with ThreadPoolExecutor(WRITERS) as pool, progress(names, "Pairs", shown) as bar:
        bar.update(len(names) - len(waiting))
        for start in range(BATCH * rank(), len(waiting), step):
            batch = waiting[start : start + BATCH]
            for explanation, explained in _explained(trained, batch, rows):
                verdict = judge(trained.network, explanation, seed) if judged else None
                records = scores_table(explanation, verdict).to_dict("records")
                for index, name in enumerate(explained):
                    looks = maps_in_short(verdict, index), colours_of(verdict, index)
                    tasks.append(pool.submit(_write, folder / name, explanation[index], records[index], *looks))
                    rows[name] = records[index] | {"files": name}
            while len(tasks) > WRITERS * BATCH:  # not all pairs in memory, and a full disk ends the run at once
                tasks.pop(0).result()
            bar.update(len(waiting[start : start + step]))  # the first process draws it: the others are as fast
        for task in tasks:
            task.result()  # raises what a writer raised
    return rows


def _write_table(names, explained, folder) -> pd.DataFrame:
    """Write scores.csv, from the rows that each process has just made and the files of earlier runs."""
    made = {}
    for part in explained:
        made |= part
    rows = []
    for name in names:
        rows.append(made.get(name) or _read_row(folder, name))
    table = pd.DataFrame(rows).dropna(axis="columns", how="all")
    write_text(folder / "scores.csv", table.to_csv(index=False))
    return table


def pairs_of(source) -> list[tuple[str, str]]:
    """Return the pairs of a CSV file, of two folders, or of a list of tuples.

    Raises:
        DataError: There is no pair, or a file is missing.
    """
    if isinstance(source, str | Path):
        return _pairs_of_csv(Path(source))
    source = list(source)
    if len(source) == 2 and isinstance(source[0], str | Path) and isinstance(source[1], str | Path):
        return _pairs_of_folders(*source)
    if not source:
        raise DataError(f"pairs: there is none: {CURE}")
    pairs = []
    for pair in source:
        if isinstance(pair, str | Path) or len(pair) != 2:
            raise DataError(f"pairs: {pair} is no pair: {CURE}")
        pairs.append((str(pair[0]), str(pair[1])))
    return pairs


def _pairs_of_csv(path):
    """The pairs of a CSV file, whose paths are relative to its folder; empty lines are skipped."""
    pairs = []
    table = read_table(path, COLUMNS, "pairs")
    for line, *cells in table[list(COLUMNS)].itertuples():
        if not any(cells):
            continue
        files = []
        for column, cell in zip(COLUMNS, cells, strict=True):
            files.append(_file_of(path.parent, cell))
            if files[-1] is None:
                raise DataError(
                    f"{path}, line {line}: {column} {cell or 'is empty and'} is no file. Correct or delete the "
                    f"line; paths are relative to {path.parent}, with / between folders."
                )
        pairs.append(tuple(files))
    if not pairs:
        raise DataError(f"{path} holds no pair: add lines of two files.")
    return pairs


def _file_of(folder, cell):
    """The file that a cell of a CSV file names, as it is spelled on disk, or None."""
    for name in (cell, cell.strip()):
        path = actual_path(folder / name)
        if path.is_file():
            return str(path)
    return None


def _pairs_of_folders(folder1, folder2):
    paths1, paths2 = _images_of(Path(folder1)), _images_of(Path(folder2))
    pairs = [pair for pair in product(paths1, paths2) if pair[0] != pair[1]]
    if not pairs:
        raise DataError(f"{folder1} and {folder2} hold one image, the same: name a folder with another one.")
    return pairs


def _images_of(folder):
    """The image files of a folder, sorted; how many entries were skipped is printed."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name two folders of images; a pair of files is [(file1, file2)].")
    listing = list_folder(folder)
    skipped = listing.skipped.copy()
    if listing.folders:
        skipped[SUBFOLDERS] = len(listing.folders)
    if not listing.images:
        cure = "name two folders that hold images themselves"
        raise DataError(f"{folder} holds no image (skipped: {counted(skipped)}): {cure}.")
    print_skipped(folder, skipped)
    return [str(folder / entry.name) for entry in listing.images]


def _name_of(pair):
    """A name of files that distinguishes pairs, and a file from what it was before it changed."""
    parts = []
    for path in pair:
        letters = [letter if letter.isalnum() else "_" for letter in Path(path).stem[:24]]
        parts.append("".join(letters))
    return "_".join([*parts, files_digest(pair)])


def _made_by(trained, judged, path):
    """What the maps of a folder depend on, as JSON. path: of an image."""
    if isinstance(trained, FromFiles):
        run, network, corrections = "", trained.digest_of(path), None
    else:
        run, network = trained.run, network_digest(trained)
        corrections = trained.corrections.classes or None
    source = trained.source
    calibration, references = [], []
    if source.calibration is not None:
        calibration = [source.calibration.distances, source.calibration.probabilities]
    if trained.references is not None:
        references = [trained.references.embeddings]
    return {
        "run": run,
        "network": network,
        "threshold": trained.threshold,
        "band": list(source.band or ()),
        "calibration": tensors_digest("", calibration),
        "references": tensors_digest("", references),
        "corrections": corrections,
        "warning": source.warning,
        "judged": judged,
        "explanation": trained.settings.model_dump(mode="json"),
    }


def _claim(folder, made_by):
    """Write what maps are made by to their folder. Raises DataError where it holds maps made by something else."""
    file = folder / MADE_BY
    with _lock:
        if not file.exists():
            write_text(file, json.dumps(made_by, indent=2))
            return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is damaged, so what made the maps is unknown: name another folder.") from error
    changed = [key for key in made_by if before.get(key) != made_by[key]]
    if changed:
        raise DataError(f"{folder} holds maps of other settings ({', '.join(changed)}): name another folder.")


def _explained(trained, pairs, rows):
    """Explain named pairs at once, or one by one where an image cannot be decoded.

    Args:
        trained: As `explain_folder` takes it.
        pairs: Tuples of name and pair.
        rows: To which those of pairs that cannot be decoded are added, by name.

    Returns:
        Tuples of an explanation and the names of its pairs.
    """
    try:
        return [(trained.explain(*[pair for _, pair in pairs]), [name for name, _ in pairs])]
    except DataError as error:
        if isinstance(trained, Trained) and trained.config.unreadable == "stop":
            raise
        if len(pairs) == 1:
            name, pair = pairs[0]
            rows[name] = {"image 1": pair[0], "image 2": pair[1], "error": str(error)}
            return []
    explained = []
    for named_pair in pairs:
        explained += _explained(trained, [named_pair], rows)
    return explained


def _write(stem, pair: Explanation, row, words, colours):
    """Write the files of a pair; the picture first, because a pair with its numbers is complete."""
    maps = {}
    for kind in KINDS:
        maps[kind] = getattr(pair, kind)[0].half().cpu().numpy()
    picture = _picture(pair, maps["factual"], words, colours)
    with atomic(f"{stem}.png") as file:
        file.write(cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
    with atomic(f"{stem}.npz") as file:
        np.savez(file, row=np.array(json.dumps(row)), **maps)


def _read_row(folder, name):
    with np.load(folder / f"{name}.npz", allow_pickle=False) as content:
        return json.loads(str(content["row"])) | {"files": name}


def _picture(pair, maps, words, colours):
    """Both images with their maps (2, h, w), words above them and below a map that is too weak to be seen."""
    images = photos(pair)
    height = min(HEIGHT, len(images[0]), len(images[1]))
    columns = []
    for number, image in enumerate(images):
        width = max(round(height * image.shape[1] / image.shape[0]), 1)
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        side = max(width, NARROWEST)
        below = _lettered(remark(pair, number, maps[number]), side)
        columns.append(np.vstack([_padded(overlay(small, maps[number], OPACITY, colours), height, side), below]))
    tallest = max(len(columns[0]), len(columns[1]))
    body = np.hstack([_padded(column, tallest, column.shape[1]) for column in columns])
    return np.vstack([_lettered(f"{pair.source.warning}\n{words}".strip(), body.shape[1]), body])


def _padded(image, height, width):
    """An image with white to its right and below it, of this size."""
    space = (0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)
    return np.pad(image, space, constant_values=255)


def _lettered(text, width):
    """Text in black on white, in lines that fit `width` pixels: uint8 (H, width, 3); H is 0 without text."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), LETTERS)
    lines = wrapped(text, max(int(width / font.getlength("n")), 1)).replace(r"\$", "$").splitlines()
    if not lines:
        return np.empty((0, width, 3), np.uint8)
    picture = Image.new("RGB", (width, len(lines) * (LETTERS + 4) + 2), "white")
    ImageDraw.Draw(picture).text((2, 1), "\n".join(lines), "black", font, spacing=2)
    return np.asarray(picture)
