import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from utils import plots
from utils.data.images import read_image
from utils.data.pairs import load_splits


def pixels(figure):
    file = io.BytesIO()
    figure.savefig(file)
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.fixture
def splits(make_config):
    return load_splits(make_config())


def test_every_figure_draws_and_is_closed(make_config, splits):
    distances, labels = np.linspace(0, 1.4, 40), np.arange(40) // 20
    history = [{"train_loss": 0.2, "valid_loss": 0.1, "valid_auc": 0.9, "learning_rate": 0.1}] * 3
    figures = [
        plots.history_figure(history),
        plots.pairs_figure(splits, splits.test_pairs),
        plots.augmentation_figure(splits.folder.paths[0], make_config()),
        plots.roc_figure(distances, labels, 0.7),
        plots.distances_figure(distances, labels, 0.7),
    ]
    assert all(pixels(figure).std() > 5 for figure in figures)
    assert plt.get_fignums() == []


def test_saved_writes_under_results_path(make_config):
    config = make_config()
    figure = plots.history_figure([{"train_loss": 0.2, "valid_loss": 0.1, "valid_auc": 0.9}])
    assert plots.saved(figure, "history", config) is figure
    assert read_image(config.results_path / "history.png").shape[2] == 3
