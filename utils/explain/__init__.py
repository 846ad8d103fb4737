"""Explanations of pairs: maps by method, matches, counterfactuals. They stand on `network` alone."""

from utils.explain.contrastive import explain_by_contrast
from utils.explain.counterfactual import Counterfactual, counterfactual, ranks_of
from utils.explain.explanation import Explanation, ExplanationError, embed_explained, explained, only_pair, pairs_of
from utils.explain.gradcam import FORMULAS, explain_by_gradient
from utils.explain.hiding import blurred, mean_colour
from utils.explain.matches import Match, Matches, decompose
from utils.explain.methods import BY_PATH, PAPER, explain, measured, methods_of, name_of
from utils.explain.occlusion import explain_by_occlusion
from utils.explain.path import contributions, explain_by_path
from utils.explain.references import References, embed_references

__all__ = [
    "BY_PATH",
    "FORMULAS",
    "PAPER",
    "Counterfactual",
    "Explanation",
    "ExplanationError",
    "Match",
    "Matches",
    "References",
    "blurred",
    "contributions",
    "counterfactual",
    "decompose",
    "embed_explained",
    "embed_references",
    "explain",
    "explain_by_contrast",
    "explain_by_gradient",
    "explain_by_occlusion",
    "explain_by_path",
    "explained",
    "mean_colour",
    "measured",
    "methods_of",
    "name_of",
    "only_pair",
    "pairs_of",
    "ranks_of",
]
