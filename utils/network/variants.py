"""Variants of a Siamese network: folded for speed, dilated for a finer map, randomised as a control."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..config import ConfigError
from ..vision import timm
from .distance import copy_of
from .hooks import example_of, watched
from .siamese import SiameseNetwork

PLAIN = (nn.Conv2d, timm.layers.Conv2dSame)  # convolutions that compute with their weights as they are
POOLING = (nn.AvgPool2d, nn.MaxPool2d)
EXACT = 1e-3  # of the values of an embedding of length 1, by which a folded network may differ


def folded(network: SiameseNetwork, dtype: torch.dtype) -> SiameseNetwork:
    """A copy for evaluation alone, faster and the same up to rounding: each batch norm is folded into the convolution
    whose output it takes, and the weights of the backbone are kept in `dtype`. The activation that some batch norms of
    timm's hold stays.
    """
    network = copy_of(network).eval()
    images = example_of(network.image_size).to(next(network.parameters()))
    with torch.no_grad():
        before = network(images)
        pairs = _norms_behind_convolutions(network.backbone, images)
        plain = copy_of(network) if pairs else network
        for convolution, norm in pairs:
            fused = fuse_conv_bn_eval(network.backbone.get_submodule(convolution), network.backbone.get_submodule(norm))
            network.backbone.set_submodule(convolution, fused)
            network.backbone.set_submodule(norm, _without_norm(network.backbone.get_submodule(norm)))
        if pairs and (network(images) - before).abs().max() > EXACT:
            network = plain  # something else takes the output of a convolution too
    network.backbone.to(dtype)
    return network


def dilated(network: SiameseNetwork, output_stride: int) -> SiameseNetwork:
    """The network with a cell of the last feature map for every `output_stride` pixels: 16 or 8; 32 as trained.

    The late strides are taken out and the kernels behind them spread (the à trous algorithm; Chen et al. 2018, section
    3.1), as timm does: every second cell is what it was, the cells between are new. Embeddings change a little: the
    mean is over more cells. The weights are those of `network` itself, shared, not copied.

    Raises ConfigError for a network that is no SiameseNetwork, and for a backbone that timm does not dilate.
    """
    if not isinstance(network, SiameseNetwork):
        kind = type(network).__name__
        raise ConfigError(f"explanation.output_stride: {output_stride} needs a SiameseNetwork, not {kind}: keep 32")
    name = network.backbone_model
    refused = f"explanation.output_stride: {output_stride} is refused for {name}, which timm does not dilate: keep 32"
    try:
        with torch.device("meta"):  # a plan alone: no weights are drawn
            plan = timm.create_model(name, num_classes=0, output_stride=output_stride)
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
            raise ConfigError(refused)  # a blur that strides, for one
    return network


def randomised(network: SiameseNetwork, seed=0):
    """Yields (stage, network) with the weights shuffled from the top down to that stage: embedding, layer4, ..., stem.

    The cascading randomisation of Adebayo et al. 2018, section 3.1; each tensor keeps its values, but not their places.
    The network yielded is one copy, shuffled further at each turn.
    """
    network = copy_of(network)
    generator = torch.Generator().manual_seed(seed)
    stages = reversed(list(network.stages().items()))
    for name, modules in [("embedding", [network.embedding]), *stages]:
        parameters = [parameter for module in modules for parameter in module.parameters(recurse=False)]
        for parameter in parameters:
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.data = parameter.data.flatten()[order].view_as(parameter)
        if parameters:
            yield name, network


def fully_random(network: SiameseNetwork, seed=0) -> SiameseNetwork:
    """A copy with all weights shuffled."""
    for _, shuffled in randomised(network, seed):
        last = shuffled
    return last


def _norms_behind_convolutions(backbone, images) -> list[tuple[str, str]]:
    """Paths of each plain convolution that runs once, and of the batch norm that takes its output."""
    makers = {}  # what each convolution gave
    pairs = {}
    runs = {}

    def see(path, module, inputs, output):
        runs[path] = runs.get(path, 0) + 1
        if type(module) in PLAIN:
            makers[path] = output
        elif isinstance(module, _BatchNorm):
            pairs.update({maker: path for maker, made in makers.items() if made is inputs[0]})

    with watched(backbone, see):
        backbone.forward_features(images)
    return [(maker, norm) for maker, norm in pairs.items() if runs[maker] == runs[norm] == 1]


def _without_norm(norm):
    """What is left of a batch norm that is folded away: the activation that timm's holds, or nothing."""
    if not hasattr(norm, "act"):
        return nn.Identity()
    return nn.Sequential(OrderedDict(drop=norm.drop, act=norm.act))  # under their own names: a layer may be one
