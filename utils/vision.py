"""timm and torchvision, importable beside any build of torch."""

from importlib.util import find_spec
from pathlib import Path

import torch

_library = None  # kept alive: torch drops the schemas together with this object


def _declare_missing_operators():
    """Let torchvision import beside a CPU build of torch when its own binary needs CUDA (pytorch/vision#9085).

    torchvision decorates `nms` and `qnms` while it is imported, so the two must exist; nothing here calls them.
    """
    global _library
    if torch.version.cuda is not None or hasattr(torch.ops.torchvision, "nms"):
        return  # torch is complete, or torchvision is imported already
    for binary in Path(find_spec("torchvision").origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(binary))
            return  # the binary fits this torch: the real operators are there
        except OSError:
            continue  # it links against CUDA libraries that a CPU build does not have
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_declare_missing_operators()

import timm
import timm.data
import timm.layers
import timm.models
from torchvision.transforms.v2 import functional

__all__ = ["functional", "timm"]
