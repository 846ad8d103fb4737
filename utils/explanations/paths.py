"""Maps of evidence by gradients on the path from the blurred image to the image."""

import torch
import torch.nn.functional as F

from ..config import MORE
from ..files import ExplanationError
from ..network.distance import Explainable, blurred, distance, evaluating, paired, project_through, unit
from .explanation import Explanation, ranks_of
from .maps import Task, explained

SHOWN = (0.7, 0.9)  # of the image beside its blur, everywhere alike: where `thorough` begins
STRONGEST = (0.3, 0.7)  # shares of the places that `thorough` shows, then hides
ROUNDS = 3  # in which it ranks the places anew
EDGE = 0.1  # of the places: how gradually it shows and hides
SMOOTHING = 20  # of each side of a map, one part: the sigma of the blur before places are ranked


class BlurPath:
    """The straight path from the feature maps of N blurred images to those of the images, in evaluation mode."""

    def __init__(self, network: Explainable, images, layer: str):
        """Read the network at both ends of the path.

        Args:
            network: In evaluation mode.
            images: (N, C, H, W).
            layer: Where the path begins; of several (MORE), the later ones are read on the way.
        """
        self.network = network
        self.layer = layer
        features, vectors = network.features_and_vectors(torch.cat([blurred(images), images]), layer)
        maps = [features]  # (2N, C, h, w) of each layer
        if layer.endswith(MORE):
            maps += project_through(network, features, layer)[1]
        self.starts, self.ends = features.chunk(2)  # (N, C, h, w)
        self.vectors_at_start, self.vectors = vectors.chunk(2)  # (N, D), float32 or longer
        self.gains = []  # from start to end, (N, C, h, w) of each layer
        for both in maps:
            start, end = both.to(vectors.dtype).chunk(2)
            self.gains.append(end - start)

    def gradients(self, quantity, shown):
        """Return the gradients of a quantity at a point of the path, (N, C, h, w) of each layer.

        Args:
            quantity: A function from vectors (N, D) to numbers, which are added up.
            shown: How far along the path, in [0, 1]: a number, or a tensor (N, 1, h, w) for each place.
        """
        with torch.enable_grad():
            weight = torch.as_tensor(shown, dtype=self.starts.dtype, device=self.starts.device)
            point = torch.lerp(self.starts, self.ends, weight).requires_grad_()
            vectors, later = project_through(self.network, point, self.layer)
            gradients = torch.autograd.grad(quantity(vectors).sum(), [point, *later])
        return [gradient.to(gain.dtype) for gradient, gain in zip(gradients, self.gains, strict=True)]

    def mean_gradients(self, quantity, steps: int):
        """Return the gradients of a quantity averaged over the path by the midpoint rule, as `gradients` does."""
        means = [torch.zeros_like(gain) for gain in self.gains]
        for step in range(steps):
            for mean, gradient in zip(means, self.gradients(quantity, (step + 0.5) / steps), strict=True):
                mean += gradient / steps
        return means


@torch.no_grad()
def along_path(formula, target, task: Task) -> Explanation:
    """Explain by a formula of what the activations gain on a path, and of the mean gradient of a target on it.

    The path is the straight one from the feature map of the blurred image to that of the image. The mean gradient is
    taken by the midpoint rule in `task.steps` steps. Gains times mean gradients add up to the change of the target, but
    for an error that shrinks with the steps.

    Later layers that `task.layer` names too (MORE) are read in the same passes: their gains are from the map of the
    blurred image to that of the image. The maps of all layers are averaged.

    Args:
        formula: As `maps.py` has it.
        target: A function of the task and of the images' vectors (B, 2, D), before they are brought to length 1. It
            returns a function from vectors (B, 2, D) on the path to one number for each image, (B, 2).
        task: What is explained.

    Source: Sundararajan et al. 2017, Axiomatic Attribution, equation 1.
    """
    with evaluating(task.network):
        path = BlurPath(task.network, task.images.flatten(0, 1), task.layer)
        vectors = paired(path.vectors)
        quantity = target(task, vectors)
        gradients = path.mean_gradients(lambda between: quantity(paired(between)), task.steps)
    different = []
    same = []
    for gain, gradient in zip(path.gains, gradients, strict=True):
        different.append(formula(gain, gradient))  # (2B, h, w)
        same.append(formula(gain, -gradient))
    total = paired(path.gains[0] * gradients[0]).flatten(1).sum(dim=1)  # (B,)
    change = (quantity(vectors) - quantity(paired(path.vectors_at_start))).sum(dim=1)
    completeness = torch.stack([total, change], dim=1)
    distances = distance(*unit(vectors).unbind(1))
    evidence = paired(_averaged(different)), paired(_averaged(same))  # (B, 2, h, w) each
    return explained(task.images, distances, task.threshold, *evidence, completeness)


@torch.no_grad()
def thorough(task: Task) -> Explanation:
    """Explain by gradients where the strongest places are shown, and where they are hidden.

    Insertion and deletion show and hide the strongest places of a map; this method does so in the feature maps. It
    begins with the target of `contrast` at SHOWN of the way from the blurred image to the image. In each round it ranks
    the places by the map so far, shows the shares STRONGEST of them in the blurred image, hides them in the image, and
    takes the gradients of what decides: the inner product of the embeddings, of both changed images where the decision
    is "different", of each changed image and the unchanged other one where it is "same". The evidence is gains times
    gradients, averaged over SHOWN, plus the same averaged over all rounds.

    A pair takes 14 passes forwards and backwards behind the layer. Later layers are read as `along_path` reads them.
    """
    with evaluating(task.network):
        path = BlurPath(task.network, task.images.flatten(0, 1), task.layer)
        vectors = paired(path.vectors)
        embeddings = unit(vectors)
        distances = distance(*embeddings.unbind(1))
        different = task.different(distances)  # (B,)
        target = contrast(task, vectors)

        def decisive(between):
            changed = unit(paired(between))
            both = (changed[:, 0] * changed[:, 1]).sum(dim=1)  # (B,)
            each = (changed * embeddings.flip(1)).sum(dim=(1, 2))
            return -torch.where(different, both, each)

        towards_decision = torch.where(different, 1, -1).repeat_interleave(2)
        evidence = refined(path, lambda between: target(paired(between)), decisive, towards_decision)
    evidence = paired(evidence)  # (B, 2, h, w)
    return explained(task.images, distances, task.threshold, evidence, -evidence)


def refined(path: BlurPath, target, decisive, signs) -> torch.Tensor:
    """Return what raises a quantity, ranked anew in each of ROUNDS, as `thorough` describes it: (N, h, w).

    Args:
        path: Of N images.
        target: The quantity at the beginning, a function from vectors (N, D) to numbers.
        decisive: The quantity whose change insertion and deletion measure, a function as `target`.
        signs: (N,), 1 where the strongest places are those that raise it, -1 where they are those that lower it.
    """
    evidence = [torch.zeros_like(gain[:, 0]) for gain in path.gains]  # (N, h, w) of each layer

    def add(quantity, shown, states):
        for values, gain, gradient in zip(evidence, path.gains, path.gradients(quantity, shown), strict=True):
            values += (gain * gradient).sum(dim=1) / states

    for shown in SHOWN:
        add(target, shown, len(SHOWN))
    states = ROUNDS * 2 * len(STRONGEST)
    for _ in range(ROUNDS):
        maps = _averaged(evidence) * signs[:, None, None]
        for share in STRONGEST:
            shown = _strongest(maps, share)
            add(decisive, shown, states)
            add(decisive, 1 - shown, states)
    return _averaged(evidence)


def _strongest(maps, share) -> torch.Tensor:
    """Return 1 at the strongest places of each map (N, h, w), a share of all, and 0 at the others: (N, 1, h, w).

    Places are ranked after a slight blur; those near the last of the strongest are in between.
    """
    from kornia.filters import gaussian_blur2d  # slow to import

    height, width = maps.shape[1:]
    sigma = height / SMOOTHING, width / SMOOTHING
    kernel = 2 * round(2 * sigma[0]) + 1, 2 * round(2 * sigma[1]) + 1
    ranks = ranks_of(gaussian_blur2d(maps[:, None], kernel, sigma)) / (height * width)
    return torch.sigmoid((share - ranks) / EDGE)


def _averaged(layers) -> torch.Tensor:
    """Average maps (N, h, w) of several layers, each brought to the size and root mean square of the first.

    No mean is subtracted: signs stay what they are.
    """
    first = layers[0]
    strength = _strength(first)
    total = first
    for maps in layers[1:]:
        scaled = maps * strength / _strength(maps).clamp(min=torch.finfo(maps.dtype).tiny)
        total = total + F.interpolate(scaled[:, None], size=first.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    return total / len(layers)


def _strength(maps):
    """The root mean square of maps (N, h, w): (N, 1, 1)."""
    return maps.square().mean(dim=(1, 2), keepdim=True).sqrt()


def to_other(task: Task, vectors):
    """Target: the distance of each image to the other one, which is held fixed."""
    others = unit(vectors).flip(1)

    def quantity(between):
        return distance(unit(between), others)

    return quantity


def contrast(task: Task, vectors):
    """Target: how much more an image is like itself, or like the references, than like the other image.

    For an image of embedding e beside one of embedding o, the target is <e, e* - o> if the pair is decided "different",
    where e* is e itself, held fixed, and <e, c - o> if "same", where c is the mean embedding of the references, 0
    without them. Unlike the distance, it has a slope where both embeddings are equal. On the path the vector is divided
    by its length at the end, not by its own: short ones would have steep slopes.

    Raises:
        ExplanationError: The references are those of another network.

    Source: after Lin et al. 2023, COCOA, section 3.
    """
    embeddings = unit(vectors)
    centre = torch.zeros_like(embeddings)
    if task.references is not None:
        dimensions = task.references.embeddings.shape[1]
        if dimensions != embeddings.shape[2]:
            raise ExplanationError(
                f"references: embeddings of {dimensions} dimensions, but those of the network have "
                f"{embeddings.shape[2]}: pass embed_references(network, images) of this network"
            )
        centre = task.references.centre.to(embeddings)
    different = task.different(distance(*embeddings.unbind(1)))
    direction = torch.where(different[:, None, None], embeddings, centre) - embeddings.flip(1)  # (B, 2, D)
    lengths = vectors.norm(dim=2)

    def quantity(between):
        return (between * direction).sum(dim=2) / lengths

    return quantity
