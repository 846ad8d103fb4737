"""Many pairs to look through: small maps, what is true and what was decided; a click opens the viewer of a pair."""

from utils.config import LAST
from utils.explain import Explanation, decompose
from utils.figures.drawing import check_verdict, file_name
from utils.figures.explanations import NOTHING
from utils.figures.grid import caption, judgement
from utils.network import Explainable
from utils.pages.html import Element, component
from utils.pages.viewer import view_content
from utils.trust import Verdict


def grid(explanation: Explanation, network: Explainable | None = None, verdict: Verdict | None = None) -> Element:
    """The pairs of an explanation side by side; a click, or Enter, opens the viewer of one, Escape closes it.

    Args:
        explanation: Of any number of pairs.
        network: The one that was explained; with it, viewers show what matches what at its last feature map, where the
            sum over places is exact.
        verdict: On this explanation; without one, each pair says that its maps were not judged.

    Raises:
        ValueError: The verdict is of another explanation; or the network is another one, or has more than average
            pooling and one linear layer behind its last feature map.
    """
    check_verdict(verdict, explanation)
    pairs = []
    for index, pair in enumerate(explanation):
        matches = network and decompose(network, pair, LAST)
        content = view_content(pair, verdict and verdict[index], matches)
        words = f"{caption(pair).strip()} {judgement(verdict, index)}"
        pairs.append({"caption": words, "right": pair.right(), "view": content})
    name = file_name("pairs", explanation[0], str(len(pairs))) if pairs else "pairs_nothing"
    title = f"{len(pairs)} pairs" if pairs else NOTHING
    content = {"pairs": pairs, "nothing": NOTHING}
    scripts, styles = ["viewer.js", "grid.js"], ["viewer.css", "grid.css"]
    return component("mountGrid", content, name, title, scripts, styles, explanation.caution)
