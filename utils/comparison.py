"""All methods, all measures, one table."""

import time

import numpy as np
import torch

from utils.evaluation import Trained
from utils.faithfulness import Verdict, chance, gaps, interval, mean_colour
from utils.pairs import Splits
from utils.planted import load_masks, pointing
from utils.sanity import fully_random, rank_correlation, stability

BATCH = 16  # pairs; the first batch alone is probed for sanity and stability


def choose_pairs(splits: Splits, count: int, seed=0):
    """Image paths of `count` test pairs, or of all, drawn from `seed`: ([of image 1, ...], [of image 2, ...])."""
    pairs, paths = splits.test_pairs, splits.folder.paths
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:count]
    return [paths[index] for index in pairs.first[chosen]], [paths[index] for index in pairs.second[chosen]]


def compare(methods: dict, trained: Trained, paths1, paths2, seed=0) -> list[dict]:
    """One row for each method on the same pairs, in one run.

    methods: functions of (network, images1, images2, threshold) by name. Keys of a row: dataset, method, pairs; gap of
    both images at once, with its 95 % bootstrap interval gap_low and gap_high; gap_colour, the same where the mean
    colour hides pixels; gap_alone, the mean of each image alone; gap_telling, the one that verdicts read; believable,
    the share of pairs judged so; hit1, hit2, energy1, energy2 on planted evidence, else None; sanity, the rank
    correlation of factual maps with those of a fully random network, and signed_sanity, that of the signed evidence;
    stable, that of factual maps with those of disturbed images; seconds_per_pair.
    """
    network, threshold, settings = trained.network, trained.threshold, trained.config.image
    images = [trained.load_images(*paths) for paths in (paths1, paths2)]
    masks = [load_masks(trained.config.data_path, paths, settings.size) for paths in (paths1, paths2)]
    batches = [[part[start : start + BATCH] for part in images] for start in range(0, len(paths1), BATCH)]
    random = fully_random(network, seed)
    by_chance, rows = [chance(network, *batch, threshold, seed) for batch in batches], []
    for name, method in methods.items():
        method(network, *batches[0], threshold)  # the first call chooses algorithms
        began = time.perf_counter()
        explanations = [method(network, *batch, threshold) for batch in batches]
        explanations[-1].distance.cpu()  # waits for a GPU
        seconds = (time.perf_counter() - began) / len(paths1)
        made = list(zip(batches, explanations, strict=True))
        found = [gaps(network, *batch, explanation) for batch, explanation in made]
        in_colour = [gaps(network, *batch, explanation, hide=mean_colour) for batch, explanation in made]
        verdicts = [Verdict(gap, *known) for gap, known in zip(found, by_chance, strict=True)]
        words = [verdict.word(index) for verdict in verdicts for index in range(len(verdict.centre))]
        low, high = interval(torch.cat([gap.joint for gap in found]).cpu(), seed)
        by_luck = method(random, *batches[0], threshold)
        steady = stability(method, network, *batches[0], threshold, settings).values()
        agreements = [agreement for agreement, kept in steady if kept]
        rows.append(
            {
                "dataset": trained.config.data_path.name,
                "method": name,
                "pairs": len(paths1),
                "gap": _mean(gap.joint for gap in found),
                "gap_low": low,
                "gap_high": high,
                "gap_colour": _mean(gap.joint for gap in in_colour),
                "gap_alone": _mean(gap.alone for gap in found),
                "gap_telling": _mean(gap.telling for gap in found),
                "believable": words.count("believable") / len(words),
                **_planted(explanations, masks),
                "sanity": float(rank_correlation(explanations[0].factual, by_luck.factual).mean()),
                "signed_sanity": float(rank_correlation(explanations[0].evidence, by_luck.evidence).mean()),
                "stable": float(np.mean(agreements)) if agreements else float("nan"),
                "seconds_per_pair": seconds,
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table; time as a multiple of the quickest method's."""
    quickest = min(row["seconds_per_pair"] for row in rows)
    head = ("method", "gap, both images at once", "in mean colour", "each alone", "telling", "believable")
    head += ("peak on object", "energy on it", "random net: map, signed", "disturbed", "time")
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in rows:
        planted = [
            f"{row[f'{kind}1']:.0%} / {row[f'{kind}2']:.0%}" if row["hit1"] is not None else ""
            for kind in ("hit", "energy")
        ]
        cells = [
            row["method"],
            f"{row['gap']:.3f} ({row['gap_low']:.3f} to {row['gap_high']:.3f})",
            *(f"{row[key]:.3f}" for key in ("gap_colour", "gap_alone", "gap_telling")),
            f"{row['believable']:.0%}",
            *planted,
            f"{row['sanity']:.2f}, {row['signed_sanity']:.2f}",
            f"{row['stable']:.2f}",
            f"{row['seconds_per_pair'] / quickest:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(parts) -> float:
    return float(torch.cat(list(parts)).mean())


def _planted(explanations, masks) -> dict:
    keys = ("hit1", "hit2", "energy1", "energy2")
    if any(part is None for part in masks):
        return dict.fromkeys(keys)
    found, start = [], 0
    for made in explanations:
        stop = start + len(made.distance)
        found.append(torch.cat(pointing(made, *(part[start:stop] for part in masks)), dim=1))
        start = stop
    return dict(zip(keys, torch.cat(found).nanmean(dim=0).tolist(), strict=True))
