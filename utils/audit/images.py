"""What is wrong with a folder of images, before anything is trained on it: each finding with what to do about it."""

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
TELLING = 0.9  # AUC from which a property is said to tell a class
ENOUGH = 20  # images of a class, and of the others: chance alone brings no AUC of TELLING (six standard deviations)
FEW = 5  # groups named in one line; the figure shows more
NARROW = 256 // 8  # values of 256 that a file uses at least; fewer are told
BLOCK = 64  # images read at a time
CURES = {
    "brightness": "photograph all classes in like light, or let image.brightness vary it in training",
    "size in pixels": "the files of a class seem to have one source, and small ones stay blurred: mix the sources",
    "aspect ratio": "all are squeezed to image.size, so their shapes give the class away: crop all classes alike",
    "file format": "compression leaves traces that a network sees: take all classes from files of one format",
}


@dataclass(frozen=True)
class Told:
    """A class that one property alone tells from the others: AUC in [TELLING, 1], and how its images differ."""

    property: str
    name: str
    auc: float
    how: str

    def __str__(self):
        return f"{self.name} (AUC {self.auc:.2f}: {self.how})"


@dataclass(frozen=True)
class Audit:
    """What was found in a folder of images; as text, one finding a line.

    unreadable: index of an image to why it cannot be decoded. duplicates: int64 (N,), the index of the first of the
    near-duplicates that an image belongs to. told: classes told by a property alone. narrow: index of an image that
    uses fewer than NARROW of its 256 values to the least and the greatest of them.
    """

    folder: ImageFolder
    unreadable: dict[int, str]
    duplicates: np.ndarray
    told: list[Told]
    narrow: dict[int, tuple[int, int]]

    def identical(self) -> list[np.ndarray]:
        """The members of each group of byte-identical files that can be read."""
        groups = groups_of_several(self.folder.contents)
        return [group for group in groups if group[0] not in self.unreadable]

    def alike(self) -> list[np.ndarray]:
        """The members of each group of near-duplicates that are not all byte-identical."""
        return [
            group for group in groups_of_several(self.duplicates) if len(np.unique(self.folder.contents[group])) > 1
        ]

    def contradictions(self) -> list[np.ndarray]:
        """The members of each group of copies, byte-identical or not, that stand under more than one class."""
        return contradictions(self.duplicates, self.folder.labels)

    def small_classes(self) -> dict[str, int]:
        """Classes of too few different images to be sure of two in validation and in test, and how many they have."""
        classes = len(self.folder.classes)
        numbers = self.duplicates * classes + self.folder.labels
        distinct = np.unique(np.delete(numbers, list(self.unreadable)))
        counts = np.bincount(distinct % classes, minlength=classes)
        return {self.folder.classes[label]: int(counts[label]) for label in np.flatnonzero(counts < SPLITTABLE)}

    def __str__(self):
        findings = [
            *self._unreadable_line(),
            *self._narrow_line(),
            *self._copies_lines(),
            *self._class_lines(),
            *self._told_lines(),
        ]
        return printable("\n".join([self.folder.report(), *(findings or ["Nothing stands out."])]))

    def _unreadable_line(self):
        if self.unreadable:
            names = [f"{names_of(self.folder, [index])} ({cause})" for index, cause in self.unreadable.items()]
            count = f"{len(names)} of {len(self.folder.paths)} images"
            yield f"Cannot be read: {count}: {listed(names)}. They are left out: replace or delete them."

    def _narrow_line(self):
        if self.narrow:
            names = []
            for index, (least, most) in self.narrow.items():
                names.append(f"{names_of(self.folder, [index])} (from {least} to {most})")
            count = f"{len(names)} of {len(self.folder.paths)} images use less than an eighth of their range, 0 to 255"
            cure = (
                "Files of more than 8 bits: set image.value_range to the range of their values, [0, 4095] for 12 bits. "
                "Others: are they what they should be, or blank?"
            )
            yield f"Narrow range: {count}: {listed(names)}. {cure}"

    def _copies_lines(self):
        cure = "They stay in one split; one of each is enough"
        for what, groups in (("Byte-identical", self.identical()), ("Near-duplicates", self.alike())):
            if groups:
                yield f"{what}: {_images_of(groups)}: {self._listed(groups, FEW)}. {cure}."
        wrong = self.contradictions()
        if wrong:
            cure = "One picture cannot be of two classes: keep it in the right one alone"
            count = f"{_images_of(wrong)} stand under several classes"
            yield f"Contradictions: {count}: {self._listed(wrong, SHOWN)}. {cure}."

    def _class_lines(self):
        small = self.small_classes()
        if small:
            names = listed([f"{name} ({count})" for name, count in small.items()])
            least = f"fewer than {SPLITTABLE} different images"
            yield f"Small classes: {names} have {least}, too few for validation and test: add images."
        counts = np.bincount(self.folder.labels, minlength=len(self.folder.classes))
        most, least = counts.argmax(), counts.argmin()
        if counts[most] >= UNEQUAL * counts[least]:
            largest, smallest = (f"{self.folder.classes[label]} {counts[label]}" for label in (most, least))
            cure = "Scores speak for large classes first: add images to small ones"
            yield f"Unequal classes: {largest} images, {smallest}. {cure}."

    def _told_lines(self):
        for name, cure in CURES.items():
            told = [str(one) for one in self.told if one.property == name]
            if told:
                yield f"Told by {name} alone: {listed(told)}. A network may learn that instead: {cure}."

    def _listed(self, groups, shown):
        return listed([names_of(self.folder, group, " = ") for group in groups], shown=shown)


def audit_images(folder: ImageFolder, pixels: Decoder, duplicates: np.ndarray) -> Audit:
    """Look at a folder of images, its pixels and its near-duplicates (`load_images`), without any training.

    Brightness is measured in the pixels; size, aspect ratio and format are read from the heads of the files.
    """
    readable = np.setdiff1d(np.arange(len(folder.paths)), list(pixels.unreadable))
    headers = list(pixels.pool.map(read_header, [folder.paths[index] for index in readable]))
    heights, widths = np.array([size for size, _ in headers]).T
    formats = np.array([kind for _, kind in headers])
    brightness, spreads = _light(pixels, readable)
    measured = {
        "brightness": (brightness, "brighter", "darker"),
        "size in pixels": (heights * widths, "larger", "smaller"),
        "aspect ratio": (widths / heights, "wider", "higher"),
    }
    labels = folder.labels[readable]
    told = []
    for label in np.unique(labels):
        inside = labels == label
        if min(inside.sum(), (~inside).sum()) < ENOUGH:
            continue
        name = folder.classes[label]
        for what, (values, more, less) in measured.items():
            told.append(Told(what, name, *_told_by(values, inside, more, less)))
        told.append(Told("file format", name, *_told_by_format(formats, inside)))
    telling = [one for one in told if one.auc >= TELLING]
    narrow = _narrow_ranges(pixels, readable[spreads < NARROW - 1])  # resized pixels never use more values than files
    return Audit(folder, pixels.unreadable, duplicates, telling, narrow)


def _told_by(values, inside, more, less):
    """The AUC of telling a class by one value, and how: it has more of it, less, or else the same in all images."""
    above = roc_auc_score(inside, values)
    beside = max((above, f"{more} than others"), (1 - above, f"{less} than others"))
    if beside[0] >= TELLING:
        return beside
    near = roc_auc_score(inside, -np.abs(values - np.median(values[inside])))
    return max(beside, (near, "alike in all of its images"))


def _told_by_format(formats, inside):
    """The same by the format that most sets the class apart."""
    kinds = np.unique(formats)
    shares = [((formats[inside] == kind).mean(), (formats[~inside] == kind).mean()) for kind in kinds]
    own, others = max(shares, key=lambda pair: (abs(pair[0] - pair[1]), pair[0]))
    kind = kinds[shares.index((own, others))]
    return (1 + abs(own - others)) / 2, f"{own:.0%} {kind}, {others:.0%} of the others"


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
        least, most = int(image.min()), int(image.max())
        if most - least < NARROW - 1:
            narrow[index] = (least, most)
    return narrow


def _images_of(groups):
    count = f"{len(groups)} group" + "s" * (len(groups) > 1)
    return f"{count} of {sum(map(len, groups))} images"
