"""Images without their content: what pixels show when they are hidden."""

import torch
from kornia.filters import gaussian_blur2d


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Images (B, ..., C, H, W) after a Gaussian blur with a twelfth of each side as sigma, cut off at two sigma.

    Unlike a grey patch it brings no edge of its own, and it looks like no class.
    """
    height, width = images.shape[-2:]
    sigma = height / 12, width / 12
    kernel = tuple(2 * int(2 * side) + 1 for side in sigma)
    return gaussian_blur2d(images.flatten(0, -4), kernel, sigma).reshape(images.shape)


def mean_colour(images: torch.Tensor) -> torch.Tensor:
    """Each image (B, ..., C, H, W) as its mean colour: hides pixels otherwise than the methods that blur do."""
    return images.mean(dim=(-2, -1), keepdim=True).expand_as(images)
