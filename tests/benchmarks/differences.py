"""Pairs of images that are equal but for the pattern of a butterfly: what supports "different" can lie there only."""

from itertools import cycle, islice, permutations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.data.butterflies import DARK, SPECIES, draw
from utils.data.sample import read_mask

KINDS = ("image1", "image2", "masks")


def draw_difference(name1, name2, random):
    """Draw one scene twice, with a butterfly of either species at the same place, size, rotation and colours.

    Returns:
        uint8 (128, 128, 3) RGB twice, and the mask, uint8 (128, 128): 255 on the pattern of
        either, 0 elsewhere, where all pixels are equal.
    """
    state = random.get_state()
    image1, parts1 = draw(name1, random)
    random.set_state(state)
    image2, parts2 = draw(name2, random)
    pattern = np.maximum(parts1, parts2) >= DARK
    return image1, image2, pattern * np.uint8(255)


def make_differences(folder, count=128, seed=1):
    """Write pairs to `folder`/{image1,image2,masks}/000.bmp, 001.bmp, ...; all pairs of two classes take turns.

    The seed is not that of the sample, whose first image would have the scene of the first pair.
    """
    folder = Path(folder)
    for kind in KINDS:
        (folder / kind).mkdir()
    random = np.random.RandomState(seed)
    for number, names in enumerate(islice(cycle(permutations(SPECIES, 2)), count)):
        for kind, pixels in zip(KINDS, draw_difference(*names, random), strict=True):
            Image.fromarray(pixels).save(folder / kind / f"{number:03}.bmp")


def load_differences(folder, size) -> tuple[list[tuple[str, str]], torch.Tensor]:
    """Load pairs of files with masks.

    Args:
        folder: Of `make_differences`.
        size: (H, W) of the masks.

    Returns:
        The pairs, and bool (N, H, W), True on the difference, which is at the same place in both images.
    """
    folder = Path(folder)
    pairs = []
    masks = []
    for file in sorted((folder / "masks").iterdir()):
        pairs.append((str(folder / "image1" / file.name), str(folder / "image2" / file.name)))
        masks.append(read_mask(file, size))
    return pairs, torch.from_numpy(np.stack(masks))
