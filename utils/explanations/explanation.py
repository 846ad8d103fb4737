"""An explanation: pairs of images, their scores and decisions, and the evidence at each place of both images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

import torch

from ..config import MORE, Normalization
from ..files import ExplanationError, printable
from ..network.distance import Explainable, distance, embed_pairs, similarity

ROUNDING = 0.02  # of a distance: what bfloat16 may move it by from one batch to another
SLACK = 1e-5  # below a distance of 0, where a threshold lies that not even equal images pass
PRINTED = 5  # pairs
EXTREME = 1e-3  # distances this close to 0 or 2 have almost no gradient
UNTESTED = "CAUTION: this network was not tested on labelled pairs, so it may know nothing."


@dataclass(frozen=True, eq=False)
class Source:
    """What is known of B pairs of images beside their values. What is None is not known."""

    paths: tuple[tuple[str, str], ...] | None = None
    """Image files of each pair."""
    classes: tuple[tuple[str, str] | None, ...] | None = None
    """Actual classes of each pair, or None for a pair of unknown ones."""
    normalization: Normalization | None = None
    """Mean and std that the values were normalised with; figures need it where there are no files."""
    value_range: tuple[float, float] | None = None
    """Range of the values in the files, as `read_image` takes it."""
    channels: tuple[int, int, int] | None = None
    """Channels that figures show in red, green and blue. None: all three, or the mean of all in grey."""
    warning: str = UNTESTED
    """What every sentence and figure begins with."""
    band: tuple[float, float] | None = None
    """Two distances between which pairs are undecided."""
    decides: bool = True
    """Whether the threshold was chosen on labelled pairs. False: no pair is decided, whatever the threshold is."""
    calibration: Callable[[torch.Tensor], torch.Tensor] | None = None
    """From distances (B,) to probabilities (B, 3), as `Explanation.probability` has them."""

    def __post_init__(self):
        if self.paths is not None:
            paths = tuple((str(path1), str(path2)) for path1, path2 in self.paths)
            object.__setattr__(self, "paths", paths)

    def __getitem__(self, pairs: slice) -> "Source":
        """The source of some pairs."""
        return replace(self, paths=self.paths and self.paths[pairs], classes=self.classes and self.classes[pairs])


UNKNOWN = Source()  # nothing is known, not even whether the network was tested


@dataclass(frozen=True, eq=False)
class Explanation:
    """B pairs, what the network says of them, and why. `explanation[3]` is the explanation of one pair.

    Raises:
        ValueError: The parts are not of equally many pairs.
        ExplanationError: A part is no tensor, the threshold lies outside [0, 2], or a distance is not finite.
    """

    images: torch.Tensor
    """Float (B, 2, C, H, W), as the network takes them."""
    distance: torch.Tensor
    """Float32 (B,) in [0, 2]."""
    threshold: float
    """Distance up to which a pair is "same"."""
    towards_different: torch.Tensor
    """Float32 (B, 2, H, W), at least 0: how much each place of image 1 and image 2 pushes towards "different"."""
    towards_same: torch.Tensor
    """The same towards "same"."""
    method: str = ""
    """The name of the method that made the maps."""
    layer: str = ""
    """The layer that it read, if it reads one."""
    details: str = ""
    """What else the maps depend on, in words."""
    names: tuple[tuple[str, str], ...] = ()
    """Of both images of each pair; made from the paths, or numbered, where they are not given."""
    completeness: torch.Tensor | None = None
    """Float32 (B, 2): the sum of the evidence of all places, and the change that it should add up to."""
    source: Source = Source(warning="")
    """What is known of the pairs beside their values."""

    def __post_init__(self):
        for name in ("images", "distance", "towards_different", "towards_same"):
            kind = type(getattr(self, name))
            if not issubclass(kind, torch.Tensor):
                raise ExplanationError(f"{name}: {kind.__name__} is refused: pass a tensor, torch.as_tensor({name})")
        if not -SLACK <= self.threshold <= 2 + SLACK:
            raise ExplanationError(f"threshold: {self.threshold} is refused: it is a distance, in [0, 2]")
        if not self.distance.isfinite().all():
            cause = "weights or images hold NaN, or embeddings have no length"
            raise ExplanationError(f"The distances are not finite: {cause}.")
        check_shown(self.images, self.source)
        parts = {"paths": self.source.paths, "classes": self.source.classes, "names": self.names or None}
        for name, part in (parts | self._tensors()).items():
            if part is not None and len(part) != len(self):
                raise ValueError(f"{name} of {len(part)} pairs, but distances of {len(self)}")
        if not self.names:
            object.__setattr__(self, "names", _names_of(self.source.paths, len(self)))

    def _tensors(self):
        """What is of each pair, by name."""
        names = ("images", "distance", "towards_different", "towards_same", "completeness")
        return {name: getattr(self, name) for name in names}

    def __len__(self):
        return len(self.distance)

    def __getitem__(self, index: int | slice) -> "Explanation":
        """The explanation of one pair, or of some."""
        pairs = pairs_of(index, len(self))
        parts = self._tensors()
        for name, part in parts.items():
            if part is not None:
                parts[name] = part[pairs]
        return replace(self, names=self.names[pairs], source=self.source[pairs], **parts)

    def of_same_pairs(self, other: "Explanation") -> bool:
        """Return whether both are of the same pairs, compared with the same threshold."""
        if (self.names, self.threshold) != (other.names, other.threshold):
            return False
        return torch.equal(self.images, other.images)

    def same_as(self, other: "Explanation") -> bool:
        """Return whether both say the same of the same pairs by the same method."""
        if self.description != other.description or not self.of_same_pairs(other):
            return False
        return torch.equal(self.distance, other.distance) and torch.equal(self.evidence, other.evidence)

    @property
    def description(self) -> str:
        """Method, layer and details in words."""
        words = self.method
        if self.layer:
            words += f" at {self.layer.replace(MORE, ' and coarser layers')}"
        if self.details:
            words += f", {self.details}"
        return words

    @property
    def similarity(self) -> torch.Tensor:
        """Float32 (B,) in [0, 1]."""
        return similarity(self.distance)

    @property
    def limit(self) -> float:
        """The similarity from which on a pair is "same"."""
        return similarity(torch.tensor(self.threshold)).item()

    @property
    def different(self) -> torch.Tensor:
        """Bool (B,), True where the pair is decided "different", or is closer to it where it is undecided."""
        return self.distance > self.threshold

    @property
    def undecided(self) -> torch.Tensor:
        """Bool (B,), True where the distance lies within the band, or where no threshold decides."""
        if not self.source.decides:
            return torch.ones_like(self.different)
        if self.source.band is None:
            return torch.zeros_like(self.different)
        same_up_to, different_from = self.source.band
        return (self.distance > same_up_to) & (self.distance <= different_from)

    @property
    def probability(self) -> torch.Tensor | None:
        """That both images are of one class, where half of all pairs are: float32 (B, 3), with the ends of its 95 %
        interval; None where it was not calibrated.
        """
        return self.source.calibration and self.source.calibration(self.distance)

    @property
    def evidence(self) -> torch.Tensor:
        """Float32 (B, 2, H, W); positive values push towards "different", negative ones towards "same"."""
        return self.towards_different - self.towards_same

    @property
    def factual(self) -> torch.Tensor:
        """Evidence that supports the decision, or the closer one if undecided: float32 (B, 2, H, W) in [0, 1]."""
        return self._share_of_strongest(self.different)

    @property
    def counterfactual(self) -> torch.Tensor:
        """Evidence that contradicts the decision: float32 (B, 2, H, W) in [0, 1], on one scale with `factual`."""
        return self._share_of_strongest(~self.different)

    @property
    def ranking(self) -> torch.Tensor:
        """Order of all places by how much they support the decision: float32 (B, 2, H, W) in [-1, 1].

        The factual map; where it is 0, the counterfactual one, negative.
        """
        factual = self.factual
        return torch.where(factual > 0, factual, -self.counterfactual)

    def decision(self, index=0) -> str:
        """Return "same", "different" or "undecided"."""
        return "undecided" if self.undecided[index] else self.closer_to(index)

    def closer_to(self, index=0) -> str:
        """Return "same" or "different": the side of the threshold that the pair is on, decided or not."""
        return "different" if self.different[index] else "same"

    def classes(self, index=0) -> tuple[str, str] | None:
        """Return the actual classes of a pair; None where they are not known."""
        return self.source.classes and self.source.classes[index]

    def classes_in_words(self, index=0) -> str:
        """Return the actual classes of a pair in words; "" where they are not known."""
        if self.classes(index) is None:
            return ""
        class1, class2 = self.classes(index)
        return f"both are {class1}" if class1 == class2 else f"{class1} and {class2}"

    def correct(self, index=0) -> bool | None:
        """Return whether the decision is that of the actual classes; None if undecided or unknown."""
        classes = self.classes(index)
        if classes is None or self.undecided[index]:
            return None
        return bool(self.different[index]) == (classes[0] != classes[1])

    def sentence(self, index=0) -> str:
        """Return decision, score and probability of a pair in words, and whether it is correct where that is known."""
        text = f"{self._decided(index)} (similarity {self.similarity[index]:.3f}; {self._limits(index)})"
        if self.source.calibration is not None:
            value, low, high = self.probability[index].tolist()
            text += f", of one class with probability {value:.2f} ({low:.2f} to {high:.2f})"
        text = f"{self.source.warning} {text}{self._actual(index)}."
        return printable(text.lstrip())

    def __repr__(self):
        return sentences_of(self)

    def cause_of_blank(self, index=0, image=0) -> str:
        """Return why a map of an image (0 or 1) holds nothing, in words."""
        if self.evidence[index, image].any():
            return "no such evidence"
        if self.distance[index] < EXTREME:
            return "blank: both embeddings are equal, where the distance has no slope"
        if self.distance[index] > 2 - EXTREME:
            return "blank: the embeddings are opposite, where the distance has no slope"
        return "blank: the distance does not react to this image"

    def _decided(self, index):
        if not self.source.decides:
            return "No decision"
        if self.undecided[index]:
            return f'Undecided, closer to "{self.closer_to(index)}"'
        return self.decision(index).capitalize()

    def _limits(self, index):
        """Between which similarities a pair is decided so, in words."""
        if not self.source.decides:
            return "no threshold was chosen on labelled pairs of your images"
        if not self.undecided[index]:
            return f"limit {self.limit:.3f}"
        low, high = similarity(torch.tensor(self.source.band)).clamp(0, 1).tolist()
        return f"undecided from {high:.3f} to {low:.3f}"

    def _actual(self, index):
        """Whether the decision is correct, and the actual classes, in words."""
        words = self.classes_in_words(index)
        if not words:
            return ""
        verdict = {True: "correct", False: "incorrect", None: "actual classes"}[self.correct(index)]
        return f"; {verdict}: {words}"

    def _share_of_strongest(self, towards_different):
        """Evidence towards "different" (True) or "same" (False), as a share of the strongest value of the image."""
        chosen = torch.where(towards_different[:, None, None, None], self.towards_different, self.towards_same)
        strongest = torch.maximum(self.towards_different, self.towards_same).amax(dim=(2, 3), keepdim=True)
        return chosen / torch.where(strongest > 0, strongest, 1)  # no evidence: all zeros, never NaN


def check_shown(images, source: Source):
    """Raise ExplanationError where figures could not show images (B, 2, C, H, W) as their source says."""
    if images.dim() != 5 or images.shape[1] != 2:
        raise ExplanationError(f"images {tuple(images.shape)} must be (B, 2, C, H, W), two images in each pair")
    count = images.shape[2]
    normalized = len(source.normalization.mean) if source.normalization else count
    if normalized != count:
        raise ExplanationError(
            f"normalization of {normalized} channels, but images of {count}: give Normalization a mean and a std for "
            "each channel"
        )
    shown = source.channels
    if shown is None:
        return
    three = isinstance(shown, list | tuple) and len(shown) == 3
    if not three or not all(isinstance(channel, Integral) and 0 <= channel < count for channel in shown):
        raise ExplanationError(
            f"channels: {shown} is refused: name three channels for red, green and blue, each from 0 to {count - 1}"
        )


def embed_explained(network: Explainable, explanation: Explanation) -> torch.Tensor:
    """Embed the explained images: (B, 2, D). The mode of the network stays.

    Raises:
        ValueError: The distances are not those of the explanation, so another network was explained.
    """
    embeddings = embed_pairs(network, explanation.images)
    distances = distance(*embeddings.unbind(1))
    if not ((distances - explanation.distance).abs() <= ROUNDING).all():  # NaN is not equal to any number
        raise ValueError("the explanation is of another network: pass the one that was explained, in its Cut if in one")
    return embeddings


def pairs_of(index: int | slice, count: int) -> slice:
    """Return the slice of one pair of `count`, or of some. Raises IndexError for a pair that does not exist."""
    if isinstance(index, slice):
        return index
    start = range(count)[index]
    return slice(start, start + 1)


def sentences_of(explained) -> str:
    """Return what is printed of an Explanation or a Verdict: the sentences of its first PRINTED pairs."""
    count = len(explained)
    lines = [explained.sentence(index) for index in range(min(count, PRINTED))]
    if count > PRINTED:
        lines.append(f"and {count - PRINTED} more pairs")
    return "\n".join(lines) or "no pairs"


def only_pair(explanation: Explanation) -> Explanation:
    """Return the explanation itself. Raises ValueError if it is not of exactly one pair."""
    if len(explanation) != 1:
        raise ValueError(f"this is for one pair, not {len(explanation)}: take explanation[0], explanation[1], ...")
    return explanation


def ranks_of(maps: torch.Tensor) -> torch.Tensor:
    """Rank the pixels of each map (..., H, W), 0 for the highest: int64 (..., H, W)."""
    order = maps.flatten(-2).argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1).view_as(maps)


def _names_of(paths, count):
    """The names of both images of each pair: the last two parts of their paths, or numbers."""
    if paths is None:
        return tuple((f"pair {number}, image 1", f"pair {number}, image 2") for number in range(count))
    names = []
    for path1, path2 in paths:
        short1, short2 = "/".join(Path(path1).parts[-2:]), "/".join(Path(path2).parts[-2:])
        names.append((printable(short1), printable(short2)))
    return tuple(names)
