"""Find problems in a folder of images, before anything is trained on it: each with what to do about it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from ..data.cache import Decoder
from ..data.duplicates import contradictions, groups_of_several, names_of
from ..data.images import ImageFolder, listed
from ..data.reading import brightness_of, read_header, read_image
from ..data.splits import SPLITTABLE
from ..files import printable

REVEALING = 0.9  # AUC from which a property reveals a class
ENOUGH = 20  # images of a class, and of the others: an AUC of REVEALING by chance is six standard deviations away
DARK = 16  # of 255: the mean brightness below which little can be seen
ODD = 4  # a shorter side of less than one in ODD of the median, or sides in ODD times another ratio, are odd
NARROW = 256 // 8  # values of 256 that a file should use at least
BLOCK = 64  # images read at a time
NARROW_CURE = (
    "They use less than an eighth of the values 0 to 255. Files of more than 8 bits: set image.value_range to the "
    "range of their values, [0, 4095] for 12 bits. Others: check that they are not blank."
)
DARK_CURE = "Little can be seen in them: drop them, or photograph again."
ODD_CURE = "They are stretched to image.size like all others: crop them, or drop them."
COPIES_CURE = "They stay in one split; one of each is enough."
CUE_CURES = {
    "brightness": "photograph all classes in the same light, or let image.brightness vary it in training",
    "size in pixels": "the files of a class may have one source, and small ones stay blurred: mix the sources",
    "aspect ratio": "all are resized to image.size, so distortion reveals the class: crop all classes in the same way",
    "file format": "compression leaves traces that a network sees: take all classes from files of one format",
}


@dataclass(frozen=True)
class ClassCue:
    """A property that, without the content of an image, tells one class from the others."""

    property: str
    """One of CUE_CURES."""
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
    narrow: dict[int, str]
    """The index of each image that uses fewer than NARROW of its 256 values, and the least and the greatest of them."""
    dark: dict[int, str]
    """The index of each image of a mean brightness below DARK, and that brightness."""
    odd: dict[int, str]
    """The index of each image that is much smaller than the median, or of other proportions (ODD), and its size."""

    def contradictions(self) -> list[np.ndarray]:
        """Return the members of each group of copies, byte-identical or not, that have more than one class."""
        return contradictions(self.duplicates, self.folder.labels)

    def small_classes(self) -> dict[str, int]:
        """Count the different images of each class that has too few of them for two in validation and in test."""
        images = pd.DataFrame({"class": self.folder.labels, "picture": self.duplicates}).drop(list(self.unreadable))
        counts = images.groupby("class")["picture"].nunique().reindex(range(len(self.folder.classes)), fill_value=0)
        return {self.folder.classes[label]: count for label, count in counts.items() if count < SPLITTABLE}

    def __str__(self):
        lines = [self.folder.report()]
        for problem, places, cure in self._problems():
            if places:
                lines.append(f"{problem} ({len(places)}): {listed(places)}. {cure}")
        if len(lines) == 1:
            lines.append("No problems found in the files.")
        return printable("\n".join(lines))

    def _problems(self):
        """Each kind of problem, where it is, and what to do about it."""
        yield "Cannot be read", self._files(self.unreadable), "They are left out: replace or delete them."
        yield "Narrow range", self._files(self.narrow), NARROW_CURE
        yield "Nearly black", self._files(self.dark), DARK_CURE
        yield "Odd size", self._files(self.odd), ODD_CURE
        yield "Byte-identical", self._groups(groups_of_several(self.contents)), COPIES_CURE
        similar = contradictions(self.duplicates, self.contents)  # of different bytes
        yield "Near-duplicates", self._groups(similar), COPIES_CURE
        yield "Contradictions", self._groups(self.contradictions()), "Keep each picture in its correct class only."
        small = [f"{name} ({count})" for name, count in self.small_classes().items()]
        cure = f"Fewer than {SPLITTABLE} different images are too few for validation and test: add images."
        yield "Small classes", small, cure
        counts = np.bincount(self.folder.labels, minlength=len(self.folder.classes))
        few = np.flatnonzero(counts * 10 <= counts.max())
        largest = f"The largest class, {self.folder.classes[counts.argmax()]}, has {counts.max()} images"
        unequal = [f"{self.folder.classes[label]} ({counts[label]})" for label in few]
        yield "Unequal classes", unequal, f"{largest}, and scores mostly describe large classes: add images to these."
        for name, cure in CUE_CURES.items():
            cues = [str(cue) for cue in self.cues if cue.property == name]
            yield f"Revealed by {name}", cues, f"A network may learn that instead of content: {cure}."

    def _files(self, causes):
        return [f"{names_of(self.folder, [index])} ({cause})" for index, cause in causes.items()]

    def _groups(self, groups):
        return [names_of(self.folder, group, " = ") for group in groups]


def audit_images(folder: ImageFolder, pixels: Decoder, duplicates: np.ndarray) -> Audit:
    """Look for problems in a folder of images, without any training.

    Brightness is measured in the pixels; size, aspect ratio and format are read from the headers of the files.

    Args:
        folder: N images.
        pixels: Their pixels.
        duplicates: int64 (N,), as `load_images` returns it.
    """
    readable = np.setdiff1d(np.arange(len(folder.paths)), list(pixels.unreadable))
    headers = pixels.pool.map(read_header, [folder.paths[index] for index in readable])
    sizes, formats = zip(*headers, strict=True)
    heights, widths = np.array(sizes).T
    brightness = np.empty(len(readable))
    narrow = {}
    for start in range(0, len(readable), BLOCK):
        indices = readable[start : start + BLOCK]
        block = pixels[indices]  # uint8 (BLOCK, h, w, 3)
        brightness[start : start + BLOCK] = brightness_of(block)
        spreads = np.ptp(block, axis=(1, 2, 3))
        for index in indices[spreads < NARROW - 1].tolist():  # resized pixels never use more values than files
            image = read_image(folder.paths[index], None, pixels.max_megapixels, pixels.value_range)
            if np.ptp(image) < NARROW - 1:
                narrow[index] = f"from {image.min()} to {image.max()}"
    dark = {}
    for index in np.flatnonzero(brightness < DARK):
        dark[int(readable[index])] = f"mean brightness {brightness[index]:.0f} of 255"
    values = {
        "brightness": (brightness, "brighter", "darker"),
        "size in pixels": (heights * widths, "larger", "smaller"),
        "aspect ratio": (widths / heights, "wider", "higher"),
    }
    cues = _cues(values, np.array(formats), folder.labels[readable], folder.classes)
    odd = _odd_sizes(readable, heights, widths)
    return Audit(folder, pixels.unreadable, pixels.contents(), duplicates, cues, narrow, dark, odd)


def _odd_sizes(indices, heights, widths) -> dict[int, str]:
    """The images of which a side is ODD times shorter than the median, or the ratio of both ODD times another."""
    ratios = heights / widths
    shorter = np.minimum(heights, widths)
    odd = shorter * ODD < np.median(shorter)
    odd |= np.abs(np.log(ratios / np.median(ratios))) > np.log(ODD)
    return {int(indices[row]): f"{widths[row]} x {heights[row]} pixels" for row in np.flatnonzero(odd)}


def _cues(values, formats, labels, classes) -> list[ClassCue]:
    """The cues of all classes with ENOUGH images."""
    cues = []
    for label in np.unique(labels):
        inside = labels == label
        if min(inside.sum(), (~inside).sum()) < ENOUGH:
            continue
        for name, (value, more, less) in values.items():
            cues.append(ClassCue(name, classes[label], *_auc_of_value(value, inside, more, less)))
        cues.append(ClassCue("file format", classes[label], *_auc_of_format(formats, inside)))
    return [cue for cue in cues if cue.auc >= REVEALING]


def _auc_of_value(values, inside, more, less):
    """The AUC of telling a class by a value, and how: it is higher, lower, or else the same in all its images."""
    above = roc_auc_score(inside, values)
    auc, difference = max((above, f"{more} than others"), (1 - above, f"{less} than others"))
    if auc >= REVEALING:
        return auc, difference
    middle = np.median(values[inside])
    return roc_auc_score(inside, -np.abs(values - middle)), "similar in all of its images"


def _auc_of_format(formats, inside):
    """The AUC of telling a class by the format whose share differs most, and the shares."""
    shares = []
    for kind in np.unique(formats):
        own = (formats[inside] == kind).mean()
        others = (formats[~inside] == kind).mean()
        shares.append((abs(own - others), own, f"{own:.0%} {kind}, {others:.0%} of the others"))
    difference, _, words = max(shares)
    return (1 + difference) / 2, words
