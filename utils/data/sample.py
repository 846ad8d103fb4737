"""Textured objects and the clutter behind them, drawn in integers: the same pixels on every machine."""

import math
from contextlib import suppress
from itertools import cycle, islice, permutations
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from ..config import PROJECT
from ..files import ExistsError, whole_folders
from .images import actual_path, list_folder
from .reading import DataError, read_image

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


def draw_scene(random):
    """A canvas without an object, int64 (192, 192, 3) in [0, 255]: colour noise and distractors."""
    canvas = _background(random)
    for _ in range(5):  # the same kinds for every class: they must not tell the classes apart
        radius = random.randint(8, 19)
        spot = random.randint(0, CANVAS, 2)
        u, v = _object_coordinates(spot, radius, random.randint(0, 360))
        inside = (u * u + v * v <= UNIT * UNIT) if random.randint(0, 2) else (abs(u) <= UNIT) & (abs(v) <= UNIT // 3)
        canvas[inside] = random.randint(0, 256, 3)
    return canvas


def draw_pose(random):
    """Where an object lies, and its colours: coordinates u, v, int64 (192, 192) each, and colours, int64 (2, 3)."""
    radius = random.randint(24, 37)
    u, v = _object_coordinates(random.randint(radius, CANVAS - radius, 2), radius, random.randint(0, 360))
    dark = random.randint(0, 100, 3)
    light = random.randint(156, 256, 3)
    colours = np.stack([dark, light] if random.randint(0, 2) else [light, dark])
    return u, v, colours


def planted(canvas, name, pose):
    """A copy of a canvas with an object of class `name` in a pose, and where it is: bool (192, 192)."""
    inside, pattern = CLASSES[name]
    u, v, colours = pose
    covered = inside(u, v)
    canvas = canvas.copy()
    canvas[covered] = colours[pattern(u, v)[covered].astype(int)]
    return canvas, covered


def as_image(canvas):
    """A canvas at half its size: uint8 (96, 96, 3)."""
    return _halve(canvas).astype(np.uint8)


def as_mask(covered, least=2):
    """uint8 (96, 96) of bool (192, 192): 255 where at least `least` of four pixels of a canvas are covered, else 0."""
    return np.where(_halve(covered * 4) >= least, 255, 0).astype(np.uint8)


def read_mask(file, size):
    """The mask in a file at a size (H, W): bool, True on the object."""
    return cv2.resize(read_image(file)[..., 0], size[::-1]) > 127


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
