import pytest

from utils.show.chooser import PairChooser


@pytest.fixture
def chooser(trained):
    splits = trained.load_splits()
    first, second, *_ = (splits.folder.paths[index] for index in splits.test)
    return PairChooser(splits, (first, second))


def test_choosing_an_image_changes_the_pair(chooser):
    first, second = chooser.pair
    box1, box2 = chooser.lists().children
    assert (box1.value, box2.value) == (first, second)
    other = box2.options[-1][1]
    box2.value = other
    assert chooser.pair == (first, other)
    box1.value = second
    assert chooser.pair == (second, other)


def test_the_lists_are_the_test_images_and_what_was_named(chooser, trained, tmp_path):
    splits = trained.load_splits()
    elsewhere = str(tmp_path / "mine.jpg")
    named = PairChooser(splits, (chooser.pair[0], elsewhere))
    paths = [path for _, path in named.lists().children[1].options]
    assert paths == [splits.folder.paths[index] for index in splits.test] + [elsewhere]


def test_a_notebook_shows_the_lists_and_its_file_the_names(chooser):
    shown = chooser._repr_mimebundle_()
    assert shown["text/plain"] == repr(chooser)
    assert "application/vnd.jupyter.widget-view+json" in shown
