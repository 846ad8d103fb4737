"""Explainable image similarity: the public names on one page, folder by folder.

config <- network <- explain <- trust, and config <- data <- training <- trained: each stands on those before it.
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
    if torch.version.cuda is not None or hasattr(torch.ops.torchvision, "nms"):
        return  # torch is complete, or torchvision is there already
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

from utils.config import Config, ConfigError, load_config
from utils.data import DataError, ensure_sample, load_splits, read_image, scan
from utils.explain import (
    PAPER,
    Counterfactual,
    Explanation,
    Matches,
    counterfactual,
    decompose,
    explain,
    methods_of,
)
from utils.figures import (
    augmentation_figure,
    counterfactual_figure,
    distances_figure,
    figure,
    history_figure,
    images_figure,
    matches_figure,
    methods_figure,
    overlay,
    pairs_figure,
    point_figure,
    roc_figure,
    sanity_figure,
    saved,
)
from utils.network import Cut, Explainable, SiameseNetwork, build_network
from utils.runtime import Runtime, find_runtime, start
from utils.trained import Trained, inference_pair, load_trained, typical_pairs, write_metrics
from utils.training import CheckpointError, TrainingError, fit
from utils.trust import Row, Verdict, choose_pairs, compare, judge, judge_all, sanity_curves, table

__all__ = [
    "PAPER",
    "CheckpointError",
    "Config",
    "ConfigError",
    "Counterfactual",
    "Cut",
    "DataError",
    "Explainable",
    "Explanation",
    "Matches",
    "Row",
    "Runtime",
    "SiameseNetwork",
    "Trained",
    "TrainingError",
    "Verdict",
    "augmentation_figure",
    "build_network",
    "choose_pairs",
    "compare",
    "counterfactual",
    "counterfactual_figure",
    "decompose",
    "distances_figure",
    "ensure_sample",
    "explain",
    "figure",
    "find_runtime",
    "fit",
    "history_figure",
    "images_figure",
    "inference_pair",
    "judge",
    "judge_all",
    "load_config",
    "load_splits",
    "load_trained",
    "matches_figure",
    "methods_figure",
    "methods_of",
    "overlay",
    "pairs_figure",
    "point_figure",
    "read_image",
    "roc_figure",
    "sanity_curves",
    "sanity_figure",
    "saved",
    "scan",
    "start",
    "table",
    "typical_pairs",
    "write_metrics",
]
