"""Image files that are damaged, foreign, huge, turned, or of an odd mode: decoded as they are, or refused."""

import io
import os
import resource
import struct
import sys
import time
import warnings
import zipfile
import zlib
from functools import partial
from unittest.mock import patch

import numpy as np
from faults.outcomes import REFUSED, RIGHT, WRONG, Outcome, attempt
from PIL import EpsImagePlugin, Image

from utils.data.cache import decode
from utils.data.reading import read_image

WORK = "image files"
TRIES = 400
QUICK = 40
SIZE = (32, 40)  # height and width that `decode` is asked for
LONGEST = 2.0  # seconds that a refusal may take
MOST_MEMORY = 300 * 2**20  # bytes that a refusal may take
SIDE = 13_000  # pixels of a bomb
NEAR = 2.0  # grey levels, on average, by which one way to resize differs from another
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "HEIF", "AVIF")
LOSSLESS = ("PNG", "BMP", "TIFF", "WEBP")
ENDINGS = {"JPEG": ".jpeg", "TIFF": ".TIF", "HEIF": ".heic", "MPO": ".jpg"}  # others are those of their names
SEVERAL = ("MPO", "TIFF", "PNG", "WEBP", "AVIF")  # formats of several pictures, of which the first counts
ORIENTATION = 0x0112  # the EXIF tag
TURNED = {  # what is looked at, of the pixels of a file, by orientation
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
WITH_EXIF = ("JPEG", "PNG", "TIFF", "WEBP", "AVIF", "HEIF")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "NaN")
EPS = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 32\n0 0 40 32 rectfill showpage\n%%EOF\n"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="32"><rect width="40" height="32"/></svg>'
XPM = '/* XPM */\nstatic char *x[] = {\n"2 2 1 1",\n"a c #ff0000",\n"aa",\n"aa"\n};\n'
FOREIGN = ("EPS", "GIF", "PDF", "SVG", "XPM", "TGA", "ICO", "PSD", "noise", "empty", "text", "zip")
BOMBS = ("PNG", "TIFF", "WEBP", "JPEG")


def faults(project, random, tries, folder):
    kinds = (
        _cut,
        partial(_flipped, header=True),
        partial(_flipped, header=False),
        _unfinished,
        _thin,
        _right,
        *(partial(_foreign, kind=kind) for kind in FOREIGN),
        *(partial(_bomb, kind=kind) for kind in BOMBS),
        *(partial(_turned, orientation=orientation) for orientation in TURNED),
        *(partial(_of_mode, mode=mode) for mode in MODES),
    )
    for number in range(tries):
        turn, kind = divmod(number, len(kinds))
        yield kinds[kind](folder, random, turn + kind)


def _cut(folder, random, turn):
    path, _ = _written(folder, random, FORMATS[turn % len(FORMATS)])
    content = path.read_bytes()
    length = int(random.integers(len(content)))
    path.write_bytes(content[:length])
    return _like_pillow(f"{path.suffix} cut after {length} of {len(content)} bytes", path, turn)


def _unfinished(folder, random, turn):
    """All but the last bytes, without which Pillow reads some files."""
    path, _ = _written(folder, random, ("JPEG", "PNG", "BMP")[turn % 3])
    missing = int(random.integers(1, 13))
    path.write_bytes(path.read_bytes()[:-missing])
    return _like_pillow(f"{path.suffix} without its last {missing} bytes", path, turn)


def _flipped(folder, random, turn, header):
    path, _ = _written(folder, random, FORMATS[turn % len(FORMATS)])
    content = bytearray(path.read_bytes())
    places = random.integers(64 if header else len(content), size=random.integers(1, 9))
    for place in places:
        content[place] ^= random.integers(1, 256)
    path.write_bytes(content)
    fault = f"{path.suffix} with {'header ' if header else ''}bytes {sorted(places.tolist())} flipped"
    return _like_pillow(fault, path, turn, exactly=False)


def _thin(folder, random, turn):
    size = ((1, 5000), (5000, 1))[turn % 2]
    path, pixels = _written(folder, random, ("PNG", "JPEG", "WEBP", "TIFF")[turn % 4], size)
    return _must_read(f"{size[0]} x {size[1]} {path.suffix}", path, pixels)


def _right(folder, random, turn):
    """What is no fault: each format, of any name, large enough for a JPEG to come at a smaller scale, of several
    pictures.
    """
    several = turn % 2 == 1
    kinds = SEVERAL if several else FORMATS
    kind = kinds[turn // 2 % len(kinds)]
    size = (300, 420) if turn % 4 < 2 else (60, 84)
    path, pixels = _written(folder, random, kind, size, several)
    named = path.rename(path.with_suffix((path.suffix, ".JPG", ".png")[turn % 3]))
    return _must_read(f"{kind} as {named.name}, {'two pictures' if several else 'one picture'}", named, pixels)


def _foreign(folder, random, turn, kind):
    """What is no image of a format that the README names, under the name of one; nothing is started to read it."""
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


def _bomb(folder, random, turn, kind):
    """A small file of a huge picture."""
    path = folder / f"bomb{ENDINGS.get(kind, f'.{kind.lower()}')}"
    path.write_bytes(_huge(kind))
    began, before = time.perf_counter(), _most_memory()
    fault = f"{kind} of {SIDE} x {SIDE} pixels in {path.stat().st_size} bytes"
    whole = 1 if kind == "JPEG" else turn  # a JPEG may be read at an eighth of its scale
    outcome = _must_refuse(fault, path, whole)
    seconds, memory = time.perf_counter() - began, _most_memory() - before
    if seconds > LONGEST or memory > MOST_MEMORY:
        return Outcome(WRONG, f"{fault}: took {seconds:.1f} s and {memory / 2**20:.0f} MiB")
    return outcome


def _turned(folder, random, turn, orientation):
    kind = WITH_EXIF[turn % len(WITH_EXIF)]
    size = (2 * random.integers(20, 60, 2)).tolist()  # even: libheif moves what it turns of odd sizes by a pixel
    path, pixels = _written(folder, random, kind, size)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif = exif.tobytes()  # of which HEIF makes a property of its own
    with Image.open(path) as image:
        original = image.convert("RGB")
    if kind in LOSSLESS:
        original.save(path, kind, exif=exif, **_options(kind))
        return _must_read(f"{kind} of orientation {orientation}", path, TURNED[orientation](pixels))
    original.save(path, kind)
    plain = _plain(path)
    original.save(path, kind, exif=exif)
    return _must_read(f"{kind} of orientation {orientation}", path, TURNED[orientation](plain))


def _of_mode(folder, random, turn, mode):
    image, pixels, options = _in_mode(mode, random)
    path = folder / f"mode{'.tif' if image.mode in ('CMYK', 'F') else '.png'}"
    image.save(path, **options)
    if mode == "NaN":
        return _must_refuse("mode F with NaN", path, turn)
    return _must_read(f"mode {mode}", path, pixels, off=1)


def _written(folder, random, kind, size=None, several=False):
    """A new file of a smooth picture, and its pixels, uint8 (H, W, 3), as plain Pillow reads them."""
    height, width = size or random.integers(40, 120, 2).tolist()
    coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    path = folder / f"image{ENDINGS.get(kind, f'.{kind.lower()}')}"
    more = {"save_all": True, "append_images": [picture.rotate(180)]} if several else {}
    picture.save(path, kind, **_options(kind), **more)
    return path, np.array(picture) if kind in LOSSLESS else _plain(path)


def _options(kind):
    return {"lossless": True, "exact": True} if kind == "WEBP" else {}


def _plain(path):
    """What Pillow alone reads, uint8 (H, W, 3); its warnings are those of a damaged file."""
    with warnings.catch_warnings(record=True), Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
        turn = TURNED.get(image.getexif().get(ORIENTATION, 1), TURNED[1])
        return turn(pixels)


def _like_pillow(fault, path, turn, exactly=True):
    """What comes of reading a damaged file: refused, or what Pillow alone reads; not `exactly`: its shape."""

    def complaint(pixels):
        try:
            plain = _plain(path)
        except (OSError, SyntaxError, ValueError, RuntimeError, EOFError) as error:
            return f"read, but Pillow says {error}"
        expected = plain if turn % 2 else _resized(plain)
        if pixels.dtype != np.uint8 or pixels.shape != expected.shape:
            return f"{pixels.dtype} {pixels.shape}, not {expected.shape}"
        return _apart(pixels, expected, turn % 2 == 1, 0) if exactly else None

    return attempt(fault, partial(_read, path, turn), complaint, [path.name])


def _must_read(fault, path, pixels, off=0):
    """What comes of reading a file that is right, in both ways. off: grey levels that its pixels may be off."""

    def complaint(found):
        return _apart(found[0], pixels, True, off) or _apart(found[1], _resized(pixels), False, off)

    outcome = attempt(fault, lambda: (_read(path, 1), _read(path, 0)), complaint)
    return Outcome(WRONG, f"{outcome.note}: refused") if outcome.kind == REFUSED else outcome


def _must_refuse(fault, path, turn):
    outcome = attempt(fault, partial(_read, path, turn), names=[path.name])
    return Outcome(WRONG, f"{fault}: read") if outcome.kind == RIGHT else outcome


def _read(path, turn):
    """The pixels, whole and resized in turn."""
    return read_image(path) if turn % 2 else decode(path, SIZE)


def _resized(pixels):
    """uint8 (*SIZE, 3), resized by Pillow."""
    height, width = SIZE
    return np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BILINEAR))


def _apart(found, expected, exactly, off):
    """How pixels differ from those expected; nothing where they do not."""
    if found.dtype != np.uint8 or found.shape != expected.shape:
        return f"{found.dtype} {found.shape}, not {expected.shape}"
    difference = np.abs(found.astype(int) - expected)
    if (difference.max() > off) if exactly else (difference.mean() > NEAR):
        return f"pixels are off by up to {difference.max()}, {difference.mean():.2f} on average"
    return None


def _in_mode(mode, random):
    """An image of a mode, its pixels as they are looked at, uint8 (H, W, 3), and options for its file."""
    shape = (50, 60)
    grey, alpha, red, green, blue = random.integers(0, 256, (5, *shape), dtype=np.uint8)
    options = {}
    if mode == "1":
        image = Image.fromarray(grey > 127)
        pixels = 255 * np.dstack([grey > 127] * 3)
    elif mode == "L":
        image, pixels = Image.fromarray(grey), np.dstack([grey] * 3)
    elif mode == "LA":
        image, pixels = Image.fromarray(np.dstack([grey, alpha])), _on_white(np.dstack([grey] * 3), alpha)
    elif mode == "P":
        palette, opacities = random.integers(0, 256, (256, 3), dtype=np.uint8), random.integers(0, 256, 256)
        image = Image.fromarray(grey)
        image.putpalette(palette.tobytes())
        options["transparency"] = bytes(opacities.tolist())
        pixels = _on_white(palette[grey], opacities[grey])
    elif mode == "RGB":
        pixels = np.dstack([red, green, blue])
        image = Image.fromarray(pixels)
        options["transparency"] = tuple(pixels[0, 0].tolist())
        pixels = np.where((pixels == pixels[0, 0]).all(axis=2, keepdims=True), 255, pixels)
    elif mode == "RGBA":
        image = Image.fromarray(np.dstack([red, green, blue, alpha]))
        pixels = _on_white(np.dstack([red, green, blue]), alpha)
    elif mode == "CMYK":
        image = Image.fromarray(np.dstack([red, green, blue, grey]), "CMYK")
        pixels = (255.0 - np.dstack([red, green, blue])) * (255.0 - grey[..., None]) / 255
    elif mode == "I;16":
        values = random.integers(0, 2**16, shape, dtype=np.uint16)
        image, pixels = Image.fromarray(values), np.dstack([values / 257] * 3)
    else:
        values = random.random(shape, dtype=np.float32)
        values[0, 0] = 1 if mode == "F" else np.nan
        image, pixels = Image.fromarray(values), np.dstack([values * 255] * 3)
    return image, np.nan_to_num(pixels).round().astype(np.uint8), options


def _on_white(colours, alpha):
    opacity = alpha[..., None] / 255
    return colours * opacity + 255 * (1 - opacity)


def _content_of(kind, random) -> bytes:
    """A file of a foreign kind."""
    texts = {"EPS": EPS, "SVG": SVG, "XPM": XPM, "text": "no image\n", "empty": ""}
    if kind in texts:
        return texts[kind].encode()
    if kind == "noise":
        return random.bytes(1000)
    if kind == "PSD":
        return b"8BPS" + struct.pack(">H6xHIIHHIIIH", 1, 3, 32, 40, 8, 3, 0, 0, 0, 0) + random.bytes(3 * 32 * 40)
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("image.jpg", random.bytes(100))
    else:
        Image.fromarray(random.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def _huge(kind) -> bytes:
    """A small file of SIDE x SIDE pixels, or of a head that claims them."""
    if kind == "PNG":
        rows = _rows(1)  # each begins with its filter
        header = struct.pack(">IIBBBBB", SIDE, SIDE, 1, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    if kind == "TIFF":  # width, height, bits, deflated, black is 0, where the strip is, rows of it, how long it is
        rows = _rows(0)
        tags = {256: SIDE, 257: SIDE, 258: 1, 259: 8, 262: 1, 273: 122, 277: 1, 278: SIDE, 279: len(rows)}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", 0) + rows
    file = io.BytesIO()
    Image.new("RGB", (40, 32), "red").save(file, kind, **_options(kind))
    content = bytearray(file.getvalue())
    if kind == "WEBP":  # behind the signature of its lossless picture: both sides less one, 14 bits each
        place = content.index(b"VP8L") + 9
        (bits,) = struct.unpack_from("<I", content, place)
        struct.pack_into("<I", content, place, bits & 0xF0000000 | (SIDE - 1) << 14 | SIDE - 1)
    else:
        struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, SIDE, SIDE)
    return bytes(content)


def _rows(more) -> bytes:
    """SIDE rows of SIDE pixels, of one bit each, with so many more bytes a row, compressed."""
    return zlib.compress(bytes(SIDE * (SIDE // 8 + more)), 6)


def _chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _most_memory() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
