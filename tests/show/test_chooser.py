import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from helpers import write_images
from PIL import Image

from utils.show.chooser import PairChooser


@pytest.fixture
def chooser(trained):
    splits = trained.load_splits()
    first, second, *_ = (splits.folder.paths[index] for index in splits.test)
    return PairChooser(splits, (first, second))


def test_choosing_an_image_changes_the_pair_and_its_preview(chooser):
    first, second = chooser.pair
    field1, field2 = chooser.fields().children
    box1, _, _, _ = field1.children
    box2, _, picture2, message2 = field2.children
    assert [box1.value, box2.value] == list(map(chooser.name_of, (first, second)))
    before = picture2.value
    name = box2.options[-1]
    box2.value = name
    assert chooser.pair == (first, chooser.paths[name])
    assert picture2.value != before
    assert max(Image.open(io.BytesIO(picture2.value)).size) <= 200
    assert "run the cells below again" in message2.value
    box1.value = chooser.name_of(second)
    assert chooser.pair == (second, chooser.paths[name])


def test_the_fields_find_test_images_by_class(chooser, trained):
    splits = trained.load_splits()
    names = chooser.fields().children[0].children[0].options
    assert [chooser.paths[name] for name in names] == [splits.folder.paths[index] for index in splits.test]
    assert {name.split("/")[0] for name in names} == set(splits.folder.classes)


def test_files_of_ones_own_by_path_by_upload_and_in_a_cell(chooser, tmp_path):
    write_images(tmp_path / "own", 2)
    own = [str(tmp_path / "own" / f"{number}.png") for number in range(2)]
    field1, field2 = chooser.fields().children
    field1.children[0].value = own[0]
    assert chooser.pair[0] == own[0]
    content = (tmp_path / "own" / "1.png").read_bytes()
    uploaded = {"name": "1.png", "type": "image/png", "size": len(content), "content": content}
    field2.children[1].value = ({**uploaded, "last_modified": datetime.now(UTC)},)
    assert chooser.pair[1].endswith("/1.png")
    assert Path(chooser.pair[1]).read_bytes() == content
    chooser.pair = tuple(own)
    assert repr(chooser) == f"image 1: {own[0]}\nimage 2: {own[1]}"


def test_what_is_no_image_is_refused_where_it_was_typed(chooser):
    before = chooser.pair
    box, _, _, message = chooser.fields().children[0].children
    box.value = "absent.png"
    assert chooser.pair == before
    assert message.value.startswith("absent.png: No such file")


def test_a_notebook_shows_the_fields_and_its_file_the_names(chooser):
    shown = chooser._repr_mimebundle_()
    assert shown["text/plain"] == repr(chooser)
    assert "application/vnd.jupyter.widget-view+json" in shown
