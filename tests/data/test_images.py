from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import write_images
from PIL import Image

from utils.data.images import DataError, read_image, scan

GRADIENT = np.dstack([*np.meshgrid(np.linspace(0, 255, 32), np.linspace(0, 255, 24)), np.full((24, 32), 90.0)])
PIXELS = GRADIENT.round().astype(np.uint8)  # (24, 32, 3)
GREY = np.tile(np.linspace(0, 255, 32).round().astype(np.uint8), (24, 1))


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".BMP", ".webp", ".tif", ".TIFF"])
def test_every_extension_decodes(tmp_path, suffix):
    Image.fromarray(PIXELS).save(tmp_path / f"image{suffix}", quality=95)
    decoded = read_image(tmp_path / f"image{suffix}")
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - PIXELS).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
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


def test_scan_sorts_counts_and_skips(tmp_path):
    write_images(tmp_path / "b", 2)
    write_images(tmp_path / "a", 3)
    write_images(tmp_path / ".hidden", 1)
    (tmp_path / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("")
    write_images(tmp_path / "a" / "deeper", 1)
    (tmp_path / "readme.md").write_text("")
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
    assert folder.skipped == 4
    assert "4 hidden or non-image files and subfolders skipped" in folder.report()


def test_lone_class_is_named(tmp_path):
    write_images(tmp_path / "many", 2)
    write_images(tmp_path / "single", 1, seed=1)
    assert scan(tmp_path).lone_classes() == ["single"]
    assert "a negative only: single" in scan(tmp_path).report()


def test_duplicates_share_a_content_id_and_mislabelled_ones_are_named(tmp_path):
    write_images(tmp_path / "a", 3)
    write_images(tmp_path / "b", 3, seed=1)
    for copy, original in (("a/copy.png", "a/0.png"), ("b/wrong.png", "a/1.png")):
        (tmp_path / copy).write_bytes((tmp_path / original).read_bytes())
    folder = scan(tmp_path)
    groups = {}
    for path, content in zip(folder.paths, folder.contents, strict=True):
        groups.setdefault(content, []).append(path.removeprefix(f"{tmp_path}/"))
    assert sorted(group for group in groups.values() if len(group) > 1) == [
        ["a/0.png", "a/copy.png"],
        ["a/1.png", "b/wrong.png"],
    ]
    assert folder.mislabelled_duplicates() == [("a/1.png", "b/wrong.png")]
    assert "a/1.png = b/wrong.png" in folder.report()


def test_duplicates_are_told_from_files_alike_in_size_and_first_bytes(tmp_path):
    for label, (name, tail) in enumerate((("a", b"1"), ("b", b"2"), ("c", b"1"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "long.png").write_bytes(b"x" * 9000 + tail)
        (tmp_path / name / "short.png").write_bytes(b"x" * 90 + tail)
        (tmp_path / name / "lone.png").write_bytes(b"x" * (10 + label))
    paths, contents = scan(tmp_path).paths, scan(tmp_path).contents
    for first, content1 in zip(paths, contents, strict=True):
        for second, content2 in zip(paths, contents, strict=True):
            assert (content1 == content2) == (Path(first).read_bytes() == Path(second).read_bytes())


def test_long_lists_are_cut(tmp_path):
    for name in range(25):
        (tmp_path / f"class{name:02}").mkdir()
    with pytest.raises(DataError, match="class19, and 5 more"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (None, "is not a folder"),
        ({}, "holds no class folder"),
        ({"a": 1}, "holds one class, a"),
        ({"a": 1, "b": 0}, "no image in .*b"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, classes, said):
    for name, count in (classes or {}).items():
        write_images(tmp_path / "data" / name, count)
    if classes == {}:
        (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=said):
        scan(tmp_path / "data")
