"""Reading of image files: the pixels, upright and in 8 bits, and what the header says."""

import math
import os
from contextlib import contextmanager
from functools import cache

import cv2
import numpy as np
import torch
from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError
from pillow_heif import register_heif_opener

from ..config import ImageSettings
from ..files import UserError
from ..vision import functional as V

TEXT_MEGABYTES = 64  # of a PNG: image generators write their settings and workflows into it
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "HEIF", "AVIF")  # no other is tried: some start other programs
MEGAPIXELS = 100.0  # a small file may claim any number of pixels
EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif"))
EXTENSIONS |= {".jfif", ".jpe", ".jif", ".pjpeg", ".pjp", ".mpo", ".dib", ".hif"}  # of browsers, Windows and cameras
TURNS = {  # by EXIF orientation; any other value leaves an image unchanged
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DataError(UserError, ValueError):
    """The image folder cannot be used; the message names the files, the cause and the cure."""


def stored_size(settings: ImageSettings) -> tuple[int, int]:
    """Return the height and width in which pixels are stored.

    That is `image.size`, and with random crops so much more, at most twice the area, that a crop of average area is
    never enlarged.
    """
    enlarged = math.sqrt(2 / (1 + settings.RandomCropScale))
    height, width = settings.size
    return round(height * enlarged), round(width * enlarged)


def decode(path, size, max_megapixels=MEGAPIXELS, value_range=None) -> np.ndarray:
    """Decode an image file and resize it with antialiasing to `size`, (height, width): uint8 (h, w, 3)."""
    pixels = torch.from_numpy(read_image(path, 2 * max(size), max_megapixels, value_range)).movedim(-1, 0)
    return V.resize(pixels, list(size), antialias=True).movedim(0, -1).numpy()


def read_image(
    path,
    at_least: int | None = None,
    max_megapixels: float = MEGAPIXELS,
    value_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """Decode an image file, turned upright by its EXIF orientation.

    Greyscale is repeated on the three channels, transparency lies on white. PNG and TIFF files of more than 8 bits are
    scaled by their type, whatever values they hold: 16 bits from 0 to 65,535, floats from 0 to 1. Signed and 32-bit
    integers have no usual range.

    Args:
        path: The image file.
        at_least: Pixels. A JPEG may be decoded at a half, a quarter or an eighth of its scale, which is faster, as long
            as neither side has fewer pixels than this.
        max_megapixels: The most pixels that are decoded, in millions.
        value_range: The values that become black and white in files of more than 8 bits, or of signed integers, instead
            of the range of their type. Files of 8 bits do not change.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        DataError: The file cannot be decoded, is of none of FORMATS, has more than `max_megapixels` million pixels, or
            holds values beyond the range. The message names the file and the cause.
    """
    with _opened(path) as image:
        if at_least:
            image.draft(None, (at_least, at_least))
        millions = image.width * image.height / 1e6
        if millions > max_megapixels:
            raise ValueError(f"has {millions:,.0f} million pixels, above the {max_megapixels:g} of max_megapixels")
        deep = _is_deep(image)
        if image.mode in ("RGB", "RGBA") and "transparency" not in image.info and value_range is None:
            deep = False  # Pillow scales colours to 8 bits by itself
        image.load()
        orientation = _orientation(image)  # of a PNG it decodes the pixels, and hides what is wrong with them
        upright = image
        if deep:
            upright = _in_8_bits(path, image, value_range)
        if orientation in TURNS and image.format != "TIFF":  # which Pillow turns by itself
            upright = upright.transpose(TURNS[orientation])
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        return np.array(upright.convert("RGB"))


def read_header(path) -> tuple[tuple[int, int], str]:
    """Read what the header of an image file says; its pixels are not decoded.

    Returns:
        (height, width) of the image as `read_image` returns it, and the format of its file.

    Raises:
        DataError: The header cannot be read. The message names the file and the cause.
    """
    with _opened(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # Pillow may have swapped them already
            width, height = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
        if _orientation(image) in (5, 6, 7, 8):
            width, height = height, width
        file_format = image.format
    if file_format == "MPO":  # Pillow's name for a JPEG that holds more images, such as depth maps of phones
        file_format = "JPEG"
    return (height, width), file_format


def brightness_of(pixels: np.ndarray) -> np.ndarray:
    """Compute the mean brightness of images uint8 (B, h, w, 3): float (B,), in [0, 255]."""
    return pixels.mean(axis=(1, 2)) @ (0.299, 0.587, 0.114)  # ITU-R BT.601


@cache
def _set_up_pillow():
    """Let Pillow read HEIF, and images and texts of any size, when the first image is read."""
    register_heif_opener(thumbnails=False)  # decode the image itself, not a thumbnail that a phone stored beside it
    Image.MAX_IMAGE_PIXELS = None  # `max_megapixels` limits them
    PngImagePlugin.MAX_TEXT_CHUNK = TEXT_MEGABYTES * 2**20  # Pillow's own limit is 1 MB
    PngImagePlugin.MAX_TEXT_MEMORY = TEXT_MEGABYTES * 2**20


@contextmanager
def _opened(path):
    """Open an image file by Pillow; what Pillow, its plugins and OpenCV raise for damaged files becomes a DataError."""
    _set_up_pillow()
    try:
        # a file, not its path: Pillow would map a TIFF into memory, and garble one that lies on its side
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            yield image
    except Exception as error:  # of a dozen kinds
        raise DataError(f"{path}: {_cause(path, error)}") from error


def _orientation(image):
    """Return the EXIF orientation of an opened image, of any type; None where its EXIF data is damaged."""
    try:
        return image.getexif().get(0x0112)
    except Exception:  # as in `_opened`
        return None


def _is_deep(image):
    """Return whether an opened PNG or TIFF has values of more than 8 bits, or signed ones."""
    if image.mode == "CMYK":  # amounts of ink, not of light
        return False
    if image.format == "TIFF":
        signed = 2 in image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, ())
        return signed or max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8
    return image.format == "PNG" and any(";16" in tile.args for tile in image.tile)


def _in_8_bits(path, image, value_range):
    """Scale the values of a decoded image to 8 bits: an image of mode L, RGB or RGBA."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image, np.uint16)
    else:  # Pillow cuts colours to 8 bits, and misreads some compressed TIFFs of signed integers and floats
        values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        if values is None or values.shape[:2] != image.size[::-1]:
            raise ValueError("its values cannot be decoded: save it as a greyscale or RGB image, PNG or TIFF")
    own_range = _range_of_type(image, values.dtype)
    grey = values.ndim == 2
    colours = values
    if not grey:
        colours = values[..., 2::-1]  # OpenCV has BGR
    pixels = _scaled(colours, value_range or own_range)
    if image.format == "TIFF" and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is 0
        pixels = 255 - pixels
    scaled = Image.fromarray(pixels)
    if grey and "transparency" in image.info:
        scaled.putalpha(Image.fromarray(values != image.info["transparency"]).convert("L"))
    elif not grey and values.shape[2] == 4 and image.has_transparency_data:
        scaled.putalpha(Image.fromarray(_scaled(values[..., 3], own_range)))
    return scaled


def _range_of_type(image, dtype):
    """Return the usual range (low, high) of values in files of this type; None if there is none."""
    if dtype.kind == "f":
        return 0, 1
    if dtype != np.uint16:
        return None
    if image.format == "TIFF":
        return 0, 2 ** image.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0] - 1
    return 0, 2**16 - 1


def _scaled(values, limits):
    """Scale values of any type to uint8, so that `limits` (low, high) become 0 and 255.

    Raises:
        ValueError: Values are not finite or beyond the limits, or there are no limits.
    """
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite")
    least, most = values.min(), values.max()
    cure = (
        f"set image.value_range to the range of the values of all files, here [{min(least, 0)!s}, {most!s}]; "
        "a trained network keeps the range of its training"
    )
    if limits is None:
        raise ValueError(f"holds {values.dtype} values from {least} to {most}, a type of no usual range: {cure}")
    low, high = limits
    rounding = 1e-6 * (high - low)  # of float32
    for value in (most, least):
        if not low - rounding <= value <= high + rounding:
            raise ValueError(f"holds the value {value!s}, beyond the range from {low:g} to {high:g}: {cure}")
    scaled = values.astype(np.result_type(values, np.float32))
    scaled -= low  # in place, as an image may have 100 million values
    scaled *= 255
    scaled /= high - low
    return scaled.round(out=scaled).clip(0, 255, out=scaled).astype(np.uint8)


def _cause(path, error):
    """Say why an image file cannot be decoded, in a few words that do not repeat its path."""
    if isinstance(error, UnidentifiedImageError):
        if not os.path.getsize(path):
            return "is empty"
        with open(path, "rb") as file:
            if file.read(4) in TiffImagePlugin.PREFIXES:
                return "is damaged, or a TIFF of a kind that cannot be read: save it as grey of 8 or 16 bits, or as RGB"
        return "is no image (JPEG, PNG, BMP, WebP, TIFF, HEIC or AVIF), or its header is damaged"
    text = getattr(error, "strerror", None) or str(error) or "cannot be decoded"
    if "MAX_TEXT" in text:
        return f"holds more than {TEXT_MEGABYTES} MB of text: save it again without its metadata"
    return text


def through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Encode an image as JPEG and decode it again.

    Args:
        image: uint8 (h, w, 3), RGB.
        quality: Of the JPEG, in [0, 100].

    Returns:
        uint8 (h, w, 3), RGB.
    """
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])  # OpenCV takes BGR
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
