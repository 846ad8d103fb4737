"""Figure of suspect labels: each beside its nearest image of the class that it looks like, explained."""

from utils.figures.drawing import OPACITY, closed, nothing, wrapped
from utils.figures.explanations import figure
from utils.trained import Trained
from utils.trust import Suspects, judge

PAIRS = 3  # in one figure
WIDTH = 90  # characters that fit above a pair


def suspects_figure(trained: Trained, suspects: Suspects, count=PAIRS, opacity=OPACITY):
    """The worst suspects, `count` at most, with the maps of the pairs: what makes them look alike, and what does not.

    What is suspected stands above each pair, and how faithful its maps are: up to 108 network passes a pair. Without
    suspects the figure says so.
    """
    pairs = suspects.pairs(count)
    if not pairs:
        return nothing("No label is suspected: all images look like their own class.", "suspects", trained.caution)
    explanation = trained.explain(*pairs)
    drawn = figure(explanation, judge(trained.network, explanation, trained.config.seed), opacity=opacity)
    drawn.set_figheight(drawn.get_figheight() + 0.8 * len(pairs))  # for what is suspected
    for panel, row in zip(drawn.subfigs, suspects.table(count).itertuples(), strict=True):
        _, image, label, suggested, quality, *_ = row
        suspicion = f"Suspect label: {image}\n{label}, but like {suggested} to the network (quality {quality:.3f})"
        panel.suptitle(f"{wrapped(suspicion, WIDTH)}\n\n{panel.get_suptitle()}", fontsize=11)
    return closed(drawn, "suspects", explanation.caution)
