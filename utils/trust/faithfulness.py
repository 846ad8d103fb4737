"""Insertion and deletion: what hiding and showing the strongest places of a map does to the decision."""

from dataclasses import dataclass

import torch

from utils.explain import Explanation, blurred, embed_explained, pairs_of, ranks_of
from utils.network import Explainable, distance, embed_pairs, evaluating, similarity

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the pixels, strongest first; alike from both ends, or chance would not be 0


@dataclass(frozen=True, eq=False)
class Effect:
    """What changing the images of B pairs does to the support for the decision, float32 (B,) each, in [-1, 1].

    both: with both images changed at once. image1, image2: with that one changed beside the other as it is. different:
    the decisions, bool (B,).
    """

    both: torch.Tensor
    image1: torch.Tensor
    image2: torch.Tensor
    different: torch.Tensor

    @property
    def each(self) -> torch.Tensor:
        """Mean of image 1 alone and image 2 alone."""
        return (self.image1 + self.image2) / 2

    @property
    def decisive(self) -> torch.Tensor:
        """What can undo the decision: of both images if "different", of each image if "same".

        Two images that have lost their evidence look alike: only that undoes "different", and it never undoes "same".
        """
        return torch.where(self.different, self.both, self.each)

    def of(self, part: str) -> torch.Tensor:
        """What counts for the pair, "pair", or is of one image alone, "image 1" or "image 2"."""
        return {"pair": self.decisive, "image 1": self.image1, "image 2": self.image2}[part]

    def __getitem__(self, index: int | slice) -> "Effect":
        part = pairs_of(index, len(self.both))
        return Effect(self.both[part], self.image1[part], self.image2[part], self.different[part])


@dataclass(frozen=True, eq=False)
class Masked:
    """Embeddings (S, B, 2, D) of B pairs of images, at each of S shares of pixels shown or hidden."""

    inserted: torch.Tensor
    deleted: torch.Tensor

    def reversed(self) -> "Masked":
        """The same of the opposite ranking: its strongest tenth is what is left when nine tenths are deleted."""
        return Masked(self.deleted.flip(0), self.inserted.flip(0))


@torch.no_grad()
def insertion_deletion(network: Explainable, explanation: Explanation, hide=blurred) -> Effect:
    """Insertion minus deletion for pairs (after Petsiuk et al. 2018, section 3.2): the gap.

    Pixels are ranked by the evidence for the decision. For each of SHARES, the strongest pixels of an image are blurred
    (deletion), or shown in the blurred image (insertion). The support for the decision, the similarity if "same" and 1
    less the similarity if "different", is averaged over the shares; the gap is that of insertion less that of deletion.
    hide: images (B, 2, C, H, W) to what hidden pixels show. A blank map has a gap of its own order of pixels: hold it
    against chance. Raises ValueError when `network` is not the one that was explained.
    """
    masked, untouched = embed_evidence(network, explanation, hide)
    return gap_of(masked, untouched, explanation.different)


@torch.no_grad()
def span_of(network: Explainable, explanation: Explanation, hide=blurred) -> Effect:
    """What there is to be had: the support of the untouched pair less that of the pair whose pixels are all hidden."""
    images = explanation.images
    with evaluating(network):
        untouched = embed_explained(network, explanation)
        hidden = embed_pairs(network, hide(images))
    lost = support(untouched, untouched, explanation.different) - support(hidden, untouched, explanation.different)
    return Effect(*lost, explanation.different)


@torch.no_grad()
def embed_evidence(network: Explainable, explanation: Explanation, hide=blurred) -> tuple[Masked, torch.Tensor]:
    """Embeddings of the explained images with their evidence shown and hidden, and as they are: (B, 2, D)."""
    with evaluating(network):
        untouched = embed_explained(network, explanation)
        return embed_masked(network, explanation.images, explanation.ranking, hide), untouched


def embed_masked(network: Explainable, images, ranking, hide=blurred) -> Masked:
    """Embeddings of images (B, 2, C, H, W) with the strongest pixels of a ranking (B, 2, H, W) shown, and hidden."""
    hidden = hide(images)
    ranks = ranks_of(ranking)  # (B, 2, H, W), 0 for the strongest
    pixels = images.shape[-2] * images.shape[-1]
    inserted = []
    deleted = []
    for share in SHARES:
        strongest = (ranks < share * pixels)[:, :, None]  # (B, 2, 1, H, W)
        inserted.append(embed_pairs(network, torch.where(strongest, images, hidden)))
        deleted.append(embed_pairs(network, torch.where(strongest, hidden, images)))
    return Masked(torch.stack(inserted), torch.stack(deleted))


def gap_of(masked: Masked, untouched, different) -> Effect:
    """The gap from embeddings: of masked images, and of the images as they are (B, 2, D)."""
    shown, hidden = (support(part, untouched, different) for part in (masked.inserted, masked.deleted))
    gained = shown - hidden  # (3, S, B)
    return Effect(*gained.mean(dim=1), different)


def support(changed, untouched, different) -> torch.Tensor:
    """What speaks for the decision when both images, image 1 or image 2 are changed: (3, ..., B), in [0, 1].

    changed: (..., B, 2, D). untouched: (B, 2, D). different: the decisions, bool (B,).
    """
    both = distance(changed[..., 0, :], changed[..., 1, :])
    image1 = distance(changed[..., 0, :], untouched[:, 1])
    image2 = distance(untouched[:, 0], changed[..., 1, :])
    similar = similarity(torch.stack([both, image1, image2]))
    return torch.where(different, 1 - similar, similar)
