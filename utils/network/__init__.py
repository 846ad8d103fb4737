"""Networks: what an explanation needs of one, the Siamese network, its variants, and any torch module as one."""

from utils.network.calibration import Calibration
from utils.network.cut import Cut
from utils.network.explainable import (
    EPSILON,
    Explainable,
    distance,
    distances_of,
    embed_pairs,
    evaluating,
    paired,
    similarity,
    unit,
)
from utils.network.inputs import image_for, images_for, pairs_for, place_of
from utils.network.siamese import SiameseNetwork, build_network
from utils.network.variants import dilated, folded, fully_random, randomised

__all__ = [
    "EPSILON",
    "Calibration",
    "Cut",
    "Explainable",
    "SiameseNetwork",
    "build_network",
    "dilated",
    "distance",
    "distances_of",
    "embed_pairs",
    "evaluating",
    "folded",
    "fully_random",
    "image_for",
    "images_for",
    "paired",
    "pairs_for",
    "place_of",
    "randomised",
    "similarity",
    "unit",
]
