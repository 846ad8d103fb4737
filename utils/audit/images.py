"""Find problems in a folder of images, before anything is trained on it: each with what to do about it."""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from ..data.cache import Decoder
from ..data.duplicates import contradictions, groups_of_several, names_of
from ..data.images import SHOWN, ImageFolder, listed
from ..data.reading import brightness_of, read_header, read_image
from ..data.splits import SPLITTABLE
from ..files import printable

UNEQUAL = 10  # times as many images as the smallest class
REVEALING = 0.9  # AUC from which a property reveals a class
ENOUGH = 20  # images of a class, and of the others: an AUC of REVEALING by chance is six standard deviations away
FEW = 5  # groups named in one line; the figure shows more
NARROW = 256 // 8  # values of 256 that a file should use at least
BLOCK = 64  # images read at a time
CURES = {
    "brightness": "photograph all classes in the same light, or let image.brightness vary it in training",
    "size in pixels": "the files of a class may have one source, and small ones stay blurred: mix the sources",
    "aspect ratio": "all are resized to image.size, so distortion reveals the class: crop all classes in the same way",
    "file format": "compression leaves traces that a network sees: take all classes from files of one format",
}


@dataclass(frozen=True)
class ClassCue:
    """A property that, without the content of an image, tells one class from the others."""

    property: str
    """One of CURES."""
    name: str
    """Of the class."""
    auc: float
    """Of telling the class from the others, in [0.5, 1]."""
    difference: str
    """How the images of the class differ."""

    def __str__(self):
        return f"{self.name} (AUC {self.auc:.2f}: {self.difference})"


@dataclass(frozen=True)
class Audit:
    """The problems of a folder of images; as text, one a line."""

    folder: ImageFolder
    unreadable: dict[int, str]
    """The index of each image that cannot be decoded, and the cause."""
    contents: np.ndarray
    """int64 (N,), the index of the first image of equal bytes."""
    duplicates: np.ndarray
    """int64 (N,), the index of the first of the near-duplicates of each image."""
    cues: list[ClassCue]
    """Of an AUC of REVEALING or more."""
    narrow: dict[int, tuple[int, int]]
    """The index of each image that uses fewer than NARROW of its 256 values, and the least and the greatest of them."""

    def identical(self) -> list[np.ndarray]:
        """Return the members of each group of byte-identical files that can be read."""
        return groups_of_several(self.contents)

    def near_duplicates(self) -> list[np.ndarray]:
        """Return the members of each group of near-duplicates that are not all byte-identical."""
        return [group for group in groups_of_several(self.duplicates) if len(np.unique(self.contents[group])) > 1]

    def contradictions(self) -> list[np.ndarray]:
        """Return the members of each group of copies, byte-identical or not, that have more than one class."""
        return contradictions(self.duplicates, self.folder.labels)

    def small_classes(self) -> dict[str, int]:
        """Count the different images of each class that has too few of them for two in validation and in test."""
        classes = len(self.folder.classes)
        numbers = self.duplicates * classes + self.folder.labels
        different = np.unique(np.delete(numbers, list(self.unreadable)))
        counts = np.bincount(different % classes, minlength=classes)
        return {self.folder.classes[label]: int(counts[label]) for label in np.flatnonzero(counts < SPLITTABLE)}

    def __str__(self):
        lines = [*self._file_lines(), *self._copies_lines(), *self._class_lines(), *self._cue_lines()]
        return printable("\n".join([self.folder.report(), *(lines or ["No problems found."])]))

    def _file_lines(self):
        total = len(self.folder.paths)
        unreadable = []
        for index, cause in self.unreadable.items():
            unreadable.append(f"{names_of(self.folder, [index])} ({cause})")
        if unreadable:
            count = f"{len(unreadable)} of {total} images"
            yield f"Cannot be read: {count}: {listed(unreadable)}. They are left out: replace or delete them."
        narrow = []
        for index, (least, most) in self.narrow.items():
            narrow.append(f"{names_of(self.folder, [index])} (from {least} to {most})")
        if narrow:
            count = f"{len(narrow)} of {total} images use less than an eighth of their range, 0 to 255"
            yield (
                f"Narrow range: {count}: {listed(narrow)}. Files of more than 8 bits: set image.value_range to the "
                "range of their values, [0, 4095] for 12 bits. Others: check that they are not blank."
            )

    def _copies_lines(self):
        for kind, groups in (("Byte-identical", self.identical()), ("Near-duplicates", self.near_duplicates())):
            if groups:
                yield f"{kind}: {self._listed(groups, '', FEW)}. They stay in one split; one of each is enough."
        groups = self.contradictions()
        if groups:
            text = self._listed(groups, " have several classes", SHOWN)
            yield f"Contradictions: {text}. One picture has one class: keep it in the correct one only."

    def _class_lines(self):
        small = []
        for name, count in self.small_classes().items():
            small.append(f"{name} ({count})")
        if small:
            least = f"fewer than {SPLITTABLE} different images"
            yield f"Small classes: {listed(small)} have {least}, too few for validation and test: add images."
        classes = self.folder.classes
        counts = np.bincount(self.folder.labels, minlength=len(classes))
        most = counts.argmax()
        least = counts.argmin()
        if counts[most] >= UNEQUAL * counts[least]:
            yield (
                f"Unequal classes: {classes[most]} {counts[most]} images, {classes[least]} {counts[least]}. Scores "
                "mostly describe large classes: add images to small ones."
            )

    def _cue_lines(self):
        for name, cure in CURES.items():
            cues = [str(cue) for cue in self.cues if cue.property == name]
            if cues:
                yield f"Revealed by {name}: {listed(cues)}. A network may learn that instead of content: {cure}."

    def _listed(self, groups, verb, shown):
        """The number of groups and of their images, and their files."""
        count = f"{len(groups)} group" + "s" * (len(groups) > 1)
        names = [names_of(self.folder, group, " = ") for group in groups]
        return f"{count} of {sum(map(len, groups))} images{verb}: {listed(names, shown=shown)}"


def audit_images(folder: ImageFolder, pixels: Decoder, duplicates: np.ndarray) -> Audit:
    """Look for problems in a folder of images, without any training.

    Brightness is measured in the pixels; size, aspect ratio and format are read from the headers of the files.

    Args:
        folder: N images.
        pixels: Their pixels.
        duplicates: int64 (N,), as `load_images` returns it.
    """
    readable = np.setdiff1d(np.arange(len(folder.paths)), list(pixels.unreadable))
    sizes = []
    formats = []
    for size, kind in pixels.pool.map(read_header, [folder.paths[index] for index in readable]):
        sizes.append(size)
        formats.append(kind)
    heights, widths = np.array(sizes).T
    formats = np.array(formats)
    brightness, spreads = _light(pixels, readable)
    labels = folder.labels[readable]
    cues = []
    for label in np.unique(labels):
        inside = labels == label
        if min(inside.sum(), (~inside).sum()) < ENOUGH:
            continue
        name = folder.classes[label]
        cues += [
            ClassCue("brightness", name, *_told_by_value(brightness, inside, "brighter", "darker")),
            ClassCue("size in pixels", name, *_told_by_value(heights * widths, inside, "larger", "smaller")),
            ClassCue("aspect ratio", name, *_told_by_value(widths / heights, inside, "wider", "higher")),
            ClassCue("file format", name, *_told_by_format(formats, inside)),
        ]
    cues = [cue for cue in cues if cue.auc >= REVEALING]
    narrow = _narrow_ranges(pixels, readable[spreads < NARROW - 1])  # resized pixels never use more values than files
    return Audit(folder, pixels.unreadable, pixels.contents(), duplicates, cues, narrow)


def _told_by_value(values, inside, more, less):
    """The AUC of telling a class by a value, and how: it is higher, lower, or else the same in all its images."""
    above = roc_auc_score(inside, values)
    auc, difference = max((above, f"{more} than others"), (1 - above, f"{less} than others"))
    if auc < REVEALING:
        middle = np.median(values[inside])
        near = roc_auc_score(inside, -np.abs(values - middle))
        if near > auc:
            return near, "similar in all of its images"
    return auc, difference


def _told_by_format(formats, inside):
    """The AUC of telling a class by the format whose share differs most, and the shares."""
    best = (0.0, 0.0, "")
    for kind in np.unique(formats):
        own = (formats[inside] == kind).mean()
        others = (formats[~inside] == kind).mean()
        best = max(best, (abs(own - others), own, f"{own:.0%} {kind}, {others:.0%} of the others"))
    return (1 + best[0]) / 2, best[2]


def _light(pixels, indices):
    """The mean brightness of images, in [0, 255], and their greatest value less the least: both (B,)."""
    brightness = []
    spreads = []
    for start in range(0, len(indices), BLOCK):
        block = pixels[indices[start : start + BLOCK]]  # uint8 (BLOCK, h, w, 3)
        brightness.append(brightness_of(block))
        spreads.append(np.ptp(block, axis=(1, 2, 3)))
    return np.concatenate(brightness), np.concatenate(spreads)


def _narrow_ranges(pixels, indices):
    """The least and the greatest value of those images that use fewer than NARROW of 256 values, by index."""
    narrow = {}
    for index in indices.tolist():
        image = read_image(pixels.paths[index], None, pixels.max_megapixels, pixels.value_range)
        least = int(image.min())
        most = int(image.max())
        if most - least < NARROW - 1:
            narrow[index] = (least, most)
    return narrow
