"""Properties that may tell a class without its content: made alike in all images, and measured in each."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torchvision.transforms.v2 import functional as V

from utils.data import brightness_of, load_masks, read_header, stored_size
from utils.trained import Trained

EDGE = 0.1  # of the shorter side: how far the border reaches in
SMALL = 5  # percentile of the sizes of files: all come down to it
QUALITY = 50  # of JPEG, in [0, 100]: low, so that it covers what files lost before


@dataclass(frozen=True, eq=False)
class Gallery:
    """N images with what is known of their files.

    pixels: uint8 (N, h, w, 3). sizes: int64 (N, 2), height and width of the files. formats: str (N,). objects: bool
    (N, h, w), or None where there are no masks. colour: uint8 (3,), what is laid over places that are hidden.
    """

    pixels: np.ndarray
    sizes: np.ndarray
    formats: np.ndarray
    objects: np.ndarray | None
    colour: np.ndarray

    @property
    def border(self) -> np.ndarray:
        """Where the border is: bool (h, w)."""
        height, width = self.pixels.shape[1:3]
        edge = max(1, round(EDGE * min(height, width)))
        border = np.ones((height, width), bool)
        border[edge : height - edge, edge : width - edge] = False
        return border

    @property
    def middle(self) -> np.ndarray:
        """A rectangle in the middle of the area of the border: bool (h, w)."""
        height, width = self.pixels.shape[1:3]
        side = np.sqrt(self.border.mean())
        y = abs(np.arange(height) + 0.5 - height / 2) < side * height / 2
        x = abs(np.arange(width) + 0.5 - width / 2) < side * width / 2
        return y[:, None] & x

    @property
    def background(self) -> np.ndarray:
        """What is neither object nor border: bool (N, h, w)."""
        return ~self.objects & ~self.border

    def hidden(self, where) -> np.ndarray:
        """The pixels with the colour wherever `where`, bool (h, w) or (N, h, w), says so: uint8 (N, h, w, 3)."""
        return np.where(where[..., None], self.colour, self.pixels)


@dataclass(frozen=True)
class Property:
    """One property of images.

    alike: the pixels of a gallery, uint8 (N, h, w, 3), without differences in it. values: what it is in each image,
    float (N, V). look: where to look when it tells the class. elsewhere: pixels with something else hidden, beside
    which `alike` can be judged, and what that is; None where there is nothing of the kind.
    """

    name: str
    alike: Callable[[Gallery], np.ndarray]
    values: Callable[[Gallery], np.ndarray]
    look: str
    elsewhere: Callable[[Gallery], np.ndarray] | None = None
    instead: str = ""


def load_gallery(trained: Trained, splits, indices: np.ndarray, training: np.ndarray) -> Gallery:
    """Images `indices` of a dataset, int64 (N,), and the mean colour of the images `training`, int64 (M,)."""
    paths = [splits.folder.paths[index] for index in indices]
    sizes, formats = zip(*map(read_header, paths), strict=True)
    masks = load_masks(splits.folder.root, [(path, path) for path in paths], stored_size(trained.config.image))
    objects = None if masks is None else masks[:, 0].numpy()
    colour = splits.pixels[training].mean(axis=(0, 1, 2)).round().astype(np.uint8)
    return Gallery(splits.pixels[indices], np.array(sizes), np.array(formats), objects, colour)


def properties_of(gallery: Gallery) -> list[Property]:
    """All PROPERTIES that its images have: a background where there are masks."""
    return [one for one in PROPERTIES if one.name != "background" or gallery.objects is not None]


def one_brightness(gallery: Gallery) -> np.ndarray:
    """Each image multiplied so that its mean brightness becomes that of all; values beyond 255 are cut off."""
    brightness = _brightness(gallery)
    factors = brightness.mean() / brightness.clip(min=1)
    bright = gallery.pixels * factors[:, :, None, None]
    return bright.round().clip(0, 255).astype(np.uint8)


def one_size(gallery: Gallery) -> np.ndarray:
    """Each image brought down to the height and width that SMALL % of the files stay below, and up again."""
    full = gallery.pixels.shape[1:3]
    small = np.percentile(gallery.sizes, SMALL, axis=0).astype(int)
    return _resized(_resized(gallery.pixels, np.minimum(small, full)), full)


def one_aspect(gallery: Gallery) -> np.ndarray:
    """Each image cut, in the middle, to the aspect that is the median of the files, and brought to one size again."""
    full = np.array(gallery.pixels.shape[1:3])
    aspects = np.exp(_aspect(gallery)[:, 0])
    kept = np.median(aspects) / aspects  # of the width; above 1: its inverse of the height
    shares = np.stack([1 / kept, kept], axis=1).clip(max=1)
    sides = (shares * full).round().clip(min=1).astype(int)
    corners = (full - sides) // 2
    cut = [
        image[None, top : top + height, left : left + width]
        for image, (top, left), (height, width) in zip(gallery.pixels, corners, sides, strict=True)
    ]
    return np.concatenate([_resized(image, full) for image in cut])


def one_format(gallery: Gallery) -> np.ndarray:
    """Each image, in the size that the network sees, written as JPEG of QUALITY and read again."""
    return np.stack([through_jpeg(image, QUALITY) for image in gallery.pixels])


def through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Write an image as JPEG and read it again, in RGB both times.

    Args:
        image: uint8 (h, w, 3), RGB.
        quality: Of the JPEG, in [0, 100].

    Returns:
        uint8 (h, w, 3), RGB.
    """
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])  # OpenCV takes BGR
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)


def _resized(pixels, size):
    """uint8 (N, h, w, 3) in another size, as images are decoded."""
    images = torch.from_numpy(pixels).movedim(-1, 1)
    return V.resize(images, [int(side) for side in size], antialias=True).movedim(1, -1).numpy()


def _colour(gallery, where):
    """The mean colour of a part of each image: float (N, 3)."""
    where = np.broadcast_to(where, gallery.pixels.shape[:3])[..., None]
    return (gallery.pixels * where).sum(axis=(1, 2)) / where.sum(axis=(1, 2)).clip(min=1)


def _brightness(gallery):
    return brightness_of(gallery.pixels)[:, None]


def _aspect(gallery):
    height, width = gallery.sizes.T
    return np.log(width / height)[:, None]


def _kinds(gallery):
    return (gallery.formats[:, None] == np.unique(gallery.formats)).astype(float)


PROPERTIES = (
    Property(
        f"border (outer {EDGE:.0%})",
        lambda gallery: gallery.hidden(gallery.border),
        lambda gallery: _colour(gallery, gallery.border),
        "frames, watermarks or what stands around the object tell the class",
        lambda gallery: gallery.hidden(gallery.middle),
        "an equal area in the middle",
    ),
    Property(
        "background",
        lambda gallery: gallery.hidden(gallery.background),
        lambda gallery: _colour(gallery, gallery.background),
        "classes were photographed in different places",
        lambda gallery: gallery.hidden(gallery.objects),
        "the objects",
    ),
    Property("brightness", one_brightness, _brightness, "classes were photographed in different light"),
    Property(
        "size",
        one_size,
        lambda gallery: np.log(gallery.sizes.prod(axis=1, keepdims=True)),
        "the files of some classes are smaller or less sharp than others",
    ),
    Property("aspect", one_aspect, _aspect, "the images of some classes are wider or higher than others"),
    Property("file format", one_format, _kinds, "the files of some classes were compressed otherwise"),
)
