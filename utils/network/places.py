"""Where places and channels may stand in the output of a layer: convolutions, channels-last blocks, transformers."""

import math
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment

from .hooks import example_of

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


BANDS = 8  # of rows and of columns, at most, for maps with two axes of places
DRAWS = 5  # of images that are changed, at most: the first tells nearly always
CHUNK = 4  # changed images at a time: no more than explaining one pair takes
POWER = 4  # of the answers, by which the bands are weighed: those that change a place little count little
ORDERED = 0.6  # correlation of the places of a map with the bands that they answer to, at least
WELL_ORDERED = 0.9  # the same for a sequence, where a shift by one token must be told apart
IN_PLACE = 0.9  # of the places of a sequence: those that answer most to their own row and column
FAINT = 0.05  # sharpness of answers that tell nothing
TINY = torch.finfo(torch.float32).tiny
EVENLY = 0.7  # of how much more a token answers to one band than to others, for tokens that have no place
MARGIN = 32  # of this part of a side, a strip at the top and at the left that must count
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # of the largest value


class PlacesError(ValueError):
    """The output of a layer has no places that could be drawn; the message says what was seen."""


@dataclass(frozen=True, eq=False)
class Answers:
    """How much an output changes with each band of the image, in all its places, on the CPU; 1 on average."""

    rows: torch.Tensor
    """(bands of rows, places)."""
    columns: torch.Tensor
    """(bands of columns, places)."""

    def of(self, layout: Layout) -> "Answers":
        """Those of the places of a layout, row by row."""
        if layout.tokens is None:
            return self
        return Answers(self.rows[:, layout.tokens], self.columns[:, layout.tokens])

    def __add__(self, other):
        return Answers(self.rows + other.rows, self.columns + other.columns)


@dataclass(frozen=True)
class Agreement:
    """How well the places of a layout answer to their parts of the image."""

    layout: Layout
    in_place: float
    """Of the places, how many answer most to their own row and column, in [0, 1]."""
    order: float
    """Correlation of where places stand with the bands that they answer to: the lower one of rows and columns."""
    placeless: bool
    """Whether no token that has no place answers to one, as those that have one do."""
    complete: bool
    """Whether each row and each column of places answers to something."""
    sharpness: float
    """How much more places answer to one band than to all, in [0, 1]: 1 where each answers to one alone."""


@torch.no_grad()
def measure_layout(read, images) -> Layout:
    """Measure how the output of a layer is to be read as a feature map.

    Args:
        read: Function from images (N, C, H, W) to the output of the layer.
        images: Float (N, C, H, W), N >= 1, that the network takes. The first one is changed, within its own range of
            values; noise stands for an image of one colour.

    Raises:
        PlacesError: The output is no tensor, differs from one call to the next, mixes the images of a batch, has no
            shape of a map, or its places do not answer to their parts of the image.
    """
    image = with_contrast(images[:1])
    batch = _batch_axis(read, image)
    before = read(image)
    size = tuple(image.shape[2:])
    layouts = possible_layouts(before.shape, size, batch)
    shape = f"gives {tuple(before.shape)} for one image of {' x '.join(map(str, size))}"
    if not layouts:
        raise PlacesError(f"{shape}, which is no map")
    with_places = [layout for layout in layouts if layout.grid != (1, 1)]
    if not with_places:
        return layouts[0]
    _check_margins(read, image, before, with_places[0].grid)
    answers = {}  # of each grid, for channels last (True) and first: the sum over all draws
    for draw in range(DRAWS):
        tried = _noise_like(image, draw) if draw else image
        agreements = []
        for grid in dict.fromkeys(layout.grid for layout in with_places):
            of_grid = [layout for layout in with_places if layout.grid == grid]
            found = _answers(read, tried, of_grid[0])
            if grid in answers:
                found = {last: answers[grid][last] + found[last] for last in found}
            answers[grid] = found
            agreements += [_agreement(found[layout.channels_last], layout) for layout in of_grid]
        best = _best(agreements) or _in_an_order_of_its_own(read, _noise_like(image, DRAWS), answers, with_places)
        if best is not None:
            return best
    if _tells_nothing(agreements):
        return layouts[0]
    order = max(agreement.order for agreement in agreements)
    if any(agreement.order == order and not agreement.complete for agreement in agreements):
        raise PlacesError(f"{shape}, but whole rows or columns of it answer to nothing: images are padded inside")
    raise PlacesError(
        f"{shape}, but its places do not answer to their parts of the image (correlation {order:.2f}, where 1 is in "
        "order): they are shuffled, turned or mixed"
    )


def with_contrast(image) -> torch.Tensor:
    """The image (1, C, H, W); noise, the same each time, where it is of one colour, or none is given, (0, C, H, W)."""
    if len(image) and image.min() < image.max():
        return image
    return example_of(image.shape[2:], 1, image.shape[1]).to(image)


def _noise_like(image, draw):
    """Noise within the values of an image, the same for each number of a draw."""
    low, high = image.aminmax()
    generator = torch.Generator().manual_seed(draw)
    return low + (high - low) * torch.rand(image.shape, generator=generator).to(image)


def changed(image, rows=slice(None), columns=slice(None)) -> torch.Tensor:
    """A copy of an image (1, C, H, W) with a part replaced by the lowest or highest of its values, the farther one."""
    low, high = image.aminmax()
    image = image.clone()
    part = image[:, :, rows, columns]
    image[:, :, rows, columns] = torch.where(part > (low + high) / 2, low, high)
    return image


def bands_of(image, rows: int, columns: int) -> torch.Tensor:
    """Copies of an image (1, C, H, W), each with one of so many bands changed: (rows + columns, C, H, W)."""
    height, width = image.shape[2:]
    copies = []
    for number in range(rows):
        copies.append(changed(image, rows=_band(height, number, rows)))
    for number in range(columns):
        copies.append(changed(image, columns=_band(width, number, columns)))
    return torch.cat(copies)


def close(one, two) -> bool:
    """Whether two outputs are the same up to rounding."""
    return bool((one - two).abs().max() <= TOLERANCE[one.dtype] * one.abs().max())


def _band(side, number, count):
    return slice(number * side // count, (number + 1) * side // count)


def _batch_axis(read, image) -> int:
    """The axis of the output along which the images stand."""
    other = changed(image)
    two = read(torch.cat([image, other]))
    if not isinstance(two, torch.Tensor) or not two.is_floating_point():
        kind = two.dtype if isinstance(two, torch.Tensor) else type(two).__name__
        raise PlacesError(f"gives {kind}, not one tensor of real numbers")
    three = read(torch.cat([image, other, image]))
    lengths = list(zip(two.shape, three.shape, strict=False))
    axes = [axis for axis, pair in enumerate(lengths) if pair == (2, 3)]
    if len(axes) != 1:
        folded = any(short * 3 == long * 2 for short, long in lengths)
        cause = "windows or parts of images stand along the axis of images" if folded else "no axis is that of images"
        raise PlacesError(f"gives {tuple(two.shape)} for two images and {tuple(three.shape)} for three: {cause}")
    axis = axes[0]
    first, _, third = three.movedim(axis, 0)
    if not close(first, third) or not close(three, read(torch.cat([image, other, image]))):
        raise PlacesError("gives something else for the same image each time, at random")
    if not close(two.movedim(axis, 0)[0], first):
        raise PlacesError("gives something else for the same image beside other ones: it mixes the images of a batch")
    return axis


def _check_margins(read, image, before, grid):
    """Raises PlacesError where one side of an image does not count: its map would be misplaced."""
    height, width = image.shape[2:]
    rows, columns = (min(count, BANDS) for count in grid)
    strips = {
        "top": {"rows": slice(max(height // MARGIN, 1))},
        "left": {"columns": slice(max(width // MARGIN, 1))},
        "bottom": {"rows": slice(height - height // rows, None)},  # a stride that does not fit leaves out less
        "right": {"columns": slice(width - width // columns, None)},
    }
    for name, strip in strips.items():
        after = changed(image, **strip)
        if not torch.equal(after, image) and torch.equal(read(after), before):
            raise PlacesError(
                f"does not depend on the {name} of the image: the module crops images, and a map of what is left would "
                "be misplaced. Crop them before they are passed"
            )


def _answers(read, image, layout) -> dict[bool, Answers]:
    """What an output answers to the bands of an image, for channels last (True) and first.

    There are as many bands as a sequence has rows and columns, so that a shift by one is seen; maps need fewer.
    """
    rows, columns = layout.grid
    if layout.tokens is None:
        rows, columns = min(rows, BANDS), min(columns, BANDS)
    before = read(image).movedim(layout.batch, 0)
    sums = {True: [], False: []}
    for copies in bands_of(image, rows, columns).split(CHUNK):
        changes = (read(copies).movedim(layout.batch, 0) - before).abs().float()
        sums[True].append(changes.sum(dim=-1).flatten(1).cpu())
        sums[False].append(changes.sum(dim=1).flatten(1).cpu())
    answers = {}
    for channels_last, parts in sums.items():
        values = torch.cat(parts)
        values = values / values.mean().clamp(min=TINY)
        answers[channels_last] = Answers(values[:rows], values[rows:])
    return answers


def _agreement(answers, layout) -> Agreement:
    height, width = layout.grid
    own = answers.of(layout)
    in_row, order_down = _in_band(own.rows, torch.arange(height).repeat_interleave(width), height)
    in_column, order_across = _in_band(own.columns, torch.arange(width).repeat(height), width)
    changing = (own.rows.sum(dim=0) + own.columns.sum(dim=0)).view(height, width) > 0
    return Agreement(
        layout,
        in_place=(in_row & in_column).float().mean().item(),
        order=min(order_down, order_across),
        placeless=_placeless(answers.rows, layout) and _placeless(answers.columns, layout),
        complete=bool(changing.any(dim=0).all() and changing.any(dim=1).all()),
        sharpness=max(_sharpness(own.rows).mean().item(), _sharpness(own.columns).mean().item()),
    )


def _placeless(answers, layout) -> bool:
    """Whether the tokens that have no place answer to all bands more evenly than those that have one."""
    if not layout.placeless or len(answers) == 1:
        return True
    sharpness = _sharpness(answers)
    return bool(sharpness[list(layout.placeless)].mean() <= EVENLY * sharpness[list(layout.tokens)].mean())


def _sharpness(answers):
    """How much more each place answers to one band than to all, (places,) in [0, 1]."""
    return (_shares(answers).amax(dim=0) - 1).clamp(min=0) / max(len(answers) - 1, 1)


def _in_band(answers, places, side) -> tuple[torch.Tensor, float]:
    """Which places answer most to their own band, bool (places,), and the correlation of places and bands."""
    if side == 1:
        return torch.ones(len(places), dtype=torch.bool), 1.0
    if not answers.any():
        return torch.zeros(len(places), dtype=torch.bool), 0.0
    strongest, centres = _strongest_and_centre(answers)
    seen = centres.isfinite()
    if seen.sum() < 2:
        return strongest == places, 0.0
    pair = torch.stack([centres[seen], places[seen].float()])
    return (strongest == places) | ~seen, torch.corrcoef(pair)[0, 1].nan_to_num(0).item()


def _strongest_and_centre(answers):
    """Of each place, the band that it answers to most, and the centre of all that it answers to, both (places,), in
    bands; the centre of a place that never changes is NaN.
    """
    shares = _shares(answers)
    weights = shares**POWER
    bands = torch.arange(len(answers))[:, None]
    return shares.argmax(dim=0), (weights * bands).sum(dim=0) / weights.sum(dim=0)


def _shares(answers):
    """How much more each place answers to each band than to others, and than others: (bands, places), 1 on average."""
    answers = answers / answers.mean(dim=1, keepdim=True).clamp(min=TINY)
    return (answers / answers.mean(dim=0)).nan_to_num(0)  # 0 of a place that never changes


def _best(agreements) -> Layout | None:
    """The layout that the image agrees with; None where there is none."""
    agreements = [agreement for agreement in agreements if agreement.placeless and agreement.complete]
    if not agreements:
        return None
    ranked = sorted(agreements, key=lambda agreement: agreement.in_place + agreement.order, reverse=True)
    best = ranked[0]
    if best.layout.tokens is None:
        return best.layout if best.order >= ORDERED else None
    if best.in_place >= IN_PLACE:
        return best.layout
    second = ranked[1].order if len(ranked) > 1 else 0
    clearly = 1 - best.order < (1 - second) / 2
    return best.layout if best.order >= WELL_ORDERED and clearly else None


def _tells_nothing(agreements) -> bool:
    """Whether each place answers to the whole image alike, as in deep networks of random weights, and the shape allows
    one layout: a map, or a sequence of places alone.
    """
    first = agreements[0]
    if first.layout.placeless or not first.complete or (first.layout.tokens is None and len(agreements) > 1):
        return False
    return first.sharpness <= FAINT and first.order > -ORDERED


def _in_an_order_of_its_own(read, other, answers, layouts) -> Layout | None:
    """The layout of a sequence whose places stand in no known order: each token is put where it answers from.

    It must hold for another image too.
    """
    if layouts[0].tokens is None:
        return None
    for grid, channels_last in dict.fromkeys((layout.grid, layout.channels_last) for layout in layouts):
        layout = _order_of(answers[grid][channels_last], grid, channels_last, layouts[0].batch)
        agreement = _agreement(_answers(read, other, layout)[channels_last], layout)
        if agreement.in_place >= IN_PLACE and agreement.placeless:
            return layout
    return None


def _order_of(answers, grid, channels_last, batch) -> Layout:
    """The layout where each place is the token that answers to its row and column; those that are left have none."""
    to_rows = _shares(answers.rows).clamp(min=TINY).log()  # (rows, tokens)
    to_columns = _shares(answers.columns).clamp(min=TINY).log()  # (columns, tokens)
    fit = (to_rows[:, None] + to_columns[None]).flatten(0, 1)  # (rows * columns, tokens)
    _, tokens = linear_sum_assignment(fit.numpy(), maximize=True)
    placeless = tuple(sorted(set(range(fit.shape[1])) - set(tokens.tolist())))
    return Layout(grid, channels_last, tuple(tokens.tolist()), placeless, batch)
