"""The image files of a folder: which there are, which are skipped, and which cannot be read."""

import functools
import hashlib
import os
import unicodedata
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ..device import FIRST
from ..files import FileError, printable, write_text
from .reading import EXTENSIONS, DataError

SUBFOLDERS = "subfolders"
SYSTEM_FOLDERS = frozenset(  # in small letters; of zip files of macOS, network drives, Linux and Windows
    ("__macosx", "@eadir", "#recycle", "@recycle", "lost+found", "$recycle.bin", "system volume information")
)
SHOWN = 20  # names listed in one message before "and N more"


@dataclass(frozen=True)
class Listing:
    """What a folder holds directly, in the order of names."""

    images: list[os.DirEntry]
    """Files with one of EXTENSIONS."""
    folders: list[os.DirEntry]
    """Folders and links to folders."""
    skipped: Counter
    """How many other entries there are of each kind, as in `ImageFolder.skipped`."""


@dataclass(frozen=True)
class ImageFolder:
    """A folder of N images in one folder for each class, in sorted order."""

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    """int64 (N,), index into `classes`."""
    stats: np.ndarray = field(repr=False)
    """int64 (N, 3): size in bytes, and two times in nanoseconds: of the last change of the content, which programs can
    set, and of any change, which they cannot."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How many files and folders do not count, by their ending in small letters, as {".cr2": 12}, or by what they are:
    "no ending", "hidden", "subfolders" of a class, "broken links", "no files" (pipes and devices), ".jpg beside the
    class folders" (or another), and the names of SYSTEM_FOLDERS."""
    corrections: dict[str, str | None] = field(default_factory=dict, repr=False)
    """By "class/file": the actual class of images that have another one than their folder, as `labels` say; None for
    images that were left out, which are not among the N."""

    @property
    def names(self) -> tuple[str, ...]:
        """The files below `root`, as "class/file"."""
        return tuple("/".join(path.split(os.sep)[-2:]) for path in self.paths)

    def report(self) -> str:
        """Describe the folder in lines: counts, what was skipped, classes of a single image."""
        lines = [f"{len(self.paths)} images of {len(self.classes)} classes in {self.root}"]
        if self.skipped:
            lines.append(f"skipped: {counted(self.skipped)}")
        if self.corrections:
            dropped = sum(name is None for name in self.corrections.values())
            lines.append(f"corrections: {len(self.corrections) - dropped} of another class, {dropped} left out")
        counts = np.bincount(self.labels, minlength=len(self.classes))
        empty = np.array(self.classes)[counts == 0]
        if len(empty):
            lines.append(f"No image is left of {listed(empty)}")
        single = np.array(self.classes)[counts == 1]
        if len(single):
            lines.append(f"A single image, so a negative only: {listed(single)}")
        return "\n".join(lines)


def scan(data_path) -> ImageFolder:
    """List `data_path`/<class>/<image>; files with one of EXTENSIONS, in any letter case, count as images.

    Raises:
        DataError: The folder is missing, has fewer than two classes, a class without an image, or two classes whose
            names are the same text in two Unicode forms.
    """
    root = Path(data_path)
    if not root.is_dir():
        raise _unusable(root, "is not a folder")
    top = list_folder(root)
    classes = [entry.name for entry in top.folders]
    skipped = Counter(top.skipped)
    for entry in top.images:
        skipped[f"{_kind(entry)} beside the class folders"] += 1
    if not classes:
        raise _unusable(root, f"holds no class folder (skipped: {counted(skipped)})")
    _check_spellings(root, classes)
    paths = []
    labels = []
    stats = []
    empty = []
    for label, name in enumerate(classes):
        listing = list_folder(root / name)
        skipped += listing.skipped
        if listing.folders:
            skipped[SUBFOLDERS] += len(listing.folders)
        if not listing.images:
            empty.append(name)
            continue
        class_stats = []
        for entry in listing.images:
            status = entry.stat()
            class_stats.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
            paths.append(entry.path)
            labels.append(label)
        stats.append(np.array(class_stats, np.int64))  # class by class: a million tuples take much memory
    if empty:
        raise _unusable(root, f"holds no image in {listed(empty)} (skipped: {counted(skipped)})")
    if len(classes) == 1:
        raise _unusable(root, f"holds one class, {classes[0]}")
    return ImageFolder(root, tuple(classes), tuple(paths), np.array(labels), np.concatenate(stats), dict(skipped))


def list_folder(folder) -> Listing:
    """List what a folder holds directly: links are followed, hidden entries and SYSTEM_FOLDERS are skipped.

    Raises:
        DataError: The folder cannot be opened.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        cure = "Correct its permissions, or move it elsewhere."
        raise DataError(f"{folder} cannot be listed: {error.strerror}. {cure}") from error
    listing = Listing([], [], Counter())
    for entry in entries:
        kind = _kind(entry)
        if kind == SUBFOLDERS:
            listing.folders.append(entry)
        elif kind in EXTENSIONS:
            listing.images.append(entry)
        else:
            listing.skipped[kind] += 1
    return listing


def images_below(root) -> tuple[list[str], Counter]:
    """List all image files of a folder and of all folders below it.

    Links to folders are followed, after all other folders. Each folder is listed once, however many links lead to it;
    the parents of `root` are not entered.

    Returns:
        The paths, sorted, and how many entries were skipped, by kind.

    Raises:
        DataError: The folder itself cannot be opened; one below it counts as skipped.
    """
    root = str(Path(root))
    listed_already = set(map(str, Path(root).resolve().parents))
    paths = []
    skipped = Counter()
    folders = deque([root])
    links = deque()
    while folders or links:
        folder = (folders or links).popleft()
        place = os.path.realpath(folder)
        if place in listed_already:
            skipped["links to folders that are listed already"] += 1
            continue
        listed_already.add(place)
        try:
            listing = list_folder(folder)
        except DataError:
            if folder == root:
                raise
            skipped["folders that cannot be opened"] += 1
            continue
        skipped += listing.skipped
        for entry in listing.images:
            paths.append(entry.path)
        for entry in listing.folders:
            if entry.is_symlink():
                links.append(entry.path)
            else:
                folders.append(entry.path)
    return sorted(paths), skipped


def actual_path(path) -> Path:
    """Return the path as its parts are spelled on disk, where they differ from it only in their Unicode form.

    macOS stores `é` as two characters, most other programs write one. A path that exists, or that no spelling makes
    exist, is returned as it is.
    """
    path = Path(path)
    if os.path.exists(path) or path == path.parent:
        return path
    parent = actual_path(path.parent)
    name = one_form(path.name)
    try:
        names = sorted(os.listdir(parent))
    except (OSError, ValueError):
        return path
    for spelling in names:
        if one_form(spelling) == name:
            return parent / spelling
    return path


def one_form(text: str) -> str:
    """Return the text in Unicode's composed form (NFC), in which names are compared."""
    return unicodedata.normalize("NFC", text)


def listed(names, separator=", ", shown=SHOWN) -> str:
    """Join names to one text, at most `shown` of them."""
    parts = list(map(printable, names[:shown]))
    if len(names) > shown:
        parts.append(f"and {len(names) - shown} more")
    return separator.join(parts)


def counted(skipped: dict[str, int]) -> str:
    """Join the counts of what was skipped to one text, the largest first."""
    kinds = []
    for kind, count in Counter(dict(sorted(skipped.items()))).most_common():
        kinds.append(f"{count} {kind}")
    return listed(kinds) or "nothing"


def print_skipped(folder, skipped):
    """Print how many entries of a folder are no images that can be used, if there are any."""
    if skipped:
        print(printable(f"{folder}: skipped: {counted(skipped)}"))


def content_digest(path) -> str:
    """Return a digest of all bytes of a file, whatever its name and times. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, functools.partial(hashlib.blake2b, digest_size=16)).hexdigest()


def check_readable(folder: ImageFolder, unreadable: dict[int, str], setting: str):
    """Refuse images that cannot be read.

    Args:
        folder: The folder.
        unreadable: The index of each unreadable image, and the cause.
        setting: "stop" to refuse any; "skip" to refuse them where fewer than two classes keep an image.

    Raises:
        DataError: They are refused; the message names them.
    """
    if len(np.unique(np.delete(folder.labels, list(unreadable)))) < 2:
        cure = "Pairs need images of two classes: replace them"
    elif unreadable and setting == "stop":
        cure = "Replace them, or set unreadable: skip"
    else:
        return
    lines = []
    for index, cause in unreadable.items():
        lines.append(f"{folder.paths[index]}: {cause}")
    names = listed(lines, separator="\n")
    raise DataError(f"data_path: {len(unreadable)} of {len(folder.paths)} images cannot be read. {cure}:\n{names}")


def list_unreadable(folder: ImageFolder, unreadable: dict[int, str]) -> pd.DataFrame:
    """List the images that cannot be read in a table of the columns file and cause.

    Prints how many are left out, the first of them, and the classes without any other image. Of several processes only
    the first prints.
    """
    rows = []
    names = []
    for index, cause in unreadable.items():
        rows.append((folder.paths[index], cause))
        names.append(f"{os.path.relpath(folder.paths[index], folder.root)} ({cause})")
    if unreadable and FIRST:
        few = listed(names, shown=5)
        print(f"{len(rows)} of {len(folder.paths)} images cannot be read and are left out: {few}.")
    readable = np.delete(folder.labels, list(unreadable))
    lost = np.delete(folder.classes, np.unique(readable))
    if len(lost) and FIRST:
        print(f"No image is left of {listed(lost)}.")
    return pd.DataFrame(rows, columns=["file", "cause"])


def write_unreadable(unreadable: pd.DataFrame, results_path: Path):
    """Write the table of unreadable images to `results_path`/unreadable.csv; without any, delete an earlier file.

    Of several processes only the first acts.

    Raises:
        FileError: The file cannot be written or deleted.
    """
    if not FIRST:
        return
    file = results_path / "unreadable.csv"
    if len(unreadable):
        write_text(file, unreadable.to_csv(index=False))
        print(f"All images that cannot be read, with their causes: {file}")
    elif file.exists():
        try:
            file.unlink()
        except OSError as error:
            raise FileError(f"{file} is outdated and cannot be deleted ({error.strerror}): delete it.") from error


def _kind(entry):
    """Return the ending of a file in small letters, or what else keeps an entry from being an image."""
    if entry.name.startswith("."):
        return "hidden"
    try:
        if entry.is_dir():
            if entry.name.lower() in SYSTEM_FOLDERS:
                return entry.name
            return SUBFOLDERS
        if entry.is_file():
            return os.path.splitext(entry.name)[1].lower() or "no ending"
        if not entry.is_symlink():
            return "no files"
    except OSError:  # a link that leads to itself
        pass
    return "broken links"


def _unusable(root, problem) -> DataError:
    """Say what is wrong with `data_path`, and what it should be."""
    return DataError(
        f"data_path: {root} {problem}. It must be a folder that holds one folder of images for each class, at least "
        "two, as in cats/1.jpg and dogs/1.jpg; images in deeper folders do not count. Set data_path to such a folder, "
        "move or add images, or move folders without images elsewhere."
    )


def _check_spellings(root, classes):
    """Raises DataError where two classes have one name, in two Unicode forms."""
    names = {}
    for name in classes:
        twin = names.setdefault(one_form(name), name)
        if twin != name:
            raise DataError(
                f"data_path: {root} holds two folders named {name}, whose names differ only in their Unicode form: "
                f"{twin!a} and {name!a}. Move the images of both into one of them and delete the other, or "
                "rename one."
            )
