"""Variants of a Siamese network: folded for speed, dilated for a finer map, randomised as a control."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from utils.config import ConfigError
from utils.network.siamese import SiameseNetwork


def folded(network: SiameseNetwork, dtype: torch.dtype) -> SiameseNetwork:
    """A copy for evaluation alone, faster and the same up to rounding: each batch norm is folded into the convolution
    before it, and the weights of the backbone are kept in `dtype`.
    """
    network = copy.deepcopy(network).eval()
    for module in list(network.backbone.modules()):
        children = list(module.named_children())
        for (name, child), (after, norm) in pairwise(children):
            if isinstance(child, nn.Conv2d) and isinstance(norm, nn.modules.batchnorm._BatchNorm):
                setattr(module, name, fuse_conv_bn_eval(child, norm))
                setattr(module, after, nn.Identity())
    network.backbone.to(dtype)
    return network


def dilated(network: SiameseNetwork, output_stride: int) -> SiameseNetwork:
    """The network with a cell of the last feature map for every `output_stride` pixels: 16 or 8; 32 as trained.

    The late strides are taken out and the kernels behind them spread (the à trous algorithm; Chen et al. 2018, section
    3.1): every second cell is what it was, the cells between are new. Embeddings change a little: the mean is over more
    cells. The weights are those of `network` itself, shared, not copied.

    Raises ConfigError for a network that is no SiameseNetwork, and for a backbone whose strides are in kernels of even
    size (ConvNeXt).
    """
    if not isinstance(network, SiameseNetwork):
        kind = type(network).__name__
        raise ConfigError(f"explanation.output_stride: {output_stride} needs a SiameseNetwork, not {kind}: keep 32")
    weights = [*network.parameters(), *network.buffers()]
    network = copy.deepcopy(network, {id(weight): weight for weight in weights})
    reached = 1  # pixels a cell, so far
    rate = 1  # by which kernels are spread, so far
    for block in _blocks(network.backbone):
        convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
        pools = [module for module in block.modules() if isinstance(module, nn.MaxPool2d)]
        stride = max([1, *(convolution.stride[0] for convolution in convolutions)])
        pooled = max([1, *(pool.stride for pool in pools)])
        if rate == 1 and reached * stride * pooled <= output_stride:
            reached *= stride * pooled
            continue
        spread = rate  # of this kernel: those after the stride of their block are spread further
        for convolution in convolutions:
            if convolution.kernel_size[0] % 2 == 0:
                raise ConfigError(f"explanation.output_stride: {output_stride} is refused for this backbone: keep 32")
            convolution.dilation = (convolution.dilation[0] * spread,) * 2
            convolution.padding = (convolution.padding[0] * spread,) * 2
            if convolution.stride[0] > 1:
                convolution.stride = (1, 1)
                spread = rate * stride
        rate *= stride
    return network


def randomised(network: SiameseNetwork, seed=0):
    """Yields (stage, network) with the weights shuffled from the top down to that stage: embedding, layer4, ..., stem.

    The cascading randomisation of Adebayo et al. 2018, section 3.1; each tensor keeps its values, but not their places.
    The network yielded is one copy, shuffled further at each turn.
    """
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    stages = reversed(list(network.backbone.named_children()))
    for name, part in [("embedding", network.embedding), *stages]:
        for parameter in part.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.data = parameter.data.flatten()[order].view_as(parameter)
        yield name, network


def fully_random(network: SiameseNetwork, seed=0) -> SiameseNetwork:
    """A copy with all weights shuffled."""
    for _, shuffled in randomised(network, seed):
        last = shuffled
    return last


def _blocks(backbone):
    """The residual blocks and single layers of all stages, in order."""
    for stage in backbone:
        children = list(stage.children())
        if not isinstance(stage, nn.Sequential) or isinstance(children[0], nn.Conv2d):
            yield stage
        else:
            yield from children
