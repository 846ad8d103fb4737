"""Controls: maps must change with the weights and with the partner, stay with the content, and lie on the object."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from ..config import ImageSettings
from ..data.reading import through_jpeg
from ..data.splits import Splits
from ..data.transforms import evaluation_transform, to_pixels
from ..device import progress
from ..explanations.explanation import Explanation
from ..explanations.path import References, embed_references
from ..network.distance import paired
from ..network.siamese import SiameseNetwork
from ..network.variants import fully_random, randomised
from ..trained import Trained

SHIFT = 2  # pixels
NOISE = 0.02  # standard deviation, of values in [0, 1]
QUALITY = 90  # of JPEG
PROBED = 16  # pairs: sanity, other partners and stability take many explanations of each
TOLERANCE = 0.02  # a disturbance that moves the similarity by more is no small one


def rank_correlation(maps, others) -> np.ndarray:
    """Spearman correlation of each map of (B, 2, H, W) with its counterpart: (2B,) in [-1, 1]; 0 for a blank one."""
    found = []
    for one, other in zip(_rows(maps), _rows(others), strict=True):
        blank = np.ptp(one) == 0 or np.ptp(other) == 0
        found.append(0.0 if blank else spearmanr(one, other).statistic)
    return np.array(found)


def agreement(explanation: Explanation, other: Explanation) -> np.ndarray:
    """How alike the maps of B pairs are, polarity fixed: (2B,) in [-1, 1].

    The mean of the rank correlations of both maps towards "different" and of both towards "same": whatever is decided,
    like is held against like.
    """
    different = rank_correlation(explanation.towards_different, other.towards_different)
    same = rank_correlation(explanation.towards_same, other.towards_same)
    return (different + same) / 2


def copies(explanation: Explanation) -> np.ndarray:
    """How alike the two maps of each image are, towards "different" and towards "same": (2B,) in [-1, 1]."""
    return rank_correlation(explanation.towards_different, explanation.towards_same)


def sanity_curve(method, network: SiameseNetwork, images, threshold: float, reference_images=None, seed=0) -> dict:
    """Mean `agreement` with the trained network's maps, by the stage down to which all is random.

    method: a function of (network, images, threshold, references), as `methods_of` has them. images: (B, 2, 3, H, W).
    reference_images: (R, 3, H, W), which each network sees in its own way, or None.
    """
    trained = method(network, images, threshold, _references(network, reference_images))
    curve = {}
    for stage, random in randomised(network, seed):
        by_luck = method(random, images, threshold, _references(random, reference_images))
        curve[stage] = float(agreement(trained, by_luck).mean())
    return curve


def sanity_curves(methods: dict, trained: Trained, pairs) -> dict[str, dict[str, float]]:
    """The curve of each method but occlusion, which is slow, on the first PROBED pairs of image files."""
    images = trained.load_pairs(*pairs[:PROBED])
    reference_images = trained.load_references() if trained.measurements else None
    asked = [name for name in methods if name != "occlusion"]
    return {
        name: sanity_curve(
            methods[name], trained.network, images, trained.threshold, reference_images, trained.config.seed
        )
        for name in progress(asked, "Methods", trained.config.hyperparameters.verbose)
    }


def random_network(trained: Trained, seed=0) -> tuple[SiameseNetwork, References | None]:
    """The network with all weights shuffled, and the references as it sees them."""
    network = fully_random(trained.network, seed)
    return network, _references(network, trained.load_references() if trained.measurements else None)


def sanity(method, trained: Trained, images, random) -> float:
    """Mean `agreement` with the maps of a random network: 1 for a method that never asks the network.

    random: as `random_network` gives it.
    """
    network, references = random
    explanation = method(trained.network, images, trained.threshold, trained.references)
    return float(agreement(explanation, method(network, images, trained.threshold, references)).mean())


def choose_partners(splits: Splits, count: int, seed=0) -> dict[str, list[tuple[str, str]]]:
    """Pairs of image files that share their first images, `count` at most, of the test split.

    "own": each beside an image of its class, "same": beside another one of its class, "other": beside one of another
    class. Classes of fewer than three test images have none.
    """
    random = np.random.default_rng(seed)
    paths = splits.folder.paths
    labels = splits.folder.labels[splits.test]
    found = {"own": [], "same": [], "other": []}
    for place in random.permutation(len(splits.test)):
        mates = np.flatnonzero(labels == labels[place])
        mates = mates[mates != place]
        strangers = np.flatnonzero(labels != labels[place])
        if len(mates) < 2 or len(found["own"]) == count:
            continue
        partners = *random.choice(mates, 2, replace=False), random.choice(strangers)
        for pairs, partner in zip(found.values(), partners, strict=True):
            pairs.append((paths[splits.test[place]], paths[splits.test[partner]]))
    return found


def partner_agreement(method, trained: Trained, partners: dict) -> tuple[float, float]:
    """Mean `agreement` of the maps of an image beside two partners, as `choose_partners` has them.

    Returns that with another one of its own class, and with one of another class: 1 for a method that never looks at
    the partner. NaN without partners.
    """
    if not partners["own"]:
        return float("nan"), float("nan")
    beside = {
        name: method(trained.network, trained.load_pairs(*pairs), trained.threshold, trained.references)
        for name, pairs in partners.items()
    }
    same, other = (agreement(beside["own"], beside[name])[::2].mean() for name in ("same", "other"))
    return float(same), float(other)


def disturbed(images, settings: ImageSettings, seed=0) -> dict[str, torch.Tensor]:
    """Images (B, 2, 3, H, W) shifted down and right by SHIFT pixels, with mild noise, and re-encoded as JPEG."""
    flat = images.flatten(0, 1)
    height, width = images.shape[-2:]
    shifted = F.pad(flat, (SHIFT, 0, SHIFT, 0), mode="replicate")[..., :height, :width]
    std = torch.tensor(settings.normalization.std, device=images.device)[:, None, None]
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    pixels = to_pixels(flat, settings.normalization).cpu().numpy()
    decoded = torch.from_numpy(np.stack([through_jpeg(image, QUALITY) for image in pixels]))
    found = {
        "shift": shifted,
        "noise": flat + NOISE / std * noise,
        "JPEG": evaluation_transform(settings)(decoded).to(images.device),
    }
    return {name: paired(part) for name, part in found.items()}


def stability(method, network, images, threshold, settings: ImageSettings, references=None) -> dict:
    """By disturbance: mean rank correlation of factual maps with the undisturbed, and the share of pairs it is over.

    Pairs whose similarity moves by more than TOLERANCE are left out: there, the map ought to change. The correlation is
    NaN where no pair is left.
    """
    before = method(network, images, threshold, references)
    found = {}
    for name, changed in disturbed(images, settings).items():
        after = method(network, changed, threshold, references)
        kept = (after.similarity - before.similarity).abs() <= TOLERANCE
        maps = before.factual[kept]
        others = after.factual[kept]
        if name == "shift":  # the same places, back where they were
            maps = maps[..., :-SHIFT, :-SHIFT]
            others = others[..., SHIFT:, SHIFT:]
        agreement = float(rank_correlation(maps, others).mean()) if kept.any() else float("nan")
        found[name] = agreement, float(kept.float().mean())
    return found


def pointing(maps, masks) -> tuple[torch.Tensor, torch.Tensor]:
    """Pointing game (Zhang et al. 2018, section 4.2, without its tolerance in pixels) and energy (Wang et al. 2020,
    section 4.2) of maps (B, 2, H, W), which hold no value below 0.

    masks: bool (B, 2, H, W), True on the object. Returns (hits, energies), float32 (B, 2) for image 1 and image 2:
    whether the peak lies on the object, and the share of the map that does; NaN for an image without an object, 0 for a
    blank map.
    """
    maps = maps.flatten(2)  # (B, 2, HW)
    masks = masks.to(maps.device).flatten(2)
    without_object = ~masks.any(dim=2)
    total = maps.sum(dim=2)
    peaks = maps.argmax(dim=2, keepdim=True)
    hits = (masks.gather(2, peaks).squeeze(2) & (total > 0)).float()
    energies = (maps * masks).sum(dim=2) / torch.where(total > 0, total, 1)
    return hits.masked_fill(without_object, float("nan")), energies.masked_fill(without_object, float("nan"))


def _references(network, images):
    """The reference images as a network sees them, if there are any."""
    return None if images is None else embed_references(network, images)


def _rows(maps):
    """Maps (B, 2, H, W) as 2B flat arrays."""
    return maps.flatten(0, 1).flatten(1).float().cpu().numpy()
