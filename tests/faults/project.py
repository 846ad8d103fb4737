"""A tiny project to inject faults into: images, a config, and a trained network."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from helpers import changed, tiny_images, tiny_settings

from utils import Config, Trained, calibrate, fit, load_config, load_trained

FINISHED = {"hyperparameters.epochs": 6}  # of the run, as conftest.py trains it


@dataclass(frozen=True)
class Project:
    """Faults are injected into copies: neither folder is to be changed."""

    data: Path
    """A folder of classes."""
    checkpoints: Path
    """A folder with one finished and calibrated run."""

    def config(self, folder: Path, changes=()) -> Config:
        """Write the config to `folder`, where its checkpoints, results and cache are too, and load it.

        Args:
            folder: Made if it is missing.
            changes: Settings by dotted key.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.yml"
        path.write_text(yaml.safe_dump(changed(tiny_settings(self.data, folder), changes)))
        return load_config(path)

    def trained_config(self, folder: Path) -> Config:
        """Do the same, with a copy of the finished run, and quietly."""
        shutil.copytree(self.checkpoints, folder / "checkpoints")
        return self.config(folder, FINISHED | {"hyperparameters.verbose": False})

    def trained(self, folder: Path) -> Trained:
        """Return the network of a copy of the finished run."""
        return load_trained(self.trained_config(folder))


def make_project(folder: Path) -> Project:
    """Draw the images and train the network."""
    project = Project(folder / "Data", folder / "checkpoints")
    tiny_images(project.data)
    config = project.config(folder, FINISHED)
    fit(config)
    trained = load_trained(config)
    splits = trained.load_splits()
    calibrate(trained, splits, trained.distances(splits, splits.test_pairs))
    return project
