import numpy as np
import pytest
from helpers import drawn
from scipy.stats import norm

from utils import det_figure, distances_figure, reliability_figure, roc_figure
from utils.data.splits import Pairs
from utils.score.calibration import reliability

DISTANCES = np.array([0.1, 0.2, 0.6, 0.5, 0.7, 0.9, 0.95])
LABELS = np.array([0, 0, 0, 1, 1, 1, 1])


def test_the_roc_curve_against_counting():
    """Both axes, by hand: with them swapped the curve would lie below the diagonal."""
    (axes,) = roc_figure(DISTANCES, LABELS, 0.55).axes
    assert axes.get_xlabel() == "same pairs called different"
    assert axes.get_ylabel() == "different pairs called different"
    curve, _, point = axes.lines
    assert point.get_xydata().tolist() == [[1 / 3, 3 / 4]]
    corners = {tuple(corner) for corner in curve.get_xydata().round(6).tolist()}
    for threshold in (0.0, 0.15, 0.3, 0.55, 0.65, 0.92, 1.0):
        called = threshold < DISTANCES
        corner = called[LABELS == 0].mean(), called[LABELS == 1].mean()
        assert tuple(np.round(corner, 6).tolist()) in corners


def test_the_det_curve_against_counting():
    """20 different pairs can show 10 %, not 1 %: two may pass, at up to 0.3, where one of two same pairs is missed."""
    different = 0.2 + np.arange(20) / 10
    distances = np.concatenate([[0.1, 1.0], different])
    labels = np.array([0, 0] + [1] * 20)
    (axes,) = det_figure(distances, labels, 0.65).axes
    curve, _, at_a_tenth, point = axes.lines
    assert at_a_tenth.get_label() == "FMR 10.0%: FNMR 50.0%"
    assert at_a_tenth.get_xydata()[0] == pytest.approx(norm.ppf([0.1, 0.5]))
    assert point.get_xydata()[0] == pytest.approx(norm.ppf([5 / 20, 1 / 2]))
    corners = {tuple(corner) for corner in curve.get_xydata().round(6).tolist()}
    assert tuple(norm.ppf([5 / 20, 1 / 2]).round(6).tolist()) in corners


def test_the_undecided_are_shaded():
    (axes,) = distances_figure(DISTANCES, LABELS, 0.55, (0.3, 0.8)).axes
    (band,) = (patch for patch in axes.patches if patch.get_label() == "undecided")
    assert band.get_extents().transformed(axes.transData.inverted()).intervalx == pytest.approx([0.3, 0.8])
    everything = distances_figure(DISTANCES, LABELS, 0.55, (-np.inf, np.inf))
    assert drawn(everything).std() > 5
    (axes,) = distances_figure(DISTANCES, LABELS, 0.55).axes
    assert all(patch.get_label() != "undecided" for patch in axes.patches)


def test_the_reliability_diagram_shows_what_was_found():
    pairs = Pairs(np.arange(0, 8), np.arange(8, 16), np.array([0, 0, 0, 1, 1, 1, 1, 0]))
    found = reliability(np.array([0.95, 0.95, 0.95, 0.95, 0.05, 0.05, 0.05, 0.05]), pairs)
    figure = reliability_figure(found)
    (axes,) = figure.axes
    points = axes.lines[1].get_xydata()
    assert points == pytest.approx(np.array([[0.05, 0.25], [0.95, 0.75]]))
    assert [text.get_text() for text in axes.texts] == ["4", "4"]
    assert "calibration error 0.200" in figure.get_suptitle()
