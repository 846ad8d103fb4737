"""Growth: a thousand to a million file entries through scan, split and pair rule; memory with ten times the images."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from side_by_side import ROOT, Row, config, photographs

COUNTS = (1_000, 10_000, 100_000, 1_000_000)


def write_entries(folder: Path, count: int):
    """Write `count` empty files in classes of 100: no step that is measured reads what they hold."""
    for number in range(count):
        below = folder / f"class{number // 100:05}"
        if number % 100 == 0:
            below.mkdir(parents=True)
        (below / f"{number:07}.jpg").touch()


def measure_entries(path: str) -> dict:
    """Return the seconds of each step and the peak memory in MB; run in a process of its own."""
    from utils.data.batches import draw_batches
    from utils.data.cache import keys_of
    from utils.data.images import scan
    from utils.data.splits import draw_pairs, split

    random = np.random.default_rng(0)
    times = [time.perf_counter()]
    folder = scan(path)
    folder.report()
    times.append(time.perf_counter())
    keys_of(folder)
    times.append(time.perf_counter())
    images = np.arange(len(folder.paths))
    train, _, _ = split(folder.labels, images, 0.1, 0.1, 0)
    times.append(time.perf_counter())
    draw_pairs(images, folder.labels, 1, random)
    times.append(time.perf_counter())
    draw_batches(train, folder.labels, 64, random)
    times.append(time.perf_counter())
    steps = ("scan", "keys of the cache", "split", "pair rule", "batches of an epoch")
    return {"seconds": dict(zip(steps, np.diff(times), strict=True)), "megabytes": peak_memory()}


def measure_training(path: str) -> dict:
    """Return the peak memory in MB of one epoch on the images of a folder; run in a process of its own."""
    from utils import fit, load_splits

    settings = config(
        {
            "data_path": path,
            "backbone_model": "mobilenet_v3_small",
            "image.size": [224, 224],
            "explanation.layer": "last",
            "hyperparameters.epochs": 1,
            "hyperparameters.learning_rate": 1e-4,
            "hyperparameters.verbose": False,
            "cache_path": f"{path}.cache",
            "checkpoints_path": f"{path}.checkpoints",
        }
    )
    splits = load_splits(settings)
    fit(settings, splits)
    return {"images": len(splits.folder.paths), "megabytes": peak_memory()}


def run(folder: Path) -> tuple[list[Row], list[str]]:
    """Return all rows of this file, and lines to stand under the table."""
    costs = {}  # seconds per file entry
    for count in COUNTS:
        write_entries(folder / str(count), count)
        entries = in_own_process("measure_entries", folder / str(count))
        total = sum(entries["seconds"].values())
        costs[count] = total / count
        print(f"{count} entries: {entries}", flush=True)
    few = in_own_process("measure_training", photographs(folder / "few", 4, 100, (240, 320)))
    many = in_own_process("measure_training", photographs(folder / "many", 4, 1000, (240, 320)))
    name = f"{count:,} file entries"
    ratio = min(costs.values()) / costs[count]
    growth = few["megabytes"] / many["megabytes"]
    rows = [
        Row(f"cost per file entry, {count:,} of them", "the cheapest of 1,000 to 100,000", ratio, 0.5),
        Row(name, "30 s", 30 / total, 1, note=f"{total:.1f} s"),
        Row(
            name,
            "1 GB",
            1000 / entries["megabytes"],
            1,
            note=f"{entries['megabytes']:.0f} MB, torch included",
        ),
        Row(
            f"peak memory, training on {many['images']:,} images",
            f"on {few['images']:,}",
            growth,
            1 / 1.1,
            note=f"{few['megabytes']:.0f} to {many['megabytes']:.0f} MB",
        ),
    ]
    each = ", ".join(f"{1e6 * cost:.1f} with {number:,}" for number, cost in costs.items())
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in entries["seconds"].items())
    return rows, [f"Microseconds per file entry: {each}.", f"{count:,} of them: {steps}."]


def in_own_process(function, path) -> dict:
    """Return what a function of this file returns in a process of its own."""
    command = [sys.executable, __file__, function, str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def peak_memory() -> float:
    """Return the peak memory of this process in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage of a child counts the memory of its parent too
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](sys.argv[2])))
