"""Which images a folder holds, and which class each has."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.data.contents import content_ids
from utils.data.reading import EXTENSIONS, DataError
from utils.text import printable

SUBFOLDERS = "subfolders"
SHOWN = 20  # names listed in one message before "and N more"


@dataclass(frozen=True)
class ImageFolder:
    """A folder of classes, in sorted order.

    paths: N file paths. labels: int64 (N,), index into `classes`. contents: int64 (N,), equal for two files exactly
    when they are byte-identical. stats: int64 (N, 3), size in bytes and two times in nanoseconds: of the last change,
    which can be set, and of the last change that the system saw, which cannot.
    skipped: how many files and folders do not count, by their ending in small letters, as {".cr2": 12}, and under
    "no ending", "hidden", "subfolders" (of a class), "broken links", "no files" (pipes and devices) and ".jpg beside
    the class folders" (or another).
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
            lines.append(f"skipped: {_counted(self.skipped)}")
        lone = self.lone_classes()
        if lone:
            lines.append(f"A single image, so a negative only: {listed(lone)}")
        return "\n".join(lines)


def scan(data_path) -> ImageFolder:
    """List `data_path`/<class>/<image>; files with one of EXTENSIONS, in any letter case, count as images.

    Raises DataError for a missing folder, fewer than two classes, and a class without an image.
    """
    root = Path(data_path)
    if not root.is_dir():
        raise DataError(f"data_path: {root} is not a folder. Put one folder of images per class into it.")
    entries = list(os.scandir(root))
    folders = sorted(entry.name for entry in entries if _kind(entry) == SUBFOLDERS)
    beside = [_kind(entry) for entry in entries if _kind(entry) != SUBFOLDERS]
    skipped = Counter(f"{kind} beside the class folders" if kind in EXTENSIONS else kind for kind in beside)
    if not folders:
        raise DataError(f"data_path: {root} holds no class folder. Put one folder of images per class into it.")
    if len(folders) == 1:
        raise DataError(f"data_path: {root} holds one class, {folders[0]}; pairs need a second. Add a class folder.")
    paths = []
    stats = []
    labels = []
    empty = []
    for label, folder in enumerate(folders):
        entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        kinds = [_kind(entry) for entry in entries]
        images = [entry for entry, kind in zip(entries, kinds, strict=True) if kind in EXTENSIONS]
        skipped.update(kind for kind in kinds if kind not in EXTENSIONS)
        paths += [entry.path for entry in images]
        found = [entry.stat() for entry in images]
        sizes_and_times = [(one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in found]
        stats.append(np.array(sizes_and_times, np.int64).reshape(-1, 3))  # folder by folder: a million tuples are large
        labels += [label] * len(images)
        if not images:
            empty.append(folder)
    if empty:
        raise DataError(
            f"data_path: {root} holds no image in {listed(empty)} "
            f"({', '.join(sorted(EXTENSIONS))} count; skipped: {_counted(skipped)}). Add images or delete the folder."
        )
    stats = np.concatenate(stats)
    contents = content_ids(paths, stats[:, 0])
    return ImageFolder(root, tuple(folders), tuple(paths), np.array(labels), contents, stats, dict(skipped))


def listed(names, separator=", ", shown=SHOWN) -> str:
    """The names in one text, at most `shown` of them."""
    rest = len(names) - shown
    return separator.join(map(printable, names[:shown])) + (f"{separator}and {rest} more" if rest > 0 else "")


def _kind(entry):
    """The ending of a file in small letters, or what else keeps an entry from being an image."""
    if entry.name.startswith("."):
        return "hidden"
    try:
        if entry.is_dir():
            return SUBFOLDERS
        if not entry.is_file():
            return "broken links" if entry.is_symlink() else "no files"
    except OSError:  # a link that leads to itself
        return "broken links"
    return os.path.splitext(entry.name)[1].lower() or "no ending"


def _counted(skipped):
    """The counts in one text, the largest first."""
    most_first = sorted(skipped.items(), key=lambda one: (-one[1], one[0]))
    return listed([f"{count} {kind}" for kind, count in most_first]) or "nothing"
