"""Explainable image similarity: the public names on one page, folder by folder.

config <- network <- explain <- trust, and config <- data <- training <- trained; utils/README.md has the map.
"""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from utils.errors import end_quietly
from utils.text import print_any_name

if sys.argv[:1] == ["-m"]:  # while Python looks for the module of a command
    end_quietly()
print_any_name()
if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is loaded: how long a thread spins before it sleeps
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # where two processes share the cores, spinning starves both

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

# eager, because the folder of this name would else stand in its place
from utils.explain import explain

PUBLIC = {  # every name that notebooks and users need, by the place where it lives; imported when it is asked for
    "config": ("Config", "ConfigError", "Normalization", "load_config"),
    "runtime": ("Runtime", "find_runtime", "start"),
    "data": ("DataError", "audit", "ensure_sample", "load_splits", "read_image", "scan"),
    "network": ("Cut", "Explainable", "SiameseNetwork", "build_network"),
    "explain": (
        "PAPER",
        "Counterfactual",
        "Explanation",
        "Matches",
        "References",
        "counterfactual",
        "decompose",
        "embed_references",
        "explain",
        "methods_of",
    ),
    "training": (
        "CheckpointError",
        "TrainingError",
        "choose_threshold",
        "diagnose",
        "evaluate",
        "fit",
        "frozen_baseline",
        "reliability",
    ),
    "trained": ("Trained", "inference_pair", "load_trained", "typical_pairs", "write_metrics"),
    "trust": (
        "Row",
        "Verdict",
        "choose_pairs",
        "compare",
        "find_shortcuts",
        "find_suspects",
        "judge",
        "judge_all",
        "prepare_explanations",
        "sanity_curves",
        "table",
        "write_table",
    ),
    "search": (
        "FromFiles",
        "Gallery",
        "dataset_map",
        "gallery",
        "most_similar",
        "most_uncertain",
        "scores_table",
        "surest",
        "worst_mistakes",
    ),
    "figures": (
        "augmentation_figure",
        "counterfactual_figure",
        "det_figure",
        "distances_figure",
        "duplicates_figure",
        "explain_folder",
        "figure",
        "grid_figure",
        "history_figure",
        "images_figure",
        "matches_figure",
        "methods_figure",
        "overlay",
        "pairs_figure",
        "point_figure",
        "reliability_figure",
        "roc_figure",
        "sanity_figure",
        "saved",
        "shortcuts_figure",
        "suspects_figure",
    ),
    "pages": ("PairChooser", "grid", "plane", "report", "view"),
}
__all__ = [name for names in PUBLIC.values() for name in names]


def __getattr__(name):
    for place, names in PUBLIC.items():
        if name in names:
            return getattr(import_module(f"utils.{place}"), name)
    raise AttributeError(f"module 'utils' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
