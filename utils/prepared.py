"""What explanations and probabilities rest on, measured once after training and kept in the checkpoint."""

from dataclasses import dataclass

import torch

from utils.network import Calibration
from utils.training import Interval


@dataclass(frozen=True)
class Prepared:
    """What explanations of a network rest on, measured once after training and kept in its checkpoint.

    asked: method, layer, output_stride and steps of the config then, and the threshold. layer, steps: what `auto` among
    them means, chosen on validation pairs. gaps: insertion minus deletion of each choice tried. names, embeddings: of
    the reference images, "class/file", float32 (R, D). auc: of the test pairs, with its 95 % interval. calibration:
    from distance to probability.
    """

    asked: dict[str, str | int | float]
    layer: str
    steps: int
    gaps: dict[str, float]
    names: tuple[str, ...]
    embeddings: torch.Tensor
    auc: Interval
    calibration: Calibration

    @classmethod
    def from_dict(cls, content: dict) -> "Prepared":
        """The opposite of `dataclasses.asdict`."""
        parts = {"auc": Interval(**content["auc"]), "calibration": Calibration(**content["calibration"])}
        return cls(**content | parts)

    @property
    def caution(self) -> str:
        """What every figure says first of a network that may know nothing."""
        if not self.auc.low <= 0.5 <= self.auc.high:
            return ""
        return f"BEWARE: this network may know nothing: its test AUC is {self.auc}, and 0.5 is guessing."

    def __str__(self):
        tried = ", ".join(f"{name} {gap:+.3f}" for name, gap in self.gaps.items())
        measured_on = f"\nInsertion minus deletion on validation pairs: {tried}" if tried else ""
        return (
            f"`auto` is {self.layer} and {self.steps} steps, chosen for {self.asked['method']}; "
            f"test AUC {self.auc}{measured_on}"
        )
