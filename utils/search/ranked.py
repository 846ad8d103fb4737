"""Scores of explained pairs in a table; test pairs that are typical, certain, uncertain or incorrect."""

import numpy as np
import pandas as pd

from ..data.splits import Splits
from ..explanations.explanation import Explanation
from ..trained import Trained
from ..trust.faithfulness import LEAST_SPAN, Verdict, span_of

CORRECT = {True: "yes", False: "no", None: None}
TYPICAL = 8  # pairs around the median, of which the first that can be explained is shown


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
            row["maps"] = verdict.word(index)
            row["share of what is possible"] = verdict.share()[index].item()
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


def typical_pairs(trained: Trained, splits: Splits) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return the image files of a test pair decided "same" and of one decided "different".

    Each is near the median distance of those decided so, of the correct ones if there are any: of the TYPICAL pairs
    nearest to it, the first whose score depends on what is hidden, so that there is something to explain. If there are
    none decided so, the nearest pair is returned, which is printed.
    """
    pairs = _test_pairs(trained, splits)
    decided = pairs[pairs["decided"]]
    same = _typical_pair(trained, splits, decided[~decided["different"]], "same", pairs["distance"].idxmin())
    different = _typical_pair(trained, splits, decided[decided["different"]], "different", pairs["distance"].idxmax())
    return same, different


def _typical_pair(trained, splits, decided, word, nearest):
    """Choose among the test pairs decided so; where there are none, take the nearest."""
    if decided.empty:
        print(f'No test pair is decided "{word}": the nearest pair is shown instead. Has the network learnt enough?')
        by_distance = np.array([nearest])
    else:
        correct = decided[splits.test_pairs.labels[decided.index] == decided["different"]]
        if len(correct):
            decided = correct
        by_distance = decided.sort_values("distance").index
    from_median = np.abs(np.arange(len(by_distance)) - len(by_distance) // 2)
    typical = by_distance[np.argsort(from_median, kind="stable")][:TYPICAL]
    files = _files_of(splits, typical)
    explanation = trained.explain(*files, method="gradcam", layer="last")  # any method: its span is asked
    explained = span_of(trained.network, explanation).decisive >= LEAST_SPAN
    return files[int(explained.float().argmax())]  # the first of all where none is explained


def _test_pairs(trained, splits) -> pd.DataFrame:
    """Tabulate the test pairs.

    The columns: both images, the lower index first; the distance; whether it is above the threshold; whether the pair
    is decided; and the margin, from the threshold to the distance, as a share of what is possible on its side, in
    [0, 1].
    """
    distances = trained.distances(splits, splits.test_pairs)
    threshold = trained.threshold
    same_up_to, different_from = trained.band or (threshold, threshold)
    images = np.sort(np.stack([splits.test_pairs.first, splits.test_pairs.second]), axis=0)
    different = distances > threshold
    room = np.where(different, 2 - threshold, threshold).clip(min=1e-9)  # a threshold of 0 leaves none below it
    return pd.DataFrame(
        {
            "lower": images[0],
            "upper": images[1],
            "distance": distances,
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
    files = _files_of(splits, indices)
    if not files:
        image = splits.folder.paths[splits.test[0]]
        return trained.explain((image, image))[:0]
    return trained.explain(*files)


def _files_of(splits, indices) -> list[tuple[str, str]]:
    """Return the image files of some of the test pairs."""
    files = []
    for index in indices:
        image1, image2 = splits.test_pairs.first[index], splits.test_pairs.second[index]
        files.append((splits.folder.paths[image1], splits.folder.paths[image2]))
    return files
