"""Modules of a user, one for each order in which the output of a layer can stand, and what the right map is."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from faults.outcomes import REFUSED, RIGHT
from torch import nn

MUST = (RIGHT,)
EITHER = (RIGHT, REFUSED)
NO_MAP = (REFUSED,)
SQUARE = (64, 64)
WIDE = (64, 96)
PATCH = 16
CHANNELS = 12
HILBERT = (0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3)  # the places of 4 x 4 along Hilbert's curve
SHUFFLED = (9, 2, 14, 5, 0, 11, 7, 12, 3, 15, 6, 1, 10, 4, 13, 8)
HALF_A_WINDOW = 2


@dataclass(frozen=True)
class Case:
    """A module, a layer of it, and the truth about its map."""

    build: Callable[[], nn.Module]
    """Makes the module, with random weights."""
    size: tuple[int, int] = SQUARE
    """Height and width of the images."""
    layer: str = "layer"
    """Name of the layer."""
    restore: Callable | None = None
    """Brings what has the shape of the layer's output to a map (N, C, rows, columns) in the places of the image. None
    where the map is not as large as the image: only planted patches tell."""
    outcomes: tuple[str, ...] = EITHER
    """What may come of it. Only right, where a refusal would not do; only refused, where the output has no map."""
    colours: int = 3
    """Channels of the images."""
    embed: Callable | None = None
    """From the module and images to embeddings; None: the module gives them itself."""


class Ordered(nn.Module):
    """A map of patches, brought to some order, read by `layer`, brought back and pooled.

    Args:
        arrange: From a map (N, C, rows, columns) to the output of `layer`.
        back: From the output to a map with the same values; their places do not matter, for they are pooled.
        channels: Of the map.
        patches: The convolution that makes the map, or the side of square patches.
        prepare: What happens to the images before.
        colours: Channels of the images.
    """

    def __init__(self, arrange, back, channels=CHANNELS, patches=PATCH, prepare=None, colours=3):
        super().__init__()
        if isinstance(patches, int):
            patches = nn.Conv2d(colours, channels, patches, stride=patches)
        self.patches = patches
        self.layer = nn.Identity()
        self.head = nn.Linear(channels, 8)
        self.arrange = arrange
        self.back = back
        self.prepare = prepare

    def forward(self, images):
        if self.prepare is not None:
            images = self.prepare(images)
        output = self.layer(self.arrange(self.patches(images)))
        return self.head(self.back(output).square().mean(dim=(2, 3)))


class BatchSecond(nn.Module):
    """A transformer whose tokens stand first, (T, N, C): PyTorch's default, and OpenAI's CLIP.

    Args:
        extra: Tokens in front that have no place.
        blocks: How many blocks; `blocks.0` is the first.
    """

    def __init__(self, extra=0, blocks=1):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, PATCH, stride=PATCH)
        self.extra = nn.Parameter(torch.randn(extra, 1, 16))
        layers = [nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0) for _ in range(blocks)]
        self.blocks = nn.Sequential(*layers)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).permute(2, 0, 1)
        tokens = torch.cat([self.extra.expand(-1, len(images), -1), tokens])
        return self.blocks(tokens)[len(self.extra) :].mean(dim=0)


class Normed(Ordered):
    """Embeddings whose values add up to 0, as behind a LayerNorm."""

    def forward(self, images):
        return F.layer_norm(super().forward(images), (8,))


class SortedTokens(nn.Module):
    """Tokens in an order that depends on the image, as those that prune or merge tokens have them."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, CHANNELS, PATCH, stride=PATCH)
        self.layer = nn.Identity()
        self.head = nn.Linear(CHANNELS, 8)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).mT
        order = tokens.norm(dim=2).argsort(dim=1, descending=True)
        tokens = tokens.gather(1, order[:, :, None].expand_as(tokens))
        return self.head(self.layer(tokens).square().mean(dim=1))


class Mixed(nn.Module):
    """A map as (N, C, h w), the channels of which are mixed over places, as in MixVPR."""

    def __init__(self, channels, places):
        super().__init__()
        self.patches = nn.Conv2d(3, channels, PATCH, stride=PATCH)
        self.layer = nn.Identity()
        self.mix = nn.Linear(places, places)
        self.head = nn.Linear(channels, 8)

    def forward(self, images):
        return self.head(self.mix(self.layer(self.patches(images).flatten(2))).square().mean(dim=2))


def same(values):
    """A map that stands as it is."""
    return values


def ordered(arrange, back, restore, outcomes=EITHER, size=SQUARE, **settings) -> Case:
    """A case of `Ordered`; restore: where it is not the way back. settings: of `Ordered`."""
    return Case(
        lambda: Ordered(arrange, back, **settings), size, "layer", restore, outcomes, settings.get("colours", 3)
    )


def permuted(*axes, outcomes=EITHER, size=SQUARE, **settings) -> Case:
    """The axes of (N, C, h, w) in another order."""
    inverse = [axes.index(axis) for axis in range(4)]

    def back(output):
        return output.permute(inverse)

    return ordered(lambda maps: maps.permute(axes), back, back, outcomes, size, **settings)


def tokens(order=None, front=0, end=0, middle=0, outcomes=EITHER, size=SQUARE, first="batch", **settings) -> Case:
    """Tokens (N, T, C).

    Args:
        order: Places, row by row, in the order of the tokens; None for row by row.
        front: How many tokens without a place stand in front; `end` and `middle` the same.
        end: At the end.
        middle: In the middle.
        outcomes: Of the case.
        size: Of the case.
        first: "batch", "tokens" (T, N, C), or "channels" (N, C, T).
        settings: Of `Ordered`.
    """
    patch = settings.get("patches", PATCH)
    grid = (size[0] // patch, size[1] // patch)
    count = grid[0] * grid[1]
    order = torch.arange(count) if order is None else torch.as_tensor(order)
    half = front + count // 2
    axes = {"batch": (0, 1, 2), "tokens": (1, 0, 2), "channels": (0, 2, 1)}[first]

    def arrange(maps):
        sequence = maps.flatten(2).mT[:, order]
        whole = sequence.mean(dim=1, keepdim=True)

        def placeless(number):
            return torch.cat([whole + index for index in range(number)], dim=1) if number else sequence[:, :0]

        parts = [sequence[:, : count // 2], placeless(middle), sequence[:, count // 2 :]]
        return torch.cat([placeless(front), *parts, placeless(end)], dim=1).permute(axes)

    def back(output):
        output = output.permute(axes)
        sequence = torch.cat([output[:, front:half], output[:, half + middle : front + count + middle]], dim=1)
        return sequence[:, order.argsort()].mT.unflatten(2, grid)

    return ordered(arrange, back, back, outcomes, size, **settings)


def by_columns(size=SQUARE):
    """The order of places in which rows run fastest."""
    return torch.arange(size[0] * size[1] // PATCH**2).view(size[0] // PATCH, -1).T.flatten()


def serpentine(size=SQUARE):
    """Every second row from right to left."""
    places = torch.arange(size[0] * size[1] // PATCH**2).view(size[0] // PATCH, -1).clone()
    places[1::2] = places[1::2].flip(1)
    return places.flatten()


def by_windows(side, grid):
    """One window of side x side places after the other, as Hiera unrolls them."""
    places = torch.arange(grid[0] * grid[1]).view(grid[0] // side, side, grid[1] // side, side)
    return places.permute(0, 2, 1, 3).flatten()


def windows(side, channels_last=True) -> Case:
    """Windows folded into the batch, (N windows, side side, C) or (N windows, side, side, C), as attention has them."""

    def arrange(maps):
        rows, columns = maps.shape[2] // side, maps.shape[3] // side
        parts = maps.movedim(1, -1).unflatten(1, (rows, side)).unflatten(3, (columns, side))  # (N, R, s, K, s, C)
        parts = parts.transpose(2, 3).flatten(0, 2)  # (N R K, s, s, C)
        return parts.flatten(1, 2) if channels_last else parts

    def back(output):
        grid = SQUARE[0] // PATCH
        parts = output.unflatten(1, (side, side)) if channels_last else output
        parts = parts.unflatten(0, (-1, grid // side, grid // side)).transpose(2, 3)
        return parts.flatten(3, 4).flatten(1, 2).movedim(-1, 1)

    return ordered(arrange, back, back)


def two_in_a_token(near) -> Case:
    """Two patches a token, (N, T / 2, 2 C): neighbours, or one of each half of the image."""

    def arrange(maps):
        sequence = maps.flatten(2).mT
        if near:
            return sequence.unflatten(1, (-1, 2)).flatten(2)
        return torch.cat(sequence.chunk(2, dim=1), dim=2)

    def back(output):
        return torch.cat(output.chunk(2, dim=2), dim=1).mT[..., None]

    def restore(output):
        return output.mT.unflatten(2, (4, 2))

    return ordered(arrange, back, restore if near else None, EITHER if near else NO_MAP)


def moved(prepare, restore, **settings) -> Case:
    """A map (N, C, h, w) of images that the module changes before; restore: to the places of the image."""
    return ordered(same, same, restore, prepare=prepare, **settings)


def rolled() -> Case:
    """A map that is shifted cyclically, as Swin's is for every second block."""
    shift = (HALF_A_WINDOW, HALF_A_WINDOW)

    def arrange(maps):
        return maps.roll(shift, (2, 3))

    def back(output):
        return output.roll((-shift[0], -shift[1]), (2, 3))

    return ordered(arrange, back, back)


def middle_of(images):
    """The inner half of images."""
    height, width = images.shape[2:]
    return images[:, :, height // 4 : height * 3 // 4, width // 4 : width * 3 // 4]


def strided(channels, kernel, stride, padding) -> nn.Conv2d:
    """A convolution that makes a map of a size that does not divide that of the image."""
    return nn.Conv2d(3, channels, kernel, stride=stride, padding=padding)


ORDERS = {
    "(N, C, h, w)": permuted(0, 1, 2, 3, outcomes=MUST),
    "(N, C, h, w), wide": permuted(0, 1, 2, 3, outcomes=MUST, size=WIDE),
    "(N, C, h, w), C = h = w": permuted(0, 1, 2, 3, outcomes=MUST, channels=16, patches=4),
    "(N, C, h, w), C = h": permuted(0, 1, 2, 3, outcomes=MUST, channels=4),
    "(N, h, w, C)": permuted(0, 2, 3, 1, outcomes=MUST),
    "(N, h, w, C), wide": permuted(0, 2, 3, 1, outcomes=MUST, size=WIDE, channels=32),
    "(N, h, w, C), w and C in proportion": permuted(0, 2, 3, 1, size=WIDE),
    "(N, h, w, C), C = h = w": permuted(0, 2, 3, 1, channels=16, patches=4),
    "(N, h, w, C), C = w": permuted(0, 2, 3, 1, size=WIDE, channels=6),
    "(N, C, w, h)": permuted(0, 1, 3, 2),
    "(N, C, w, h), wide": permuted(0, 1, 3, 2, size=WIDE),
    "(N, w, h, C)": permuted(0, 3, 2, 1),
    "(N, h, C, w)": permuted(0, 2, 1, 3),
    "(N, h, C, w), C = h = w": permuted(0, 2, 1, 3, channels=16, patches=4),
    "(C, N, h, w)": permuted(1, 0, 2, 3),
    "(h, w, N, C)": permuted(2, 3, 0, 1),
    "(N, T, C)": tokens(outcomes=MUST),
    "(N, T, C), wide": tokens(outcomes=MUST, size=WIDE),
    "(N, T, C), C = T": tokens(outcomes=MUST, channels=16),
    "(N, T, C), tokens by columns": tokens(by_columns()),
    "(N, T, C), tokens by columns, wide": tokens(by_columns(WIDE), size=WIDE),
    "(N, T, C), serpentine": tokens(serpentine()),
    "(N, T, C), serpentine, wide": tokens(serpentine(WIDE), size=WIDE),
    "(N, T, C), along Hilbert's curve": tokens(HILBERT),
    "(N, T, C), from the last to the first": tokens(range(15, -1, -1)),
    "(N, T, C), shuffled": tokens(SHUFFLED),
    "(N, T, C), by windows of 2 x 2": tokens(by_windows(2, (4, 4))),
    "(N, T, C), by windows of 2 x 2, wide": tokens(by_windows(2, (4, 6)), size=WIDE),
    "(N, T, C), by windows of 4 x 4": tokens(by_windows(4, (8, 8)), patches=8),
    "(N, T, C), a class token in front": tokens(front=1, outcomes=MUST),
    "(N, T, C), four registers in front, wide": tokens(front=4, outcomes=MUST, size=WIDE),
    "(N, T, C), a class token at the end": tokens(end=1),
    "(N, T, C), four registers at the end": tokens(end=4),
    "(N, T, C), four registers at the end, wide": tokens(end=4, size=WIDE),
    "(N, T, C), a class token in front, registers at the end": tokens(front=1, end=4),
    "(N, T, C), a class token in the middle": tokens(middle=1),
    "(N, T, C), four registers in the middle": tokens(middle=4),
    "(N, T, C), 9 registers in front of 16 places": tokens(front=9, outcomes=MUST),
    "(N, T, C), 9 registers at the end of 16 places": tokens(end=9),
    "(T, N, C)": tokens(first="tokens"),
    "(T, N, C), wide": tokens(first="tokens", size=WIDE),
    "(T, N, C), a class token in front": tokens(first="tokens", front=1),
    "(T, N, C), C = T": tokens(first="tokens", channels=16),
    "(N, C, T)": tokens(first="channels"),
    "(N, C, T), wide": tokens(first="channels", size=WIDE),
    "(N, C, T), C = T": tokens(first="channels", channels=16),
    "(N, C, T), C a square number": tokens(first="channels", channels=64),
    "(N, C, T), C a square number and a class token": tokens(first="channels", channels=64, front=1),
    "(N, C, T) as in MixVPR": Case(lambda: Mixed(64, 25), (80, 80), restore=lambda output: output.unflatten(2, (5, 5))),
    "nn.TransformerEncoderLayer": Case(
        BatchSecond, layer="blocks.0", restore=lambda output: output.permute(1, 2, 0).unflatten(2, (4, 4))
    ),
    "the first of two nn.TransformerEncoderLayer, a class token": Case(
        lambda: BatchSecond(1, 2),
        WIDE,
        "blocks.0",
        lambda output: output[1:].permute(1, 2, 0).unflatten(2, (4, 6)),
    ),
    "(N, C, h, w), embeddings that add up to 0": Case(lambda: Normed(same, same), restore=same, outcomes=MUST),
    "(N windows, T, C)": windows(2),
    "(N windows, h, w, C)": windows(2, channels_last=False),
    "two neighbours a token": two_in_a_token(near=True),
    "two distant patches a token": two_in_a_token(near=False),
    "tokens sorted by their length": Case(SortedTokens, outcomes=NO_MAP),
    "half of the tokens": ordered(
        lambda maps: maps.flatten(2).mT[:, ::2],
        lambda output: output.mT[..., None],
        lambda output: output.mT.unflatten(2, (4, 2)),
    ),
    "(N, 1, C, h, w)": ordered(lambda maps: maps[:, None], lambda output: output[:, 0], lambda output: output[:, 0]),
    "(N, heads, T, C / heads)": ordered(
        lambda maps: maps.flatten(2).mT.unflatten(2, (3, 4)).transpose(1, 2),
        lambda output: output.transpose(1, 2).flatten(2).mT.unflatten(2, (4, 4)),
        lambda output: output.transpose(1, 2).flatten(2).mT.unflatten(2, (4, 4)),
    ),
    "(N, heads, T, C / heads), C / heads = T = heads": ordered(
        lambda maps: maps.flatten(2).mT.unflatten(2, (16, 16)).transpose(1, 2),
        lambda output: output.transpose(1, 2).flatten(2).mT.unflatten(2, (4, 4)),
        lambda output: output.transpose(1, 2).flatten(2).mT.unflatten(2, (4, 4)),
        channels=256,
    ),
    "(N, C h w)": ordered(lambda maps: maps.flatten(1), lambda output: output.unflatten(1, (CHANNELS, 4, 4)), None),
    "a map that is shifted cyclically": rolled(),
    "images mirrored inside": moved(lambda images: images.flip(3), lambda output: output.flip(3)),
    "images turned upside down inside": moved(lambda images: images.flip(2), lambda output: output.flip(2)),
    "images transposed inside": moved(lambda images: images.mT, lambda output: output.mT),
    "images rotated inside": moved(
        lambda images: images.rot90(1, (2, 3)), lambda output: output.rot90(-1, (2, 3)), size=WIDE
    ),
    "the middle of the images alone": moved(middle_of, None, patches=8),
    "images on a larger canvas": moved(lambda images: F.pad(images, (0, 64, 0, 64)), None),
    "images resized inside": moved(
        lambda images: F.interpolate(images, size=(96, 96)), same, outcomes=MUST, size=(64, 64)
    ),
    "images stretched inside": moved(lambda images: F.interpolate(images, size=(64, 64)), same, size=WIDE),
    "a stride that does not divide the image": ordered(
        same, same, same, outcomes=MUST, patches=strided(CHANNELS, 7, 5, 3)
    ),
    "a stride that leaves a margin": ordered(
        same, same, same, outcomes=MUST, size=(70, 102), patches=strided(CHANNELS, 16, 16, 0)
    ),
    "a map of odd size": ordered(same, same, same, outcomes=MUST, size=(56, 72), patches=strided(CHANNELS, 8, 8, 0)),
    "a map that is enlarged": ordered(
        lambda maps: F.interpolate(maps, scale_factor=2), same, same, outcomes=MUST, size=WIDE
    ),
    "images of one channel": ordered(same, same, same, colours=1),
    "images of one channel, tokens with a class token": tokens(front=1, colours=1),
    "images of five channels": ordered(same, same, same, colours=5),
}


def places_of(prefix, size, patch):
    """What brings tokens (N, prefix + h w, C) of a transformer, row by row, to a map without the prefix."""
    grid = (math.ceil(size[0] / patch), math.ceil(size[1] / patch))
    return lambda output: output[:, prefix:].mT.unflatten(2, grid)
