"""timm and torchvision, importable beside any build of torch, and what timm knows about a backbone."""

import difflib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

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

HUB = "hf-hub"  # hf-hub:OWNER/NAME is a model of the Hugging Face Hub
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

    A tag of weights is kept: resnet50.a1_in1k. So is a model that timm reads from elsewhere, which is not read here:
    hf-hub:OWNER/NAME of the Hugging Face Hub, local-dir:PATH of a folder.

    Raises:
        ValueError: timm does not have the model or the tag. The message suggests similar names.
    """
    source, place = timm.models.parse_model_name(name)
    if source:
        return f"{source}:{place}"
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


def model_arguments(name: str) -> dict:
    """Return the arguments of `timm.create_model` for a backbone's name: plain values, which a checkpoint can hold.

    Those of a model of the hub or of a folder are in its config.json: `model_name` is the architecture,
    `pretrained_cfg` describes the weights.

    Raises:
        ValueError: config.json cannot be fetched or read, or is of a model for other images. The message has the cure.
    """
    source, _ = timm.models.parse_model_name(name)
    if source is None:
        return {"model_name": name}
    if source == HUB:
        return hub_arguments(name)
    return _read_arguments(name)


def _read_arguments(name):
    try:
        arguments = timm.models.resolve_model_input_args(name)
        weights = arguments["pretrained_cfg"]
        channels = weights["input_size"][0]
        for key in ("mean", "std"):
            weights[key] = tuple(map(float, weights[key]))
    except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(_unreadable(name, error)) from error
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        cause = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(
            f"backbone_model: {name} is refused: the name or its config.json is not as timm writes it ({cause})."
        ) from error
    if channels != 3:
        raise ValueError(f"backbone_model: {name} is refused: it takes images of {channels} channels, not 3.")
    return arguments


hub_arguments = cache(_read_arguments)  # without network an attempt takes half a minute


def _unreadable(name, error):
    """Return the message for a config.json that cannot be fetched or opened."""
    source, place = timm.models.parse_model_name(name)
    cause = str(error).partition(". ")[0]
    message = f"backbone_model: {name} cannot be read ({cause}). "
    if source != HUB:
        return f"{message}Name a folder with config.json and model.safetensors, as timm.models.save_for_hf writes them."
    repository, _, _ = place.partition("@")
    return (
        f"{message}Download config.json and the weights from https://huggingface.co/{repository} elsewhere, into one "
        "folder, and set `backbone_model` to local-dir: with the path of that folder behind it."
    )


def create_backbone(arguments: dict, **settings) -> torch.nn.Module:
    """Build the model of `model_arguments` with random weights and without its classifier.

    Args:
        arguments: Of the model. Weights that they name are not loaded.
        settings: Further arguments of `timm.create_model`.
    """
    arguments = arguments | settings | {"num_classes": 0, "pretrained": False, "checkpoint_path": None}
    return timm.create_model(arguments.pop("model_name"), **arguments)


def weights_config(name: str, arguments: dict | None = None) -> timm.models.PretrainedCfg:
    """Return timm's description of a backbone's weights: URL, licence, mean and std of the images.

    Args:
        name: Of the backbone.
        arguments: As `model_arguments` returns them, which it does by default.

    Raises:
        ValueError: As `model_arguments` does.
    """
    arguments = arguments or model_arguments(name)
    if "pretrained_cfg" in arguments:
        return timm.models.PretrainedCfg(**arguments["pretrained_cfg"])
    return timm.models.get_pretrained_cfg(weights_name(name)) or timm.models.PretrainedCfg()


def normalization_of(name: str) -> dict[str, tuple[float, ...]]:
    """Return mean and std, per channel of values in [0, 1], of a backbone's weights; ImageNet's if unknown.

    Raises:
        ValueError: As `weights_config` does.
    """
    config = weights_config(name)
    return {"mean": config.mean or timm.data.IMAGENET_DEFAULT_MEAN, "std": config.std or timm.data.IMAGENET_DEFAULT_STD}


def restriction_of(name: str) -> str | None:
    """Return the licence of a backbone's weights if it is known and does not allow every use."""
    licence = weights_config(name).license
    if licence in UNRESTRICTED:
        return None
    return licence or None
