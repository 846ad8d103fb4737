"""The bundled sample: textured objects planted on cluttered backgrounds, with a mask for each object.

The masks are the ground truth that photographs lack: a believable heatmap lies on the object. Everything is computed
in integers and written as BMP, so that the files are the same byte for byte on every machine.

Notebook 01 makes it when config.yml names it; `python -m utils.data --sample FOLDER` makes it by hand.
"""

import math
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from utils.data.images import read_image

SAMPLE_FOLDER = Path("Data/Shapes")
IMAGE_SIZE = 96  # pixels, height and width
CANVAS = 2 * IMAGE_SIZE  # drawn twice as large, then averaged 2x2, so that edges are smooth
UNIT = 64  # object coordinates u, v run from -UNIT to UNIT


def _rings(u, v):
    return sum(u * u + v * v >= (13 * k) ** 2 for k in range(1, 6)) % 2


def _dots(u, v):
    return (u % 32 - 16) ** 2 + (v % 32 - 16) ** 2 <= 11 * 11


def _nowhere(u, v):
    return np.zeros(u.shape, bool)


# class name -> (inside(u, v), pattern(u, v)); a class is known by its shape and its pattern together. `clutter` has no
# object: else one class would be learnt as "none of the others", and its evidence would lie nowhere
CLASSES = {
    "banded_cross": (
        lambda u, v: (np.minimum(abs(u), abs(v)) <= 21) & (np.maximum(abs(u), abs(v)) <= 62),
        lambda u, v: (np.maximum(abs(u), abs(v)) // 10) % 2,
    ),
    "checked_square": (lambda u, v: np.maximum(abs(u), abs(v)) <= 54, lambda u, v: (u // 18 + v // 18) % 2),
    "clutter": (_nowhere, lambda u, v: 0 * u),
    "dotted_diamond": (lambda u, v: 3 * abs(u) + 2 * abs(v) <= 128, _dots),
    "pinwheel_hexagon": (
        lambda u, v: np.maximum(256 * abs(u), 128 * abs(u) + 222 * abs(v)) <= 256 * 58,
        lambda u, v: (u < 0) ^ (v < 0) ^ (abs(u) < abs(v)),
    ),
    "ringed_disk": (lambda u, v: u * u + v * v <= 58 * 58, _rings),
    "striped_triangle": (lambda u, v: (v <= 38) & (16 * abs(u) <= 10 * (v + 62)), lambda u, v: (u // 12) % 2),
}


def draw(name, random):
    """One image of class `name` and the mask of its object.

    Returns (image uint8 (96, 96, 3) RGB, mask uint8 (96, 96), 255 on the object and 0 elsewhere; `clutter` has none).
    """
    canvas = _background(random)
    for _ in range(5):  # distractors, the same kinds for every class: they must not tell the classes apart
        radius = random.randint(8, 19)
        spot = random.randint(0, CANVAS, 2)
        u, v = _object_coordinates(spot, radius, random.randint(0, 360))
        inside = (u * u + v * v <= UNIT * UNIT) if random.randint(0, 2) else (abs(u) <= UNIT) & (abs(v) <= UNIT // 3)
        canvas[inside] = random.randint(0, 256, 3)

    radius = random.randint(24, 37)
    u, v = _object_coordinates(random.randint(radius, CANVAS - radius, 2), radius, random.randint(0, 360))
    inside, pattern = CLASSES[name]
    mask = inside(u, v)
    dark = random.randint(0, 100, 3)
    light = random.randint(156, 256, 3)
    colours = np.stack([dark, light] if random.randint(0, 2) else [light, dark])
    canvas[mask] = colours[pattern(u, v)[mask].astype(int)]
    return _halve(canvas).astype(np.uint8), np.where(_halve(mask * 4) >= 2, 255, 0).astype(np.uint8)


def make_sample(folder=SAMPLE_FOLDER, images_per_class=120, seed=0):
    """Write the dataset to `folder`/<class>/<class>_000.bmp and its masks to `folder`_masks/<class>/<class>_000.bmp.

    Both folders are made under a temporary name and moved into place, so an interrupted run leaves neither.

    Raises FileExistsError when `folder` or its masks exist: nothing is overwritten.
    """
    folder = Path(folder)
    targets = {"images": folder, "masks": masks_folder(folder)}
    for target in targets.values():
        if target.exists():
            raise FileExistsError(f"{target} exists: delete or rename it to make the sample anew.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(seed)  # the one NumPy stream that is frozen across versions
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".sample_") as temporary:
        for name in CLASSES:
            for kind in targets:
                Path(temporary, kind, name).mkdir(parents=True)
            for number in range(images_per_class):
                for kind, pixels in zip(targets, draw(name, random), strict=True):
                    Image.fromarray(pixels).save(Path(temporary, kind, name, f"{name}_{number:03}.bmp"))
        for kind, target in targets.items():
            shutil.move(Path(temporary, kind), target)
    print(f"Made the sample dataset: {len(CLASSES)} classes of {images_per_class} images in {folder}")


def ensure_sample(data_path):
    """Make the bundled sample if `data_path` names it and it is absent; any other path is left to its owner."""
    if Path(data_path).resolve() == SAMPLE_FOLDER.resolve() and not Path(data_path).exists():
        make_sample(data_path)


def masks_folder(folder):
    """The folder of the object masks: beside `folder`, because each folder inside it is a class."""
    return Path(folder).with_name(Path(folder).name + "_masks")


def load_masks(folder, pairs, size) -> torch.Tensor | None:
    """The masks of pairs of image files of a dataset: bool (B, 2, H, W), True on the object; None where there are none.

    folder: of the dataset. A mask has the class and the file name of its image, in the folder beside the dataset that
    ends in `_masks`; images without an object have an empty one. size: (H, W).
    """
    files = [masks_folder(folder) / Path(path).parent.name / Path(path).name for pair in pairs for path in pair]
    if not all(file.exists() for file in files):
        return None
    masks = [cv2.resize(read_image(file)[..., 0], size[::-1]) > 127 for file in files]
    return torch.from_numpy(np.stack(masks)).unflatten(0, (-1, 2))


def _background(random):
    """Colour noise at four scales, int64 (192, 192, 3) in [0, 255]."""
    total = np.zeros((CANVAS, CANVAS, 3), np.int64)
    for cells in (32, 16, 8, 4):
        grey = random.randint(0, 256, (cells, cells, 1))
        colour = random.randint(0, 256, (cells, cells, 3))
        noise = ((2 * grey + colour) // 3).astype(np.uint8)  # muted, so that a heatmap stands out
        total += cv2.resize(noise, (CANVAS, CANVAS), interpolation=cv2.INTER_LINEAR_EXACT)  # bit-exact everywhere
    return np.clip((total // 4 - 128) * 3 // 2 + 128, 0, 255)  # averaging scales flattens contrast


def _object_coordinates(centre, radius, degrees):
    """Integer coordinates u, v (192, 192) of each pixel in the frame of an object: turned, its radius UNIT long."""
    cosine = round(math.cos(math.radians(degrees)) * 4096)
    sine = round(math.sin(math.radians(degrees)) * 4096)
    y, x = np.mgrid[:CANVAS, :CANVAS] - np.asarray(centre)[:, None, None]
    u = x * cosine + y * sine
    v = y * cosine - x * sine
    return u * UNIT // (radius * 4096), v * UNIT // (radius * 4096)


def _halve(canvas):
    """Average blocks of 2x2 pixels, rounding down."""
    return (canvas[::2, ::2] + canvas[1::2, ::2] + canvas[::2, 1::2] + canvas[1::2, 1::2]) // 4
