"""Image files that are damaged, foreign, huge, turned, or of an odd mode: decoded as they are, or refused."""

import io
import os
import struct
import warnings
import zipfile
import zlib
from functools import partial
from unittest.mock import patch

import numpy as np
from faults.damage import DAMAGES, damage, limited
from faults.outcomes import HANG, MEMORY, REFUSED, RIGHT, TRACEBACK, WRONG, Outcome, attempt
from PIL import EpsImagePlugin, Image

from utils.data.reading import decode, read_image

SIZE = (32, 40)  # height and width that `decode` is asked for
SECONDS = 4  # that reading may take
MEMORY_OF_REFUSAL = 300 << 20  # bytes
SIDE = 13_000  # pixels of a bomb
NEAR = 2.0  # grey levels, on average, by which one way to resize differs from another
FORMATS = {"PNG": ".png", "JPEG": ".jpeg", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".TIF", "HEIF": ".heic"}
FORMATS["AVIF"] = ".avif"
LOSSLESS = ("PNG", "BMP", "TIFF", "WEBP")
SEVERAL = ("MPO", "TIFF", "PNG", "WEBP", "AVIF")  # formats of several pictures, of which the first counts
SIZES = {"thin": (1, 5000), "flat": (5000, 1), "small": (60, 84), "large": (300, 420)}  # large: a JPEG comes scaled
NOT_EXACT = ("with a flipped bit", "with a flipped head", "with a blank part")  # decoders differ on what is left
TURNED = {  # by EXIF's orientation: whether rows, columns and both axes are exchanged
    1: (False, False, False),
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}
ORIENTATION = 0x0112  # the EXIF tag
WITH_EXIF = ("JPEG", "PNG", "TIFF", "WEBP", "AVIF", "HEIF")
MODES = {  # and what each has once brought to light
    "1": "",
    "L": "",
    "LA": WRONG,
    "P": WRONG,
    "RGB": WRONG,
    "RGBA": WRONG,
    "CMYK": WRONG,
    "I;16": WRONG,
    "F": WRONG,
    "NaN": WRONG,
}
TEXTS = {
    "EPS": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 32\n0 0 40 32 rectfill showpage\n%%EOF\n",
    "SVG": '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="32"><rect width="40" height="32"/></svg>',
    "XPM": '/* XPM */\nstatic char *x[] = {\n"2 2 1 1",\n"a c #ff0000",\n"aa",\n"aa"\n};\n',
}
FOREIGN = {  # formats that the README does not name, and what each has once brought to light
    "EPS": WRONG,
    "GIF": WRONG,
    "PDF": TRACEBACK,
    "SVG": "",
    "XPM": WRONG,
    "TGA": WRONG,
    "ICO": WRONG,
    "PSD": WRONG,
    "zip": "",
}
BOMBS = {"PNG": MEMORY, "TIFF": MEMORY, "WEBP": HANG, "JPEG": MEMORY}


def faults(project, random, tries, folder):
    kinds = []
    for name, table in TABLES.items():
        for kind in table:
            kinds.append((name, kind))
    for number in range(tries):
        turn, place = divmod(number, len(kinds))
        name, kind = kinds[place]
        yield INJECT[name](folder, random, turn + place, kind)


def _damaged(folder, random, turn, kind) -> Outcome:
    path, _ = _written(folder, random, list(FORMATS)[turn % len(FORMATS)])
    damage(path, kind, random)
    complaint = partial(_unlike_pillow, path, turn, kind not in NOT_EXACT)
    outcome = attempt(f"{path.name} {kind}", partial(_read, path, turn), complaint, [path.name])
    if path.is_dir():
        (path / "inside").rmdir()
        path.rmdir()
    path.unlink(missing_ok=True)
    return outcome


def _sized(folder, random, turn, kind) -> Outcome:
    """Write what is no fault: each format, of any name, of several pictures."""
    several = turn % 2 == 1 and min(SIZES[kind]) > 1
    formats = list(FORMATS)
    if several:
        formats = SEVERAL
    elif min(SIZES[kind]) == 1:
        formats = LOSSLESS
    form = formats[turn // 2 % len(formats)]
    path, pixels = _written(folder, random, form, SIZES[kind], several)
    named = path.rename(path.with_suffix((path.suffix, ".JPG", ".png")[turn % 3]))
    return _must_read(f"{kind} {form} as {named.name}, several pictures: {several}", named, pixels)


def _oriented(folder, random, turn, kind) -> Outcome:
    form = WITH_EXIF[turn % len(WITH_EXIF)]
    size = (2 * random.integers(20, 60, 2)).tolist()  # even: libheif moves what it turns of odd sizes by a pixel
    path, pixels = _written(folder, random, form, size)
    with Image.open(path) as image:
        original = image.convert("RGB")
    if form not in LOSSLESS:
        original.save(path, form)
        pixels = _plain(path)
    exif = Image.Exif()
    exif[ORIENTATION] = kind
    original.save(path, form, exif=exif.tobytes(), **_options(form))
    return _must_read(f"{form} of orientation {kind}", path, turned(pixels, kind))


def turned(pixels, orientation):
    """Turn pixels (H, W, 3) of a file to what is looked at."""
    rows, columns, axes = TURNED[orientation]
    if rows:
        pixels = pixels[::-1]
    if columns:
        pixels = pixels[:, ::-1]
    if axes:
        pixels = pixels.swapaxes(0, 1)
    return pixels


def _of_mode(folder, random, turn, kind) -> Outcome:
    image, pixels, options = _in_mode(kind, random)
    path = folder / "mode.png"
    if image.mode in ("CMYK", "F"):
        path = folder / "mode.tif"
    image.save(path, **options)
    if kind == "NaN":
        return _must_refuse("mode F with NaN", path, turn)
    return _must_read(f"mode {kind}", path, pixels, off=1)


def _foreign(folder, random, turn, kind) -> Outcome:
    """Write a foreign format under the name of an image; nothing may be started to read it."""
    path = folder / f"foreign{('.jpg', '.png', '.tif')[turn % 3]}"
    path.write_bytes(_content_of(kind, random))
    marker = folder / "started"
    program = folder / "programs" / "gs"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\ntouch '{marker}'\necho 10.0\n")
    program.chmod(0o755)
    programs = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    with patch.dict(os.environ, PATH=programs), patch.object(EpsImagePlugin, "gs_binary", None):
        outcome = _must_refuse(f"{kind} named {path.name}", path, turn)
    if marker.exists():
        marker.unlink()
        return Outcome(WRONG, f"{kind} named {path.name}: started a program")
    return outcome


def _bomb(folder, random, turn, kind) -> Outcome:
    """Write a small file of a huge picture. A JPEG may be read at an eighth of its scale, so it is read as a whole."""
    path = folder / f"bomb{FORMATS[kind]}"
    path.write_bytes(_huge(kind))
    fault = f"{kind} of {SIDE} x {SIDE} pixels in {path.stat().st_size} bytes"
    return _must_refuse(fault, path, turn | (kind == "JPEG"))


def _written(folder, random, form, size=None, several=False):
    """Write a smooth picture to a new file; return its path and pixels, uint8 (H, W, 3), as plain Pillow reads them."""
    height, width = size or random.integers(40, 120, 2).tolist()
    coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    path = folder / f"image{FORMATS.get(form, '.jpg')}"
    options = _options(form)
    if several:
        options |= {"save_all": True, "append_images": [picture.rotate(180)]}
    picture.save(path, form, **options)
    if form in LOSSLESS:
        return path, np.array(picture)
    return path, _plain(path)


def _options(form):
    if form == "WEBP":
        return {"lossless": True, "exact": True}
    return {}


def _plain(path):
    """Read uint8 (H, W, 3) by Pillow without this project."""
    with warnings.catch_warnings(record=True), Image.open(path) as image:  # it warns of damaged files
        pixels = np.array(image.convert("RGB"))
        orientation = image.getexif().get(ORIENTATION, 1)
    if orientation not in TURNED:
        return pixels
    return turned(pixels, orientation)


def _read(path, turn):
    """Read the pixels, whole and resized in turn."""
    with limited(SECONDS, MEMORY_OF_REFUSAL):
        if turn % 2:
            return read_image(path)
        return decode(path, SIZE)


def _unlike_pillow(path, turn, exactly, pixels):
    """Say how a damaged file that was read differs from what Pillow reads; not `exactly`: whether its shape does."""
    try:
        expected = _plain(path)
    except (OSError, SyntaxError, ValueError, RuntimeError, EOFError) as error:
        return f"read, but Pillow says {error}"
    return _difference(pixels, expected, turn, 0 if exactly else 255)


def _must_read(fault, path, pixels, off=0):
    """Return what comes of reading a correct file in both ways. off: grey levels that its pixels may be off."""

    def complaint(found):
        return _difference(found[1], pixels, 1, off) or _difference(found[0], pixels, 0, off)

    return attempt(fault, lambda: (_read(path, 0), _read(path, 1)), complaint, must=RIGHT)


def _must_refuse(fault, path, turn):
    return attempt(fault, partial(_read, path, turn), names=[path.name], must=REFUSED)


def _difference(found, expected, turn, off):
    """Say how pixels, resized where `turn` is even, differ from those expected."""
    most = max(off, NEAR)
    if turn % 2 == 0:
        whole = Image.fromarray(np.ascontiguousarray(expected))
        expected = np.array(whole.resize(SIZE[::-1], Image.Resampling.BILINEAR))
    if found.dtype != np.uint8 or found.shape != expected.shape:
        return f"{found.dtype} {found.shape}, not {expected.shape}"
    difference = np.abs(found.astype(int) - expected)
    if difference.mean() > most or (turn % 2 and difference.max() > off):
        return f"pixels are off by up to {difference.max()}, {difference.mean():.2f} on average"
    return None


def _in_mode(mode, random):
    """Draw an image of a mode, its pixels as they are looked at, uint8 (H, W, 3), and options for its file."""
    shape = (50, 60)
    grey, alpha, red, green, blue = random.integers(0, 256, (5, *shape), dtype=np.uint8)
    coloured = np.dstack([red, green, blue])
    values = np.dstack([grey] * 3)
    options = {}
    match mode:
        case "1":
            image = Image.fromarray(grey > 127)
            values = 255 * np.dstack([grey > 127] * 3)
        case "L":
            image = Image.fromarray(grey)
        case "LA":
            image = Image.fromarray(np.dstack([grey, alpha]))
            values = _on_white(values, alpha)
        case "P":
            palette, opacities = random.integers(0, 256, (256, 3), dtype=np.uint8), random.integers(0, 256, 256)
            image = Image.fromarray(grey)
            image.putpalette(palette.tobytes())
            options["transparency"] = bytes(opacities.tolist())
            values = _on_white(palette[grey], opacities[grey])
        case "RGB":
            image = Image.fromarray(coloured)
            options["transparency"] = tuple(coloured[0, 0].tolist())
            values = np.where((coloured == coloured[0, 0]).all(axis=2, keepdims=True), 255, coloured)
        case "RGBA":
            image = Image.fromarray(np.dstack([coloured, alpha]))
            values = _on_white(coloured, alpha)
        case "CMYK":
            image = Image.fromarray(np.dstack([coloured, grey]), "CMYK")
            values = (255.0 - coloured) * (255.0 - grey[..., None]) / 255
        case "I;16":
            deep = random.integers(0, 2**16, shape, dtype=np.uint16)
            image = Image.fromarray(deep)
            values = np.dstack([deep / 257] * 3)
        case _:
            numbers = random.random(shape, dtype=np.float32)
            numbers[0, 0] = 1
            if mode == "NaN":
                numbers[0, 0] = np.nan
            image = Image.fromarray(numbers)
            values = np.dstack([numbers * 255] * 3)
    return image, np.nan_to_num(values).round().astype(np.uint8), options


def _on_white(colours, alpha):
    opacity = alpha[..., None] / 255
    return colours * opacity + 255 * (1 - opacity)


def _content_of(kind, random) -> bytes:
    """Return a file of a foreign kind."""
    if kind in TEXTS:
        return TEXTS[kind].encode()
    if kind == "PSD":
        return b"8BPS" + struct.pack(">H6xHIIHHIIIH", 1, 3, 32, 40, 8, 3, 0, 0, 0, 0) + random.bytes(3 * 32 * 40)
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("image.jpg", random.bytes(100))
    else:
        Image.fromarray(random.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def _huge(form) -> bytes:
    """Return a small file of SIDE x SIDE pixels, or of a head that claims them."""
    if form == "PNG":
        rows = zlib.compress(bytes(SIDE * (SIDE // 8 + 1)), 6)  # each begins with its filter
        header = struct.pack(">IIBBBBB", SIDE, SIDE, 1, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    if form == "TIFF":  # width, height, bits, deflated, black is 0, where the strip is, rows of it, how long it is
        rows = zlib.compress(bytes(SIDE * (SIDE // 8)), 6)
        tags = {256: SIDE, 257: SIDE, 258: 1, 259: 8, 262: 1, 273: 122, 277: 1, 278: SIDE, 279: len(rows)}
        content = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
        for tag, value in tags.items():
            content += struct.pack("<HHII", tag, 4, 1, value)
        return content + struct.pack("<I", 0) + rows
    file = io.BytesIO()
    Image.new("RGB", (40, 32), "red").save(file, form, **_options(form))
    content = bytearray(file.getvalue())
    if form == "WEBP":  # behind the signature of its lossless picture: both sides less one, 14 bits each
        place = content.index(b"VP8L") + 9
        (bits,) = struct.unpack_from("<I", content, place)
        struct.pack_into("<I", content, place, bits & 0xF0000000 | (SIDE - 1) << 14 | SIDE - 1)
    else:
        struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, SIDE, SIDE)
    return bytes(content)


def _chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


INJECT = {
    "damaged": _damaged,
    "of a size": _sized,
    "turned": _oriented,
    "of a mode": _of_mode,
    "foreign": _foreign,
    "huge": _bomb,
}
TABLES = {  # names of INJECT
    "damaged": DAMAGES,
    "of a size": SIZES,
    "turned": TURNED,
    "of a mode": MODES,
    "foreign": FOREIGN,
    "huge": BOMBS,
}
