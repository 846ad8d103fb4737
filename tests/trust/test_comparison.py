"""Every column of the table against its own recomputation: two that were swapped would be seen."""

from functools import partial

import numpy as np
import pytest
import torch

from utils.explain import explain, mean_colour
from utils.network import fully_random
from utils.trust import (
    choose_pairs,
    compare,
    comparison,
    explain_at_random,
    explain_by_centre,
    insertion_deletion,
    interval,
    judge,
    pointing,
    rank_correlation,
    stability,
    table,
)

METHOD = partial(explain, method="hirescam", layer="layer2")


def left_and_lower(folder, pairs, size):
    """Masks that differ between image 1, its left half, and image 2, its lower third."""
    height, width = size
    masks = torch.zeros(len(pairs), 2, height, width, dtype=torch.bool)
    masks[:, 0, :, : width // 2] = True
    masks[:, 1, height * 2 // 3 :] = True
    return masks


@pytest.fixture
def pairs(trained):
    return choose_pairs(trained.load_splits(), 5)


def test_every_column_against_its_own_recomputation(trained, pairs, monkeypatch):
    monkeypatch.setattr(comparison, "load_masks", left_and_lower)
    monkeypatch.setattr(comparison, "BATCH", 2)
    (row,) = compare({"ours": METHOD}, trained, pairs, seed=3)
    network, threshold = trained.network, trained.threshold
    images = trained.load_pairs(*pairs)
    explanation = METHOD(network, images, threshold)
    gap = insertion_deletion(network, explanation)
    masks = left_and_lower(None, pairs, trained.config.image.size)
    hits, energies = pointing(explanation, masks)
    first = METHOD(network, images[:2], threshold)  # the first batch alone is probed
    random = METHOD(fully_random(network, 3), images[:2], threshold)
    steady = stability(METHOD, network, images[:2], threshold, trained.config.image).values()
    words = []
    for start in (0, 2, 4):  # random maps are drawn for each batch
        verdict = judge(network, explanation[start : start + 2], seed=3)
        words += [verdict.word(index) for index in range(len(verdict))]
    low, high = interval(gap.both, seed=3)
    expected = {
        "gap": gap.both.mean(),
        "gap_low": low,
        "gap_high": high,
        "gap_colour": insertion_deletion(network, explanation, mean_colour).both.mean(),
        "gap_each": gap.each.mean(),
        "gap_decisive": gap.decisive.mean(),
        "believable": words.count("believable") / 5,
        "hit1": hits[:, 0].mean(),
        "hit2": hits[:, 1].mean(),
        "energy1": energies[:, 0].mean(),
        "energy2": energies[:, 1].mean(),
        "sanity": rank_correlation(first.factual, random.factual).mean(),
        "signed_sanity": rank_correlation(first.evidence, random.evidence).mean(),
        "stable": np.mean([agreement for agreement, kept in steady if kept]),
    }
    for name, value in expected.items():
        assert getattr(row, name) == pytest.approx(float(value), abs=1e-4, nan_ok=True), name
    values = [round(float(value), 3) for name, value in expected.items() if name.startswith(("gap", "energy"))]
    assert len(set(values)) == len(values)  # the columns differ here, so that a swap would show
    assert (row.dataset, row.method, row.pairs) == (trained.config.data_path.name, "ours", 5)
    assert row.seconds_per_pair > 0


def test_planted_columns_stay_empty_without_masks(trained, pairs):
    rows = compare({"random": explain_at_random, "centre": explain_by_centre}, trained, pairs)
    assert [row.method for row in rows] == ["random", "centre"]
    assert all(value is None for row in rows for value in (row.hit1, row.hit2, row.energy1, row.energy2))
    assert rows[1].sanity == pytest.approx(1.0)  # a map that is blind to the network
    assert "peak on object" not in table(rows)


def test_the_table_shows_each_value_under_its_heading():
    values = {name: number / 100 for number, name in enumerate(comparison.Row.__dataclass_fields__, start=1)}
    row = comparison.Row(**values | {"dataset": "flowers", "method": "ours", "pairs": 7})
    shown = table([row]).loc["ours"].to_dict()
    assert shown == {
        "both images": "0.040 (0.050 to 0.060)",
        "in mean colour": "0.070",
        "each image": "0.080",
        "decisive": "0.090",
        "believable": "10%",
        "peak on object": "11% / 12%",
        "energy on it": "13% / 14%",
        "random network: map, signed": "0.15, 0.16",
        "disturbed": "0.17",
        "time": "1.0",
    }


def test_pairs_are_drawn_by_seed(trained):
    splits = trained.load_splits()
    assert choose_pairs(splits, 4) == choose_pairs(splits, 4)
    assert choose_pairs(splits, 4) != choose_pairs(splits, 4, seed=1)
    assert len(choose_pairs(splits, 10**6)) == len(splits.test_pairs)
    ((one, two),) = choose_pairs(splits, 1)
    assert {one, two} <= set(splits.folder.paths)
