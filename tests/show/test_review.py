import base64
import json
import re
import shutil
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
from helpers import write_images

from utils import review
from utils.show.review import COLUMNS, NOTHING, QUESTIONS, SIDE

HOSTILE = 'a,"b"/<img src=x onerror=alert(1)>.png', "</script><script>alert(1)</script>"


def content_of(element):
    """The JSON that a component's script unpacks."""
    (data,) = re.findall(r"await unpack\('([^']+)'\)", element.html)
    return json.loads(zlib.decompress(base64.b64decode(data)))


def table(*rows):
    """Problems of images in the class of their folder, without it: (image, problem, evidence, suggestion, beside)."""
    return pd.DataFrame([(row[0], row[0].split("/")[0], *row[1:]) for row in rows], columns=COLUMNS)


@pytest.fixture
def root(tmp_path):
    """Two classes of three images of noise, 300 by 400 pixels, and a broken file."""
    for seed, name in enumerate(("rose", "tulip")):
        write_images(tmp_path / name, 3, (300, 400), seed)
    (tmp_path / "rose" / "broken.png").write_bytes(b"no image")
    return tmp_path


def decoded(picture):
    encoded = base64.b64decode(picture["source"].removeprefix("data:image/jpeg;base64,"))
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)


def test_a_card_for_each_problem_in_the_order_of_the_table(root):
    problems = table(
        ("rose/0.png", "label", "9 of 10 neighbours are tulips", "tulip", "tulip/1.png"),
        ("rose/1.png", "near-duplicate", "equal pixels", "drop", "rose/2.png"),
        ("tulip/0.png", "dark", "mean brightness 4 of 255", "drop", np.nan),
    )
    content = content_of(review(problems, root))
    first, second, third = content["problems"]
    assert first["question"] == "Is the class rose correct?"
    assert first["evidence"] == "9 of 10 neighbours are tulips"
    assert first["meanings"]["correct"] == "the image keeps the class rose"
    assert [(choice["value"], choice["meaning"]) for choice in content["choices"]] == [
        ("rose", "the image gets the class rose"),
        ("tulip", "the image gets the class tulip"),
        ("drop", "this image is dropped"),
    ]
    assert [picture["caption"] for picture in first["pictures"]] == [
        "this image: rose/0.png",
        "for comparison: tulip/1.png",
    ]
    assert second["meanings"]["correct"] == "both images stay"
    assert second["meanings"]["wrong"] == "this image is dropped"
    assert len(third["pictures"]) == 1
    for card in (first, second, third):
        assert card["meanings"]["unsure"] == "nothing changes"
        for picture in card["pictures"]:
            assert decoded(picture).shape == (192, SIDE, 3)


@pytest.mark.parametrize("problem", QUESTIONS)
def test_every_problem_says_what_a_decision_means(root, problem):
    (card,) = content_of(review(table(("rose/0.png", problem, "", "drop", "")), root))["problems"]
    assert card["question"].endswith("?")
    assert card["meanings"]["wrong"] in ("this image is dropped", "this file is dropped")


def test_every_class_of_the_dataset_can_be_chosen(root):
    write_images(root / "aster", 1, (30, 40))
    (root / ".hidden").mkdir()
    row = ("rose/0.png", "label", "", "a class \u202e of another table", "")
    choices = content_of(review(table(row), root))["choices"]
    names = [choice["name"] for choice in choices]
    assert names == ["a class \\u202e of another table", "aster", "rose", "tulip", "none: drop the image"]
    assert [choice["value"] for choice in choices][1:] == ["aster", "rose", "tulip", "drop"]


def test_an_answer_is_kept_for_the_same_question_about_the_same_picture(root):
    def key(row, name="rose", root=root):
        problems = table(row)
        problems["class"] = name
        return content_of(review(problems, root))["problems"][0]["key"]

    label = ("rose/0.png", "label", "looks like tulip", "tulip", "tulip/1.png")
    copy = ("rose/0.png", "near-duplicate", "same picture as", "drop", "rose/1.png")
    moved = shutil.copytree(root, root / "moved")
    keys = [key(label), key(label, "tulip"), key(copy), key((*copy[:4], "rose/2.png")), key(("rose/1.png", *label[1:]))]
    assert len(set(keys)) == len(keys)
    assert key(("rose/0.png", "label", "other evidence", "drop", "")) == keys[0]
    assert key(label, root=moved) == keys[0]
    shutil.copy(root / "rose" / "2.png", root / "rose" / "0.png")  # another picture under the same name
    assert key(label) != keys[0]


def test_the_picture_is_that_of_the_file(tmp_path):
    (tmp_path / "rose").mkdir()
    pixels = np.full((40, 60, 3), (200, 60, 30), np.uint8)
    cv2.imwrite(str(tmp_path / "rose" / "0.png"), pixels[..., ::-1])
    (card,) = content_of(review(table(("rose/0.png", "size", "", "drop", "")), tmp_path))["problems"]
    assert np.abs(decoded(card["pictures"][0]).astype(int) - pixels).max() < 8


@pytest.mark.parametrize("size", [(600, 300), (300, 600), (300, 300)])
def test_pictures_stand_side_by_side_where_all_are_tall(tmp_path, size):
    write_images(tmp_path / "rose", 1, size)
    (card,) = content_of(review(table(("rose/0.png", "size", "", "drop", "")), tmp_path))["problems"]
    assert max(decoded(card["pictures"][0]).shape) == SIDE
    assert card["pictures"][0]["tall"] == (size == (600, 300))


def test_a_file_without_a_picture_says_why(root):
    problems = table(
        ("rose/broken.png", "unreadable", "", "drop", ""), ("rose/absent.png", "unreadable", "", "drop", "")
    )
    broken, absent = content_of(review(problems, root))["problems"]
    assert "is no image" in broken["pictures"][0]["cause"]
    assert absent["pictures"][0]["cause"] == "No such file or directory"
    assert broken["meanings"]["wrong"] == "this file is dropped"
    for card in (broken, absent):
        assert "source" not in card["pictures"][0]
        assert str(root) not in json.dumps(card)


def test_hostile_names_are_data(root):
    name, suggestion = HOSTILE
    (root / name).parent.mkdir()
    shutil.copy(root / "rose" / "0.png", root / name)
    element = review(table((name, "label", f"looks like {suggestion}\u202e", suggestion, name)), root)
    for text in HOSTILE:
        assert text not in element.html
    (card,) = content_of(element)["problems"]
    assert card["image"] == name
    assert card["suggestion"] == suggestion
    assert card["evidence"].endswith("\\u202e")
    assert "source" in card["pictures"][1]


def test_bytes_of_a_name_that_are_not_text_are_written_as_in_other_tables(root):
    (card,) = content_of(review(table(("rose/\udcff.png", "label", "", "tulip", "")), root))["problems"]
    assert card["image"] == "rose/\\udcff.png"


def test_a_card_of_noise_takes_less_than_50_kilobytes(root):
    def size(count):
        rows = [
            (f"rose/{number}.png", "near-duplicate", "equal pixels", "drop", "tulip/1.png") for number in range(count)
        ]
        problems = table(*rows)
        return len(review(problems, root).html)

    assert size(2) - size(1) < 50_000


def test_a_corrected_class_is_asked_about_and_a_problem_once(root):
    row = dict(zip(COLUMNS, ("rose/0.png", "tulip", "label", "now", "rose", ""), strict=True))
    (card,) = content_of(review(pd.DataFrame([row, row | {"suggestion": "drop"}]), root))["problems"]
    assert card["question"] == "Is the class tulip correct?"
    assert card["meanings"]["correct"] == "the image keeps the class tulip"
    assert card["suggestion"] == "rose"


def test_what_cannot_be_reviewed_is_refused(root):
    row = dict(zip(COLUMNS, ("rose/0.png", "rose", "label", "", "tulip", ""), strict=True))
    for column in COLUMNS:
        with pytest.raises(ValueError, match=f"no column {column}"):
            review(pd.DataFrame([row]).drop(columns=column), root)
    for change in ({"problem": "other"}, {"image": ""}, {"suggestion": np.nan}):
        with pytest.raises(ValueError, match="row 1"):
            review(pd.DataFrame([row, row | {"image": "rose/1.png"} | change]), root)


def test_no_problems_and_a_page_of_its_own(root):
    element = review(table(), root, name="labels", warning="These are < few.")
    content = content_of(element)
    assert (content["problems"], content["nothing"]) == ([], NOTHING)
    element.saved(root)
    page = (root / "labels.html").read_text()
    assert "These are &lt; few." in page
    assert "Problems to review: 0" in page
