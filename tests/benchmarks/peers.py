"""Peers: other ways to explain a pair of images, each written from its paper in plain lines.

Each is a function of (network, images, threshold, references=None) that gives an Explanation, as `methods_of` has them.
images: float (B, 2, 3, H, W), as the network takes them. references: an object with `embeddings` (R, D) of other
images, for peers that compare with more than the pair; these here do not. Where a paper hides pixels in black, here
they show 0 of the normalised image, its mean colour. Where a paper scores by the cosine, so does the peer; an
Explanation carries the network's distance and threshold all the same.
"""

import copy

import torch

from utils.explanations.explanation import Explanation, explained
from utils.explanations.occlusion import blurred
from utils.network.distance import distance, distances_of, embed_pairs, evaluating, paired

MASKS = 150  # CorrRISE: random masks of each image
PATCHES = 3  # that each of them hides
PATCH = 0.27  # of each side
WINDOWS = 10  # SBSM: windows along each side
WINDOW = 0.2  # of each side
TOGETHER = 8  # masks that go through the network at once
MATCHES = 10  # PAIR-X: the strongest that its map shows
STEPS = 20  # integrated Jacobians


def paper_repository(network, images, threshold, references=None) -> Explanation:
    """The paper's repository: the distance's gradient whatever the decision, image 1's gradient for both images.

    One pass forwards, and one back to the last layer.
    """
    with evaluating(network):
        with torch.no_grad():
            features = [network.features(part) for part in images.unbind(1)]
        with torch.enable_grad():
            features[0].requires_grad_()
            distances = distance(*(network.embed_features(part) for part in features))
            (gradients,) = torch.autograd.grad(distances.sum(), features[0])
    weights = gradients.float().mean(dim=(2, 3), keepdim=True)
    maps = torch.stack([(weights * part.detach().float()).sum(dim=1) for part in features], dim=1)
    return _as_factual(images, distances.detach().float(), threshold, maps)


def pytorch_grad_cam(network, images, threshold, references=None) -> Explanation:
    """pytorch-grad-cam on the last stage: the decision's gradient, the other image's embedding held fixed."""
    from speed import GradCAM, ToOther  # found by benchmarks alone

    distances = distances_of(network, images)
    network = copy.deepcopy(network).float()  # it takes no bfloat16
    with torch.no_grad():
        embeddings = embed_pairs(network, images)
    signs = torch.where(distances > threshold, 1, -1)
    targets = [lambda output, sign=sign: sign * output[0] for sign in signs]
    maps = []
    for image in range(2):
        module = ToOther(network, embeddings[:, 1 - image])
        with GradCAM(module, [module.map]) as peer:
            maps.append(torch.from_numpy(peer(images[:, image], targets=targets)))
    return _as_factual(images, distances, threshold, torch.stack(maps, dim=1).to(distances.device))


def fggb(network, images, threshold, references=None) -> Explanation:
    """FGGB (Lu, Xu and Ebrahimi 2024, "Explainable Face Verification via Feature-Guided Gradient Backpropagation").

    The gradient of each channel of an embedding at the image, absolute, averaged over colours and brought to length 1,
    is weighted by what the channel adds to the cosine, less its share of the cosine at the threshold. Positive sums are
    evidence for "same", negative ones for "different". One pass forwards, and as many back to the image as the
    embedding has channels. Maps are not smoothed afterwards.
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
    """CorrRISE (Lu, Xu and Ebrahimi 2024, "Towards Visual Saliency Explanations of Face Verification").

    Random patches of one image are hidden, the other image is as it is; a pixel's evidence for "same" is the
    correlation (Pearson) of its visibility with the cosine, where negative it is evidence for "different". All pairs
    and both images share MASKS masks; it takes 2 * MASKS passes for a pair. Number and size of patches are chosen here.
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
    """SBSM, similarity-based saliency maps (Dong, Collins and Hoogs 2019, "Explainability for Content-Based Image
    Retrieval").

    A window slides over one image and hides it; a pixel's evidence for "same" is the mean rise of the distance over the
    windows that it lies in, where a fall counts as 0. The paper has no evidence for "different": here it is the mean
    fall, where a rise counts as 0. It takes 2 * WINDOWS ** 2 passes for a pair; size and number of windows are chosen
    here.
    """
    masks = _sliding_windows(images.shape[-2:]).to(images)
    distances, changed = _distances_under(network, images, masks)
    rises = changed - distances[:, None]  # (M, B, 2)
    hidden = 1 - masks
    windows = hidden.sum(dim=0).clamp(min=1)  # (H, W), how many each pixel lies in
    same, different = (
        torch.einsum("mbi,mhw->bihw", change.clamp(min=0), hidden) / windows for change in (rises, -rises)
    )
    return explained(images, distances, threshold, different, same)


def pair_x(network, images, threshold, references=None, layer=None) -> Explanation:
    """PAIR-X (Shrack et al. 2025, "Pairwise Matching of Intermediate Representations for Fine-grained Explainability").

    Places of a layer in the middle of the network match where each is the other's nearest, by the Euclidean distance of
    their activations; a match weighs what its two places are relevant to the cosine, multiplied, and both places of
    the MATCHES heaviest ones show that weight. One pass forwards and one back. Departs from the paper: relevance is the
    sum over channels of |activation x gradient| and not layer-wise relevance propagation, and a match is shown at its
    cells, not propagated on to pixels. The paper shows similarity alone, so the map is the same whatever the decision.
    """
    layer = layer or _middle(network)
    with evaluating(network):
        with torch.no_grad():
            features = network.features(images.flatten(0, 1), layer)  # (2B, C, h, w)
        with torch.enable_grad():
            features.requires_grad_()
            embeddings = paired(network.embed_features(features, layer))  # (B, 2, D)
            cosines = (embeddings[:, 0] * embeddings[:, 1]).sum(dim=1)
            (gradients,) = torch.autograd.grad(cosines.sum(), features)
    embeddings = embeddings.detach()
    features = features.detach().to(embeddings.dtype)
    relevances = (features * gradients).abs().sum(dim=1)  # (2B, h, w)
    maps = [_heaviest_matches(*pair) for pair in zip(paired(features), paired(relevances), strict=True)]
    return _as_factual(images, distance(*embeddings.unbind(1)), threshold, torch.stack(maps))


def integrated_jacobians(network, images, threshold, references=None, layer=None) -> Explanation:
    """Integrated Jacobians (Möller, Nikolaev and Padó 2023, "An Attribution Method for Siamese Encoders").

    The inner product of what two embeddings differ by from those of their references is a sum over pairs of places of a
    layer, one in each image, through the Jacobian of the embedding, integrated from the reference to the image; a
    place's evidence for "same" is its sum over the places of the other image. All places of that image times its
    Jacobian add up to its embedding less its reference's, so the sum needs no Jacobian, but STEPS gradients. One pass
    of 4 images forwards, and STEPS passes of 2 behind the layer, forwards and back. Departs from the paper: the
    reference is the blurred image, embeddings have length 1, and the network is not trained anew for that; the layer
    is in the middle of the network.
    """
    layer = layer or _middle(network)
    flat = images.flatten(0, 1)
    with evaluating(network):
        with torch.no_grad():
            features = network.features(torch.cat([flat, blurred(flat)]), layer)  # (4B, C, h, w)
            ends, starts = features.chunk(2)
            embeddings, without = (paired(part) for part in network.embed_features(features, layer).chunk(2))
            others = (embeddings - without).flip(1).flatten(0, 1)  # (2B, D), of the other image
        gradients = torch.zeros_like(ends, dtype=embeddings.dtype)
        for step in range(STEPS):
            with torch.enable_grad():
                between = torch.lerp(starts, ends, (step + 0.5) / STEPS).requires_grad_()
                products = network.embed_features(between, layer) * others
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
    """An Explanation whose factual maps are these, without counterfactual ones."""
    different = (distances > threshold)[:, None, None, None]
    nothing = torch.zeros_like(factual)
    towards_different = torch.where(different, factual, nothing)
    towards_same = torch.where(different, nothing, factual)
    return explained(images, distances, threshold, towards_different, towards_same)


def _cosine(distances):
    """Of embeddings of length 1 that are this far apart."""
    return 1 - distances**2 / 2


def _middle(network) -> str:
    """The layer in the middle of the network."""
    return network.layers[len(network.layers) // 2]


def _distances_under(network, images, masks):
    """The distances (B,) of the pairs, and (M, B, 2) with a mask (M, H, W) over image 1, and over image 2, alone.

    masks: 1 where the image is as it is, 0 where it is hidden.
    """
    with evaluating(network):
        embeddings = embed_pairs(network, images)  # (B, 2, D)
        others = embeddings.flip(1)
        changed = []
        for part in masks.split(TOGETHER):
            hidden = images * part[:, None, None, None]  # (m, B, 2, 3, H, W)
            under = network(hidden.flatten(0, 2)).reshape(len(part), *others.shape)
            changed.append(distance(under, others))
    return distance(*embeddings.unbind(1)), torch.cat(changed)


def _random_patches(size) -> torch.Tensor:
    """MASKS masks (M, H, W), 0 in PATCHES patches that lie within the image, and 1 elsewhere; always the same."""
    generator = torch.Generator().manual_seed(0)
    sides = [round(PATCH * side) for side in size]
    masks = torch.ones(MASKS, *size)
    for mask in masks:
        for _ in range(PATCHES):
            top, left = (
                int(torch.randint(side - patch + 1, (), generator=generator))
                for side, patch in zip(size, sides, strict=True)
            )
            mask[top : top + sides[0], left : left + sides[1]] = 0
    return masks


def _sliding_windows(size) -> torch.Tensor:
    """Masks (WINDOWS ** 2, H, W), 0 in one window each, from corner to corner, and 1 elsewhere."""
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
    """What places weigh in the heaviest matches: (2, h, w), from features (2, C, h, w) and relevances (2, h, w)."""
    one, two = features.flatten(2).mT  # (h * w, C) each
    apart = torch.cdist(one, two, compute_mode="donot_use_mm_for_euclid_dist")  # exact where two places are alike
    nearest = apart.argmin(dim=1)  # in image 2, of each place of image 1
    mutual = apart.argmin(dim=0)[nearest] == torch.arange(len(nearest), device=nearest.device)
    relevance1, relevance2 = relevances.flatten(1)
    weights = relevance1 * relevance2[nearest] * mutual
    heaviest, places = weights.topk(min(MATCHES, len(weights)))
    maps = torch.zeros_like(relevances).flatten(1)
    maps[0].index_add_(0, places, heaviest)
    maps[1].index_add_(0, nearest[places], heaviest)  # one that is not mutual adds 0
    return maps.reshape(relevances.shape)
