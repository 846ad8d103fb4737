"""Textured objects and the clutter behind them, drawn in integers: the same pixels on every machine."""

import math

import cv2
import numpy as np

from utils.data.reading import read_image

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
