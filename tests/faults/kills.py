"""Commands killed at random moments: training goes on to the identical result; no cache is read that is not whole."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from faults.commands import ENDS, PATIENCE, HangsError, chain, draw_stops, last_lines, reference_of, remains, started
from faults.outcomes import RIGHT, WRONG, Outcome
from PIL import Image

from utils.data.cache import decode, open_pixels
from utils.data.images import scan
from utils.data.transforms import stored_size

WORK = "kills"
TRIES = 90
QUICK = 2
KILLS = 6  # of one training
SIDE_BY_SIDE = 2
IMAGES = 300  # of the cache that is built
LARGE = (600, 800)  # height, width


def faults(project, random, tries, folder):
    """Two thirds in training, one third in cache builds."""
    in_caches = -(-tries // 3)
    reference_of(project)
    stops = draw_stops(random, [signal.SIGKILL] * (tries - in_caches))
    chains = [stops[start : start + KILLS] for start in range(0, len(stops), KILLS)]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        folders = [folder / f"training_{number}" for number in range(len(chains))]
        for outcomes in pool.map(lambda place, part: chain(project, place, part), folders, chains):
            yield from outcomes
    yield from _killed_builds(project, random, in_caches, folder)


def _killed_builds(project, random, tries, folder):
    """Of the cache of some hundred images, each killed while it decodes or soon after."""
    data = folder / "Data"
    _draw_images(data, random)
    size = stored_size(project.config(folder / "config").image)
    paths = scan(data).paths
    began = time.monotonic()
    expected = np.stack([decode(path, size) for path in paths])
    seconds = time.monotonic() - began
    for number in range(tries):
        place = folder / f"cache_{number}"
        config = project.config(place, {"data_path": str(data)})
        yield _killed_build(place, config, expected, random.uniform(0, 1.2) * seconds)


def _killed_build(place, config, expected, seconds):
    """A build, killed so many seconds after it has begun to decode; then the cache is opened anew."""
    fault = f"{place.name}, SIGKILL after {seconds:.2f} s of decoding"
    for attempt in range(PATIENCE):
        with started(place, module="utils.data") as command:
            try:
                command.until(lambda: list(config.cache_path.glob("*.lock")))
                command.sleep(seconds / 2**attempt)
                command.send(signal.SIGKILL)
                status = command.wait(ENDS)
            except HangsError as error:
                return Outcome(WRONG, f"{fault}: {error}")
            if status > 0:
                return Outcome(WRONG, f"{fault}: ends with status {status}: {last_lines(command.text())}")
        if status == -signal.SIGKILL:
            break
        for file in config.cache_path.iterdir():  # it was built before the kill: again, and sooner
            file.unlink()
    folder = scan(config.data_path)
    pixels = open_pixels(folder, stored_size(config.image), config.cache_path, show_progress=False)
    wrong = (pixels[np.arange(len(folder.paths))] != expected).any(axis=(1, 2, 3))
    if wrong.any():
        return Outcome(WRONG, f"{fault}: {wrong.sum()} images have other pixels")
    if remains(place):
        return Outcome(WRONG, f"{fault}: temporary files are left: {remains(place)}")
    return Outcome(RIGHT, fault)


def _draw_images(data, random):
    """Two classes of smooth noise, which is slow to decode and quick to write."""
    for number in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        path = data / ("one", "other")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize(LARGE[::-1]).save(path, compress_level=1)
