"""Where places and channels stand in the output of a layer: convolutions, channels-last blocks and transformers."""

import math
from dataclasses import dataclass

import torch

PADDING = 2  # cells that a map may have more along one side than its proportions ask for
PREFIX = 16  # tokens without a place, at most: class token, registers


@dataclass(frozen=True)
class Layout:
    """How an output becomes a feature map (N, C, h, w), and back.

    order: "NCHW", "NHWC" or "tokens", (N, prefix + h * w, channels), row by row. A token without a place (class token,
    register) belongs to all places alike: it rides along in channels of its own, the same at each place, and is their
    mean on the way back. So a map determines all that follows, and a sum over places misses nothing.
    """

    order: str
    grid: tuple[int, int]
    prefix: int = 0

    def to_map(self, output: torch.Tensor) -> torch.Tensor:
        """Output of the layer to a map (N, (1 + prefix) * channels, h, w)."""
        if self.order == "NCHW":
            return output
        if self.order == "NHWC":
            return output.movedim(-1, 1)
        places = output[:, self.prefix :].mT.unflatten(2, self.grid)  # (N, channels, h, w)
        placeless = output[:, : self.prefix].flatten(1)  # (N, prefix * channels)
        everywhere = placeless[:, :, None, None].expand(-1, -1, *self.grid)
        return torch.cat([places, everywhere], dim=1)

    def to_output(self, features: torch.Tensor) -> torch.Tensor:
        """The opposite of `to_map`."""
        if self.order == "NCHW":
            return features
        if self.order == "NHWC":
            return features.movedim(1, -1)
        channels = features.shape[1] // (1 + self.prefix)
        places = features[:, :channels].flatten(2).mT  # (N, h * w, channels)
        placeless = features[:, channels:].mean(dim=(2, 3)).unflatten(1, (self.prefix, channels))
        return torch.cat([placeless, places], dim=1)

    def without_prefix(self, features: torch.Tensor) -> torch.Tensor:
        """A map (N, C, h, w) without the channels of tokens that have no place."""
        return features[:, : features.shape[1] // (1 + self.prefix)]


def layout_of(output, image_size, order="NCHW") -> Layout | None:
    """The layout of what a layer gives for images of (height, width); None where it is no map in their proportions.

    order: which of "NCHW" and "NHWC" it is where its shape would allow both.
    """
    if not isinstance(output, torch.Tensor):
        return None
    shape = tuple(output.shape)
    if len(shape) == 4:
        grids = {"NCHW": shape[2:], "NHWC": shape[1:3]}
        fitting = [name for name, grid in grids.items() if _in_proportion(grid, image_size)]
        if fitting:
            found = order if order in fitting else fitting[0]
            return Layout(found, grids[found])
    if len(shape) == 3:
        for prefix in range(PREFIX):
            grid = _grid(shape[1] - prefix, image_size)
            if grid is not None:
                return Layout("tokens", grid, prefix)
    return None


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
