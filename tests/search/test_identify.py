import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import write_images

from utils import (
    DataError,
    FromFiles,
    gallery,
    identification_metrics,
    identify,
    search_rule,
    why,
)
from utils.files import ExplanationError
from utils.search.identify import NEIGHBOURS, UNKNOWN, class_distances, limit_of


def mean_of_nearest(distances, count):
    return sum(sorted(distances)[:count]) / len(sorted(distances)[:count])


def test_distances_to_classes_as_in_loops():
    random = np.random.default_rng(0)
    distances = random.random((5, 12))
    distances[0, :3] = np.inf
    codes = np.array([0, 0, 0, 1, 1, 1, 1, 3, 3, 3, 1, 3])
    measured = class_distances(distances, codes, 3)
    assert np.isinf(measured[:, 2]).all()  # a class without images
    assert np.isinf(measured[0, 0])  # all of its images are left out
    for query in range(1, 5):
        for code in (0, 1, 3):
            expected = mean_of_nearest([distances[query, index] for index in np.flatnonzero(codes == code)], 3)
            assert measured[query, code] == pytest.approx(expected)


@pytest.mark.parametrize("spread", ["normal", "heavy tails", "ties"])
def test_at_most_the_promised_share_of_unknown_images_is_identified(spread):
    """On average over validation sets; with ties, fewer are."""
    draws = {
        "normal": lambda random, count: random.normal(1, 0.2, count),
        "heavy tails": lambda random, count: 2 - random.pareto(0.7, count).clip(max=2),
        "ties": lambda random, count: random.integers(0, 4, count) / 2,
    }[spread]
    random = np.random.default_rng(0)
    for fpir, count in ((0.05, 19), (0.05, 130), (0.2, 33)):
        rates = [(draws(random, 2000) < limit_of(draws(random, count), fpir)).mean() for _ in range(400)]
        error = np.std(rates) / math.sqrt(len(rates))
        assert np.mean(rates) <= fpir + 2 * error
        if spread == "normal":
            assert (
                np.mean(rates) >= math.floor(fpir * (count + 1)) / (count + 1) - 3 * error
            )  # nor is it needlessly low


def test_a_limit_needs_enough_validation_images():
    assert math.isnan(limit_of(np.arange(98.0), 0.01))
    assert limit_of(np.arange(99.0), 0.01) == 0


def test_the_more_classes_the_lower_the_limit():
    """At the limit of a small gallery, a large one gives more false hits than were accepted."""
    random = np.random.default_rng(0)

    def searches(classes, count):
        centres = random.normal(size=(classes, 16))
        queries = random.normal(size=(count, 16))
        distances = np.linalg.norm(queries[:, None] - centres, axis=2)
        return distances.min(axis=1)

    few, many = limit_of(searches(5, 500), 0.05), limit_of(searches(500, 500), 0.05)
    assert many < few
    assert (searches(500, 500) < few).mean() > 0.2
    assert (searches(500, 500) < many).mean() < 0.1


@pytest.mark.parametrize("classes", [2, 3, 20])
def test_an_image_of_no_class_has_one_more_class_to_be_mistaken_for(classes):
    """Validation images, each of a class of the gallery, are searched in all others; a new image in all."""
    random = np.random.default_rng(classes)
    rates = []
    uncorrected = []
    for _ in range(300):
        searches = random.random((199, classes - 1)).min(axis=1)
        unknown = random.random((2000, classes)).min(axis=1)
        rates.append((unknown < limit_of(searches, 0.1 * (classes - 1) / classes)).mean())
        uncorrected.append((unknown < limit_of(searches, 0.1)).mean())
    error = np.std(rates) / math.sqrt(len(rates))
    assert np.mean(rates) <= 0.1 + 2 * error
    if classes == 2:
        assert np.mean(uncorrected) > 0.15


def test_a_class_that_is_named_unknown_or_a_network_without_validation_images(trained, tmp_path):
    write_images(tmp_path / "unknown", 2)
    with pytest.raises(DataError, match="a class is named unknown"):
        search_rule(trained, gallery(trained, tmp_path))
    files = FromFiles(trained.network, lambda path: trained.load_images(path)[0], 0.5)
    with pytest.raises(ExplanationError, match="FromFiles has no validation images"):
        identify(files, tmp_path / "unknown" / "0.png")


def test_the_dataset_one_level_deeper_is_the_same_gallery(trained, tmp_path):
    """Validation images that are in the gallery, in folders of other names, do not find themselves."""
    data = trained.config.data_path
    shutil.copytree(data, tmp_path / "deeper" / "set")
    rule = search_rule(trained, gallery(trained, data), 0.3)
    assert search_rule(trained, gallery(trained, tmp_path / "deeper"), 0.3).limit == pytest.approx(rule.limit, abs=1e-4)


def test_the_rule_is_that_of_validation_images_without_their_class(trained):
    """Searched in loops."""
    images = gallery(trained)
    splits = trained.load_splits()
    rule = search_rule(trained, images, 0.2)
    labels, paths = splits.folder.labels, splits.folder.paths
    embeddings = dict(zip(splits.valid, gallery_of(trained, [paths[index] for index in splits.valid]), strict=True))
    rates = []
    for count in NEIGHBOURS:
        correct = 0
        for query in splits.valid:
            means = {}
            for label in set(labels[splits.valid].tolist()):
                others = [i for i in splits.valid if labels[i] == label and splits.groups[i] != splits.groups[query]]
                means[label] = mean_of_nearest(
                    [np.linalg.norm(embeddings[query] - embeddings[i]) for i in others], count
                )
            correct += min(means, key=means.get) == labels[query]
        rates.append(correct)
    assert rule.neighbours == NEIGHBOURS[rates.index(max(rates))]
    nearest = []
    for query in splits.valid:
        means = []  # of all classes but its own, one less than a new image is compared with
        for name in set(images.classes) - {splits.folder.classes[labels[query]]}:
            members = [row for row, own in zip(images.embeddings, images.classes, strict=True) if own == name]
            distances = [np.linalg.norm(embeddings[query] - row) for row in members]
            means.append(mean_of_nearest(distances, rule.neighbours))
        nearest.append(min(means))
    assert rule.searches == len(splits.valid)
    assert rule.limit == pytest.approx(sorted(nearest)[math.floor(0.2 * 2 / 3 * (len(nearest) + 1)) - 1], abs=1e-4)


def gallery_of(trained, paths):
    with torch.no_grad():
        return trained.network(trained.load_images(*paths)).numpy()


def test_an_image_is_identified_or_unknown(calibrated):
    images = gallery(calibrated)
    path = images.paths[0]
    result = identify(calibrated, path, images, 0.2)
    assert result.candidates["class"].iloc[0] == images.classes[0]
    assert path not in result.candidates["nearest"].tolist()
    assert result.candidates["similarity"].is_monotonic_decreasing
    nearest = result.candidates["nearest"].iloc[0]
    pair = calibrated.explain((path, nearest))
    assert result.candidates["probability"].iloc[0] == pytest.approx(pair.probability[0, 0].item(), abs=0.01)
    assert result.name == images.classes[0]
    assert result.sentence().startswith(f"Identified as {images.classes[0]} (similarity 0.")
    strict = replace(result, rule=replace(result.rule, limit=0.0), accepted=False)
    assert strict.name == UNKNOWN
    assert strict.sentence().startswith("Unknown, nearest class: ")


def test_no_decision_where_the_limit_cannot_be_estimated(trained):
    images = gallery(trained)
    result = identify(trained, images.paths[0], images, 0.01)
    count = len(trained.load_splits().valid)
    assert result.name is None
    for text in ("No decision, nearest class: ", f"from {count} validation images (at least 149 are needed)"):
        assert text in result.sentence()
    metrics = identification_metrics(trained, trained.load_splits(), 0.01)
    assert metrics["fpir"].shown == metrics["fnir"].shown == "cannot be estimated"
    assert metrics["rank_1"].interval.value > 0.5
    json.dumps(metrics.as_dict())


def test_by_default_the_rate_is_that_of_the_config(make_config, checkpoints):
    from utils import load_trained

    trained = load_trained(make_config({"checkpoints_path": str(checkpoints), "decision.fpir": 0.3}))
    assert search_rule(trained, gallery(trained)).fpir == 0.3


@pytest.mark.parametrize("fpir", [0, 1, -0.1, math.nan])
def test_a_rate_that_is_none(trained, fpir):
    with pytest.raises(ValueError, match="is refused: it is a share of searches"):
        search_rule(trained, gallery(trained), fpir)


def test_metrics_as_in_loops(trained):
    """Each test image among the others, with and without its class; copies of it nowhere."""
    splits = trained.load_splits()
    images = gallery(trained)
    rule = search_rule(trained, images, 0.3)
    labels, groups = splits.folder.labels[splits.test], splits.groups[splits.test]
    first, accepted, false_hits = [], [], []
    for query, embedding in enumerate(images.embeddings):
        means = {}
        for label in sorted(set(labels.tolist())):
            rows = [i for i in range(len(labels)) if labels[i] == label and groups[i] != groups[query]]
            means[label] = mean_of_nearest(
                [np.linalg.norm(embedding - images.embeddings[i]) for i in rows], rule.neighbours
            )
        best = min(means, key=means.get)
        first.append(best == labels[query])
        accepted.append(means[best] < rule.limit)
        false_hits.append(min(value for label, value in means.items() if label != labels[query]) < rule.limit)
    metrics = identification_metrics(trained, splits, 0.3)
    assert metrics["rank_1"].interval.value == pytest.approx(np.mean(first))
    assert metrics["fnir"].interval.value == pytest.approx(1 - np.mean(np.array(first) & accepted))
    assert metrics["fpir"].interval.value == pytest.approx(np.mean(false_hits))


def test_a_gallery_without_folders_has_a_class_for_each_file(trained, tmp_path):
    images = gallery(trained)
    for number, index in enumerate((0, -1)):
        shutil.copy(images.paths[index], tmp_path / f"person{number}.png")
    result = identify(trained, images.paths[1], gallery(trained, tmp_path), 0.2)
    assert sorted(result.candidates["class"]) == ["person0.png", "person1.png"]


def test_why_the_first_rather_than_the_second(trained):
    images = gallery(trained)
    result = identify(trained, images.paths[0], images, 0.2)
    choice = why(trained, result)
    first, second = result.candidates["similarity"].iloc[:2]
    assert choice.margin == pytest.approx(first - second, abs=1e-3)


def test_one_candidate_has_no_reason(trained, tmp_path):
    write_images(tmp_path / "only", 2)
    result = identify(trained, gallery(trained).paths[0], gallery(trained, tmp_path), 0.2)
    with pytest.raises(ValueError, match="has only one candidate: add images"):
        why(trained, result)


def test_the_file_itself_is_left_out_and_a_copy_counts(trained, tmp_path):
    path = gallery(trained).paths[0]
    (tmp_path / "a").mkdir()
    copy = tmp_path / "a" / "copy.png"
    shutil.copy(path, copy)
    result = identify(trained, path, tmp_path, 0.2)  # a folder will do
    assert result.candidates["nearest"].tolist() == [str(copy)]
    assert result.candidates["similarity"].iloc[0] > 0.99
    with pytest.raises(DataError, match="has no image besides"):
        identify(trained, copy, tmp_path, 0.2)


def test_the_table_of_an_identification(calibrated):
    result = identify(calibrated, gallery(calibrated).paths[0], fpir=0.2)
    assert list(result.candidates) == ["class", "similarity", "nearest", "probability"]
    assert isinstance(result.candidates.index, pd.RangeIndex)
    assert str(result).startswith(result.sentence())
