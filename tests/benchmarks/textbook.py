"""The textbook procedure, in plain lines: float32, contiguous, pair by pair.

Files are decoded again for every pair; batches hold 4 pairs; each pair takes two forward passes; an explanation takes a
forward and a full backward pass for the factual maps, the same again for the counterfactual ones, and another forward
pass for the activations of each map.
"""

import copy

import torch
import torch.nn.functional as F
from PIL import Image

from utils.network.distance import distance, unit
from utils.train.losses import contrastive_loss
from utils.vision import functional  # first: it lets torchvision import beside any build of torch

# isort: split
from torchvision.transforms import v2

PAIRS = 4  # in a batch


def contiguous(network):
    """Copy a network, with its weights in torch's default order."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format)


def transform(settings, training):
    """Return the transform of one image, uint8 (3, H, W), to float32 (3, h, w)."""
    steps = [v2.Resize(settings.size, antialias=True)]
    if training:
        steps += [v2.RandomHorizontalFlip(settings.HorizontalFlip), v2.RandomVerticalFlip(settings.VerticalFlip)]
        steps += [v2.RandomRotation(settings.RandomRotationDegrees, v2.InterpolationMode.BILINEAR)]
    steps += [v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*steps, v2.Normalize(settings.normalization.mean, settings.normalization.std)])


def load(paths, indices, apply):
    """Decode the files of these indices, and transform each: (B, 3, h, w)."""
    images = []
    for index in indices:
        pixels = functional.pil_to_tensor(Image.open(paths[index]).convert("RGB"))
        images.append(apply(pixels))
    return torch.stack(images)


def batches(pairs, paths, apply):
    """Yield images1, images2 and labels of 4 pairs at a time."""
    for start in range(0, len(pairs), PAIRS):
        batch = slice(start, start + PAIRS)
        images1 = load(paths, pairs.first[batch], apply)
        images2 = load(paths, pairs.second[batch], apply)
        yield images1, images2, torch.from_numpy(pairs.labels[batch])


def train(network, optimizer, pairs, paths, settings, margin=1.0):
    """Train on all pairs once, with a step of the optimizer after each batch."""
    network.train()
    for images1, images2, labels in batches(pairs, paths, transform(settings, training=True)):
        loss = contrastive_loss(distance(network(images1), network(images2)), labels, margin).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def evaluate(network, pairs, paths, settings):
    """Return the distances of the pairs, float32 (P,)."""
    network.eval()
    distances = []
    for images1, images2, _ in batches(pairs, paths, transform(settings, training=False)):
        distances.append(distance(network(images1), network(images2)))
    return torch.cat(distances)


def explain(network, image1, image2):
    """Return the maps of one pair, (4, H, W): towards "different" of image 1 and 2, then towards "same"."""
    network.eval()
    maps = []
    for sign in (1, -1):
        network.zero_grad()
        features1 = network.features(image1)
        features2 = network.features(image2)
        features1.retain_grad()
        features2.retain_grad()
        score = (
            sign * distance(unit(network.project_features(features1)), unit(network.project_features(features2))).sum()
        )
        score.backward()
        for image, features in ((image1, features1), (image2, features2)):
            with torch.no_grad():
                activations = network.features(image)
            evidence = (features.grad.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1, keepdim=True)
            maps.append(F.interpolate(evidence, size=image.shape[2:], mode="bilinear")[0, 0].clamp(min=0))
    return torch.stack(maps)
