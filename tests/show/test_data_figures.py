from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from helpers import drawn, write_images
from matplotlib.colors import to_rgba

from utils.data.images import scan
from utils.show.charts import WRONG, duplicates_figure


def test_groups_one_row_each_contradictions_first(tmp_path):
    for number, name in enumerate(("a", "b")):
        write_images(tmp_path / name, 6, seed=number)
    folder = scan(tmp_path)
    duplicates = np.arange(12)
    duplicates[[0, 1, 2]] = 0  # within class a
    duplicates[[4, 9]] = 4  # 4.png of a, 3.png of b
    figure = duplicates_figure(folder, duplicates, columns=2)
    assert [axes.get_xlabel() for axes in figure.axes] == ["a\n4.png", "b\n3.png", "a\n0.png", "a\n1.png"]
    framed = [axes.spines["left"].get_edgecolor() == to_rgba(WRONG) for axes in figure.axes]
    assert framed == [True, True, False, False]
    assert figure.axes[3].get_title() == "and 1 more"
    heading = figure.get_suptitle()
    assert heading.startswith("Groups of near-duplicates: 2\nframed: 1")
    assert drawn(figure).std() > 5
    figure = duplicates_figure(folder, duplicates, rows=1)
    assert "Groups of near-duplicates: 2, of which 1 shown" in figure.get_suptitle()
    assert plt.get_fignums() == []


def test_no_near_duplicates(tmp_path):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b", 2, seed=1)
    figure = duplicates_figure(scan(Path(tmp_path)), np.arange(4))
    assert [text.get_text() for text in figure.axes[0].texts] == ["No near-duplicates among 4 images."]
    assert drawn(figure).std() > 1
