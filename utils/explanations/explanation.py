"""An explanation: pairs of images, their scores and decisions, and the evidence at each place of both images."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral

import torch
import torch.nn.functional as F

from ..config import Normalization
from ..files import ExplanationError, printable
from ..network.distance import Explainable, distance, embed_pairs, similarity

ROUNDING = 0.02  # of a distance: what bfloat16 may move it by from one batch to another
JUST_BELOW = 1e-5  # of 0, where a threshold lies that lets not even equal images pass
EXTREME = 1e-3  # distances this close to 0 or 2 have next to no gradient


@dataclass(frozen=True, eq=False)
class Explanation:
    """B pairs, what the network says to them, and why. `explanation[3]` is the explanation of one pair.

    images: float (B, 2, C, H, W), as the network takes them. distance: float32 (B,) in [0, 2]. threshold: distance up
    to which a pair is "same". towards_different, towards_same: float32 (B, 2, H, W) for image 1 and image 2, at least
    0: how much a place pushes either way. method, layer, details: what made the maps. names: of both images of each
    pair. paths: their files, or None. classes: their true classes; None where they are not known. normalization: of the
    images' values, or None: figures need it to show pixels where there are no files. value_range: as `read_image` takes
    it, for the files. completeness: float32 (B, 2), or None: what the places of both images add up to, and the change
    that they should add up to. warning: what every sentence about it begins with. band: two distances between which
    pairs are left undecided, or None. calibration: from distance to probability, or None.

    Raises ValueError when these are not of equally many pairs, ExplanationError for a threshold beyond [0, 2] and for
    distances that are not finite.
    """

    images: torch.Tensor
    distance: torch.Tensor
    threshold: float
    towards_different: torch.Tensor
    towards_same: torch.Tensor
    method: str = ""
    layer: str = ""
    details: str = ""
    names: tuple[tuple[str, str], ...] = ()
    paths: tuple[tuple[str, str], ...] | None = None
    classes: tuple[tuple[str, str] | None, ...] | None = None
    normalization: Normalization | None = None
    value_range: tuple[float, float] | None = None
    completeness: torch.Tensor | None = None
    warning: str = ""
    band: tuple[float, float] | None = None
    calibration: Callable[[torch.Tensor], torch.Tensor] | None = None
    channels: tuple[int, int, int] | None = None
    """The channels that figures show in red, green and blue; None: all three, else one grey, the mean of all."""

    def __post_init__(self):
        if not self.names:
            numbered = tuple((f"pair {n}, image 1", f"pair {n}, image 2") for n in range(len(self)))
            object.__setattr__(self, "names", numbered)
        for name in ("images", "distance", "towards_different", "towards_same"):
            part = getattr(self, name)
            if not isinstance(part, torch.Tensor):
                kind = type(part).__name__
                raise ExplanationError(f"{name}: {kind} is refused: pass a tensor, torch.as_tensor({name})")
        if not -JUST_BELOW <= self.threshold <= 2 + JUST_BELOW:
            raise ExplanationError(f"threshold: {self.threshold} is refused: it is a distance, in [0, 2]")
        if not self.distance.isfinite().all():
            cause = "weights or images hold NaN, or embeddings have no length"
            raise ExplanationError(f"The distances are not finite: {cause}.")
        for name in ("images", "towards_different", "towards_same", "paths", "classes", "names", "completeness"):
            part = getattr(self, name)
            if part is not None and len(part) != len(self):
                raise ValueError(f"{name} of {len(part)} pairs, but distances of {len(self)}")
        check_shown(self.images, self.normalization, self.channels)

    def __len__(self):
        return len(self.distance)

    def __getitem__(self, index: int | slice) -> "Explanation":
        """The explanation of one pair, or of some."""
        part = pairs_of(index, len(self))
        return replace(
            self,
            images=self.images[part],
            distance=self.distance[part],
            towards_different=self.towards_different[part],
            towards_same=self.towards_same[part],
            names=self.names[part],
            paths=self.paths and self.paths[part],
            classes=self.classes and self.classes[part],
            completeness=None if self.completeness is None else self.completeness[part],
        )

    def same_as(self, other: "Explanation") -> bool:
        """Whether both say the same of the same pairs by the same method."""
        if (self.names, self.source, self.threshold) != (other.names, other.source, other.threshold):
            return False
        return torch.equal(self.distance, other.distance) and torch.equal(self.evidence, other.evidence)

    def of_same_pairs(self, other: "Explanation") -> bool:
        """Whether both are of the same pairs, held against the same threshold."""
        alike = (self.names, self.threshold) == (other.names, other.threshold)
        return alike and torch.equal(self.images, other.images)

    @property
    def source(self) -> str:
        """Method, layer and details in words."""
        place = f"{self.method} at {self.layer}" if self.layer else self.method
        return f"{place}, {self.details}" if self.details else place

    @property
    def similarity(self) -> torch.Tensor:
        """float32 (B,) in [0, 1]."""
        return similarity(self.distance)

    @property
    def different(self) -> torch.Tensor:
        """bool (B,), True where the pair is decided "different", or leans to it where it is undecided."""
        return self.distance > self.threshold

    @property
    def undecided(self) -> torch.Tensor:
        """bool (B,), True where the distance lies within the band."""
        if self.band is None:
            return torch.zeros_like(self.different)
        same_up_to, different_from = self.band
        return (self.distance > same_up_to) & (self.distance <= different_from)

    @property
    def probability(self) -> torch.Tensor | None:
        """That both images are of one class, where half of all pairs are: float32 (B, 3), with the ends of its 95 %
        interval; None where it was not calibrated.
        """
        return self.calibration and self.calibration(self.distance)

    @property
    def evidence(self) -> torch.Tensor:
        """float32 (B, 2, H, W); positive values push towards "different", negative ones towards "same"."""
        return self.towards_different - self.towards_same

    @property
    def factual(self) -> torch.Tensor:
        """Evidence for the decision, or for what an undecided pair leans to: float32 (B, 2, H, W) in [0, 1]."""
        return self._share_of_strongest(self.different)

    @property
    def counterfactual(self) -> torch.Tensor:
        """Evidence against the decision: float32 (B, 2, H, W) in [0, 1], on one scale with `factual`."""
        return self._share_of_strongest(~self.different)

    @property
    def ranking(self) -> torch.Tensor:
        """Order of all places by how much they support the decision: float32 (B, 2, H, W) in [-1, 1].

        The factual map; where it is 0, the counterfactual one, negative.
        """
        factual = self.factual
        return torch.where(factual > 0, factual, -self.counterfactual)

    def decision(self, index=0) -> str:
        """ "same", "different" or "undecided"."""
        return "undecided" if self.undecided[index] else self.lean(index)

    def lean(self, index=0) -> str:
        """ "same" or "different": the side of the threshold that the pair is on, decided or not."""
        return "different" if self.different[index] else "same"

    def right(self, index=0) -> bool | None:
        """Whether the decision is that of the true classes; None where they are not known, or nothing is decided."""
        classes = self.classes and self.classes[index]
        if classes is None or self.undecided[index]:
            return None
        return bool(self.different[index]) == (classes[0] != classes[1])

    def sentence(self, index=0) -> str:
        """Score, probability and decision of one pair in words and, where the true classes are known, whether it is
        right.
        """
        warning = f"{self.warning} " if self.warning else ""
        least = similarity(torch.tensor(self.threshold))
        return printable(
            f'{warning}Similarity {self.similarity[index]:.3f}, "same" from {least:.3f} on '
            f"(distance {self.distance[index]:.3f}, threshold {self.threshold:.3f})"
            f"{self._chance(index)}: {self._decided(index)}{self._truth(index)}."
        )

    def sum_of_parts(self, index=0) -> str:
        """What the places of both images add up to, beside the change that they should add up to, in words."""
        if self.completeness is None:
            return ""
        found, change = self.completeness[index].tolist()
        return f"all places add up to {found:+.3f} of a change of {change:+.3f}"

    def cause_of_blank(self, index=0, image=0) -> str:
        """Why a map of an image (0 or 1) holds nothing, in words."""
        if self.evidence[index, image].any():
            return "no such evidence"
        if self.distance[index] < EXTREME:
            return "blank: both embeddings are one, where the distance has no slope"
        if self.distance[index] > 2 - EXTREME:
            return "blank: the embeddings are opposite, where the distance has no slope"
        return "blank: the distance does not react to this image"

    def _chance(self, index):
        """The probability in words."""
        if self.calibration is None:
            return ""
        value, low, high = self.probability[index].tolist()
        return f", of one class with probability {value:.2f} ({low:.2f} to {high:.2f})"

    def _decided(self, index):
        if not self.undecided[index]:
            return f'decided "{self.decision(index)}"'
        low, high = (f"{edge:.3f}" if math.isfinite(edge) else "any" for edge in self.band)
        return f'undecided (distances from {low} to {high} are), leaning to "{self.lean(index)}"'

    def _truth(self, index):
        classes = self.classes and self.classes[index]
        if classes is None:
            return ""
        class1, class2 = classes
        truth = f"both are {class1}" if class1 == class2 else f"{class1} and {class2}"
        right = self.right(index)
        word = "in truth" if right is None else "rightly" if right else "wrongly"
        return f", {word}: {truth}"

    def _share_of_strongest(self, towards_different):
        """Evidence towards "different" (True) or "same" (False), as a share of the strongest value of the image."""
        chosen = torch.where(towards_different[:, None, None, None], self.towards_different, self.towards_same)
        strongest = torch.maximum(self.towards_different, self.towards_same).amax(dim=(2, 3), keepdim=True)
        return chosen / torch.where(strongest > 0, strongest, 1)  # no evidence: all zeros, never NaN


def explained(images, distances, threshold: float, different, same) -> Explanation:
    """The Explanation from coarse maps, enlarged to the size of the images; what is negative counts as 0.

    images: (B, 2, C, H, W). distances: (B,). different, same: (B, 2, h, w), evidence towards either decision.
    """
    size = images.shape[-2:]
    different, same = (
        F.interpolate(maps, size=size, mode="bilinear", align_corners=False).clamp(min=0) for maps in (different, same)
    )
    return Explanation(images, distances, threshold, different, same)


def check_shown(images, normalization: Normalization | None, channels):
    """Raise ExplanationError where figures could not show images.

    Args:
        images: (B, 2, C, H, W); images of another shape are refused.
        normalization: Of the values of each channel, or None.
        channels: Three of the channels, by their indices from 0, or None.
    """
    if images.dim() != 5 or images.shape[1] != 2:
        raise ExplanationError(f"images {tuple(images.shape)} must be (B, 2, C, H, W), two images in each pair")
    count = images.shape[2]
    if normalization is not None and len(normalization.mean) != count:
        raise ExplanationError(
            f"normalization of {len(normalization.mean)} channels, but images of {count}: give Normalization a mean "
            "and a std for each channel"
        )
    if channels is None:
        return
    three = isinstance(channels, list | tuple) and len(channels) == 3
    if not three or not all(isinstance(channel, Integral) and 0 <= channel < count for channel in channels):
        raise ExplanationError(
            f"channels: {channels} is refused: name three channels of the images for red, green and blue, each from 0 "
            f"to {count - 1}"
        )


def check_places(network: Explainable, layer: str, images, features):
    """Raise ExplanationError where a feature map has one place alone: it would be 1.0 everywhere.

    Args:
        network: The network that is explained.
        layer: The name of the layer.
        images: (N, C, H, W).
        features: The map of these images at the layer, (N, C, h, w).
    """
    if features.shape[-2:].numel() > 1:
        return
    others = [name for name in network.layers if network.features(images[:1], name).shape[-2:].numel() > 1]
    cure = f"name one of {', '.join(others)}" if others else "pass larger images"
    raise ExplanationError(
        f"layer {layer!r} gives maps of 1 x 1 for images of {' x '.join(map(str, images.shape[2:]))}, which have no "
        f"places to tell apart: {cure}"
    )


def embed_explained(network: Explainable, explanation: Explanation) -> torch.Tensor:
    """Embeddings (B, 2, D) of the explained images; the network is in the mode that it is in.

    Raises ValueError when they are not as far from each other as the explanation says: another network made it.
    """
    embeddings = embed_pairs(network, explanation.images)
    distances = distance(*embeddings.unbind(1))
    if not ((distances - explanation.distance).abs() <= ROUNDING).all():  # NaN is no number to agree with
        raise ValueError("the explanation is of another network: pass the one that was explained, in its Cut if in one")
    return embeddings


def pairs_of(index: int | slice, count: int) -> slice:
    """The slice that stands for one pair of `count`, or for some. Raises IndexError for a pair that is not there."""
    if isinstance(index, slice):
        return index
    if not -count <= index < count:
        raise IndexError(f"pair {index} of {count}")
    start = index % count
    return slice(start, start + 1)


def only_pair(explanation: Explanation) -> Explanation:
    """The explanation itself. Raises ValueError when it is not of exactly one pair."""
    if len(explanation) != 1:
        raise ValueError(f"this is for one pair, not {len(explanation)}: take explanation[0], explanation[1], ...")
    return explanation
