"""Pixels to tensors, whole batches at once: augmentation for training, normalisation, and its inverse for figures."""

import torch
from kornia import augmentation as K
from torch import nn

from ..config import ImageSettings, Normalization
from ..vision import functional as V


def training_transform(settings: ImageSettings) -> nn.Module:
    """Augment as `image` in config.yml says, each image differently: uint8 (B, H, W, 3) to float32 (B, 3, h, w).

    Random numbers come from torch's CPU generator, whatever the device of the pixels.
    """
    crop = settings.RandomCropScale
    colours = settings.brightness, settings.contrast, settings.saturation, settings.hue
    steps = [_Floats(settings.Channels)]
    if crop < 1:
        steps.append(K.RandomResizedCrop(settings.size, (crop, 1.0), p=1.0, cropping_mode="resample"))
    if settings.HorizontalFlip:
        steps.append(K.RandomHorizontalFlip(settings.HorizontalFlip))
    if settings.VerticalFlip:
        steps.append(K.RandomVerticalFlip(settings.VerticalFlip))
    if any(colours):
        steps.append(K.ColorJitter(*colours, p=1.0))
    steps.append(K.Normalize(settings.normalization.mean, settings.normalization.std))
    if settings.RandomRotationDegrees:  # after the normalisation: corners turned in are 0, the average colour
        steps.append(K.RandomRotation(float(settings.RandomRotationDegrees), p=1.0))
    return nn.Sequential(*steps)


def evaluation_transform(settings: ImageSettings) -> nn.Module:
    """Resize to `image.size` and normalise, nothing random: uint8 (B, H, W, 3) to float32 (B, 3, h, w)."""
    normalize = K.Normalize(settings.normalization.mean, settings.normalization.std)
    return nn.Sequential(_Floats(settings.Channels, settings.size), normalize)


def to_pixels(images: torch.Tensor, normalization: Normalization) -> torch.Tensor:
    """Undo the normalisation, for figures: float (..., 3, h, w) to uint8 (..., h, w, 3)."""
    mean = torch.tensor(normalization.mean, device=images.device)[:, None, None]
    std = torch.tensor(normalization.std, device=images.device)[:, None, None]
    values = (images * std + mean).clamp(0, 1)
    return (values * 255).round().to(torch.uint8).movedim(-3, -1)


class _Floats(nn.Module):
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [0, 1]; resized to `size`, and grey for one channel."""

    def __init__(self, channels, size=None):
        super().__init__()
        self.channels = channels
        self.size = size

    def forward(self, pixels):
        images = pixels.movedim(-1, 1)
        if self.size and images.shape[2:] != self.size:
            images = V.resize(images, self.size, antialias=True)
        images = V.to_dtype(images, torch.float32, scale=True)
        if self.channels == 1:
            images = V.rgb_to_grayscale(images, num_output_channels=3)
        return images
