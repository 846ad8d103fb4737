"""All works of the campaign. Each is a module of this folder with

WORK: its title in the table. TRIES: how many faults the campaign injects. QUICK: how many `make test` injects.
faults(project, random, tries, folder): a generator of so many outcomes, with a NumPy generator for all that is drawn
and an empty folder for its files.
"""

from importlib import import_module

import numpy as np
from faults.outcomes import REFUSED, RIGHT, Outcome
from faults.project import Project

IN_PROCESS = ("configs", "images", "folders", "names", "checkpoints", "weights", "caches", "numerics", "soak")
COMMANDS = ("kills", "interrupts", "disks", "processes", "ranks")
OF_NETWORKS = ("places",)  # their quick part is tests/network/test_places.py
WORKS = {name: import_module(f"faults.{name}") for name in (*IN_PROCESS, *COMMANDS, *OF_NETWORKS)}


def quick_faults(name: str, data, checkpoints, folder) -> tuple[list[Outcome], list[str]]:
    """The outcomes of a few faults of a work, and what the bad ones say."""
    work = WORKS[name]
    outcomes = list(work.faults(Project(data, checkpoints), np.random.default_rng(0), work.QUICK, folder))
    return outcomes, [outcome.note for outcome in outcomes if outcome.kind not in (RIGHT, REFUSED)]
