"""Figures of counterfactuals: a pair before and after a change, what changed, and where its pixels are from."""

import numpy as np

from utils.explain import Counterfactual
from utils.explain.counterfactual import in_classes
from utils.figures.drawing import closed, file_name, heading, named, new_figure, pixels, show, wrapped

CHANGED = "white"  # outline of what was changed
SOURCE = "yellow"  # outline of where its pixels are from
NAME = 46  # characters of a name that fit below an image


def counterfactual_figure(found: Counterfactual):
    """Both images before and after the change, with the similarity of each pair and the nearest references, if known.

    What was changed is outlined in white; where its pixels are from, in yellow: in image 2, or in a third image.
    """
    explanation = found.explanation
    donor = found.donor
    third = donor is not None and donor is not explanation
    columns = 3 if third else 2
    drawn = new_figure(3.3 * columns, 8)
    axes = drawn.subplots(2, columns)
    rows = [(explanation.images[0], found.nearest_before), (found.edited, found.nearest_after)]
    for row, (images, names) in enumerate(rows):
        for column, image in enumerate(pixels(images, explanation)):
            show(axes[row, column], image)
            if names is not None:
                classes = wrapped(f"nearest training images: {in_classes(names[column])}", NAME)
                nearest = named(f"the very nearest: {names[column][0]}", NAME)
                axes[row, column].set_xlabel(f"{classes}\n{nearest}", fontsize=8)
    for column in range(2):
        axes[0, column].set_title(f"image {column + 1}", fontsize=10)
        _outline(axes[1, column], found.regions[column], CHANGED)
    if third:
        show(axes[0, 2], pixels(donor.images[0], explanation)[1])
        axes[0, 2].set_title("pixels put in are from", fontsize=10)
        axes[0, 2].set_xlabel(named(donor.names[0][1], NAME), fontsize=8)
        axes[1, 2].set_axis_off()
    if donor is not None:
        _outline(axes[0, columns - 1], found.source, SOURCE)
    axes[0, 0].set_ylabel(f"before: similarity {found.before:.3f}")
    axes[1, 0].set_ylabel(f"after: similarity {found.after:.3f}")
    what = f"along the maps of {explanation.source}: {found.sentence()}"
    drawn.suptitle(heading(explanation, what, 44 * columns), fontsize=10)
    name = file_name("counterfactual", explanation, explanation.method, explanation.layer)
    return closed(drawn, name, explanation.caution)


def _outline(axes, region, colour):
    """The border of a region, bool (H, W), drawn at the border of the image too."""
    if not region.any():
        return
    limits = axes.axis()
    frame = np.pad(region.cpu().numpy(), 1)
    height, width = region.shape
    axes.contour(np.arange(-1, width + 1), np.arange(-1, height + 1), frame, [0.5], colors=colour)
    axes.axis(limits)  # which the frame has widened
