"""All methods, all measures, one table."""

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from utils.data import Splits, load_masks
from utils.explain import mean_colour
from utils.network import fully_random
from utils.trained import Trained
from utils.trust.controls import pointing, rank_correlation, stability
from utils.trust.faithfulness import Chance, Verdict, insertion_deletion, interval, measure_chance

BATCH = 16  # pairs; the first batch alone is probed for sanity and stability


@dataclass(frozen=True)
class Row:
    """What was measured of one method.

    pairs: how many. gap: insertion minus deletion with both images changed, with its 95 % bootstrap interval gap_low to
    gap_high; gap_colour: the same where the mean colour hides pixels; gap_each: with each image changed alone;
    gap_decisive: the one that verdicts read. believable: share of pairs judged so. hit1, hit2, energy1, energy2: on
    planted objects, None without masks. sanity: rank correlation of factual maps with those of a fully random network;
    signed_sanity: that of the signed evidence. stable: that of factual maps with those of disturbed images.
    """

    dataset: str
    method: str
    pairs: int
    gap: float
    gap_low: float
    gap_high: float
    gap_colour: float
    gap_each: float
    gap_decisive: float
    believable: float
    hit1: float | None
    hit2: float | None
    energy1: float | None
    energy2: float | None
    sanity: float
    signed_sanity: float
    stable: float
    seconds_per_pair: float


def choose_pairs(splits: Splits, count: int, seed=0) -> list[tuple[str, str]]:
    """The image files of `count` test pairs, or of all, drawn from `seed`."""
    pairs = splits.test_pairs
    paths = splits.folder.paths
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:count]
    return [(paths[pairs.first[index]], paths[pairs.second[index]]) for index in chosen]


def compare(methods: dict, trained: Trained, pairs, seed=0) -> list[Row]:
    """One row for each method on the same pairs of image files, in one run.

    methods: functions of (network, images, threshold) by name.
    """
    batches = [trained.load_pairs(*pairs[start : start + BATCH]) for start in range(0, len(pairs), BATCH)]
    masks = load_masks(trained.config.data_path, pairs, trained.config.image.size)
    random = fully_random(trained.network, seed)
    chances = []
    rows = []
    for name, method in methods.items():
        method(trained.network, batches[0], trained.threshold)  # the first call chooses algorithms
        began = time.perf_counter()
        explanations = [method(trained.network, images, trained.threshold) for images in batches]
        explanations[-1].distance.cpu()  # waits for a GPU
        seconds = (time.perf_counter() - began) / len(pairs)
        if not chances:
            chances = [measure_chance(trained.network, explanation, seed) for explanation in explanations]
        row = Row(
            dataset=trained.config.data_path.name,
            method=name,
            pairs=len(pairs),
            **_faithfulness(explanations, chances, trained.network, seed),
            **_planted(explanations, masks),
            **_sanity(explanations[0], method(random, batches[0], trained.threshold)),
            stable=_stable(method, trained, batches[0]),
            seconds_per_pair=seconds,
        )
        rows.append(row)
    return rows


def table(rows: list[Row]) -> pd.DataFrame:
    """The rows for reading; time as a multiple of the quickest method's."""
    quickest = min(row.seconds_per_pair for row in rows)
    lines = []
    for row in rows:
        line = {
            "method": row.method,
            "both images": f"{row.gap:.3f} ({row.gap_low:.3f} to {row.gap_high:.3f})",
            "in mean colour": f"{row.gap_colour:.3f}",
            "each image": f"{row.gap_each:.3f}",
            "decisive": f"{row.gap_decisive:.3f}",
            "believable": f"{row.believable:.0%}",
        }
        if row.hit1 is not None:
            line["peak on object"] = f"{row.hit1:.0%} / {row.hit2:.0%}"
            line["energy on it"] = f"{row.energy1:.0%} / {row.energy2:.0%}"
        line["random network: map, signed"] = f"{row.sanity:.2f}, {row.signed_sanity:.2f}"
        line["disturbed"] = f"{row.stable:.2f}"
        line["time"] = f"{row.seconds_per_pair / quickest:.1f}"
        lines.append(line)
    return pd.DataFrame(lines).set_index("method")


def _faithfulness(explanations, chances: list[Chance], network, seed) -> dict:
    gaps = [insertion_deletion(network, explanation) for explanation in explanations]
    in_colour = [insertion_deletion(network, explanation, hide=mean_colour) for explanation in explanations]
    words = []
    for explanation, gap, chance in zip(explanations, gaps, chances, strict=True):
        verdict = Verdict(explanation, gap, chance)
        words += [verdict.word(index) for index in range(len(verdict))]
    both = torch.cat([gap.both for gap in gaps])
    low, high = interval(both.cpu(), seed)
    return {
        "gap": float(both.mean()),
        "gap_low": low,
        "gap_high": high,
        "gap_colour": _mean([gap.both for gap in in_colour]),
        "gap_each": _mean([gap.each for gap in gaps]),
        "gap_decisive": _mean([gap.decisive for gap in gaps]),
        "believable": words.count("believable") / len(words),
    }


def _planted(explanations, masks) -> dict:
    if masks is None:
        return dict.fromkeys(("hit1", "hit2", "energy1", "energy2"))
    parts = masks.split([len(explanation) for explanation in explanations])
    found = [pointing(explanation, part) for explanation, part in zip(explanations, parts, strict=True)]
    hit1, hit2 = torch.cat([hits for hits, _ in found]).nanmean(dim=0).tolist()
    energy1, energy2 = torch.cat([energies for _, energies in found]).nanmean(dim=0).tolist()
    return {"hit1": hit1, "hit2": hit2, "energy1": energy1, "energy2": energy2}


def _sanity(explanation, by_luck) -> dict:
    return {
        "sanity": float(rank_correlation(explanation.factual, by_luck.factual).mean()),
        "signed_sanity": float(rank_correlation(explanation.evidence, by_luck.evidence).mean()),
    }


def _stable(method, trained, images) -> float:
    found = stability(method, trained.network, images, trained.threshold, trained.config.image)
    agreements = [agreement for agreement, kept in found.values() if kept]
    return float(np.mean(agreements)) if agreements else float("nan")


def _mean(parts) -> float:
    return float(torch.cat(parts).mean())
