"""Pixels to tensors: resizing, augmentation for training, normalisation, and its inverse for plots."""

import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from utils.config import ImageSettings
from utils.images import read_image


def training_transform(settings: ImageSettings) -> v2.Compose:
    """uint8 (H, W, 3) to float32 (3, h, w): resized, augmented as `image` in config.yml says, normalised."""
    average_colour = [255 * mean for mean in settings.normalization.mean]  # turned-in corners become zero, not black
    crop = v2.RandomResizedCrop(settings.size, scale=(settings.RandomCropScale, 1.0), antialias=True)
    return _compose(
        settings,
        crop if settings.RandomCropScale < 1 else v2.Resize(settings.size, antialias=True),
        v2.RandomHorizontalFlip(settings.HorizontalFlip),
        v2.RandomVerticalFlip(settings.VerticalFlip),
        v2.RandomRotation(settings.RandomRotationDegrees, v2.InterpolationMode.BILINEAR, fill=average_colour),
        v2.ColorJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue),
    )


def evaluation_transform(settings: ImageSettings) -> v2.Compose:
    """uint8 (H, W, 3) to float32 (3, h, w): resized and normalised, nothing random."""
    return _compose(settings, v2.Resize(settings.size, antialias=True))


def to_pixels(images: torch.Tensor, settings: ImageSettings) -> torch.Tensor:
    """Undo the normalisation, for plots: float (..., 3, h, w) to uint8 (..., h, w, 3)."""
    mean, std = settings.normalization.mean, settings.normalization.std
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
    return ((images * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1)


class ImageDataset(Dataset):
    """Files through a transform: item i is the tensor of paths[i], float32 (3, h, w)."""

    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(read_image(self.paths[index]))


def _compose(settings, resize, *augmentations):
    return v2.Compose(
        [
            v2.ToImage(),
            resize,
            *([v2.Grayscale(num_output_channels=3)] if settings.Channels == 1 else []),
            *augmentations,
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(settings.normalization.mean, settings.normalization.std),
            v2.ToPureTensor(),
        ]
    )
