"""One reader: header and pixels agree; values are scaled by type, never by content; metadata keeps no image out."""

import io
import re
import struct
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
import yaml
from helpers import write_images
from PIL import Image, PngImagePlugin

from utils import load_splits
from utils.audit.images import audit_images
from utils.config import ConfigError
from utils.data.images import scan
from utils.data.reading import DataError, decode, read_header, read_image
from utils.data.splits import load_images
from utils.search.gallery import gallery, network_digest
from utils.show.charts import pairs_figure
from utils.show.drawing import photo, photos

RANDOM = np.random.default_rng(0)
COLOURS = cv2.resize(RANDOM.integers(0, 256, (3, 4, 3), dtype=np.uint8), (48, 32))  # smooth, for lossy formats
TIFF_KINDS = {"u": 1, "i": 2, "f": 3}  # of the tag SampleFormat
UPRIGHT = {  # the eight cases of the EXIF standard; other values mean nothing
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def exif_with(kind, count, value, order="<"):
    """EXIF data whose only entry is the orientation, of any type, by hand."""
    packed = value if isinstance(value, bytes) else struct.pack(order + {3: "HH", 4: "Lxxxx", 8: "hh"}[kind], value, 0)
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHL", 0x112, kind, count) + packed[:4].ljust(4, b"\0")
    return b"Exif\0\0" + head + struct.pack(f"{order}LH", 8, 1) + entry + bytes(4)


def write_tiff(path, values, order="<", deflate=False, photometric=1, extra=()):
    """A TIFF (H, W) or (H, W, C) in one strip, by hand. extra: further tags (number, type, value)."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if deflate else data
    bits = values.itemsize * 8
    tags = [(256, 4, width), (257, 4, height), (259, 3, 8 if deflate else 1), (262, 3, photometric)]
    tags += [(277, 3, channels), (278, 4, height), (279, 4, len(data)), *extra]
    lists = {258: [bits] * channels, 339: [TIFF_KINDS[values.dtype.kind]] * channels}
    if channels == 4:
        tags.append((338, 3, 2))  # alpha, not multiplied
    content = bytearray(struct.pack(f"{order}2sHL", b"II" if order == "<" else b"MM", 42, 0))
    tags.append((273, 4, len(content)))
    content += data + bytes(len(data) % 2)
    entries = {number: (kind, 1, struct.pack(f"{order}{'HL'[kind == 4]}", value)) for number, kind, value in tags}
    for number, numbers in lists.items():
        packed = struct.pack(f"{order}{channels}H", *numbers)
        if len(packed) > 4:
            place = len(content)
            content += packed
            packed = struct.pack(f"{order}L", place)
        entries[number] = (3, channels, packed)
    content[4:8] = struct.pack(f"{order}L", len(content))
    content += struct.pack(f"{order}H", len(entries))
    for number, (kind, count, packed) in sorted(entries.items()):
        content += struct.pack(f"{order}HHL", number, kind, count) + packed.ljust(4, b"\0")
    path.write_bytes(content + bytes(4))


def chunk(kind, content):
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def write_png16(path, values, before=b""):
    """A PNG of 16 bits, by hand: (H, W), or (H, W, C) of 2, 3 or 4 channels. before: chunks before the pixels."""
    height, width = values.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2] if values.ndim == 3 else 1]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">LL", width, height) + bytes([16, kind, 0, 0, 0])
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + end)


def scaled(values, low, high):
    """By the formula, a value at a time."""
    levels = [round(255 * (float(value) - low) / (high - low)) for value in values.ravel()]
    return np.array(levels, np.uint8).reshape(values.shape)


def grey(path, **settings):
    """The pixels of a file that must be grey: uint8 (H, W)."""
    pixels = read_image(path, **settings)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".heic", ".avif", ".mpo"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_header_has_the_shape_that_is_read(tmp_path, suffix, orientation):
    path = tmp_path / f"image{suffix}"
    exif = Image.Exif()
    exif[0x112] = orientation
    settings = {"exif": exif.tobytes()}
    if suffix == ".mpo":
        settings |= {"save_all": True, "append_images": [Image.new("RGB", (48, 32))]}
    Image.fromarray(COLOURS).save(path, quality=98, **settings)
    pixels = read_image(path)
    expected = UPRIGHT.get(orientation, lambda upright: upright)(COLOURS)
    assert read_header(path)[0] == pixels.shape[:2] == expected.shape[:2]
    if suffix in (".png", ".tif"):
        np.testing.assert_array_equal(pixels, expected)
    else:
        assert np.abs(pixels.astype(int) - expected).mean() < 6
    assert read_header(path)[1] == ("JPEG" if suffix == ".mpo" else read_header(path)[1])


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_greyscale_tiffs_are_turned_once(tmp_path, order, deflate, orientation):
    expected = UPRIGHT.get(orientation, lambda upright: upright)
    for kind, low, high in (("u1", 0, 255), ("u2", 0, 65535), ("i2", -100, 32000), ("f4", 0, 1)):
        values = (low + RANDOM.random((5, 7)) * (high - low)).astype(kind)
        write_tiff(tmp_path / "x.tif", values, order, deflate, extra=[(274, 3, orientation)])
        pixels = grey(tmp_path / "x.tif", value_range=(low, high))
        np.testing.assert_array_equal(pixels, expected(scaled(values, low, high)))
        assert read_header(tmp_path / "x.tif")[0] == pixels.shape


ODD = {  # of browsers, which take only SHORT, these all mean nothing
    "BYTE 6": (1, 1, b"\x06"),
    "ASCII 6": (2, 2, b"6\0"),
    "UNDEFINED 6": (7, 1, b"\x06"),
    "SHORT 9": (3, 1, 9),
    "SHORT 0": (3, 1, 0),
    "SHORT 65535": (3, 1, 65535),
    "SIGNED SHORT -6": (8, 1, -6),
    "ASCII letters": (2, 4, b"abc\0"),
}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_an_orientation_that_means_nothing_leaves_an_image_as_it_is(tmp_path, suffix, name, order):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(COLOURS).save(path, quality=98, exif=exif_with(*ODD[name], order))
    assert read_header(path)[0] == read_image(path).shape[:2] == (32, 48)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damage that it can live with
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage, no TIFF", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_keeps_no_image_out(tmp_path, suffix, exif):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(COLOURS).save(path, quality=98, exif=exif)
    assert read_header(path)[0] == read_image(path).shape[:2] == cv2.imread(str(path)).shape[:2] == (32, 48)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_an_orientation_in_xmp_alone_is_one_for_both(tmp_path, suffix):
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    settings = {"xmp": xmp.encode()}
    if suffix == ".png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp)
        settings = {"pnginfo": text}
    if suffix == ".tif":
        settings = {"tiffinfo": {700: xmp.encode()}}
    Image.fromarray(COLOURS).save(tmp_path / f"image{suffix}", **settings)
    assert read_header(tmp_path / f"image{suffix}")[0] == read_image(tmp_path / f"image{suffix}").shape[:2] == (48, 32)


def test_jpegs_of_phones_are_no_format_of_their_own(tmp_path, make_config):
    random = np.random.default_rng(1)
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(24):
            images = [Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(2)]
            file = tmp_path / "data" / name / f"{number}.jpg"
            if name == "a":
                images[0].save(file, "MPO", save_all=True, append_images=images[1:])
                with Image.open(file) as opened:
                    assert opened.format == "MPO"
            else:
                images[0].save(file)
    config = make_config({"data_path": str(tmp_path / "data"), "hyperparameters.verbose": False})
    assert not [cue for cue in audit_images(*load_images(config)).cues if cue.property == "file format"]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "i4", "f4"])
def test_greys_of_every_type_and_byte_order(tmp_path, kind, order, deflate):
    dtype = np.dtype(kind)
    low, high = (0, 1) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = np.linspace(low, high, 40 * 50).reshape(40, 50).astype(dtype)
    values[0, 0], values[-1, -1] = low, high
    write_tiff(tmp_path / "x.tif", values, order, deflate)
    expected = scaled(values, low, high)
    np.testing.assert_array_equal(grey(tmp_path / "x.tif", value_range=(low, high)), expected)
    if dtype.kind == "i":
        with pytest.raises(DataError, match=rf"x\.tif: holds int\d+ values from .*{high}.* set image\.value_range"):
            read_image(tmp_path / "x.tif")
    else:
        np.testing.assert_array_equal(grey(tmp_path / "x.tif"), expected)


def test_unsigned_32_bits_do_not_wrap(tmp_path):
    values = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    write_tiff(tmp_path / "x.tif", values)
    assert grey(tmp_path / "x.tif", value_range=(0, 2**32 - 1)).tolist() == [[0, 128, 255]]


def test_twelve_packed_bits_are_a_type_of_their_own(tmp_path):
    values = [0, 1000, 2048, 4095]
    packed = b"".join(((one << 12) | two).to_bytes(3) for one, two in zip(values[::2], values[1::2], strict=True))
    write_tiff(tmp_path / "x.tif", np.frombuffer(packed, np.uint8)[None])
    content = bytearray((tmp_path / "x.tif").read_bytes())
    for number, old, new in ((256, 6, 4), (258, 8, 12)):
        kind = 4 if number == 256 else 3
        entry = struct.pack("<HHL", number, kind, 1)
        assert content.count(entry + old.to_bytes(4, "little")) == 1
        content = content.replace(entry + old.to_bytes(4, "little"), entry + new.to_bytes(4, "little"))
    (tmp_path / "x.tif").write_bytes(content)
    assert grey(tmp_path / "x.tif").tolist() == [[0, 62, 128, 255]]


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_where_white_is_zero(tmp_path, kind):
    """Some scanners and X-ray machines write TIFFs so."""
    most = 1 if kind == "f4" else np.iinfo(kind).max
    write_tiff(tmp_path / "x.tif", np.array([[0, most]], kind), photometric=0)
    assert grey(tmp_path / "x.tif").tolist() == [[255, 0]]


def test_a_tiff_that_cannot_be_read_says_so(tmp_path):
    for values in (np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint16), np.zeros((4, 4, 3), np.float32)):
        write_tiff(tmp_path / "x.tif", values, photometric=2 if values.ndim == 3 and values.shape[2] == 3 else 1)
        for read in (read_image, read_header):
            with pytest.raises(DataError, match=r"x\.tif: is damaged, or a TIFF of a kind that cannot be read: save"):
                read(tmp_path / "x.tif")


def write_by_suffix(path, values):
    (write_png16 if path.suffix == ".png" else write_tiff)(path, values)


@pytest.mark.parametrize(("suffix", "kind", "most"), [(".png", "u2", 65535), (".tif", "u2", 65535), (".tif", "f4", 1)])
def test_one_pixel_changes_no_other(tmp_path, suffix, kind, most):
    values = (RANDOM.random((16, 16)) * most / 20).astype(kind)
    write_by_suffix(tmp_path / f"x{suffix}", values)
    before = grey(tmp_path / f"x{suffix}")
    assert before.max() < 20
    values[0, 0] = most
    write_by_suffix(tmp_path / f"x{suffix}", values)
    after = grey(tmp_path / f"x{suffix}")
    assert after[0, 0] == 255
    np.testing.assert_array_equal(after.ravel()[1:], before.ravel()[1:])


@pytest.mark.parametrize(
    ("values", "value_range", "value"),
    [
        (np.float32([[0, 0.5, 1.0001]]), None, "1.0001"),
        (np.float32([[0, 0.5, 255.4]]), None, "255.4"),
        (np.float32([[-0.25, 0.5, 1]]), None, "-0.25"),
        (np.uint16([[0, 1, 4096]]), (0, 4095), "4096"),
        (np.uint16([[9, 100, 200]]), (10, 200), "9"),
        (np.int16([[-1, 100, 200]]), (0, 200), "-1"),
    ],
)
def test_values_beyond_the_range_are_named_and_the_cure_helps(tmp_path, values, value_range, value):
    write_tiff(tmp_path / "x.tif", values)
    with pytest.raises(DataError, match=rf"x\.tif: holds the value {re.escape(value)}, beyond the range") as caught:
        read_image(tmp_path / "x.tif", value_range=value_range)
    advised = yaml.safe_load(re.search(r"image\.value_range .*here (\[.*?\])", str(caught.value))[1])
    np.testing.assert_array_equal(grey(tmp_path / "x.tif", value_range=advised), scaled(values, *advised))


def test_rounding_of_float32_is_not_beyond(tmp_path):
    write_tiff(tmp_path / "x.tif", np.float32([[-1e-8, 0.5, 1 + 2e-7]]))
    assert grey(tmp_path / "x.tif").tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif", ".heic", ".avif"])
def test_files_of_8_bits_know_no_other_range(tmp_path, suffix):
    Image.fromarray(COLOURS).save(tmp_path / f"x{suffix}")
    of_12_bits = read_image(tmp_path / f"x{suffix}", value_range=(0, 4095))
    np.testing.assert_array_equal(of_12_bits, read_image(tmp_path / f"x{suffix}"))


def test_bitmaps_and_palettes_know_no_other_range(tmp_path):
    for mode in ("1", "L", "P", "LA", "RGBA", "CMYK"):
        Image.fromarray(COLOURS).convert("L" if mode == "1" else "RGB").convert(mode).save(tmp_path / "x.tif")
        of_12_bits = read_image(tmp_path / "x.tif", value_range=(0, 4095))
        np.testing.assert_array_equal(of_12_bits, read_image(tmp_path / "x.tif"))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_and_alpha_of_16_bits(tmp_path, suffix, channels):
    if (suffix, channels) == (".tif", 2):
        return  # is refused
    path = tmp_path / f"x{suffix}"
    values = RANDOM.integers(0, 4096, (20, 30, channels)).astype(np.uint16)
    values[0, 0], values[-1, -1] = 0, 4095
    alpha = np.full((20, 30), 65535)
    if channels != 3:
        alpha[:, :15] = 0
        values[..., -1] = alpha
    if suffix == ".png":
        write_png16(path, values)
    else:
        write_tiff(path, values, photometric=2)
    colours = values[..., :3] if channels > 2 else values[..., [0, 0, 0]]
    expected = np.where(alpha[..., None] > 0, scaled(colours, 0, 4095), 255)
    np.testing.assert_array_equal(read_image(path, value_range=(0, 4095)), expected)
    coarse = np.where(alpha[..., None] > 0, colours // 256, 255)  # by type: the upper 8 bits of 16
    np.testing.assert_array_equal(read_image(path), coarse)


@pytest.mark.parametrize("colours", [False, True])
def test_the_transparent_value_of_16_bits(tmp_path, colours):
    values = np.array([[0x1234, 0x1235, 65535]], np.uint16)
    values = np.dstack([values] * 3) if colours else values
    hole = (0x1234).to_bytes(2) * (3 if colours else 1)
    write_png16(tmp_path / "x.png", values, chunk(b"tRNS", hole))
    assert grey(tmp_path / "x.png").tolist() == [[255, 18, 255]]


@pytest.fixture
def deep_folder(tmp_path):
    """Two classes of 16-bit images that hold 12 bits, ten each."""
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(10):
            values = RANDOM.integers(0, 4096, (32, 40)).astype(np.uint16)
            values[0, :2] = 0, 4095
            cv2.imwrite(str(tmp_path / "data" / name / f"{number}.png"), values)
    return tmp_path / "data"


def test_the_range_is_that_of_every_reader(deep_folder, make_config, tmp_path, trained):
    settings = {"data_path": str(deep_folder), "image.size": [32, 40], "hyperparameters.verbose": False}
    plain, twelve = make_config(settings), make_config({**settings, "image.value_range": [0, 4095]}, "twelve.yml")
    folder = scan(deep_folder)
    first = np.stack([cv2.imread(folder.paths[0], cv2.IMREAD_UNCHANGED)] * 3, axis=2)
    for config, most in ((plain, 65535), (twelve, 4095), (plain, 65535)):  # neither finds the other's cache
        splits = load_splits(config)
        expected = scaled(first, 0, most)
        np.testing.assert_array_equal(splits.pixels[np.array([0])][0], expected)
        np.testing.assert_array_equal(decode(folder.paths[0], (32, 40), value_range=(0, most)), expected)
        np.testing.assert_array_equal(photo(folder.paths[0], splits.pixels.value_range), expected)
    assert len(list(twelve.cache_path.glob("*.json"))) == 2
    shown = pairs_figure(splits=load_splits(twelve), pairs=load_splits(twelve).test_pairs, count=1)
    assert max(image.get_array().max() for axes in shown.axes for image in axes.images) == 255


def with_range(trained, value_range):
    """The network as one that was trained with another range."""
    image = trained.config.image.changed(value_range=value_range)
    return replace(trained, config=trained.config.model_copy(update={"image": image}))


def test_the_range_is_that_of_explanations_and_galleries(deep_folder, trained):
    twelve = with_range(trained, [0, 4095])
    paths = scan(deep_folder).paths
    assert network_digest(twelve) != network_digest(trained)
    seen = twelve.load_images(paths[0])
    assert seen.max() > trained.load_images(paths[0]).max()
    explanation = twelve.explain((paths[0], paths[-1]), method="gradcam", layer="last")
    assert photos(explanation)[0].max() == photos(explanation[0])[1].max() == 255
    assert photos(trained.explain((paths[0], paths[-1]), method="gradcam", layer="last"))[0].max() == 16
    both = gallery(twelve, deep_folder).embeddings, gallery(trained, deep_folder).embeddings
    assert not np.allclose(*both)
    with pytest.raises(DataError, match=r"0\.png: holds the value 4095, beyond the range from 0 to 10"):
        with_range(trained, [0, 10]).load_images(paths[0])


def test_files_beyond_the_range_are_left_out_and_listed(deep_folder, make_config, capsys):
    cv2.imwrite(str(deep_folder / "a" / "x.png"), np.full((32, 40), 4096, np.uint16))
    load_splits(make_config({"data_path": str(deep_folder), "image.value_range": [0, 4095]}))
    assert "a/x.png (holds the value 4096, beyond the range from 0 to 4095: set" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["full", [1], [1, 2, 3], [5, 5], [5, 1], [0, float("inf")], True, ["0", "1"], 255])
def test_ranges_that_are_none(make_config, value):
    with pytest.raises(ConfigError, match=r"image\.value_range"):
        make_config({"image.value_range": value})


def test_ranges_that_are_one(make_config):
    for value, expected in (("auto", None), ([0, 4095], (0, 4095)), ([-1.5, 2.0], (-1.5, 2.0)), ([0, "1e5"], (0, 1e5))):
        assert make_config({"image.value_range": value}).image.value_range == expected


def narrow_line(folder, make_config, **settings):
    changes = {f"image.{key}": value for key, value in settings.items()}
    config = make_config({"data_path": str(folder), "hyperparameters.verbose": False, **changes})
    lines = [line for line in str(audit_images(*load_images(config))).splitlines() if line.startswith("Narrow range ")]
    assert len(lines) < 2
    return lines[0] if lines else None


def test_the_audit_names_files_that_use_little_of_their_range(deep_folder, make_config):
    line = narrow_line(deep_folder, make_config)
    assert line.startswith("Narrow range (20): a/0.png (from ")
    assert "a/1.png (from 0 to 16)" in line
    assert "image.value_range" in line
    assert narrow_line(deep_folder, make_config, value_range=[0, 4095]) is None


def test_what_an_eighth_is(tmp_path, make_config):
    for seed, name in enumerate("ab"):
        write_images(tmp_path / "data" / name, 3, (200, 300), seed)  # their noise is averaged away in small pixels
    for name, least, most in (("full", 100, 131), ("narrow", 100, 130), ("black", 0, 0)):
        values = np.full((40, 40, 3), least, np.uint8)
        values[0, 0, 1] = most
        Image.fromarray(values).save(tmp_path / "data" / "a" / f"{name}.png")
    line = narrow_line(tmp_path / "data", make_config)
    assert line.startswith("Narrow range (2): ")
    assert "a/black.png (from 0 to 0), a/narrow.png (from 100 to 130)." in line


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt"])
@pytest.mark.parametrize("behind", [False, True])
def test_a_png_may_hold_much_text(tmp_path, kind, behind):
    """As image generators write it: settings and whole workflows."""
    text = b"{workflow}" * 500_000
    packed = zlib.compress(text)
    content = {"tEXt": b"k\0" + text, "zTXt": b"k\0\0" + packed, "iTXt": b"k\0\1\0\0\0" + packed}[kind]
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "PNG")
    whole = buffer.getvalue()
    place = whole.index(b"IEND" if behind else b"IDAT") - 4
    (tmp_path / "x.png").write_bytes(whole[:place] + chunk(kind.encode(), content) + whole[place:])
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), COLOURS)
    assert read_header(tmp_path / "x.png") == ((32, 48), "PNG")


def test_text_that_would_fill_the_memory_is_not_unpacked(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "PNG")
    whole = buffer.getvalue()
    place = whole.index(b"IDAT") - 4
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(70 * 2**20)))
    several = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(40 * 2**20))) * 2
    for texts in (bomb, several):
        (tmp_path / "x.png").write_bytes(whole[:place] + texts + whole[place:])
        for read in (read_image, read_header):
            with pytest.raises(
                DataError, match=r"x\.png: holds more than 64 MB of text: save it again without its meta"
            ):
                read(tmp_path / "x.png")


SAVED_AS = {".jfif": "JPEG", ".jpe": "JPEG", ".jif": "JPEG", ".pjpeg": "JPEG", ".pjp": "JPEG"}
SAVED_AS |= {".mpo": "MPO", ".dib": "BMP", ".hif": "HEIF"}


def test_what_browsers_windows_and_cameras_call_images(tmp_path):
    write_images(tmp_path / "data" / "b", 2)
    (tmp_path / "data" / "a").mkdir()
    for number, (suffix, kind) in enumerate(SAVED_AS.items()):
        name = f"{number}{suffix.upper() if number % 2 else suffix}"
        Image.fromarray(COLOURS).save(tmp_path / "data" / "a" / name, kind)
    folder = scan(tmp_path / "data")
    assert len(folder.paths) == 2 + len(SAVED_AS)
    assert not folder.skipped
    for path in folder.paths[: len(SAVED_AS)]:
        assert np.abs(read_image(path).astype(int) - COLOURS).mean() < 8


def test_a_png_with_damaged_pixels_is_refused(tmp_path):
    """Asking for its EXIF data decodes the pixels, and must not hide the damage."""
    path = tmp_path / "damaged.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged\.png"):
        read_image(path)
