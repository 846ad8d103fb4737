"""Controls: maps must change with the network's weights, stay with the image's content, and lie on planted objects."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from utils.config import ImageSettings
from utils.data import evaluation_transform, to_pixels
from utils.explain import Explanation
from utils.network import SiameseNetwork, paired, randomised
from utils.trained import Trained

SHIFT = 2  # pixels
NOISE = 0.02  # standard deviation, of values in [0, 1]
QUALITY = 90  # of JPEG
PROBED = 16  # pairs: sanity and stability take many explanations of each
TOLERANCE = 0.02  # a disturbance that moves the similarity by more is no small one


def rank_correlation(maps, others) -> np.ndarray:
    """Spearman correlation of each map of (B, 2, H, W) with its counterpart: (2B,) in [-1, 1]; 0 for a blank one."""
    found = []
    for one, other in zip(_rows(maps), _rows(others), strict=True):
        blank = np.ptp(one) == 0 or np.ptp(other) == 0
        found.append(0.0 if blank else spearmanr(one, other).statistic)
    return np.array(found)


def sanity_curve(method, network: SiameseNetwork, images, threshold: float, seed=0) -> dict[str, float]:
    """Mean rank correlation of factual maps with the trained network's, by the stage down to which all is random.

    method: a function of (network, images, threshold), as `methods_of` has them. images: (B, 2, 3, H, W).
    """
    factual = method(network, images, threshold).factual
    curve = {}
    for stage, random in randomised(network, seed):
        by_luck = method(random, images, threshold).factual
        curve[stage] = float(rank_correlation(factual, by_luck).mean())
    return curve


def sanity_curves(methods: dict, trained: Trained, pairs) -> dict[str, dict[str, float]]:
    """The curve of each method but occlusion, which is slow, on the first PROBED pairs of image files."""
    images = trained.load_pairs(*pairs[:PROBED])
    return {
        name: sanity_curve(method, trained.network, images, trained.threshold, trained.config.seed)
        for name, method in methods.items()
        if name != "occlusion"
    }


def disturbed(images, settings: ImageSettings, seed=0) -> dict[str, torch.Tensor]:
    """Images (B, 2, 3, H, W) shifted down and right by SHIFT pixels, with mild noise, and re-encoded as JPEG."""
    flat = images.flatten(0, 1)
    height, width = images.shape[-2:]
    shifted = F.pad(flat, (SHIFT, 0, SHIFT, 0), mode="replicate")[..., :height, :width]
    std = torch.tensor(settings.normalization.std, device=images.device)[:, None, None]
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    pixels = to_pixels(flat, settings.normalization).cpu().numpy()
    decoded = torch.from_numpy(np.stack([_through_jpeg(image) for image in pixels]))
    found = {
        "shift": shifted,
        "noise": flat + NOISE / std * noise,
        "JPEG": evaluation_transform(settings)(decoded).to(images.device),
    }
    return {name: paired(part) for name, part in found.items()}


def stability(method, network, images, threshold: float, settings: ImageSettings) -> dict[str, tuple[float, float]]:
    """By disturbance: mean rank correlation of factual maps with the undisturbed, and the share of pairs it is over.

    Pairs whose similarity moves by more than TOLERANCE are left out: there, the map ought to change. The correlation is
    NaN where no pair is left.
    """
    before = method(network, images, threshold)
    found = {}
    for name, changed in disturbed(images, settings).items():
        after = method(network, changed, threshold)
        kept = (after.similarity - before.similarity).abs() <= TOLERANCE
        maps = before.factual[kept]
        others = after.factual[kept]
        if name == "shift":  # the same places, back where they were
            maps = maps[..., :-SHIFT, :-SHIFT]
            others = others[..., SHIFT:, SHIFT:]
        agreement = float(rank_correlation(maps, others).mean()) if kept.any() else float("nan")
        found[name] = agreement, float(kept.float().mean())
    return found


def pointing(explanation: Explanation, masks) -> tuple[torch.Tensor, torch.Tensor]:
    """Pointing game (Zhang et al. 2018, section 4.2) and energy (Wang et al. 2020, section 4.2) of the factual maps.

    masks: bool (B, 2, H, W), True on the object. Returns (hits, energies), float32 (B, 2) for image 1 and image 2:
    whether the peak lies on the object, and the share of the map that does; NaN for an image without an object, 0 for a
    blank map.
    """
    maps = explanation.factual.flatten(2)  # (B, 2, HW)
    masks = masks.to(maps.device).flatten(2)
    without_object = ~masks.any(dim=2)
    total = maps.sum(dim=2)
    peaks = maps.argmax(dim=2, keepdim=True)
    hits = (masks.gather(2, peaks).squeeze(2) & (total > 0)).float()
    energies = (maps * masks).sum(dim=2) / torch.where(total > 0, total, 1)
    return hits.masked_fill(without_object, float("nan")), energies.masked_fill(without_object, float("nan"))


def _rows(maps):
    """Maps (B, 2, H, W) as 2B flat arrays."""
    return maps.flatten(0, 1).flatten(1).float().cpu().numpy()


def _through_jpeg(image):
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)
