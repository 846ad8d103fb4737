"""The corridor: each module imports only those before it, and every room has a reasonable size."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

CORRIDOR = ["config", "runtime", "parallel", "images", "transforms", "cache", "delivery", "pairs", "siamese", "losses"]
CORRIDOR += ["metrics", "checkpoint", "evaluation", "epoch", "training", "explanation", "gradcam", "integrated"]
CORRIDOR += ["occlusion", "dilation", "faithfulness", "methods", "planted", "sanity", "comparison", "decomposition"]
CORRIDOR += ["counterfactuals", "plots", "heatmaps"]
ASIDE = ["notebooks", "sample_data"]  # the doors of the house; sample_data itself imports no room


def imports(name):
    tree = ast.parse((ROOT / "utils" / f"{name}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_the_corridor_is_the_whole_house():
    modules = {path.stem for path in (ROOT / "utils").glob("*.py")} - {"__init__"}
    assert modules == set(CORRIDOR) | set(ASIDE)


@pytest.mark.parametrize("name", CORRIDOR)
def test_imports_only_rooms_before_it(name):
    before = {f"utils.{room}" for room in ["sample_data", *CORRIDOR[: CORRIDOR.index(name)]]}
    assert {module for module in imports(name) if module.startswith("utils")} <= before


@pytest.mark.parametrize("name", CORRIDOR + ASIDE)
def test_rooms_have_30_to_200_lines(name):
    assert 30 <= len((ROOT / "utils" / f"{name}.py").read_text().splitlines()) <= 200


@pytest.mark.parametrize("name", CORRIDOR + ASIDE)
def test_only_plots_and_heatmaps_draw(name):
    assert any(module.startswith("matplotlib") for module in imports(name)) == (name in ("plots", "heatmaps"))


def test_readme_maps_the_corridor_in_order():
    section = (ROOT / "README.md").read_text().split("## The module map")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == CORRIDOR


def test_torchvision_imports_beside_any_build_of_torch():
    code = "import utils, torchvision; from torchvision.transforms import v2; print(torchvision.models.resnet18().fc)"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "out_features=1000" in run.stdout
