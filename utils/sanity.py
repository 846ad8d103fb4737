"""Sanity and stability: maps must change with the network's weights, and stay with the image's content."""

import copy

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from utils.config import ImageSettings
from utils.evaluation import Trained
from utils.siamese import SiameseNetwork
from utils.transforms import evaluation_transform, to_pixels

SHIFT = 2  # pixels
NOISE = 0.02  # standard deviation, of values in [0, 1]
QUALITY = 90  # of JPEG
PROBED = 16  # pairs: sanity and stability take many explanations of each
TOLERANCE = 0.02  # a disturbance that moves the similarity by more is no small one


def rank_correlation(maps, others) -> np.ndarray:
    """Spearman correlation of each map of (B, 2, H, W) with its counterpart: (2B,) in [-1, 1]; 0 for a blank one."""
    pairs = zip(*(part.flatten(0, 1).flatten(1).float().cpu().numpy() for part in (maps, others)), strict=True)
    return np.array([spearmanr(*pair).statistic if np.ptp(pair, axis=1).all() else 0.0 for pair in pairs])


def randomised(network: SiameseNetwork, seed=0):
    """Yields (stage, network) with the weights shuffled from the top down to that stage: embedding, layer4, ..., stem.

    The cascading randomisation of Adebayo et al. 2018, section 3.1; each tensor keeps its values, but not their places.
    """
    network, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    parts = [("embedding", network.embedding), *reversed(list(network.backbone.named_children()))]
    for name, part in parts:
        for parameter in part.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.data = parameter.data.flatten()[order].view_as(parameter)
        yield name, network


def fully_random(network: SiameseNetwork, seed=0) -> SiameseNetwork:
    """A copy with all weights shuffled."""
    *_, (_, last) = randomised(network, seed)
    return last


def sanity_curve(method, network: SiameseNetwork, images1, images2, threshold: float, seed=0) -> dict[str, float]:
    """Mean rank correlation of factual maps with the trained network's, by the stage down to which all is random."""
    factual = method(network, images1, images2, threshold).factual
    return {
        stage: float(rank_correlation(factual, method(random, images1, images2, threshold).factual).mean())
        for stage, random in randomised(network, seed)
    }


def sanity_curves(methods: dict, trained: Trained, paths1, paths2) -> dict[str, dict[str, float]]:
    """The curve of each method but occlusion, which is slow, on the first PROBED pairs of image files."""
    images = [trained.load_images(*paths[:PROBED]) for paths in (paths1, paths2)]
    return {
        name: sanity_curve(method, trained.network, *images, trained.threshold, trained.config.seed)
        for name, method in methods.items()
        if name != "occlusion"
    }


def disturbed(images, settings: ImageSettings, seed=0) -> dict[str, torch.Tensor]:
    """Images (B, 3, H, W) shifted down and right by SHIFT pixels, with mild noise, and re-encoded as JPEG."""
    std = torch.tensor(settings.normalization.std, device=images.device)[:, None, None]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    pixels = to_pixels(images, settings).cpu().numpy()
    encoded = [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1] for image in pixels]
    decoded = np.stack([cv2.imdecode(image, cv2.IMREAD_COLOR) for image in encoded])
    return {
        "shift": F.pad(images, (SHIFT, 0, SHIFT, 0), mode="replicate")[..., : images.shape[2], : images.shape[3]],
        "noise": images + NOISE / std * noise,
        "JPEG": evaluation_transform(settings)(torch.from_numpy(decoded)).to(images.device),
    }


def stability(method, network, images1, images2, threshold: float, settings: ImageSettings) -> dict[str, tuple]:
    """By disturbance: mean rank correlation of factual maps with the undisturbed, and the share of pairs it is over.

    Pairs whose similarity moves by more than TOLERANCE are left out: there, the map ought to change. The correlation is
    NaN where no pair is left.
    """
    before, found = method(network, images1, images2, threshold), {}
    ones, twos = disturbed(images1, settings), disturbed(images2, settings, seed=1)
    for name in ones:
        after = method(network, ones[name], twos[name], threshold)
        kept = (after.similarity - before.similarity).abs() <= TOLERANCE
        shift = SHIFT if name == "shift" else 0
        height, width = (side - shift for side in images1.shape[2:])
        agreement = rank_correlation(
            before.factual[kept][..., :height, :width], after.factual[kept][..., shift:, shift:]
        )
        found[name] = (float(agreement.mean()) if kept.any() else float("nan"), float(kept.float().mean()))
    return found
