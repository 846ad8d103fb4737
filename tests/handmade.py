"""Networks whose evidence is known pixel by pixel."""

import torch
from torch import nn


class Chequered(nn.Module):
    """The embedding is (cos a, sin a), where the angle a adds up all pixels of a channel, weighted by a chequerboard.

    Blurring wipes a chequerboard out, so each pixel of a pattern carries its own value of the angle, and nothing else
    in the image carries any.
    """

    def forward(self, images):
        angles = (images[:, 0] * board(*images.shape[2:])).sum(dim=(1, 2))
        return torch.stack([angles.cos(), angles.sin()], dim=1)


class Coloured(nn.Module):
    """The embedding is (cos a, sin a), where the angle a is pi / 2 times the share of green less that of red pixels."""

    def forward(self, images):
        balance = (images[:, 1] - images[:, 0]).sum(dim=(1, 2)) / 36
        angles = balance.clamp(-1, 1) * torch.pi / 2
        return torch.stack([angles.cos(), angles.sin()], dim=1)


def board(height, width):
    """1 and -1 in turn."""
    return (-1.0) ** (torch.arange(height)[:, None] + torch.arange(width))


def patterned(size, corner, angle, side=6):
    """An image (1, 3, *size) with a chequered square that turns the angle by `angle`, and where it is: bool (*size)."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = True
    image = torch.zeros(1, 3, *size)
    image[0, 0] = mask * board(*size) * angle / side**2
    return image, mask
