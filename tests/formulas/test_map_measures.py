"""What is measured of maps, of labels among their neighbours, and of hashes and splits, in loops.

Written without reading the implementation.
"""

import math

import numpy as np
import pytest
import torch

from utils.audit.labels import NEIGHBOURS, TEMPERATURE, judge_labels
from utils.data.duplicates import joined, pairs_within
from utils.data.splits import split, split_classes
from utils.explanations.explanation import Explanation
from utils.trust.controls import agreement, copies, pointing, rank_correlation


def ranks(values):
    """From 1 on; equal values share the mean of their ranks."""
    result = []
    for value in values:
        below, equal = 0, 0
        for other in values:
            below += other < value
            equal += other == value
        result.append(below + (equal + 1) / 2)
    return result


def spearman(values, others):
    """Pearson's correlation of ranks; 0 where one side has no order."""
    first, second = ranks(values), ranks(others)
    mean = (len(values) + 1) / 2
    together, alone, alone_too = 0.0, 0.0, 0.0
    for rank, other in zip(first, second, strict=True):
        together += (rank - mean) * (other - mean)
        alone += (rank - mean) ** 2
        alone_too += (other - mean) ** 2
    if alone == 0 or alone_too == 0:
        return 0.0
    return together / math.sqrt(alone * alone_too)


def tied_maps():
    """Maps (2, 2, 3, 4) of few values, so that many places are equal; one of them is blank."""
    maps = torch.randint(0, 4, (2, 2, 3, 4)).float()
    maps[1, 0] = 0
    return maps


def test_rank_correlation():
    """Spearman 1904, with average ranks for ties. Written without reading the implementation."""
    maps, others = tied_maps(), torch.randint(0, 4, (2, 2, 3, 4)).float()
    right = []
    for pair in range(2):
        for image in range(2):
            right.append(spearman(maps[pair, image].flatten().tolist(), others[pair, image].flatten().tolist()))
    assert rank_correlation(maps, others).tolist() == pytest.approx(right, abs=1e-6)


def test_agreement_and_copies():
    """The mean of two rank correlations, as the docstrings of `agreement` and `copies` have them. Written without
    reading the implementation.
    """
    explanations = []
    for distance in (0.2, 0.9):  # decided either way
        distances = torch.tensor([distance, distance])
        explanations.append(Explanation(torch.rand(2, 2, 3, 3, 4), distances, 0.5, tied_maps(), tied_maps()))
    agreements, likenesses = [], []
    for pair in range(2):
        for image in range(2):
            different, same = [], []
            for explanation in explanations:
                different.append(explanation.towards_different[pair, image].flatten().tolist())
                same.append(explanation.towards_same[pair, image].flatten().tolist())
            agreements.append((spearman(*different) + spearman(*same)) / 2)
            likenesses.append(spearman(different[0], same[0]))
    assert agreement(*explanations).tolist() == pytest.approx(agreements, abs=1e-6)
    assert copies(explanations[0]).tolist() == pytest.approx(likenesses, abs=1e-6)


def test_pointing():
    """Zhang et al. 2018 (Excitation Backprop), the pointing game without its tolerance in pixels, and Wang et al. 2020
    (Score-CAM), the energy-based one: the share of the map's sum that lies on the object. Written without reading the
    implementation.
    """
    maps = torch.rand(12, 2, 4, 5)
    masks = torch.rand(12, 2, 4, 5) < 0.4
    masks[1, 0] = False
    maps[2, 1] = 0
    masks[2, 1, 0, 0] = True
    hits, energies = pointing(maps, masks)
    for pair in range(12):
        for image in range(2):
            inside, total, peak, peak_lies_inside, covered = 0.0, 0.0, 0.0, 0.0, False
            for y in range(4):
                for x in range(5):
                    value, on_object = float(maps[pair, image, y, x]), bool(masks[pair, image, y, x])
                    total += value
                    covered = covered or on_object
                    if on_object:
                        inside += value
                    if value > peak:
                        peak, peak_lies_inside = value, float(on_object)
            if not covered:
                assert math.isnan(hits[pair, image])
                assert math.isnan(energies[pair, image])
                continue
            share = inside / total if total > 0 else 0.0
            assert float(hits[pair, image]) == peak_lies_inside
            assert float(energies[pair, image]) == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize("count", [24, NEIGHBOURS + 40])
def test_neighbours_vote(count):
    """Wu et al. 2018 (instance discrimination), section 3.4: of the nearest NEIGHBOURS images, not the image itself,
    each adds exp(cosine / TEMPERATURE) to its class. The quality is the share of the image's own label (self-confidence
    in Northcutt et al. 2021). Written without reading the implementation.
    """
    random = np.random.default_rng(0)
    dimensions = 4 if count < NEIGHBOURS else 60  # among many, far ones must matter too
    embeddings = random.normal(size=(count, dimensions))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    classes = ("ash", "elm", "fir")
    labels, files = [], []
    for image in range(count):
        labels.append(classes[image % 3])
        files.append(f"{labels[-1]}/{image}.png")
    judged = judge_labels(embeddings, np.array(labels), np.array(files)).set_index("image")
    assert len(judged) == count
    assert judged["quality"].is_monotonic_increasing
    rows = embeddings.tolist()
    for image in range(count):
        cosines = []
        for other in range(count):
            if other != image:
                total = 0.0
                for value, counterpart in zip(rows[image], rows[other], strict=True):
                    total += value * counterpart
                cosines.append((total, other))
        cosines.sort(reverse=True)
        votes = dict.fromkeys(classes, 0.0)
        for cosine, other in cosines[:NEIGHBOURS]:
            votes[labels[other]] += math.exp(cosine / TEMPERATURE)
        winner = max(classes, key=votes.get)
        row = judged.loc[files[image]]
        assert row["label"] == labels[image]
        assert row["neighbours say"] == winner
        assert row["quality"] == pytest.approx(votes[labels[image]] / sum(votes.values()), rel=1e-3)
        nearest = next(other for _, other in cosines if labels[other] == winner)
        assert row["nearest image of that class"] == files[nearest]


@pytest.mark.parametrize("radius", [0, 3, 6, 11, 16])
def test_hashes_within_a_radius(radius):
    """Hamming distances of all pairs, bit by bit; Norouzi et al. 2014 find the same by chunks. Written without reading
    the implementation.
    """
    random = np.random.default_rng(0)
    first = [int(value) for value in random.integers(0, 2**64, 60, dtype=np.uint64)]
    second = []
    for number in range(90):
        changed = first[number % 60]
        for bit in random.choice(64, size=number % 20, replace=False).tolist():
            changed ^= 1 << bit
        second.append(changed)
    right = []
    for row, value in enumerate(first):
        for place, other in enumerate(second):
            if bin(value ^ other).count("1") <= radius:
                right.append((row, place))
    found = []
    for rows, others in pairs_within(np.array(first, np.uint64), np.array(second, np.uint64), radius):
        found.extend(zip(rows.tolist(), others.tolist(), strict=True))
    assert right
    assert sorted(found) == right  # each once


def test_joined_groups():
    """Whatever pairs connect is one group, named by its first image: spread in loops until nothing changes. Written
    without reading the implementation.
    """
    random = np.random.default_rng(0)
    for _ in range(20):
        first, second = random.integers(0, 30, (2, 15))
        groups = np.arange(30)
        groups[7] = 3  # joined before
        names = groups.tolist()
        changed = True
        while changed:
            changed = False
            for image, other in [(7, 3), *zip(first.tolist(), second.tolist(), strict=True)]:
                lower = min(names[image], names[other])
                changed = changed or names[image] != lower or names[other] != lower
                names[image] = names[other] = lower
        assert joined(groups, first, second).tolist() == names


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_divided(seed):
    """The rules in the docstrings of `split` and `split_classes`: each image is in one part at most, no group in two.

    Of `split`: all images are used; a part has two groups of each class at least, and where it has more, it meets its
    share of the class to within half a group. Of `split_classes`: no class is in two parts and each part has two.
    Written without reading the implementation.
    """
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(8), 20)
    groups = np.arange(160)
    for image in range(159):
        if random.random() < 0.3 and labels[image] == labels[image + 1]:
            groups[image + 1] = groups[image]
    parts = split(labels, groups, 0.2, 0.25, seed)
    check_parts(parts, groups)
    assert sum(len(part) for part in parts) == 160
    for label in range(8):
        largest = max(int((groups == group).sum()) for group in groups[labels == label].tolist())
        for part, share in ((parts[2], 0.2), (parts[1], 0.25)):
            of_class = part[labels[part] == label]
            dealt = len(set(groups[of_class].tolist()))
            assert dealt >= 2
            assert dealt == 2 or abs(len(of_class) - share * 20) <= largest / 2
    groups[40] = groups[0]  # a copy in another class
    parts = split_classes(labels, groups, 0.25, 0.25, seed)
    check_parts(parts, groups)
    classes = [set(labels[part].tolist()) for part in parts]
    assert not classes[0] & classes[1]
    assert not classes[0] & classes[2]
    assert not classes[1] & classes[2]
    assert min(len(of_part) for of_part in classes) >= 2


def check_parts(parts, groups):
    part_of_image, part_of_group = {}, {}
    for number, part in enumerate(parts):
        assert part.tolist() == sorted(part.tolist())
        for image in part.tolist():
            assert image not in part_of_image
            part_of_image[image] = number
            assert part_of_group.setdefault(groups[image], number) == number
