"""All works of the campaign."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from faults import configs, folders, images, numbers, places, processes, saved
from faults.outcomes import Outcome
from faults.project import Project


class Work(NamedTuple):
    """A work of the campaign."""

    title: str
    """In the table."""
    tries: int
    """How many faults the campaign injects."""
    quick: int
    """How many `make test` injects."""
    faults: Callable
    """A generator of so many outcomes, from (project, random, tries, folder): `random` is a NumPy generator for all
    that is drawn, `folder` an empty one."""


IN_PROCESS = {
    "configs": Work("fuzzed configs", 1000, 150, configs.faults),
    "images": Work("image files", 400, 27, images.faults),
    "folders": Work("folders and names", 60, 7, folders.faults),
    "names": Work("hostile names", 20, 3, folders.hostile_names),
    "checkpoints": Work("damaged and edited checkpoints", 200, 42, saved.damaged_checkpoints),
    "weights": Work("pretrained weights", 110, 55, saved.pretrained_weights),
    "caches": Work("damaged caches", 200, 54, saved.damaged_caches),
    "numbers": Work("numbers at their limits", 112, 28, numbers.at_their_limits),
    "soak": Work("explanations, one after the other", 500, 20, numbers.soak),
}
COMMANDS = {
    "stops": Work("kills and interrupts of trainings", 100, 3, processes.stopped),
    "disks": Work("full and read-only disks", 14, 3, processes.disks),
    "two": Work("two processes at once", 12, 2, processes.two_at_once),
    "ranks": Work("a rank killed under torchrun", 3, 1, processes.killed_ranks),
}
WORKS = IN_PROCESS | COMMANDS
WORKS["places"] = Work("maps in their places", 300, 0, places.faults)  # tried by tests/network/test_places.py


def outcomes_of(name: str, project: Project, tries: int, seed: int, folder) -> list[Outcome]:
    """Inject faults of a work."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng([seed, list(WORKS).index(name)])
    return list(WORKS[name].faults(project, random, tries, folder))
