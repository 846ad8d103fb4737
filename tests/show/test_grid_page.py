import base64
import json
import re
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import explanation_of, network_and_images

from utils import decompose, gallery, grid, grid_figure, judge, plane
from utils.show.viewer import view_content
from utils.show.words import NOTHING, caption, details_of, maps_in_short, title_of
from utils.trust.faithfulness import CHANCE, FAITHFUL, HARDLY, WEAK

HOSTILE = "<img src=x onerror=alert(1)>.jpg", "</script><script>alert(1)</script>"


def content_of(element):
    """The JSON that a component's script unpacks."""
    (data,) = re.findall(r"await unpack\('([^']+)'\)", element.html)
    return json.loads(zlib.decompress(base64.b64decode(data)))


@pytest.fixture(scope="module")
def pairs():
    network, images = network_and_images(count=3)
    classes = (("a", "a"), ("a", "b"), None)
    return network, explanation_of(network, images, torch.rand(3, 2, 64, 64), threshold=0.01, classes=classes)


def test_each_tile_opens_the_viewer_of_its_pair(pairs):
    network, explanation = pairs
    verdict = judge(network, explanation)
    content = content_of(grid(explanation, network, verdict))
    assert len(content["pairs"]) == 3
    for index, (tile, pair) in enumerate(zip(content["pairs"], explanation, strict=True)):
        expected = view_content(pair, verdict[index], decompose(network, pair))
        assert tile["view"] == json.loads(json.dumps(expected))
        name1, name2 = pair.names[0]
        assert tile["caption"] == f"{name1} and {name2}. {caption(pair)} {maps_in_short(verdict, index)}"


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (FAITHFUL, "Maps: \u2713 faithful (0.75 of what is possible)"),
        (WEAK, "Maps: ~ weak (0.75 of what is possible)"),
        (CHANCE, "Maps (grey): \u2717 not better than chance"),
        (HARDLY, "~ nothing to explain"),
    ],
)
def test_one_word_one_symbol_and_one_number(word, text):
    verdict = SimpleNamespace(word=lambda index: word, share=lambda: [0.75])
    assert maps_in_short(verdict) == text


def test_maps_that_were_not_judged_say_so_and_verdicts_must_be_of_these_pairs(pairs):
    network, explanation = pairs
    assert all(tile["caption"].endswith(" Maps not judged.") for tile in content_of(grid(explanation))["pairs"])
    for panel in grid_figure(explanation).subfigs[0].subfigs[:3]:
        assert panel.get_suptitle().endswith("\nMaps not judged.")
    verdict = judge(network, explanation)
    for index, panel in enumerate(grid_figure(explanation, verdict).subfigs[0].subfigs[:3]):
        assert panel.get_suptitle().endswith(maps_in_short(verdict, index))
    for shown in (grid, grid_figure):
        with pytest.raises(ValueError, match="the verdict is of another explanation"):
            shown(explanation[:2], verdict=verdict)


def test_captions_say_decision_truth_and_score(pairs):
    _, explanation = pairs
    first, second, third = (caption(pair) for pair in explanation)
    score1, score2, score3 = (f"Different (similarity {score:.2f})" for score in explanation.similarity)
    assert first.startswith(f"{score1} ✗ both are a.")
    assert second.startswith(f"{score2} ✓ a and b.")
    assert third == f"{score3}."


def test_no_pair_is_said_in_words(pairs):
    _, explanation = pairs
    assert content_of(grid(explanation[:0])) == {"pairs": [], "nothing": NOTHING}
    assert [text.get_text() for text in grid_figure(explanation[:0]).axes[0].texts] == [NOTHING]


def test_another_network_is_refused(pairs):
    _, explanation = pairs
    torch.manual_seed(5)
    other, _ = network_and_images()
    with torch.no_grad():
        for values in other.parameters():
            values.add_(torch.randn_like(values))
    with pytest.raises(ValueError, match="another network"):
        grid(explanation, other)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_still_grid_shows_every_pair(pairs, count):
    _, explanation = pairs
    drawn = grid_figure(explanation[:count])
    images = [axes for axes in drawn.get_axes() if axes.images]
    assert len(images) == 2 * count
    panels = drawn.subfigs[0].subfigs[:count]
    for panel, pair in zip(panels, explanation, strict=False):
        words = f"{panel.get_suptitle()} {panel.get_supxlabel()}"
        assert words.split() == f"{title_of(pair)} Maps not judged. {details_of(pair)}".split()


def test_distances_and_probabilities_of_the_map_are_those_of_the_network(calibrated):
    images = gallery(calibrated)
    random = np.random.default_rng(0)
    content = content_of(plane(calibrated, images, random.normal(size=(len(images), 2)).astype(np.float32)))
    count = len(images)
    distances = np.frombuffer(base64.b64decode(content["distances"]), np.uint16).reshape(count, count)
    for first, second in ((0, 1), (2, count - 1)):
        explanation = calibrated.explain((images.paths[first], images.paths[second]))
        step = distances[first, second]
        assert step / content["steps"] == pytest.approx(explanation.distance.item(), abs=2e-3)
        chances = content["probabilities"][max(step - 2, 0) : step + 3]
        assert min(chances) - 1e-3 <= explanation.probability[0, 0] <= max(chances) + 1e-3
    assert content["band"] == pytest.approx(calibrated.band or [calibrated.threshold] * 2)
    assert [point["name"] for point in content["points"]] == list(images.names)
    places = np.array([(point["x"], point["y"]) for point in content["points"]])
    assert places.min() == 0
    assert places.max() == 1


def test_a_map_of_too_many_images_shows_some(trained, monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["utils.show.viewer"], "MOST_POINTS", 4)
    images = gallery(trained)
    content = content_of(plane(trained, images, np.zeros((len(images), 2), np.float32)))
    assert len(content["points"]) == 4
    assert content["images"] == len(images)
    assert content["probabilities"] is None
