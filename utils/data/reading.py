"""One image file to its pixels, as it is looked at, and to what its header says."""

import os
import struct
import zlib
from contextlib import contextmanager

import cv2
import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError
from pillow_heif import register_heif_opener

from ..files import UserError

register_heif_opener(thumbnails=False)  # the image itself is decoded, never a thumbnail that a phone put beside it
Image.MAX_IMAGE_PIXELS = None  # `max_megapixels` stands in its place
TEXT_MEGABYTES = 64  # of a PNG: image generators write their settings and workflows into it
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = (
    TEXT_MEGABYTES * 2**20
)  # Pillow refuses 1 MB in a chunk
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "HEIF", "AVIF")  # no other is tried: some start other programs
PHONE_JPEG = "MPO"  # Pillow's name for a JPEG with further images behind it: depth maps, gain maps
MEGAPIXELS = 100.0  # to be decoded at once; a small file may claim any number
EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif"))
EXTENSIONS |= {".jfif", ".jpe", ".jif", ".pjpeg", ".pjp", ".mpo", ".dib", ".hif"}  # of browsers, Windows and cameras
# what Pillow and its plugins, and OpenCV, raise for damaged files
UNDECODABLE = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, ArithmeticError, LookupError, TypeError)
UNDECODABLE += (AttributeError, MemoryError, struct.error, zlib.error, cv2.error, Warning)  # a warning as an error
ORIENTATION = 0x0112  # the EXIF tag; any other value than these leaves an image as it is
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # height and width change places
TIFF_SIGNED = 2  # a value of the tag SAMPLEFORMAT
WHITE_IS_ZERO = 0  # a value of the tag PHOTOMETRIC_INTERPRETATION
ROUNDING = 1e-6  # of a range: what arithmetic in float32 moves a value beyond its end
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class DataError(UserError, ValueError):
    """The image folder cannot be used; the message names the files, the cause and the cure."""


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
        at_least: A JPEG may come at a half, a quarter or an eighth of its scale, as long as neither side falls below
            that many pixels: decoding then skips most of the work.
        max_megapixels: The most pixels that are decoded, in millions.
        value_range: The values that become black and white in files of more than 8 bits, or of signed integers, in
            place of the range of their type. Files of 8 bits stay as they are.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        DataError: The file cannot be decoded, is of none of FORMATS, has more than `max_megapixels` million pixels, or
            holds values beyond the range. The message names the file and the cause.
    """
    with _opened(path) as image:
        if at_least:
            image.draft(None, (at_least, at_least))
        _check_size(image, max_megapixels)
        scales = _is_deep(image) and (value_range is not None or not _is_scaled_by_pillow(image))
        turn = None if image.format == "TIFF" else TURNS.get(_orientation(image))  # Pillow turns TIFFs by itself
        image.load()
        if scales:
            image = _in_8_bits(path, image, value_range)
        if turn is not None:
            image = image.transpose(turn)
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))


def read_header(path) -> tuple[tuple[int, int], str]:
    """Read what the header of an image file says; its pixels are not decoded.

    Returns:
        (height, width) of the image as `read_image` returns it, and the format of its file.

    Raises:
        DataError: The header cannot be read. The message names the file and the cause.
    """
    with _opened(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # whose size may have changed places already
            width, height = (image.tag_v2[tag] for tag in (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH))
        size = (width, height) if _orientation(image) in SIDEWAYS else (height, width)
        return size, "JPEG" if image.format == PHONE_JPEG else image.format


def brightness_of(pixels: np.ndarray) -> np.ndarray:
    """The mean brightness of images uint8 (B, h, w, 3): float (B,), in [0, 255]."""
    return pixels.mean(axis=(1, 2)) @ LUMA


@contextmanager
def _opened(path):
    """An image file, opened by Pillow; whatever Pillow raises for it becomes a DataError."""
    try:
        # a file, not its path: Pillow would map a TIFF into memory, and garble one that lies on its side
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            yield image
    except UNDECODABLE as error:
        raise DataError(f"{path}: {_cause(path, error)}") from error


def _orientation(image):
    """The EXIF orientation of an opened image, of any type; None where its EXIF data is damaged."""
    try:
        return image.getexif().get(ORIENTATION)
    except UNDECODABLE:
        return None


def _check_size(image, max_megapixels):
    millions = image.width * image.height / 1e6
    if millions > max_megapixels:
        raise ValueError(f"has {millions:,.0f} million pixels, above the {max_megapixels:g} of max_megapixels")


def _is_deep(image):
    """Whether a PNG or TIFF that is not decoded yet has light values of more than 8 bits, or signed ones."""
    if image.mode == "CMYK":  # amounts of ink
        return False
    if image.format == "TIFF":
        signed = TIFF_SIGNED in image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, ())
        return signed or max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8
    return image.format == "PNG" and any(";16" in tile.args for tile in image.tile)


def _is_scaled_by_pillow(image):
    """Whether Pillow brings more than 8 bits of this image to 8, as it does with colours."""
    return image.mode in ("RGB", "RGBA") and "transparency" not in image.info


def _in_8_bits(path, image, value_range):
    """A decoded image with the values of its file scaled to 8 bits: another one of mode L, RGB or RGBA."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image, np.uint16)
    else:  # Pillow cuts colours to 8 bits, and misreads some compressed TIFFs of signed integers and floats
        values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        if values is None or values.shape[:2] != image.size[::-1]:
            raise ValueError("its values cannot be decoded: save it as a greyscale or RGB image, PNG or TIFF")
    own_range = _range_of_type(image, values.dtype)
    colours = values if values.ndim == 2 else values[..., 2::-1]  # OpenCV has BGR
    pixels = _scaled(colours, value_range or own_range)
    if image.format == "TIFF" and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
        pixels = 255 - pixels
    scaled = Image.fromarray(pixels)
    if values.ndim == 2 and "transparency" in image.info:
        scaled.putalpha(Image.fromarray(values != image.info["transparency"]).convert("L"))
    elif values.ndim == 3 and values.shape[2] == 4 and (image.mode == "RGBA" or "transparency" in image.info):
        scaled.putalpha(Image.fromarray(_scaled(values[..., 3], own_range)))
    return scaled


def _range_of_type(image, dtype):
    """(low, high) of the values that files of this type hold by custom; None where there is no such custom."""
    if dtype.kind == "f":
        return 0, 1
    if dtype != np.uint16:
        return None
    bits = image.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0] if image.format == "TIFF" else 16
    return 0, 2**bits - 1


def _scaled(values, limits):
    """Values of any type to uint8, so that `limits` (low, high) become 0 and 255.

    Raises ValueError for values that are not finite or beyond the limits, and without limits.
    """
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite")
    least, most = values.min(), values.max()
    cure = f"set image.value_range to the range of the values of all files, here [{min(least, 0)!s}, {most!s}]"
    cure += "; a trained network keeps the one of its training"
    if limits is None:
        raise ValueError(f"holds {values.dtype} values from {least} to {most}, a type of no usual range: {cure}")
    low, high = limits
    slack = ROUNDING * (high - low)
    if least < low - slack or most > high + slack:
        value = least if least < low - slack else most
        raise ValueError(f"holds the value {value!s}, beyond the range from {low:g} to {high:g}: {cure}")
    scaled = values.astype(np.float32 if values.itemsize <= 2 else np.float64)
    scaled -= low
    scaled *= 255
    scaled /= high - low
    return scaled.round(out=scaled).clip(0, 255, out=scaled).astype(np.uint8)


def _cause(path, error):
    """Why an image file cannot be decoded, in a few words that do not repeat its path."""
    if isinstance(error, UnidentifiedImageError):
        if not os.path.getsize(path):
            return "is empty"
        with open(path, "rb") as file:
            if file.read(4) in TiffImagePlugin.PREFIXES:
                return "is damaged, or a TIFF of a kind that cannot be read: save it as grey of 8 or 16 bits, or as RGB"
        return "is no image (JPEG, PNG, BMP, WebP, TIFF, HEIC or AVIF), or its header is damaged"
    text = getattr(error, "strerror", None) or str(error) or "cannot be decoded"
    if "MAX_TEXT" in text:
        return f"holds more than {TEXT_MEGABYTES} MB of text: save it anew without its metadata"
    return text


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
