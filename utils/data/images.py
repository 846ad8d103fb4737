"""What files hold: which are byte-identical, and a digest of each."""

import hashlib
import os
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from ..device import FIRST
from ..files import coded, printable, remove, write_text
from .reading import EXTENSIONS, DataError

MIDDLE_BYTES = 512  # read of each file whose size another file shares
DIGEST_BYTES = 16


def content_ids(paths: list[str], sizes: np.ndarray) -> np.ndarray:
    """int64 (N,), equal for byte-identical files: the index of the first file of each content.

    Files are told apart by their size, those alike by a few bytes of their middle (which tell more than a header), and
    only those alike again are read whole. sizes: int64 (N,), in bytes.
    """
    by_middle = _told_apart(paths, sizes, sizes, MIDDLE_BYTES)
    groups = _told_apart(paths, sizes, by_middle, None)
    _, first, groups = np.unique(groups, return_index=True, return_inverse=True)
    return first[groups]


def content_digest(path) -> bytes:
    """Return 16 bytes that stand for all bytes of a file, whatever its name and times. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()


def _told_apart(paths, sizes, groups, amount):
    """Groups of files, int64 (N,), split further by the digest of `amount` bytes of those that share a group."""
    _, groups, counts = np.unique(groups, return_inverse=True, return_counts=True)
    alike = np.flatnonzero(counts[groups] > 1)
    digests = [_digest(paths[index], size, amount) for index, size in zip(alike, sizes[alike].tolist(), strict=True)]
    _, numbers = np.unique(np.array(digests, "S16"), return_inverse=True)
    groups[alike] = len(paths) + numbers  # beyond the numbers of the groups that stay
    return groups


def _digest(path, size, amount):
    """16 bytes that stand for the size and `amount` bytes in the middle of a file; None for all of it.

    A file that cannot be opened is like no other: its path stands for it.
    """
    try:
        content = _content(path, size, amount)
    except OSError:
        content = os.fsencode(path)
    return hashlib.blake2b(content, digest_size=16, salt=size.to_bytes(8)).digest()


def _content(path, size, amount):
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        if amount:
            os.lseek(descriptor, size // 2, os.SEEK_SET)
        return os.read(descriptor, amount or size)
    finally:
        os.close(descriptor)


SUBFOLDERS = "subfolders"
REPEATED = "links to folders that are listed already"
CLOSED = "folders that cannot be opened"
SYSTEM_FOLDERS = frozenset(  # in small letters; of zip files of macOS, network drives, Linux and Windows
    ("__macosx", "@eadir", "#recycle", "@recycle", "lost+found", "$recycle.bin", "system volume information")
)
SHOWN = 20  # names listed in one message before "and N more"
FEW = 3  # folders named in a cure
MOST_FOLDERS = 20_000  # looked through for a folder of classes when `data_path` is none


@dataclass(frozen=True)
class Listing:
    """What a folder holds directly, in the order of names.

    images: files with one of EXTENSIONS. folders: folders and links to folders. skipped: how many other entries there
    are of each kind, as ImageFolder counts them.
    """

    images: list[os.DirEntry]
    folders: list[os.DirEntry]
    skipped: Counter


@dataclass(frozen=True)
class ImageFolder:
    """A folder of classes, in sorted order.

    paths: N file paths. labels: int64 (N,), index into `classes`. contents: int64 (N,), equal for two files exactly
    when they are byte-identical. stats: int64 (N, 3), size in bytes and two times in nanoseconds: of the last change,
    which can be set, and of the last change that the system saw, which cannot.
    skipped: how many files and folders do not count, by their ending in small letters, as {".cr2": 12}, and under
    "no ending", "hidden", "subfolders" (of a class), "broken links", "no files" (pipes and devices), ".jpg beside
    the class folders" (or another), and the names of SYSTEM_FOLDERS.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    contents: np.ndarray = field(repr=False)
    stats: np.ndarray = field(repr=False)
    skipped: dict[str, int] = field(default_factory=dict)

    def lone_classes(self) -> list[str]:
        """Classes of a single image: it cannot form a positive pair and serves as a negative only."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts, strict=True) if count == 1]

    def report(self) -> str:
        """What was found, in lines: counts, what was skipped, lone classes."""
        lines = [f"{len(self.paths)} images of {len(self.classes)} classes in {self.root}"]
        if self.skipped:
            lines.append(f"skipped: {counted(self.skipped)}")
        lone = self.lone_classes()
        if lone:
            lines.append(f"A single image, so a negative only: {listed(lone)}")
        return "\n".join(lines)


def scan(data_path) -> ImageFolder:
    """List `data_path`/<class>/<image>; files with one of EXTENSIONS, in any letter case, count as images.

    Raises:
        DataError: The folder is missing, has fewer than two classes, a class without an image, or two classes whose
            names are the same text in two Unicode forms.
    """
    root = Path(data_path)
    if not root.is_dir():
        raise DataError(f"data_path: {root} is not a folder. {_instead_of(root)}")
    top = list_folder(root)
    folders = [entry.name for entry in top.folders]
    skipped = Counter(top.skipped)
    for entry in top.images:
        skipped[f"{_kind(entry)} beside the class folders"] += 1
    if not folders:
        raise DataError(f"data_path: {root} holds no class folder. {_cure_without_folders(root, top)}")
    _check_spellings(root, folders)
    paths = []
    stats = []
    labels = []
    empty = []
    for label, folder in enumerate(folders):
        listing = list_folder(root / folder)
        images = listing.images
        skipped += listing.skipped + Counter({SUBFOLDERS: len(listing.folders)})  # a sum leaves out what is 0
        paths += [entry.path for entry in images]
        found = [entry.stat() for entry in images]
        sizes_and_times = [(one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in found]
        stats.append(np.array(sizes_and_times, np.int64).reshape(-1, 3))  # folder by folder: a million tuples are large
        labels += [label] * len(images)
        if not images:
            empty.append(folder)
    if empty:
        why = _why_empty(root, folders, empty, skipped)
        raise DataError(f"data_path: {root} holds no image in {listed(empty)} {why}")
    if len(folders) == 1:
        raise DataError(
            f"data_path: {root} holds one class, {folders[0]}; pairs need a second. Add a second folder of images."
        )
    stats = np.concatenate(stats)
    contents = content_ids(paths, stats[:, 0])
    return ImageFolder(root, tuple(folders), tuple(paths), np.array(labels), contents, stats, dict(skipped))


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
    """All image files of a folder and of all folders below it, sorted by path, and what was skipped, by kind.

    Raises:
        DataError: The folder cannot be opened.
    """
    paths = []
    skipped = Counter()
    for _, listing in walk(root):
        paths += [str(Path(entry.path)) for entry in listing.images]
        skipped += listing.skipped
    return sorted(paths), skipped


def walk(root) -> Iterator[tuple[str, Listing]]:
    """List a folder and all folders below it, the nearest first.

    Links to folders are followed, after all other folders. Each folder is listed once, however many links lead to it;
    its parents are not entered.

    Raises:
        DataError: The folder itself cannot be opened; one below it is counted as skipped.
    """
    seen = set()
    for parent in Path(root).resolve().parents:
        seen.add(_identity(parent))
    waiting = deque([str(root)])
    links = deque()
    while waiting or links:
        place = waiting.popleft() if waiting else links.popleft()
        try:
            identity = _identity(place)
            if identity in seen:
                yield place, Listing([], [], Counter({REPEATED: 1}))
                continue
            seen.add(identity)
            listing = list_folder(place)
        except (DataError, OSError):
            if place == str(root):
                raise
            yield place, Listing([], [], Counter({CLOSED: 1}))
            continue
        for entry in listing.folders:
            (links if entry.is_symlink() else waiting).append(entry.path)
        yield place, listing


def actual_path(path) -> Path:
    """The path as its parts are spelled on disk, where they differ from it in their Unicode form alone.

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
    for other in names:
        if one_form(other) == name:
            return parent / other
    return path


def one_form(text: str) -> str:
    """The text in Unicode's composed form (NFC), in which names are compared."""
    return unicodedata.normalize("NFC", text)


def listed(names, separator=", ", shown=SHOWN) -> str:
    """The names in one text, at most `shown` of them."""
    rest = len(names) - shown
    return separator.join(map(printable, names[:shown])) + (f"{separator}and {rest} more" if rest > 0 else "")


def counted(skipped) -> str:
    """The counts of what was skipped in one text, the largest first."""
    most_first = sorted(skipped.items(), key=lambda one: (-one[1], one[0]))
    return listed([f"{count} {kind}" for kind, count in most_first]) or "nothing"


def print_skipped(folder, skipped):
    """Print how many entries of a folder are no images that can be used, by kind; nothing where there are none."""
    if skipped:
        print(printable(f"{folder}: skipped: {counted(skipped)}"))


def _kind(entry):
    """The ending of a file in small letters, or what else keeps an entry from being an image."""
    if entry.name.startswith("."):
        return "hidden"
    try:
        if entry.is_dir():
            return entry.name if entry.name.lower() in SYSTEM_FOLDERS else SUBFOLDERS
        if not entry.is_file():
            return "broken links" if entry.is_symlink() else "no files"
    except OSError:  # a link that leads to itself
        return "broken links"
    return os.path.splitext(entry.name)[1].lower() or "no ending"


def _identity(folder):
    """What two paths to one folder have in common."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _check_spellings(root, folders):
    """Raises DataError where two classes have one name, in two Unicode forms."""
    spellings = {}
    for folder in folders:
        spellings.setdefault(one_form(folder), []).append(folder)
    for name, same in spellings.items():
        if len(same) > 1:
            codes = " and ".join(_codes(folder) for folder in same)
            raise DataError(
                f"data_path: {root} holds two folders named {name}, whose names differ in their Unicode form alone: "
                f"{codes}. Move the images of both into one of them and delete the other, or rename one."
            )


def _codes(name):
    """The name with all but ASCII characters as codes."""
    return "".join(character if character.isascii() else coded(character) for character in name)


def _instead_of(path):
    """What to do where `data_path` is no folder."""
    if path.is_file():
        return "It is a file: set data_path to the folder of the class folders; unpack it first if it is an archive."
    return "Create it with a folder of images for each class, at least two, or set data_path to a folder that has them."


def _cure_without_folders(root, top):
    """What to do where `data_path` holds no folder."""
    parent = root.resolve().parent
    if top.images and _holds_classes(parent):
        return f"It is one of the classes: set data_path: {parent}"
    return "Put a folder of images for each class into it, at least two."


def _why_empty(root, folders, empty, skipped):
    """Why some folders of `data_path` hold no image of their own, and what to do."""
    deeper, usable = _below(root, empty)
    if not deeper:
        found = f"({', '.join(sorted(EXTENSIONS))} count; skipped: {counted(skipped)})"
        if len(folders) == 1:
            return f"{found}. Add images to it, and a second folder of images."
        if len(folders) - len(empty) < 2:
            return f"{found}. Add images to each of these folders."
        return f"{found}. Add images to each of these folders, or move it out of {root}."
    found = f"itself. Images lie deeper, in {listed([os.path.relpath(place, root) for place in deeper], shown=FEW)}"
    if usable:
        cure = f"{found}: set data_path: {usable[0]}"
        if len(usable) == 1:
            return cure
        others = f"(or {listed(usable[1:], ' or ', FEW)})"
        return f"{cure} {others}; to use all, move the images of each class into one folder of a new data_path."
    names = {one_form(Path(place).name) for place in deeper}
    names |= {one_form(name) for name in folders if name not in empty}
    second = instead = ""
    if len(names) < 2:
        second = ", and add a folder of images of a second class"
        if len(deeper) > 1:
            instead = f" If {listed(empty, ' and ', FEW)} are the classes, move their images up into them instead."
    return (
        f"{found}: move these folders into {root} itself, the images of those of one name into one folder, and move "
        f"{listed(empty, shown=FEW)} out of it{second}.{instead}"
    )


def _below(root, empty):
    """Folders that hold images, below the empty ones; and all below the root that hold classes, those of most images
    first. Of MOST_FOLDERS folders, the nearest.
    """
    deeper = []
    places = []
    totals = Counter()  # images of the folders in a folder
    for place, listing in islice(walk(root), MOST_FOLDERS):
        parts = Path(place).relative_to(root).parts
        if listing.images and len(parts) > 1 and parts[0] in empty:
            deeper.append(place)
        places.append(place)
        totals[os.path.dirname(place)] += len(listing.images)
    usable = [place for place in places if totals[place] and _holds_classes(place)]
    return sorted(deeper), sorted(usable, key=lambda place: (-totals[place], place))


def _holds_classes(folder) -> bool:
    """Whether a folder could be `data_path`."""
    try:
        folders = list_folder(folder).folders
        return len(folders) > 1 and all(list_folder(entry.path).images for entry in folders)
    except DataError:
        return False


LIST = "unreadable.csv"
SHOWN_UNREADABLE = 5  # named on screen; the list names all


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
    few = listed([f"{os.path.relpath(path, folder.root)} ({cause})" for path, cause in rows], shown=SHOWN_UNREADABLE)
    print(f"{_count(folder, unreadable)} cannot be read and are left out: {few}. All with their causes: {file}")
    kept = np.bincount(np.delete(folder.labels, list(unreadable)), minlength=len(folder.classes))
    lost = [name for name, count in zip(folder.classes, kept, strict=True) if not count]
    if lost:
        print(f"No image is left of {listed(lost)}.")


def _count(folder, unreadable):
    return f"{len(unreadable)} of {len(folder.paths)} images"
