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
SIZES = 100  # different file sizes: nearly every file shares its size with another and has to be looked into


def entries(folder: Path, count: int):
    """`count` files in classes of 100, without pixels, each with eight bytes of its own in its middle."""
    sizes = 20_000 + np.random.default_rng(0).integers(0, SIZES, count)
    for number, size in enumerate(sizes.tolist()):
        below = folder / f"class{number // 100:05}"
        if number % 100 == 0:
            below.mkdir(parents=True)
        descriptor = os.open(below / f"{number:07}.jpg", os.O_CREAT | os.O_WRONLY)
        os.lseek(descriptor, size // 2, os.SEEK_SET)
        os.write(descriptor, number.to_bytes(8, "little"))
        os.ftruncate(descriptor, size)
        os.close(descriptor)


def measure_entries(folder: str) -> dict:
    """Seconds of each step and the peak memory of this process, in MB; run in a process of its own."""
    from utils import data

    random, seconds, clock = np.random.default_rng(0), {}, time.perf_counter
    began = clock()
    found = data.scan(folder)
    found.report()
    seconds["scan"] = clock() - began
    began = clock()
    data.keys_of(found)
    seconds["keys of the cache"] = clock() - began
    began = clock()
    train, _, _ = data.split(found.labels, found.contents, 0.1, 0.1, 0)
    seconds["split"] = clock() - began
    began = clock()
    data.draw_pairs(np.arange(len(found.paths)), found.labels, 1, random)
    seconds["pair rule"] = clock() - began
    began = clock()
    data.draw_batches(train, found.labels, 64, random)
    seconds["batches of an epoch"] = clock() - began
    return {"seconds": seconds, "megabytes": _peak()}


def measure_training(folder: str) -> dict:
    """Peak memory in MB of one epoch on the images of a folder; run in a process of its own."""
    from utils import fit, load_splits

    settings = config(
        {
            "data_path": folder,
            "backbone_model": "mobilenet_v3_small",
            "image.size": [224, 224],
            "explanation.layer": "last",
            "hyperparameters.epochs": 1,
            "hyperparameters.learning_rate": 1e-4,
            "hyperparameters.verbose": False,
            "cache_path": f"{folder}.cache",
            "checkpoints_path": f"{folder}.checkpoints",
        }
    )
    splits = load_splits(settings)
    fit(settings, splits)
    return {"images": len(splits.folder.paths), "megabytes": _peak()}


def run(folder: Path) -> tuple[list[Row], list[str]]:
    """All rows of this file, and lines to stand under the table."""
    found = {}
    for count in COUNTS:
        entries(folder / str(count), count)
        found[count] = _alone("measure_entries", folder / str(count))
        print(f"{count} entries: {found[count]}", flush=True)
    each = {count: sum(result["seconds"].values()) / count for count, result in found.items()}
    largest = found[COUNTS[-1]]
    total = sum(largest["seconds"].values())
    small, large = (
        _alone("measure_training", photographs(folder / name, 4, each_class, (240, 320)))
        for name, each_class in (("few", 100), ("many", 1000))
    )
    steps = ", ".join(f"{name} {value:.1f} s" for name, value in largest["seconds"].items())
    costs = ", ".join(f"{1e6 * cost:.1f} with {count:,}" for count, cost in each.items())
    return [
        Row(
            "cost per file entry, 1,000,000 of them",
            "the cheapest of 1,000 to 100,000",
            min(each.values()) / each[COUNTS[-1]],
            0.5,
        ),
        Row("1,000,000 file entries", "30 s", 30 / total, 1, note=f"{total:.1f} s"),
        Row(
            "1,000,000 file entries",
            "1 GB",
            1000 / largest["megabytes"],
            1,
            note=f"{largest['megabytes']:.0f} MB, torch included",
        ),
        Row(
            f"peak memory, training on {large['images']:,} images",
            f"on {small['images']:,}",
            small["megabytes"] / large["megabytes"],
            1 / 1.1,
            note=f"{small['megabytes']:.0f} to {large['megabytes']:.0f} MB",
        ),
    ], [f"Microseconds per file entry: {costs}.", f"A million of them: {steps}."]


def _alone(function, folder) -> dict:
    command = [sys.executable, __file__, function, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def _peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says of a child counts its parent's memory too
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](sys.argv[2])))
