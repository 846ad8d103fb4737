"""All works of the campaign. Each is a module of this folder with

WORK: its title in the table. TRIES: how many faults the campaign injects. QUICK: how many `make test` injects.
faults(project, random, tries, folder): a generator of so many outcomes, with a NumPy generator for all that is drawn
and an empty folder for its files.
"""

from importlib import import_module

NAMES = (
    "configs",
    "images",
    "folders",
    "names",
    "checkpoints",
    "weights",
    "caches",
    "numerics",
    "soak",
    "kills",
    "interrupts",
    "disks",
    "processes",
    "ranks",
)
WORKS = {name: import_module(f"faults.{name}") for name in NAMES}
