"""Peers: other ways to explain a pair of images, each written from its paper in plain lines.

Each is a function of (network, images, threshold, references=None) that returns an Explanation, like those of
`methods_of`. images: float (B, 2, 3, H, W), as the network takes them. references are not used here. Where a paper
hides pixels in black, a peer shows 0 of the normalised image, its mean colour. Where a paper scores by the cosine, so
does the peer; the Explanation still holds the network's distance and threshold.
"""

import copy

import torch

from utils.explanations.explanation import Explanation
from utils.explanations.maps import explained
from utils.network.distance import blurred, distance, distances_of, embed_pairs, evaluating, paired, unit

MASKS = 150  # CorrRISE: random masks of each image
PATCHES = 3  # hidden by each mask
PATCH = 0.27  # of each side
WINDOWS = 10  # SBSM: windows along each side
WINDOW = 0.2  # of each side
TOGETHER = 8  # masks that go through the network at once
MATCHES = 10  # PAIR-X: the strongest, which its map shows
STEPS = 20  # integrated Jacobians


def paper_repository(network, images, threshold, references=None) -> Explanation:
    """Explain as the paper's repository: the gradient of the distance at image 1, for both images and any decision.

    One pass forwards, and one back to the last layer.
    """
    with evaluating(network):
        with torch.no_grad():
            features1 = network.features(images[:, 0])
            features2 = network.features(images[:, 1])
        with torch.enable_grad():
            features1.requires_grad_()
            distances = distance(unit(network.project_features(features1)), unit(network.project_features(features2)))
            (gradients,) = torch.autograd.grad(distances.sum(), features1)
    weights = gradients.float().mean(dim=(2, 3), keepdim=True)
    features = torch.stack([features1, features2]).detach().float()  # (2, B, C, h, w)
    maps = (weights * features).sum(dim=2).transpose(0, 1)
    return _as_factual(images, distances.detach().float(), threshold, maps)


def pytorch_grad_cam(network, images, threshold, references=None) -> Explanation:
    """Explain by pytorch-grad-cam at the last stage, with the embedding of the other image held fixed."""
    from speed import gradcam_maps  # only benchmarks need the package

    distances = distances_of(network, images)
    network = copy.deepcopy(network).float()  # it takes no bfloat16
    with torch.no_grad():
        embeddings = embed_pairs(network, images)
    signs = torch.where(distances > threshold, 1, -1)
    maps = []
    for image in range(2):
        maps.append(gradcam_maps(network, images[:, image], embeddings[:, 1 - image], signs))
    return _as_factual(images, distances, threshold, torch.stack(maps, dim=1).to(distances.device))


def fggb(network, images, threshold, references=None) -> Explanation:
    """Explain by FGGB.

    The gradient of each channel of an embedding at the image, absolute, averaged over colours and scaled to length 1,
    is weighted by what the channel adds to the cosine, less its share of the cosine at the threshold. Positive sums are
    evidence for "same", negative ones for "different". One pass forwards, and as many back to the image as the
    embedding has channels. Maps are not smoothed afterwards.

    Source: Lu, Xu and Ebrahimi 2024, Explainable Face Verification via Feature-Guided Gradient Backpropagation.
    """
    images = images.detach().requires_grad_()
    with evaluating(network), torch.enable_grad():
        embeddings = embed_pairs(network, images)  # (B, 2, D)
        shares = (embeddings * embeddings.flip(1)).detach()  # (B, 2, D), of the cosine
        weights = shares - _cosine(threshold) / embeddings.shape[2]
        same = torch.zeros_like(images[:, :, 0], dtype=embeddings.dtype)
        for channel, weight in zip(embeddings.unbind(2), weights.unbind(2), strict=True):
            (gradients,) = torch.autograd.grad(channel.sum(), images, retain_graph=True)
            sizes = gradients.abs().mean(dim=2)  # (B, 2, H, W)
            lengths = sizes.square().sum(dim=(2, 3), keepdim=True).sqrt()
            same += weight[..., None, None] * sizes / torch.where(lengths > 0, lengths, 1)
    same = same.detach()
    distances = distance(*embeddings.detach().unbind(1))
    return explained(images.detach(), distances, threshold, -same, same)


@torch.no_grad()
def corr_rise(network, images, threshold, references=None) -> Explanation:
    """Explain by CorrRISE.

    Random patches of one image are hidden, the other image is unchanged; a pixel's evidence for "same" is the
    correlation (Pearson) of its visibility with the cosine; a negative one is evidence for "different". All pairs and
    both images share MASKS masks; it takes 2 * MASKS passes for a pair. Number and size of patches are chosen here.

    Source: Lu, Xu and Ebrahimi 2024, Towards Visual Saliency Explanations of Face Verification.
    """
    masks = _random_patches(images.shape[-2:]).to(images)
    distances, changed = _distances_under(network, images, masks)
    scores = _cosine(changed)  # (M, B, 2)
    scores = scores - scores.mean(dim=0)
    visible = masks - masks.mean(dim=0)  # (M, H, W)
    covariances = torch.einsum("mbi,mhw->bihw", scores, visible)
    lengths = scores.norm(dim=0)[..., None, None] * visible.norm(dim=0)  # (B, 2, H, W)
    same = covariances / torch.where(lengths > 0, lengths, 1)
    return explained(images, distances, threshold, -same, same)


@torch.no_grad()
def sbsm(network, images, threshold, references=None) -> Explanation:
    """Explain by SBSM, similarity-based saliency maps.

    A window slides over one image and hides it; a pixel's evidence for "same" is the mean rise of the distance over the
    windows that it lies in, where a fall counts as 0. The paper has no evidence for "different": here it is the mean
    fall, where a rise counts as 0. It takes 2 * WINDOWS ** 2 passes for a pair; size and number of windows are chosen
    here.

    Source: Dong, Collins and Hoogs 2019, Explainability for Content-Based Image Retrieval.
    """
    masks = _sliding_windows(images.shape[-2:]).to(images)
    distances, changed = _distances_under(network, images, masks)
    rises = changed - distances[:, None]  # (M, B, 2)
    hidden = 1 - masks
    windows = hidden.sum(dim=0).clamp(min=1)  # (H, W), how many each pixel lies in
    same = torch.einsum("mbi,mhw->bihw", rises.clamp(min=0), hidden) / windows
    different = torch.einsum("mbi,mhw->bihw", (-rises).clamp(min=0), hidden) / windows
    return explained(images, distances, threshold, different, same)


def pair_x(network, images, threshold, references=None, layer=None) -> Explanation:
    """Explain by PAIR-X.

    Places of a layer in the middle of the network match where each is the other's nearest, by the Euclidean distance of
    their activations. The weight of a match is the product of the relevances of its two places to the cosine; both
    places of the MATCHES heaviest ones show that weight. One pass forwards and one back. Departs from the paper:
    relevance is the sum over channels of |activation x gradient| and not layer-wise relevance propagation, and a match
    is shown at its cells, not propagated to pixels. The paper shows only similarity, so the map is the same for both
    decisions.

    Source: Shrack et al. 2025, Pairwise Matching of Intermediate Representations for Fine-grained Explainability.
    """
    layer = layer or _middle(network)
    with evaluating(network):
        with torch.no_grad():
            features = network.features(images.flatten(0, 1), layer)  # (2B, C, h, w)
        with torch.enable_grad():
            features.requires_grad_()
            embeddings = paired(unit(network.project_features(features, layer)))  # (B, 2, D)
            cosines = (embeddings[:, 0] * embeddings[:, 1]).sum(dim=1)
            (gradients,) = torch.autograd.grad(cosines.sum(), features)
    embeddings = embeddings.detach()
    features = features.detach().to(embeddings.dtype)
    relevances = (features * gradients).abs().sum(dim=1)  # (2B, h, w)
    maps = []
    for pair_features, pair_relevances in zip(paired(features), paired(relevances), strict=True):
        maps.append(_heaviest_matches(pair_features, pair_relevances))
    return _as_factual(images, distance(*embeddings.unbind(1)), threshold, torch.stack(maps))


def integrated_jacobians(network, images, threshold, references=None, layer=None) -> Explanation:
    """Explain by integrated Jacobians.

    The embeddings of two images, less those of their starts, have an inner product that is a sum over pairs of places
    of a layer, one in each image, through the Jacobian of the embedding, integrated from the start to the image; a
    place's evidence for "same" is its sum over the places of the other image. All places of that image times its
    Jacobian add up to its embedding less that of its start, so the sum needs no Jacobian, but STEPS gradients. Two
    passes of 2 images forwards, and STEPS passes of 2 behind the layer, forwards and back. Departs from the paper: the
    start is the blurred image, embeddings have length 1, and the network is not trained again for that; the layer is in
    the middle of the network.

    Source: Möller, Nikolaev and Padó 2023, An Attribution Method for Siamese Encoders.
    """
    layer = layer or _middle(network)
    flat = images.flatten(0, 1)
    with evaluating(network):
        with torch.no_grad():
            ends = network.features(flat, layer)  # (2B, C, h, w)
            starts = network.features(blurred(flat), layer)
            embeddings = paired(unit(network.project_features(ends, layer)))  # (B, 2, D)
            changes = embeddings - paired(unit(network.project_features(starts, layer)))
            partners = changes.flip(1).flatten(0, 1)  # (2B, D), of the other image
        gradients = torch.zeros_like(ends, dtype=embeddings.dtype)
        for step in range(STEPS):
            with torch.enable_grad():
                between = torch.lerp(starts, ends, (step + 0.5) / STEPS).requires_grad_()
                products = unit(network.project_features(between, layer)) * partners
                (gradient,) = torch.autograd.grad(products.sum(), between)
            gradients += gradient / STEPS
    same = paired(((ends - starts) * gradients).sum(dim=1))  # (B, 2, h, w)
    return explained(images, distance(*embeddings.unbind(1)), threshold, -same, same)


PEERS = {
    "the paper's repository": paper_repository,
    "pytorch-grad-cam": pytorch_grad_cam,
    "FGGB": fggb,
    "CorrRISE": corr_rise,
    "SBSM": sbsm,
    "PAIR-X": pair_x,
    "integrated Jacobians": integrated_jacobians,
}


def _as_factual(images, distances, threshold, factual) -> Explanation:
    """Return an Explanation with these factual maps and no counterfactual ones."""
    different = (distances > threshold)[:, None, None, None]
    return explained(images, distances, threshold, factual * different, factual * ~different)


def _cosine(distances):
    """Return the cosine of embeddings of length 1 at these distances."""
    return 1 - distances**2 / 2


def _middle(network) -> str:
    """Return the layer in the middle of the network."""
    return network.layers[len(network.layers) // 2]


def _distances_under(network, images, masks):
    """Return the distances (B,) of the pairs, and (M, B, 2): with a mask over only image 1, and over only image 2.

    masks: (M, H, W), 0 on hidden pixels, 1 elsewhere.
    """
    with evaluating(network):
        embeddings = embed_pairs(network, images)  # (B, 2, D)
        partners = embeddings.flip(1)
        changed = []
        for some in masks.split(TOGETHER):
            hidden = images * some[:, None, None, None]  # (m, B, 2, 3, H, W)
            under = network(hidden.flatten(0, 2)).reshape(len(some), *partners.shape)
            changed.append(distance(under, partners))
    return distance(*embeddings.unbind(1)), torch.cat(changed)


def _random_patches(size) -> torch.Tensor:
    """Return MASKS masks (M, H, W), 0 in PATCHES patches within the image, and 1 elsewhere; always the same."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    tall, wide = round(PATCH * height), round(PATCH * width)
    masks = torch.ones(MASKS, height, width)
    for mask in masks:
        for _ in range(PATCHES):
            top = int(torch.randint(height - tall + 1, (), generator=generator))
            left = int(torch.randint(width - wide + 1, (), generator=generator))
            mask[top : top + tall, left : left + wide] = 0
    return masks


def _sliding_windows(size) -> torch.Tensor:
    """Return masks (WINDOWS ** 2, H, W), 0 in one window each, from corner to corner, and 1 elsewhere."""
    height, width = size
    tall, wide = round(WINDOW * height), round(WINDOW * width)
    masks = torch.ones(WINDOWS, WINDOWS, height, width)
    for row in range(WINDOWS):
        top = round(row * (height - tall) / (WINDOWS - 1))
        for column in range(WINDOWS):
            left = round(column * (width - wide) / (WINDOWS - 1))
            masks[row, column, top : top + tall, left : left + wide] = 0
    return masks.flatten(0, 1)


def _heaviest_matches(features, relevances):
    """Return the weights of places in the heaviest matches, (2, h, w).

    features: (2, C, h, w). relevances: (2, h, w).
    """
    places1, places2 = features.flatten(2).mT  # (h * w, C) each
    distances = torch.cdist(places1, places2, compute_mode="donot_use_mm_for_euclid_dist")  # exact where two are equal
    nearest = distances.argmin(dim=1)  # in image 2, of each place of image 1
    mutual = distances.argmin(dim=0)[nearest] == torch.arange(len(nearest), device=nearest.device)
    relevance1, relevance2 = relevances.flatten(1)
    weights = relevance1 * relevance2[nearest] * mutual
    heaviest, places = weights.topk(min(MATCHES, len(weights)))
    maps = torch.zeros_like(relevances).flatten(1)
    maps[0].index_add_(0, places, heaviest)
    maps[1].index_add_(0, nearest[places], heaviest)  # a match that is not mutual adds 0
    return maps.reshape(relevances.shape)
