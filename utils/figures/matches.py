"""Figures of matches: the regions of both images that match each other, and what one point matches.

They say score, decision, layer, residual and both file names. Pyplot knows none, as in `explanations`.
"""

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.patches import Patch, Rectangle

from utils.explain import Matches
from utils.figures.drawing import COLORMAP, OPACITY, closed, file_name, heading, new_figure, overlay, photos, show

# colours that the colour-blind tell apart (Okabe and Ito 2008)
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FADED = 0.75  # of what lies outside all regions: how near it is to white


def matches_figure(matches: Matches, count=5):
    """The `count` strongest mutual matches: a region of each image in one colour, with its number.

    All else is faded; the legend says what each match adds to the inner product, the title what share of it they are
    together. Raises ValueError for more matches than there are colours.
    """
    if count > len(COLOURS):
        raise ValueError(f"{count} matches are too many for one figure: at most {len(COLOURS)}")
    found = matches.mutual(count)
    colours = COLOURS[: len(found)]
    drawn = new_figure(8, 5)
    axes = drawn.subplots(1, 2)
    places = zip(*((match.place1, match.place2) for match in found), strict=True)
    for number, (column, image, ends) in enumerate(
        zip(axes, photos(matches.explanation), places, strict=True), start=1
    ):
        bounds = [_pixels(matches.bounds(place), image) for place in ends]
        show(column, _faded(image, bounds))
        for label, (box, colour) in enumerate(zip(bounds, colours, strict=True), start=1):
            _draw_region(column, box, colour, str(label))
        column.set_title(f"image {number}", fontsize=10)
    handles = [
        Patch(color=colour, label=f"{number}: {match.value:+.3f}")
        for number, (match, colour) in enumerate(zip(found, colours, strict=True), start=1)
    ]
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(found), frameon=False)
    what = (
        f"regions that match each other at {matches.source}, and what each match adds to the inner product: "
        f"{matches.parts_in_words(found)}"
    )
    drawn.suptitle(heading(matches.explanation, what, 90), fontsize=10)
    return closed(drawn, file_name("matches", matches.explanation, matches.layer), matches.explanation.caution)


def point_figure(matches: Matches, point, opacity=OPACITY):
    """The region around a point of image 1, (y, x) in [0, 1), and what it matches, over image 2.

    The colours are shares of its strongest match. opacity: of the map over image 2, in (0, 1].
    """
    drawn = new_figure(8, 4.4)
    axes = drawn.subplots(1, 2)
    first, second = photos(matches.explanation)
    box = _pixels(matches.bounds(point), first)
    show(axes[0], _faded(first, [box]))
    _draw_region(axes[0], box, COLOURS[0], "")
    axes[0].set_title("a region of image 1", fontsize=10)
    matched = matches.matches_of(*point).clamp(min=0).cpu()
    strongest = float(matched.max())
    show(axes[1], overlay(second, matched / (strongest or 1), opacity))
    axes[1].set_title("what it matches in image 2", fontsize=10)
    axes[1].set_xlabel(f"at most {strongest:+.3f} of {matches.cosine:.3f}")
    drawn.colorbar(ScalarMappable(cmap=COLORMAP), ax=axes[1], label="share of the strongest match", shrink=0.8)
    what = f"what the marked region at {matches.source} matches (residual {matches.residual:+.1e})"
    drawn.suptitle(heading(matches.explanation, what, 90), fontsize=10)
    return closed(drawn, file_name("point", matches.explanation, matches.layer), matches.explanation.caution)


def _pixels(bounds, image):
    """Bounds in [0, 1] as rows and columns of an image: (top, left, bottom, right)."""
    height, width = image.shape[:2]
    return tuple(round(share * side) for share, side in zip(bounds, (height, width) * 2, strict=True))


def _faded(image, boxes):
    """The image in full colour inside the boxes; grey and nearly white outside."""
    grey = image.mean(axis=2, keepdims=True)
    faded = np.broadcast_to(grey + FADED * (255 - grey), image.shape).round().astype(np.uint8)
    for top, left, bottom, right in boxes:
        faded[top:bottom, left:right] = image[top:bottom, left:right]
    return faded


def _draw_region(axes, box, colour, label):
    """The outline of a box and its label in the upper left corner."""
    top, left, bottom, right = box
    limits = axes.axis()
    corner = left - 0.5, top - 0.5  # a pixel reaches half a pixel to each side
    axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, linewidth=3))
    axes.axis(limits)  # which a region at the border has widened
    if label:
        patch = {"facecolor": colour, "edgecolor": "none", "pad": 2}
        axes.text(*corner, label, va="top", color="white", fontsize=9, fontweight="bold", bbox=patch)
