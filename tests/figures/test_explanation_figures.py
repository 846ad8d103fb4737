import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from utils import heatmaps
from utils.data.images import read_image
from utils.data.pairs import load_splits
from utils.explain import Counterfactual, Decomposition, Explanation
from utils.trust.faithfulness import Gap, Verdict

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
VERDICT = Verdict(Gap(*torch.full((3, 1), 0.4), torch.tensor([True])), torch.zeros(20, 1), torch.zeros(1))


def test_overlay_leaves_the_image_where_the_map_is_zero():
    np.testing.assert_array_equal(heatmaps.overlay(IMAGE, np.zeros((5, 5)), 0.7), IMAGE)


def test_overlay_mixes_image_and_colour():
    red, green, blue = (255 * np.array(plt.get_cmap(heatmaps.COLORMAP)(1.0)[:3])).tolist()
    assert red > green
    assert red > blue  # strong evidence is red: a swapped channel order would make it blue
    np.testing.assert_allclose(
        heatmaps.overlay(IMAGE, np.ones((20, 30)), 1.0), np.full_like(IMAGE, 1) * [red, green, blue], atol=1
    )
    half = heatmaps.overlay(IMAGE, np.ones((20, 30)), 0.5)
    np.testing.assert_allclose(half, 0.5 * IMAGE + 0.5 * np.array([red, green, blue]), atol=1)
    faint = 255 * np.array(plt.get_cmap(heatmaps.COLORMAP)(0.1)[:3])  # weak evidence fades: 0.1 / 0.25 of the opacity
    np.testing.assert_allclose(heatmaps.overlay(IMAGE, np.full((20, 30), 0.1), 0.5), 0.8 * IMAGE + 0.2 * faint, atol=1)


def test_overlay_keeps_the_place_of_the_evidence():
    heatmap = np.zeros((10, 10))
    heatmap[2, 7] = 1.5  # beyond the range: clipped, without a warning
    changed = np.abs(heatmaps.overlay(np.zeros((20, 40, 3), np.uint8), heatmap, 1.0).astype(int)).sum(axis=2)
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    assert row in (4, 5)
    assert column in range(28, 32)
    assert changed[10:].sum() == 0


@pytest.fixture
def paths(make_config):
    found = load_splits(make_config()).folder.paths
    return found[0], found[-1]


def explanation_of(evidence):
    return Explanation(torch.tensor([0.8]), 0.5, evidence.clamp(min=0), (-evidence).clamp(min=0))


def test_explanation_figure_shows_images_and_maps(make_config, paths):
    evidence = torch.zeros(1, 2, 32, 40)
    evidence[0, 0, :16] = 1
    figure = heatmaps.explanation_figure(explanation_of(evidence), *paths, make_config())
    shown = [axes.images[0].get_array() for axes in figure.axes[:6]]
    np.testing.assert_array_equal(shown[0], read_image(paths[0]))
    np.testing.assert_array_equal(shown[3], read_image(paths[1]))
    assert (shown[1][:10] != shown[0][:10]).any()
    np.testing.assert_array_equal(shown[1][-10:], shown[0][-10:])
    np.testing.assert_array_equal(shown[2], shown[0])
    blank = [axes.get_xlabel() for axes in figure.axes[:6]]
    assert blank[:4] == ["", "", "no such evidence", ""]
    assert all("does not react" in label.replace("\n", " ") for label in blank[4:])
    assert 'decided "different"' in figure.get_suptitle()


def test_the_title_carries_the_verdict(make_config, paths):
    figure = heatmaps.explanation_figure(
        explanation_of(torch.randn(1, 2, 8, 8)), *paths, make_config(), verdict=VERDICT
    )
    assert "gap +0.400" in figure.get_suptitle()
    assert "believable" in figure.get_suptitle()


def test_matches_are_drawn_where_they_are(paths):
    places = torch.zeros(2, 3, 2, 3)
    places[1, 0, 0, 2] = 0.5
    figure = heatmaps.matches_figure(Decomposition(places, torch.zeros(2, 3), torch.zeros(2, 3), 0.0, 0.5), *paths, 1)
    height, width = read_image(paths[0]).shape[:2]
    ends = [axes.lines[0].get_xydata()[0].tolist() for axes in figure.axes]
    assert ends == [[width / 6, height * 3 / 4], [width * 5 / 6, height / 4]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["+0.500"]


def test_methods_of_one_curve_share_a_line():
    curve = {"embedding": 0.4, "layer4": 0.1}
    figure = heatmaps.sanity_figure({"one": curve, "two": {**curve, "layer4": 0.3}, "three": curve})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["one\nthree", "two"]


@pytest.mark.parametrize("count", [3, 4, 5])
def test_comparison_shows_every_method_once(make_config, paths, count):
    explanations = {f"method {number}": explanation_of(torch.randn(1, 2, 8, 8)) for number in range(count)}
    figure = heatmaps.comparison_figure(explanations, dict.fromkeys(explanations, VERDICT), *paths, make_config())
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown if axes.get_title()] == list(explanations)
    assert len(shown) == sum(len(axes.images) for axes in figure.axes) == 2 * count


def test_the_outline_of_a_region_leaves_the_image_its_size(make_config, paths):
    regions = torch.ones(2, 32, 40, dtype=torch.bool)
    figure = heatmaps.counterfactual_figure(
        Counterfactual(torch.randn(2, 3, 32, 40), regions, 1.0, 0.8, 0.3, True), *paths, make_config()
    )
    assert {axes.get_xlim() for axes in figure.axes} == {(-0.5, 39.5)}


def test_every_figure_draws_and_is_closed(make_config, paths):
    config, explanation = make_config(), explanation_of(torch.randn(1, 2, 8, 8))
    apart = Decomposition(torch.rand(3, 3, 3, 3), torch.rand(3, 3), torch.rand(3, 3), 0.1, 0.9)
    regions = torch.zeros(2, 32, 40, dtype=torch.bool)
    regions[0, :8, :8] = True
    found = Counterfactual(torch.randn(2, 3, 32, 40), regions, 0.05, 0.8, 0.3, True)
    figures = [
        heatmaps.images_figure(*paths),
        heatmaps.explanation_figure(explanation, *paths, config, kinds=["factual"]),
        heatmaps.comparison_figure(
            {"one": explanation, "two": explanation}, {"one": VERDICT, "two": VERDICT}, *paths, config
        ),
        heatmaps.matches_figure(apart, *paths),
        heatmaps.point_figure(apart, (0.5, 0.5), *paths, config),
        heatmaps.counterfactual_figure(found, *paths, config),
        heatmaps.sanity_figure({"one": {"embedding": 0.4, "layer4": 0.1}}),
    ]
    assert all(pixels(figure).std() > 5 for figure in figures)
    assert plt.get_fignums() == []
