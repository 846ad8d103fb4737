"""Planted ground truth: does a heatmap lie on the object that alone tells the class?"""

from pathlib import Path

import cv2
import torch

from utils.explanation import Explanation
from utils.images import read_image
from utils.sample_data import masks_folder


def load_masks(data_path, paths, size) -> torch.Tensor | None:
    """The masks of image files under `data_path`: bool (B, H, W), True on the object; None where there are none.

    A mask has the class and the file name of its image, in the folder beside `data_path` that ends in `_masks`; images
    without an object have an empty one. size: (H, W).
    """
    masks = [masks_folder(data_path) / Path(path).parent.name / Path(path).name for path in paths]
    if not all(mask.exists() for mask in masks):
        return None
    grey = [read_image(mask)[..., 0] for mask in masks]
    return torch.stack([torch.from_numpy(cv2.resize(mask, size[::-1]) > 127) for mask in grey])


def pointing(explanation: Explanation, masks1, masks2) -> tuple[torch.Tensor, torch.Tensor]:
    """Pointing game (Zhang et al. 2018, section 4.2) and energy (Wang et al. 2020, section 4.2) of the factual maps.

    masks1, masks2: bool (B, H, W). Returns (hits, energies), float32 (B, 2) for image 1 and image 2: whether the peak
    lies on the object, and the share of the map that does; NaN for an image without an object, 0 for a blank map.
    """
    maps, masks = explanation.factual.flatten(2), torch.stack([masks1, masks2], dim=1).to(explanation.distance.device)
    masks = masks.flatten(2)  # (B, 2, HW)
    nothing = torch.where(masks.any(dim=2), 0.0, float("nan"))
    total = maps.sum(dim=2)
    hits = masks.gather(2, maps.argmax(dim=2, keepdim=True)).squeeze(2) & (total > 0)
    return hits + nothing, (maps * masks).sum(dim=2) / torch.where(total > 0, total, 1) + nothing
