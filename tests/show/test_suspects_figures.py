from dataclasses import replace

import numpy as np
import pytest
from helpers import drawn

from utils.audit.labels import find_suspects
from utils.audit.shortcuts import Shortcut, Shortcuts
from utils.score.intervals import Interval
from utils.show.charts import shortcuts_figure, suspects_figure
from utils.show.drawing import saved
from utils.show.figures import figure
from utils.trust.faithfulness import judge


@pytest.fixture
def suspects(calibrated):
    """Those of the tiny dataset, two of its labels flipped."""
    splits = calibrated.load_splits()
    labels = splits.folder.labels.copy()
    labels[splits.test[[0, -1]]] = labels[splits.test[[-1, 0]]]
    return find_suspects(calibrated, replace(splits, folder=replace(splits.folder, labels=labels)))


def test_each_suspect_stands_beside_its_neighbour_with_their_maps(calibrated, suspects):
    made = suspects_figure(calibrated, suspects, count=2)
    panels = made.subfigs
    assert made.get_label() == "suspects"
    assert len(panels) == 2
    explanation = calibrated.explain(*suspects.pairs(2))
    plain = figure(explanation, judge(calibrated.network, explanation, calibrated.config.seed), ["factual"])
    for panel, alike, row in zip(panels, plain.subfigs, suspects.table(2).to_numpy(), strict=True):
        image, label, suggested, quality = row[:4]
        suspicion = f"Check this label: {image}\n{label}, but its neighbours are {suggested} (quality {quality:.2f})"
        assert panel.get_suptitle() == suspicion
        words = " ".join(panel.get_supxlabel().split())
        assert words == " ".join(f"{alike.get_suptitle()} {alike.get_supxlabel()}".split())
        assert "Image 2 alone: " in words  # the maps are judged
        shown = [axes.images[0].get_array() for axes in panel.axes if axes.images]
        expected = [axes.images[0].get_array() for axes in alike.axes if axes.images]
        assert all(np.array_equal(one, other) for one, other in zip(shown, expected, strict=True))
    assert drawn(made).std() > 0


def test_a_few_at_most(calibrated, suspects):
    assert len(suspects_figure(calibrated, suspects).subfigs) == min(3, len(suspects.suspected))


def test_without_suspects_the_figure_says_so(calibrated, suspects, tmp_path):
    right = suspects.images[suspects.images["label"] == suspects.images["neighbours say"]]
    none = replace(suspects, images=right)
    assert none.pairs(3) == []
    assert none.table().empty
    assert "0 look like another class" in str(none)
    made = saved(suspects_figure(calibrated, none), tmp_path)
    assert "No label is suspected" in made.axes[0].texts[0].get_text()
    assert (tmp_path / "suspects.png").exists()


def shortcut(name, share, elsewhere, alone, brightness):
    example = np.stack([np.full((8, 8, 3), 50 + brightness, np.uint8), np.full((8, 8, 3), brightness, np.uint8)])
    interval = Interval(share, share - 0.1, share + 0.2)
    return Shortcut(name, interval, elsewhere, "the middle", Interval(alone, alone - 0.05, alone + 0.02), "so", example)


def test_shares_and_what_properties_tell_stand_in_their_rows():
    found = (shortcut("border", 0.7, 0.2, 0.9, 10), shortcut("size", -0.1, np.nan, 0.5, 99))
    made = shortcuts_figure(Shortcuts(found, Interval(1.0, 0.9, 1.1), 20, 160))
    assert made.get_label() == "shortcuts"
    assert made.get_suptitle() == "The score loses 70% once this is equal in all images: border"
    photographs = [axes.images[0].get_array() for axes in made.axes if axes.images]
    assert [image[0, 0, 0] for image in photographs] == [60, 10]  # of the border, which costs most
    share, alone = (axes for axes in made.axes if not axes.images)
    of_share = (share, [0.7, -0.1], [(0.6, 0.9), (-0.2, 0.1)])
    of_itself = (alone, [0.9, 0.5], [(0.85, 0.92), (0.45, 0.52)])
    for axes, values, ends in (of_share, of_itself):
        points, _, whiskers = axes.containers[0].lines
        assert points.get_xdata() == pytest.approx(values)
        assert list(points.get_ydata()) == [0, 1]
        segments = whiskers[0].get_segments()
        assert [tuple(segment[:, 0]) for segment in segments] == [pytest.approx(end) for end in ends]
        assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    squares = [line for line in share.lines if line.get_marker() == "s"]
    assert squares[0].get_xdata()[0] == 0.2
    assert [label.get_text() for label in share.get_yticklabels()] == ["border", "size"]
    assert "hidden instead: the middle (row 1)" in made.subfigs[0].legends[0].get_texts()[0].get_text()
    assert drawn(made).std() > 0


def test_without_anything_hidden_instead_there_is_no_legend():
    found = (replace(shortcut("size", 0.1, np.nan, 0.5, 99), control_name=""),)
    assert not shortcuts_figure(Shortcuts(found, Interval(1.0, 0.9, 1.1), 20, 160)).subfigs[0].legends


def test_without_a_score_there_are_no_whiskers_and_no_warning():
    nothing = Interval(np.nan, np.nan, np.nan)
    found = (replace(shortcut("size", 0.1, np.nan, 0.5, 99), share=nothing),)
    made = shortcuts_figure(Shortcuts(found, Interval(0.0, -0.1, 0.1), 20, 160))
    assert made.get_suptitle().endswith("\nWhat these properties carry of the score cannot be measured")
    assert drawn(made).std() > 0


def test_a_small_share_is_not_called_nothing():
    shortcuts = (replace(shortcut("size", 0.1, np.nan, 0.5, 99), share=Interval(0.1, 0.05, 0.15)),)
    made = shortcuts_figure(Shortcuts(shortcuts, Interval(1.0, 0.9, 1.1), 20, 160))
    assert made.get_suptitle() == "None of these properties carries much of the score"
