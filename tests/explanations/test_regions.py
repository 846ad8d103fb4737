import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import Chequered, Squared, network_and_images, patterned
from torch import nn

from utils.explanations.explanation import Source
from utils.explanations.maps import GRID, Task, occlusion
from utils.explanations.matches import decompose
from utils.explanations.methods import explain
from utils.explanations.regions import ask, embed_region, hide_windows
from utils.files import ExplanationError
from utils.network.cut import Cut
from utils.network.distance import blurred, distance, mean_colour

ODD = (0.13, 0.21, 0.68, 0.93)  # cuts places on all sides
THIN = (0.4, 0.1, 0.43, 0.12)  # within one place
SECOND = (0.05, 0.3, 0.55, 1.0)
WHOLE = (0, 0, 1, 1)


@pytest.fixture(scope="module")
def pair():
    """A network, and matches of one pair of noise whose map has 4 x 6 places, no two of them equal."""
    network, images = network_and_images(count=1, size=(64, 96))
    random = torch.Generator().manual_seed(1)
    explanation = explain(network, images, 0.5)
    matches = decompose(network, explanation, "layer3", steps=2)
    return network, replace(matches, places=torch.randn(matches.places.shape, generator=random))


def share_of_place(box, place, size):
    """How much of a place a box covers, from a thousand points along each side."""
    share = 1.0
    for axis in range(2):
        points = (place[axis] + (np.arange(1000) + 0.5) / 1000) / size[axis]
        share *= np.mean((points > box[axis]) & (points < box[axis + 2]))
    return share


def sum_by_loops(places, box1, box2):
    size = places.shape[:2]
    total = 0.0
    for y1, x1, y2, x2 in np.ndindex(*places.shape):
        share = share_of_place(box1, (y1, x1), size) * share_of_place(box2, (y2, x2), size)
        total += share * places[y1, x1, y2, x2].item()
    return total


@pytest.mark.parametrize("box1", [None, ODD, THIN, (0.25, 0.5, 0.75, 1.0)])
@pytest.mark.parametrize("box2", [None, SECOND, THIN])
def test_what_boxes_add_against_loops(pair, box1, box2):
    network, matches = pair
    if box1 is None and box2 is None:
        return
    answer = ask(network, matches, box1, box2)
    expected = sum_by_loops(matches.places, box1 or WHOLE, box2 or WHOLE)
    assert answer.value == pytest.approx(expected, abs=0.02)  # the loops count points
    assert answer.share == pytest.approx(expected / matches.places.sum().item(), abs=0.02)


def test_the_whole_image_adds_everything_and_halves_add_up(pair):
    network, matches = pair
    total = matches.places.double().sum().item()
    for boxes in ({"box1": WHOLE}, {"box2": WHOLE}, {"box1": WHOLE, "box2": WHOLE}):
        answer = ask(network, matches, **boxes)
        assert answer.value == pytest.approx(total, abs=1e-9)
        assert answer.share == pytest.approx(1)
    for name in ("box1", "box2"):
        halves = [ask(network, matches, **{name: box}).value for box in ((0, 0, 1, 0.37), (0, 0.37, 1, 1))]
        assert sum(halves) == pytest.approx(total, abs=1e-9)


def test_a_box_of_one_place_adds_what_the_place_adds(pair):
    network, matches = pair
    answer = ask(network, matches, box2=(2 / 4, 3 / 6, 3 / 4, 4 / 6))
    torch.testing.assert_close(answer.partners, matches.places[:, :, 2, 3].double(), atol=1e-9, rtol=0)
    answer = ask(network, matches, box1=(2 / 4, 3 / 6, 3 / 4, 4 / 6), box2=SECOND)
    torch.testing.assert_close(answer.partners, matches.places[2, 3].double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("box", [ODD, THIN, WHOLE, (0.1, 0.1, 0.76, 0.7), (0.5, 0.0, 1.0, 0.34)])
@pytest.mark.parametrize("name", ["box1", "box2"])
def test_the_counterpart_is_the_best_of_all_boxes_of_its_size(pair, name, box):
    network, matches = pair
    answer = ask(network, matches, **{name: box})
    tall, wide = max(round((box[2] - box[0]) * 4), 1), max(round((box[3] - box[1]) * 6), 1)
    sums = {}
    for top in range(4 - tall + 1):
        for left in range(6 - wide + 1):
            place = top / 4, left / 6, (top + tall) / 4, (left + wide) / 6
            boxes = (box, place) if name == "box1" else (place, box)
            sums[place] = sum_by_loops(matches.places, *boxes)
    best = max(sums, key=sums.get)
    assert answer.counterpart == pytest.approx(best)
    assert answer.counterpart_value == pytest.approx(sums[best], abs=0.02)


def test_two_boxes_have_no_counterpart(pair):
    network, matches = pair
    answer = ask(network, matches, ODD, SECOND)
    assert answer.counterpart is None
    assert answer.counterpart_value is None
    assert "counterpart" not in str(answer)


def test_hidden_rows_by_hand():
    network, images = network_and_images(count=1, size=(64, 96))
    explanation = explain(network, images, 0.5)
    between = explanation.distance.item()

    def calibration(distances):
        return torch.stack([1 - distances / 2, distances * 0, distances * 0 + 1], dim=1)

    source = Source(warning="", band=(between - 1e-4, between + 1e-4), calibration=calibration)
    explanation = replace(explanation, threshold=between, source=source)
    matches = decompose(network, explanation)
    rows, columns = slice(16, 48), slice(24, 60)  # of the box
    box = (16 / 64, 24 / 96, 48 / 64, 60 / 96)
    for names in (("box1",), ("box2",), ("box1", "box2")):
        table = ask(network, matches, **dict.fromkeys(names, box)).hidden
        assert list(table.index) == ["as it is", "blurred", "in mean colour"]
        assert table.loc["as it is", "decision"] == "undecided"
        for name, hide in (("blurred", blurred), ("in mean colour", mean_colour)):
            changed = images.clone()
            for number in range(2):
                if f"box{number + 1}" in names:
                    changed[0, number, :, rows, columns] = hide(images)[0, number, :, rows, columns]
            with torch.no_grad():
                after = distance(network(changed[:, 0]), network(changed[:, 1])).item()
            assert abs(after - between) > 1e-4
            assert table.loc[name, "similarity"] == pytest.approx(1 - after / 2, abs=1e-6)
            assert table.loc[name, "probability"] == pytest.approx(1 - after / 2, abs=1e-6)
            assert table.loc[name, "decision"] == ("different" if after > between else "same")


def test_where_nothing_is_calibrated_there_is_no_probability(pair):
    network, matches = pair
    answer = ask(network, matches, box1=ODD)
    assert list(answer.hidden.columns) == ["similarity", "decision"]
    assert "probability" not in str(answer)


def test_a_box_smaller_than_a_pixel_hides_one():
    network = Cut(Squared(), layer="map")
    images = torch.randn(1, 2, 3, 10, 10)
    matches = decompose(network, explain(network, images, 0.5), "map", steps=2)
    for box in ((0.99, 0.991, 0.999, 1.0), (0.0, 0.0, 0.001, 0.001)):
        table = ask(network, matches, box1=box).hidden
        assert table["similarity"].nunique() == 3


def test_the_answer_in_words(pair):
    network, matches = pair
    answer = ask(network, matches, box2=ODD)
    value, counterpart, hidden = str(answer).splitlines()
    assert value.startswith(f"The box in image 2 adds {answer.value:+.3f} to the inner product {matches.cosine:.3f}")
    assert f"{answer.share:.0%} of what all pairs of places add" in value
    assert re.search(r"at layer3, error of the sum [+-]\d", value)
    top, left, bottom, right = answer.counterpart
    assert f"in image 1, {top:.0%} to {bottom:.0%} down and {left:.0%} to {right:.0%} across" in counterpart
    for name, row in answer.hidden.iterrows():
        assert f"{name}: {row['decision']} (similarity {row['similarity']:.3f})" in hidden
    negative = ask(network, replace(matches, places=-matches.places.abs()), box1=ODD)
    assert negative.share is None
    assert "of what all pairs" not in str(negative)


BAD = {
    "four numbers": [(0.1, 0.2, 0.3), 0.5, "box", (0.1, 0.2, 0.3, "x"), ((0.1, 0.2), (0.3, 0.4)), (1, 2, 3, None, 5)],
    "outside": [(0, 0, 40, 60), (-0.1, 0, 1, 1), (0, 0, 1, 1.01), (0, 0, float("nan"), 1), (0, 0, float("inf"), 1)],
    "empty or reversed": [(0.5, 0, 0.5, 1), (0, 0.7, 1, 0.3), (0.9, 0, 0.1, 1)],
}


@pytest.mark.parametrize(("cause", "box"), [(cause, box) for cause, boxes in BAD.items() for box in boxes])
def test_bad_boxes_are_named_with_cause_and_cure(pair, cause, box):
    network, matches = pair
    for name in ("box1", "box2"):
        message = rf"^{name}: [^\n]*{cause}[^\n]* Give \(top, left, bottom, right\)[^\n]*$"
        with pytest.raises(ExplanationError, match=message):
            ask(network, matches, **{name: box})
    with pytest.raises(ExplanationError, match=rf"^box: .*{cause}"):
        embed_region(network, torch.randn(1, 3, 64, 96), box)


def test_no_box_at_all_is_refused(pair):
    with pytest.raises(ExplanationError, match=r"box1 and box2 are both None.*give one of them"):
        ask(*pair)


@pytest.mark.parametrize("box", [list(ODD), np.array(ODD), torch.tensor(ODD, dtype=torch.float64)])
def test_boxes_may_be_lists_arrays_and_tensors(pair, box):
    network, matches = pair
    assert ask(network, matches, box1=box).value == ask(network, matches, box1=ODD).value


def test_another_network_is_refused(pair):
    _, matches = pair
    other = network_and_images(size=(64, 96))[0]
    with torch.no_grad():
        other.embedding.weight.normal_()
    for question in (lambda: ask(other, matches, box1=ODD), lambda: hide_windows(other, matches.explanation)):
        with pytest.raises(ValueError, match="another network"):
            question()


def test_the_modes_of_the_network_stay(pair):
    network, matches = pair
    network.train()
    ask(network, matches, box1=ODD)
    hide_windows(network, matches.explanation)
    embed_region(network, matches.explanation.images[0, :1], ODD)
    assert all(module.training for module in network.modules())
    network.eval()


@pytest.mark.parametrize("layer", ["last", "layer3", "layer2"])
def test_the_whole_image_as_a_region(layer):
    """At the last layer, where the network averages over places, it is the image's own embedding."""
    network, images = network_and_images(size=(64, 96))
    image = images[0, :1]
    region = embed_region(network, image, WHOLE, layer)
    with torch.no_grad():
        features = network.features(image, layer)
        mean = features.mean(dim=(2, 3), keepdim=True).expand_as(features)
        expected = nn.functional.normalize(network.project_features(mean, layer))[0]
        torch.testing.assert_close(region, expected)
        if layer == "last":
            torch.testing.assert_close(region, network(image)[0])


def test_a_region_is_the_mean_of_its_places_by_coverage():
    network = Cut(Squared(), layer="map")
    image = torch.rand(1, 3, 4, 6)
    region = embed_region(network, image, ODD)
    mean, weight = torch.zeros(3), 0.0
    for y, x in np.ndindex(4, 6):
        share = share_of_place(ODD, (y, x), (4, 6))
        mean += share * image[0, :, y, x]
        weight += share
    expected = (mean / weight).square()
    torch.testing.assert_close(region, expected / expected.norm(), atol=2e-3, rtol=0)
    assert region.norm().item() == pytest.approx(1)


def test_windows_are_those_of_occlusion():
    network, images = network_and_images(count=1, size=(60, 48))
    windows = hide_windows(network, explain(network, images, 0.5))
    assert windows.distances.shape == (2, GRID, GRID)
    assert len(windows.boxes) == GRID**2
    sums, counts = torch.zeros(2, 60, 48), torch.zeros(60, 48)
    for number, box in enumerate(windows.boxes):
        top, left, bottom, right = (round(end * side) for end, side in zip(box, (60, 48, 60, 48), strict=True))
        change = windows.explanation.distance - windows.distances.flatten(1)[:, number]
        sums[:, top:bottom, left:right] += change[:, None, None]
        counts[top:bottom, left:right] += 1
    evidence = occlusion(Task(network, images, 0.5)).evidence[0]
    torch.testing.assert_close(sums / counts, evidence, atol=1e-6, rtol=1e-4)


def test_each_window_is_hidden_in_its_own_image():
    network, images = network_and_images(count=1, size=(60, 48))
    windows = hide_windows(network, explain(network, images, 0.5))
    for number, row, column in ((0, 0, 0), (0, 2, 5), (1, 6, 3)):
        top, left = round(row * 42 / 6), round(column * 34 / 6)
        changed = images.clone()
        window = (0, number, slice(None), slice(top, top + 18), slice(left, left + 14))
        changed[window] = blurred(images)[window]
        with torch.no_grad():
            expected = distance(network(changed[:, 0]), network(changed[:, 1])).item()
        assert windows.distances[number, row, column].item() == pytest.approx(expected, abs=1e-6)
        box = windows.boxes[GRID * row + column]
        assert box == pytest.approx((top / 60, left / 48, (top + 18) / 60, (left + 14) / 48))


def test_windows_are_of_one_pair():
    network, images = network_and_images(count=2)
    with pytest.raises(ValueError, match="one pair, not 2"):
        hide_windows(network, explain(network, images, 0.5))


def test_the_box_of_a_planted_pattern_carries_the_match_and_the_decision_and_boxes_elsewhere_do_not():
    size = (24, 30)
    image1, image2 = patterned(size, (3, 18), 0.7)[0], patterned(size, (14, 5), 0.7)[0]
    network = Chequered()
    explanation = explain(network, torch.stack([image1, image2])[None], 0.3, method="occlusion")
    matches = decompose(network, explanation, "image", steps=4)
    answer = ask(network, matches, box1=(3 / 24, 18 / 30, 9 / 24, 24 / 30))
    assert answer.share >= 0.9
    assert answer.counterpart == pytest.approx((14 / 24, 5 / 30, 20 / 24, 11 / 30))
    assert answer.hidden["decision"].tolist() == ["same", "different", "different"]
    for corner in ((14, 18), (3, 2), (14, 5)):
        top, left = corner
        elsewhere = ask(network, matches, box1=(top / 24, left / 30, (top + 6) / 24, (left + 6) / 30))
        assert abs(elsewhere.share) < 0.1
        assert elsewhere.hidden["decision"].tolist() == ["same"] * 3
