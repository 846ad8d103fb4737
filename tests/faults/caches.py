"""Caches of pixels, hashes and embeddings, damaged before they are opened and while they are: nothing read is false."""

import multiprocessing
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from faults.outcomes import WRONG, Outcome, attempt
from PIL import Image

from utils import gallery, load_trained, scan
from utils.data.cache import decode, open_pixels
from utils.data.duplicates import hashes_of

WORK = "damaged caches"
TRIES = 200
QUICK = 40
SIZE = (32, 40)
PATIENCE = 60  # seconds for one fault in a child process
EDITED = "an image was edited, its size and time kept"


@dataclass(frozen=True)
class Store:
    """What is kept of a folder of images in a file below a cache folder.

    opened: from the folder of images and that of the cache, or None, to what reads it. read: from that to all arrays.
    pattern: of the file.
    """

    opened: Callable
    read: Callable
    pattern: str


@dataclass(frozen=True)
class Place:
    """A folder of images with all that is kept of it, and the right arrays. files: what the cache held when whole."""

    images: Path
    cache: Path
    right: dict[str, list]
    files: dict[Path, bytes]

    def mend(self):
        """The cache as it was."""
        shutil.rmtree(self.cache)
        for path, content in self.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def file(self, store) -> Path:
        """The file of a store."""
        (path,) = (path for path in self.files if path.match(store.pattern))
        return path


def faults(project, random, tries, folder):
    trained = load_trained(project.config(folder, {"checkpoints_path": str(project.checkpoints)}))
    stores = stores_of(trained)
    place = place_of(_copied(project.data, folder / "own"), stores)
    other = place_of(_turned(_copied(project.data, folder / "other")), stores)
    edited = _copied(project.data, folder / "edited")
    while_open = []
    for number in range(tries):
        damage = list(DAMAGES)[number % len(DAMAGES)]
        name = list(stores)[number % len(stores)]
        fault = f"{name}, {damage}"
        if damage == EDITED:
            yield _edited_outcome(fault, name, stores, edited, random)
            continue
        damaging = partial(DAMAGES[damage], place.file(stores[name]), other.file(stores[name]), random)
        if number % 2:
            while_open.append((f"{fault}, while open", name, damaging))
        else:
            yield _outcome(fault, stores[name], name, place, damaging)
    yield from _in_children(while_open, stores, place)


def stores_of(trained) -> dict[str, Store]:
    def pixels(images, cache):
        return open_pixels(scan(images), SIZE, cache, show_progress=False)

    def hashes(images, cache):
        return hashes_of(pixels(images, cache))

    def embeddings(images, cache):
        config = trained.config.changed(cache_path=cache).from_source(None)
        return gallery(replace(trained, config=config), images)

    return {
        "pixels": Store(pixels, lambda opened: [opened[np.arange(len(opened))]], "*.pixels"),
        "hashes": Store(hashes, lambda opened: [opened], "*.hashes"),
        "embeddings": Store(embeddings, lambda opened: [np.array(opened.embeddings), opened.names], "embeddings/*.np*"),
    }


def right_arrays(images, stores) -> dict[str, list]:
    """What is to be read of the images as they are now, found without a cache."""
    arrays = {name: store.read(store.opened(images, None)) for name, store in stores.items()}
    return arrays | {"pixels": [np.stack([decode(path, SIZE) for path in scan(images).paths])]}


def place_of(images, stores) -> Place:
    """A folder of images whose caches are filled."""
    cache = images.parent / "cache"
    for store in stores.values():
        store.opened(images, cache)
    files = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"}
    return Place(images, cache, right_arrays(images, stores), files)


def _outcome(fault, store, name, place, damaging, while_open=False) -> Outcome:
    """What is read from a cache that is damaged before it is opened, or after."""
    place.mend()
    file = place.file(store)
    told = []

    def act():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if not while_open:
                damaging()
            opened = store.opened(place.images, place.cache)
            if while_open:
                damaging()
            arrays = [*store.read(opened), *store.read(opened)]
        told.extend(str(warning.message) for warning in caught)
        return arrays

    def complaint(arrays):
        silent = [text for text in told if str(file) not in text]
        return f"a warning does not name the file: {silent[0]}" if silent else _difference(arrays, place.right[name])

    return attempt(fault, act, complaint, (str(file),))


def _edited_outcome(fault, name, stores, images, random) -> Outcome:
    """What is read of an image that was edited after the cache was filled, at the same size and time."""
    store = stores[name]
    cache = images.parent / "cache"
    store.opened(images, cache)
    paths = scan(images).paths
    _edit(paths[random.integers(len(paths))], random)
    right = right_arrays(images, stores)[name]
    return attempt(fault, lambda: store.read(store.opened(images, cache)), lambda found: _difference(found, right))


def _difference(arrays, right):
    """What is wrong with arrays, read once or more often."""
    wanted = right * (len(arrays) // len(right))
    if not all(np.array_equal(*pair) for pair in zip(arrays, wanted, strict=True)):
        return "what was read is false"
    return None


def _in_children(cases, stores, place):
    """The outcomes of faults while a cache is open, tried in a child process: where it dies, the next one goes on."""
    done = 0
    while done < len(cases):
        receiver, child = _start_child(cases[done:], stores, place)
        try:
            while done < len(cases) and receiver.poll(PATIENCE):
                yield receiver.recv()
                done += 1
        except EOFError:
            pass  # it died; the case that it was at is told below
        if done < len(cases):
            child.kill()  # where it hangs
        child.join()
        if done < len(cases):
            yield Outcome(WRONG, f"{cases[done][0]}: the process hung, or ended with {child.exitcode}")
            done += 1


def _start_child(cases, stores, place):
    context = multiprocessing.get_context("fork")  # importing torch once more takes seconds
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_outcomes, args=(sender, cases, stores, place))
    child.start()
    sender.close()
    return receiver, child


def _send_outcomes(sender, cases, stores, place):
    torch.set_num_threads(1)  # the parent's threads are not there in a forked process
    for fault, name, damaging in cases:
        sender.send(_outcome(fault, stores[name], name, place, damaging, while_open=True))


def _copied(data, folder) -> Path:
    return Path(shutil.copytree(data, folder / "Data"))


def _turned(images) -> Path:
    """Each image upside down."""
    for path in scan(images).paths:
        with Image.open(path) as image:
            turned = image.transpose(Image.Transpose.ROTATE_180)
        turned.save(path)
    return images


def _edit(path, random):
    """Another picture in the same file, of the same size in bytes, with the time of change put back."""
    before = os.stat(path)
    with Image.open(path) as image:
        size = image.size
    Image.new("RGB", size, tuple(random.integers(256, size=3).tolist())).save(path)
    with open(path, "ab") as file:
        file.write(bytes(before.st_size - os.path.getsize(path)))  # decoders do not read on behind the end
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _cut(file, other, random):
    os.truncate(file, random.integers(1, file.stat().st_size))


def _empty(file, other, random):
    os.truncate(file, 0)


def _overwrite(file, other, random):
    """All bytes, in place."""
    _write_at(file, 0, random.bytes(file.stat().st_size))


def _flip(file, other, random):
    at = random.integers(file.stat().st_size)
    _write_at(file, at, bytes([file.read_bytes()[at] ^ 1 << random.integers(8)]))


def _edit_header(file, other, random):
    """Digits among the first bytes: shapes and lengths."""
    digits = [at for at, byte in enumerate(file.read_bytes()[:128]) if chr(byte).isdigit()]
    at = digits[random.integers(len(digits))] if digits else random.integers(128)
    _write_at(file, at, b"%d" % random.integers(10))


def _blank(file, other, random):
    """A quarter of the file becomes zeros, as after a crash of a system."""
    size = file.stat().st_size
    _write_at(file, random.integers(size * 3 // 4), bytes(size // 4))


def _extend(file, other, random):
    _write_at(file, file.stat().st_size, random.bytes(random.integers(1, 5000)))


def _replace(file, other, random):
    """Another file under its name."""
    new = file.with_name("new")
    new.write_bytes(random.bytes(file.stat().st_size))
    new.replace(file)


def _replace_by_other(file, other, random):
    """The file of other images under its name."""
    shutil.copy(other, file)


def _swap(file, other, random):
    """Two stretches change places."""
    content = file.read_bytes()
    length = len(content) // 4
    first, second = random.integers(length), 2 * length + random.integers(length)
    _write_at(file, first, content[second : second + length])
    _write_at(file, second, content[first : first + length])


def _delete(file, other, random):
    file.unlink()


def _make_folder(file, other, random):
    """A folder under its name."""
    file.unlink()
    (file / "inside").mkdir(parents=True)


def _write_at(file, at, content):
    """In place: whoever has the file open, or mapped, sees it."""
    with open(file, "r+b") as opened:
        opened.seek(at)
        opened.write(content)


DAMAGES = {  # (file, file of other images, random); their number shares no factor with that of stores, nor with 2
    "cut": _cut,
    "emptied": _empty,
    "overwritten": _overwrite,
    "one bit flipped": _flip,
    "its header edited": _edit_header,
    "a part blank": _blank,
    "longer": _extend,
    "replaced": _replace,
    "replaced by that of other images": _replace_by_other,
    "parts swapped": _swap,
    "deleted": _delete,
    "a folder": _make_folder,
    EDITED: None,
}
