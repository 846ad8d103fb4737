"""Contrastive evidence: what makes an image more like itself, or like anything, than like the other image."""

from dataclasses import replace

import torch

from utils.config import LAST
from utils.explain.explanation import Explanation, ExplanationError, explained
from utils.explain.path import path_of
from utils.explain.references import References
from utils.network import Explainable, distance, evaluating, paired

TINY = 1e-12  # a vector of length 0 has no direction


def explain_by_contrast(
    network: Explainable,
    images,
    threshold: float,
    references: References | None = None,
    layer=LAST,
    steps=4,
    different=None,
) -> Explanation:
    """Explain B pairs by the path-integrated gradient of a target that is linear in the embedding.

    For an image of embedding e beside one of embedding o, the target is <e, e* - o> if the pair is decided "different",
    where e* is e itself, held fixed, and <e, c - o> if "same", where c is the mean embedding of the references, 0
    without them. It is integrated from the feature map of the blurred image to that of the image, in `steps` steps; the
    activation difference times the mean gradient, summed over channels, is the evidence of a place. On the way the
    vector is divided by its length at the end, not by its own: short ones would have steep slopes.

    Unlike the distance, the target has a slope where two images are alike. After integrated gradients (Sundararajan et
    al. 2017, equation 1) of the contrastive targets of Lin et al. 2023 (COCOA), section 3.

    images: (B, 2, C, H, W), as the network takes them. different: the decisions, bool (B,), where another network than
    this one makes them. The maps are signed: a place speaks for one decision. Raises ConfigError or ValueError for an
    unknown layer.
    """
    with evaluating(network):
        path = path_of(network, images, layer)
        embeddings = path.embeddings
        distances = distance(*embeddings.unbind(1))
        different = distances > threshold if different is None else different
        if references is not None and references.embeddings.shape[1] != embeddings.shape[2]:
            raise ExplanationError(
                f"references: embeddings of {references.embeddings.shape[1]} dimensions, but those of the network have "
                f"{embeddings.shape[2]}: pass embed_references(network, images) of this network"
            )
        centre = torch.zeros_like(embeddings) if references is None else references.centre.to(embeddings)
        direction = torch.where(different[:, None, None], embeddings, centre) - embeddings.flip(1)  # (B, 2, D)
        lengths = path.vectors.norm(dim=2).clamp(min=TINY)

        def target(vectors):
            return (vectors * direction).sum(dim=2) / lengths

        gradients = path.mean_gradient(target, steps)
    evidence = paired((path.change * gradients).sum(dim=1))  # (B, 2, h, w)
    explanation = explained(images, distances, threshold, evidence, -evidence)
    return replace(explanation, completeness=path.completeness(target, evidence))
