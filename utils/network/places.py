"""Where the places of an image stand in the output of a layer: measured, for a shape alone may deceive.

Bands of rows, then bands of columns, of an image are changed, one at a time. The places of a feature map answer most to
the bands that they stand for; nothing else in the output of a layer does.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment

from utils.network.hooks import example_of
from utils.network.maps import Layout, possible_layouts

BANDS = 8  # of rows and of columns, at most, for maps with two axes of places
CHUNK = 16  # changed images at a time
SHARPNESS = 4  # power of the answers by which the bands are weighed: those that change a place little count little
ORDERED = 0.6  # correlation of the places of a map with the bands that they answer to, at least
WELL_ORDERED = 0.9  # the same for a sequence, where a shift by one token must be told apart
IN_PLACE = 0.9  # of the places of a sequence: those that answer most to their own row and column
EVENLY = 0.7  # of how much more a token answers to one band than to others, for tokens that have no place
MARGIN = 32  # of this part of a side, a strip at the top and at the left that must count
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # of the largest value


class PlacesError(ValueError):
    """The output of a layer has no places that could be drawn; the message says what was seen."""


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
    _check_margins(read, image, before)
    for tried in (image, _noise_like(image)):  # a photograph may be nearly of one colour
        agreements = []
        for grid in dict.fromkeys(layout.grid for layout in with_places):
            agreements += _agreements(read, tried, [layout for layout in with_places if layout.grid == grid])
        best = _best(agreements)
        if best is not None:
            return best
    if with_places[0].tokens is not None:
        best = _in_an_order_of_its_own(read, image, with_places)
        if best is not None:
            return best
    order = max(agreement.order for agreement in agreements)
    if any(agreement.order == order and not agreement.complete for agreement in agreements):
        raise PlacesError(f"{shape}, but whole rows or columns of it answer to nothing: images are padded inside")
    raise PlacesError(
        f"{shape}, but its places do not answer to their parts of the image (correlation {order:.2f}, where 1 is in "
        "order): they are shuffled, turned or mixed"
    )


def with_contrast(image) -> torch.Tensor:
    """The image (1, C, H, W); noise, the same each time, where it is of one colour."""
    low, high = image.aminmax()
    if low < high:
        return image
    return example_of(image.shape[2:], 1, image.shape[1]).to(image)


def _noise_like(image):
    """Noise within the values of an image, the same each time."""
    low, high = image.aminmax()
    generator = torch.Generator().manual_seed(0)
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


def _check_margins(read, image, before):
    """Raises PlacesError where the top or the left of an image does not count: its map would lie askew."""
    height, width = (max(side // MARGIN, 1) for side in image.shape[2:])
    for name, strip in (("top", {"rows": slice(height)}), ("left", {"columns": slice(width)})):
        after = changed(image, **strip)
        if not torch.equal(after, image) and torch.equal(read(after), before):
            raise PlacesError(
                f"does not depend on the {name} of the image: the module crops images, and a map of what is left would "
                "lie askew. Crop them before they are passed"
            )


def _agreements(read, image, layouts) -> list[Agreement]:
    """How well layouts of one grid agree with the image."""
    rows, columns = height, width = layouts[0].grid
    if layouts[0].tokens is None:
        rows, columns = min(height, BANDS), min(width, BANDS)
    down, across = _answers(read, image, layouts[0].batch, rows, columns)
    place_down = torch.arange(height).repeat_interleave(width)
    place_across = torch.arange(width).repeat(height)
    agreements = []
    for layout in layouts:
        by_rows, by_columns = down[layout.channels_last], across[layout.channels_last]
        in_row, order_down = _agreement(_of_places(by_rows, layout), place_down, height)
        in_column, order_across = _agreement(_of_places(by_columns, layout), place_across, width)
        changes = _of_places(by_rows, layout).sum(dim=0) + _of_places(by_columns, layout).sum(dim=0)
        answering = changes.view(height, width) > 0
        agreements.append(
            Agreement(
                layout,
                in_place=(in_row & in_column).float().mean().item(),
                order=min(order_down, order_across),
                placeless=_placeless(by_rows, layout) and _placeless(by_columns, layout),
                complete=bool(answering.any(dim=0).all() and answering.any(dim=1).all()),
            )
        )
    return agreements


def _answers(read, image, batch, rows, columns) -> tuple[dict, dict]:
    """How much an output changes with each band of rows, and of columns: (bands, places), on the CPU, for channels last
    (True) and for channels first (False).
    """
    before = read(image).movedim(batch, 0)
    sums = {True: [], False: []}
    for copies in bands_of(image, rows, columns).split(CHUNK):
        changes = (read(copies).movedim(batch, 0) - before).abs().float()
        sums[True].append(changes.sum(dim=-1).flatten(1).cpu())
        sums[False].append(changes.sum(dim=1).flatten(1).cpu())
    both = {channels_last: torch.cat(parts) for channels_last, parts in sums.items()}
    down = {channels_last: answers[:rows] for channels_last, answers in both.items()}
    across = {channels_last: answers[rows:] for channels_last, answers in both.items()}
    return down, across


def _of_places(answers, layout):
    return answers if layout.tokens is None else answers[:, layout.tokens]


def _placeless(answers, layout) -> bool:
    """Whether the tokens that have no place answer to all bands more evenly than those that have one."""
    if not layout.placeless or len(answers) == 1:
        return True
    strongest = _shares(answers).amax(dim=0) - 1  # 0 of a token that answers to all bands alike
    with_place = strongest[list(layout.tokens)].mean()
    return bool(strongest[list(layout.placeless)].mean() <= EVENLY * with_place)


def _agreement(answers, places, side) -> tuple[torch.Tensor, float]:
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
    weights = shares**SHARPNESS
    bands = torch.arange(len(answers))[:, None]
    return shares.argmax(dim=0), (weights * bands).sum(dim=0) / weights.sum(dim=0)


def _shares(answers):
    """How much more each place answers to each band than to others, and than others: (bands, places), 1 on average."""
    answers = answers / answers.mean(dim=1, keepdim=True).clamp(min=torch.finfo(answers.dtype).tiny)
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


def _in_an_order_of_its_own(read, image, layouts) -> Layout | None:
    """The layout of a sequence whose places stand in no known order: each token is put where it answers from.

    It must hold for a second image too.
    """
    other = image.flip(2, 3)
    for grid, channels_last in dict.fromkeys((layout.grid, layout.channels_last) for layout in layouts):
        down, across = _answers(read, image, layouts[0].batch, *grid)
        layout = _order_of(down[channels_last], across[channels_last], grid, channels_last, layouts[0].batch)
        agreement = _agreements(read, other, [layout])[0]
        if agreement.in_place >= IN_PLACE and agreement.placeless:
            return layout
    return None


def _order_of(down, across, grid, channels_last, batch) -> Layout:
    """The layout where each place is the token that answers to its row and column; those that are left have none."""
    tiny = torch.finfo(down.dtype).tiny
    to_rows = _shares(down).clamp(min=tiny).log()  # (rows, tokens)
    to_columns = _shares(across).clamp(min=tiny).log()  # (columns, tokens)
    fit = (to_rows[:, None] + to_columns[None]).flatten(0, 1)  # (rows * columns, tokens)
    _, tokens = linear_sum_assignment(fit.numpy(), maximize=True)
    placeless = tuple(sorted(set(range(fit.shape[1])) - set(tokens.tolist())))
    return Layout(grid, channels_last, tuple(tokens.tolist()), placeless, batch)
