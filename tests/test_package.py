"""The package: what an import loads and changes, and what `pip install .` installs."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers import ENVIRONMENT, ROOT

SURROUNDINGS = """
import locale, os, signal, sys, warnings

def surroundings():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return dict(os.environ), handlers, list(warnings.filters), list(sys.path), os.getcwd(), sys.stdout.errors

before = surroundings()
{statement}
assert surroundings() == before
print(*sys.modules)
"""
MODULE = """
import torch
import utils
from explainable_image_similarity import Cut, explain, figure, judge, saved

assert utils.MINE == 1
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2))
module = torch.nn.Sequential(module, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
network = Cut(module, layer="0")
explanation = explain(network, torch.rand(2, 2, 3, 32, 40), threshold=0.5)
assert explanation.factual.shape == (2, 2, 32, 40)
saved(figure(explanation[0], judge(network, explanation[0])), "results")
"""


def loaded(statement):
    """Return the modules that are loaded after a statement, which must not change anything outside them."""
    code = SURROUNDINGS.format(statement=statement)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_an_import_changes_nothing_and_loads_little():
    assert not loaded("import utils") & {"torch", "timm", "torchvision", "matplotlib", "numpy", "pandas"}


@pytest.mark.parametrize(
    ("names", "absent"),
    [
        ("load_config", {"torch", "timm", "matplotlib"}),
        ("explain, Cut, load_config", {"matplotlib", "timm", "torchvision", "pandas"}),
    ],
)
def test_names_load_only_what_they_need(names, absent):
    modules = loaded(f"import torch\nfrom utils import {names}" if "explain" in names else f"from utils import {names}")
    assert not modules & absent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which the wheel of the project was installed."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    shutil.copytree(ROOT / "utils", source / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", "--no-build-isolation", *offline, "--wheel-dir", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", folder / "site", wheel], check=True)
    return folder / "site"


def test_the_installed_package_has_every_file(installed):
    files = set()
    for path in (ROOT / "utils").rglob("*.*"):
        if path.suffix in (".py", ".pyi", ".js", ".css"):
            files.add(path.relative_to(ROOT / "utils"))
    package = installed / "explainable_image_similarity"
    assert files == {path.relative_to(package) for path in package.rglob("*.*") if path.suffix != ".pyc"}
    assert "Requires-Dist: torch==" in next(installed.glob("*.dist-info/METADATA")).read_text()


def test_the_installed_package_explains_beside_another_utils(installed, tmp_path):
    (tmp_path / "utils.py").write_text("MINE = 1\n")
    (tmp_path / "mine.py").write_text(MODULE)
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "mine.py"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(list((tmp_path / "results").glob("*.png"))) == 1


def test_the_installed_package_has_the_commands(installed, tmp_path):
    (tmp_path / "utils.py").write_text("MINE = 1\n")
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "explainable_image_similarity"]
    for arguments, status in ((["--help"], 0), (["audit"], 1), (["audit", "--help"], 0)):
        run = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == status, run.stderr
        if status:
            assert run.stderr.strip() == f"{tmp_path}/config.yml: no such file. Name a config file that exists"
        else:
            assert run.stdout.startswith("usage: python -m explainable_image_similarity")
