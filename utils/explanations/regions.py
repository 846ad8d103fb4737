"""Questions about a region of a pair: what it adds to the similarity, what matches it, what hiding it changes.

A region is a box: its top, left, bottom and right end as shares in [0, 1] of the height and width of its image, as
`Matches.bounds` returns it.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from ..config import LAST, MORE
from ..files import ExplanationError, printable, shortened
from ..network.distance import (
    Explainable,
    blurred,
    distance,
    embed_pairs,
    evaluating,
    images_for,
    mean_colour,
    unit,
)
from .explanation import Explanation, embed_explained, only_pair
from .maps import GRID, distances_without_windows, windows_of
from .matches import Matches

WHOLE = (0.0, 0.0, 1.0, 1.0)  # the box of all places
SHOWN = 80  # characters of a box that is refused
HIDDEN = {"blurred": blurred, "in mean colour": mean_colour}  # what hidden pixels show
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a region of one image, or of each, adds to the inner product, and what the network says without it."""

    matches: Matches
    """Of the pair."""
    box1: Box | None
    """In image 1; None where the question is about image 2 alone."""
    box2: Box | None
    """In image 2; None where the question is about image 1 alone."""
    value: float
    """What the pairs of places add: of both boxes, or of the one box and all of the other image."""
    partners: torch.Tensor
    """Float64 (h, w): what each place of the other image adds with the box; of image 2 where there are two boxes."""
    counterpart: Box | None
    """The box of whole places in the other image that adds most, as large as the box; None where there are two."""
    counterpart_value: float | None
    """What the box and its counterpart add together."""
    hidden: pd.DataFrame
    """Similarity, probability (where calibrated) and decision: as it is, and with the pixels of the boxes hidden."""

    @property
    def places(self) -> float:
        """The sum over all pairs of places."""
        return self.matches.places.cpu().double().sum().item()

    @property
    def share(self) -> float | None:
        """The value as a share of the sum over all pairs of places; None where that is not positive.

        Above 1 where the other places together add less than 0.
        """
        return self.value / self.places if self.places > 0 else None

    @property
    def number(self) -> int:
        """The image that the question is about, 1 or 2: 1 where there are two boxes."""
        return 2 if self.box1 is None else 1

    def value_in_words(self) -> str:
        """Return what the region adds, and which share that is."""
        what = "Both boxes together add" if self.counterpart is None else f"The box in image {self.number} adds"
        share = "" if self.share is None else f", {self.share:.0%} of what all pairs of places add ({self.places:+.3f})"
        error = f"at {self.matches.layer}, error of the sum {self.matches.residual:+.3f}"
        return f"{what} {self.value:+.3f} to the inner product {self.matches.cosine:.3f}{share}; {error}."

    def counterpart_in_words(self) -> str:
        """Return where the counterpart lies, and what both add; "" where there are two boxes."""
        if self.counterpart is None:
            return ""
        return (
            f"With its counterpart in image {3 - self.number}, {_in_words(self.counterpart)}, it adds "
            f"{self.counterpart_value:+.3f}."
        )

    def hidden_in_words(self) -> str:
        """Return what the network says as it is, and with the region hidden."""
        parts = []
        for name, row in self.hidden.iterrows():
            probability = f", probability of one class {row['probability']:.2f}" if "probability" in row else ""
            parts.append(f"{name}: {row['decision']} (similarity {row['similarity']:.3f}{probability})")
        return f"The network run again with the region hidden: {'; '.join(parts)}."

    def __str__(self):
        lines = [self.value_in_words(), self.counterpart_in_words(), self.hidden_in_words()]
        return "\n".join(filter(None, lines))


@dataclass(frozen=True, eq=False)
class Windows:
    """What the network says of one pair when it sees one window blurred, for each of GRID x GRID windows."""

    explanation: Explanation
    """Of the pair as it is."""
    boxes: tuple[Box, ...]
    """The windows, row by row."""
    distances: torch.Tensor
    """Float32 (2, GRID, GRID): with each window hidden in image 1, and in image 2."""


@torch.no_grad()
def ask(network: Explainable, matches: Matches, box1=None, box2=None) -> Answer:
    """Answer a question about a region of an explained pair.

    A place counts by the share of it that a box covers, so that the parts of a box add up to it. Hidden pixels are
    those of the boxes: where there are two, both are hidden at once, and images that have both lost what matches can
    still look similar.

    Args:
        network: The network that was explained.
        matches: Of the pair.
        box1: A box in image 1: top, left, bottom and right end, shares in [0, 1] of height and width.
        box2: A box in image 2. With both boxes, the question is what they add with each other; with one, what it adds
            with all of the other image.

    Raises:
        ExplanationError: There is no box, or a box is not one.
        ValueError: Another network was explained.
    """
    if box1 is None and box2 is None:
        raise ExplanationError(
            "box1 and box2 are both None, so there is no region to ask about: give one of them, say "
            "box1=(0.2, 0.3, 0.6, 0.7), its top, left, bottom and right end as shares in [0, 1]"
        )
    box1 = None if box1 is None else checked_box(box1, "box1")
    box2 = None if box2 is None else checked_box(box2, "box2")
    places = matches.places.cpu().double()  # (h, w, h, w)
    box, other = box1, box2
    if box1 is None:
        places = places.movedim((2, 3), (0, 1))
        box, other = box2, None
    size = places.shape[:2]
    partners = torch.einsum("yx,yxvu->vu", covered(box, size), places)
    value = (partners * covered(other or WHOLE, size)).sum().item()
    counterpart = counterpart_value = None
    if other is None:
        counterpart, counterpart_value = _counterpart(partners, box)
    hidden = _hidden(network, matches.explanation, (box1, box2))
    return Answer(matches, box1, box2, value, partners, counterpart, counterpart_value, hidden)


@torch.no_grad()
def embed_region(network: Explainable, image: torch.Tensor, box, layer=LAST) -> torch.Tensor:
    """Embed a region of an image by itself, to search for images that show it.

    The mean of the feature map over the places of the box, each by the share of it that the box covers, stands in every
    place of the map that the network goes on with. The places see beyond the box.

    Args:
        network: A network in any mode.
        image: Float (1, C, H, W), as the network takes it.
        box: Top, left, bottom and right end, shares in [0, 1] of height and width.
        layer: Whose feature map; of several (MORE), the first.

    Returns:
        Float (D,), of length 1.

    Raises:
        ExplanationError: The box is not one, or the image is not one of this network.
    """
    box = checked_box(box, "box")
    layer = layer.removesuffix(MORE)
    with evaluating(network):
        features = network.features(images_for(network, image), layer)  # (1, channels, h, w)
        exact = features.to(torch.promote_types(features.dtype, torch.float32))
        weights = covered(box, features.shape[-2:]).to(exact)
        mean = (exact * weights).sum(dim=(2, 3), keepdim=True) / weights.sum()
        vectors = network.project_features(mean.to(features.dtype).expand_as(features), layer)  # (1, D)
    return unit(vectors)[0]


@torch.no_grad()
def hide_windows(network: Explainable, explanation: Explanation) -> Windows:
    """Blur each window of `occlusion` in image 1, then in image 2, for the viewer: 98 passes of the network.

    Args:
        network: The network that was explained.
        explanation: Of one pair.

    Raises:
        ValueError: The explanation is of several pairs or of another network.
    """
    images = only_pair(explanation).images
    with evaluating(network):
        embeddings = embed_explained(network, explanation)
        (distances,) = distances_without_windows(network, images, embeddings)
    height, width = images.shape[-2:]
    boxes = []
    for top, left, bottom, right in windows_of(images):
        boxes.append((top / height, left / width, bottom / height, right / width))
    return Windows(explanation, tuple(boxes), distances.unflatten(1, (GRID, GRID)))


def scores_at(explanation: Explanation, distances) -> pd.DataFrame:
    """Return what is said of a pair if it has other distances: similarity, probability (where calibrated), decision.

    Args:
        explanation: Of one pair.
        distances: Float (N,).

    Returns:
        A row for each distance.
    """
    rows = []
    for after in distances:
        changed = replace(explanation, distance=after.reshape(1))
        row = {"similarity": changed.similarity.item()}
        if changed.probability is not None:
            row["probability"] = changed.probability[0, 0].item()
        rows.append(row | {"decision": changed.decision()})
    return pd.DataFrame(rows)


def covered(box: Box, size) -> torch.Tensor:
    """Return the share of each place of a map of `size` (h, w) that a box covers: float64 (h, w) in [0, 1]."""
    top, left, bottom, right = box
    height, width = size
    return torch.outer(_covered(top, bottom, height), _covered(left, right, width))


def checked_box(box, name: str) -> Box:
    """Return a box as a tuple of floats. Raises ExplanationError, which names the argument, for what is not one."""
    try:
        ends = np.asarray(box, np.float64)
    except (TypeError, ValueError):
        ends = np.zeros(0)
    if ends.shape != (4,):
        raise _refused(box, name, "it is not four numbers")
    if not ((ends >= 0) & (ends <= 1)).all():  # neither is NaN
        raise _refused(box, name, "it lies outside [0, 1]; divide pixels by the height and width of the image")
    top, left, bottom, right = ends.tolist()
    if top >= bottom or left >= right:
        raise _refused(box, name, "it is empty or reversed")
    return top, left, bottom, right


def _refused(box, name, cause):
    shown = shortened(printable(repr(box)), SHOWN)
    return ExplanationError(
        f"{name}: {shown} is refused: {cause}. Give (top, left, bottom, right), shares in [0, 1] of height and width "
        "with top < bottom and left < right, say (0.2, 0.3, 0.6, 0.7)"
    )


def _covered(start, end, count):
    """The share of each of `count` equal parts of [0, 1] that lies between `start` and `end`: float64 (count,)."""
    edges = torch.arange(count + 1, dtype=torch.float64)
    return (edges[1:].clamp(max=end * count) - edges[:-1].clamp(min=start * count)).clamp(min=0)


def _counterpart(partners, box) -> tuple[Box, float]:
    """The box of whole places, as large as `box`, with the largest sum of a map (h, w), and this sum."""
    height, width = partners.shape
    top, left, bottom, right = box
    tall = max(round((bottom - top) * height), 1)
    wide = max(round((right - left) * width), 1)
    sums = tall * wide * F.avg_pool2d(partners[None], (tall, wide), stride=1)[0]
    y, x = divmod(sums.argmax().item(), sums.shape[1])
    return (y / height, x / width, (y + tall) / height, (x + wide) / width), sums[y, x].item()


def _hidden(network, explanation, boxes) -> pd.DataFrame:
    """What the network says as it is, and with the pixels of a box of each image (or None) hidden in each way."""
    images = explanation.images  # (1, 2, C, H, W)
    height, width = images.shape[-2:]
    changed = []
    for hide in HIDDEN.values():
        hidden = hide(images)[0]
        edited = images[0].clone()
        for number, box in enumerate(boxes):
            if box is not None:
                top, bottom = _pixels(box[0], box[2], height)
                left, right = _pixels(box[1], box[3], width)
                edited[number, :, top:bottom, left:right] = hidden[number, :, top:bottom, left:right]
        changed.append(edited)
    with evaluating(network):
        embed_explained(network, explanation)
        embeddings = embed_pairs(network, torch.stack(changed))
    distances = torch.cat([explanation.distance, distance(*embeddings.unbind(1)).to(explanation.distance)])
    return scores_at(explanation, distances).set_axis(["as it is", *HIDDEN])


def _pixels(start, end, count) -> tuple[int, int]:
    """The first of `count` pixels between two shares of a side, and the one behind the last: at least one pixel."""
    first = min(round(start * count), count - 1)
    return first, max(round(end * count), first + 1)


def _in_words(box):
    top, left, bottom, right = box
    return f"{top:.0%} to {bottom:.0%} down and {left:.0%} to {right:.0%} across"
