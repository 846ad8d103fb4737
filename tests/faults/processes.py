"""Two processes at once, in each combination of training, cache building and reading."""

import signal
import time
import traceback
import warnings

import numpy as np
from faults.commands import (
    LIMIT,
    MARKS,
    TINY,
    HangsError,
    complaint_about,
    finished,
    last_lines,
    reference_of,
    started,
)
from faults.outcomes import REFUSED, RIGHT, TRACEBACK, WRONG, Outcome

from utils import load_config, load_trained
from utils.data.cache import decode, open_pixels
from utils.data.images import scan
from utils.data.transforms import stored_size
from utils.files import UserError

WORK = "two processes at once"
TRIES = 12
QUICK = 3
PAUSE = 0.2  # seconds between two readings
NO_RUN = "holds no training run"
OTHER = "hyperparameters.learning_rate=0.0005"


def faults(project, random, tries, folder):
    """Each combination in turn."""
    reference = reference_of(project)
    for number in range(tries):
        inject = KINDS[number % len(KINDS)]
        place = folder / f"{number}_{inject.__name__.strip('_')}"
        try:
            yield inject(place.name, project, place, reference, random)
        except HangsError as error:
            yield Outcome(WRONG, f"{place.name}: {error}")


def _same_config_twice(fault, project, place, reference, random):
    return _second_training(fault, project, place, reference, random, ())


def _other_config_beside(fault, project, place, reference, random):
    return _second_training(fault, project, place, reference, random, ("--set", OTHER))


def _second_training(fault, project, place, reference, random, arguments) -> Outcome:
    """A second training while the first is held in its epochs: it is refused, and the first ends undisturbed."""
    project.config(place, TINY)
    share = random.random()
    with started(place) as first:
        first.says("Epoch ")
        first.sleep(share * reference.seconds["epochs"] * 0.7)  # with some epochs to go
        first.send(signal.SIGSTOP)
        with started(place, *arguments) as second:
            status = second.wait()
            message = second.text()
        first.send(signal.SIGCONT)
        ended = first.wait()
    if "Traceback" in message:
        return Outcome(TRACEBACK, f"{fault}: the second: {last_lines(message)}")
    complaint = f"the first: {last_lines(first.text())}" if ended else complaint_about(place, reference.result)
    if complaint:
        return Outcome(WRONG, f"{fault}: {complaint}; the second, status {status}: {last_lines(message)}")
    if status != 1 or "Epoch " in message or str(first.pid) not in message or "checkpoints_path" not in message:
        return Outcome(WRONG, f"{fault}: the second is not refused clearly, status {status}: {last_lines(message)}")
    return Outcome(REFUSED, f"{fault}: {last_lines(message)}")


def _reading_beside_training(fault, project, place, reference, random) -> Outcome:
    """Again and again the network is loaded, and explains a pair, while it is trained and prepared."""
    project.config(place, TINY)
    config = load_config(place / "config.yml")
    pair = [str(path) for path in sorted(project.data.rglob("*.png"))[:: int(random.integers(8, 20))][:2]]
    read = 0
    with started(place) as training:
        end = time.monotonic() + LIMIT
        while training.status is None and time.monotonic() < end:
            try:
                read += _read(config, pair)
            except UserError as error:
                if NO_RUN not in str(error) or read:
                    return Outcome(WRONG, f"{fault}: after {read} readings: {error}")
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                text = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
                return Outcome(TRACEBACK, f"{fault}: after {read} readings: {text}")
            training.sleep(PAUSE)
        status = training.wait()
        text = training.text()
    if status != 0:
        return Outcome(WRONG, f"{fault}: the training beside: status {status}: {last_lines(text)}")
    if not read:
        return Outcome(WRONG, f"{fault}: nothing could be read before training ended")
    complaint = complaint_about(place, reference.result)
    return Outcome(WRONG, f"{fault}: {complaint}") if complaint else Outcome(RIGHT, f"{fault}: {read} readings")


def _read(config, pair) -> bool:
    """Load the current network and explain a pair. Raises ArithmeticError where it is not whole and named."""
    trained = load_trained(config)
    if trained.folder.name not in str(trained) or not (trained.folder / "best.pt").exists():
        raise ArithmeticError(f"not named: {trained}")
    if not 1 <= len(trained.history) <= TINY["hyperparameters.epochs"]:
        raise ArithmeticError(f"{len(trained.history)} epochs")
    explanation = trained.explain(pair)
    values = [trained.validation[1], *(part.numpy() for part in (explanation.similarity, explanation.factual))]
    if not all(np.isfinite(part).all() for part in values):
        raise ArithmeticError("distances or a map are not finite")
    return True


def _two_cache_builds(fault, project, place, reference, random) -> Outcome:
    """Of the same images into one folder; one starts a moment after the other."""
    config = project.config(place, TINY)
    with started(place, module="utils.data") as first:
        first.sleep(random.uniform(0, 0.3))
        with started(place, module="utils.data") as second:
            statuses = [first.wait(), second.wait()]
            outputs = [first.text(), second.text()]
    if statuses != [0, 0]:
        return Outcome(WRONG, f"{fault}: statuses {statuses}: {' | '.join(map(last_lines, outputs))}")
    if outputs[0] != outputs[1]:
        return Outcome(WRONG, f"{fault}: they say different things: {' | '.join(map(last_lines, outputs))}")
    return _judged(fault, _wrong_pixels(config))


def _training_beside_a_cache_build(fault, project, place, reference, random) -> Outcome:
    """Both fill the same cache."""
    config = project.config(place, TINY)
    with started(place) as training:
        training.sleep(random.uniform(0, 0.3))
        with started(place, module="utils.data") as build:
            statuses = [training.wait(), build.wait()]
            outputs = [training.text(), build.text()]
    if statuses != [0, 0]:
        return Outcome(WRONG, f"{fault}: statuses {statuses}: {' | '.join(map(last_lines, outputs))}")
    return _judged(fault, _wrong_pixels(config) or complaint_about(place, reference.result))


def _reading_beside_a_cache_build(fault, project, place, reference, random) -> Outcome:
    """A network's splits are loaded, which reads the cache, while another process builds and rebuilds it."""
    config = project.trained_config(place)
    trained = load_trained(config)
    expected = trained.validation[1]
    read = 0
    for _ in range(2):
        for file in config.cache_path.glob("*.pixels"):
            file.unlink()
        with started(place, module="utils.data") as build:
            while build.status is None or not read:
                splits = trained.load_splits()
                distances = trained.distances(splits, splits.valid_pairs)
                if not np.allclose(distances, expected, atol=1e-5):
                    return Outcome(WRONG, f"{fault}: other distances than in training")
                read += 1
            if build.wait() != 0:
                return Outcome(WRONG, f"{fault}: the build: {last_lines(build.text())}")
    return _judged(f"{fault}: {read} readings", _wrong_pixels(config))


def _two_trainings_of_one_cache(fault, project, place, reference, random) -> Outcome:
    """Each with a checkpoints_path of its own: both end like one alone."""
    folders = [place / "first", place / "second"]
    shared = {**TINY, "cache_path": str(place / "cache")}
    for folder in folders:
        project.config(folder, shared)
    with started(folders[0]) as first:
        first.sleep(random.uniform(0, 0.5))
        with started(folders[1]) as second:
            statuses = [first.wait(), second.wait()]
            outputs = [first.text(), second.text()]
    if statuses != [0, 0]:
        return Outcome(WRONG, f"{fault}: statuses {statuses}: {' | '.join(map(last_lines, outputs))}")
    complaints = [complaint_about(folder, reference.result) for folder in folders]
    return _judged(fault, complaints[0] or complaints[1])


def _after_a_killed_one(fault, project, place, reference, random) -> Outcome:
    """The lock of a process that was killed keeps nobody out."""
    project.config(place, TINY)
    share = random.random()
    with started(place) as first:
        first.says(MARKS["epochs"])
        first.sleep(share * reference.seconds["epochs"])
        first.send(signal.SIGKILL)
        first.wait()
    return _judged(f"{fault}, killed after {share:.2f} of the epochs", finished(place, reference.result))


def _judged(fault, complaint) -> Outcome:
    return Outcome(WRONG, f"{fault}: {complaint}") if complaint else Outcome(RIGHT, fault)


def _wrong_pixels(config) -> str | None:
    """What is wrong with the cache, opened anew: not the pixels of the images, or a warning."""
    folder = scan(config.data_path)
    size = stored_size(config.image)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels = open_pixels(folder, size, config.cache_path, show_progress=False)
        found = pixels[np.arange(len(folder.paths))]
    if caught:
        return str(caught[0].message)
    expected = np.stack([decode(path, size) for path in folder.paths])
    return None if np.array_equal(found, expected) else "other pixels"


KINDS = (
    _same_config_twice,
    _reading_beside_training,
    _two_cache_builds,
    _other_config_beside,
    _after_a_killed_one,
    _training_beside_a_cache_build,
    _reading_beside_a_cache_build,
    _two_trainings_of_one_cache,
)
