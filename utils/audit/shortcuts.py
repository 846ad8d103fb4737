"""Shortcuts: properties that reveal a class without its content, and how much of the score they carry."""

from dataclasses import dataclass

import numpy as np
import torch

from ..data.reading import brightness_of, read_header, stored_size, through_jpeg
from ..data.sample import load_masks
from ..data.splits import Pairs, Splits, draw_pairs
from ..device import progress
from ..network.distance import distance
from ..score.intervals import Interval, auc_interval, intervals, weighted_mean
from ..train.evaluation import embed_images
from ..trained import Trained
from ..vision import functional as V

EDGE = 0.1  # of the shorter side: width of the border
SMALL = 5  # percentile of the sizes of files, to which all images are reduced
QUALITY = 50  # of JPEG, in [0, 100]: low, so that it covers what files lost before
IMAGES = 256  # of the test split, and as many of the training split for their mean colour
PARTNERS = 4  # pairs of each kind that an image starts
AUC_DRAWS = 100  # for the interval of the AUC of a property
MATTERS = 0.2  # share of the score that is reported
TELLS = 0.6  # AUC of a property by itself that is reported


@dataclass(frozen=True, eq=False)
class PropertyImages:
    """N images with what is known of their files."""

    pixels: np.ndarray
    """uint8 (N, h, w, 3)."""
    sizes: np.ndarray
    """int64 (N, 2), height and width of the files."""
    formats: np.ndarray
    """str (N,)."""
    objects: np.ndarray | None
    """bool (N, h, w), True on the object; None without masks."""
    colour: np.ndarray
    """uint8 (3,), which covers what is hidden."""

    def hidden(self, where) -> np.ndarray:
        """Cover the pixels by the colour where bool (h, w) or (N, h, w) is True: uint8 (N, h, w, 3)."""
        return np.where(where[..., None], self.colour, self.pixels)

    def mean_colour(self, where) -> np.ndarray:
        """Average each image where bool (h, w) or (N, h, w) is True: float (N, 3)."""
        where = np.broadcast_to(where, self.pixels.shape[:3])[..., None]
        return (self.pixels * where).sum(axis=(1, 2)) / where.sum(axis=(1, 2)).clip(min=1)


@dataclass(frozen=True, eq=False)
class Property:
    """One property of N images."""

    name: str
    values: np.ndarray
    """float (N, V), what it is in each image."""
    equalized: np.ndarray
    """uint8 (N, h, w, 3), the pixels without differences in it."""
    check: str
    """What to check when it reveals the class."""
    control: np.ndarray | None = None
    """uint8 (N, h, w, 3), pixels with something else hidden, to compare `equalized` with."""
    control_name: str = ""
    """What is hidden in `control`."""


@dataclass(frozen=True, eq=False)
class Shortcut:
    """What one property carries of the score."""

    name: str
    share: Interval
    """Of the score; 1 if nothing is left without the property."""
    control: float
    """The share that is lost when `control_name` is hidden; NaN where nothing is."""
    control_name: str
    auc: Interval
    """Of separating pairs by the property itself; 0.5 by chance."""
    check: str
    """What to check."""
    example: np.ndarray
    """uint8 (2, h, w, 3), an image before and after."""

    @property
    def matters(self) -> bool:
        """Whether it certainly carries MATTERS of the score, and more than what is hidden instead."""
        return self.share.low >= MATTERS and not self.share.value <= self.control

    @property
    def tells(self) -> bool:
        """Whether it certainly separates pairs by itself, without the network."""
        return self.auc.low >= TELLS

    def sentence(self) -> str:
        """Describe what it carries and separates; empty if that is little."""
        parts = []
        if self.matters:
            text = f"carries {self.share.value:.0%} ({self.share.low:.0%} to {self.share.high:.0%}) of the score"
            if self.control_name:
                text += f", {self.control_name} {max(self.control, 0):.0%}"
            parts.append(text)
        if self.tells:
            parts.append(f"separates pairs by itself, without the network, with an AUC of {self.auc}")
        if not parts:
            return ""
        return f"The {self.name} {' and '.join(parts)}: check whether {self.check}."


@dataclass(frozen=True, eq=False)
class Shortcuts:
    """What all properties carry of the score."""

    properties: tuple[Shortcut, ...]
    """The one that carries most first."""
    score: Interval
    """Mean distance of different pairs less that of same pairs; if its interval includes 0, all shares are NaN."""
    images: int
    """How many images were used."""
    pairs: int
    """How many pairs were used."""

    def __str__(self):
        lines = [
            f"{self.images} test images in {self.pairs} pairs: the mean distance of different pairs is {self.score} "
            "larger than that of same pairs."
        ]
        for shortcut in self.properties:
            if shortcut.sentence():
                lines.append(shortcut.sentence())
        if self.score.low <= 0:
            lines.append("That may be chance, so no share of it was measured.")
        elif len(lines) == 1:
            names = ", ".join(shortcut.name for shortcut in self.properties)
            lines.append(f"None of {names} carries much of that.")
        return "\n".join(lines)


def find_shortcuts(trained: Trained, splits: Splits, count=IMAGES, seed=0) -> Shortcuts:
    """Equalize each property in all images, and measure how much of the score is left.

    The score is the mean distance of different pairs less that of same pairs; the share that a property carries is 1
    less the score without it over the score with it. Pairs are drawn by the pair rule among at most `count` test
    images; intervals resample images (`standard_errors`).

    Limitations: the network has never seen images without a property, so a share includes the harm of the change
    itself, and objects reach into the border; compare it with what is lost when an equal area in the middle, or the
    objects, are hidden. A flat background cuts out the shape of the object, which can even help: a share below 0. The
    shares do not add up to 1, and of several properties that reveal the same, each seems to carry nothing. Background
    is what is neither object nor border, and without an object the whole image.
    """
    random = np.random.default_rng(seed)
    chosen = _choose_images(splits.test_pairs, count, random)
    training = np.sort(random.permutation(splits.train)[:IMAGES])
    images = load_property_images(trained, splits, chosen, training)
    pairs = draw_pairs(np.arange(len(chosen)), splits.folder.labels[chosen], PARTNERS, random)

    def distances(pixels):
        embeddings = embed_images(trained.network, pixels, np.arange(len(pixels)), trained.config, trained.runtime)
        return distance(embeddings[pairs.first], embeddings[pairs.second]).numpy()

    before = distances(images.pixels)
    (score,) = intervals(lambda weights: _score(before, pairs, weights), pairs, seed, rates=False)
    shortcuts = []
    for item in progress(properties_of(images), "Properties"):
        share = Interval(np.nan, np.nan, np.nan)
        control = np.nan
        if score.low > 0:  # a share of what may be 0 would be any number
            share = share_of_score(before, distances(item.equalized), pairs, seed)
            if item.control is not None:
                control = share_of_score(before, distances(item.control), pairs, seed).value
        auc = auc_of_values(item.values, pairs, seed)
        changes = np.abs(images.pixels.astype(np.int16) - item.equalized).mean(axis=(1, 2, 3))
        most = changes.argmax()  # the image in which the change is seen best
        example = np.stack([images.pixels[most], item.equalized[most]])
        shortcuts.append(Shortcut(item.name, share, control, item.control_name, auc, item.check, example))
    shortcuts.sort(key=lambda shortcut: shortcut.share.value, reverse=True)
    return Shortcuts(tuple(shortcuts), score, len(chosen), len(pairs))


def load_property_images(trained: Trained, splits, indices: np.ndarray, training: np.ndarray) -> PropertyImages:
    """Load images `indices` of a dataset, int64 (N,), and the mean colour of the images `training`, int64 (M,)."""
    paths = [splits.folder.paths[index] for index in indices]
    sizes, formats = zip(*map(read_header, paths), strict=True)
    objects = load_masks(splits.folder.root, zip(paths, paths, strict=True), stored_size(trained.config.image))
    if objects is not None:
        objects = objects[:, 0].numpy()
    colour = splits.pixels[training].mean(axis=(0, 1, 2)).round().astype(np.uint8)
    return PropertyImages(splits.pixels[indices], np.array(sizes), np.array(formats), objects, colour)


def properties_of(images: PropertyImages) -> list[Property]:
    """Return all properties of images; background only with masks."""
    pixels = images.pixels
    border, middle = border_and_middle(pixels.shape[1:3])
    properties = [
        Property(
            f"border (outer {EDGE:.0%})",
            images.mean_colour(border),
            images.hidden(border),
            "frames, watermarks or the surroundings of the object reveal the class",
            images.hidden(middle),
            "an equal area in the middle",
        )
    ]
    if images.objects is not None:
        background = ~images.objects & ~border
        properties.append(
            Property(
                "background",
                images.mean_colour(background),
                images.hidden(background),
                "classes were photographed in different places",
                images.hidden(images.objects),
                "the objects",
            )
        )
    light = brightness_of(pixels)
    area = images.sizes.prod(axis=1)
    aspect = images.sizes[:, 1] / images.sizes[:, 0]
    kinds = images.formats[:, None] == np.unique(images.formats)
    jpeg = np.stack([through_jpeg(image, QUALITY) for image in pixels])
    for name, values, equalized, check in (
        ("brightness", light, equalize_brightness(pixels), "classes were photographed in different light"),
        ("size", np.log(area), equalize_size(pixels, images.sizes), "some classes have smaller or less sharp files"),
        ("aspect", np.log(aspect), equalize_aspect(pixels, aspect), "some classes have wider or higher images"),
        ("file format", kinds, jpeg, "the files of some classes were compressed otherwise"),
    ):
        properties.append(Property(name, values.reshape(len(pixels), -1).astype(float), equalized, check))
    return properties


def border_and_middle(size) -> tuple[np.ndarray, np.ndarray]:
    """Return where the border is, and a rectangle of the same area in the middle: bool (h, w) each."""
    height, width = size
    edge = round(EDGE * min(size))
    border = np.ones(size, bool)
    border[edge : height - edge, edge : width - edge] = False
    side = np.sqrt(border.mean())
    y = abs(np.arange(height) + 0.5 - height / 2) < side * height / 2
    x = abs(np.arange(width) + 0.5 - width / 2) < side * width / 2
    return border, y[:, None] & x


def equalize_brightness(pixels: np.ndarray) -> np.ndarray:
    """Multiply each image so that its mean brightness becomes that of all; values beyond 255 are cut off."""
    brightness = brightness_of(pixels)
    factors = brightness.mean() / brightness.clip(min=1)
    scaled = pixels * factors[:, None, None, None]
    return scaled.round().clip(0, 255).astype(np.uint8)


def equalize_size(pixels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Reduce each image to the height and width that SMALL % of the files stay below, and enlarge it again."""
    full = pixels.shape[1:3]
    small = np.percentile(sizes, SMALL, axis=0).astype(int)
    return _resized(_resized(pixels, np.minimum(small, full)), full)


def equalize_aspect(pixels: np.ndarray, aspects: np.ndarray) -> np.ndarray:
    """Crop each image, in the middle, to the median of the aspects, float (N,), and resize it to the former size."""
    full = np.array(pixels.shape[1:3])
    widths = np.median(aspects) / aspects  # the share that is left; above 1: its inverse, of the height
    shares = np.stack([1 / widths, widths], axis=1).clip(max=1)
    sides = (shares * full).round().clip(min=1).astype(int)
    cropped = np.empty_like(pixels)
    for number, (height, width) in enumerate(sides):
        top, left = (full - sides[number]) // 2
        cropped[number] = _resized(pixels[number : number + 1, top : top + height, left : left + width], full)[0]
    return cropped


def share_of_score(before, after, pairs: Pairs, seed=0) -> Interval:
    """Measure the share of the score that a change removes: 1 less the score after it over the score before.

    The error of the ratio is that of its linear part (the delta method): when images are resampled, the score before
    can come near 0, and the ratio itself be any number.

    Args:
        before: Distances, float (P,).
        after: Distances of the same pairs of changed images, float (P,).
        pairs: The P pairs.
        seed: Of the resampling of images.
    """
    once = np.ones(len(pairs))
    score = _score(before, pairs, once)
    left = _score(after, pairs, once) / score

    def share(weights):
        return 1 - left + (left * _score(before, pairs, weights) - _score(after, pairs, weights)) / score

    (interval,) = intervals(share, pairs, seed, rates=False)
    return interval


def auc_of_values(values, pairs: Pairs, seed) -> Interval:
    """Measure the AUC of separating pairs by the difference of values, float (N, V)."""
    differences = np.linalg.norm(values[pairs.first] - values[pairs.second], axis=1)
    return auc_interval(differences, pairs, seed, AUC_DRAWS)


def _choose_images(pairs, count, random) -> np.ndarray:
    """At most `count` images, int64 (N,), of pairs of both kinds."""
    chosen = []
    for kind in (0, 1):
        of_kind = random.permutation(np.flatnonzero(pairs.labels == kind))[: max(count // 4, 1)]
        chosen += [pairs.first[of_kind], pairs.second[of_kind]]
    return np.unique(np.concatenate(chosen))


def _score(distances, pairs, weights) -> float:
    """The score of weighted pairs; NaN where only one kind of pairs has weight."""
    different = weighted_mean(distances, weights * pairs.labels)
    return different - weighted_mean(distances, weights * (1 - pairs.labels))


def _resized(pixels, size):
    """uint8 (N, h, w, 3) in another size, as images are decoded."""
    images = torch.from_numpy(pixels).movedim(-1, 1)
    return V.resize(images, [int(side) for side in size], antialias=True).movedim(1, -1).numpy()
