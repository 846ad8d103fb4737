from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from utils import calibrate, load_trained
from utils.data.splits import Pairs
from utils.explanations.references import embed_references
from utils.score.intervals import Interval, auc_interval
from utils.train.runs import current_run, load_checkpoint
from utils.trained import Measurements


def test_what_is_calibrated_is_not_calibrated_again(calibrated):
    splits = calibrated.load_splits()
    assert calibrate(calibrated, splits, np.zeros(len(splits.test_pairs), np.float32)) is calibrated


def test_measurements_of_an_earlier_version_are_read(calibrated):
    """Which had more keys: the run was trained for hours."""
    content = asdict(calibrated.measurements) | {"layer": "layer2", "steps": 4, "gaps": {}, "settings": {}}
    assert Measurements.from_dict(content).auc == calibrated.measurements.auc


def test_the_measurements_are_in_the_checkpoint_and_nothing_else_has_changed(calibrated, checkpoints):
    saved = load_checkpoint(calibrated.folder / "best.pt")
    before = load_checkpoint(current_run(checkpoints) / "best.pt")
    assert saved.keys() - before.keys() == {"measurements"}
    for name, weight in before["network"].items():
        assert torch.equal(saved["network"][name], weight)
    assert load_trained(calibrated.config).measurements.auc == calibrated.measurements.auc


def test_references_are_training_images_of_all_classes(calibrated):
    splits = calibrated.load_splits()
    training = {splits.folder.paths[index] for index in splits.train}
    files = [str(splits.folder.root / name) for name in calibrated.references.names]
    assert set(files) <= training
    assert {name.split("/")[0] for name in calibrated.references.names} == set(splits.folder.classes)
    references = embed_references(calibrated.network, calibrated.load_images(*files))
    torch.testing.assert_close(references.embeddings, calibrated.references.embeddings, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(calibrated.load_references(), calibrated.load_images(*files))


def test_a_network_that_may_know_nothing_says_so_above_every_figure(calibrated):
    folder = calibrated.load_splits().folder
    pair = folder.paths[0], folder.paths[-1]
    assert "CAUTION" not in calibrated.explain(pair).sentence()
    for low, high, warned in ((0.45, 0.7, True), (0.5, 0.7, True), (0.51, 0.7, False), (0.2, 0.49, False)):
        unsure = replace(calibrated, measurements=replace(calibrated.measurements, auc=Interval(0.6, low, high)))
        sentences = [unsure.explain(pair).sentence(), unsure.explain_by_all(pair)["occlusion"].sentence()]
        assert all(("CAUTION: this network may know nothing" in sentence) == warned for sentence in sentences)


def test_the_interval_of_the_auc_is_the_usual_one_where_no_image_is_shared():
    random = np.random.default_rng(0)
    labels = np.arange(400) % 2
    distances = labels + random.normal(0, 1.2, 400)
    interval = auc_interval(distances, Pairs(np.arange(400), np.arange(400, 800), labels))
    areas = [auc(distances[chosen], labels[chosen]) for chosen in random.integers(0, 400, (300, 400))]
    usual = np.subtract(*np.percentile(areas, (97.5, 2.5)))
    assert interval.high - interval.low == pytest.approx(usual, rel=0.15)


def auc(distances, labels):
    """The share of different pairs that are farther apart than same ones, over all of both."""
    return (distances[labels == 1][:, None] > distances[labels == 0][None]).mean()
