"""What a distance says about the chance that two images are of one class."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Calibration:
    """Probability that the images of a pair are of one class, by their distance, where half of all pairs are.

    distances: float32 (G,), rising. probabilities: float32 (G, 3) in [0, 1]: the probability and the lower and upper
    end of its 95 % interval, which never rise with distance and hold the probability. Fitted on validation pairs by
    `utils.training.fit_calibration`.
    """

    distances: torch.Tensor
    probabilities: torch.Tensor

    def __call__(self, distances: torch.Tensor) -> torch.Tensor:
        """Distances (B,) to probabilities with their interval, float32 (B, 3), on the CPU; linear between the knots."""
        distances = distances.detach().float().cpu()
        last = len(self.distances) - 1
        above = torch.searchsorted(self.distances, distances).clamp(1, last)
        start = self.distances[above - 1]
        share = ((distances - start) / (self.distances[above] - start)).clamp(0, 1)
        return torch.lerp(self.probabilities[above - 1], self.probabilities[above], share[:, None])
