"""Compare methods of explanation: all measures in one table."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..data.sample import load_masks
from ..data.splits import Splits, pairs_of_files
from ..device import progress
from ..explanations.explanation import embed_explained
from ..files import write_text
from ..network.distance import distance, mean_colour
from ..score.intervals import Interval, mean_interval
from ..trained import Trained
from .controls import PROBED, choose_partners, copies, partner_agreement, pointing, random_network, sanity, stability
from .faithfulness import (
    FAITHFUL,
    LEAST_SPAN,
    Verdict,
    embed_evidence,
    gap_of,
    insertion_deletion,
    measure_yardsticks,
)

BAR = "#56b4e966"
QUESTIONS = {  # columns of the table, and the field whose bars stand behind the first one
    "faithful": (
        ["faithful pairs", "share of possible", "both images", "each image", "correct when shown, hidden"],
        "faithful",
    ),
    "specific": (["random network", "other partner: same, another class", "copies"], "sanity"),
    "steady": (
        [
            "disturbed",
            "in mean colour",
            "completeness error",
            "peak on object",
            "energy on it",
            "time (quickest: 1)",
        ],
        "stable",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one method on one network."""

    dataset: str
    network: str
    method: str
    default: bool
    """Whether it is the method of the config."""
    pairs: int
    gap: Interval
    """Insertion minus deletion with both images changed."""
    gap_colour: float
    """The same where the mean colour hides pixels."""
    gap_each: float
    """The same with each image changed by itself."""
    gap_decisive: float
    """The one that verdicts read."""
    span: float
    """The largest change that hiding could make of what verdicts read."""
    share: float | None
    """Mean of `Verdict.share`; None where no pair has something to explain."""
    share_of_span: float
    """`gap_decisive` as a share of the span."""
    faithful: Interval
    """Share of pairs whose maps are judged faithful."""
    faithful_by_span: Interval
    """The same by an earlier rule: at least half of the span, instead of LEAST_SHARE of what is possible."""
    inserted: float
    """Share of pairs decided correctly, mean over the shares of pixels that are shown in both images."""
    deleted: float
    """The same with these pixels hidden."""
    hit1: float | None = None
    """Share of peaks on the object in image 1; None without masks."""
    hit2: float | None = None
    energy1: float | None = None
    """Share of the map on the object in image 1; None without masks."""
    energy2: float | None = None
    sanity: float
    """`agreement` with the maps of a fully random network."""
    copies: float
    """Similarity of the maps towards "different" and towards "same"."""
    partner_same: float
    """`agreement` beside another partner of the image's own class."""
    partner: float
    """`agreement` beside a partner of another class."""
    stable: float
    """Rank correlation of factual maps with those of disturbed images."""
    completeness_error: float | None = None
    """Mean difference between what the places add up to and what they should; None where there is no such sum."""
    seconds_per_pair: float


def choose_pairs(splits: Splits, count: int, seed=0) -> list[tuple[str, str]]:
    """Draw the image files of `count` test pairs, or of all, from `seed`."""
    return splits.files(splits.test_pairs, count, seed)


def compare(methods: dict, trained: Trained, pairs, splits: Splits, seed=0, probed: dict | None = None) -> list[Row]:
    """Measure each method on the same pairs of image files.

    Args:
        methods: Functions of (network, images, threshold, references) by name.
        trained: The network.
        pairs: Pairs of image files.
        splits: From which other partners are chosen.
        seed: Of all that is drawn.
        probed: On how many pairs sanity, other partners and disturbances are measured, by name; by default PROBED,
            and half as many for occlusion, which is slow.
    """
    probed = {"occlusion": PROBED // 2} | (probed or {})
    network = trained.network
    inputs = trained.threshold, trained.references
    batches = trained.load_batches(pairs)
    size = len(batches[0])
    drawn = pairs_of_files(pairs, trained.corrections.folder_of)
    different = torch.from_numpy(drawn.labels == 1).split(size)
    masks = load_masks(trained.config.data_path, pairs, trained.config.image.size)
    masks = [None] * len(batches) if masks is None else masks.split(size)
    partners = choose_partners(splits, len(pairs), seed)
    random = random_network(trained, seed)
    yardsticks = []
    rows = []
    for name, method in progress(methods.items(), "Methods", trained.config.hyperparameters.verbose, len(methods)):
        method(network, batches[0][:1], *inputs)  # the first call loads what it needs
        began = time.perf_counter()
        explanations = [method(network, images, *inputs) for images in batches]
        explanations[-1].distance.cpu()  # waits for a GPU
        seconds = (time.perf_counter() - began) / len(pairs)
        measured = []
        for part, explanation in enumerate(explanations):
            if part == len(yardsticks):  # measured once, with the first method
                untouched = embed_explained(network, explanation)
                yardsticks.append(measure_yardsticks(network, explanation, untouched, seed))
            measured.append(_measure(network, explanation, yardsticks[part], different[part], masks[part]))
        measured = pd.concat(measured)
        columns = measured.mean().to_dict()
        columns["gap"] = mean_interval(measured["gap"], drawn, seed)
        for column in ("faithful", "faithful_by_span"):
            columns[column] = mean_interval(measured[column], drawn, seed, rate=True)
        if np.isnan(columns["share"]):
            columns["share"] = None
        columns["share_of_span"] = columns["gap_decisive"] / (columns["span"] or float("nan"))
        count = probed.get(name, PROBED)
        images = torch.cat(batches)[:count]
        columns["sanity"] = sanity(method, trained, images, random)
        some_partners = {kind: beside[:count] for kind, beside in partners.items()}
        columns["partner_same"], columns["partner"] = partner_agreement(method, trained, some_partners)
        steady = stability(method, network, images, trained.threshold, trained.config.image, trained.references)
        columns["stable"] = pd.Series(steady).mean()  # NaN is left out
        row = Row(
            dataset=trained.config.data_path.name,
            network=trained.description,
            method=name,
            default=name == trained.method,
            pairs=len(pairs),
            seconds_per_pair=seconds,
            **columns,
        )
        rows.append(row)
    return rows


def table(rows: list[Row]) -> pd.DataFrame:
    """Return the rows for reading; time is a multiple of the quickest method's."""
    quickest = min(row.seconds_per_pair for row in rows)
    lines = []
    for row in rows:
        line = {
            "method": row.method,
            "both images": str(row.gap),
            "in mean colour": f"{row.gap_colour:.3f}",
            "each image": f"{row.gap_each:.3f}",
            "decisive": f"{row.gap_decisive:.3f}",
            "faithful pairs": _percent(row.faithful),
            "share of possible": "" if row.share is None else f"{row.share:.2f}",
            "share of span": f"{row.share_of_span:.0%}",
            "faithful by half of the span": _percent(row.faithful_by_span),
            "correct when shown, hidden": f"{row.inserted:.0%}, {row.deleted:.0%}",
        }
        if row.default:
            line["method"] += " (default)"
        if row.hit1 is not None:
            line["peak on object"] = f"{row.hit1:.0%} / {row.hit2:.0%}"
            line["energy on it"] = f"{row.energy1:.0%} / {row.energy2:.0%}"
        line["random network"] = f"{row.sanity:.2f}"
        line["copies"] = f"{row.copies:.2f}"
        line["other partner: same, another class"] = f"{row.partner_same:.2f}, {row.partner:.2f}"
        line["disturbed"] = f"{row.stable:.2f}"
        line["completeness error"] = ""
        if row.completeness_error is not None:
            line["completeness error"] = f"{row.completeness_error:.3f}"
        line["time (quickest: 1)"] = f"{row.seconds_per_pair / quickest:.1f}"
        lines.append(line)
    return pd.DataFrame(lines).set_index("method")


def methods_table(rows: list[Row], question: str):
    """Return the columns of `table` that answer a question, for a notebook: with bars behind the first one.

    Args:
        rows: Of `compare`.
        question: A key of QUESTIONS.

    Returns:
        A Styler of pandas; its `data` is the DataFrame.
    """
    columns, field = QUESTIONS[question]
    values = numbers_of(rows)[field].clip(0, 1).tolist()
    whole = table(rows)
    shown = whole[[column for column in columns if column in whole]]
    bars = [f"background: linear-gradient(90deg, {BAR} {100 * value:.0f}%, transparent 0)" for value in values]
    return shown.style.apply(lambda _: bars, subset=[columns[0]])


def numbers_of(rows: list[Row]) -> pd.DataFrame:
    """Return the rows as plain numbers; an interval has columns such as `gap`, `gap_low` and `gap_high`."""
    numbers = pd.json_normalize([asdict(row) for row in rows], sep="_")
    return numbers.rename(columns=lambda name: name.removesuffix("_value"))


def write_table(rows: list[Row], folder) -> pd.DataFrame:
    """Write plain numbers to `folder`/methods.csv, and return them."""
    numbers = numbers_of(rows)
    write_text(Path(folder) / "methods.csv", numbers.to_csv(index=False))
    return numbers


def _percent(rate: Interval) -> str:
    """A rate with its interval."""
    return f"{rate.value:.0%} ({rate.low:.0%} to {rate.high:.0%})"


def _measure(network, explanation, yardsticks, different, masks) -> pd.DataFrame:
    """Measure the maps of a batch: columns of Row, one line for each pair.

    different: the actual classes, bool (B,). masks: bool (B, 2, H, W), or None.
    """
    masked, untouched = embed_evidence(network, explanation)
    gap = gap_of(masked, untouched, explanation.different)
    verdict = Verdict(explanation, gap, *yardsticks)
    columns = {
        "gap": gap.both,
        "gap_colour": insertion_deletion(network, explanation, hide=mean_colour).both,
        "gap_each": gap.each,
        "gap_decisive": gap.decisive,
        "span": verdict.span.decisive,
        "share": verdict.share(),
        "faithful_by_span": _faithful_by_span(verdict),
    }
    for name, embeddings in zip(("inserted", "deleted"), masked, strict=True):
        decisions = distance(*embeddings.unbind(2)) > explanation.threshold  # (S, B)
        columns[name] = (decisions.cpu() == different).float().mean(dim=0)
    if masks is not None:
        hits, energies = pointing(explanation.factual, masks)
        columns["hit1"], columns["hit2"] = hits.unbind(1)
        columns["energy1"], columns["energy2"] = energies.unbind(1)
    if explanation.completeness is not None:
        total, change = explanation.completeness.unbind(1)
        columns["completeness_error"] = (total - change).abs()
    measured = pd.DataFrame({name: values.cpu().double() for name, values in columns.items()})
    measured["copies"] = copies(explanation).reshape(-1, 2).mean(axis=1)
    measured["faithful"] = np.array(verdict.words()) == FAITHFUL
    return measured


def _faithful_by_span(verdict) -> torch.Tensor:
    """Return where the gap is above those of all blind maps, and at least half of the span."""
    gap, span = verdict.gap.decisive, verdict.span.decisive
    return (gap > verdict.blind.decisive.amax(dim=0)) & (gap >= span / 2) & (span >= LEAST_SPAN)
