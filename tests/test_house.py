"""The arrows of the house: which folder may import which. What is not listed stands on top and may import all."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from helpers import ROOT

BASE = {"files", "vision", "config", "device"}
NETWORK = BASE | {"network"}
SCORE = NETWORK | {"data", "score"}
TRAIN = SCORE | {"train"}
EXPLAIN = NETWORK | {"explanations"}
TRAINED = TRAIN | EXPLAIN | {"trained"}
ARROWS = {
    "files": set(),
    "vision": set(),
    "config": {"files", "vision"},
    "device": {"config", "files", "vision"},
    "network": BASE,
    "data": BASE,
    "explanations": NETWORK,
    "trust/faithfulness": EXPLAIN,
    "score": BASE | {"data", "network"},
    "train": SCORE,
    "trained": TRAIN | EXPLAIN,
    "trust": TRAINED,
    "measured": TRAINED | {"trust"},
    "audit": TRAINED,
    "search": TRAINED | {"trust"},
}


def files_of(place):
    """The modules of a folder, or the one file; commands, which stand on top, left out."""
    path = ROOT / "utils" / place
    files = path.glob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return [file for file in files if file.name != "__main__.py"]


def modules_imported(file):
    """The modules of utils that a file imports from, as `data.splits`."""
    here = module_name(file).split(".")[:-1]  # the package of the file
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = here[: len(here) - node.level + 1]
            if node.module:
                modules.add(".".join([*package[1:], node.module]))
            else:
                modules.update(".".join([*package[1:], alias.name]) for alias in node.names)
    return modules


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("place", ARROWS)
def test_arrows_go_one_way(place):
    for file in files_of(place):
        own = {place.split("/")[0]}
        folders = {module.split(".")[0] for module in modules_imported(file)}
        assert folders - own <= ARROWS[place], file


def test_imports_inside_are_relative():
    for file in (ROOT / "utils").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level or node.module.split(".")[0] != "utils", file


def test_no_circle_among_files():
    imports = {}
    for file in (ROOT / "utils").rglob("*.py"):
        imports[module_name(file).removeprefix("utils.")] = modules_imported(file)
    assert list(TopologicalSorter(imports).static_order())  # raises CycleError
    assert imports["explanations.maps"] >= {"network.distance", "explanations.explanation"}


def test_every_place_of_the_house_is_known():
    places = {path.stem for path in (ROOT / "utils").iterdir() if path.suffix == ".py" or path.is_dir()}
    on_top = {"show", "notebooks", "__main__"}
    assert places - {"__init__", "__pycache__"} == {place for place in ARROWS if "/" not in place} | on_top


def test_only_figures_draw():
    for file in (ROOT / "utils").rglob("*.py"):
        draws = "matplotlib" in file.read_text()
        assert draws <= (file.parent.name == "show"), file


def test_the_public_names_are_there_and_explain_is_the_function():
    import utils

    assert all(getattr(utils, name) is not None for name in utils.__all__)
    assert set(utils.__all__) <= set(dir(utils))
    assert callable(utils.explain)
    with pytest.raises(AttributeError, match="nothing"):
        utils.nothing  # noqa: B018


def test_where_torch_is_complete_torchvision_may_come_first():
    """The operators are there before utils is imported, as a complete build brings them."""
    code = """
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import torchvision, utils
print(utils.explain)
"""
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "function explain" in run.stdout
