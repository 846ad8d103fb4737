from dataclasses import replace

import numpy as np
import pytest

from utils import most_uncertain, scores_table, surest, worst_mistakes
from utils.trust.faithfulness import judge

COUNT = 4


@pytest.fixture
def known(trained, monkeypatch):
    """The trained network with made-up distances of the test pairs, its splits, and these."""
    splits = trained.load_splits()
    distances = np.random.default_rng(0).uniform(0, 2, len(splits.test_pairs)).astype(np.float32)
    monkeypatch.setattr(type(trained), "distances", lambda *_: distances)
    return replace(trained, threshold=0.8), splits, distances


def files_of(splits, index):
    return splits.folder.paths[splits.test_pairs.first[index]], splits.folder.paths[splits.test_pairs.second[index]]


def once(splits, order):
    """The first of each two images, in whichever order they stand."""
    indices = []
    for index in order:
        if not any(set(files_of(splits, index)) == set(files_of(splits, other)) for other in indices):
            indices.append(index)
    return indices


def beyond(distance, threshold):
    """Share of the way from the threshold to the end of its side."""
    return (distance - threshold) / (2 - threshold) if distance > threshold else (threshold - distance) / threshold


def test_mistakes_by_plain_loops(known):
    trained, splits, distances = known
    wrong = [
        index
        for index, (apart, label) in enumerate(zip(distances, splits.test_pairs.labels, strict=True))
        if (apart > 0.8) != bool(label)
    ]
    wrong.sort(key=lambda index: -beyond(distances[index], 0.8))
    explanation = worst_mistakes(trained, splits, COUNT)
    assert list(explanation.source.paths) == [files_of(splits, index) for index in once(splits, wrong)[:COUNT]]


def test_surest_and_most_uncertain_by_plain_loops(known):
    trained, splits, distances = known
    order = sorted(range(len(distances)), key=lambda index: beyond(distances[index], 0.8))
    nearest, farthest = (once(splits, indices)[:COUNT] for indices in (order, order[::-1]))
    assert list(most_uncertain(trained, splits, COUNT).source.paths) == [files_of(splits, index) for index in nearest]
    assert list(surest(trained, splits, COUNT).source.paths) == [files_of(splits, index) for index in farthest]


def test_two_images_are_shown_once(known):
    trained, splits, distances = known
    explanation = most_uncertain(trained, splits, len(distances)).source.paths
    assert len({frozenset(pair) for pair in explanation}) == len(explanation)
    assert {frozenset(pair) for pair in explanation} == {
        frozenset(files_of(splits, index)) for index in range(len(distances))
    }


def test_an_undecided_pair_is_no_mistake(known):
    trained, splits, distances = known
    banded = replace(trained, band=(0.3, 1.5))
    explanation = set(worst_mistakes(banded, splits, len(distances)).source.paths)
    decided = [index for index, apart in enumerate(distances) if apart <= 0.3 or apart > 1.5]
    wrong = [index for index in decided if (distances[index] > 0.8) != bool(splits.test_pairs.labels[index])]
    assert {frozenset(pair) for pair in explanation} == {frozenset(files_of(splits, index)) for index in wrong}


@pytest.mark.parametrize("find", [worst_mistakes, surest, most_uncertain])
def test_no_pair_cannot_be_looked_for(known, find):
    trained, splits, _ = known
    with pytest.raises(ValueError, match="at least 1"):
        find(trained, splits, 0)


def test_where_nothing_is_wrong_there_is_no_mistake(known, monkeypatch):
    trained, splits, _ = known
    right = 2 * splits.test_pairs.labels.astype(np.float32)
    monkeypatch.setattr(type(trained), "distances", lambda *_: right)
    assert len(worst_mistakes(trained, splits, COUNT)) == 0
    assert scores_table(worst_mistakes(trained, splits, COUNT)).empty


def test_the_table_says_what_the_explanation_says(calibrated):
    splits = calibrated.load_splits()
    explanation = calibrated.explain(*splits.files(splits.test_pairs, 3))
    verdict = judge(calibrated.network, explanation)
    rows = scores_table(explanation, verdict).reset_index().to_dict("records")
    assert [row["rank"] for row in rows] == [1, 2, 3]
    for index, row in enumerate(rows):
        assert (row["image 1"], row["image 2"]) == explanation.names[index]
        assert row["similarity"] == pytest.approx(explanation.similarity[index].item(), abs=1e-4)
        assert row["probability"] == pytest.approx(explanation.probability[index, 0].item(), abs=1e-4)
        assert row["decision"] == explanation.decision(index)
        assert row["correct"] == ("yes" if explanation.correct(index) else "no")
        assert row["maps"] == verdict.word(index)


def test_what_is_known_of_no_pair_has_no_column(trained, tmp_path):
    from helpers import write_images

    write_images(tmp_path, 2)
    table = scores_table(trained.explain((tmp_path / "0.png", tmp_path / "1.png")))
    assert "correct" not in table
    assert "class 1" not in table
    assert "probability" not in table


def test_equal_images_of_a_network_with_a_threshold_of_0_lie_on_it(known, monkeypatch):
    trained, splits, distances = known
    farthest = distances.argmax()
    equal = distances.copy()
    equal[farthest] = 0
    monkeypatch.setattr(type(trained), "distances", lambda *_: equal)
    explanation = most_uncertain(replace(trained, threshold=0.0), splits, 1)
    assert explanation.source.paths[0] == files_of(splits, farthest)
