"""Pairs of images that are equal but for one object: what supports "different" can lie on that object only."""

from itertools import cycle, islice, permutations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.data.sample import CLASSES, as_image, as_mask, draw_object, draw_pose, draw_scene, read_mask

OBJECTS = tuple(name for name in CLASSES if name != "clutter")
KINDS = ("image1", "image2", "masks")


def draw_difference(name1, name2, random):
    """Draw two images of one scene, with an object of either class at the same place, size, rotation and colours.

    Returns:
        uint8 (96, 96, 3) RGB twice, and the mask, uint8 (96, 96): 255 on each pixel that either object touches, 0
        elsewhere. Where the colours are equal by chance, pixels inside the mask are equal too; outside it, all are.
    """
    scene = draw_scene(random)
    pose = draw_pose(random)
    canvas1, covered1 = draw_object(scene, name1, pose)
    canvas2, covered2 = draw_object(scene, name2, pose)
    return as_image(canvas1), as_image(canvas2), as_mask(covered1 | covered2, least=1)


def make_differences(folder, count=128, seed=1):
    """Write pairs to `folder`/{image1,image2,masks}/000.bmp, 001.bmp, ...; all pairs of two classes take turns.

    The seed is not that of the sample, whose first image would have the scene of the first pair.
    """
    folder = Path(folder)
    for kind in KINDS:
        (folder / kind).mkdir()
    random = np.random.RandomState(seed)
    for number, names in enumerate(islice(cycle(permutations(OBJECTS, 2)), count)):
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
