import shutil
from functools import partial
from typing import get_args

import pytest
import torch
from helpers import network_and_images
from matplotlib.text import Text

from utils import figure
from utils.config import ConfigError, ExplanationSettings, Normalization
from utils.explanations.explanation import Source
from utils.explanations.maps import Task, at_layer, gradcam, hirescam, layercam, occlusion
from utils.explanations.methods import METHODS, PAPER, explain, methods_of, name_of, replace_auto
from utils.explanations.paths import along_path, contrast, thorough, to_other
from utils.explanations.references import References
from utils.files import ExplanationError
from utils.network.cut import Cut
from utils.network.distance import distances_of
from utils.network.variants import folded


@pytest.mark.parametrize(
    ("settings", "method", "task"),
    [
        (PAPER, partial(at_layer, gradcam), {}),
        ({"method": "layercam", "layer": "layer2"}, partial(at_layer, layercam), {"layer": "layer2"}),
        (
            {"method": "integrated", "layer": "layer2", "steps": 2},
            partial(along_path, hirescam, to_other),
            {"layer": "layer2", "steps": 2},
        ),
        (
            {"method": "path_layercam", "layer": "layer2", "steps": 1},
            partial(along_path, layercam, to_other),
            {"layer": "layer2"},
        ),
        ({"method": "occlusion"}, occlusion, {}),
        ({"layer": "layer2", "steps": 2}, partial(along_path, hirescam, contrast), {"layer": "layer2", "steps": 2}),
        ({}, partial(along_path, hirescam, contrast), {"layer": "layer2+", "steps": 3}),
        ({"method": "thorough"}, thorough, {"layer": "layer2+"}),
    ],
)
def test_each_name_is_its_method(settings, method, task):
    inputs = (*network_and_images(), 0.5)
    found = explain(*inputs, **settings)
    assert torch.equal(found.evidence, method(Task(*inputs, **task)).evidence)
    assert found.method == settings.get("method", "contrastive")


def test_every_name_that_the_config_takes_is_a_method():
    assert set(METHODS) == set(get_args(ExplanationSettings.model_fields["method"].annotation))


def test_auto_is_the_last_layer_or_the_path_through_several():
    inputs = (*network_and_images(), 0.5)
    assert ExplanationSettings().layer == "auto"
    for method, recipe in METHODS.items():
        if recipe.reads_layer:
            assert explain(*inputs, method=method).layer == ("layer2+" if recipe.reads_several else "layer4")
    assert torch.equal(explain(*inputs).evidence, explain(*inputs, layer="layer2+", steps=3).evidence)


def test_auto_is_replaced_and_nothing_else_is_touched():
    network, _ = network_and_images()
    settings = ExplanationSettings(steps=2)
    assert replace_auto(settings, network) == settings.changed(layer="layer2+")
    assert replace_auto(settings).layer == "last"
    assert replace_auto(settings.changed(method="integrated"), network).layer == "last"
    assert replace_auto(settings.changed(output_stride=16), network).layer == "last"
    assert replace_auto(settings.changed(method="integrated", layer="layer2+"), network).layer == "layer2"
    assert replace_auto(settings.changed(layer="layer3"), network).layer == "layer3"


def test_what_is_explained_is_carried():
    network, images = network_and_images()
    paths = [("one/two/a.png", "b.png"), ("c.png", "d/e.png")]
    found = explain(
        network, images, 0.5, source=Source(paths=paths, classes=(("a", "a"), None)), layer="layer2", steps=1
    )
    assert found.images is images
    assert found.threshold == 0.5
    assert found.description == "contrastive at layer2, 1 step"
    assert found.source.paths == tuple(paths)
    assert found.names == (("two/a.png", "b.png"), ("c.png", "d/e.png"))
    assert found.source.classes == (("a", "a"), None)
    assert explain(network, images, 0.5, method="occlusion").description == "occlusion"
    finer = explain(network, images, 0.5, output_stride=16, steps=2)
    assert finer.description == "contrastive at layer4, output stride 16, 2 steps"
    assert finer.layer == "layer4"
    several = explain(network, images, 0.5, layer="layer2+", steps=1)
    assert several.description == "contrastive at layer2 and coarser layers, 1 step"
    assert not torch.equal(several.evidence, found.evidence)
    of_one = explain(network, images, 0.5, method="gradcam", layer="layer2+")
    assert of_one.description == "gradcam at layer2"


def test_what_is_refused():
    network, images = network_and_images()
    with pytest.raises(ConfigError, match=r"method: 'magic' is refused"):
        explain(network, images, 0.5, method="magic")
    with pytest.raises(ConfigError, match=r"metod: unknown key; did you mean method\?"):
        explain(network, images, 0.5, metod="gradcam")
    with pytest.raises(ConfigError, match=r"step: unknown key; did you mean steps\?"):
        explain(network, images, 0.5, step=4)
    with pytest.raises(ValueError, match=r"Flatten cannot be read at a layer: pass Cut"):
        explain(torch.nn.Flatten(), images, 0.5)
    with pytest.raises(ValueError, match="paths of 1 pairs, but distances of 2"):
        explain(network, images, 0.5, source=Source(paths=[("a", "b")]))
    for wrong in (images[:, 0], images.repeat(1, 2, 1, 1, 1)):
        with pytest.raises(ValueError, match=r"must be \(B, 2, C, H, W\)"):
            explain(network, wrong, 0.5)


def test_a_finer_map_keeps_score_and_decision():
    network, images = network_and_images()
    finer = explain(network, images, 0.5, method="gradcam", output_stride=8)
    coarse = explain(network, images, 0.5, method="gradcam")
    torch.testing.assert_close(finer.distance, distances_of(network, images))
    assert finer.evidence.shape == coarse.evidence.shape
    assert not torch.allclose(finer.factual, coarse.factual, atol=0.01)


def test_all_methods_by_name():
    network, images = network_and_images()
    methods = methods_of(ExplanationSettings(layer="layer2", steps=2))
    assert len(methods) == 1 + len(METHODS)
    assert {"gradcam, last", "gradcam, layer2", "contrastive, layer2", "occlusion"} <= set(methods)
    for name, method in methods.items():
        place = ["layer4" if part == "last" else part for part in name.split(", ")]
        explanation = method(network, images, 0.5)
        assert explanation.description.removesuffix(", 2 steps") == " at ".join(place)
    assert name_of(ExplanationSettings(method="gradcam", layer="layer2")) == "gradcam, layer2"
    assert name_of(ExplanationSettings(layer="layer2")) in methods
    assert {"contrastive, layer2+", "gradcam, layer2"} <= set(methods_of(ExplanationSettings(layer="layer2+")))
    assert "gradcam, last, stride 16" in methods_of(ExplanationSettings(output_stride=16))


def test_files_are_explained_as_their_pixels_are(calibrated):
    folder = calibrated.load_splits().folder
    pair = folder.paths[0], folder.paths[-1]
    found = calibrated.explain(pair, pair[::-1])
    assert found.evidence.shape == (2, 2, 32, 40)
    assert found.source.paths == (pair, pair[::-1])
    assert found.source.classes == (("blue", "red"), ("red", "blue"))
    images = calibrated.load_pairs(pair)
    assert images.shape == (1, 2, 3, 32, 40)
    references = References(calibrated.measurements.embeddings)
    expected = explain(calibrated.network, images, calibrated.threshold, references)
    torch.testing.assert_close(found.evidence[:1], expected.evidence, atol=1e-6, rtol=1e-3)
    assert calibrated.explain(pair, method="gradcam").method == "gradcam"
    everything = calibrated.explain_by_all(pair)
    assert list(everything) == list(methods_of(calibrated.settings))
    torch.testing.assert_close(everything[calibrated.method].evidence, expected.evidence, atol=1e-6, rtol=1e-3)


def test_what_is_no_pair_of_files_is_refused(trained):
    for wrong in (("a.jpg", "b.jpg"), [("a.jpg", "b.jpg", "c.jpg")]):
        with pytest.raises(ValueError, match="a pair is a tuple of two image files"):
            trained.explain(*wrong)


def test_classes_of_files_from_elsewhere_are_not_known(trained, tmp_path):
    path = trained.load_splits().folder.paths[0]
    copy = tmp_path / "blue" / "copy.png"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    assert trained.explain((path, str(copy))).source.classes == (None,)


@pytest.mark.parametrize("method", METHODS)
def test_maps_in_bfloat16_are_those_in_float32_but_for_rounding(method):
    """The notebooks explain a folded network in bfloat16."""
    network, images = network_and_images()
    exact, short = (
        explain(folded(network, dtype), images, 0.5, method=method, layer="layer2")
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert short.evidence.dtype == torch.float32
    assert (short.distance - exact.distance).abs().max() < 0.02
    for one, other in zip(short.evidence.flatten(0, 1), exact.evidence.flatten(0, 1), strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.85


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_images_of_whole_numbers_are_refused_with_the_cure(dtype):
    network, _ = network_and_images()
    images = torch.randint(0, 256, (1, 2, 3, 64, 64)).to(dtype)
    for taken in (network, Cut(network.backbone, "layer4")):
        with pytest.raises(ExplanationError, match=rf"images of {dtype} are refused.*images / 255 - mean"):
            explain(taken, images, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_of_pixels_are_explained_with_a_caution(dtype):
    network, _ = network_and_images()
    network = network.to(dtype)
    pixels = torch.randint(0, 256, (1, 2, 3, 64, 64)).to(dtype)
    said = explain(network, pixels, 0.5, source=Source(warning="")).sentence()
    assert said.startswith("CAUTION: the images hold values from 0 to 255: most networks take normalised ones")
    resized = (pixels / 1.7).clamp(min=0)  # no whole numbers any more
    assert (
        "hold values from 0 to 150: most networks"
        in explain(network, resized, 0.5, source=Source(warning="")).sentence()
    )
    imagenet = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    said = explain(network, pixels, 0.5, source=Source(warning="", normalization=imagenet)).sentence()
    assert said.startswith("CAUTION: the images hold values from 0 to 255, but pixels normalised by the normalization")


@pytest.mark.parametrize(
    ("make", "normalization"),
    [
        (lambda pixels: pixels, Normalization(mean=(0, 0, 0), std=(1 / 255,) * 3)),  # of a network that takes pixels
        (lambda pixels: pixels / 255, None),
        (lambda pixels: pixels / 255, Normalization(mean=(0, 0, 0), std=(1, 1, 1))),
        (lambda pixels: (pixels / 255 - 0.5) / 0.25, None),
        (lambda pixels: (pixels / 255 - 0.5) / 0.25, Normalization(mean=(0.5,) * 3, std=(0.25,) * 3)),
        (lambda pixels: (pixels > 128).float(), None),  # masks
        (lambda pixels: torch.randn_like(pixels) * 3, None),
        (lambda pixels: pixels[:0], None),
    ],
)
def test_what_may_be_right_is_not_doubted(make, normalization):
    network, _ = network_and_images()
    pixels = torch.randint(0, 256, (1, 2, 3, 64, 64)).float()
    source = Source(warning="", normalization=normalization)
    assert explain(network, make(pixels), 0.5, source=source).source.warning == ""


def test_a_network_that_nobody_tested_says_so(trained, calibrated):
    network, images = network_and_images()
    for taken in (network, Cut(network.backbone, "layer4")):
        found = explain(taken, images, 0.5)
        assert found.sentence().startswith("CAUTION: this network was not tested on labelled pairs, so it may know")
        assert "not tested" in drawn_text(figure(found[0]))
        assert not explain(taken, images, 0.5, source=Source(warning="")).source.warning
    pair = tuple(trained.load_splits().folder.paths[:2])
    assert "not tested on labelled pairs" in trained.explain(pair).sentence()
    assert "not tested" not in calibrated.explain(pair).sentence()


def drawn_text(shown):
    return " ".join(text.get_text() for text in shown.findobj(Text)).replace("\n", " ")
