"""Where the cells of a map lie in the image, without asking the project: patches are planted, and the cells answer."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from faults.outcomes import REFUSED, RIGHT, WRONG, Outcome, attempt
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils import Cut, explain

BLOCKS = 3  # along a side of the image, at most
CELLS = 4  # single cells that are planted in finer maps
FINE = 6  # rows and columns of a finer map, at least
DRAWS = 2  # of images
STRENGTH = 3.0  # of a planted colour; the image has a standard deviation of 1
AGREEMENT = 0.2  # of the answers with the places; by chance it is 0
SHARE = 0.75  # of the cells whose peak must be near
OFF_CENTRE = 0.3  # of the weight in the middle of a kernel: what all others are scaled to, in sum
PAIRS = (1, 2, 8)  # that are explained at a time
SAME = 1e-3  # of the largest value, of a map that is computed alone and in a batch
NEAR = 1 / 6  # of a side of the map; convolutions without padding shift its cells
DEAF = 1e-4  # of the largest answer to a block
CORRELATION = 0.999


@dataclass(frozen=True)
class Answers:
    """What a map says to planted patches."""

    grid: tuple[int, int]
    """Rows and columns of the map."""
    blocks: float
    """Correlation over blocks and cells of the answers with the nearness of both."""
    rival: float
    """The same of the best other order of the places: turned, mirrored, by columns, or shifted."""
    cells: float
    """Share of single cells, planted alone, whose map changes most near them; NaN without."""
    problem: str = ""
    """What is wrong with the map, whatever its places are."""

    @property
    def complaint(self) -> str:
        """What is wrong with the places; empty if they are right."""
        if self.problem:
            return self.problem
        if not self.blocks > max(AGREEMENT, self.rival) or self.cells < SHARE:
            return (
                f"blocks answer in their places by {self.blocks:.2f}, in others by {self.rival:.2f}, "
                f"and {self.cells:.2f} of the cells near theirs"
            )
        return ""


@torch.no_grad()
def plant(read, size, channels=3, seed=0) -> Answers:
    """Change one patch of an image at a time, and see where the map changes.

    Args:
        read: A function from images (N, channels, height, width) to maps (N, C, rows, columns).
        size: Height and width of the images.
        channels: Of the images.
        seed: Of the images and of the choice of cells.

    Returns:
        The answers to blocks of the image (at most 3 x 3) and, where the map is finer, to single cells.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, channels, *size, generator=generator)
    alone = read(image)
    grid = tuple(alone.shape[2:])
    coarse = (min(grid[0], BLOCKS), min(grid[1], BLOCKS))
    count = coarse[0] * coarse[1]
    patches = [(block, coarse) for block in range(count)]
    if min(grid) >= FINE:
        chosen = torch.randperm(grid[0] * grid[1], generator=generator)[:CELLS].tolist()
        patches += [(cell, grid) for cell in chosen]
    changes = torch.zeros(len(patches), *grid)
    for _ in range(DRAWS):
        image = torch.randn(1, channels, *size, generator=generator)
        colour = torch.randn(1, channels, 1, 1, generator=generator)
        colour = STRENGTH * colour / colour.square().mean().sqrt()
        images = [image]
        for place, parts in patches:
            images.append(image + colour * patch_of(place, parts, grid, size))
        maps = read(torch.cat(images))
        if len(maps) != len(images) or maps.shape[1:] != alone.shape[1:]:
            problem = f"{len(images)} images give a map {tuple(maps.shape)}, one {tuple(alone.shape)}"
            return Answers(grid, 0, 0, 0, problem)
        if not (maps[0] - read(image)[0]).abs().max() <= SAME * maps[0].abs().max():
            return Answers(grid, 0, 0, 0, "a map is another one in a batch than alone")
        change = maps[1:] - maps[:1]
        heard = change[:count].abs().flatten(1).amax(dim=1)
        if not heard.min() > DEAF * heard.max():
            return Answers(grid, 0, 0, 0, f"no cell answers to block {heard.argmin().item()} of {coarse}")
        with_place = change.flatten(2).std(dim=2).amax(dim=0) > 0  # not the tokens that have no place
        change = change[:, with_place]
        for group in (change[:count], change[count:]):
            group -= group.mean(dim=0, keepdim=True)  # what a cell answers to a patch wherever it is
        changes += change.abs().sum(dim=1)
    answers = F.adaptive_avg_pool2d(changes[:count, None], coarse).flatten(1)  # (blocks, places)
    answers = answers / answers.mean(dim=0, keepdim=True)  # the middle of the image answers to all
    agreement, *others = [agreement_of(answers[:, order], coarse) for order in orders_of(coarse)]
    near = []
    for (cell, _), change in zip(patches[count:], changes[count:], strict=True):
        row, column = divmod(cell, grid[1])
        peak_row, peak_column = divmod(change.argmax().item(), grid[1])
        rows_off, columns_off = abs(row - peak_row), abs(column - peak_column)
        near.append(rows_off <= max(1, NEAR * grid[0]) and columns_off <= max(1, NEAR * grid[1]))
    return Answers(grid, agreement, max(others), torch.tensor(near).float().mean().item())


def agreement_of(answers, grid) -> float:
    """Correlation of what the places answer to the blocks, (blocks, places), with how near they are to them."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).float()
    nearness = (-torch.cdist(places, places).square()).exp()
    return torch.corrcoef(torch.stack([answers.flatten(), nearness.flatten()]))[0, 1].item()


def orders_of(grid) -> list[torch.Tensor]:
    """Orders in which the places of a map could stand, the right one first; all others differ from it."""
    places = torch.arange(grid[0] * grid[1]).view(grid)
    orders = [places, places.flip(0), places.flip(1), places.flip(0, 1), places.T.reshape(grid)]
    if grid[0] == grid[1]:
        orders += [places.T.flip(0), places.T.flip(1), places.T.flip(0, 1)]
    orders += [places.flatten().roll(shift) for shift in range(1, places.numel())]
    orders = [order.flatten() for order in orders]
    return [orders[0], *(order for order in orders[1:] if not torch.equal(order, orders[0]))]


@torch.no_grad()
def sharpen(module):
    """Make the middle of each kernel count most, so that a deep map answers to a patch in its own place.

    With random weights a cell of a deep map sees the whole image nearly evenly. Where the cells lie does not depend on
    the weights: what is found with these holds for those that the network had when its layers were read.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size != part.stride:
            height, width = part.kernel_size
            scale = torch.full((height, width), OFF_CENTRE / (height * width))
            scale[(height - 1) // 2 : height // 2 + 1, (width - 1) // 2 : width // 2 + 1] = 1
            part.weight.mul_(scale)
        if isinstance(part, _BatchNorm):
            part.reset_running_stats()


def patch_of(place, parts, grid, size) -> torch.Tensor:
    """Which pixels, bool (height, width), belong to a place of an image that is cut into rows and columns of parts.

    Half a cell of the map more at the top and at the left: kernels of odd size with a stride stand there, those that
    cut the image into patches in the middle of a cell.
    """
    row, column = divmod(place, parts[1])
    inside = torch.zeros(size, dtype=torch.bool)
    top, bottom = round((row / parts[0] - 0.5 / grid[0]) * size[0]), round((row + 1) / parts[0] * size[0])
    left, right = round((column / parts[1] - 0.5 / grid[1]) * size[1]), round((column + 1) / parts[1] * size[1])
    inside[max(top, 0) : bottom, max(left, 0) : right] = True
    return inside


def evidence_by_hooks(module, layer, embed, restore, images) -> torch.Tensor:
    """The products of a layer's output and the gradient of the distances, by a plain hook and a full backward pass.

    Args:
        module: The module that holds the layer.
        layer: The submodule whose output is read.
        embed: A function from images (N, 3, H, W) to vectors (N, D).
        restore: A function that brings what has the shape of the output to a map (N, C, rows, columns). It is written
            from the source of the model. Tokens without a place are left out.
        images: Pairs (B, 2, 3, H, W).

    Returns:
        Float (B, 2, H, W). What tokens without a place contribute stands everywhere alike.
    """
    kept = []

    def keep(part, inputs, output):
        kept.append(output if isinstance(output, torch.Tensor) else output[0])

    handle = layer.register_forward_hook(keep)
    vectors = F.normalize(embed(images.flatten(0, 1)), dim=1)
    handle.remove()
    pairs = vectors.unflatten(0, (-1, 2))
    (gradient,) = torch.autograd.grad((pairs[:, 0] - pairs[:, 1]).norm(dim=1).sum(), kept)
    products = restore(kept[0] * gradient).sum(dim=1, keepdim=True).detach()
    return F.interpolate(products, size=images.shape[3:], mode="bilinear")[:, 0].unflatten(0, (-1, 2))


def lowest_correlation(found, expected) -> float:
    """The lowest correlation over places of maps (B, 2, H, W) with those expected."""
    correlations = []
    for one, other in zip(found.flatten(0, 1), expected.flatten(0, 1), strict=True):
        correlations.append(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item())
    return min(correlations)


def complaint_of(case) -> str:
    """What is wrong with the maps of a module in a Cut; empty if nothing is.

    Args:
        case: The module, its layer, and the truth (`orders.Case`).

    Raises:
        ValueError: As `Cut` does, for a layer that it refuses.
    """
    torch.manual_seed(0)
    module = case.build().eval().double()  # what tokens without a place carry may be thousands of times the rest
    if case.embed is None:
        embed = module
        network = Cut(module, layer=case.layer)
    else:
        embed = partial(case.embed, module)
        network = Cut(module, layer=case.layer, forward=embed)
    layer = module.get_submodule(case.layer)
    for count in PAIRS:
        images = torch.randn(count, 2, case.colours, *case.size, dtype=torch.float64)
        found = explain(network, images, 0.5, method="hirescam")
        with torch.no_grad():
            vectors = F.normalize(embed(images.flatten(0, 1)), dim=1).unflatten(0, (-1, 2))
        expected = (vectors[:, 0] - vectors[:, 1]).norm(dim=1)
        if not torch.allclose(found.distance, expected, atol=1e-4):
            return f"{count} pairs have distances {found.distance.tolist()}, not {expected.tolist()}"
        if case.restore is not None:
            right = evidence_by_hooks(module, layer, embed, case.restore, images)
            agreement = lowest_correlation(found.evidence, right)
            if not agreement > CORRELATION:
                return f"maps of {count} pairs correlate with the right ones by {agreement:.2f}"
    sharpen(module)
    return plant(lambda images: network.features(images.double()), case.size, case.colours).complaint


def outcome_of(name, find_complaint, allowed=(RIGHT, REFUSED), names=()) -> Outcome:
    """What comes of reading a map.

    Args:
        name: Of the case.
        find_complaint: A function that returns what is wrong with the map, "" for nothing, or raises an error.
        allowed: Kinds of outcomes that do; another one is wrong.
        names: A refusal must hold one of them.

    Returns:
        The outcome. A ValueError that the project raises itself is a refusal.
    """
    outcome = attempt(name, find_complaint, lambda complaint: complaint, names, of_program=True)
    if outcome.kind in (RIGHT, REFUSED) and outcome.kind not in allowed:
        return Outcome(WRONG, f"{outcome.note} ({outcome.kind}, but only {allowed[0]} will do)")
    return outcome


def outcome_of_case(name, case) -> Outcome:
    """What comes of a module in a Cut (`orders.Case`)."""
    return outcome_of(name, lambda: complaint_of(case), case.outcomes, (case.layer, "Cut", "image"))
