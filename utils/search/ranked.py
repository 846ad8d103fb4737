"""What the network says to pairs, as a table."""

import numpy as np
import pandas as pd

from ..data.splits import Splits
from ..explanations.explanation import Explanation
from ..trained import Trained
from ..trust.faithfulness import PARTS, Verdict


def scores_table(explanation: Explanation, verdict: Verdict | None = None) -> pd.DataFrame:
    """A row for each pair, numbered from 1: names, true classes, similarity, distance, probability of one class with
    the ends of its 95 % interval, decision and whether it is right; with a verdict, its words; the warning, if there
    is one.

    What is known of no pair has no column.
    """
    rows = []
    for index in range(len(explanation)):
        name1, name2 = explanation.names[index]
        classes = explanation.classes(index)
        class1, class2 = classes or (None, None)
        row = {"image 1": name1, "image 2": name2, "class 1": class1, "class 2": class2}
        row |= {"similarity": explanation.similarity[index].item(), "distance": explanation.distance[index].item()}
        if explanation.source.calibration is not None:
            columns = ("probability", "probability from", "probability to")
            row |= dict(zip(columns, explanation.probability[index].tolist(), strict=True))
        row |= {"decision": explanation.decision(index), "right": _words(explanation.correct(index))}
        if verdict is not None:
            row |= {f"map of {part}": verdict.word(index, part) for part in PARTS}
        if explanation.source.warning:
            row["warning"] = explanation.source.warning
        rows.append(row)
    table = pd.DataFrame(rows).dropna(axis="columns", how="all").round(4)
    return table.set_index(pd.RangeIndex(1, len(table) + 1, name="rank"))


def _words(right):
    return right if right is None else "yes" if right else "no"


def worst_mistakes(trained: Trained, splits: Splits, count=6) -> Explanation:
    """The test pairs decided wrongly that lie farthest beyond the threshold, worst first, explained.

    At most `count`, and none where no mistake was made. A pair that is left undecided is no mistake.
    """
    beyond, decided = _beyond(trained, splits)
    wrong = decided & ((beyond > 0) != splits.test_pairs.labels)
    return _explained(trained, splits, _first(splits.test_pairs, -np.abs(beyond), wrong, count))


def surest(trained: Trained, splits: Splits, count=6) -> Explanation:
    """The test pairs that lie farthest beyond the threshold on either side, rightly decided or not, surest first."""
    beyond, decided = _beyond(trained, splits)
    return _explained(trained, splits, _first(splits.test_pairs, -np.abs(beyond), decided, count))


def most_uncertain(trained: Trained, splits: Splits, count=6) -> Explanation:
    """The test pairs nearest to the threshold, the nearest first."""
    beyond, _ = _beyond(trained, splits)
    return _explained(trained, splits, _first(splits.test_pairs, np.abs(beyond), np.ones(len(beyond), bool), count))


def _beyond(trained, splits):
    """How far each test pair lies beyond the threshold, as a share of what is possible on its side: float (P,), from -1
    (one embedding, "same") to 1 (opposite ones, "different"); and whether it is decided, bool (P,).
    """
    distances = trained.distances(splits, splits.test_pairs)
    threshold = trained.threshold
    room = np.where(distances > threshold, 2 - threshold, threshold)
    same_up_to, different_from = trained.band or (threshold, threshold)
    decided = (distances <= same_up_to) | (distances > different_from)
    return (distances - threshold) / room, decided


def _first(pairs, values, chosen, count):
    """The `count` chosen pairs of the lowest values, as indices; of two images that are a pair twice, the first."""
    if count < 1:
        raise ValueError(f"count: {count} is refused: at least 1 pair is looked for")
    found = {}
    for index in np.argsort(values, kind="stable").tolist():
        images = frozenset((int(pairs.first[index]), int(pairs.second[index])))
        if chosen[index]:
            found.setdefault(images, index)
        if len(found) == count:
            break
    return list(found.values())


def _explained(trained, splits, indices) -> Explanation:
    pairs, paths = splits.test_pairs, splits.folder.paths
    files = [(paths[pairs.first[index]], paths[pairs.second[index]]) for index in indices]
    if not files:
        return trained.explain((paths[pairs.first[0]], paths[pairs.second[0]]))[:0]
    return trained.explain(*files)
