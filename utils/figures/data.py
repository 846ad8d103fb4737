"""Figures of the images themselves: near-duplicates."""

from pathlib import Path

import numpy as np

from utils.data import ImageFolder, contradictions, groups_of_several
from utils.figures.drawing import closed, named, new_figure, nothing, photo, show

WRONG = "tab:red"
WIDTH = 20  # characters below an image


def duplicates_figure(folder: ImageFolder, duplicates: np.ndarray, rows=6, columns=5, value_range=None):
    """Groups of near-duplicates, one row each, with class and file below each image; those under several classes first,
    framed. At most `rows` groups of `columns` images, and how many more there are; a sentence where there is none.

    duplicates: int64 (N,), the index of the first image of each group, as `near_duplicates` returns them.
    value_range: of `image` in config.yml.
    """
    wrong = contradictions(duplicates, folder.labels)
    right = [group for group in groups_of_several(duplicates) if len(np.unique(folder.labels[group])) == 1]
    groups = wrong + right
    if not groups:
        return nothing(f"No near-duplicates among {len(folder.paths)} images.", "duplicates")
    shown = groups[:rows]
    columns = min(columns, max(map(len, shown)))
    figure = new_figure(max(1.9 * columns, 5), 2.2 * len(shown) + 0.5)
    axes = figure.subplots(len(shown), columns, squeeze=False)
    for row, (line, group) in enumerate(zip(axes, shown, strict=True)):
        for place, index in zip(line, group, strict=False):
            image = photo(folder.paths[index], value_range)
            _show_named(place, folder, index, image, WRONG if row < len(wrong) else None)
        for place in line[len(group) :]:
            place.set_axis_off()
        if len(group) > columns:
            line[-1].set_title(f"and {len(group) - columns} more", fontsize=8)
    figure.suptitle(_heading(len(groups), len(wrong), len(shown)), fontsize=10)
    return closed(figure, "duplicates")


def _show_named(axes, folder, index, image, colour):
    path = Path(folder.paths[index])
    show(axes, image)
    axes.set_xlabel(f"{named(path.parent.name, WIDTH)}\n{named(path.name, WIDTH)}", fontsize=8, color=colour or "black")
    if colour:
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=3)


def _heading(groups, wrong, shown):
    more = f"; the first {shown} are shown" if shown < groups else ""
    text = f"{groups} group{'s' * (groups > 1)} of near-duplicates{more}"
    if not wrong:
        return text
    return f"{text}\nframed: {wrong} under several classes, so that a label is wrong"
