"""Controls: maps must change with the weights and with the partner, stay with the content, and lie on the object."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from ..config import ImageSettings
from ..data.batches import evaluation_transform, to_pixels
from ..data.reading import through_jpeg
from ..data.splits import Splits
from ..device import progress
from ..explanations.explanation import Explanation
from ..explanations.references import References, embed_references
from ..network.distance import Explainable, paired
from ..network.variants import fully_random, randomised
from ..trained import Trained

SHIFT = 2  # pixels
NOISE = 0.02  # standard deviation, of values in [0, 1]
QUALITY = 90  # of JPEG
PROBED = 8  # pairs: sanity, other partners and stability take many explanations of each
CELLS = 64  # along a side of maps that are compared: finer than the layers that maps are read from
TOLERANCE = 0.02  # of the similarity: a disturbance that changes it by more is not small


def rank_correlation(maps, other_maps) -> np.ndarray:
    """Return the Spearman correlation of each map with its counterpart; 0 where one of them is blank.

    Larger maps are averaged to CELLS x CELLS first, because ranking all pixels takes most of the time.

    Args:
        maps: (B, 2, H, W).
        other_maps: (B, 2, H, W).

    Returns:
        float (2B,), in [-1, 1].
    """
    correlations = []
    for row, other_row in zip(_rows(maps), _rows(other_maps), strict=True):
        if np.ptp(row) == 0 or np.ptp(other_row) == 0:
            correlations.append(0.0)
        else:
            correlations.append(spearmanr(row, other_row).statistic)
    return np.array(correlations)


def agreement(explanation: Explanation, other: Explanation) -> np.ndarray:
    """Return how similar the maps of B pairs are, whatever is decided: (2B,) in [-1, 1].

    The mean of the rank correlations of both maps towards "different" and of both towards "same".
    """
    different = rank_correlation(explanation.towards_different, other.towards_different)
    same = rank_correlation(explanation.towards_same, other.towards_same)
    return (different + same) / 2


def copies(explanation: Explanation) -> np.ndarray:
    """Return how similar the maps of each image towards "different" and towards "same" are: (2B,) in [-1, 1]."""
    return rank_correlation(explanation.towards_different, explanation.towards_same)


def cascading_randomisation(
    methods: dict, network: Explainable, images, threshold: float, reference_images=None, seed=0, show=False
) -> dict[str, dict[str, float]]:
    """Compare the maps of a network with those of copies of it whose weights are shuffled from the top down.

    Args:
        methods: Functions of (network, images, threshold, references) by name, as in `methods_of`.
        network: The trained network.
        images: (B, 2, 3, H, W).
        threshold: The distance up to which a pair is "same".
        reference_images: (R, 3, H, W), which each network embeds itself, or None.
        seed: Of the random weights.
        show: Whether there is a progress bar.

    Returns:
        By method, the mean `agreement` by the stage down to which all weights are random.

    Source: Adebayo et al. 2018, Sanity checks for saliency maps.
    """
    inputs = images, threshold, _references(network, reference_images)
    trained = {name: method(network, *inputs) for name, method in methods.items()}
    curves = {name: {} for name in methods}
    for stage, random in progress(randomised(network, seed), "Stages", show, len(network.stages()) + 1):
        inputs = images, threshold, _references(random, reference_images)
        for name, method in methods.items():
            curves[name][stage] = float(agreement(trained[name], method(random, *inputs)).mean())
    return curves


def sanity_curves(methods: dict, trained: Trained, pairs) -> dict[str, dict[str, float]]:
    """Return the curve of each method but occlusion, which is slow, on the first PROBED pairs of image files."""
    images = trained.load_pairs(*pairs[:PROBED])
    methods = dict(methods)
    methods.pop("occlusion", None)
    seed, show = trained.config.seed, trained.config.hyperparameters.verbose
    references = trained.load_references()
    return cascading_randomisation(methods, trained.network, images, trained.threshold, references, seed, show)


def random_network(trained: Trained, seed=0) -> tuple[Explainable, References | None]:
    """Return the network with all weights shuffled, and its embeddings of the references."""
    network = fully_random(trained.network, seed)
    return network, _references(network, trained.load_references())


def sanity(method, trained: Trained, images, random) -> float:
    """Return the mean `agreement` with the maps of `random_network`: 1 for a method that ignores the network."""
    network, references = random
    explanation = method(trained.network, images, trained.threshold, trained.references)
    return float(agreement(explanation, method(network, images, trained.threshold, references)).mean())


def choose_partners(splits: Splits, count: int, seed=0) -> dict[str, list[tuple[str, str]]]:
    """Choose pairs of image files of the test split that share their first images, at most `count` of each kind.

    Returns:
        "own": each beside an image of its class, "same": beside another one of its class, "other": beside one of
        another class. Classes of fewer than three test images have none.
    """
    random = np.random.default_rng(seed)
    paths = splits.folder.paths
    labels = splits.folder.labels[splits.test]
    chosen = {"own": [], "same": [], "other": []}
    for place in random.permutation(len(splits.test)):
        classmates = np.flatnonzero(labels == labels[place])
        classmates = classmates[classmates != place]
        strangers = np.flatnonzero(labels != labels[place])
        if len(classmates) < 2 or len(chosen["own"]) == count:
            continue
        partners = *random.choice(classmates, 2, replace=False), random.choice(strangers)
        for pairs, partner in zip(chosen.values(), partners, strict=True):
            pairs.append((paths[splits.test[place]], paths[splits.test[partner]]))
    return chosen


def partner_agreement(method, trained: Trained, partners: dict) -> tuple[float, float]:
    """Compare the maps of an image beside two partners, as `choose_partners` returns them.

    Returns:
        The mean `agreement` with those beside another image of its class, and beside one of another class: 1 for a
        method that ignores the partner. NaN without partners.
    """
    if not partners["own"]:
        return float("nan"), float("nan")
    explanations = {}
    for kind, pairs in partners.items():
        images = trained.load_pairs(*pairs)
        explanations[kind] = method(trained.network, images, trained.threshold, trained.references)
    same = agreement(explanations["own"], explanations["same"])[::2]  # of the image that they share
    other = agreement(explanations["own"], explanations["other"])[::2]
    return float(same.mean()), float(other.mean())


def disturbed(images, settings: ImageSettings, seed=0) -> dict[str, torch.Tensor]:
    """Return images (B, 2, 3, H, W) shifted down and right by SHIFT pixels, with mild noise, and re-encoded as JPEG."""
    flat = images.flatten(0, 1)
    height, width = images.shape[-2:]
    shifted = F.pad(flat, (SHIFT, 0, SHIFT, 0), mode="replicate")[..., :height, :width]
    std = torch.tensor(settings.normalization.std, device=images.device)[:, None, None]
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    pixels = to_pixels(flat, settings.normalization).cpu().numpy()
    decoded = torch.from_numpy(np.stack([through_jpeg(image, QUALITY) for image in pixels]))
    return {
        "shift": paired(shifted),
        "noise": paired(flat + NOISE / std * noise),
        "JPEG": paired(evaluation_transform(settings)(decoded).to(images.device)),
    }


def stability(method, network, images, threshold, settings: ImageSettings, references=None) -> dict[str, float]:
    """Compare factual maps with those of disturbed images.

    Returns:
        By disturbance, the mean rank correlation of the maps. Pairs whose similarity changes by more than TOLERANCE are
        left out: there, the map should change. NaN where no pair is left.
    """
    before = method(network, images, threshold, references)
    results = {}
    for name, changed in disturbed(images, settings).items():
        after = method(network, changed, threshold, references)
        steady = (after.similarity - before.similarity).abs() <= TOLERANCE
        if not steady.any():
            results[name] = float("nan")
            continue
        maps, moved_maps = before.factual[steady], after.factual[steady]
        if name == "shift":  # the same places, back where they were
            maps, moved_maps = maps[..., :-SHIFT, :-SHIFT], moved_maps[..., SHIFT:, SHIFT:]
        results[name] = float(rank_correlation(maps, moved_maps).mean())
    return results


def pointing(maps, masks) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how much of maps lies on the object.

    Args:
        maps: (B, 2, H, W), at least 0.
        masks: bool (B, 2, H, W), True on the object.

    Returns:
        Hits and energies, float32 (B, 2) for image 1 and image 2: whether the peak lies on the object, and the share
        of the map that does; NaN for an image without an object, 0 for a blank map.

    Source: the pointing game of Zhang et al. 2018, section 4.2, without its tolerance in pixels; the energy of Wang et
    al. 2020, section 4.2.
    """
    maps = maps.flatten(2)  # (B, 2, HW)
    masks = masks.to(maps.device).flatten(2)
    without_object = ~masks.any(dim=2)
    total = maps.sum(dim=2)
    peaks = maps.argmax(dim=2, keepdim=True)
    hits = (masks.gather(2, peaks).squeeze(2) & (total > 0)).float()
    energies = (maps * masks).sum(dim=2) / torch.where(total > 0, total, 1)
    return hits.masked_fill(without_object, torch.nan), energies.masked_fill(without_object, torch.nan)


def _references(network, images):
    """The references that a network makes of the reference images, if there are any."""
    if images is None:
        return None
    return embed_references(network, images)


def _rows(maps):
    """Maps (B, 2, H, W) as 2B flat arrays, of at most CELLS x CELLS means."""
    height, width = maps.shape[-2:]
    cells = F.adaptive_avg_pool2d(maps.flatten(0, 1).float(), (min(height, CELLS), min(width, CELLS)))
    return cells.flatten(1).cpu().numpy()
