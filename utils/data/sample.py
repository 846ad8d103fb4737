"""The bundled sample: butterflies, drawn when they are first needed, and the masks of their parts."""

from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from ..config import PROJECT
from ..device import progress
from ..files import ExistsError, whole_folders
from .butterflies import SPECIES, draw
from .images import actual_path
from .reading import read_image

SAMPLE_FOLDER = Path("Data/Butterflies")


def ensure_sample(data_path):
    """Make the bundled sample if `data_path` names it, in the current folder or the project, and it does not exist."""
    named = Path(data_path).resolve() in (SAMPLE_FOLDER.resolve(), (PROJECT / SAMPLE_FOLDER).resolve())
    if named and not Path(data_path).exists():
        with suppress(ExistsError):  # another process has made it meanwhile
            make_sample(data_path)


def make_sample(folder=SAMPLE_FOLDER, images_per_class=100, seed=0):
    """Write the sample to `folder`/<class>/<class>_000.bmp and its masks to `folder`_masks/<class>/<class>_000.bmp.

    Both folders are made under a temporary name and moved into place, so an interrupted run leaves neither.

    Raises:
        ExistsError: One of the folders exists; nothing is overwritten.
    """
    folder = Path(folder)
    targets = {"images": folder, "masks": masks_folder(folder)}
    random = np.random.RandomState(seed)  # the only NumPy stream that is the same in all versions
    with whole_folders(targets, "delete or rename it to make the sample again") as made:
        for name in progress(SPECIES, "Drawing the sample"):
            for kind in targets:
                (made / kind / name).mkdir()
            for number in range(images_per_class):
                for kind, pixels in zip(targets, draw(name, random), strict=True):
                    Image.fromarray(pixels).save(made / kind / name / f"{name}_{number:03}.bmp")
    print(f"Made the sample dataset: {len(SPECIES)} classes of {images_per_class} images in {folder}")


def masks_folder(folder):
    """Return the folder of the object masks: beside `folder`, because each folder inside it is a class."""
    return Path(folder).with_name(Path(folder).name + "_masks")


def load_masks(folder, pairs, size) -> torch.Tensor | None:
    """Load the masks of pairs of image files of a dataset.

    Args:
        folder: The dataset. A mask has the class and file name of its image, in the folder beside the dataset whose
            name ends in `_masks`; the mask of an image without an object is all 0.
        pairs: B tuples of two paths.
        size: (H, W) of the masks.

    Returns:
        bool (B, 2, H, W), True on the object; None where a mask is missing.
    """
    masks = []
    for pair in pairs:
        for path in map(Path, pair):
            file = actual_path(masks_folder(folder) / path.parent.name / path.name)
            if not file.exists():
                return None
            masks.append(read_mask(file, size))
    return torch.from_numpy(np.stack(masks)).unflatten(0, (-1, 2))


def read_mask(file, size):
    """Read the mask in a file at a size (H, W): bool, True on the object."""
    return cv2.resize(read_image(file)[..., 0], size[::-1]) > 127
