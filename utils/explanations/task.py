"""What a method of explanation is asked, and how its coarse maps become an Explanation."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..config import LAST
from ..network.distance import Explainable
from .explanation import Explanation
from .references import References


@dataclass(frozen=True, eq=False)
class Task:
    """Everything that a method may use. A method is a function of a Task that returns an Explanation."""

    network: Explainable
    images: torch.Tensor
    """Float (B, 2, C, H, W), as the network takes them."""
    threshold: float
    """Distance up to which a pair is decided "same"."""
    references: References | None = None
    layer: str = LAST
    """The layer whose feature map is read."""
    steps: int = 1
    """Steps of an integral along a path."""
    decisions: torch.Tensor | None = None
    """Bool (B,), True for "different", where another network than this one decides."""

    def different(self, distances) -> torch.Tensor:
        """Return the decisions on pairs of these distances (B,): bool (B,), True for "different"."""
        return distances > self.threshold if self.decisions is None else self.decisions


def explained(images, distances, threshold: float, different, same, completeness=None) -> Explanation:
    """Make an Explanation of coarse maps, enlarged to the size of the images; what is negative counts as 0.

    Args:
        images: (B, 2, C, H, W).
        distances: (B,).
        threshold: Distance up to which a pair is decided "same".
        different: Evidence towards "different", (B, 2, h, w).
        same: Evidence towards "same", (B, 2, h, w).
        completeness: (B, 2), as an Explanation has it.
    """
    size = images.shape[-2:]
    different = F.interpolate(different, size=size, mode="bilinear", align_corners=False).clamp(min=0)
    same = F.interpolate(same, size=size, mode="bilinear", align_corners=False).clamp(min=0)
    return Explanation(images, distances, threshold, different, same, completeness=completeness)
