"""Butterflies on a meadow: the drawing of the bundled sample. Species differ only in what is on the wings.

Coordinates are rounded to integers before anything is filled, and images are blended in integers, so that a drawing is
equal on every machine. How much is drawn at random never depends on the species: two species drawn from equal random
states are one scene that differs on the wings only.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

IMAGE_SIZE = 128  # pixels, height and width
SCALE = 4  # a butterfly is drawn four times as large, then averaged, so that edges are smooth
CANVAS = SCALE * IMAGE_SIZE

# values of the parts in a mask, where the background is 0; those from DARK on are the pattern, which tells the species
BODY, WING, FINE_VEIN, DARK, LIGHT, EYE_RING, EYE_PUPIL, EYE_GLINT = range(143, 256, 16)

# the right wings, in units of a hundredth of the wing's length; the body lies along y, its head up
OUTLINES = {
    "hind": ((3, 4), (40, 2), (70, -6), (78, -30), (64, -58), (40, -70), (22, -60), (9, -34), (3, -10)),
    "fore": ((3, 10), (28, 42), (66, 74), (97, 76), (99, 56), (86, 26), (72, 4), (36, -4), (3, -2)),
}
MARGINS = {"hind": slice(12, 36), "fore": slice(18, 42)}  # points of the smooth outline that are the outer margin
ROOTS = {"hind": (3, 0), "fore": (3, 4)}  # where a wing is joined to the body
EYES = {"hind": (46, -34), "fore": (70, 46)}  # centres of the eyespots
BODY_OUTLINE = ((0, 25), (5, 20), (4, 12), (6, 2), (4, -14), (3, -34), (0, -42))

WINGS = ((222, 118, 36), (236, 200, 72), (98, 146, 214), (240, 234, 220), (176, 76, 44), (140, 108, 186))
WINGS += ((226, 150, 158), (158, 112, 74), (120, 176, 160), (205, 170, 120))
DARKS = ((38, 26, 22), (62, 40, 28), (30, 34, 52))
MEADOWS = (((42, 74, 34), (150, 178, 92)), ((58, 70, 36), (186, 170, 96)), ((30, 66, 56), (120, 168, 132)))
MEADOWS += (((66, 60, 36), (198, 176, 126)), ((48, 82, 44), (176, 200, 122)))
BLOSSOMS = ((250, 246, 236), (246, 212, 84), (224, 120, 160), (150, 130, 220), (240, 140, 90))
LADYBIRDS = ((204, 52, 36), (226, 160, 44), (70, 52, 44))
BLACK = (24, 22, 22)


@dataclass
class Pose:
    """Where a butterfly sits, and how it holds its wings."""

    centre: np.ndarray
    """(x, y) of the body, in pixels of the canvas."""
    scale: float
    """Pixels of a unit."""
    degrees: int
    openness: np.ndarray
    """Width of the left and of the right wings seen from above, at most 1."""
    sweep: int
    """Degrees by which the forewings are turned towards the head."""
    eye: int
    """Radius of an eyespot, in units."""

    def place(self, points, side=0, sweep=0) -> np.ndarray:
        """Return points (N, 2) on the canvas, in pixels; `side` is -1 for a left wing, 1 for a right one."""
        points = _turned(points, -sweep)
        if side:
            points = points * (side * self.openness[(side + 1) // 2], 1)
        points = _turned(points * (1, -1), self.degrees)
        return points * self.scale + self.centre


def draw(species: str, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image.

    Args:
        species: A name in SPECIES.
        random: What everything else is drawn from.

    Returns:
        The image, uint8 (128, 128, 3) RGB, and its mask, uint8 (128, 128): the part at each pixel, that of the highest
        value where several touch it.
    """
    image = _draw_meadow(random)
    parts = _draw_parts(species, _draw_pose(random))
    colours = _draw_colours(random)
    cover = _averaged((parts > 0) * np.int32(256), SCALE)  # (128, 128), of 256
    image = image * (512 - _shadow(cover))[..., None] // 512
    wings = _averaged(colours[parts], SCALE)  # black outside the butterfly
    wings = wings * (256 + _noise(random, 12, 26))[..., None] // 256
    image = image * (256 - cover)[..., None] // 256 + wings
    image = image * (random.randint(218, 300) * np.array([261, 256, 241]) // 256) // 256  # light, a little warm
    image = image + random.randint(-6, 7, (IMAGE_SIZE, IMAGE_SIZE, 1))  # grain
    return np.clip(image, 0, 255).astype(np.uint8), _highest(parts, SCALE)


def _veined(wing, outline, pose):
    for end in _margin(wing, outline, 2, 4):
        yield _needle(ROOTS[wing], end, 2.6), DARK


def _bordered(wing, outline, pose):
    yield _ring(wing, outline, 1.0, 0.84), DARK
    for end in _margin(wing, outline, 1, 3):
        yield _circle(_shrunk(wing, end, 0.92), 3.4), LIGHT


def _banded(wing, outline, pose):
    yield _ring(wing, outline, 0.84, 0.60), DARK
    yield _ring(wing, outline, 0.78, 0.66), LIGHT


def _speckled(wing, outline, pose):
    for share, step in ((0.88, 4), (0.62, 5), (0.38, 9)):
        for end in _margin(wing, outline, 1, step):
            yield _circle(_shrunk(wing, end, share), 5), DARK


def _four_eyed(wing, outline, pose):
    x, y = EYES[wing]
    yield _circle((x, y), pose.eye), DARK
    yield _circle((x, y), pose.eye * 0.76), EYE_RING
    yield _circle((x, y), pose.eye * 0.46), EYE_PUPIL
    yield _circle((x + pose.eye * 0.15, y + pose.eye * 0.15), pose.eye * 0.16), EYE_GLINT


def _two_eyed(wing, outline, pose):
    if wing == "fore":
        yield from _four_eyed(wing, outline, pose)


# species -> function of a right wing, its outline and the pose that yields the elements, (N, 2), with their parts.
# The last two differ in one element, the eyespots of the hindwings
SPECIES = {
    "banded": _banded,
    "bordered": _bordered,
    "speckled": _speckled,
    "veined": _veined,
    "four_eyed": _four_eyed,
    "two_eyed": _two_eyed,
}


def _draw_pose(random):
    reach = random.randint(150, 206)  # pixels from the body to the tip of a wing
    edge = reach * 5 // 6
    openness = random.randint(72, 101) - np.array([0, random.randint(0, 17)])
    if random.randint(0, 2):
        openness = openness[::-1]
    return Pose(
        centre=random.randint(edge, CANVAS - edge, 2),
        scale=reach / 110,
        degrees=random.randint(0, 360),
        openness=openness / 100,
        sweep=random.randint(-10, 13),
        eye=random.randint(11, 17),
    )


def _draw_parts(species, pose):
    """Draw a butterfly: uint8 (512, 512), the part at each pixel."""
    parts = np.zeros((CANVAS, CANVAS), np.uint8)
    for wing, points in OUTLINES.items():
        sweep = pose.sweep
        if wing == "hind":
            sweep = 0
        outline = _smooth(points)
        veins = [(_needle(ROOTS[wing], end, 1.1), FINE_VEIN) for end in _margin(wing, outline, 2, 4)]
        elements = [*veins, *SPECIES[species](wing, outline, pose)]
        for side in (-1, 1):
            layer = np.zeros_like(parts)
            _fill(layer, pose.place(outline, side, sweep), WING)
            inside = layer > 0
            for shape, part in elements:
                _fill(layer, pose.place(shape, side, sweep), part)
            np.copyto(parts, layer, where=inside)
    for side in (-1, 1):
        antenna = [(side, 16), (17 * side, 52), (19 * side, 51), (3 * side, 16)]
        _fill(parts, pose.place(antenna), BODY)
        _fill(parts, pose.place(_circle((18 * side, 52), 2.6)), BODY)
    mirrored = [(-x, y) for x, y in BODY_OUTLINE[-2:0:-1]]
    _fill(parts, pose.place(_smooth([*BODY_OUTLINE, *mirrored])), BODY)
    return parts


def _draw_colours(random):
    """Draw the colours of a butterfly: int32 (256, 3), by part; the background is black."""
    wing = _varied(random, _chosen(random, WINGS), 18)
    dark = _varied(random, _chosen(random, DARKS), 8)
    light = _varied(random, (246, 236, 210), 9)
    colours = np.zeros((256, 3), np.int32)
    colours[BODY] = _varied(random, (58, 42, 32), 10)
    colours[WING] = wing
    colours[FINE_VEIN] = wing * 13 // 16
    colours[[DARK, EYE_PUPIL]] = dark
    colours[[LIGHT, EYE_RING]] = light
    colours[EYE_GLINT] = 250
    return colours


def _draw_meadow(random):
    """Draw a meadow without a butterfly: int32 (128, 128, 3). What lies near is less blurred than what lies far."""
    dark, light = _chosen(random, MEADOWS)
    dark = _varied(random, dark, 10)
    light = _varied(random, light, 14)
    share = np.clip(128 + _noise(random, 4, 90) + _noise(random, 9, 60), 0, 256)[..., None]
    canvas = ((dark * (256 - share) + light * share) // 256).astype(np.uint8)
    for _ in range(26):
        _draw_blade(random, canvas, dark, light)
    for _ in range(random.randint(2, 6)):
        _draw_blossom(random, canvas)
    canvas = _blurred(canvas, 4)
    for _ in range(10):
        _draw_blade(random, canvas, dark, light)
    for _ in range(random.randint(1, 4)):
        _draw_leaf(random, canvas, (dark + 2 * light) // 3)
    for _ in range(random.randint(1, 4)):
        _draw_blossom(random, canvas)
    for _ in range(random.randint(0, 3)):
        _draw_ladybird(random, canvas)
    return canvas.astype(np.int32)


def _draw_blade(random, canvas, dark, light):
    foot = random.randint(-40, CANVAS + 40, 2)
    degrees = random.randint(-35, 36)
    length, width, bend = random.randint(90, 260), random.randint(4, 11), random.randint(-40, 41)
    share = random.randint(0, 257)
    left = [(-width, 0), (bend / 2 - width * 0.7, -length / 2), (bend, -length)]
    right = [(bend / 2 + width * 0.7, -length / 2), (width, 0)]
    _fill(canvas, _turned(left + right, degrees) + foot, (dark * (256 - share) + light * share) // 256)


def _draw_blossom(random, canvas):
    centre = random.randint(0, CANVAS, 2)
    radius = random.randint(14, 30)
    colour = _varied(random, _chosen(random, BLOSSOMS), 14)
    petals, turn = random.randint(5, 9), random.randint(0, 360)
    for petal in range(petals):
        shape = _turned(_circle((0, -1), 0.62), turn + 360 * petal // petals)
        _fill(canvas, shape * radius + centre, colour * (232 + 24 * (petal % 2)) // 256)
    _fill(canvas, np.array(_circle(centre, radius / 2)), _varied(random, (214, 160, 50), 14))


def _draw_leaf(random, canvas, colour):
    centre = random.randint(0, CANVAS, 2)
    degrees, length = random.randint(0, 360), random.randint(35, 75)
    colour = _varied(random, colour, 16)
    blade = _smooth([(0, -1), (0.34, -0.4), (0.36, 0.2), (0, 1), (-0.36, 0.2), (-0.34, -0.4)])
    stalk = [(-0.03, -0.95), (0.03, -0.95), (0.02, 1.3), (-0.02, 1.3)]
    _fill(canvas, _turned(blade, degrees) * length + centre, colour)
    _fill(canvas, _turned(stalk, degrees) * length + centre, colour * 11 // 16)


def _draw_ladybird(random, canvas):
    centre = random.randint(0, CANVAS, 2)
    degrees, radius = random.randint(0, 360), random.randint(13, 21)
    colour = _varied(random, _chosen(random, LADYBIRDS), 14)
    shapes = [(_circle((0, -0.8), 0.55), BLACK), (_circle((0, 0), 1), colour)]
    shapes.append(([(-0.05, -1), (0.05, -1), (0.05, 1), (-0.05, 1)], BLACK))
    for spot in ((0.45, -0.35), (0.5, 0.35), (-0.45, -0.35), (-0.5, 0.35)):
        shapes.append((_circle(spot, 0.2), BLACK))
    for shape, shade in shapes:
        _fill(canvas, _turned(shape, degrees) * radius + centre, shade)


def _chosen(random, choices):
    return choices[random.randint(len(choices))]


def _varied(random, colour, most):
    return np.clip(np.array(colour) + random.randint(-most, most + 1, 3), 0, 255)


def _noise(random, cells, depth):
    """Smooth noise from -depth to depth, int32 (128, 128)."""
    grid = random.randint(0, 256, (cells, cells)).astype(np.uint8)
    noise = cv2.resize(grid, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_LINEAR_EXACT).astype(np.int32)
    return noise * 2 * depth // 255 - depth


def _blurred(image, block):
    """Average blocks of pixels and interpolate between them, exactly: uint8, as large as before."""
    small = _averaged(image.astype(np.int32), block).astype(np.uint8)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR_EXACT)


def _averaged(values, block):
    """Average blocks of pixels, rounding down: int32 (H, W, ...) to (H / block, W / block, ...)."""
    rows = _blocks(values, block).sum(1, dtype=np.int32)  # one axis after the other: numpy is quicker so
    return rows.sum(2, dtype=np.int32) // block**2


def _highest(values, block):
    """The highest value in blocks of pixels: (H, W) to (H / block, W / block)."""
    return _blocks(values, block).max(1).max(2)


def _blocks(values, block):
    """Cut (H, W, ...) into square blocks: (H / block, block, W / block, block, ...)."""
    height, width = values.shape[:2]
    return values.reshape(height // block, block, width // block, block, *values.shape[2:])


def _shadow(cover):
    """The shadow of a butterfly to its lower right, int32 (128, 128), of 256."""
    shadow = np.zeros_like(cover)
    shadow[6:, 4:] = cover[:-6, :-4]
    return _blurred(np.minimum(shadow, 255).astype(np.uint8), 4).astype(np.int32)


def _fill(canvas, points, value):
    """Fill a polygon, points (N, 2) in pixels of CANVAS, on an array of any size."""
    share = len(canvas) * 8 / CANVAS
    corners = np.rint(points * share).astype(np.int32)  # OpenCV takes eighths of a pixel
    cv2.fillPoly(canvas, [corners], np.atleast_1d(value).tolist(), shift=3)


def _turned(points, degrees):
    """Turn points (N, 2) clockwise, where y runs down."""
    cosine = round(math.cos(math.radians(degrees)) * 4096) / 4096
    sine = round(math.sin(math.radians(degrees)) * 4096) / 4096
    x, y = np.asarray(points, dtype=float).T
    return np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=1)


def _smooth(points, steps=6):
    """A closed curve through points (N, 2): Catmull and Rom 1974, A class of local interpolating splines."""
    points = np.asarray(points, dtype=float)
    before = np.roll(points, 1, axis=0)
    after = np.roll(points, -1, axis=0)
    later = np.roll(points, -2, axis=0)
    curve = []
    for t in np.arange(steps) / steps:
        square = (2 * before - 5 * points + 4 * after - later) * t * t
        cube = (3 * points - before - 3 * after + later) * t * t * t
        curve.append((2 * points + (after - before) * t + square + cube) / 2)
    return np.stack(curve, axis=1).reshape(-1, 2)


def _margin(wing, outline, start, step):
    return outline[MARGINS[wing]][start::step]


def _shrunk(wing, points, share):
    root = np.array(ROOTS[wing])
    return root + (points - root) * share


def _ring(wing, outline, outer, inner):
    return np.concatenate([_shrunk(wing, outline, outer), _shrunk(wing, outline, inner)[::-1]])


def _needle(start, end, width):
    start, end = np.array(start, dtype=float), np.array(end, dtype=float)
    normal = (end - start)[::-1] * (-1, 1) / max(abs(end - start))
    return [start + normal * width, end + normal * width / 2, end - normal * width / 2, start - normal * width]


def _circle(centre, radius, corners=20):
    points = []
    for corner in range(corners):
        angle = math.radians(360 * corner // corners)
        points.append((centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)))
    return points
