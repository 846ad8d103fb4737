"""Shortcuts: which share of the score border, background, brightness, size, aspect and file format carry."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from utils.data import Pairs, Splits, draw_pairs
from utils.network import distance
from utils.trained import Trained
from utils.training import embed_images
from utils.training.intervals import Interval, auc_interval, plain_interval
from utils.trust.properties import load_gallery, properties_of

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
    return plain_interval(lambda weights: _score(distances, pairs, weights), pairs, seed)


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

    return plain_interval(share, pairs, seed)


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
