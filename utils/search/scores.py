"""What the network says to pairs, as a table."""

import pandas as pd

from utils.explain import Explanation
from utils.trust import Verdict
from utils.trust.verdict import PARTS


def scores_table(explanation: Explanation, verdict: Verdict | None = None) -> pd.DataFrame:
    """A row for each pair, numbered from 1: names, true classes, similarity, distance, probability of one class with
    the ends of its 95 % interval, decision and whether it is right; with a verdict, its words; the caution, if there
    is one.

    What is known of no pair has no column.
    """
    rows = []
    for index in range(len(explanation)):
        name1, name2 = explanation.names[index]
        classes = explanation.classes and explanation.classes[index]
        class1, class2 = classes or (None, None)
        row = {"image 1": name1, "image 2": name2, "class 1": class1, "class 2": class2}
        row |= {"similarity": explanation.similarity[index].item(), "distance": explanation.distance[index].item()}
        if explanation.calibration is not None:
            columns = ("probability", "probability from", "probability to")
            row |= dict(zip(columns, explanation.probability[index].tolist(), strict=True))
        row |= {"decision": explanation.decision(index), "right": _words(explanation.right(index))}
        if verdict is not None:
            row |= {f"map of {part}": verdict.word(index, part) for part in PARTS}
        if explanation.caution:
            row["caution"] = explanation.caution
        rows.append(row)
    table = pd.DataFrame(rows).dropna(axis="columns", how="all").round(4)
    return table.set_index(pd.RangeIndex(1, len(table) + 1, name="rank"))


def _words(right):
    return right if right is None else "yes" if right else "no"
