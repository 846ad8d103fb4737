"""The bundled sample: textured objects in front of clutter, drawn in integers, so equal on every machine."""

import math
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from ..config import PROJECT
from ..files import ExistsError, whole_folders
from .images import actual_path
from .reading import read_image

SAMPLE_FOLDER = Path("Data/Shapes")
IMAGE_SIZE = 96  # pixels, height and width
CANVAS = 2 * IMAGE_SIZE  # drawn twice as large, then averaged 2x2, so that edges are smooth
UNIT = 64  # object coordinates u, v run from -UNIT to UNIT


def _banded_cross(u, v):
    nearer = np.minimum(abs(u), abs(v))
    farther = np.maximum(abs(u), abs(v))
    return (nearer <= 21) & (farther <= 62), farther // 10 % 2


def _checked_square(u, v):
    return np.maximum(abs(u), abs(v)) <= 54, (u // 18 + v // 18) % 2


def _clutter(u, v):
    return np.zeros(u.shape, bool), 0 * u


def _dotted_diamond(u, v):
    return 3 * abs(u) + 2 * abs(v) <= 128, (u % 32 - 16) ** 2 + (v % 32 - 16) ** 2 <= 11 * 11


def _pinwheel_hexagon(u, v):
    inside = np.maximum(256 * abs(u), 128 * abs(u) + 222 * abs(v)) <= 256 * 58
    return inside, (u < 0) ^ (v < 0) ^ (abs(u) < abs(v))


def _ringed_disk(u, v):
    squared = u * u + v * v
    radii = 13 * np.arange(1, 6)
    return squared <= 58 * 58, np.searchsorted(radii**2, squared, side="right") % 2


def _striped_triangle(u, v):
    return (v <= 38) & (16 * abs(u) <= 10 * (v + 62)), u // 12 % 2


# class -> function of object coordinates (u, v) that returns the shape, bool, and its pattern, 0 or 1. A class is known
# by both together. Without `clutter`, one class would be learned as "none of the others", with no evidence in the image
CLASSES = {
    "banded_cross": _banded_cross,
    "checked_square": _checked_square,
    "clutter": _clutter,
    "dotted_diamond": _dotted_diamond,
    "pinwheel_hexagon": _pinwheel_hexagon,
    "ringed_disk": _ringed_disk,
    "striped_triangle": _striped_triangle,
}


def ensure_sample(data_path):
    """Make the bundled sample if `data_path` names it, in the current folder or the project, and it does not exist."""
    if Path(data_path).resolve() not in (SAMPLE_FOLDER.resolve(), (PROJECT / SAMPLE_FOLDER).resolve()):
        return
    if not Path(data_path).exists():
        with suppress(ExistsError):  # another process has made it meanwhile
            make_sample(data_path)


def make_sample(folder=SAMPLE_FOLDER, images_per_class=120, seed=0):
    """Write the sample to `folder`/<class>/<class>_000.bmp and its masks to `folder`_masks/<class>/<class>_000.bmp.

    Both folders are made under a temporary name and moved into place, so an interrupted run leaves neither.

    Raises:
        ExistsError: One of the folders exists; nothing is overwritten.
    """
    folder = Path(folder)
    targets = {"images": folder, "masks": masks_folder(folder)}
    random = np.random.RandomState(seed)  # the only NumPy stream that is the same in all versions
    with whole_folders(targets, "delete or rename it to make the sample again") as made:
        for name in CLASSES:
            for kind in targets:
                (made / kind / name).mkdir()
            for number in range(images_per_class):
                for kind, pixels in zip(targets, draw(name, random), strict=True):
                    Image.fromarray(pixels).save(made / kind / name / f"{name}_{number:03}.bmp")
    print(f"Made the sample dataset: {len(CLASSES)} classes of {images_per_class} images in {folder}")


def draw(name, random):
    """Draw one image of class `name`.

    Returns:
        The image, uint8 (96, 96, 3) RGB, and the mask, uint8 (96, 96), 255 on its object and 0 elsewhere.
    """
    scene = draw_scene(random)
    canvas, covered = draw_object(scene, name, draw_pose(random))
    return as_image(canvas), as_mask(covered)


def draw_scene(random):
    """Draw a canvas without an object, int64 (192, 192, 3) in [0, 255]: colour noise and distractors."""
    canvas = _background(random)
    for _ in range(5):  # the same kinds for every class: they must not distinguish the classes
        radius = random.randint(8, 19)
        spot = random.randint(0, CANVAS, 2)
        u, v = _object_coordinates(spot, radius, random.randint(0, 360))
        inside = u * u + v * v <= UNIT * UNIT
        if not random.randint(0, 2):
            inside = (abs(u) <= UNIT) & (abs(v) <= UNIT // 3)
        canvas[inside] = random.randint(0, 256, 3)
    return canvas


def draw_pose(random):
    """Draw where an object lies, and its colours: u, v, int64 (192, 192) each, and colours, int64 (2, 3)."""
    radius = random.randint(24, 37)
    u, v = _object_coordinates(random.randint(radius, CANVAS - radius, 2), radius, random.randint(0, 360))
    dark = random.randint(0, 100, 3)
    light = random.randint(156, 256, 3)
    colours = np.stack([light, dark])
    if random.randint(0, 2):
        colours = colours[::-1]
    return u, v, colours


def draw_object(scene, name, pose):
    """Return a copy of a scene with an object of class `name` in a pose, and where it is: bool (192, 192)."""
    u, v, colours = pose
    covered, pattern = CLASSES[name](u, v)
    canvas = scene.copy()
    canvas[covered] = colours[pattern[covered].astype(int)]
    return canvas, covered


def as_image(canvas):
    """Return a canvas at half its size: uint8 (96, 96, 3)."""
    return _halve(canvas).astype(np.uint8)


def as_mask(covered, least=2):
    """Return uint8 (96, 96): 255 where at least `least` of four pixels of bool (192, 192) are covered, else 0."""
    return np.where(_halve(covered * 4) >= least, 255, 0).astype(np.uint8)


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


def _background(random):
    """Colour noise at four scales, int64 (192, 192, 3) in [0, 255]."""
    total = np.zeros((CANVAS, CANVAS, 3), np.int64)
    for cells in (32, 16, 8, 4):
        grey = random.randint(0, 256, (cells, cells, 1))
        colour = random.randint(0, 256, (cells, cells, 3))
        noise = ((2 * grey + colour) // 3).astype(np.uint8)  # muted, so that a heatmap is visible on it
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
