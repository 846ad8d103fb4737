"""All methods, all measures, one table."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..data.sample import load_masks
from ..data.splits import Pairs, Splits, pairs_of_files
from ..device import progress
from ..explanations.occlusion import mean_colour
from ..files import write_text
from ..network.distance import distance
from ..score.intervals import Interval, mean_interval, share_interval
from ..trained import Trained
from .controls import PROBED, choose_partners, copies, partner_agreement, pointing, random_network, sanity, stability
from .faithfulness import FAITHFUL, Verdict, embed_evidence, gap_of, insertion_deletion, measure_chance, span_of


@dataclass(frozen=True)
class Row:
    """What was measured of one method on one network.

    default: whether it is the method of the config. pairs: how many. gap: insertion minus deletion with both images
    changed, with its 95 % interval by resampled images, gap_low to gap_high; gap_colour: the same where the mean colour
    hides pixels; gap_each: with each image changed alone; gap_decisive: the one that verdicts read. span: the most that
    hiding could change of what verdicts read; share: gap_decisive as a share of it. faithful: share of pairs judged so,
    with its interval faithful_low to faithful_high; faithful_each: share of images. inserted, deleted: share of pairs
    whose decision is that of their true classes, mean over the shares of pixels shown in both images, and hidden. hit1,
    hit2, energy1, energy2: on planted objects, None without masks. sanity: `agreement` with the maps of a fully random
    network; copies: of the maps towards "different" with those towards "same"; partner_same, partner: `agreement`
    beside another partner of the image's own class, and of another class. stable: rank correlation of factual maps with
    those of disturbed images. missed: what the places miss, on average, of the change that they should add up to; None
    where there is no such change.
    """

    dataset: str
    network: str
    method: str
    default: bool
    pairs: int
    gap: float
    gap_low: float
    gap_high: float
    gap_colour: float
    gap_each: float
    gap_decisive: float
    span: float
    share: float
    faithful: float
    faithful_low: float
    faithful_high: float
    faithful_each: float
    inserted: float
    deleted: float
    hit1: float | None
    hit2: float | None
    energy1: float | None
    energy2: float | None
    sanity: float
    copies: float
    partner_same: float
    partner: float
    stable: float
    missed: float | None
    seconds_per_pair: float


def choose_pairs(splits: Splits, count: int, seed=0) -> list[tuple[str, str]]:
    """The image files of `count` test pairs, or of all, drawn from `seed`."""
    return splits.files(splits.test_pairs, count, seed)


def compare(methods: dict, trained: Trained, pairs, splits: Splits, seed=0, probed: dict | None = None) -> list[Row]:
    """One row for each method on the same pairs of image files, in one run.

    methods: functions of (network, images, threshold, references) by name. probed: of how many pairs a method is asked
    for sanity, other partners and disturbances, by name; PROBED where it is not said.
    """
    batches = trained.load_batches(pairs)
    drawn = pairs_of_files(pairs)
    masks = load_masks(trained.config.data_path, pairs, trained.config.image.size)
    partners = choose_partners(splits, len(pairs), seed)
    network = trained.network
    inputs = trained.threshold, trained.references
    random = random_network(trained, seed)
    chances = []
    spans = []
    rows = []
    for name, method in progress(methods.items(), "Methods", trained.config.hyperparameters.verbose, len(methods)):
        method(network, batches[0], *inputs)  # the first call chooses algorithms
        began = time.perf_counter()
        explanations = [method(network, images, *inputs) for images in batches]
        explanations[-1].distance.cpu()  # waits for a GPU
        seconds = (time.perf_counter() - began) / len(pairs)
        if not chances:
            chances = [measure_chance(network, explanation, seed) for explanation in explanations]
            spans = [span_of(network, explanation) for explanation in explanations]
        asked = min((probed or {}).get(name, PROBED), len(pairs))
        first = torch.cat(batches)[:asked]
        partner_same, partner = partner_agreement(
            method, trained, {kind: beside[:asked] for kind, beside in partners.items()}
        )
        row = Row(
            dataset=trained.config.data_path.name,
            network=trained.config.backbone_model + (", pretrained" if trained.config.pretrained else ""),
            method=name,
            default=name == trained.method,
            pairs=len(pairs),
            **_faithfulness(explanations, spans, chances, network, drawn, seed),
            **_planted(explanations, masks),
            sanity=sanity(method, trained, first, random),
            copies=_mean([torch.from_numpy(copies(explanation)) for explanation in explanations]),
            partner_same=partner_same,
            partner=partner,
            stable=_stable(method, trained, first),
            missed=_missed(explanations),
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
            "method": f"{row.method} (default)" if row.default else row.method,
            "both images": str(Interval(row.gap, row.gap_low, row.gap_high)),
            "in mean colour": f"{row.gap_colour:.3f}",
            "each image": f"{row.gap_each:.3f}",
            "decisive": f"{row.gap_decisive:.3f}",
            "share of span": f"{row.share:.0%}",
            "faithful pairs": f"{row.faithful:.0%} ({row.faithful_low:.0%} to {row.faithful_high:.0%})",
            "faithful images": f"{row.faithful_each:.0%}",
            "right when shown, hidden": f"{row.inserted:.0%}, {row.deleted:.0%}",
        }
        if row.hit1 is not None:
            line["peak on object"] = f"{row.hit1:.0%} / {row.hit2:.0%}"
            line["energy on it"] = f"{row.energy1:.0%} / {row.energy2:.0%}"
        line["random network"] = f"{row.sanity:.2f}"
        line["copies"] = f"{row.copies:.2f}"
        line["other partner: same, another class"] = f"{row.partner_same:.2f}, {row.partner:.2f}"
        line["disturbed"] = f"{row.stable:.2f}"
        line["sum misses"] = "" if row.missed is None else f"{row.missed:.3f}"
        line["time (quickest: 1)"] = f"{row.seconds_per_pair / quickest:.1f}"
        lines.append(line)
    return pd.DataFrame(lines).set_index("method")


def write_table(rows: list[Row], folder) -> pd.DataFrame:
    """Write the rows as they are to `folder`/methods.csv, whole, and hand on the table for reading."""
    write_text(Path(folder) / "methods.csv", pd.DataFrame(rows).to_csv(index=False))
    return table(rows)


def _faithfulness(explanations, spans, chances, network, drawn: Pairs, seed) -> dict:
    gaps = []
    right = []  # share of pairs when the strongest places are shown, and hidden
    words = []
    for_each = []
    for explanation, span, chance in zip(explanations, spans, chances, strict=True):
        masked, untouched = embed_evidence(network, explanation)
        gap = gap_of(masked, untouched, explanation.different)
        gaps.append(gap)
        decided = [distance(*part.unbind(2)) > explanation.threshold for part in (masked.inserted, masked.deleted)]
        right.append(torch.stack(decided))  # (2, S, B)
        verdict = Verdict(explanation, gap, span, chance)
        words += verdict.words()
        for_each += verdict.words("image 1") + verdict.words("image 2")
    both = mean_interval(torch.cat([gap.both for gap in gaps]).cpu().double().numpy(), drawn, seed)
    faithful = share_interval([word == FAITHFUL for word in words], drawn, seed)
    different = torch.from_numpy(drawn.labels == 1)
    inserted, deleted = (torch.cat(right, dim=2).cpu() == different).float().mean(dim=(1, 2)).tolist()
    decisive = _mean([gap.decisive for gap in gaps])
    span = _mean([one.decisive for one in spans])
    return {
        "gap": both.value,
        "gap_low": both.low,
        "gap_high": both.high,
        "gap_colour": _mean([insertion_deletion(network, one, hide=mean_colour).both for one in explanations]),
        "gap_each": _mean([gap.each for gap in gaps]),
        "gap_decisive": decisive,
        "span": span,
        "share": decisive / span if span else float("nan"),
        "faithful": faithful.value,
        "faithful_low": faithful.low,
        "faithful_high": faithful.high,
        "faithful_each": for_each.count(FAITHFUL) / len(for_each),
        "inserted": inserted,
        "deleted": deleted,
    }


def _planted(explanations, masks) -> dict:
    if masks is None:
        return dict.fromkeys(("hit1", "hit2", "energy1", "energy2"))
    hits, energies = pointing(torch.cat([explanation.factual for explanation in explanations]), masks)
    hit1, hit2 = hits.nanmean(dim=0).tolist()
    energy1, energy2 = energies.nanmean(dim=0).tolist()
    return {"hit1": hit1, "hit2": hit2, "energy1": energy1, "energy2": energy2}


def _stable(method, trained, images) -> float:
    found = stability(method, trained.network, images, trained.threshold, trained.config.image, trained.references)
    agreements = [agreement for agreement, kept in found.values() if kept]
    return float(np.mean(agreements)) if agreements else float("nan")


def _missed(explanations) -> float | None:
    if explanations[0].completeness is None:
        return None
    sums, changes = torch.cat([explanation.completeness for explanation in explanations]).unbind(1)
    return float((sums - changes).abs().mean())


def _mean(parts) -> float:
    return float(torch.cat(parts).mean())
