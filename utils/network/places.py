"""Where the places of an image stand in the output of a layer: convolutions, channels-last blocks, transformers."""

import math
from dataclasses import dataclass

import torch

PADDING = 2  # cells that a map may have more along one side than its proportions ask for
PLACELESS = 16  # tokens without a place, at most: class token, registers
COARSER = {torch.bfloat16: 0.1, torch.float16: 0.02}  # tolerance of the largest value; 1e-3 in other precisions


def close(expected, actual, dtype=None) -> bool:
    """Return whether two tensors are the same up to rounding; NaN equals NaN.

    dtype: of the computations; None for that of `expected`.
    """
    if not expected.numel():
        return True
    tolerance = COARSER.get(dtype or expected.dtype, 1e-3) * expected.nan_to_num().abs().max().item()
    return torch.allclose(actual.to(expected), expected, rtol=0, atol=tolerance, equal_nan=True)


@dataclass(frozen=True)
class Layout:
    """How an output becomes a feature map (N, C, h, w), and back.

    A token without a place (class token, register) belongs to all places: it is repeated at each of them in channels of
    its own, and is their mean on the way back. So a map determines all that follows, and a sum over places is complete.
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
        """Turn the output of the layer into a map (N, (1 + tokens without a place) * channels, h, w)."""
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
        """Turn a map into the output of the layer."""
        if self.tokens is not None:
            channels = self.without_placeless(features).shape[1]
            places = features[:, :channels].flatten(2)  # (N, channels, h * w)
            placeless = features[:, channels:].mean(dim=(2, 3)).unflatten(1, (len(self.placeless), channels)).mT
            order = torch.tensor([*self.placeless, *self.tokens], device=features.device)
            features = torch.cat([placeless, places], dim=2)[:, :, order.argsort()]
        if self.channels_last:
            features = features.movedim(1, -1)
        return features.movedim(0, self.batch)

    def without_placeless(self, features: torch.Tensor) -> torch.Tensor:
        """Return a map (N, C, h, w) without the channels of tokens that have no place."""
        return features[:, : features.shape[1] // (1 + len(self.placeless))]


def possible_layouts(shape, image_size, batch=0) -> list[Layout]:
    """Return the layouts that an output of this shape may have, in proportion to images of (height, width).

    Channels first before channels last where there are two axes of places, last before first in a sequence; tokens
    without a place in front before those at the end.
    """
    sizes = list(shape)
    if len(sizes) not in (3, 4):
        return []
    del sizes[batch]
    if len(sizes) == 2:
        return _sequences(sizes[0], True, image_size, batch) + _sequences(sizes[1], False, image_size, batch)
    layouts = []
    for channels_last, grid in ((False, sizes[1:]), (True, sizes[:2])):
        if _in_proportion(grid, image_size):
            layouts.append(Layout(tuple(grid), channels_last, batch=batch))
    return layouts


def likely_layout(output, image_size, module=None) -> Layout | None:
    """Return the first of the possible layouts of an output; None where there is none.

    module: that gave it; one of timm's knows whether channels come last.
    """
    if not isinstance(output, torch.Tensor):
        return None
    layouts = possible_layouts(output.shape, image_size)
    if output.dim() == 4 and getattr(module, "output_fmt", "NCHW") == "NHWC":
        layouts.reverse()
    return layouts[0] if layouts else None


def _sequences(length, channels_last, image_size, batch):
    """Return the layouts of a sequence of this length."""
    layouts = []
    for extra in range(min(PLACELESS, length)):
        grid = _grid(length - extra, image_size)
        if grid is None:
            continue
        for front in range(extra, -1, -1):
            end = front + length - extra
            placeless = (*range(front), *range(end, length))
            layouts.append(Layout(grid, channels_last, tuple(range(front, end)), placeless, batch))
    return layouts


def _in_proportion(grid, image_size):
    height, width = image_size
    fits = grid[0] <= height and grid[1] <= width
    return fits and abs(grid[0] * width - grid[1] * height) <= PADDING * max(height, width)


def _grid(count, image_size):
    """Return rows and columns of `count` square patches that cover an image exactly; None where none do."""
    height, width = image_size
    side = math.isqrt(height * width // count)
    if side == 0 or height % side or width % side or count * side**2 != height * width:
        return None
    return height // side, width // side


BANDS = 8  # of rows and of columns, at most, for maps with two axes of places
DRAWS = 5  # of images that are changed, at most: the first is nearly always enough
CHUNK = 4  # changed images at a time: no more memory than explaining one pair takes
POWER = 4  # of the answers, by which the bands are weighed: those that change a place little count little
ORDERED = 0.6  # correlation of the places of a map with the bands that they answer to, at least
WELL_ORDERED = 0.9  # the same for a sequence, where a shift by one token must be noticed
IN_PLACE = 0.9  # of the places of a sequence: those that answer most to their own row and column
FAINT = 0.05  # sharpness of answers that contain no information
TINY = torch.finfo(torch.float32).tiny
EVENLY = 0.7  # of how much more a token answers to one band than to others, for tokens that have no place
MARGIN = 32  # of this part of a side, a strip at the top and at the left that must count


class PlacesError(ValueError):
    """The places of an output cannot be measured. The message says what was observed, without naming the layer."""


@dataclass(frozen=True)
class Agreement:
    """How well the places of a layout answer to their parts of the image."""

    layout: Layout
    in_place: float
    """Of the places, how many answer most to their own row and column, in [0, 1]."""
    order: float
    """Correlation of where places stand with the bands that they answer to: the lower one of rows and columns."""
    placeless: bool
    """Whether no token without a place answers to one band as places do."""
    complete: bool
    """Whether each row and each column of places answers to something."""
    sharpness: float
    """How much more places answer to one band than to all, in [0, 1]: 1 where each answers to a single band."""


@torch.no_grad()
def measure_layout(read, image) -> Layout:
    """Measure how the output of a layer is to be read as a feature map.

    Bands of an image are changed, and what changes in the output with each of them shows where its places stand.

    Args:
        read: Function from images (N, C, H, W) to the output of the layer.
        image: Float (1, C, H, W) that the network takes, not of one colour. It is changed, within its own values.

    Raises:
        PlacesError: The output is no tensor, differs from one call to the next, mixes the images of a batch, has no
            shape of a map, a single place, or places that do not answer to their parts of the image.
    """
    batch = _batch_axis(read, image)
    output = read(image)
    size = " x ".join(map(str, image.shape[2:]))
    shape = f"gives {tuple(output.shape)} for one image of {size}"
    layouts = possible_layouts(output.shape, image.shape[2:], batch)
    groups = {}  # layouts of the same grid and axis of channels
    for layout in layouts:
        if layout.grid != (1, 1):
            groups.setdefault((layout.grid, layout.channels_last), []).append(layout)
    if not layouts:
        raise PlacesError(f"{shape}, which is no map")
    if not groups:
        raise PlacesError(f"gives maps of 1 x 1 for images of {size}, which have no places to distinguish")
    _check_margins(read, image, output, next(iter(groups))[0])
    answers = dict.fromkeys(groups, 0)  # the sum over all draws
    for draw in range(DRAWS):
        tried = image
        if draw:
            tried = _noise_like(image, draw)
        agreements = []
        for key, group in groups.items():
            answers[key] = answers[key] + _answers(read, tried, group[0])
            for layout in group:
                agreements.append(_agreement(answers[key], layout))
        best = _best(agreements) or _in_unusual_order(read, _noise_like(image, DRAWS), answers, groups)
        if best is not None:
            return best
    if _answers_are_even(agreements) and layouts[0].grid != (1, 1):
        return agreements[0].layout
    order = max(agreement.order for agreement in agreements)
    for agreement in agreements:
        if agreement.order == order and not agreement.complete:
            raise PlacesError(f"{shape}, but whole rows or columns of it answer to nothing: images are padded inside")
    raise PlacesError(
        f"{shape}, but its places do not answer to their parts of the image (correlation {order:.2f}, where 1 is in "
        "order): they are shuffled, turned or mixed"
    )


def _noise_like(image, seed):
    """Return noise within the values of an image."""
    low, high = image.aminmax()
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(image.shape, generator=generator).to(image)


def changed(image, axis=2, start=0, end=None) -> torch.Tensor:
    """Copy an image (1, C, H, W), with a band set to the lowest or highest of its values, the farther one.

    axis: 2 for a band of rows, 3 for one of columns; from `start` to before `end`.
    """
    low, high = image.aminmax()
    image = image.clone()
    band = image.narrow(axis, start, (end or image.shape[axis]) - start)
    band.copy_(torch.where(band > (low + high) / 2, low, high))
    return image


def _batch_axis(read, image) -> int:
    """Return the axis of the output along which the images stand."""
    two_images = torch.cat([image, changed(image)])
    two = read(two_images)
    if not isinstance(two, torch.Tensor) or not two.is_floating_point():
        kind = getattr(two, "dtype", type(two).__name__)
        raise PlacesError(f"gives {kind}, not one tensor of real numbers")
    three = read(torch.cat([two_images, image]))
    axes = [axis for axis, lengths in enumerate(zip(two.shape, three.shape, strict=False)) if lengths == (2, 3)]
    if len(axes) != 1:
        raise PlacesError(
            f"gives {tuple(two.shape)} for two images and {tuple(three.shape)} for three: no axis is that of the images"
        )
    axis = axes[0]
    first, _, third = three.movedim(axis, 0)
    for same in (third, two.movedim(axis, 0)[0]):
        if not close(first, same):
            raise PlacesError("gives other values for the same image beside other ones: it mixes the images of a batch")
    return axis


def _check_margins(read, image, output, grid):
    """Raise PlacesError where one side of an image does not count: its map would be misplaced."""
    height, width = image.shape[2:]
    strips = {
        "top": (2, 0, max(height // MARGIN, 1)),
        "left": (3, 0, max(width // MARGIN, 1)),
        "bottom": (2, height - height // min(grid[0], BANDS), height),  # a stride that does not fit leaves out less
        "right": (3, width - width // min(grid[1], BANDS), width),
    }
    for name, strip in strips.items():
        tried = changed(image, *strip)
        if not torch.equal(tried, image) and torch.equal(read(tried), output):
            raise PlacesError(
                f"does not depend on the {name} of the image: the module crops images, and a map of the rest would be "
                "misplaced. Crop them before they are passed"
            )


def _bands_of(layout) -> tuple[int, int]:
    """Return how many bands of rows and of columns are changed: in a sequence, enough to notice a shift by one."""
    rows, columns = layout.grid
    if layout.tokens is None:
        return min(rows, BANDS), min(columns, BANDS)
    return rows, columns


def _answers(read, image, layout) -> torch.Tensor:
    """Return how much each place of an output changes with each band of an image.

    Returns:
        Float (bands of rows, then of columns; places), 1 on average, on the CPU.
    """
    copies = []
    for axis, count in enumerate(_bands_of(layout), 2):
        side = image.shape[axis]
        for number in range(count):
            copies.append(changed(image, axis, number * side // count, (number + 1) * side // count))
    output = read(image)
    channels = -1 if layout.channels_last else 1
    answers = []
    for chunk in torch.cat(copies).split(CHUNK):
        changes = (read(chunk) - output).abs().float().movedim(layout.batch, 0)
        answers.append(changes.sum(dim=channels).flatten(1).cpu())
    answers = torch.cat(answers)
    return answers / answers.mean().clamp(min=TINY)


def _agreement(answers, layout) -> Agreement:
    height, width = layout.grid
    rows, columns = answers.split(_bands_of(layout))
    placeless = _placeless(rows, layout) and _placeless(columns, layout)
    if layout.tokens is not None:
        rows, columns = rows[:, layout.tokens], columns[:, layout.tokens]
    in_row, order_down = _in_band(rows, torch.arange(height).repeat_interleave(width), height)
    in_column, order_across = _in_band(columns, torch.arange(width).repeat(height), width)
    changing = (rows.sum(dim=0) + columns.sum(dim=0)).view(height, width) > 0
    return Agreement(
        layout,
        in_place=(in_row & in_column).float().mean().item(),
        order=min(order_down, order_across),
        placeless=placeless,
        complete=bool(changing.any(dim=0).all() and changing.any(dim=1).all()),
        sharpness=max(_sharpness(rows).mean().item(), _sharpness(columns).mean().item()),
    )


def _placeless(answers, layout) -> bool:
    """Return whether the tokens that have no place answer to all bands more evenly than those that have one."""
    if not layout.placeless or len(answers) == 1:
        return True
    sharpness = _sharpness(answers)
    return bool(sharpness[list(layout.placeless)].mean() <= EVENLY * sharpness[list(layout.tokens)].mean())


def _sharpness(answers):
    """Return how much more each place answers to one band than to all, (places,) in [0, 1]."""
    return (_shares(answers).amax(dim=0) - 1).clamp(min=0) / max(len(answers) - 1, 1)


def _in_band(answers, places, side) -> tuple[torch.Tensor, float]:
    """Return which places answer most to their own band, bool (places,), and the correlation of places and bands."""
    if side == 1:
        return torch.ones(len(places), dtype=torch.bool), 1.0
    if not answers.any():
        return torch.zeros(len(places), dtype=torch.bool), 0.0
    shares = _shares(answers)
    weights = shares**POWER
    centres = (weights * torch.arange(len(answers))[:, None]).sum(dim=0) / weights.sum(dim=0)  # NaN without an answer
    in_band = shares.argmax(dim=0) == places
    seen = centres.isfinite()
    if seen.sum() < 2:
        return in_band, 0.0
    correlation = torch.corrcoef(torch.stack([centres[seen], places[seen].float()]))[0, 1]
    return in_band | ~seen, correlation.nan_to_num(0).item()


def _shares(answers):
    """Return how much more each place answers to each band than to others, and than others: 1 on average."""
    answers = answers / answers.mean(dim=1, keepdim=True).clamp(min=TINY)
    return (answers / answers.mean(dim=0)).nan_to_num(0)  # 0 of a place that never changes


def _best(agreements) -> Layout | None:
    """Return the layout that the image agrees with; None where there is none."""
    ranked = [agreement for agreement in agreements if agreement.placeless and agreement.complete]
    if not ranked:
        return None
    ranked.sort(key=lambda agreement: agreement.in_place + agreement.order, reverse=True)
    best = ranked[0]
    if best.layout.tokens is None:
        accepted = best.order >= ORDERED
    else:
        orders = [agreement.order for agreement in ranked] + [0]
        clearly = best.order >= WELL_ORDERED and 1 - best.order < (1 - orders[1]) / 2
        accepted = best.in_place >= IN_PLACE or clearly
    return best.layout if accepted else None


def _answers_are_even(agreements) -> bool:
    """Return whether each place answers to all of the image, as in deep networks of random weights, and the shape
    allows one layout: a map, or a sequence of places only.
    """
    first = agreements[0]
    if first.layout.placeless or not first.complete or (first.layout.tokens is None and len(agreements) > 1):
        return False
    return first.sharpness <= FAINT and first.order > -ORDERED


def _in_unusual_order(read, image, answers, groups) -> Layout | None:
    """Return the layout of a sequence where each place is the token that answers to its row and column, as Hiera has
    it; the tokens that are left have no place. It must hold for another image too.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    for (grid, channels_last), group in groups.items():
        if group[0].tokens is None:
            return None
        rows, columns = answers[grid, channels_last].split(grid)
        to_rows, to_columns = _shares(rows).clamp(min=TINY).log(), _shares(columns).clamp(min=TINY).log()
        fit = (to_rows[:, None] + to_columns[None]).flatten(0, 1)  # (rows * columns, tokens)
        tokens = linear_sum_assignment(fit.numpy(), maximize=True)[1].tolist()
        placeless = sorted(set(range(fit.shape[1])) - set(tokens))
        layout = Layout(grid, channels_last, tuple(tokens), tuple(placeless), group[0].batch)
        agreement = _agreement(_answers(read, image, layout), layout)
        if agreement.in_place >= IN_PLACE and agreement.placeless:
            return layout
    return None
