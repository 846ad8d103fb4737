"""The README: short, and its Python runs as it stands there."""

import re

import torch
from helpers import ROOT
from torch import nn
from torchvision import models

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title):
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def test_it_is_short():
    assert len(README.split()) <= 1600
    assert len(section("From Python").strip().splitlines()) <= 30


def test_from_python_runs_as_it_stands(make_config, checkpoints, trained, tmp_path, monkeypatch):
    make_config({"checkpoints_path": str(checkpoints)})
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", section("From Python"), re.DOTALL)
    module = models.resnet18()
    module.fc = nn.Identity()
    paths = trained.load_splits().folder.paths
    pairs = [(paths[0], paths[number]) for number in range(1, 4)]
    namespace = {"my_module": module, "images": torch.randn(2, 2, 3, 64, 64), "pairs": pairs}
    exec(code, namespace)
    assert len(list((tmp_path / "results").glob("*.png"))) == 1 + len(pairs)


def test_nothing_is_left_to_be_filled_in():
    assert not re.findall(r"^[A-Z_]+$", README, re.MULTILINE)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
