"""Folders to pixels: which images there are, which class each has, and their RGB values."""

import os
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pillow_heif import register_heif_opener

from utils.data.contents import content_ids
from utils.errors import UserError
from utils.text import printable

register_heif_opener(thumbnails=False)  # the image itself is decoded, never a thumbnail that a phone put beside it
Image.MAX_IMAGE_PIXELS = None  # `max_megapixels` stands in its place
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "HEIF", "AVIF")  # no other is tried: some start other programs
MEGAPIXELS = 100.0  # to be decoded at once; a small file may claim any number
EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif"))
# what Pillow and its plugins raise for damaged files
UNDECODABLE = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, ArithmeticError, LookupError, TypeError)
UNDECODABLE += (AttributeError, MemoryError, struct.error, zlib.error, Warning)  # a warning where it is an error
ORIENTATION = 0x0112  # the EXIF tag; from SIDEWAYS on, height and width change places
SIDEWAYS = 5
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
SUBFOLDERS = "subfolders"
SHOWN = 20  # names listed in one message before "and N more"


class DataError(UserError, ValueError):
    """The image folder cannot be used; the message names the files, the cause and the cure."""


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


def read_image(path, at_least: int | None = None, max_megapixels: float = MEGAPIXELS) -> np.ndarray:
    """Pixels of an image file: uint8 (H, W, 3), RGB, turned upright by its EXIF orientation.

    With `at_least`, a JPEG may come at a half, a quarter or an eighth of its scale, as long as neither side falls below
    that many pixels: decoding then skips most of the work. Greyscale is repeated on the three channels, 16-bit values
    are scaled down to 8, transparency lies on white.

    Raises DataError, naming the file and the cause, when it cannot be decoded, is of none of FORMATS, or would take
    more than `max_megapixels` million pixels of memory.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if at_least:
                image.draft(None, (at_least, at_least))
            _check_size(image, max_megapixels)
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):  # 16 bits and more: Pillow's own conversion cuts values off at 255
                values = np.asarray(image, np.float64)
                if not np.isfinite(values).all():
                    raise ValueError("holds values that are not finite")
                tops = (65535.0,) if image.mode.startswith("I;16") else (1.0, 255.0, 65535.0)
                top = next((top for top in tops if values.max() <= top), values.max())
                image = Image.fromarray(np.clip(values * 255 / top, 0, 255).round().astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except UNDECODABLE as error:
        raise DataError(f"{path}: {_cause(path, error)}") from error


def read_header(path) -> tuple[tuple[int, int], str]:
    """(height, width) of an image as it is looked at, and the format of its file; its pixels are not decoded.

    Raises DataError, naming the file and the cause, when it cannot be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            sideways = image.getexif().get(ORIENTATION, 1) >= SIDEWAYS
            return image.size if sideways else image.size[::-1], image.format
    except UNDECODABLE as error:
        raise DataError(f"{path}: {_cause(path, error)}") from error


def brightness_of(pixels: np.ndarray) -> np.ndarray:
    """The mean brightness of images uint8 (B, h, w, 3): float (B,), in [0, 255]."""
    return pixels.mean(axis=(1, 2)) @ LUMA


def listed(names, separator=", ", shown=SHOWN) -> str:
    """The names in one text, at most `shown` of them."""
    rest = len(names) - shown
    return separator.join(map(printable, names[:shown])) + (f"{separator}and {rest} more" if rest > 0 else "")


def _check_size(image, max_megapixels):
    millions = image.width * image.height / 1e6
    if millions > max_megapixels:
        raise ValueError(f"has {millions:,.0f} million pixels, above the {max_megapixels:g} of max_megapixels")


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


def _cause(path, error):
    """Why an image file cannot be decoded, in a few words that do not repeat its path."""
    if isinstance(error, UnidentifiedImageError):
        kinds = "JPEG, PNG, BMP, WebP, TIFF, HEIC or AVIF"
        return f"is no image ({kinds}), or its header is damaged" if os.path.getsize(path) else "is empty"
    return getattr(error, "strerror", None) or str(error) or "cannot be decoded"
