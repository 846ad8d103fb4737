"""Scores of explained pairs in a table, and test pairs in the order of how certain or incorrect they are."""

import numpy as np
import pandas as pd

from ..data.splits import Splits
from ..explanations.explanation import Explanation
from ..trained import Trained
from ..trust.faithfulness import PARTS, Verdict

CORRECT = {True: "yes", False: "no", None: None}


def scores_table(explanation: Explanation, verdict: Verdict | None = None) -> pd.DataFrame:
    """Tabulate the scores of pairs, a row for each, numbered from 1.

    The columns: names, actual classes, similarity, distance, probability of one class with the ends of its 95 %
    interval, decision, and whether it is right; with a verdict, its words; the warning. Columns of which nothing is
    known are left out.
    """
    rows = []
    for index, (name1, name2) in enumerate(explanation.names):
        row = {"image 1": name1, "image 2": name2}
        row["class 1"], row["class 2"] = explanation.classes(index) or (None, None)
        row["similarity"] = explanation.similarity[index].item()
        row["distance"] = explanation.distance[index].item()
        if explanation.source.calibration is not None:
            row["probability"], row["probability from"], row["probability to"] = explanation.probability[index].tolist()
        row["decision"] = explanation.decision(index)
        row["correct"] = CORRECT[explanation.correct(index)]
        if verdict is not None:
            for part in PARTS:
                row[f"map of {part}"] = verdict.word(index, part)
        row["warning"] = explanation.source.warning or None
        rows.append(row)
    table = pd.DataFrame(rows).dropna(axis="columns", how="all").round(4)
    return table.set_index(pd.RangeIndex(1, len(table) + 1, name="rank"))


def worst_mistakes(trained: Trained, splits: Splits, count=6) -> Explanation:
    """Explain the incorrectly decided test pairs that lie farthest beyond the threshold, worst first.

    At most `count`, and none if all decisions are correct. An undecided pair is not a mistake.
    """
    pairs = _test_pairs(trained, splits)
    mistakes = pairs[pairs["decided"] & (pairs["different"] != splits.test_pairs.labels)]
    return _explain_first(trained, splits, mistakes.sort_values("margin", ascending=False, kind="stable"), count)


def surest(trained: Trained, splits: Splits, count=6) -> Explanation:
    """Explain the decided test pairs that lie farthest beyond the threshold, on either side, surest first."""
    pairs = _test_pairs(trained, splits)
    decided = pairs[pairs["decided"]]
    return _explain_first(trained, splits, decided.sort_values("margin", ascending=False, kind="stable"), count)


def most_uncertain(trained: Trained, splits: Splits, count=6) -> Explanation:
    """Explain the test pairs nearest to the threshold, the nearest first."""
    pairs = _test_pairs(trained, splits)
    return _explain_first(trained, splits, pairs.sort_values("margin", kind="stable"), count)


def _test_pairs(trained, splits) -> pd.DataFrame:
    """Tabulate the test pairs.

    The columns: both images, the lower index first; whether the distance is above the threshold; whether the pair is
    decided; and the margin, from the threshold to the distance, as a share of what is possible on its side, in [0, 1].
    """
    distances = trained.distances(splits, splits.test_pairs)
    threshold = trained.threshold
    same_up_to, different_from = trained.band or (threshold, threshold)
    images = np.sort(np.stack([splits.test_pairs.first, splits.test_pairs.second]), axis=0)
    different = distances > threshold
    room = np.where(different, 2 - threshold, threshold)
    return pd.DataFrame(
        {
            "lower": images[0],
            "upper": images[1],
            "different": different,
            "decided": (distances <= same_up_to) | (distances > different_from),
            "margin": np.abs(distances - threshold) / room,
        }
    )


def _explain_first(trained, splits, pairs, count) -> Explanation:
    """Explain the first `count` test pairs of a table, each two images once."""
    if count < 1:
        raise ValueError(f"count: {count} is refused: it must be at least 1")
    indices = pairs.drop_duplicates(["lower", "upper"]).index[:count]
    files = []
    for index in indices:
        image1, image2 = splits.test_pairs.first[index], splits.test_pairs.second[index]
        files.append((splits.folder.paths[image1], splits.folder.paths[image2]))
    if not files:
        image = splits.folder.paths[splits.test[0]]
        return trained.explain((image, image))[:0]
    return trained.explain(*files)
