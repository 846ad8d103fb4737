"""The README: short, and its Python runs as it stands there."""

import json
import re

import torch
from helpers import ROOT
from torch import nn
from torchvision import models

from utils.explanations.methods import METHODS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title):
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def test_it_is_short():
    assert len(README.split("## Methods")[0].split()) <= 1200
    first, _ = re.findall(r"```python\n(.*?)```", section("From Python"), re.DOTALL)
    assert len(first.strip().splitlines()) <= 8


def test_from_python_runs_as_it_stands(make_config, checkpoints, trained, tmp_path, monkeypatch):
    make_config({"checkpoints_path": str(checkpoints)})
    monkeypatch.chdir(tmp_path)
    module = models.resnet18()
    module.fc = nn.Identity()
    path1, path2 = trained.load_splits().folder.paths[:2]
    names = {"my_module": module, "images": torch.randn(2, 2, 3, 64, 64), "path1": path1, "path2": path2}
    for code in re.findall(r"```python\n(.*?)```", section("From Python"), re.DOTALL):
        exec(code, names)
    assert len(list((tmp_path / "results").glob("*.png"))) == 1


def test_numbers_of_maps_are_those_of_the_results():
    """Every cell of the table, and the rates of maps that know nothing."""
    results = json.loads((ROOT / "results" / "faithfulness.json").read_text(encoding="utf-8"))
    shown = {}
    for row in results["methods"]:
        low, high = row["faithful_low"], row["faithful_high"]
        cell = f"{row['faithful']:.0%} ({100 * low:.0f} to {100 * high:.0f}), {row['gap_colour']:.3f}".replace(
            "%", " %"
        )
        name = row["method"] if row["method"] == "gradcam, last" else row["method"].partition(",")[0]
        shown.setdefault(name, []).append(cell)
    table = re.compile(r"^\| (?:`([^`]+)`|(random map))[^|]* \| (.*) \|$", re.MULTILINE)
    lines = [(name or control, cells) for name, control, cells in table.findall(section("What was measured"))]
    assert len(lines) == 9
    for name, cells in lines:
        assert cells.split(" | ") == shown[name], name
    blind = results["blind"]
    text = " ".join(section("What the heatmaps mean").split())
    for rate, digits, words in (
        ("faithful", 1, "of pairs are called faithful"),
        ("weak or better", 0, "of pairs are weak or better with maps that know nothing"),
    ):
        most = max((row[rate] for row in blind), key=lambda interval: interval["value"])
        value, low, high = (f"{100 * most[end]:.{digits}f}" for end in ("value", "low", "high"))
        assert f"{value} % ({low} to {high}) {words}" in text


def test_nothing_is_left_to_be_filled_in():
    assert not re.findall(r"^[A-Z_]+$", README, re.MULTILINE)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_every_method_is_in_the_table_and_in_config_yml():
    config = (ROOT / "config.yml").read_text(encoding="utf-8")
    (comment,) = re.findall(r"^    method: .*", config, re.MULTILINE)
    for name in METHODS:
        assert f"`{name}`" in section("Methods"), name
        assert name in comment, name
