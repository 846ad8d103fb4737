"""A network that was trained elsewhere takes the place of a run: against the run itself, and against the module."""

import re
from collections import OrderedDict
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import warmed
from sklearn.metrics import roc_auc_score
from torch import nn
from torchvision import models

from utils import (
    Cut,
    calibrate,
    choose_pairs,
    compare,
    diagnose,
    explain_folder,
    find_shortcuts,
    find_suspects,
    gallery,
    identify,
    load_splits,
    methods_of,
    most_similar,
    report,
    sanity_curves,
    trained_elsewhere,
    write_metrics,
)
from utils.config import ConfigError
from utils.data.batches import evaluation_transform
from utils.data.reading import DataError
from utils.files import ExplanationError
from utils.network.variants import fully_random, randomised


class Model(nn.Module):
    """A classifier whose embedding is a method, as in CLIP."""

    def __init__(self):
        super().__init__()
        self.encoder = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1])
        self.encoder.fc = nn.Linear(512, 16)
        self.head = nn.Linear(16, 3)

    def encode_image(self, images):
        return self.encoder(images)

    def forward(self, images):
        return self.head(self.encode_image(images))


class ToDouble:
    """A function of images that converts them, also where the module was converted to float32."""

    def __init__(self, model):
        self.model = model

    def __call__(self, images):
        return self.model.encode_image(images.double())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return warmed(Model())


def cut(model, layer="encoder.layer2"):
    return Cut(model, layer=layer, forward=model.encode_image)


def test_the_network_of_a_run_has_the_numbers_of_the_run(calibrated):
    splits = calibrated.load_splits()
    network = Cut(calibrated.network, layer="backbone.layer3")
    elsewhere = trained_elsewhere(network, calibrated.config, splits, calibrated.runtime)
    assert elsewhere.threshold == pytest.approx(calibrated.threshold, abs=1e-5)
    assert elsewhere.measurements.names == calibrated.measurements.names
    assert elsewhere.measurements.auc == calibrated.measurements.auc
    np.testing.assert_allclose(
        elsewhere.measurements.calibration.distances, calibrated.measurements.calibration.distances, atol=1e-5
    )
    distances = elsewhere.distances(splits, splits.test_pairs)
    np.testing.assert_allclose(distances, calibrated.distances(splits, splits.test_pairs), atol=1e-5)
    metrics, expected = (write_metrics(network, splits, distances) for network in (elsewhere, calibrated))
    for metric, own in zip(metrics.metrics, expected.metrics, strict=True):
        assert metric.name == own.name
        np.testing.assert_allclose(astuple(metric.interval), astuple(own.interval), atol=1e-6, err_msg=own.name)
    assert metrics.facts["run"] == "SiameseNetwork"
    assert metrics.facts["seconds"] == 0
    pair = tuple(splits.folder.paths[index] for index in splits.test[:2])
    own = calibrated.explain(pair, method="gradcam", layer="layer3")
    torch.testing.assert_close(elsewhere.explain(pair, method="gradcam").evidence, own.evidence, atol=1e-6, rtol=1e-4)


def test_distances_and_auc_are_those_of_the_module(model, make_config):
    config = make_config()
    splits = load_splits(config)
    trained = trained_elsewhere(cut(model), config, splits)
    pixels = torch.from_numpy(splits.pixels[np.arange(len(splits.pixels))])
    with torch.no_grad():
        embeddings = F.normalize(model.encode_image(evaluation_transform(config.image)(pixels)), dim=1)
    pairs = splits.test_pairs
    expected = (embeddings[pairs.first] - embeddings[pairs.second]).norm(dim=1).numpy()
    distances = trained.distances(splits, pairs)
    np.testing.assert_allclose(distances, expected, atol=1e-5)
    assert trained.measurements.auc.value == pytest.approx(roc_auc_score(pairs.labels, expected))
    valid = (embeddings[splits.valid_pairs.first] - embeddings[splits.valid_pairs.second]).norm(dim=1).numpy()
    np.testing.assert_allclose(trained.validation[1], valid, atol=1e-5)


def test_the_module_stays_as_it_is(model, make_config):
    model.double().train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    config = make_config()
    trained = trained_elsewhere(cut(model), config, load_splits(config))
    assert model.training
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert next(trained.network.parameters()).dtype == torch.float32
    assert not any(module.training for module in trained.network.modules())


def test_all_that_takes_a_run_takes_it(model, make_config, tmp_path):
    config = make_config()
    splits = load_splits(config)
    trained = trained_elsewhere(cut(model), config, splits)
    assert str(trained).startswith("Model, trained elsewhere, config")
    assert config.backbone_model not in str(trained)
    assert "takes images of 32 x 40, normalised by mean [" in str(trained)
    assert repr(trained) == str(trained)
    assert calibrate(trained, splits, None) is trained
    distances = trained.distances(splits, splits.test_pairs)
    methods = {trained.method: methods_of(trained.settings)[trained.method]}
    rows = compare(methods, trained, choose_pairs(splits, 2), splits)
    assert rows[0].network == "Model, trained elsewhere"
    assert abs(rows[0].sanity) < 0.99  # maps change with the weights
    suspects = find_suspects(trained, splits)
    assert len(suspects.images) == len(splits.folder.paths)
    assert "not judged" not in str(suspects)
    metrics = write_metrics(trained, splits, distances)
    page = report(trained, splits, distances, metrics, rows, suspects, find_shortcuts(trained, splits))
    text = re.sub(r"<script>.*?</script>", "", page.html, flags=re.DOTALL)
    assert "The network was trained elsewhere: test images may be among its training images." in text
    for word in (config.backbone_model, "was trained on pairs", "learning_rate", 'id="training"'):
        assert word not in text
    assert "image:" in text
    query = splits.folder.paths[0]
    images = gallery(trained)
    assert len(most_similar(trained, query, 2, images)) == 2
    assert len(identify(trained, query, images).candidates) == len(splits.folder.classes)
    table = explain_folder(trained, [(query, splits.folder.paths[-1])], tmp_path / "maps")
    assert table["distance"].notna().all()
    curves = sanity_curves(methods, trained, choose_pairs(splits, 2))
    assert list(curves[trained.method]) == ["head", "encoder"]


def test_no_setting_of_training_is_advised(model, make_config):
    config = make_config()
    splits = load_splits(config)
    trained = trained_elsewhere(cut(model), config, splits)
    text = diagnose(trained, splits, trained.distances(splits, splits.test_pairs))
    assert "uncertain by" in text  # an AUC of few images
    for word in ("hyperparameters", "pretrained", "margin", "backbone", "memorised"):
        assert word not in text
    nothing = replace(trained, validation=(trained.validation[0], np.zeros(len(splits.valid_pairs))))
    assert "image.normalization" in diagnose(nothing, splits, trained.distances(splits, splits.test_pairs))


def test_two_cuts_of_one_module_share_no_embeddings(model, make_config):
    config = make_config()
    splits = load_splits(config)
    embedded = []
    for network in (cut(model), Cut(model, layer="encoder.layer2")):
        embedded.append(gallery(trained_elsewhere(network, config, splits)).embeddings.shape[1])
    assert embedded == [16, 3]


def test_maps_of_another_layer_do_not_stand_in_one_folder(model, make_config, tmp_path):
    config = make_config()
    splits = load_splits(config)
    pairs = [tuple(splits.folder.paths[:2])]
    explain_folder(trained_elsewhere(cut(model), config, splits), pairs, tmp_path / "maps")
    other_layer = trained_elsewhere(cut(model, "encoder.layer3"), config, splits)
    with pytest.raises(DataError, match=r"holds maps of other settings \(network\)"):
        explain_folder(other_layer, pairs, tmp_path / "maps")


class Wrapped(nn.Module):
    """A module around another one, with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(3, 1, 1))
        stem, body = nn.Conv2d(3, 8, 3, stride=2), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.inner = nn.Sequential(OrderedDict(stem=stem, body=body, flat=nn.Flatten(), head=nn.Linear(8, 5)))

    def forward(self, images):
        return self.inner(images + self.shift)


def test_a_cut_is_shuffled_part_by_part():
    torch.manual_seed(0)
    network = Cut(Wrapped(), layer="inner.stem")
    before = {name: values.clone() for name, values in network.module.named_parameters()}
    seen = []
    for stage, shuffled in randomised(network, seed=1):
        seen.append(stage)
        for name, values in shuffled.module.named_parameters():
            part = name.split(".")[1] if name.startswith("inner") else "Wrapped"
            assert torch.equal(values.flatten().sort().values, before[name].flatten().sort().values)
            assert torch.equal(values, before[name]) == (part not in seen)
    assert seen == ["head", "body", "stem", "Wrapped"]
    assert all(torch.equal(values, before[name]) for name, values in network.module.named_parameters())


def test_what_cannot_take_the_place_of_a_run_is_refused(model, make_config):
    config = make_config()
    splits = load_splits(config)
    with pytest.raises(ExplanationError, match=r"Model cannot be read at a layer: pass Cut\(module"):
        trained_elsewhere(model, config, splits)
    with pytest.raises(ConfigError, match="splits hold images of 32 x 40, and the config asks for 48 x 48"):
        trained_elsewhere(cut(model), make_config({"image.size": [48, 48]}, "other.yml"), splits)
    layer = make_config({"explanation.layer": "layer3"}, "layer.yml")
    with pytest.raises(ConfigError, match=r"explanation.layer: 'layer3' is refused: this Cut reads 'encoder.layer2'"):
        trained_elsewhere(cut(model), layer, splits)
    closure = Cut(model, layer="encoder.layer2", forward=lambda images: model.encode_image(images))
    with pytest.raises(ExplanationError, match=r"a copy of this Cut in float32 .* runs 0 times"):
        trained_elsewhere(closure, config, splits)
    model.images = (number for number in range(3))  # which nothing can copy
    with pytest.raises(ExplanationError, match=r"a copy of this Cut .* The cause: cannot pickle"):
        trained_elsewhere(cut(model), config, splits)


def test_the_cause_is_named_where_a_module_cannot_run_in_float32(model, make_config):
    config = make_config()
    double = Cut(model.double(), "encoder.layer2", forward=ToDouble(model))
    with pytest.raises(ExplanationError, match=r"a copy of this Cut in float32 .* The cause: Model fails on images"):
        trained_elsewhere(double, config, load_splits(config))


def test_without_parameters_there_is_no_control(model):
    for name, values in list(model.encoder.named_parameters()):
        owner = model.encoder.get_submodule(name.rpartition(".")[0])
        delattr(owner, name.rpartition(".")[2])
        owner.register_buffer(name.rpartition(".")[2], values.detach())
    with pytest.raises(ExplanationError, match="layer2: there are no parameters to shuffle"):
        fully_random(Cut(model.encoder, "layer2"))
