"""Where places and channels may stand in the output of a layer: convolutions, channels-last blocks, transformers."""

import math
from dataclasses import dataclass

import torch

PADDING = 2  # cells that a map may have more along one side than its proportions ask for
PLACELESS = 16  # tokens without a place, at most: class token, registers


@dataclass(frozen=True)
class Layout:
    """How an output becomes a feature map (N, C, h, w), and back.

    A token without a place (class token, register) belongs to all places alike: it rides along in channels of its own,
    the same at each place, and is their mean on the way back. So a map determines all that follows, and a sum over
    places misses nothing.
    """

    grid: tuple[int, int]
    """Rows and columns of the map."""
    channels_last: bool
    """Whether channels stand behind the places, (N, h, w, C) or (N, T, C), or in front of them."""
    tokens: tuple[int, ...] | None = None
    """Where the places stand, row by row, along the one axis of a sequence; None of an output with two axes."""
    placeless: tuple[int, ...] = ()
    """Where tokens without a place stand along that axis."""
    batch: int = 0
    """The axis of the images."""

    def to_map(self, output: torch.Tensor) -> torch.Tensor:
        """Output of the layer to a map (N, (1 + tokens without a place) * channels, h, w)."""
        output = output.movedim(self.batch, 0)
        if self.channels_last:
            output = output.movedim(-1, 1)
        if self.tokens is None:
            return output
        places = output[:, :, self.tokens].unflatten(2, self.grid)  # (N, channels, h, w)
        placeless = output[:, :, self.placeless].mT.flatten(1)  # (N, tokens without a place * channels)
        everywhere = placeless[:, :, None, None].expand(-1, -1, *self.grid)
        return torch.cat([places, everywhere], dim=1)

    def to_output(self, features: torch.Tensor) -> torch.Tensor:
        """The opposite of `to_map`."""
        if self.tokens is not None:
            features = self._sequence(features)
        if self.channels_last:
            features = features.movedim(1, -1)
        return features.movedim(0, self.batch)

    def without_placeless(self, features: torch.Tensor) -> torch.Tensor:
        """A map (N, C, h, w) without the channels of tokens that have no place."""
        return features[:, : features.shape[1] // (1 + len(self.placeless))]

    @property
    def in_order(self) -> bool:
        """Whether places follow one another row by row, with nothing in between."""
        return self.tokens is None or self.tokens == tuple(range(self.tokens[0], self.tokens[0] + len(self.tokens)))

    @property
    def front(self) -> int:
        """How many tokens without a place stand in front of the first place."""
        return 0 if self.tokens is None else min(self.tokens)

    def of_same_kind(self, other: "Layout") -> bool:
        """Whether both say the same of images of different sizes."""
        return self.in_order and self._kind() == other._kind()

    def _kind(self):
        return self.batch, self.channels_last, self.tokens is None, self.front, len(self.placeless), self.in_order

    def _sequence(self, features):
        """A map to (N, channels, T)."""
        channels = self.without_placeless(features).shape[1]
        places = features[:, :channels].flatten(2)  # (N, channels, h * w)
        placeless = features[:, channels:].mean(dim=(2, 3)).unflatten(1, (len(self.placeless), channels)).mT
        order = torch.tensor([*self.placeless, *self.tokens], device=features.device)
        return torch.cat([placeless, places], dim=2)[:, :, order.argsort()]


def possible_layouts(shape, image_size, batch=0) -> list[Layout]:
    """The layouts that an output of this shape may have, in proportion to images of (height, width).

    Channels first before channels last where there are two axes of places, last before first in a sequence; tokens
    without a place in front before those at the end.
    """
    sizes = [size for axis, size in enumerate(shape) if axis != batch]
    if len(sizes) == 3:
        layouts = []
        for channels_last, grid in ((False, sizes[1:]), (True, sizes[:2])):
            if _in_proportion(grid, image_size):
                layouts.append(Layout(tuple(grid), channels_last, batch=batch))
        return layouts
    if len(sizes) == 2:
        return _sequences(sizes[0], True, image_size, batch) + _sequences(sizes[1], False, image_size, batch)
    return []


def likely_layout(output, image_size, order="NCHW") -> Layout | None:
    """The first of the layouts that what a layer gives may have; None where there is none.

    order: which of "NCHW" and "NHWC" it is where its shape would allow both.
    """
    if not isinstance(output, torch.Tensor):
        return None
    layouts = possible_layouts(output.shape, image_size)
    if len(output.shape) == 4 and order == "NHWC":
        layouts.reverse()
    return layouts[0] if layouts else None


def _sequences(length, channels_last, image_size, batch):
    """The layouts of a sequence of this length."""
    layouts = []
    for extra in range(min(PLACELESS, length)):
        grid = _grid(length - extra, image_size)
        if grid is None:
            continue
        for front in range(extra, -1, -1):
            tokens = tuple(range(front, front + length - extra))
            placeless = (*range(front), *range(front + length - extra, length))
            layouts.append(Layout(grid, channels_last, tokens, placeless, batch))
    return layouts


def _in_proportion(grid, image_size):
    height, width = image_size
    fits = grid[0] <= height and grid[1] <= width
    return fits and abs(grid[0] * width - grid[1] * height) <= PADDING * max(height, width)


def _grid(count, image_size):
    """Rows and columns of `count` square patches that cover an image exactly; None where none do."""
    height, width = image_size
    rows = round(math.sqrt(max(count, 0) * height / width))
    if rows == 0 or count % rows:
        return None
    columns = count // rows
    covers = height % rows == 0 and height // rows * columns == width
    return (rows, columns) if covers else None
