import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from utils import plots
from utils.gradcam import Explanation
from utils.images import read_image
from utils.pairs import load_splits

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def pixels(figure):
    file = io.BytesIO()
    figure.savefig(file)
    return np.asarray(Image.open(file).convert("RGB"))


def test_overlay_leaves_the_image_where_the_map_is_zero():
    np.testing.assert_array_equal(plots.overlay(IMAGE, np.zeros((5, 5)), 0.7), IMAGE)


def test_overlay_mixes_image_and_colour():
    red, green, blue = (255 * np.array(plt.get_cmap(plots.COLORMAP)(1.0)[:3])).tolist()
    assert red > green
    assert red > blue  # strong evidence is red: a swapped channel order would make it blue
    np.testing.assert_allclose(
        plots.overlay(IMAGE, np.ones((20, 30)), 1.0), np.full_like(IMAGE, 1) * [red, green, blue], atol=1
    )
    half = plots.overlay(IMAGE, np.ones((20, 30)), 0.5)
    np.testing.assert_allclose(half, 0.5 * IMAGE + 0.5 * np.array([red, green, blue]), atol=1)


def test_overlay_keeps_the_place_of_the_evidence():
    heatmap = np.zeros((10, 10))
    heatmap[2, 7] = 1.5  # beyond the range: clipped, without a warning
    changed = np.abs(plots.overlay(np.zeros((20, 40, 3), np.uint8), heatmap, 1.0).astype(int)).sum(axis=2)
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    assert row in (4, 5)
    assert column in range(28, 32)
    assert changed[10:].sum() == 0


@pytest.fixture
def splits(make_config):
    return load_splits(make_config())


def explanation_of(evidence):
    return Explanation(torch.tensor([0.8]), torch.tensor([0.6]), 0.5, evidence)


def test_explanation_figure_shows_images_and_maps(make_config, splits):
    paths = splits.folder.paths[0], splits.folder.paths[-1]
    evidence = torch.zeros(1, 2, 32, 40)
    evidence[0, 0, :16] = 1
    figure = plots.explanation_figure(explanation_of(evidence), *paths, make_config())
    shown = [axes.images[0].get_array() for axes in figure.axes[:6]]
    np.testing.assert_array_equal(shown[0], read_image(paths[0]))
    np.testing.assert_array_equal(shown[3], read_image(paths[1]))
    assert (shown[1][:10] != shown[0][:10]).any()
    np.testing.assert_array_equal(shown[1][-10:], shown[0][-10:])
    np.testing.assert_array_equal(shown[2], shown[0])
    blank = [axes.get_xlabel() for axes in figure.axes[:6]]
    assert blank == ["", "", "no such evidence", "", "no such evidence", "no such evidence"]
    assert 'decided "different"' in figure.get_suptitle()


def test_every_figure_draws_and_is_closed(make_config, splits):
    distances, labels = np.linspace(0, 1.4, 40), np.arange(40) // 20
    history = [{"train_loss": 0.2, "valid_loss": 0.1, "valid_auc": 0.9, "learning_rate": 0.1}] * 3
    figures = [
        plots.history_figure(history),
        plots.pairs_figure(splits, splits.test_pairs),
        plots.augmentation_figure(splits.folder.paths[0], make_config()),
        plots.roc_figure(distances, labels, 0.7),
        plots.distances_figure(distances, labels, 0.7),
        plots.images_figure(*splits.folder.paths[:2]),
        plots.explanation_figure(
            explanation_of(torch.randn(1, 2, 8, 8)), *splits.folder.paths[:2], make_config(), kinds=["factual"]
        ),
    ]
    assert all(pixels(figure).std() > 5 for figure in figures)
    assert plt.get_fignums() == []


def test_saved_writes_under_results_path(make_config):
    config = make_config()
    figure = plots.history_figure([{"train_loss": 0.2, "valid_loss": 0.1, "valid_auc": 0.9}])
    assert plots.saved(figure, "history", config) is figure
    assert read_image(config.results_path / "history.png").shape[2] == 3
