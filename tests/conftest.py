"""Shared fixtures: a tiny dataset that can be learned, configs for it, and the devices of this machine."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from utils.config import load_config
from utils.evaluation import load_trained
from utils.training import fit

ROOT = Path(__file__).parent.parent
COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (200, 50, 40)}


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request):
    return torch.device(request.param)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Three classes of ten noisy images, 40 pixels high and 48 wide, told apart by their colour."""
    root, random = tmp_path_factory.mktemp("tiny") / "Data", np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.clip(random.normal(colour, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}_{number}.png")
    return root


@pytest.fixture
def settings(tiny_data, tmp_path):
    """The shipped config.yml as a dict, made tiny and quick."""
    content = yaml.safe_load((ROOT / "config.yml").read_text())
    content |= {
        "data_path": str(tiny_data),
        "checkpoints_path": str(tmp_path / "checkpoints"),
        "results_path": str(tmp_path / "results"),
        "cache_path": str(tmp_path / "cache"),
        "test_size": 0.3,
        "valid_size": 0.3,
        "embedding_size": 8,
        "precision": "float32",
        "cuda": False,
    }
    content["image"]["size"] = [32, 40]
    content["hyperparameters"] |= {"epochs": 2, "batch_size": 8}
    return content


@pytest.fixture
def make_config(settings, tmp_path):
    """make_config(changes) writes the tiny config with changes given by dotted key, and loads it."""

    def make(changes=(), name="config.yml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(changed(settings, changes)))
        return load_config(path)

    return make


@pytest.fixture
def trained(make_config):
    """A network for the tiny dataset, of one epoch."""
    config = make_config({"hyperparameters.epochs": 1, "hyperparameters.verbose": False})
    fit(config)
    return load_trained(config)


def changed(settings, changes):
    """A copy of nested settings with dotted keys replaced: {"image.size": [32, 32]}."""
    content = yaml.safe_load(yaml.safe_dump(settings))
    for key, value in dict(changes).items():
        *sections, name = key.split(".")
        section = content
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return content


def write_images(folder, count, size=(32, 32), seed=0):
    """`count` distinct noise images as PNG files in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
