"""Explainable image similarity: one straight corridor of modules, each importing only those before it.

config > runtime > parallel > images > transforms > cache > delivery > pairs > siamese > losses > metrics > checkpoint >
evaluation > epoch > training > explanation > gradcam > integrated > occlusion > dilation > faithfulness > methods >
planted > sanity > comparison > decomposition > counterfactuals > plots > heatmaps; beside it, sample_data makes the
bundled dataset and notebooks executes the notebooks.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

_library = None  # kept alive: torch drops the schemas together with this object


def _declare_missing_torchvision_operators():
    """Let torchvision import beside a CPU build of torch when its own binary needs CUDA (pytorch/vision#9085).

    torchvision decorates `nms` and `qnms` while it is imported, so the two must exist; nothing here calls them.
    """
    global _library
    if torch.version.cuda is not None:
        return
    for binary in Path(find_spec("torchvision").origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(binary))
            return  # the binary fits this torch: the real operators are there
        except OSError:
            continue  # it links against CUDA libraries that a CPU build does not bring
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_declare_missing_torchvision_operators()
