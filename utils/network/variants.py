"""Variants of a Siamese network: folded for speed, dilated for a finer map, randomised as a control."""

from collections import Counter, OrderedDict

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..config import ConfigError
from ..files import ExplanationError
from ..vision import create_backbone, timm
from .cut import Cut
from .distance import copy_of, example_of
from .hooks import watched
from .places import close
from .siamese import SiameseNetwork

PLAIN = (nn.Conv2d, timm.layers.Conv2dSame)  # convolutions that compute with their weights as they are
POOLING = (nn.AvgPool2d, nn.MaxPool2d)


@torch.no_grad()
def folded(network: SiameseNetwork, dtype: torch.dtype) -> SiameseNetwork:
    """Copy a network for evaluation only, faster and the same up to rounding.

    Each batch norm is folded into the convolution whose output it takes; the activation that some batch norms of timm's
    hold stays. The weights of the backbone are converted to `dtype`.
    """
    images = example_of(network.image_size).to(next(network.parameters()))
    copied = copy_of(network).eval()
    before = copied(images)
    backbone = copied.backbone
    for convolution, norm in _norms_behind_convolutions(backbone, images):
        fused = fuse_conv_bn_eval(backbone.get_submodule(convolution), backbone.get_submodule(norm))
        backbone.set_submodule(convolution, fused)
        backbone.set_submodule(norm, _without_norm(backbone.get_submodule(norm)))
    if not close(before, copied(images)):
        copied = copy_of(network).eval()  # something else takes the output of a convolution too
    copied.backbone.to(dtype)
    return copied


def dilated(network: SiameseNetwork, output_stride: int) -> SiameseNetwork:
    """Copy a network so that its last map has a cell for every `output_stride` pixels: 16 or 8; 32 as trained.

    The late strides are taken out and the kernels behind them spread, as timm does: every second cell is what it was,
    the cells between are new. Embeddings change a little: the mean is over more cells. Both networks share the weights.

    Raises:
        ConfigError: The network is no SiameseNetwork, or timm does not dilate its backbone.

    Source: the à trous algorithm; Chen et al. 2018, DeepLab, section 3.1.
    """
    if not isinstance(network, SiameseNetwork):
        kind = type(network).__name__
        raise ConfigError(f"explanation.output_stride: {output_stride} needs a SiameseNetwork, not {kind}: keep 32")
    name = network.backbone_model
    refused = f"explanation.output_stride: {output_stride} is refused for {name}, which timm does not dilate: keep 32"
    try:
        with torch.device("meta"):  # only a plan: no weights are drawn
            plan = create_backbone(network.backbone_arguments, output_stride=output_stride)
    except (AssertionError, NotImplementedError, TypeError) as error:
        raise ConfigError(refused) from error
    weights = [*network.parameters(), *network.buffers()]
    network = copy_of(network, weights)
    for path, module in list(network.backbone.named_modules()):
        planned = plan.get_submodule(path)
        if isinstance(module, nn.Conv2d):
            if module.stride != planned.stride and module.kernel_size[0] % 2 == 0:
                raise ConfigError(refused)  # timm would, but its cells would no longer cover the image
            for setting in ("stride", "padding", "dilation"):
                setattr(module, setting, getattr(planned, setting))
        elif isinstance(module, POOLING):
            network.backbone.set_submodule(path, planned)
        elif not list(module.children()) and getattr(module, "stride", None) != getattr(planned, "stride", None):
            raise ConfigError(refused)  # a blur that strides, for example
    return network


def randomised(network: SiameseNetwork | Cut, seed=0):
    """Yield (stage, network) with the weights shuffled from the top down to that stage: embedding, layer4, ..., stem.

    Each tensor keeps its values, but not their places. The network is the same copy, shuffled further at each turn.

    Source: cascading randomisation; Adebayo et al. 2018, Sanity Checks for Saliency Maps, section 3.1.
    """
    network = copy_of(network)
    generator = torch.Generator().manual_seed(seed)
    stages = list(network.stages().items())
    if isinstance(network, SiameseNetwork):
        stages.append(("embedding", [network.embedding]))
    for name, modules in reversed(stages):
        parameters = [parameter for module in modules for parameter in module.parameters(recurse=False)]
        for parameter in parameters:
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.data = parameter.data.flatten()[order].view_as(parameter)
        if parameters:
            yield name, network


def fully_random(network: SiameseNetwork | Cut, seed=0) -> SiameseNetwork | Cut:
    """Copy a network with all weights shuffled. Raises ExplanationError where it has none."""
    stages = list(randomised(network, seed))
    if not stages:
        raise ExplanationError(f"{network.layers[-1]}: there are no parameters to shuffle, so no control can be made")
    _, shuffled = stages[-1]
    return shuffled


def _norms_behind_convolutions(backbone, images) -> list[tuple[str, str]]:
    """Return the paths of each plain convolution and of the batch norm that takes its output, if both run once."""
    outputs = {}  # of convolutions, by path
    pairs = {}
    runs = Counter()

    def see(path, module, inputs, output):
        runs[path] += 1
        if type(module) in PLAIN:
            outputs[path] = output
        elif isinstance(module, _BatchNorm):
            for convolution, convolved in outputs.items():
                if convolved is inputs[0]:
                    pairs[convolution] = path

    with watched(backbone, see):
        backbone.forward_features(images)
    return [pair for pair in pairs.items() if runs[pair[0]] == runs[pair[1]] == 1]


def _without_norm(norm):
    """Return what is left of a batch norm that is folded away: the activation that timm's holds, or nothing."""
    if not hasattr(norm, "act"):
        return nn.Identity()
    return nn.Sequential(OrderedDict(drop=norm.drop, act=norm.act))  # under their own names: a layer may be one
