from dataclasses import replace

import torch

from utils.network.distance import distance
from utils.trained import UNCALIBRATED


def test_it_says_what_its_explanations_rest_on(trained, calibrated):
    assert UNCALIBRATED in str(trained)
    measurements = calibrated.measurements
    assert f"test AUC {measurements.auc}" in str(calibrated)


def test_images_of_files_are_those_of_their_pairs(trained):
    paths = trained.load_splits().folder.paths
    images = trained.load_images(paths[0], paths[-1])
    assert torch.equal(trained.load_pairs((paths[0], paths[-1]))[0], images)


def test_donors_are_the_nearest_references_of_other_classes(calibrated):
    """Each decided "different" from both images, searched in a loop over all references."""
    paths = calibrated.load_splits().folder.paths
    explanation = calibrated.explain((paths[0], paths[1]))  # both blue
    donors = calibrated.donors(explanation)
    first, second = calibrated.network(explanation.images[0]).detach()
    nearest = {}
    for name, embedding in zip(calibrated.references.names, calibrated.references.embeddings, strict=True):
        to_first, to_second = distance(embedding, first).item(), distance(embedding, second).item()
        kind = name.split("/")[0]
        if kind == "blue" or min(to_first, to_second) <= calibrated.threshold:
            continue
        if kind not in nearest or to_first < nearest[kind][0]:
            nearest[kind] = to_first, name
    expected = [name for _, name in sorted(nearest.values())[:2]]
    assert expected
    assert len(donors.source.paths) == len(expected)
    for (path1, path2), name in zip(donors.source.paths, expected, strict=True):
        assert path1 == paths[0]
        assert path2.endswith(name)
    assert donors.different.all()


def test_no_donors_where_there_are_none(trained, calibrated):
    paths = calibrated.load_splits().folder.paths
    pair = paths[0], paths[1]
    assert trained.donors(trained.explain(pair)) is None  # no references
    explanation = calibrated.explain(pair)
    assert calibrated.donors(replace(explanation, source=replace(explanation.source, paths=None))) is None
    assert calibrated.donors(replace(explanation, threshold=2.0)) is None  # nothing is as far as that


def test_it_says_which_run_of_which_config_it_is(trained):
    assert str(trained).startswith(
        f"Run {trained.folder.name} of {trained.folder.parent}, config {trained.config.source}"
    )
    assert trained.config.source.endswith("config.yml")
