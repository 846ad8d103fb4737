"""Figures: of data and training, and of explanations. Nothing else draws."""

from utils.figures.counterfactual import counterfactual_figure
from utils.figures.data import duplicates_figure
from utils.figures.decision import det_figure, distances_figure, reliability_figure, roc_figure
from utils.figures.drawing import overlay, saved
from utils.figures.explanations import (
    figure,
    images_figure,
    methods_figure,
    sanity_figure,
)
from utils.figures.folder import explain_folder
from utils.figures.grid import grid_figure
from utils.figures.matches import matches_figure, point_figure
from utils.figures.shortcuts import shortcuts_figure
from utils.figures.suspects import suspects_figure
from utils.figures.training import augmentation_figure, history_figure, pairs_figure

__all__ = [
    "augmentation_figure",
    "counterfactual_figure",
    "det_figure",
    "distances_figure",
    "duplicates_figure",
    "explain_folder",
    "figure",
    "grid_figure",
    "history_figure",
    "images_figure",
    "matches_figure",
    "methods_figure",
    "overlay",
    "pairs_figure",
    "point_figure",
    "reliability_figure",
    "roc_figure",
    "sanity_figure",
    "saved",
    "shortcuts_figure",
    "suspects_figure",
]
