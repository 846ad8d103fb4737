"""Image files that are damaged, foreign, huge, or of an odd mode: decoded as plain Pillow does, or refused.

Other sizes, orientations, modes and formats: tests/data/test_images.py and tests/data/test_reading.py.
"""

import io
import struct
import warnings
from functools import partial

import numpy as np
from faults.damage import DAMAGES, damage, limited
from faults.outcomes import HANG, MEMORY, REFUSED, RIGHT, TRACEBACK, WRONG, Outcome, attempt
from PIL import Image

from utils.data.reading import decode, read_image

SIZE = (32, 40)  # height and width that `decode` is asked for
SECONDS = 4  # that reading may take
MEMORY_OF_REFUSAL = 300 << 20  # bytes
SIDE = 13_000  # pixels of a bomb
NEAR = 2.0  # grey levels, on average, by which one way to resize differs from another
FORMATS = {"PNG": ".png", "JPEG": ".jpeg", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".TIF", "HEIF": ".heic"}
FORMATS["AVIF"] = ".avif"
NOT_EXACT = ("with a flipped bit", "with a flipped head", "with a blank part")  # decoders differ on what is left
MODES = {"LA": WRONG, "P": WRONG, "RGB": WRONG, "RGBA": WRONG, "CMYK": WRONG}  # with transparency where there is any
FOREIGN = {  # how a file begins that has the name of an image, and what it has once brought to light
    "PDF": (b"%PDF-1.4\n1 0 obj <</Type /Catalog>> endobj\ntrailer <</Root 1 0 R>>\n%%EOF\n", TRACEBACK),
    "PSD": (b"8BPS" + struct.pack(">H6xHIIHHIIIH", 1, 3, 32, 40, 8, 3, 0, 0, 0, 0) + bytes(3 * 32 * 40), WRONG),
    "XPM": (b'/* XPM */\nstatic char *x[] = {\n"2 2 1 1",\n"a c #ff0000",\n"aa",\n"aa"\n};\n', WRONG),
}
BOMBS = {"PNG": MEMORY, "TIFF": MEMORY, "WEBP": HANG, "JPEG": MEMORY}


def faults(project, random, tries, folder):
    cases = []
    for inject, table in ((_damaged, DAMAGES), (_of_mode, MODES), (_foreign, FOREIGN), (_huge, BOMBS)):
        for kind in table:
            cases.append((inject, kind))
    for number in range(tries):
        turn, place = divmod(number, len(cases))
        inject, kind = cases[place]
        yield inject(folder, random, turn + place, kind)


def _damaged(folder, random, turn, kind) -> Outcome:
    form = list(FORMATS)[turn % len(FORMATS)]
    place = folder / f"{random.integers(2**32)}"
    place.mkdir()
    path = place / f"image{FORMATS[form]}"
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    coarse.resize(random.integers(40, 120, 2).tolist(), Image.Resampling.BICUBIC).save(path, form)
    damage(path, kind, random)
    complaint = partial(_unlike_pillow, path, turn, kind not in NOT_EXACT)
    return attempt(f"{path.name} {kind}", partial(_read, path, turn), complaint, [path.name])


def _of_mode(folder, random, turn, kind) -> Outcome:
    """Write an image of noise; transparent parts of it lie on white."""
    values = random.integers(0, 256, (50, 60, len(kind)), dtype=np.uint8)
    options = {}
    path = folder / "mode.png"
    image = Image.fromarray(values.squeeze())
    match kind:
        case "P":
            image.putpalette(random.bytes(768))
            options["transparency"] = random.bytes(256)
        case "RGB":
            options["transparency"] = tuple(values[0, 0].tolist())
        case "CMYK":
            path = folder / "mode.tif"
            image = Image.fromarray(values, "CMYK")
    image.save(path, **options)
    with Image.open(path) as opened:
        layers = np.array(opened.convert("RGBA"), dtype=float)
    opacity = layers[..., 3:] / 255
    pixels = (layers[..., :3] * opacity + 255 * (1 - opacity)).round().astype(np.uint8)
    complaint = partial(_difference, pixels, turn, 1)
    return attempt(f"mode {kind}", partial(_read, path, turn), complaint, must=RIGHT)


def _foreign(folder, random, turn, kind) -> Outcome:
    path = folder / f"foreign{('.jpg', '.png', '.tif')[turn % 3]}"
    path.write_bytes(FOREIGN[kind][0])
    return attempt(f"{kind} named {path.name}", partial(_read, path, turn), names=[path.name], must=REFUSED)


def _huge(folder, random, turn, kind) -> Outcome:
    """Write a small file of SIDE x SIDE pixels, or with a head that claims them."""
    path = folder / f"bomb{FORMATS[kind]}"
    file = io.BytesIO()
    if kind in ("PNG", "TIFF"):
        options = {"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}
        Image.new("1", (SIDE, SIDE)).save(file, kind, **options)
    else:
        Image.new("RGB", (40, 32), "red").save(file, kind, lossless=True)
    content = bytearray(file.getvalue())
    if kind == "WEBP":  # behind the signature of its lossless picture: both sides less one, 14 bits each
        place = content.index(b"VP8L") + 9
        (bits,) = struct.unpack_from("<I", content, place)
        struct.pack_into("<I", content, place, bits & 0xF0000000 | (SIDE - 1) << 14 | SIDE - 1)
    if kind == "JPEG":
        struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, SIDE, SIDE)
    path.write_bytes(content)
    fault = f"{kind} of {SIDE} x {SIDE} pixels in {len(content)} bytes"
    whole = turn | (kind == "JPEG")  # or a JPEG would be read at an eighth of its scale
    return attempt(fault, partial(_read, path, whole), names=[path.name], must=REFUSED)


def _read(path, turn):
    """Read the pixels, whole and resized in turn."""
    with limited(SECONDS, MEMORY_OF_REFUSAL):
        if turn % 2:
            return read_image(path)
        return decode(path, SIZE)


def _unlike_pillow(path, turn, exactly, pixels):
    """Say how a damaged file that was read differs from what Pillow reads; not `exactly`: whether its shape does."""
    try:
        with warnings.catch_warnings(record=True), Image.open(path) as image:  # it warns of damaged files
            expected = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, RuntimeError, EOFError) as error:
        return f"read, but Pillow says {error}"
    return _difference(expected, turn, 0 if exactly else 255, pixels)


def _difference(expected, turn, off, pixels):
    """Say how pixels, resized where `turn` is even, differ by more than `off` grey levels from those expected."""
    if turn % 2 == 0:
        expected = np.array(Image.fromarray(expected).resize(SIZE[::-1], Image.Resampling.BILINEAR))
    if pixels.dtype != np.uint8 or pixels.shape != expected.shape:
        return f"{pixels.dtype} {pixels.shape}, not {expected.shape}"
    difference = np.abs(pixels.astype(int) - expected)
    if difference.mean() > max(off, NEAR) or (turn % 2 and difference.max() > off):
        return f"pixels are off by up to {difference.max()}, {difference.mean():.2f} on average"
    return None
