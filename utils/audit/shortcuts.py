"""Properties that may tell a class without its content: made alike in all images, and measured in each."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ..data.reading import brightness_of, read_header, through_jpeg
from ..data.sample import load_masks
from ..data.splits import Pairs, Splits, draw_pairs
from ..data.transforms import stored_size
from ..network.distance import distance
from ..score.intervals import Interval, auc_interval, intervals
from ..train.evaluation import embed_images
from ..trained import Trained
from ..vision import functional as V

EDGE = 0.1  # of the shorter side: how far the border reaches in
SMALL = 5  # percentile of the sizes of files: all come down to it
QUALITY = 50  # of JPEG, in [0, 100]: low, so that it covers what files lost before


@dataclass(frozen=True, eq=False)
class Gallery:
    """N images with what is known of their files.

    pixels: uint8 (N, h, w, 3). sizes: int64 (N, 2), height and width of the files. formats: str (N,). objects: bool
    (N, h, w), or None where there are no masks. colour: uint8 (3,), what is laid over places that are hidden.
    """

    pixels: np.ndarray
    sizes: np.ndarray
    formats: np.ndarray
    objects: np.ndarray | None
    colour: np.ndarray

    @property
    def border(self) -> np.ndarray:
        """Where the border is: bool (h, w)."""
        height, width = self.pixels.shape[1:3]
        edge = max(1, round(EDGE * min(height, width)))
        border = np.ones((height, width), bool)
        border[edge : height - edge, edge : width - edge] = False
        return border

    @property
    def middle(self) -> np.ndarray:
        """A rectangle in the middle of the area of the border: bool (h, w)."""
        height, width = self.pixels.shape[1:3]
        side = np.sqrt(self.border.mean())
        y = abs(np.arange(height) + 0.5 - height / 2) < side * height / 2
        x = abs(np.arange(width) + 0.5 - width / 2) < side * width / 2
        return y[:, None] & x

    @property
    def background(self) -> np.ndarray:
        """What is neither object nor border: bool (N, h, w)."""
        return ~self.objects & ~self.border

    def hidden(self, where) -> np.ndarray:
        """The pixels with the colour wherever `where`, bool (h, w) or (N, h, w), says so: uint8 (N, h, w, 3)."""
        return np.where(where[..., None], self.colour, self.pixels)


@dataclass(frozen=True)
class Property:
    """One property of images.

    alike: the pixels of a gallery, uint8 (N, h, w, 3), without differences in it. values: what it is in each image,
    float (N, V). look: where to look when it tells the class. elsewhere: pixels with something else hidden, beside
    which `alike` can be judged, and what that is; None where there is nothing of the kind.
    """

    name: str
    alike: Callable[[Gallery], np.ndarray]
    values: Callable[[Gallery], np.ndarray]
    look: str
    elsewhere: Callable[[Gallery], np.ndarray] | None = None
    instead: str = ""


def load_gallery(trained: Trained, splits, indices: np.ndarray, training: np.ndarray) -> Gallery:
    """Images `indices` of a dataset, int64 (N,), and the mean colour of the images `training`, int64 (M,)."""
    paths = [splits.folder.paths[index] for index in indices]
    sizes, formats = zip(*map(read_header, paths), strict=True)
    masks = load_masks(splits.folder.root, [(path, path) for path in paths], stored_size(trained.config.image))
    objects = None if masks is None else masks[:, 0].numpy()
    colour = splits.pixels[training].mean(axis=(0, 1, 2)).round().astype(np.uint8)
    return Gallery(splits.pixels[indices], np.array(sizes), np.array(formats), objects, colour)


def properties_of(gallery: Gallery) -> list[Property]:
    """All PROPERTIES that its images have: a background where there are masks."""
    return [one for one in PROPERTIES if one.name != "background" or gallery.objects is not None]


def one_brightness(gallery: Gallery) -> np.ndarray:
    """Each image multiplied so that its mean brightness becomes that of all; values beyond 255 are cut off."""
    brightness = _brightness(gallery)
    factors = brightness.mean() / brightness.clip(min=1)
    bright = gallery.pixels * factors[:, :, None, None]
    return bright.round().clip(0, 255).astype(np.uint8)


def one_size(gallery: Gallery) -> np.ndarray:
    """Each image brought down to the height and width that SMALL % of the files stay below, and up again."""
    full = gallery.pixels.shape[1:3]
    small = np.percentile(gallery.sizes, SMALL, axis=0).astype(int)
    return _resized(_resized(gallery.pixels, np.minimum(small, full)), full)


def one_aspect(gallery: Gallery) -> np.ndarray:
    """Each image cut, in the middle, to the aspect that is the median of the files, and brought to one size again."""
    full = np.array(gallery.pixels.shape[1:3])
    aspects = np.exp(_aspect(gallery)[:, 0])
    kept = np.median(aspects) / aspects  # of the width; above 1: its inverse of the height
    shares = np.stack([1 / kept, kept], axis=1).clip(max=1)
    sides = (shares * full).round().clip(min=1).astype(int)
    corners = (full - sides) // 2
    cut = [
        image[None, top : top + height, left : left + width]
        for image, (top, left), (height, width) in zip(gallery.pixels, corners, sides, strict=True)
    ]
    return np.concatenate([_resized(image, full) for image in cut])


def one_format(gallery: Gallery) -> np.ndarray:
    """Each image, in the size that the network sees, written as JPEG of QUALITY and read again."""
    return np.stack([through_jpeg(image, QUALITY) for image in gallery.pixels])


def _resized(pixels, size):
    """uint8 (N, h, w, 3) in another size, as images are decoded."""
    images = torch.from_numpy(pixels).movedim(-1, 1)
    return V.resize(images, [int(side) for side in size], antialias=True).movedim(1, -1).numpy()


def _colour(gallery, where):
    """The mean colour of a part of each image: float (N, 3)."""
    where = np.broadcast_to(where, gallery.pixels.shape[:3])[..., None]
    return (gallery.pixels * where).sum(axis=(1, 2)) / where.sum(axis=(1, 2)).clip(min=1)


def _brightness(gallery):
    return brightness_of(gallery.pixels)[:, None]


def _aspect(gallery):
    height, width = gallery.sizes.T
    return np.log(width / height)[:, None]


def _kinds(gallery):
    return (gallery.formats[:, None] == np.unique(gallery.formats)).astype(float)


PROPERTIES = (
    Property(
        f"border (outer {EDGE:.0%})",
        lambda gallery: gallery.hidden(gallery.border),
        lambda gallery: _colour(gallery, gallery.border),
        "frames, watermarks or what stands around the object tell the class",
        lambda gallery: gallery.hidden(gallery.middle),
        "an equal area in the middle",
    ),
    Property(
        "background",
        lambda gallery: gallery.hidden(gallery.background),
        lambda gallery: _colour(gallery, gallery.background),
        "classes were photographed in different places",
        lambda gallery: gallery.hidden(gallery.objects),
        "the objects",
    ),
    Property("brightness", one_brightness, _brightness, "classes were photographed in different light"),
    Property(
        "size",
        one_size,
        lambda gallery: np.log(gallery.sizes.prod(axis=1, keepdims=True)),
        "the files of some classes are smaller or less sharp than others",
    ),
    Property("aspect", one_aspect, _aspect, "the images of some classes are wider or higher than others"),
    Property("file format", one_format, _kinds, "the files of some classes were compressed otherwise"),
)


IMAGES = 256  # of the test split, and as many of the training split for their mean colour
PARTNERS = 4  # pairs of each kind that an image starts
DRAWS_ALONE = 100  # for the interval of the AUC of a property
MATTERS = 0.2  # share of the score that is told in words
UNKNOWN = Interval(np.nan, np.nan, np.nan)
TELLS = 0.6  # AUC of a property by itself that is told in words


@dataclass(frozen=True, eq=False)
class Shortcut:
    """What one property carries.

    share: of the score, 1 where nothing is left without it, with the ends of its 95 % interval. elsewhere: the share
    that goes when `instead` is hidden, NaN where nothing is. alone: AUC of telling pairs apart by the property itself,
    0.5 where it says nothing. look: where to look. example: an image before and after, uint8 (2, h, w, 3).
    """

    name: str
    share: Interval
    elsewhere: float
    instead: str
    alone: Interval
    look: str
    example: np.ndarray

    @property
    def matters(self) -> bool:
        """Whether it surely carries MATTERS of the score, and more than what is hidden instead."""
        return self.share.low >= MATTERS and not self.share.value <= self.elsewhere

    @property
    def tells(self) -> bool:
        """Whether it surely tells pairs apart by itself, without the network."""
        return self.alone.low >= TELLS

    def sentence(self) -> str:
        """What it carries and tells, in words; empty where that is little."""
        share = f"{self.share.value:.0%} ({self.share.low:.0%} to {self.share.high:.0%})"
        beside = "" if np.isnan(self.elsewhere) else f", {self.instead} {max(self.elsewhere, 0):.0%}"
        said = []
        if self.matters:
            said.append(f"carries {share} of the score{beside}")
        if self.tells:
            said.append(f"tells same from different pairs by itself, without the network, with an AUC of {self.alone}")
        return f"The {self.name} {' and '.join(said)}: look whether {self.look}." if said else ""


@dataclass(frozen=True, eq=False)
class Shortcuts:
    """All shortcuts, the one that carries most first.

    score: mean distance of different pairs less that of same pairs, with the ends of its 95 % interval; where these
    include 0, all shares are NaN. images, pairs: how many were looked at.
    """

    found: tuple[Shortcut, ...]
    score: Interval
    images: int
    pairs: int

    def table(self) -> pd.DataFrame:
        """A row for each property: its share of the score, what goes when something else is hidden, and its own AUC."""
        rows = {
            one.name: {
                "share of the score": f"{one.share.value:.1%}",
                "95 % interval": f"{one.share.low:.1%} to {one.share.high:.1%}",
                "hidden instead": "" if np.isnan(one.elsewhere) else f"{one.instead}: {one.elsewhere:.1%}",
                "AUC by itself": str(one.alone),
            }
            for one in self.found
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    def __str__(self):
        seen = (
            f"{self.images} test images in {self.pairs} pairs: different ones lie {self.score} farther apart than same"
        )
        told = [one.sentence() for one in self.found if one.sentence()]
        if self.score.low <= 0:
            told.append("That may be nothing, so no share of it was measured.")
        elif not told:
            told.append(f"None of {', '.join(one.name for one in self.found)} carries much of that.")
        return "\n".join([f"{seen}.", *told])


def find_shortcuts(trained: Trained, splits: Splits, count=IMAGES, seed=0) -> Shortcuts:
    """Make each property alike in all images, and see what is left of the score.

    The score is the mean distance of different pairs less that of same pairs; the share that a property carries is 1
    less the score without it over the score with it. Pairs are drawn anew by the pair rule among at most `count` test
    images; intervals resample images (`standard_errors`).

    What misleads: images without a property are images that the network has not seen, so a share holds the harm of the
    change itself too, and objects reach into the border. Hence what goes when an equal area in the middle, or the
    objects, are hidden instead. A flat background cuts out the shape of the object, which can even help: a share below
    0. The shares do not add up to 1, and where one property is enough, others that tell the same seem to carry nothing.
    Background is what is neither object nor border, and without an object the whole image.
    """
    random = np.random.default_rng(seed)
    chosen = _choose_images(splits, count, random)
    training = np.sort(random.permutation(splits.train)[:IMAGES])
    gallery = load_gallery(trained, splits, chosen, training)
    pairs = draw_pairs(np.arange(len(chosen)), splits.folder.labels[chosen], PARTNERS, random)

    def distances(pixels):
        embeddings = embed_images(trained.network, pixels, np.arange(len(pixels)), trained.config, trained.runtime)
        return distance(embeddings[pairs.first], embeddings[pairs.second]).numpy()

    before = distances(gallery.pixels)
    score = score_interval(before, pairs, seed)
    once = np.ones(len(pairs))
    found = []
    for one in properties_of(gallery):
        alike = one.alike(gallery)
        share, elsewhere = UNKNOWN, np.nan
        if score.low > 0:  # a share of what may be nothing would be any number
            share = share_of_score(before, distances(alike), pairs, seed)
            if one.elsewhere:
                left = _score(distances(one.elsewhere(gallery)), pairs, once) / _score(before, pairs, once)
                elsewhere = 1 - left
        alone = _alone(one.values(gallery), pairs, seed)
        example = np.stack([gallery.pixels[0], alike[0]])
        found.append(Shortcut(one.name, share, elsewhere, one.instead, alone, one.look, example))
    found.sort(key=lambda one: one.share.value, reverse=True)
    return Shortcuts(tuple(found), score, len(chosen), len(pairs))


def score_interval(distances, pairs: Pairs, seed=0) -> Interval:
    """The score: the mean distance of different pairs less that of same pairs, with its 95 % interval.

    Args:
        distances: float (P,).
        pairs: The P pairs.
        seed: Of the resampling of images.
    """
    return intervals(lambda weights: _score(distances, pairs, weights), pairs, seed, rates=False)[0]


def share_of_score(before, after, pairs: Pairs, seed=0) -> Interval:
    """The share of the score that is lost, 1 less the score after a change over the score before, with its interval.

    The error of the ratio is that of its linear part (the delta method): in a draw of images the score before can come
    near 0, and the ratio itself be any number.

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

    return intervals(share, pairs, seed, rates=False)[0]


def _choose_images(splits, count, random) -> np.ndarray:
    """At most `count` test images, int64 (N,), among them pairs of both kinds."""
    pairs = splits.test_pairs
    kinds = [random.permutation(np.flatnonzero(pairs.labels == kind))[: max(count // 4, 1)] for kind in (0, 1)]
    drawn = np.concatenate(kinds)
    return np.unique(np.stack([pairs.first[drawn], pairs.second[drawn]]))


def _score(distances, pairs, weights) -> float:
    """The score of weighted pairs; NaN where a draw holds only one kind of pairs."""
    different = weights * pairs.labels
    same = weights * (1 - pairs.labels)
    if not different.any() or not same.any():
        return np.nan
    return float(different @ distances / different.sum() - same @ distances / same.sum())


def _alone(values, pairs: Pairs, seed) -> Interval:
    """The AUC of telling pairs apart by the difference of values, float (N, V)."""
    apart = np.linalg.norm(values[pairs.first] - values[pairs.second], axis=1)
    if not apart.any():
        return Interval(0.5, 0.5, 0.5)  # alike in all images
    return auc_interval(apart, pairs, seed, DRAWS_ALONE)
