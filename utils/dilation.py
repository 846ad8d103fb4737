"""A finer last feature map from the same weights: strides turned into dilation."""

import copy

from torch import nn

from utils.config import ConfigError
from utils.siamese import SiameseNetwork


def dilated(network: SiameseNetwork, output_stride: int) -> SiameseNetwork:
    """A copy whose last feature map has a cell for every `output_stride` pixels (16 or 8; 32 as trained).

    The late strides are taken out and the kernels behind them spread (the à trous algorithm; Chen et al. 2018, section
    3.1): every second cell is what it was, the cells between are new. Embeddings change a little: the mean is over more
    cells. Raises ConfigError for a backbone whose strides are in kernels of even size (ConvNeXt).
    """
    network, reached, rate = copy.deepcopy(network), 1, 1
    for block in _blocks(network.backbone):
        convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
        stride = max([1, *(module.stride[0] for module in convolutions)])
        pooled = max([1, *(module.stride for module in block.modules() if isinstance(module, nn.MaxPool2d))])
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
                convolution.stride, spread = (1, 1), rate * stride
        rate *= stride
    return network


def _blocks(backbone):
    """The residual blocks and single layers of all stages, in order."""
    for stage in backbone:
        children = list(stage.children())
        yield from [stage] if isinstance(children[0], nn.Conv2d) or not isinstance(stage, nn.Sequential) else children
