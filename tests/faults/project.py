"""A tiny project to inject faults into: images, a config, and a trained network."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from helpers import changed, tiny_images, tiny_settings

from utils import calibrate, fit, load_config, load_trained
from utils.config import Config


@dataclass(frozen=True)
class Project:
    """data: a folder of classes. checkpoints: a folder with one finished and prepared run. Neither is to be changed."""

    data: Path
    checkpoints: Path

    def config(self, folder: Path, changes=()) -> Config:
        """The config, with changes by dotted key, as a file in `folder`, where its checkpoints, results and cache are
        too.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.yml"
        path.write_text(yaml.safe_dump(changed(tiny_settings(self.data, folder), changes)))
        return load_config(path)

    def trained_config(self, folder: Path, changes=()) -> Config:
        """The same, with a copy of the finished run."""
        shutil.copytree(self.checkpoints, folder / "checkpoints")
        return self.config(folder, changes)


def make_project(folder: Path) -> Project:
    """Draw the images and train the network."""
    data = folder / "Data"
    tiny_images(data)
    project = Project(data, folder / "checkpoints")
    config = project.config(folder)
    fit(config)
    trained = load_trained(config)
    splits = trained.load_splits()
    calibrate(trained, splits, trained.distances(splits, splits.test_pairs))
    return project
