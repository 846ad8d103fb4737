"""Every column of the table against its own recomputation: two that were swapped would be seen."""

from dataclasses import astuple, fields
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from utils import trained as trained_module
from utils.data.splits import pairs_of_files
from utils.explanations.methods import explain
from utils.network.distance import blurred, distances_of, mean_colour
from utils.score.intervals import Interval, mean_interval
from utils.trust import comparison, faithfulness
from utils.trust.comparison import choose_pairs, compare, methods_table, table, write_table
from utils.trust.controls import choose_partners, copies, partner_agreement, pointing, random_network, sanity, stability
from utils.trust.faithfulness import (
    FAITHFUL,
    SHARES,
    explain_at_random,
    explain_by_centre,
    insertion_deletion,
    judge,
    span_of,
)

METHOD = partial(explain, layer="layer2", steps=2)


def left_and_lower(folder, pairs, size):
    """Masks that differ between image 1, its left half, and image 2, its lower third."""
    height, width = size
    masks = torch.zeros(len(pairs), 2, height, width, dtype=torch.bool)
    masks[:, 0, :, : width // 2] = True
    masks[:, 1, height * 2 // 3 :] = True
    return masks


@pytest.fixture
def pairs(calibrated):
    return choose_pairs(calibrated.load_splits(), 5)


def correctly_decided(network, explanation, pairs, shown):
    """Share of pairs decided correctly with only the strongest pixels of both images shown, or hidden, in loops."""
    hidden = blurred(explanation.images)
    right = []
    for share in SHARES:
        for pair, (one, two) in enumerate(pairs):
            changed = explanation.images[pair].clone()
            for image in range(2):
                ranking = explanation.ranking[pair, image].flatten()
                strongest = ranking.argsort(descending=True, stable=True)[: int(np.ceil(share * len(ranking)))]
                mask = torch.zeros(len(ranking), dtype=torch.bool)
                mask[strongest] = True
                kept = (mask if shown else ~mask).view(changed.shape[2:])
                changed[image] = torch.where(kept, changed[image], hidden[pair, image])
            decided = distances_of(network, changed[None])[0] > explanation.threshold
            right.append(bool(decided) == (one.split("/")[-2] != two.split("/")[-2]))
    return np.mean(right)


def test_every_column_against_its_own_recomputation(calibrated, pairs, monkeypatch):
    monkeypatch.setattr(comparison, "load_masks", left_and_lower)
    monkeypatch.setattr(trained_module, "BATCH", 2)
    for module in (comparison, faithfulness):
        monkeypatch.setattr(module, "LEAST_SPAN", 0.0)  # there is little to explain here
    splits = calibrated.load_splits()
    (row,) = compare({"ours": METHOD}, calibrated, pairs, splits, seed=3, probed={"ours": 2})
    network, threshold = calibrated.network, calibrated.threshold
    images = calibrated.load_pairs(*pairs)
    explanation = METHOD(network, images, threshold, calibrated.references)
    gap = insertion_deletion(network, explanation)
    batches = [METHOD(network, images[start : start + 2], threshold, calibrated.references) for start in (0, 2, 4)]
    decisive = np.mean([value for batch in batches for value in insertion_deletion(network, batch).decisive])
    span = np.mean([value for batch in batches for value in span_of(network, batch).decisive])
    masks = left_and_lower(None, pairs, calibrated.config.image.size)
    hits, energies = pointing(explanation.factual, masks)
    first = images[:2]  # as many are probed
    steady = stability(METHOD, network, first, threshold, calibrated.config.image, calibrated.references).values()
    words = []
    shares = []
    by_span = []
    for start in (0, 2, 4):  # random maps are drawn for each batch
        verdict = judge(network, explanation[start : start + 2], seed=3)
        words += verdict.words()
        shares += verdict.share().tolist()
        for index in range(len(verdict)):
            own, whole = verdict.gap.decisive[index].item(), verdict.span.decisive[index].item()
            best = max(verdict.blind.decisive[:, index].tolist())
            by_span.append(own > best and own >= 0.5 * whole and whole >= 0)
    drawn = pairs_of_files(pairs)
    both = mean_interval(gap.both.double().numpy(), drawn, seed=3)
    faithful = mean_interval([word == FAITHFUL for word in words], drawn, seed=3, rate=True)
    faithful_by_span = mean_interval(by_span, drawn, seed=3, rate=True)
    partners = {kind: beside[:2] for kind, beside in choose_partners(splits, 5, 3).items()}
    partner_same, partner = partner_agreement(METHOD, calibrated, partners)
    expected = {
        "gap_colour": insertion_deletion(network, explanation, mean_colour).both.mean(),
        "gap_each": gap.each.mean(),
        "gap_decisive": decisive,
        "span": span,
        "share": np.nanmean(shares),
        "share_of_span": decisive / span,
        "inserted": correctly_decided(network, explanation, pairs, shown=True),
        "deleted": correctly_decided(network, explanation, pairs, shown=False),
        "hit1": hits[:, 0].mean(),
        "hit2": hits[:, 1].mean(),
        "energy1": energies[:, 0].mean(),
        "energy2": energies[:, 1].mean(),
        "sanity": sanity(METHOD, calibrated, first, random_network(calibrated, 3)),
        "copies": copies(explanation).mean(),
        "partner_same": partner_same,
        "partner": partner,
        "stable": np.nanmean(list(steady)),
        "completeness_error": (explanation.completeness[:, 0] - explanation.completeness[:, 1]).abs().mean(),
    }
    for name, value in expected.items():
        assert getattr(row, name) == pytest.approx(float(value), abs=1e-3, nan_ok=True), name
    assert astuple(row.gap) == pytest.approx(astuple(both), abs=1e-3)
    assert row.gap.value == pytest.approx(float(gap.both.mean()), abs=1e-3)
    assert astuple(row.faithful) == pytest.approx(astuple(faithful))
    assert astuple(row.faithful_by_span) == pytest.approx(astuple(faithful_by_span))
    assert row.faithful.value == words.count(FAITHFUL) / 5
    values = [round(float(value), 4) for name, value in expected.items() if name.startswith(("gap", "energy", "part"))]
    assert len(set(values)) == len(values)  # the columns differ here, so that a swap would show
    assert (row.dataset, row.method, row.pairs) == (calibrated.config.data_path.name, "ours", 5)
    assert (row.network, row.default) == ("test_resnet", False)
    assert row.seconds_per_pair > 0


def test_the_method_of_the_config_is_the_default(calibrated, pairs):
    methods = {calibrated.method: METHOD, "other": explain_at_random}
    assert [row.default for row in compare(methods, calibrated, pairs, calibrated.load_splits())] == [True, False]


def test_planted_columns_stay_empty_without_masks(calibrated, pairs):
    methods = {"random": explain_at_random, "centre": explain_by_centre}
    rows = compare(methods, calibrated, pairs, calibrated.load_splits())
    assert [row.method for row in rows] == ["random", "centre"]
    for row in rows:
        assert (row.hit1, row.hit2, row.energy1, row.energy2, row.completeness_error) == (None,) * 5
    for row in rows:  # maps that are blind to the network and to the partner: the positive control
        assert row.sanity == row.partner == row.partner_same == pytest.approx(1.0)
    assert rows[1].copies == pytest.approx(1.0)
    assert "peak on object" not in table(rows)


def test_the_table_shows_each_value_under_its_heading(tmp_path):
    values = {}
    for number, field in enumerate(fields(comparison.Row), start=1):
        values[field.name] = number / 100
        if field.type is Interval:
            values[field.name] = Interval(number / 100, 0.5, 0.75)
    row = comparison.Row(**values | {"dataset": "flowers", "method": "ours", "default": True, "pairs": 7})
    assert write_table([row], tmp_path).to_csv(index=False) == (tmp_path / "methods.csv").read_text()
    shown = table([row]).loc["ours (default)"].to_dict()
    assert shown == {
        "both images": "0.060 (0.500 to 0.750)",
        "in mean colour": "0.070",
        "each image": "0.080",
        "decisive": "0.090",
        "share of possible": "0.11",
        "share of span": "12%",
        "faithful pairs": "13% (50% to 75%)",
        "faithful by half of the span": "14% (50% to 75%)",
        "correct when shown, hidden": "15%, 16%",
        "peak on object": "17% / 18%",
        "energy on it": "19% / 20%",
        "random network": "0.21",
        "copies": "0.22",
        "other partner: same, another class": "0.23, 0.24",
        "disturbed": "0.25",
        "completeness error": "0.260",
        "time (quickest: 1)": "1.0",
    }
    answers = {}
    for question, (columns, field) in comparison.QUESTIONS.items():
        answer = methods_table([row], question)
        answers |= answer.data.loc["ours (default)"].to_dict()
        value = getattr(row, field)
        value = getattr(value, "value", value)
        assert f"{100 * value:.0f}%, transparent" in answer.to_html()
        assert next(iter(answer.data)) == columns[0]
    by_span = "decisive", "share of span", "faithful by half of the span"  # an earlier rule, for benchmarks
    assert shown == answers | {column: shown[column] for column in by_span}
    written = pd.read_csv(tmp_path / "methods.csv").iloc[0]
    assert (written["method"], written["partner"]) == ("ours", 0.24)
    assert (written["gap"], written["gap_low"], written["faithful_high"]) == (0.06, 0.5, 0.75)


def test_pairs_are_drawn_by_seed(calibrated):
    splits = calibrated.load_splits()
    assert choose_pairs(splits, 4) == choose_pairs(splits, 4)
    assert choose_pairs(splits, 4) != choose_pairs(splits, 4, seed=1)
    assert len(choose_pairs(splits, 10**6)) == len(splits.test_pairs)
    ((one, two),) = choose_pairs(splits, 1)
    assert {one, two} <= set(splits.folder.paths)
