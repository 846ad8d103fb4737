import re
from dataclasses import replace

import pytest

from utils import (
    choose_pairs,
    compare,
    find_shortcuts,
    find_suspects,
    frozen_baseline,
    methods_of,
    report,
    write_metrics,
)
from utils.audit.images import audit_images
from utils.score.intervals import Interval
from utils.show.report import limitations


@pytest.fixture(scope="module")
def measured(calibrated_once):
    """A run and what notebook 01 measures of it, as `report` takes it."""
    trained = calibrated_once
    splits = trained.load_splits()
    distances = trained.distances(splits, splits.test_pairs)
    baseline = frozen_baseline(trained.config, splits, trained.runtime)
    metrics = write_metrics(trained, splits, distances, baseline)
    methods = {trained.method: methods_of(trained.settings)[trained.method]}
    rows = compare(methods, trained, choose_pairs(splits, 4), splits)
    return (
        trained,
        splits,
        distances,
        metrics,
        rows,
        find_suspects(trained, splits),
        find_shortcuts(trained, splits),
    )


def test_it_says_what_was_measured_and_loads_nothing(measured):
    trained, splits, _, metrics, rows, *_ = measured
    element = report(*measured)
    text = re.sub(r"<script>.*?</script>", "", element.html, flags=re.DOTALL)
    for metric in metrics.metrics:
        assert metric.shown in text
    assert trained.folder.name in text
    assert str(len(splits.test)) in text
    assert f"{rows[0].faithful.value:.0%}" in text
    headings = re.findall(r'<h2 id="([^"]+)">', text)
    assert headings[:2] == ["summary", "limitations"]
    assert headings == re.findall(r'href="#([^"]+)"', text)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', element.html)
    assert len(element.html) < 4_000_000


def test_limitations_come_when_they_apply(measured):
    trained, splits, _, metrics, (row,), _, shortcuts = measured
    found = audit_images(splits.folder, splits.pixels, splits.duplicates)

    def words(trained=trained, auc=(0.95, 0.94, 0.96), faithful=0.9):
        others = tuple(metric for metric in metrics.metrics if metric.name != "auc")
        known = replace(metrics, metrics=(replace(metrics["auc"], interval=Interval(*auc)), *others))
        return " ".join(limitations(trained, known, replace(row, faithful=Interval(faithful, 0, 1)), shortcuts, found))

    assert "are needed to know it better" not in words()
    assert "are needed to know it better" in words(auc=(0.8, 0.6, 0.9))
    assert "faithful for" not in words()
    assert f"faithful for {round(0.2 * row.pairs)} of {row.pairs} test pairs only" in words(faithful=0.2)
    blind = replace(trained, measurements=replace(trained.measurements, auc=Interval(0.5, 0.4, 0.6)))
    assert "CAUTION" in words(trained=blind)
    assert "CAUTION" not in words(
        trained=replace(trained, measurements=replace(trained.measurements, auc=Interval(0.9, 0.8, 1)))
    )


def test_names_from_files_are_no_markup(measured):
    trained, *others = measured
    hostile = replace(trained, classes=("<script>alert(1)</script>", *trained.classes[1:]))
    assert "<script>alert(1)" not in report(hostile, *others).html
