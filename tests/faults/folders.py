"""Folders of images with whatever may lie in them: what a plain listing finds is found, or the folder refused."""

import csv
import io
import os
import shutil
import signal
import stat
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
from faults.outcomes import REFUSED, RIGHT, WRONG, Outcome, attempt
from faults.project import Project
from PIL import Image

from utils import audit_images
from utils.data import splits as pairs
from utils.data.splits import load_splits

WORK = "folders and names"
TRIES = 60
QUICK = 15
LONGEST = 20  # seconds that a folder may take
NEAR = 1.0  # grey levels, on average, by which one way to resize differs from another
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif")
MANY = 2000
ODD = (
    *("a\nb", "$x$", "$", "'\"", "\U0001f600", "-rf", " ", "a b ", "~", "~root", "#", "*", "%s{0}", "a\\b", "a\tb"),
    *("x" * 250, "\u6f22\u5b57" * 40, "\u202egnp", "\x1b[31m", "\x7f", "&amp;", "<b>", "a.", "CON", "e\u0301"),
)
NOT_UTF_8 = tuple(os.fsdecode(name) for name in (b"\xff\xfe", b"a\x80", b"\xed\xa0\x80", b"caf\xe9"))


class LateError(Exception):
    """What was tried did not end in time."""


@dataclass
class Case:
    """A copy of the images in `root`, to be changed by a fault.

    turn: how often its kind was had before. must: RIGHT or REFUSED, where only that will do. path: what `data_path` is.
    during: what happens between listing and decoding, and `before_audit` then. gone: files that it takes away.
    """

    project: Project
    random: np.random.Generator
    turn: int
    root: Path
    must: str | None = None
    path: str = ""
    during: object = None
    before_audit: object = None
    gone: list[str] = field(default_factory=list)

    def image(self) -> Path:
        """Any image."""
        return Path(self.random.choice(sorted(str(path) for path in self.root.glob("*/*.png"))))

    def class_folder(self) -> Path:
        return Path(self.random.choice(sorted(str(path) for path in self.root.iterdir())))


@contextmanager
def within(seconds):
    """Raises LateError in the block when it takes longer, also where it waits for a file."""

    def late(number, frame):
        raise LateError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def faults(project, random, tries, folder):
    kinds = (
        *(_odd_names, _not_utf_8, _pipes, _links, _hidden, _nested, _few_classes, _lone, _vanishing, _changing),
        *(_copies, _vanishing_late, _many_empty, _locked, _elsewhere),
    )
    for number in range(tries):
        turn, kind = divmod(number, len(kinds))
        root = folder / str(number) / "Data"
        shutil.copytree(project.data, root)
        case = Case(project, random, turn, root)
        fault = kinds[kind](case)
        yield _outcome(case, f"{fault}{'' if _cached(case) else ', no cache'}")
        shutil.rmtree(root.parent)


def _odd_names(case):
    """Files and a class of odd names, one of them no image inside."""
    case.must = RIGHT
    name, other, third = case.random.permutation(ODD)[:3].tolist()
    image = case.image()
    image.rename(image.with_name(f"{name}{image.suffix.upper()}"))
    image.with_name(f"{other}.jpg").write_bytes(b"no image")
    folder = case.class_folder()
    folder.rename(folder.with_name(third))
    return f"file {name!r}, unreadable file {other!r}, class {third!r}"


def _not_utf_8(case):
    name, other = case.random.permutation(NOT_UTF_8)[:2].tolist()
    image = case.image()
    image.rename(image.with_name(f"{name}.png"))
    if case.random.random() < 0.5:
        image.with_name(f"{other}.jpg").write_bytes(b"no image")
    if case.turn % 2:
        folder = case.class_folder()
        folder.rename(folder.with_name(other))
    return f"file {name!r}{f', class {other!r}' if case.turn % 2 else ''}"


def _pipes(case):
    """What waits for a writer, or never ends."""
    case.must = RIGHT
    folder = case.class_folder()
    os.mkfifo(folder / "pipe.jpg")
    os.mknod(folder / "socket.png", stat.S_IFSOCK | 0o600)
    (folder / "device.bmp").symlink_to("/dev/zero")
    os.mkfifo(case.root / "pipe.png")
    return "pipes, sockets and devices with the endings of images"


def _links(case):
    kind = ("to nothing", "to itself", "class to itself", "to a file", "to the folder", "class to another")[
        case.turn % 6
    ]
    folder = case.class_folder()
    image = case.image()
    if kind == "to nothing":
        (folder / "link.png").symlink_to("missing.png")
        (case.root / "link").symlink_to("missing")
    elif kind == "to itself":
        (folder / "link.png").symlink_to("link.png")
    elif kind == "class to itself":
        (case.root / "link").symlink_to("link")
    elif kind == "to a file":
        (folder / "link.png").symlink_to(image)
    elif kind == "to the folder":
        (folder / "link").symlink_to(case.root)
    else:
        (case.root / "link").symlink_to(folder)
    case.must = RIGHT
    return f"link {kind}"


def _hidden(case):
    case.must = RIGHT
    image = case.image()
    for name in (".DS_Store", f"._{image.name}", ".png", "Thumbs.db", "notes", "x.png.part"):
        image.with_name(name).write_bytes(b"\0")
    shutil.copytree(image.parent, case.root / ".cache")
    shutil.copy(image, case.root / "beside.png")
    return "hidden files, a hidden folder, and what is no image"


def _nested(case):
    case.must = RIGHT
    folder = case.class_folder()
    shutil.copytree(case.class_folder(), folder / "below" / "more")
    (folder / "folder.jpg").mkdir()
    (case.root / "class.png").mkdir()
    shutil.copy(case.image(), case.root / "class.png")
    return "folders in a class, one named folder.jpg, and a class named class.png"


def _few_classes(case):
    case.must = REFUSED
    kept, *others = sorted(case.root.iterdir())
    if case.turn % 3 == 0:
        shutil.rmtree(others[0])
        others[0].mkdir()
        return "an empty class"
    for folder in others:
        shutil.rmtree(folder)
    if case.turn % 3 == 1:
        return "one class"
    shutil.rmtree(kept)
    return "no class"


def _lone(case):
    case.must = RIGHT
    image = case.image()
    (case.root / "lone").mkdir()
    shutil.copy(image, case.root / "lone" / "one.png")
    return "a class of one image, a copy of another"


def _vanishing(case):
    """Files that go while they are listed, decoded, or looked at."""
    image = case.image()
    case.gone = [str(image)]
    case.during = image.unlink
    return "an image that goes before it is decoded"


def _vanishing_late(case):
    image = case.image()
    case.gone = [str(image)]
    case.before_audit = image.unlink
    return "an image that goes before the audit"


def _changing(case):
    image, other = case.image(), case.image()
    contents = (other.read_bytes(), b"", image.read_bytes()[:200], image.read_bytes() * 50)
    content = contents[case.turn % len(contents)]
    case.during = lambda: image.write_bytes(content)
    return f"an image that becomes {len(content)} bytes before it is decoded"


def _copies(case):
    case.must = RIGHT
    first, second, *_ = sorted(case.root.iterdir())
    for path in sorted(first.iterdir())[:3]:
        shutil.copy(path, second)
    return "copies under two classes"


def _many_empty(case):
    case.must = REFUSED
    for number in range(MANY):
        (case.root / f"empty_{number}").mkdir()
    return f"{MANY} empty folders"


def _locked(case):
    """What may not be read; who may read all has an image that is a folder instead."""
    image = case.image()
    if os.geteuid() == 0:
        image.unlink()
        image.mkdir()
        return "a folder in the place of an image"
    place = image if case.turn % 2 else image.parent
    place.chmod(0)
    return f"{place.name} may not be read"


def _elsewhere(case):
    """Odd values of `data_path`."""
    kind = ("at home", "link", "missing", "file", "loop", "dots", "not UTF-8")[case.turn % 7]
    here = case.root.parent
    if kind in ("missing", "file", "loop"):
        case.must = REFUSED
        case.path = str(here / kind)
    if kind == "at home":
        case.path = "~/Data"
    elif kind == "link":
        case.path = str(here / kind)
        (here / kind).symlink_to(case.root)
    elif kind == "file":
        (here / kind).write_bytes(b"")
    elif kind == "loop":
        (here / kind).symlink_to(kind)
    elif kind == "dots":
        case.path = f"{here}/Data/../Data/."
    elif kind == "not UTF-8":
        case.root = case.root.rename(here / NOT_UTF_8[0])
    return f"data_path {kind}"


def _outcome(case, fault) -> Outcome:
    """What comes of finding, splitting and auditing the images."""
    found = _listing(case.root)
    with patch.dict(os.environ, HOME=str(case.root.parent)):
        outcome = attempt(fault, lambda: _loaded(case), lambda splits: _complaint(splits, found, case))
    if case.must == RIGHT and outcome.kind == REFUSED:
        return Outcome(WRONG, f"{outcome.note}: refused without need")
    if case.must == REFUSED and outcome.kind == RIGHT:
        return Outcome(WRONG, f"{fault}: accepted")
    return outcome


def _loaded(case):
    """The splits of the folder, after its audit, with the fault in place."""

    def scanned(root):
        folder = scan(root)
        if case.during:
            case.during()
        return folder

    scan = pairs.scan
    changes = {"data_path": case.path or str(case.root), "hyperparameters.verbose": False}
    if not _cached(case):
        changes["cache_path"] = None
    with within(LONGEST), redirect_stdout(io.StringIO()), patch.object(pairs, "scan", scanned):
        splits = load_splits(case.project.config(case.root.parent, changes))
        if case.before_audit:
            case.before_audit()
        str(audit_images(splits.folder, splits.pixels, splits.duplicates))
    return splits


def _cached(case):
    return case.turn % 2 == 1


def _listing(root) -> dict[str, list[str]]:
    """The image files of each class, as a plain walk finds them."""
    _, names, _ = next(os.walk(root))
    found = {}
    for name in sorted(name for name in names if not name.startswith(".")):
        _, _, files = next(os.walk(root / name), (None, None, []))
        seen = [file for file in sorted(files) if not file.startswith(".") and file.lower().endswith(ENDINGS)]
        found[name] = [path for path in (os.path.join(root, name, file) for file in seen) if os.path.isfile(path)]
    return found


def _complaint(splits, found, case):
    """How splits differ from the listing."""
    folder = splits.folder
    if folder.classes != tuple(found):
        return f"classes {folder.classes}, not {tuple(found)}"
    if not all(found.values()):
        return "a class without images was accepted"
    paths = [path for name in found for path in found[name]]
    real = [os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in folder.paths]
    if real != [os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in paths]:
        return f"images {set(folder.paths) ^ set(paths)} are missed or too many"
    if [folder.classes[label] for label in folder.labels] != [name for name in found for _ in found[name]]:
        return "labels of other classes"
    unreadable = {index for index, path in enumerate(paths) if _plain(path, (8, 8)) is None}
    late = {index for index, path in enumerate(paths) if path in case.gone and case.before_audit}
    if set(splits.pixels.unreadable) != unreadable - late:
        return f"{sorted(splits.pixels.unreadable)} are unreadable, not {sorted(unreadable)}"
    dealt = np.concatenate([splits.train, splits.valid, splits.test])
    if sorted(dealt.tolist()) != sorted(set(range(len(paths))) - unreadable | late):
        return "images are in no split, or in two"
    return _listed_wrongly(splits, case) or _painted_wrongly(splits, unreadable)


def _listed_wrongly(splits, case):
    """What is wrong with the list of unreadable images."""
    names = [splits.folder.paths[index] for index in splits.pixels.unreadable]
    file = case.root.parent / "results" / "unreadable.csv"
    if not names:
        return f"{file.name} of nothing" if file.exists() else None
    with open(file, encoding="utf-8", newline="") as opened:
        rows = [row["file"] for row in csv.DictReader(opened)]
    if len(rows) == len(names) and all(row == name or not _utf_8(name) for row, name in zip(rows, names, strict=True)):
        return None
    return f"{file.name} names {rows}, not {names}"


def _utf_8(name) -> bool:
    return name.isascii() or name.encode("utf-8", "replace").decode() == name


def _painted_wrongly(splits, unreadable):
    """The first image whose pixels are not those that Pillow reads, or nothing."""
    for index, path in enumerate(splits.folder.paths):
        if index in unreadable:
            continue
        pixels = splits.pixels[np.array([index])][0]
        plain = _plain(path, splits.pixels.size)
        if pixels.shape != plain.shape or np.abs(pixels.astype(int) - plain).mean() > NEAR:
            return f"other pixels of {path!r}"
    return None


def _plain(path, size):
    """What Pillow alone reads, resized: uint8 (*size, 3), or None where it reads nothing."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))
    except (OSError, SyntaxError):
        return None
