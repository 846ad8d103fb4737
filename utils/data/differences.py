"""Planted differences: pairs of images alike but for the object in one place, with the mask of that place.

After the inpainting game of Williford et al. 2020 ("Explainable Face Recognition", section 4). A true map towards
"different" lies on the mask, and one towards "same" on the rest: nothing else differs, to the bit.
"""

from itertools import cycle, islice, permutations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.data.images import actual_path, list_folder
from utils.data.objects import CLASSES, IMAGE_SIZE, as_image, as_mask, draw_pose, draw_scene, planted, read_mask
from utils.data.reading import DataError
from utils.files import whole_folders

OBJECTS = [name for name in CLASSES if name != "clutter"]
KINDS = ("image1", "image2", "masks")


def draw_difference(name1, name2, random):
    """Two images of one scene, with an object of either class at the same place, size, turn and colours; and the mask.

    Returns uint8 (96, 96, 3) RGB twice, and uint8 (96, 96): 255 on each pixel that either object touches, 0 elsewhere.
    Where their colours happen to agree, pixels inside the mask are the same too; outside it, all are.
    """
    scene = draw_scene(random)
    pose = draw_pose(random)
    canvas1, covered1 = planted(scene, name1, pose)
    canvas2, covered2 = planted(scene, name2, pose)
    return as_image(canvas1), as_image(canvas2), as_mask(covered1 | covered2, least=1)


def make_differences(folder, count=128, seed=1):
    """Write `count` pairs to `folder`_differences/{image1,image2,masks}/000.bmp, 001.bmp, ...

    folder: of the dataset. All ordered pairs of two object classes come in turn. seed: not that of the sample, whose
    first image would else have the scene of the first pair. The same byte for byte on every machine; made under a
    temporary name and moved into place, so an interrupted run leaves nothing.

    Raises ExistsError when the folder exists: nothing is overwritten.
    """
    target = differences_folder(folder)
    random = np.random.RandomState(seed)
    with whole_folders({"pairs": target}, "delete or rename it to make the differences anew") as made:
        for kind in KINDS:
            (made / "pairs" / kind).mkdir()
        for number, names in enumerate(islice(cycle(permutations(OBJECTS, 2)), count)):
            for kind, pixels in zip(KINDS, draw_difference(*names, random), strict=True):
                Image.fromarray(pixels).save(made / "pairs" / kind / f"{number:03}.bmp")
    print(f"Made {count} pairs with a planted difference in {target}")


def differences_folder(folder):
    """The folder of the planted differences: beside `folder`, because each folder inside it is a class."""
    return Path(folder).with_name(Path(folder).name + "_differences")


def load_differences(folder, size=(IMAGE_SIZE, IMAGE_SIZE)) -> tuple[list[tuple[str, str]], torch.Tensor] | None:
    """The pairs of image files with a planted difference beside a dataset, and its masks; None where there are none.

    folder: of the dataset. size: (H, W) of the masks. Returns (N pairs of paths, masks bool (N, H, W), True on the
    difference, which is at the same place in both images).

    Raises DataError where the folder is there and holds no mask.
    """
    root = differences_folder(folder)
    if not root.exists():
        return None
    folder_of_masks = root / "masks"
    names = [entry.name for entry in list_folder(folder_of_masks).images] if folder_of_masks.is_dir() else []
    if not names:
        raise DataError(f"{folder_of_masks} holds no mask: rename or delete {root}.")
    pairs = [(str(actual_path(root / "image1" / name)), str(actual_path(root / "image2" / name))) for name in names]
    masks = [read_mask(folder_of_masks / name, size) for name in names]
    return pairs, torch.from_numpy(np.stack(masks))
