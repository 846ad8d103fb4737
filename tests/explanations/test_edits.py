import math
import sys
from dataclasses import replace

import pytest
import torch
from helpers import Chequered, Coloured, explanation_of, patterned

from utils.explanations.edits import AREAS, smallest_edit
from utils.explanations.references import References, in_classes
from utils.network.distance import blurred, distance, similarity
from utils.trust.faithfulness import explain_at_random

SIZE = (24, 24)
module = sys.modules[smallest_edit.__module__]  # the function has its name


def same_pair():
    (image1, mask1), (image2, mask2) = patterned(SIZE, (2, 3), 1.2), patterned(SIZE, (14, 12), 1.2)
    images = torch.stack([image1, image2])[None]
    return explanation_of(Chequered(), images, torch.stack([mask1, mask2])[None].float())


def different_pair():
    images, maps = torch.zeros(1, 2, 3, *SIZE), torch.zeros(1, 2, *SIZE)
    images[0, 0, 0, 2:8, 12:18] = 1  # a red square
    images[0, 1, 1, 14:20, 3:9] = 1  # a green square
    maps[0, 0, 2:8, 12:18], maps[0, 1, 14:20, 3:9] = 1, 1
    return explanation_of(Coloured(), images, maps)


@pytest.mark.parametrize(("network", "pair"), [(Chequered(), same_pair), (Coloured(), different_pair)])
def test_the_change_flips_the_decision_and_touches_nothing_else(network, pair):
    explanation = pair()
    found = smallest_edit(network, explanation)
    assert found.flipped
    after = distance(network(found.edited[:1]), network(found.edited[1:]))  # run again, from outside
    assert (after > explanation.threshold).item() != explanation.different.item()
    assert found.after == pytest.approx(similarity(after).item(), abs=1e-5)
    assert found.before == pytest.approx(explanation.similarity.item(), abs=1e-5)
    for image, edited, region in zip(explanation.images[0], found.edited, found.regions, strict=True):
        assert torch.equal(edited[:, ~region], image[:, ~region])
    assert "the decision flips" in found.sentence()


def test_blurring_the_pattern_of_one_image_is_enough():
    explanation = same_pair()
    found = smallest_edit(Chequered(), explanation)
    assert found.area <= 0.5 * 36 / 24**2 + 0.01  # at most one of the two patterns
    assert found.area == pytest.approx(found.regions.float().mean().item())


def test_pixels_of_the_other_object_cover_the_object():
    explanation = different_pair()
    found = smallest_edit(Coloured(), explanation)
    assert found.regions[0, 2:8, 12:18].float().mean() > 0.3
    assert found.regions[0, :, :10].sum() == 0
    assert found.donor_region[12:22, 1:11].sum() == found.donor_region.sum() > 0  # the green square and its border
    assert not found.regions[1].any()
    assert found.area <= 0.2


def test_what_the_map_does_not_mark_is_not_put_in():
    """A second green square would flip the decision just as well, but the map says that the network does not look."""
    explanation = different_pair()
    images = explanation.images.clone()
    images[0, 1, 1, 2:8, 14:20] = 1
    found = smallest_edit(Coloured(), explanation_of(Coloured(), images, explanation.evidence))
    assert found.flipped
    assert not found.donor_region[2:8, 14:20].any()


def test_pixels_are_put_in_as_they_are_and_blended_at_the_border(monkeypatch):
    monkeypatch.setattr(module, "SCALES", (1.0,))
    monkeypatch.setattr(module, "PLACES", 1)
    explanation = different_pair()
    images = explanation.images
    images[0, :, 2] = torch.rand(2, *SIZE)  # blue, which the network does not see
    found = smallest_edit(Coloured(), explanation)
    (top, left), (source_top, source_left) = (one.nonzero().amin(0) for one in (found.regions[0], found.donor_region))
    moved = images[0, 1, 2].roll((int(top - source_top), int(left - source_left)), (0, 1))
    before, after = images[0, 0, 2], found.edited[0, 2]
    put_in = (after - moved).abs() < 1e-5
    assert put_in[found.regions[0]].float().mean() > 0.1
    between = (after >= torch.minimum(before, moved) - 1e-5) & (after <= torch.maximum(before, moved) + 1e-5)
    assert between[found.regions[0]].all()
    assert (found.regions[0] & ~put_in).any()


def red_pair_and_donor():
    """Two red squares, and the first beside a green one. No blurring turns the angle by more than pi / 2."""
    images, maps = torch.zeros(1, 2, 3, *SIZE), torch.zeros(1, 2, *SIZE)
    images[0, :, 0, 2:8, 12:18] = 1
    maps[0, :, 2:8, 12:18] = 1
    green = different_pair()
    return explanation_of(Coloured(), images, -maps, threshold=1.5), replace(green, threshold=1.5)


def test_where_no_blurring_flips_pixels_of_another_class_are_put_in():
    explanation, donors = red_pair_and_donor()
    assert not smallest_edit(Coloured(), explanation).flipped
    found = smallest_edit(Coloured(), explanation, donors=donors)
    assert found.flipped
    assert found.donor.names == donors.names
    assert donors.names[0][1] in found.sentence()
    after = distance(*Coloured()(found.edited))
    assert found.distance == pytest.approx(after.item(), abs=1e-5)
    assert after > 1.5


def references(*angles):
    """One reference of each angle in degrees: named "green" from 0 on, "red" below."""
    radians = torch.tensor(angles).float().deg2rad()
    names = tuple(f"{'green' if angle >= 0 else 'red'}/{angle}.png" for angle in angles)
    return References(torch.stack([radians.cos(), radians.sin()], dim=1), names)


def test_with_references_the_changed_image_looks_like_the_other():
    explanation = replace(different_pair(), threshold=1.9)  # next to nothing flips it
    known = references(*range(-90, -40, 5), *range(50, 100, 5))
    plain = smallest_edit(Coloured(), explanation)
    found = smallest_edit(Coloured(), explanation, known)
    green = Coloured()(found.edited)[0]
    angle = math.degrees(math.atan2(green[1], green[0]))
    nearest = sorted(known.names, key=lambda name: abs(int(name.split("/")[1][:-4]) - angle))[:5]
    assert set(found.nearest_after[0]) == set(nearest)
    assert sum(name.startswith("green") for name in nearest) >= 3
    assert all(name.startswith("red") for name in found.nearest_before[0])
    assert found.flipped
    assert plain.flipped
    assert found.area > plain.area
    assert "nearest to image 1, 5 of 5 are red before, " in found.sentence()
    assert " are green after." in found.sentence()
    assert plain.nearest_after is None
    assert smallest_edit(Coloured(), explanation, replace(known, names=())).area == plain.area
    renamed = dict.fromkeys((name for name in known.names if name.startswith("red")), "pink")
    assert (
        "5 of 5 are pink before, "
        in smallest_edit(Coloured(), explanation, replace(known, corrected=renamed)).sentence()
    )


def test_of_equally_frequent_classes_the_nearest_is_told():
    assert in_classes(["b/1.png", "a/1.png", "a/2.png", "b/2.png", "c/1.png"], {}) == "2 of 5 are b"
    assert in_classes(["b/1.png"], {}) == "1 of 1 is b"


@pytest.mark.parametrize(("network", "pair"), [(Chequered(), same_pair), (Coloured(), different_pair)])
def test_random_regions_need_more(network, pair):
    explanation = pair()
    ours = smallest_edit(network, explanation)
    random = [smallest_edit(network, explain_at_random(network, explanation.images, 0.5, seed)) for seed in range(10)]
    assert ours.area < sum(found.area for found in random) / 10


@pytest.mark.parametrize(("network", "pair"), [(Chequered(), same_pair), (Coloured(), different_pair)])
def test_what_cannot_flip_says_so(network, pair):
    explanation = pair()
    threshold = 0.0 if explanation.different else 2.0
    found = smallest_edit(network, replace(explanation, threshold=threshold))
    assert not found.flipped
    assert "the decision stays" in found.sentence()


def test_every_blurred_region_against_one_at_a_time():
    """The smallest flip, found by blurring region after region and asking the network for each alone."""
    explanation = same_pair()
    images = explanation.images[0]
    order = [
        sorted(range(24 * 24), key=lambda place, one=one: -one[place]) for one in explanation.ranking[0].flatten(1)
    ]
    smallest = None
    for share in AREAS:
        for which in ((0, 1), (0,), (1,)):
            edited = images.clone()
            for image in which:
                hidden = blurred(images[image][None])[0]
                for place in order[image][: math.ceil(share * 24 * 24)]:
                    y, x = divmod(place, 24)
                    edited[image, :, y, x] = hidden[:, y, x]
            apart = distance(Chequered()(edited[:1]), Chequered()(edited[1:])).item()
            area = math.ceil(share * 24 * 24) * len(which) / (2 * 24 * 24)
            if apart > explanation.threshold and (smallest is None or area < smallest[0]):
                smallest = area, apart
    found = smallest_edit(Chequered(), explanation)
    assert (found.area, found.distance) == pytest.approx(smallest, abs=1e-5)


def test_one_pair_at_a_time():
    one = same_pair()
    both = replace(
        one,
        images=one.images.repeat(2, 1, 1, 1, 1),
        distance=one.distance.repeat(2),
        towards_different=one.towards_different.repeat(2, 1, 1, 1),
        towards_same=one.towards_same.repeat(2, 1, 1, 1),
        names=one.names * 2,
    )
    with pytest.raises(ValueError, match="one pair, not 2"):
        smallest_edit(Chequered(), both)
    assert smallest_edit(Chequered(), both[1]).area == smallest_edit(Chequered(), one).area
