"""timm and torchvision, importable beside any build of torch, and what timm knows about a backbone."""

import difflib
import re
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
            return  # the binary fits this torch and has the operators
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
from torchvision.transforms.v2 import functional as functional

TORCHVISION = "tv_in1k"  # timm's tag of the ImageNet weights that torchvision publishes
ALIASES = {  # names of torchvision and of the paper's repository that timm spells differently
    "mobilenet": "mobilenetv2_100",
    "mobilenetv2": "mobilenetv2_100",
    "mobilenetv3large": "mobilenetv3_large_100",
    "mobilenetv3small": "mobilenetv3_small_100",
    "efficientnetv2s": "tf_efficientnetv2_s",
    "efficientnetv2m": "tf_efficientnetv2_m",
    "efficientnetv2l": "tf_efficientnetv2_l",
}
UNRESTRICTED = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"}  # licences that allow every use


def backbone_name(name: str) -> str:
    """Return timm's name for a backbone in any spelling: ResNet50, EfficientNet-B0, MobileNet (the paper's V2).

    A tag of weights is kept: resnet50.a1_in1k.

    Raises:
        ValueError: timm does not have the model or the tag. The message suggests similar names.
    """
    spelling, dot, tag = name.partition(".")
    model = _model_name(spelling)
    if not dot:
        return model
    tagged = timm.list_pretrained(f"{model}.*")
    if f"{model}.{tag}" not in tagged:
        raise ValueError(f"unknown weights; timm has {', '.join(tagged) or 'none'}")
    return f"{model}.{tag}"


def _model_name(spelling):
    if timm.is_model(spelling):
        return spelling
    models = {}
    for model in timm.list_models():
        models[_letters(model)] = model
    models |= ALIASES
    letters = _letters(spelling)
    if letters in models:
        return models[letters]
    message = "unknown backbone; "
    similar = difflib.get_close_matches(letters, models, n=6, cutoff=0.7)
    if similar:
        message += f"did you mean {', '.join(models[key] for key in similar)}? "
    raise ValueError(f"{message}any of timm's {len(timm.list_models())} models can be named")


def _letters(name):
    return re.sub("[^a-z0-9]", "", name.lower())


def weights_name(name: str) -> str:
    """Return the weights that a backbone's name selects: its tag, else torchvision's weights, else timm's default."""
    if "." not in name and timm.is_model_pretrained(f"{name}.{TORCHVISION}"):
        return f"{name}.{TORCHVISION}"
    return name


def weights_config(name: str) -> timm.models.PretrainedCfg:
    """Return timm's description of a backbone's weights: URL, licence, mean and std of the images."""
    return timm.models.get_pretrained_cfg(weights_name(name)) or timm.models.PretrainedCfg()


def normalization_of(name: str) -> dict[str, tuple[float, ...]]:
    """Return mean and std, per channel of values in [0, 1], of a backbone's weights; ImageNet's if unknown."""
    config = weights_config(name)
    return {"mean": config.mean or timm.data.IMAGENET_DEFAULT_MEAN, "std": config.std or timm.data.IMAGENET_DEFAULT_STD}


def restriction_of(name: str) -> str | None:
    """Return the licence of a backbone's weights if it is known and does not allow every use."""
    licence = weights_config(name).license
    if licence in UNRESTRICTED:
        return None
    return licence or None
