"""The textbook procedure, in plain lines: float32, contiguous, pair by pair.

Files are decoded anew for every pair; batches hold 4 pairs; each pair takes two forward passes; an explanation takes a
forward and a full backward pass for the factual maps, the same again for the counterfactual ones, and a forward pass of
its own for the activations of each map.
"""

import copy

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import v2

from utils.network.distance import distance
from utils.train.losses import ContrastiveLoss

PAIRS = 4  # in a batch


def contiguous(network):
    """A copy of a network with its weights in torch's default order."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format)


def transform(settings, training):
    """The transform of one image: decoded with Pillow, as tensor of (3, h, w)."""
    steps = [v2.ToImage(), v2.Resize(settings.size, antialias=True)]
    if training:
        steps += [v2.RandomHorizontalFlip(settings.HorizontalFlip), v2.RandomVerticalFlip(settings.VerticalFlip)]
        steps += [v2.RandomRotation(settings.RandomRotationDegrees, v2.InterpolationMode.BILINEAR)]
    steps += [v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*steps, v2.Normalize(settings.normalization.mean, settings.normalization.std)])


def load(paths, apply):
    """Files to one tensor (B, 3, h, w)."""
    return torch.stack([apply(Image.open(path).convert("RGB")) for path in paths])


def batches(pairs, paths, apply):
    """Yields images1, images2 and labels of 4 pairs at a time."""
    for start in range(0, len(pairs), PAIRS):
        first, second = (part[start : start + PAIRS] for part in (pairs.first, pairs.second))
        images1, images2 = (load([paths[index] for index in part], apply) for part in (first, second))
        yield images1, images2, torch.from_numpy(pairs.labels[start : start + PAIRS])


def train(network, optimizer, pairs, paths, settings, margin=1.0):
    """One pass over the pairs, with a step of the optimizer after each batch."""
    network.train()
    criterion = ContrastiveLoss(margin)
    for images1, images2, labels in batches(pairs, paths, transform(settings, training=True)):
        loss = criterion(distance(network(images1), network(images2)), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def evaluate(network, pairs, paths, settings):
    """Distances (P,) of the pairs."""
    network.eval()
    apply = transform(settings, training=False)
    return torch.cat([distance(network(one), network(two)) for one, two, _ in batches(pairs, paths, apply)])


def explain(network, image1, image2):
    """Maps (4, H, W) of one pair at the last stage: factual 1 and 2 towards "different", counterfactual 1 and 2."""
    network.eval()
    maps = []
    for sign in (1, -1):
        network.zero_grad()
        outputs = [network.features(image) for image in (image1, image2)]
        for output in outputs:
            output.retain_grad()
        value = sign * distance(*(network.embed_features(output) for output in outputs)).sum()
        value.backward()
        for image, output in zip((image1, image2), outputs, strict=True):
            with torch.no_grad():
                activations = network.features(image)
            evidence = (output.grad.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1, keepdim=True)
            maps.append(F.interpolate(evidence, size=image.shape[2:], mode="bilinear")[0, 0].clamp(min=0))
    return torch.stack(maps)
