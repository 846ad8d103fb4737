from dataclasses import replace

import numpy as np
import pytest
import torch

from utils import load_trained
from utils import measured as choice
from utils.config import AUTO, ExplanationSettings
from utils.data.splits import Pairs
from utils.explanations.methods import STEPS, explain
from utils.explanations.references import embed_references
from utils.measured import choose_layer
from utils.network.siamese import SiameseNetwork
from utils.score.intervals import Interval, auc_interval
from utils.train.runs import current_run, load_checkpoint
from utils.trained import BATCH
from utils.trust.faithfulness import insertion_deletion


def with_settings(trained, **changes):
    explanation = trained.config.explanation.changed(**changes)
    return replace(trained, config=trained.config.model_copy(update={"explanation": explanation}))


def gaps_by_hand(trained, layer, steps):
    """The decisive gaps of the validation pairs that the choice looks at."""
    splits = trained.load_splits()
    pairs = splits.valid_pairs
    order = np.random.default_rng(trained.config.seed).permutation(len(pairs))[: choice.PAIRS]
    files = [[splits.folder.paths[side[index]] for side in (pairs.first, pairs.second)] for index in order]
    images = torch.cat([trained.load_pairs(tuple(pair)) for pair in files])
    explanation = explain(trained.network, images, trained.threshold, trained.references, layer=layer, steps=steps)
    return insertion_deletion(trained.network, explanation).decisive.numpy()


def test_the_finest_layer_and_the_fewest_steps_that_are_good_enough(calibrated):
    """Every candidate measured again, and the rule applied by hand."""
    layers = {layer: gaps_by_hand(calibrated, layer, 2) for layer in calibrated.network.layers}
    few = {layer: gaps[:BATCH].mean() for layer, gaps in layers.items()}
    for layer in sorted(few, key=few.get)[:-3]:  # the best three on few pairs are left
        del layers[layer]
        assert calibrated.measurements.gaps[f"{layer} in 2 (16 pairs)"] == pytest.approx(few[layer], abs=1e-4)
        assert f"{layer} in 2" not in calibrated.measurements.gaps
    best = max(gaps.mean() for gaps in layers.values())
    layer = next(name for name, gaps in layers.items() if gaps.mean() >= 0.85 * best)
    steps = {number: gaps_by_hand(calibrated, layer, number) for number in (1, 2, 4)}
    best = max(gaps.mean() for gaps in steps.values())
    number = next(number for number, gaps in steps.items() if gaps.mean() >= 0.85 * best)
    assert (calibrated.measurements.layer, calibrated.measurements.steps) == (layer, number)
    for name, gaps in layers.items():
        assert calibrated.measurements.gaps[f"{name} in 2"] == pytest.approx(gaps.mean(), abs=1e-4)


@pytest.mark.parametrize(("gain", "measurable"), [(0.1, True), (0.002, False), (-0.1, False)])
def test_several_layers_are_read_where_the_gain_is_measurable(calibrated, monkeypatch, gain, measurable):
    """The gaps of pairs spread by 0.05, so that a gain of 0.002 may be chance."""
    noise = np.random.default_rng(0)

    def gaps_of(trained, batches, references, layer, steps):
        gaps = 0.3 + 0.05 * noise.standard_normal(sum(map(len, batches)))
        if layer == "layer2+":
            return gaps + gain
        return gaps

    monkeypatch.setattr(choice, "_gaps", gaps_of)
    layer, steps, tried = choose_layer(calibrated, calibrated.load_splits(), calibrated.references)
    assert ((layer, steps) == ("layer2+", STEPS)) == layer.endswith("+") == measurable
    assert f"layer2+ in {STEPS}" in tried
    one_layer = with_settings(calibrated, method="integrated")
    assert "+" not in "".join(choose_layer(one_layer, one_layer.load_splits(), one_layer.references)[2])


def test_networks_of_one_stride_have_no_path_through_several_layers(calibrated):
    assert calibrated.network.path_start == "layer2"
    assert SiameseNetwork("test_efficientnet", 8, image_size=(64, 64)).path_start == "blocks.2"
    assert SiameseNetwork("test_vit", 8, image_size=(32, 32)).path_start is None
    shallow = SiameseNetwork("test_resnet", 8, image_size=(64, 64))
    del shallow._named["layer3"], shallow._named["layer4"]
    assert shallow.path_start is None  # nothing behind stride 8


def test_gaps_below_nothing_leave_the_best():
    assert choice._first_good({"a": -2.0, "b": -1.0, "c": -1.5}) == "b"


def test_what_the_config_names_is_not_looked_for(calibrated):
    splits = calibrated.load_splits()
    given = with_settings(calibrated, layer="layer3", steps=2)
    assert choose_layer(given, splits, calibrated.references) == ("layer3", 2, {})
    layer, _, tried = choose_layer(with_settings(calibrated, layer="layer3"), splits, calibrated.references)
    assert layer == "layer3"
    assert set(tried) == {"layer3 in 1", "layer3 in 2", "layer3 in 4"}
    _, _, tried = choose_layer(with_settings(calibrated, method="gradcam"), splits, calibrated.references)
    assert len(tried) == len(calibrated.network.layers) + choice.FINALISTS  # steps are none of its settings
    assert choose_layer(with_settings(calibrated, method="occlusion"), splits, calibrated.references)[2] == {}


CHANGED = {"method": "gradcam", "layer": "layer2", "output_stride": 16, "steps": 2, "test_pairs": 3, "opacity": 0.2}


@pytest.fixture
def quickly(monkeypatch):
    """Calibrations look at few pairs and layers, and write nothing."""
    set_quickly(monkeypatch)


def set_quickly(monkeypatch):
    monkeypatch.setattr(
        choice, "save_measurements", lambda trained, measurements: replace(trained, measurements=measurements)
    )
    monkeypatch.setattr(choice, "PAIRS", 4)
    monkeypatch.setattr(choice, "LAYERS", 2)


@pytest.fixture(scope="module")
def quickly_calibrated(calibrated_once):
    """The network, calibrated so."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_quickly(monkeypatch)
        return calibrated_for(replace(calibrated_once, measurements=None))


def calibrated_for(trained):
    splits = trained.load_splits()
    return choice.calibrate(trained, splits, np.linspace(0, 1, len(splits.test_pairs), dtype=np.float32))


@pytest.mark.parametrize("key", ExplanationSettings.model_fields)
def test_a_changed_key_is_measured_again_or_changes_nothing_that_is_measured(quickly, quickly_calibrated, key):
    before = quickly_calibrated.measurements
    changed = with_settings(quickly_calibrated, **{key: CHANGED[key]})
    layer, steps, gaps = choose_layer(changed, changed.load_splits(), changed.references)  # whatever is kept
    after = calibrated_for(changed).measurements
    assert (after.layer, after.steps) == (layer, steps)
    assert after.gaps == pytest.approx(gaps, abs=1e-5)
    assert (after is before) == (key in ("test_pairs", "opacity"))  # nothing is measured twice


def test_another_threshold_is_measured_again(quickly, quickly_calibrated):
    """Maps explain decisions."""
    strict = calibrated_for(replace(quickly_calibrated, threshold=0.01))
    assert strict.measurements.settings == quickly_calibrated.measurements.settings | {"threshold": 0.01}
    assert calibrated_for(strict) is strict


def test_the_measurements_are_in_the_checkpoint_and_nothing_else_has_changed(calibrated, checkpoints):
    saved = load_checkpoint(calibrated.folder / "best.pt")
    before = load_checkpoint(current_run(checkpoints) / "best.pt")
    assert saved.keys() - before.keys() == {"measurements"}
    for name, weight in before["network"].items():
        assert torch.equal(saved["network"][name], weight)
    assert calibrated.settings.layer == saved["measurements"]["layer"]
    assert calibrated.settings.steps == saved["measurements"]["steps"]
    assert load_trained(calibrated.config).measurements.gaps == calibrated.measurements.gaps


def test_references_are_training_images_of_all_classes(calibrated):
    splits = calibrated.load_splits()
    training = {splits.folder.paths[index] for index in splits.train}
    files = [str(splits.folder.root / name) for name in calibrated.references.names]
    assert set(files) <= training
    assert {name.split("/")[0] for name in calibrated.references.names} == set(splits.folder.classes)
    references = embed_references(calibrated.network, calibrated.load_images(*files))
    torch.testing.assert_close(references.embeddings, calibrated.references.embeddings, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(calibrated.load_references(), calibrated.load_images(*files))


def test_without_a_choice_auto_is_the_last_layer(trained):
    assert trained.measurements is None
    assert trained.config.explanation.layer == AUTO
    assert (trained.settings.layer, trained.settings.steps) == ("last", 4)
    assert trained.references is None


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
