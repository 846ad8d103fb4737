"""Shared fixtures: a tiny dataset that can be learned, configs for it, and the devices of this machine."""

import os
import shutil

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, also by processes that tests start

import pytest
import torch
import yaml
from helpers import changed, tiny_images, tiny_settings
from pillow_heif import register_heif_opener

from utils import calibrate, fit, load_config, load_trained
from utils.device import seed_everything

register_heif_opener(thumbnails=False)  # tests save HEIF, too

LONGEST = ("test_fault_commands.py", "test_notebooks.py", "test_families.py", "test_parallel.py", "test_package.py")


def pytest_collection_modifyitems(items):
    """The longest come first: at the end all other processes would wait for them."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same weights and images at every run."""
    seed_everything(0)
    torch.use_deterministic_algorithms(False)  # which another test may have set, for the whole process


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request):
    return torch.device(request.param)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Three classes of ten noisy images, 40 pixels high and 48 wide, told apart by their colour."""
    root = tmp_path_factory.mktemp("tiny") / "Data"
    tiny_images(root)
    return root


@pytest.fixture
def settings(tiny_data, tmp_path):
    """The shipped config.yml as a dict, made tiny and quick."""
    return tiny_settings(tiny_data, tmp_path)


@pytest.fixture
def make_config(settings, tmp_path):
    """make_config(changes) writes the tiny config with changes given by dotted key, and loads it."""

    def make(changes=(), name="config.yml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(changed(settings, changes)))
        return load_config(path)

    return make


@pytest.fixture(scope="session")
def checkpoints(tiny_data, tmp_path_factory):
    """The folder of the checkpoints of a network for the tiny dataset, of six epochs, trained once for all tests."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "config.yml").write_text(yaml.safe_dump(tiny_settings(tiny_data, folder) | {"results_path": "unused"}))
    config = load_config(folder / "config.yml", ["hyperparameters.epochs=6"])
    fit(config)
    return config.checkpoints_path


@pytest.fixture(scope="session")
def calibrated_checkpoints(checkpoints, tmp_path_factory):
    """The same, calibrated."""
    folder = tmp_path_factory.mktemp("measurements")
    shutil.copytree(checkpoints, folder / "checkpoints")
    shutil.copy(checkpoints.parent / "config.yml", folder)
    config = load_config(checkpoints.parent / "config.yml", [f"checkpoints_path={folder / 'checkpoints'}"])
    trained = load_trained(config)
    splits = trained.load_splits()
    calibrate(trained, splits, trained.distances(splits, splits.test_pairs))
    return config.checkpoints_path


@pytest.fixture(scope="module")
def calibrated_once(calibrated_checkpoints, tmp_path_factory):
    """The same, loaded once for all tests of a file; its results and its cache are theirs in common."""
    folder = tmp_path_factory.mktemp("once")
    places = [f"{name}={folder}" for name in ("results_path", "cache_path")]
    config = calibrated_checkpoints.parent / "config.yml"
    return load_trained(load_config(config, [f"checkpoints_path={calibrated_checkpoints}", *places]))


@pytest.fixture
def trained(make_config, checkpoints):
    """That network. Tests must not change it or its files."""
    return load_trained(make_config({"checkpoints_path": str(checkpoints)}))


@pytest.fixture
def calibrated(make_config, calibrated_checkpoints):
    """The same network, calibrated. Tests must not change it or its files."""
    return load_trained(make_config({"checkpoints_path": str(calibrated_checkpoints)}))
