import base64
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers import explanation_of, network_and_images
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import Edit, decompose, hide_windows, judge, smallest_edit
from utils.show.html import LOSSLESS_SIDE, data_uri, page, script_json
from utils.show.viewer import view, view_content

HOSTILE = "<img src=x onerror=alert(1)>.jpg", "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def pair():
    """A network, an explanation of one pair of noise, its verdict, matches and counterfactual."""
    network, images = network_and_images(count=1)
    random = torch.Generator().manual_seed(0)
    explanation = explanation_of(network, images, torch.randn(1, 2, 64, 64, generator=random), threshold=0.01)
    matches = decompose(network, explanation, "layer2", steps=4)
    return network, explanation, judge(network, explanation), matches, smallest_edit(network, explanation)


def bytes_of(text, kind=np.uint8):
    return np.frombuffer(base64.b64decode(text), kind)


def test_it_holds_the_maps_of_the_explanation(pair):
    _, explanation, *_ = pair
    (method,) = view_content(explanation)["methods"]
    assert (method["height"], method["width"]) == (64, 64)
    for kind in ("factual", "counterfactual"):
        for number in range(2):
            shown = bytes_of(method["maps"][kind][number]).reshape(64, 64) / 255
            assert np.abs(shown - getattr(explanation, kind)[0, number].numpy()).max() <= 0.5 / 255 + 1e-6


def test_cells_of_matches_are_sums_over_their_places(pair):
    _, explanation, _, matches, _ = pair
    content = view_content(explanation, matches=matches)["matches"]
    rows, columns = (len(content[name]) - 1 for name in ("rows", "columns"))
    values = bytes_of(content["values"], np.int16).reshape(rows, columns, rows, columns) * content["scale"]
    height, width = matches.bias1.shape
    sums = np.zeros(values.shape)
    for y1, x1, y2, x2 in np.ndindex(height, width, height, width):
        places = ((y1 + 0.5) / height, (x1 + 0.5) / width), ((y2 + 0.5) / height, (x2 + 0.5) / width)
        cell = []
        for y, x in places:
            cell.append(sum(edge <= y for edge in content["rows"]) - 1)
            cell.append(sum(edge <= x for edge in content["columns"]) - 1)
        sums[tuple(cell)] += matches.places[y1, x1, y2, x2].item()
    assert np.abs(values - sums).max() <= content["scale"]
    assert values.sum() == pytest.approx(matches.places.sum().item(), abs=content["scale"] * values.size / 2)


def test_maps_finer_than_the_viewer_keep_their_sums():
    network, images = network_and_images(size=(160, 96), count=1)
    explanation = explanation_of(network, images, torch.rand(1, 2, 160, 96), threshold=0.01)
    matches = decompose(network, explanation, "layer1", steps=1 + 1)  # 40 x 24 places
    content = view_content(explanation, matches=matches)["matches"]
    assert (len(content["rows"]) - 1, len(content["columns"]) - 1) == (14, 12)
    total = bytes_of(content["values"], np.int16).astype(float).sum() * content["scale"]
    assert total == pytest.approx(matches.places.sum().item(), abs=0.01)


def test_it_says_what_the_explanation_says(pair):
    _, explanation, verdict, matches, edit = pair
    content = view_content(explanation, verdict, matches, edit)
    assert content["sentence"] == explanation.sentence()
    assert content["similarity"] == pytest.approx(explanation.similarity.item())
    assert content["matches"]["places"] == pytest.approx(sum(matches.places.flatten().tolist()), abs=1e-4)
    assert content["same_from"] == pytest.approx(1 - explanation.threshold / 2)
    (method,) = content["methods"]
    assert "\n".join([method["verdict"], *method["verdicts"]]) == verdict.sentence()
    assert content["edit"]["sentence"] == edit.sentence()
    assert content["edit"]["similarities"] == [edit.before, edit.after]
    touched = edit.regions.flatten(1).any(dim=1).tolist()
    before, after = content["edit"]["before"], content["edit"]["after"]
    assert [after[number] != before[number] for number in range(2)] == touched
    assert before == [image["source"] for image in content["images"]]  # noise without files, as the network takes it
    region = bytes_of(content["edit"]["regions"][0]).reshape(64, 64).astype(bool)
    assert np.array_equal(region, edit.regions[0].numpy())


def test_what_is_not_known_is_not_said(pair):
    _, explanation, *_ = pair
    content = view_content(explanation)
    assert content["correct"] is None
    assert content["matches"] is None
    assert content["edit"] is None
    assert content["windows"] is None
    assert content["methods"][0]["verdict"] == "Maps not judged."


def halves(distances):
    """A calibration: the probability of one class falls from 1 to 0, with no interval."""
    return (1 - distances / 2)[:, None].expand(-1, 3)


@pytest.mark.parametrize("calibration", [None, halves])
def test_windows_hold_what_is_said_without_each_box(pair, calibration):
    network, explanation, *_ = pair
    threshold = hide_windows(network, explanation).distances.median().item()  # so that both decisions are there
    source = replace(explanation.source, calibration=calibration)
    explanation = replace(explanation, threshold=threshold, source=source)
    windows = hide_windows(network, explanation)
    content = json.loads(json.dumps(view_content(explanation, windows=windows)["windows"]))
    assert content["boxes"] == [list(box) for box in windows.boxes]
    assert content["before"]["similarity"] == pytest.approx(explanation.similarity.item())
    assert content["before"]["decision"] == explanation.decision()
    decisions = set()
    for image, records in enumerate(content["after"]):
        for record, distance in zip(records, windows.distances[image].flatten().tolist(), strict=True):
            assert record["similarity"] == pytest.approx(1 - distance / 2)
            assert record["decision"] == ("different" if distance > threshold else "same")
            assert record.get("probability") == (calibration and pytest.approx(1 - distance / 2))
            decisions.add(record["decision"])
    assert decisions == {"same", "different"}


def test_a_blank_map_says_why():
    network, images = network_and_images(count=1)
    (method,) = view_content(explanation_of(network, images, torch.zeros(1, 2, 64, 64)))["methods"]
    assert method["weak"]["factual"] == ["blank: the distance does not react to this image"] * 2


def test_the_method_of_the_matches_is_shown_first(pair):
    _, explanation, verdict, matches, _ = pair
    other = explanation_of(pair[0], explanation.images, torch.rand(1, 2, 64, 64), threshold=0.01)
    content = view_content({"other": other, "ours": explanation}, {"ours": verdict}, matches)
    assert content["first"] == "ours"
    assert [method["verdict"] == "Maps not judged." for method in content["methods"]] == [True, False]


def test_parts_of_other_pairs_are_refused(pair):
    network, _, verdict, matches, edit = pair
    _, images = network_and_images(count=2)
    other = explanation_of(network, images[1:], torch.rand(1, 2, 64, 64), threshold=0.01)
    windows = hide_windows(network, matches.explanation)
    for parts in ({"verdicts": verdict}, {"matches": matches}, {"edit": edit}, {"windows": windows}):
        with pytest.raises(ValueError, match="different pairs"):
            view(other, **parts)
    with pytest.raises(ValueError, match="one pair"):
        view(explanation_of(network, images, torch.rand(2, 2, 64, 64)))


def test_names_are_data(pair):
    network, explanation, *_ = pair
    named = explanation_of(network, explanation.images, torch.rand(1, 2, 64, 64), names=(HOSTILE,), classes=(HOSTILE,))
    element = view(named)
    for hostile in HOSTILE:
        assert hostile not in element.html
        assert hostile not in page(element.title, element.html)
    assert element.html.count("<script") == element.html.count("</script>") == 1


@given(st.recursive(st.text() | st.floats(allow_nan=False, allow_infinity=False), st.lists))
@settings(max_examples=50, deadline=None)
def test_json_in_a_script_is_what_it_was(content):
    text = script_json(content)
    assert "<" not in text
    assert json.loads(text) == content


@pytest.mark.parametrize(("height", "width"), [(40, 60), (LOSSLESS_SIDE, 8), (300, 200)])
def test_images_in_a_page(height, width):
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8), (width, height))
    kind, text = data_uri(image, 448).split(";base64,")
    decoded = cv2.imdecode(bytes_of(text), cv2.IMREAD_COLOR)[..., ::-1]
    lossless = max(height, width) <= LOSSLESS_SIDE
    assert kind == ("data:image/png" if lossless else "data:image/jpeg")
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).mean() <= (0 if lossless else 3)


def test_large_images_are_shrunk_and_keep_their_shape():
    image = np.zeros((900, 300, 3), np.uint8)
    decoded = cv2.imdecode(bytes_of(data_uri(image, 450).split(",")[1]), cv2.IMREAD_COLOR)
    assert decoded.shape == (450, 150, 3)


def test_a_pair_of_224_pixels_by_eight_methods_stays_below_two_megabytes(pair):
    network, images = network_and_images(size=(224, 224), count=1)
    methods = {
        f"method {number}": explanation_of(network, images, torch.rand(1, 2, 224, 224), threshold=0.01)
        for number in range(8)
    }  # noise, which nothing compresses
    explanation = methods["method 0"]
    matches = decompose(network, explanation, "layer2", steps=2)
    edit = Edit(explanation, torch.rand(2, 3, 224, 224), torch.rand(2, 224, 224) > 0.5, 0.5)
    windows = hide_windows(network, explanation)
    assert 200_000 < len(view(methods, matches=matches, edit=edit, windows=windows).html.encode()) < 2_000_000


def test_saved_it_is_a_page_that_may_load_nothing(pair, tmp_path):
    _, explanation, *_ = pair
    element = view(explanation)
    assert element.saved(tmp_path) is element
    (file,) = tmp_path.iterdir()
    assert file.name == f"{element.name}.html"
    assert "default-src 'none'" in file.read_text()
    assert element._repr_html_() in file.read_text()
