"""The bundled sample: textured objects planted on cluttered backgrounds, with a mask for each object.

The masks are the ground truth that photographs lack: heatmaps ought to lie on the object. Everything is computed in
integers and written as BMP, so that the files are the same byte for byte on every machine.

Notebook 01 makes it when config.yml names it; `python -m utils.data --sample FOLDER` makes it by hand.
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.config import PROJECT
from utils.data.differences import differences_folder, make_differences
from utils.data.images import actual_path
from utils.data.objects import CLASSES, as_image, as_mask, draw_pose, draw_scene, planted, read_mask
from utils.files import ExistsError, whole_folders

SAMPLE_FOLDER = Path("Data/Shapes")


def draw(name, random):
    """One image of class `name` and the mask of its object.

    Returns (image uint8 (96, 96, 3) RGB, mask uint8 (96, 96), 255 on the object and 0 elsewhere; `clutter` has none).
    """
    scene = draw_scene(random)
    canvas, covered = planted(scene, name, draw_pose(random))
    return as_image(canvas), as_mask(covered)


def make_sample(folder=SAMPLE_FOLDER, images_per_class=120, seed=0):
    """Write the dataset to `folder`/<class>/<class>_000.bmp and its masks to `folder`_masks/<class>/<class>_000.bmp.

    Both folders are made under a temporary name and moved into place, so an interrupted run leaves neither.

    Raises ExistsError when `folder` or its masks exist: nothing is overwritten.
    """
    folder = Path(folder)
    targets = {"images": folder, "masks": masks_folder(folder)}
    random = np.random.RandomState(seed)  # the one NumPy stream that is frozen across versions
    with whole_folders(targets, "delete or rename it to make the sample anew") as made:
        for name in CLASSES:
            for kind in targets:
                (made / kind / name).mkdir()
            for number in range(images_per_class):
                for kind, pixels in zip(targets, draw(name, random), strict=True):
                    Image.fromarray(pixels).save(made / kind / name / f"{name}_{number:03}.bmp")
    print(f"Made the sample dataset: {len(CLASSES)} classes of {images_per_class} images in {folder}")


def ensure_sample(data_path):
    """Make the bundled sample, and the planted differences beside it, if `data_path` names it and they are absent.

    What is there, or another process makes meanwhile, stays as it is; any other path is left to its owner. The sample
    is that of the current folder or of the project, wherever the program was started.
    """
    if Path(data_path).resolve() not in (SAMPLE_FOLDER.resolve(), (PROJECT / SAMPLE_FOLDER).resolve()):
        return
    with suppress(ExistsError):
        if not Path(data_path).exists():
            make_sample(data_path)
    with suppress(ExistsError):
        if not differences_folder(data_path).exists():
            make_differences(data_path)


def masks_folder(folder):
    """The folder of the object masks: beside `folder`, because each folder inside it is a class."""
    return Path(folder).with_name(Path(folder).name + "_masks")


def load_masks(folder, pairs, size) -> torch.Tensor | None:
    """The masks of pairs of image files of a dataset: bool (B, 2, H, W), True on the object; None where there are none.

    folder: of the dataset. A mask has the class and the file name of its image, in the folder beside the dataset that
    ends in `_masks`; images without an object have an empty one. size: (H, W).
    """
    root = masks_folder(folder)
    files = [actual_path(root / Path(path).parent.name / Path(path).name) for pair in pairs for path in pair]
    if not all(file.exists() for file in files):
        return None
    masks = [read_mask(file, size) for file in files]
    return torch.from_numpy(np.stack(masks)).unflatten(0, (-1, 2))
