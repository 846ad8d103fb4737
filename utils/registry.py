"""Backbone names: timm's registry, the spellings that are accepted, and the weights that a name means."""

import difflib
import re

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg, get_pretrained_cfg

TORCHVISION = "tv_in1k"  # timm's tag of the ImageNet weights that torchvision publishes
ALIASES = {  # names of torchvision and of the paper's repository that timm spells otherwise
    "mobilenet": "mobilenetv2_100",
    "mobilenetv2": "mobilenetv2_100",
    "mobilenetv3large": "mobilenetv3_large_100",
    "mobilenetv3small": "mobilenetv3_small_100",
    "efficientnetv2s": "tf_efficientnetv2_s",
    "efficientnetv2m": "tf_efficientnetv2_m",
    "efficientnetv2l": "tf_efficientnetv2_l",
}
FREE = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"}  # licences of weights that allow every use
SHOWN = 6  # near misses that an error lists


def backbone_name(name: str) -> str:
    """timm's name for `name`, however it is spelt: ResNet50, EfficientNet-B0, MobileNet (the paper's V2).

    A tag stays: resnet50.a1_in1k. Raises ValueError, with near misses, for a model or a tag that timm does not have.
    """
    spelt, dot, tag = name.partition(".")
    model = _model(spelt)
    if not dot:
        return model
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{model}.*")]
    if tag not in tags:
        raise ValueError(f"unknown weights; timm has {', '.join(f'{model}.{known}' for known in tags) or 'none'}")
    return f"{model}.{tag}"


def weights_name(name: str) -> str:
    """The weights that a backbone name means: its tag; without one torchvision's where timm has them, else timm's own
    choice.
    """
    if "." not in name and timm.is_model_pretrained(f"{name}.{TORCHVISION}"):
        return f"{name}.{TORCHVISION}"
    return name


def weights_config(name: str) -> PretrainedCfg:
    """What timm knows about the weights of a backbone: where they are, their licence, mean and std of their images."""
    return get_pretrained_cfg(weights_name(name)) or PretrainedCfg()


def normalization_of(name: str) -> dict[str, tuple[float, ...]]:
    """Mean and std, per channel of values in [0, 1], that the weights of a backbone expect; ImageNet's if unknown."""
    config = weights_config(name)
    return {"mean": config.mean or IMAGENET_DEFAULT_MEAN, "std": config.std or IMAGENET_DEFAULT_STD}


def restriction_of(name: str) -> str | None:
    """The licence of the weights of a backbone where it is known and does not allow every use."""
    licence = weights_config(name).license
    return licence if licence and licence not in FREE else None


def _model(spelt):
    """timm's name of a model, without a tag; an exact one means itself."""
    if timm.is_model(spelt):
        return spelt
    plain = _plain(spelt)
    known = {_plain(model): model for model in timm.list_models()} | ALIASES
    if plain in known:
        return known[plain]
    near = difflib.get_close_matches(plain, known, n=SHOWN, cutoff=0.7)
    hint = f"did you mean {', '.join(dict.fromkeys(known[one] for one in near))}? " if near else ""
    raise ValueError(f"unknown backbone; {hint}any of timm's {len(timm.list_models())} models can be named")


def _plain(name):
    return re.sub("[^a-z0-9]", "", name.lower())
