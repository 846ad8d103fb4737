"""What all benchmarks share: procedures timed in turns within one process, and ratios of their medians."""

import platform
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from utils.config import Config, load_config

ROOT = Path(__file__).parent.parent.parent
PHOTOGRAPHS = "tests/benchmarks/photographs.yml"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    against: str
    ratio: float
    """How many times better `work` is done than by `against`."""
    target: float | None
    """The least ratio that is wanted."""
    spread: tuple[float, float] | None = None
    """Smallest and largest ratio of all rounds."""
    note: str = ""


def rounds(procedures: dict, count: int) -> dict[str, np.ndarray]:
    """Return the seconds of each procedure in `count` rounds, taking turns, after one round to warm up."""
    seconds = {name: [] for name in procedures}
    for number in range(count + 1):
        for name, procedure in procedures.items():
            began = time.perf_counter()
            procedure()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def row(work, against, ours, theirs, target, note="") -> Row:
    """Return a row from the seconds per unit of work of every round."""
    ratios = theirs / ours
    return Row(work, against, float(np.median(theirs) / np.median(ours)), target, (ratios.min(), ratios.max()), note)


def config(changes: dict, file="config.yml") -> Config:
    """Return the config of a file of the project, with changes given by dotted key."""
    return load_config(ROOT / file, [f"{key}={value}" for key, value in changes.items()])


def photographs(folder: Path, classes: int, each: int, size=(480, 640)) -> Path:
    """Write folders of generated JPEGs: coarse and fine colour noise, as large and as hard to decode as photographs."""
    random = np.random.default_rng(0)
    height, width = size
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(each):
            total = np.zeros((height, width, 3))
            for cells, weight in ((3 + label, 3), (15, 2), (120, 1)):
                grid = random.uniform(0, 255, (cells, cells * 4 // 3, 3))
                total += weight / 6 * cv2.resize(grid, (width, height))
            Image.fromarray(total.astype(np.uint8)).save(folder / f"class{label}" / f"{number}.jpg", quality=90)
    return folder


def machine() -> str:
    """Describe the machine in one line."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        model = cpuinfo.read_text().split("model name")[1].split(":")[1].splitlines()[0].strip()
    capabilities = torch.cpu.get_capabilities()
    units = [unit for unit in ("amx_bf16", "avx512_bf16") if capabilities.get(unit)]
    units = " and ".join(units) or "no bfloat16 units"
    return f"{model}, {torch.get_num_threads()} threads, {units}, torch {torch.__version__}"
