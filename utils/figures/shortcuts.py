"""Figure of shortcuts: what each property carries of the score, and what it tells by itself."""

import numpy as np

from utils.figures.drawing import closed, new_figure, nothing, show
from utils.trust import Shortcuts

BLUE = "#0072B2"  # of Okabe and Ito, told apart by the colour-blind
ORANGE = "#E69F00"


def shortcuts_figure(shortcuts: Shortcuts):
    """A row for each property: an image before and after it was made alike, its share of the score, its own AUC.

    Whiskers are 95 % intervals; squares are the shares that go when something else is hidden instead. A score that may
    be nothing is said.
    """
    found = shortcuts.found
    caution = ""
    if shortcuts.score.low <= 0:
        caution = f"This score may be nothing: different pairs lie {shortcuts.score} farther apart than same ones."
    if not found:
        return nothing("No property was tried.", "shortcuts", caution)
    rows = len(found)
    drawn = new_figure(9, 0.9 * rows + 1)
    grid = drawn.subplots(rows, 4, width_ratios=(1, 1, 4, 3), squeeze=False)
    share, alone = (_tall(drawn, grid[:, column]) for column in (2, 3))
    for axes, one in zip(grid, found, strict=True):
        show(axes[0], one.example[0])
        show(axes[1], one.example[1])
        axes[0].set_ylabel(one.name, rotation=0, ha="right", va="center")
    grid[0, 0].set_title("as it is", fontsize=9)
    grid[0, 1].set_title("made alike", fontsize=9)
    places = np.arange(rows)
    _whiskers(share, places, [one.share for one in found])
    elsewhere = [one.elsewhere for one in found]
    if not np.isnan(elsewhere).all():
        named = ", ".join(f"{one.name}: {one.instead}" for one in found if one.instead)
        share.plot(elsewhere, places, "s", color=ORANGE, label=f"hidden instead ({named})")
        drawn.legend(loc="outside lower center", frameon=False, fontsize=8)
    share.set_xlabel("share of the score")
    share.axvline(0, color="grey", linestyle=":")
    _whiskers(alone, places, [one.alone for one in found])
    alone.set(xlabel="AUC by itself (0.5: says nothing)", xlim=(0.3, 1.03))
    alone.axvline(0.5, color="grey", linestyle=":")
    return closed(drawn, "shortcuts", caution)


def _tall(drawn, column):
    """One axes in place of a column of them, with a row for each."""
    grid = column[0].get_gridspec()
    number = column[0].get_subplotspec().colspan.start
    for axes in column:
        axes.remove()
    axes = drawn.add_subplot(grid[:, number])
    axes.set(ylim=(len(column) - 0.5, -0.5), yticks=[])
    return axes


def _whiskers(axes, places, intervals):
    values = np.array([one.value for one in intervals])
    ends = np.array([[one.value - one.low, one.high - one.value] for one in intervals]).T
    axes.errorbar(values, places, xerr=ends.clip(min=0), fmt="o", color=BLUE, capsize=3)
