import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import pixels_of, write_images
from PIL import Image
from pillow_heif import HeifImageFile

from utils.data.images import scan
from utils.data.reading import DataError, read_header, read_image

GRADIENT = np.dstack([*np.meshgrid(np.linspace(0, 255, 32), np.linspace(0, 255, 24)), np.full((24, 32), 90.0)])
PIXELS = GRADIENT.round().astype(np.uint8)  # (24, 32, 3)
GREY = np.tile(np.linspace(0, 255, 32).round().astype(np.uint8), (24, 1))


@pytest.mark.parametrize(
    "suffix", [".jpg", ".JPEG", ".png", ".BMP", ".webp", ".tif", ".TIFF", ".HEIC", ".heif", ".avif"]
)
def test_every_extension_decodes(tmp_path, suffix):
    Image.fromarray(PIXELS).save(tmp_path / f"image{suffix}", quality=95)
    decoded = read_image(tmp_path / f"image{suffix}")
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - PIXELS).mean() < 4


def turned(orientation):
    """EXIF data with this orientation, as bytes."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=turned(orientation))
    upright = {  # the eight cases of the EXIF standard, tag 0x0112
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS),
    }[orientation]
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), upright)


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_phones_write_is_turned_once(tmp_path, orientation, suffix):
    """These formats turn an image by a property of their own, beside EXIF; JPEG has only EXIF."""
    large = np.kron(PIXELS, np.ones((4, 4, 1), np.uint8))
    for name in ("turned.jpg", f"turned{suffix}"):
        Image.fromarray(large).save(tmp_path / name, quality=95, exif=turned(orientation))
    ours, jpeg = (read_image(tmp_path / name).astype(int) for name in (f"turned{suffix}", "turned.jpg"))
    assert ours.shape == jpeg.shape
    assert np.abs(ours - jpeg).mean() < 2


def test_a_thumbnail_never_stands_for_its_image(tmp_path):
    large = np.kron(PIXELS, np.ones((16, 16, 1), np.uint8))
    Image.fromarray(large).save(tmp_path / "phone.heic", thumbnails=[128])
    with Image.open(tmp_path / "phone.heic") as image:
        assert isinstance(image, HeifImageFile)
    assert read_image(tmp_path / "phone.heic", at_least=64).shape == large.shape


def test_the_content_tells_the_format(tmp_path):
    """Phones and messengers rename files."""
    Image.fromarray(PIXELS).save(tmp_path / "image.heic", quality=95)
    (tmp_path / "image.heic").rename(tmp_path / "image.jpg")
    assert np.abs(read_image(tmp_path / "image.jpg").astype(int) - PIXELS).mean() < 4


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damage that it can live with
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif", ".heic", ".avif"])
def test_damage_anywhere_is_a_data_error_and_nothing_else(tmp_path, suffix):
    path, random = tmp_path / f"image{suffix}", np.random.default_rng(0)
    Image.fromarray(PIXELS).save(path)
    whole, refused = path.read_bytes(), []
    for number in range(60):
        content = bytearray(whole)
        if number % 2:
            content = content[: random.integers(len(whole))]
        else:
            content[random.integers(min(len(whole), 400))] ^= random.integers(1, 256)
        path.write_bytes(content)
        try:
            read_image(path, max_megapixels=0.02)  # a damaged size takes no memory
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all(message.startswith(f"{path}: ") for message in refused)
    assert all(message.count(str(tmp_path)) == 1 for message in refused)


@pytest.mark.parametrize(
    ("content", "cause"), [(b"", "is empty"), (b"<html>404</html>", "is no image"), (None, "No such file or directory")]
)
def test_causes_in_plain_words(tmp_path, content, cause):
    if content is not None:
        (tmp_path / "image.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"image\.jpg: {cause}"):
        read_image(tmp_path / "image.jpg")


def test_greyscale_and_bitmaps(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([GREY] * 3, axis=2))
    Image.fromarray(GREY > 127).save(tmp_path / "bitmap.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bitmap.png")[..., 0], np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_images_keep_their_look(tmp_path, suffix):
    cv2.imwrite(str(tmp_path / f"grey{suffix}"), GREY.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / f"grey{suffix}"), np.stack([GREY] * 3, axis=2))
    cv2.imwrite(str(tmp_path / f"colour{suffix}"), PIXELS[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / f"colour{suffix}"), PIXELS)


def test_floating_point_tiff(tmp_path):
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "float.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "float.tif"), np.stack([GREY] * 3, axis=2))


def test_dark_16_bit_images_stay_dark_and_nan_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "dark.png"), np.full((4, 4), 200, np.uint16))
    assert read_image(tmp_path / "dark.png").max() == 1
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(DataError, match=r"nan\.tif: holds values that are not finite"):
        read_image(tmp_path / "nan.tif")


def test_palette_and_transparency_lie_on_white(tmp_path):
    alpha = np.zeros((24, 32), np.uint8)
    alpha[:, 16:] = 255
    Image.fromarray(np.dstack([PIXELS, alpha])).save(tmp_path / "rgba.png")
    decoded = read_image(tmp_path / "rgba.png")
    assert (decoded[:, :16] == 255).all()
    np.testing.assert_array_equal(decoded[:, 16:], PIXELS[:, 16:])
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 30, 60])
    palette.save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").tolist() == [[[200, 30, 60]] * 4] * 4
    palette.save(tmp_path / "hole.png", transparency=1)
    assert (read_image(tmp_path / "hole.png") == 255).all()
    Image.fromarray(np.dstack([GREY, alpha]), "LA").save(tmp_path / "la.png")
    assert (read_image(tmp_path / "la.png")[:, :16] == 255).all()


def test_cmyk_looks_right(tmp_path):
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - PIXELS).mean() < 5


def test_scan_sorts_and_names_what_it_skips(tmp_path):
    write_images(tmp_path / "b", 2)
    write_images(tmp_path / "a", 3)
    write_images(tmp_path / ".hidden", 1)
    (tmp_path / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("")
    write_images(tmp_path / "a" / "deeper", 1)
    for name in ("readme.md", "b/one.CR2", "b/two.cr2", "a/clip.mov", "a/noending", "lost.JPG", "a/three.cr2"):
        (tmp_path / name).write_text("")
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "nowhere.png")
    folder = scan(tmp_path)
    assert folder.classes == ("a", "b")
    assert [path.removeprefix(f"{tmp_path}/") for path in folder.paths] == [
        "a/0.png",
        "a/1.png",
        "a/2.png",
        "b/0.png",
        "b/1.png",
    ]
    assert folder.labels.tolist() == [0, 0, 0, 1, 1]
    assert folder.skipped == {
        ".cr2": 3,
        "hidden": 2,
        ".md": 1,
        ".jpg beside the class folders": 1,
        ".mov": 1,
        ".txt": 1,
        "no ending": 1,
        "subfolders": 1,
        "broken links": 1,
    }
    assert "skipped: 3 .cr2, 2 hidden, 1 .jpg beside the class folders, 1 .md, 1 .mov" in folder.report()


def test_nothing_skipped_is_not_mentioned(tmp_path):
    for seed, name in enumerate("ab"):
        write_images(tmp_path / name, 2, seed=seed)
    assert scan(tmp_path).skipped == {}
    assert "skipped:" not in scan(tmp_path).report()


def test_a_class_of_a_single_image_is_named(tmp_path):
    write_images(tmp_path / "many", 2)
    write_images(tmp_path / "single", 1, seed=1)
    assert scan(tmp_path).report().endswith("a negative only: single")


def test_byte_identical_files_share_a_content(tmp_path):
    write_images(tmp_path / "a", 3)
    write_images(tmp_path / "b", 3, seed=1)
    for copy, original in (("a/copy.png", "a/0.png"), ("b/wrong.png", "a/1.png")):
        (tmp_path / copy).write_bytes((tmp_path / original).read_bytes())
    same_size = (tmp_path / "b" / "2.png").read_bytes()
    (tmp_path / "b" / "longer.png").write_bytes(same_size + b"1")
    (tmp_path / "b" / "other.png").write_bytes(same_size + b"2")  # decoders ignore what follows the image
    for name in ("empty1.png", "empty2.png"):
        (tmp_path / "a" / name).write_bytes(b"")
    folder = scan(tmp_path)
    pixels = pixels_of(tmp_path, (32, 32))
    contents = pixels.contents()
    for index1, path1 in enumerate(folder.paths):
        first = index1
        for index2, path2 in enumerate(folder.paths[:index1]):
            if index1 not in pixels.unreadable and Path(path1).read_bytes() == Path(path2).read_bytes():
                first = index2
                break
        assert contents[index1] == first
    assert len(pixels.unreadable) == 2
    assert len(set(contents)) == len(folder.paths) - 2


def test_long_lists_are_cut(tmp_path):
    for name in range(25):
        (tmp_path / f"class{name:02}").mkdir()
    with pytest.raises(DataError, match="class19, and 5 more"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, "is not a folder"),
        ({}, "holds no class folder"),
        ({"a": 1}, "holds one class, a"),
        ({"a": 1, "b": 0}, r"no image in .*b \(.*skipped: nothing"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, classes, message):
    for name, count in (classes or {}).items():
        write_images(tmp_path / "data" / name, count)
    if classes == {}:
        (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=message):
        scan(tmp_path / "data")


def test_a_class_of_other_files_alone_says_what_they_are(tmp_path):
    write_images(tmp_path / "a", 2)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.CR2").write_text("")
    with pytest.raises(DataError, match=r"no image in .*skipped: 1 \.cr2"):
        scan(tmp_path)


def test_an_eps_under_another_name_starts_no_program(tmp_path, monkeypatch):
    """Pillow would hand it to Ghostscript."""
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "x.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n")
    for read in (read_image, read_header):
        with pytest.raises(DataError):
            read(path)
    assert not started.exists()
    with pytest.raises(DataError, match=r"x\.jpg: is no image \(JPEG, PNG, .*\), or its header is damaged"):
        read_image(path)


@pytest.mark.parametrize("kind", ["GIF", "TGA", "PCX", "PPM", "ICO"])
def test_formats_that_the_readme_does_not_name_are_not_tried(tmp_path, kind):
    Image.fromarray(PIXELS).convert("P" if kind == "GIF" else "RGB").save(tmp_path / "x.png", format=kind)
    with pytest.raises(DataError, match="is no image"):
        read_image(tmp_path / "x.png")


def test_a_small_file_of_many_pixels_is_refused_before_it_is_unpacked(tmp_path):
    def chunk(kind, content):
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    side = 20_000
    header = side.to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress(bytes(3 * side + 1) * 100)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(DataError, match=r"bomb\.png: has 400 million pixels, above the 100 of max_megapixels"):
        read_image(tmp_path / "bomb.png")
    Image.fromarray(PIXELS).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="of max_megapixels"):
        read_image(tmp_path / "small.png", max_megapixels=0.0001)
    assert read_image(tmp_path / "small.png", max_megapixels=1).shape == PIXELS.shape


def test_links_that_lead_to_themselves_and_pipes_are_counted_and_passed_over(tmp_path):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b", 2, seed=1)
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "b" / "around").symlink_to("..")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    folder = scan(tmp_path)
    assert folder.classes == ("a", "b")
    assert len(folder.paths) == 4
    assert folder.skipped == {"broken links": 2, "subfolders": 1, "no files": 1}


def test_names_that_are_no_text(tmp_path):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b", 2, seed=1)
    os.rename(os.fsencode(tmp_path / "a" / "0.png"), os.fsencode(tmp_path / "a") + b"/\xff.png")
    folder = scan(tmp_path)
    assert os.fsencode(folder.paths[1]).endswith(b"\xff.png")
    assert read_image(folder.paths[1]).shape == (32, 32, 3)
    os.truncate(folder.paths[1], 5)
    with pytest.raises(DataError, match=r"\\udcff\.png: is no image"):
        read_image(folder.paths[1])
