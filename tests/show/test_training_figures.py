import io
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import drawn
from matplotlib.text import Text
from PIL import Image

from utils import augmentation_figure, distances_figure, history_figure, load_splits, pairs_figure, roc_figure, saved
from utils.data.reading import read_image
from utils.show.drawing import RETINA

EPOCH = {"train_loss": 0.2, "valid_loss": 0.1, "valid_auc": 0.9, "valid_auc_error": 0.02, "learning_rate": 0.1}


def test_every_figure_draws_and_is_closed(make_config):
    splits = load_splits(make_config())
    distances, labels = np.linspace(0, 1.4, 40), np.arange(40) // 20
    figures = [
        history_figure([EPOCH] * 3),
        pairs_figure(splits, splits.test_pairs),
        augmentation_figure(splits.folder.paths[0], make_config()),
        roc_figure(distances, labels, 0.7),
        distances_figure(distances, labels, 0.7),
    ]
    assert all(drawn(figure).std() > 5 for figure in figures)
    assert plt.get_fignums() == []


def test_saved_writes_the_file_that_the_figure_is_called(tmp_path):
    figure = history_figure([EPOCH])
    assert saved(figure, tmp_path / "new") is figure
    assert read_image(tmp_path / "new" / "history.png").shape[2] == 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["history.png"]


def test_a_figure_that_cannot_be_drawn_leaves_the_old_file(tmp_path, monkeypatch):
    saved(history_figure([EPOCH]), tmp_path)
    before = (tmp_path / "history.png").read_bytes()
    figure = history_figure([EPOCH] * 2)
    monkeypatch.setattr(figure, "savefig", lambda file, **_: (file.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        saved(figure, tmp_path)
    assert (tmp_path / "history.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_all_figures_have_one_style(make_config):
    splits = load_splits(make_config())
    before = dict(matplotlib.rcParams)
    with ThreadPoolExecutor(4) as pool:
        figures = list(pool.map(lambda _: history_figure([EPOCH] * 3), range(8)))
        list(pool.map(drawn, figures))  # tick labels are made when a figure is drawn
    assert dict(matplotlib.rcParams) == before
    for figure in (*figures, pairs_figure(splits, splits.test_pairs)):
        assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 9  # points
    left, _ = figures[0].axes
    assert not left.spines["top"].get_visible()
    assert left.lines[0].get_color() == "#0072B2"


def test_a_notebook_cell_shows_a_figure_and_no_setting_of_matplotlib_changes():
    before = dict(matplotlib.rcParams)
    content, shown = history_figure([])._repr_jpeg_()
    width, height = Image.open(io.BytesIO(content)).size
    assert abs(width - RETINA * shown["width"]) <= 1
    assert abs(height - RETINA * shown["height"]) <= 1
    assert dict(matplotlib.rcParams) == before
