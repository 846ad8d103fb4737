"""What all benchmarks share: procedures timed in turns within one process, ratios of their medians, rows of a table."""

import platform
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from PIL import Image

from utils.config import Config

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Row:
    """One line of the table: `ratio` is how many times better `work` is done than by `against`; target: at least."""

    work: str
    against: str
    ratio: float
    target: float | None
    spread: tuple[float, float] | None = None
    note: str = ""


def rounds(procedures: dict, count: int) -> dict[str, np.ndarray]:
    """Seconds of each procedure in `count` rounds, taking turns; one round before them is thrown away."""
    seconds = {name: [] for name in procedures}
    for number in range(count + 1):
        for name, procedure in procedures.items():
            began = time.perf_counter()
            procedure()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def row(work, against, ours, theirs, target, note="") -> Row:
    """A row from the seconds per unit of work of every round."""
    ratios = theirs / ours
    return Row(work, against, float(np.median(theirs) / np.median(ours)), target, (ratios.min(), ratios.max()), note)


def config(changes: dict) -> Config:
    """The shipped config with changes given by dotted key."""
    content = yaml.safe_load((ROOT / "config.yml").read_text())
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = content
        for part in sections:
            section = section[part]
        section[name] = value
    return Config.model_validate(content)


def photographs(folder: Path, classes: int, each: int, size=(480, 640), seed=0) -> Path:
    """Folders of generated JPEGs: coarse and fine colour noise, as large and as hard to decode as photographs."""
    random, (height, width) = np.random.default_rng(seed), size
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        for number in range(each):
            grids = [random.uniform(0, 255, (n, n * 4 // 3, 3)) for n in (3 + label, 15, 120)]
            pixels = np.average([cv2.resize(grid, (width, height)) for grid in grids], axis=0, weights=(3, 2, 1))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class{label}" / f"{number}.jpg", quality=90)
    return folder


def machine() -> str:
    """The machine in one line."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    units = [unit for unit in ("amx_bf16", "avx512_bf16") if torch.cpu.get_capabilities().get(unit)]
    units = " and ".join(units) or "no bfloat16 units"
    return f"{model}, {torch.get_num_threads()} threads, {units}, torch {torch.__version__}"
