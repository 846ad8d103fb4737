"""One tiny network twice: as a torch module, and in plain loops over Python numbers, with gradients by differences.

Written without reading the implementation of what is tested.
"""

import math

import torch
from torch import nn

CHANNELS, DIMENSIONS, HEIGHT, WIDTH = 3, 2, 3, 4
STEP = 1e-5  # of the differences


class TinyNetwork(nn.Module):
    """Embeds an image by the mean over places of z + bend * z ** 2, where z is linear in a feature map of its size."""

    def __init__(self, bend):
        super().__init__()
        self.lift = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), nn.Tanh())
        self.project = nn.Conv2d(CHANNELS, DIMENSIONS, 1, bias=False)
        self.bias = nn.Parameter(torch.randn(DIMENSIONS) / 4)
        self.bend = bend
        self.double()
        self.requires_grad_(False)

    def forward(self, images):
        z = self.project(self.lift(images))
        return (z + self.bend * z**2).mean(dim=(2, 3)) + self.bias


class PlainNetwork:
    """The same in loops. A feature map is a dict from (channel, y, x) to a number, an embedding a list."""

    def __init__(self, network):
        self.lift = network.lift[0].weight[:, :, 0, 0].tolist()
        self.lift_bias = network.lift[0].bias.tolist()
        self.project = network.project.weight[:, :, 0, 0].tolist()
        self.bias = network.bias.tolist()
        self.bend = network.bend

    def features(self, image):
        """image: nested lists [colour][y][x]."""
        features = {}
        for channel in range(CHANNELS):
            for y in range(HEIGHT):
                for x in range(WIDTH):
                    total = self.lift_bias[channel]
                    for colour in range(3):
                        total += self.lift[channel][colour] * image[colour][y][x]
                    features[channel, y, x] = math.tanh(total)
        return features

    def vector(self, features):
        """The embedding before it is brought to length 1."""
        vector = list(self.bias)
        for dimension in range(DIMENSIONS):
            for y in range(HEIGHT):
                for x in range(WIDTH):
                    z = 0.0
                    for channel in range(CHANNELS):
                        z += self.project[dimension][channel] * features[channel, y, x]
                    vector[dimension] += (z + self.bend * z**2) / (HEIGHT * WIDTH)
        return vector

    def embedding(self, features):
        return scaled(self.vector(features), length(self.vector(features)))


def length(vector):
    total = 0.0
    for value in vector:
        total += value**2
    return math.sqrt(total)


def scaled(vector, divisor):
    return [value / divisor for value in vector]


def inner(vector, other):
    total = 0.0
    for value, counterpart in zip(vector, other, strict=True):
        total += value * counterpart
    return total


def distance_between(vector, other):
    total = 0.0
    for value, counterpart in zip(vector, other, strict=True):
        total += (value - counterpart) ** 2
    return math.sqrt(total)


def gradient(quantity, features):
    """Central differences of a function of a feature map, by (channel, y, x)."""
    slopes = {}
    for place in features:
        above, below = dict(features), dict(features)
        above[place] += STEP
        below[place] -= STEP
        slopes[place] = (quantity(above) - quantity(below)) / (2 * STEP)
    return slopes


def mean_gradient(quantity, start, end, steps):
    """The mean of the gradients in the middle of `steps` equal steps on the straight way from start to end."""
    mean = dict.fromkeys(end, 0.0)
    for step in range(steps):
        share = (step + 0.5) / steps
        middle = {place: start[place] + share * (end[place] - start[place]) for place in end}
        for place, slope in gradient(quantity, middle).items():
            mean[place] += slope / steps
    return mean


def as_map(values):
    """A dict by (y, x) as a tensor (HEIGHT, WIDTH)."""
    rows = []
    for y in range(HEIGHT):
        rows.append([values[y, x] for x in range(WIDTH)])
    return torch.tensor(rows, dtype=torch.float64)


def places():
    for y in range(HEIGHT):
        for x in range(WIDTH):
            yield y, x
