"""Damaged caches, checkpoints and pretrained weights: what they held is read, computed again, or refused by name."""

import io
import json
import os
import pickle
import re
import shutil
import struct
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import timm
import torch
from faults.damage import (
    DAMAGES,
    Planting,
    bomb,
    contents,
    damage,
    flipped_in,
    limited,
    restore,
    saved_bytes,
)
from faults.outcomes import KINDS, MEMORY, REFUSED, RIGHT, TRACEBACK, UNCLEAR, WRONG, Outcome, attempt
from helpers import pixels_of
from PIL import Image
from safetensors.torch import save

from utils import build_network, fit, gallery, load_trained, scan
from utils.data.duplicates import hashes_of
from utils.data.reading import decode
from utils.device import start
from utils.train.runs import BEST, CURRENT, LAST

SIZE = (32, 40)
STORED = {"rows": "*.json", "pixels": "*.npy", "hashes": "*.hashes", "embeddings": "embeddings/*.np*"}
UNSEALED = ("*.npy", ".safetensors")  # files without checksums, of which UNNOTICED cannot be noticed
UNNOTICED = ("with a flipped bit", "with a blank part")
WHILE_OPEN = ("deleted", "replaced")  # other processes may do this to a cache that is read
EDITED = "an image edited, its size and time kept"  # WRONG once
UNSAFE = re.compile(r"weights_only|trust", re.IGNORECASE)  # advice to load a file that runs code
EDITS = {  # of checkpoints, beside DAMAGES, and what each has once brought to light
    "with a flipped bit in the weights": WRONG,
    "with a flipped bit in the pickle": TRACEBACK,
    "with a flipped bit in the directory": TRACEBACK,
    "with code in a pickle": WRONG,
    "with code in an archive": UNCLEAR,
    "that expands": MEMORY,
    "of another program": TRACEBACK,
    "with a tensor that claims 10^10 numbers": MEMORY,
    "without a part": TRACEBACK,
    "with a text for a part": TRACEBACK,
    "of an impossible size": MEMORY,
}
PARTS = (  # the last five are of best.pt only
    *("network", "config", "fingerprint", "validation", "network/embedding.weight", "config/image"),
    *("config/seed", "validation/distances", "measurements", "measurements/layer", "measurements/embeddings"),
    *("measurements/auc", "measurements/calibration"),
)
CURRENTS = {
    "outside": TRACEBACK,
    "of a run that is gone": UNCLEAR,
    "empty": TRACEBACK,
    "binary": TRACEBACK,
}
MODEL = "test_resnet"
OTHER = "test_convnext"
KERNEL, SCALE, BIAS = "conv1.0.weight", "bn1.weight", "bn1.bias"  # tensors of MODEL
UNUSED = "num_batches_tracked"  # buffers that nothing reads
ENDINGS = (".pth", ".safetensors")
WEIGHTS = {  # whether weights may be accepted, and what each kind has once brought to light
    "whole": (RIGHT, ""),
    "of 16 bits": (RIGHT, WRONG),
    "of bfloat16": (RIGHT, WRONG),
    "below state_dict": (RIGHT, ""),
    "below model": (RIGHT, ""),
    "in the format before archives": (RIGHT, TRACEBACK),
    "in the format before archives, cut": (REFUSED, TRACEBACK),
    "with a NaN": (REFUSED, WRONG),
    "with an infinity": (REFUSED, WRONG),
    "without a tensor": (REFUSED, TRACEBACK),
    "with a wrong shape": (REFUSED, TRACEBACK),
    "of another model": (REFUSED, TRACEBACK),
    "with code in a pickle": (REFUSED, UNCLEAR),
    "with code in an archive": (REFUSED, UNCLEAR),
    "that expands": (REFUSED, MEMORY),
    "that claims 10^10 numbers": (REFUSED, MEMORY),
    "with a flipped bit in the weights": ("", WRONG),
    "with a flipped bit in the pickle": ("", TRACEBACK),
    "a list": (REFUSED, TRACEBACK),
    "a text": (REFUSED, TRACEBACK),
    "nothing": (REFUSED, TRACEBACK),
    "numbers for tensors": (REFUSED, TRACEBACK),
    "numbers for names": (REFUSED, TRACEBACK),
    "a text below state_dict": (REFUSED, TRACEBACK),
    "with a length that lies": ("", MEMORY),
    "with a header that is no JSON": (REFUSED, TRACEBACK),
    "with a header 100,000 deep": (REFUSED, TRACEBACK),
    "with tensors that overlap": (REFUSED, WRONG),
    "with a type that lies": (REFUSED, WRONG),
    "with a tensor beyond the end": (REFUSED, TRACEBACK),
    "with a shape of 2^80": (REFUSED, MEMORY),
}


def damaged_caches(project, random, tries, folder):
    """Damage what is stored of images: what is read is what is read without a cache."""
    images = Path(shutil.copytree(project.data, folder / "Data"))
    trained = project.trained(folder / "run")
    cache = folder / "cache"
    right = _read_stored(trained, images, None)
    _read_stored(trained, images, cache)
    kinds = [EDITED]
    for name, pattern in STORED.items():
        for kind in DAMAGES:
            if kind != "a pipe" and (pattern not in UNSEALED or kind not in UNNOTICED):
                kinds.append((name, kind))
    for kind in WHILE_OPEN:
        kinds.append(("pixels", kind))
    for number in range(tries):
        kind = kinds[number % len(kinds)]
        while_open = number % len(kinds) >= len(kinds) - len(WHILE_OPEN)
        _read_stored(trained, images, cache)
        if kind == EDITED:
            _edit(random.choice(scan(images).paths), random)
            right = _read_stored(trained, images, None)
            yield attempt(kind, partial(_read_stored, trained, images, cache), partial(_other_arrays, right))
            shutil.rmtree(cache)
            continue
        files = contents(cache)
        name, how = kind
        (file,) = cache.glob(STORED[name])
        if while_open:
            pixels = pixels_of(images, SIZE, cache)
            file.unlink()
            if how == "replaced":
                file.write_bytes(random.bytes(100))
            act = partial(_read_open, pixels)
            yield attempt(f"{name} {how} while open", act, partial(_other_arrays, right[:1]))
        else:
            damage(file, how, random)
            act = partial(_read_warned, trained, images, cache, file)
            yield attempt(f"{name} {how}", act, partial(_other_arrays, right), (str(file),))
        shutil.rmtree(cache)
        (cache / "embeddings").mkdir(parents=True)
        restore(files)


def _read_stored(trained, images, cache) -> list:
    """Read all that a cache holds of images: pixels, hashes, embeddings and names."""
    config = trained.config.model_copy(update={"cache_path": cache})
    pixels = pixels_of(images, SIZE, cache)
    found = gallery(replace(trained, config=config), images)
    values = _all_pixels(pixels)
    if cache is None:
        values = np.stack([decode(path, SIZE) for path in scan(images).paths])
    return [values, hashes_of(pixels), np.array(found.embeddings), found.names]


def _all_pixels(pixels):
    return pixels[np.arange(len(pixels))]


def _read_open(pixels) -> list:
    return [_all_pixels(pixels)]


def _read_warned(trained, images, cache, file):
    """Read, twice; a warning must name the file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = _read_stored(trained, images, cache)
        arrays = first + _read_stored(trained, images, cache)
    for warning in caught:
        if str(file) not in str(warning.message):
            raise RuntimeError(f"a warning does not name the file: {warning.message}")
    return arrays


def _other_arrays(right, arrays):
    for found, expected in zip(arrays, right * (len(arrays) // len(right)), strict=True):
        if not np.array_equal(found, expected):
            return "what was read is false"
    return None


def _edit(path, random):
    """Put another picture into a file, of the same size in bytes, and put its time back."""
    before = os.stat(path)
    Image.new("RGB", (48, 40), tuple(random.integers(256, size=3).tolist())).save(path)
    with open(path, "ab") as file:
        file.write(bytes(before.st_size - os.path.getsize(path)))  # decoders do not read on behind the end
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class Retrained(Exception):  # noqa: N818
    """A step of the optimizer was taken."""


class Bench:
    """A finished run, and what loading, explaining and showing it gives while nothing is damaged."""

    def __init__(self, project, folder):
        self.config = project.trained_config(folder)
        self.runtime = start(self.config)
        self.marker = folder / "planted"
        self.splits = load_trained(self.config, self.runtime).load_splits()
        self.pair = self.splits.files(self.splits.test_pairs, 1)[0]
        self.right = self.explained()
        self.history = self.shown()
        self.files = contents(self.config.checkpoints_path)
        (self.run,) = [path.parent for path in self.files if path.name == BEST]

    def explained(self) -> list:
        """Return what the network says of a pair."""
        with redirect_stdout(io.StringIO()), limited():
            trained = load_trained(self.config, self.runtime)
            explanation = trained.explain(self.pair)
        values = [trained.validation[1], explanation.distance, explanation.evidence, explanation.probability]
        return [*values, trained.history, trained.threshold, f"{trained}\n{explanation.sentence()}"]

    def shown(self):
        """Return the history that training shows; raise Retrained where it begins to train."""
        step = mock.patch.object(torch.optim.AdamW, "step", side_effect=Retrained)
        with redirect_stdout(io.StringIO()), step, limited():
            return fit(self.config, self.splits, self.runtime)

    def outcome(self, fault, path) -> Outcome:
        """Return the worse of what comes of explaining and of training with a damaged file; then restore it."""
        damaged = contents(self.run)
        names = (str(path), "`run`")
        outcome = attempt(f"{fault}: explained", self.explained, partial(_other_values, self.right), names)
        shown = attempt(f"{fault}: shown", self.shown, self._other_history, names)
        if KINDS.index(shown.kind) > KINDS.index(outcome.kind):
            outcome = shown
        harm = ""
        if self.marker.exists():
            self.marker.unlink()
            harm = "code was run"
        elif contents(self.run) != damaged or len(list(self.config.checkpoints_path.glob("*/"))) > 1:
            harm = "a file was changed, made or deleted"
        elif outcome.kind == REFUSED and UNSAFE.search(outcome.note):
            harm = "gives unsafe advice"
        shutil.rmtree(self.config.checkpoints_path)
        self.run.mkdir(parents=True)
        restore(self.files)
        if harm:
            return Outcome(WRONG, f"{harm}: {outcome.note}")
        return outcome

    def _other_history(self, history):
        if history != self.history:
            return f"another history is shown: {history}"
        return None


def damaged_checkpoints(project, random, tries, folder):
    """Damage checkpoints of a finished run: it is explained and shown as before, or refused by name."""
    bench = Bench(project, folder)
    kinds = []
    for name in (BEST, LAST):
        for kind in (*EDITS, *DAMAGES):
            if kind not in ("deleted", "a link to itself"):  # without a checkpoint there is no run
                kinds.append((name, kind))
    for kind in CURRENTS:
        kinds.append((CURRENT, kind))
    order = random.permutation(len(kinds))
    for number in range(tries):
        name, kind = kinds[order[number % len(kinds)]]
        path = bench.run / name
        if name == CURRENT:
            path = bench.run.parent / name
        part = ""
        if kind in DAMAGES:
            damage(path, kind, random)
        elif name == CURRENT:
            path.write_bytes(_current(kind, bench.run.name.encode(), random))
        else:
            part = str(random.choice(PARTS[: None if name == BEST else PARTS.index("measurements")]))
            path.write_bytes(_edited(kind, part, path.read_bytes(), bench.marker, random))
        yield bench.outcome(f"{name} {kind} {part}", path)


def _edited(kind, part, content, marker, random) -> bytes:
    """Edit a checkpoint as one of EDITS says."""
    if kind.startswith("with a flipped bit in "):
        return flipped_in(content, kind.removeprefix("with a flipped bit in "), random)
    values = torch.load(io.BytesIO(content), weights_only=True)
    match kind:
        case "with code in a pickle":
            return pickle.dumps({"network": Planting(marker)}, protocol=2)
        case "with code in an archive":
            values["network"] = Planting(marker)
        case "that expands":
            return bomb({}, "network")
        case "of another program":
            strange = ({"model": {"weight": torch.zeros(3)}}, torch.zeros(3), [1, 2], {})
            values = strange[random.integers(len(strange))]
        case "with a tensor that claims 10^10 numbers":
            values["network"]["embedding.weight"] = torch.zeros(1).expand(10**10)
        case "of an impossible size":
            values["config"]["embedding_size"] = 10**9
        case _:
            *sections, key = part.split("/")
            section = values
            for name in sections:
                section = section[name]
            section[key] = "nonsense"
            if kind == "without a part":
                del section[key]
    return saved_bytes(values)


def _current(kind, name, random) -> bytes:
    match kind:
        case "outside":
            return b"../" + name
        case "binary":
            return random.bytes(100)
        case "empty":
            return b""
    return b"2020-01-01_00-00-00_0123456789ab\n"


def _other_values(right, values):
    for found, expected in zip(values, right, strict=True):
        if not np.array_equal(found, expected):
            return f"{found}, not {expected}"
    return None


def pretrained_weights(project, random, tries, folder):
    """Damage files of pretrained weights: they are loaded as they are, or refused by name."""
    marker = folder / "planted"
    kinds = []
    for ending in ENDINGS:
        for kind in (*WEIGHTS, *DAMAGES):
            if ending not in UNSEALED or kind not in UNNOTICED:
                kinds.append((ending, kind))
    order = random.permutation(len(kinds))
    made = 0
    for number in range(len(kinds) * (tries // len(kinds) + 2)):
        ending, kind = kinds[order[number % len(kinds)]]
        weights = _random_weights(MODEL, random)
        content = _weights_file(kind, ending, weights, marker, random)
        if content is None:
            continue  # there is no such file of this ending
        place = folder / str(number)
        path = place / f"weights{ending}"
        config = project.config(place, {"backbone_model": MODEL, "pretrained": str(path)})
        path.write_bytes(content)
        if kind in DAMAGES:
            damage(path, kind, random)
        must, _ = WEIGHTS.get(kind, ("", ""))
        fault = f"{ending} {kind}"
        outcome = attempt(fault, partial(_load, config), partial(_other_weights, weights), (str(path),), must)
        if marker.exists():
            marker.unlink()
            outcome = Outcome(WRONG, f"code was run: {outcome.note}")
        elif outcome.kind == REFUSED and (UNSAFE.search(outcome.note) or "pretrained" not in outcome.note):
            outcome = Outcome(WRONG, f"gives unsafe advice, or does not name `pretrained`: {outcome.note}")
        yield outcome
        made += 1
        if made == tries:
            return


def _load(config) -> dict:
    """Return the weights that the backbone has after loading."""
    with redirect_stdout(io.StringIO()), limited():
        return build_network(config).backbone.state_dict()


def _other_weights(right, found):
    for key, value in found.items():
        close = np.allclose(value.numpy(), right[key].float().numpy(), rtol=0.01, atol=1e-6)  # stored in 16 bits
        if not key.endswith(UNUSED) and not close:
            return f"other weights in {key}"
    return None


def _random_weights(model, random) -> dict:
    """Return the state dict of a model of timm without a classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.integers(2**32)))
        return timm.create_model(model, num_classes=0).state_dict()


def _weights_file(kind, ending, weights, marker, random) -> bytes | None:
    """Return a file as one of WEIGHTS says, or a whole one to be damaged; None where this format has no such file."""
    values = dict(weights)
    match kind:
        case "of 16 bits":
            values = _converted(weights, torch.float16)
        case "of bfloat16":
            values = _converted(weights, torch.bfloat16)
        case "with a NaN":
            values[KERNEL] = torch.where(torch.rand_like(weights[KERNEL]) < 0.5, np.nan, weights[KERNEL])
        case "with an infinity":
            values[KERNEL] = weights[KERNEL] * np.inf
        case "without a tensor":
            del values[random.choice((KERNEL, SCALE, BIAS))]
        case "with a wrong shape":
            key = random.choice((KERNEL, SCALE, BIAS))
            values[key] = (weights[key][:-1].clone(), weights[key][None].clone(), torch.zeros(0))[random.integers(3)]
        case "of another model":
            values = _random_weights(OTHER, random)
        case "whole" | _ if kind in DAMAGES or kind == "whole":
            pass
        case _ if ending == ".pth":
            return _odd_archive(kind, values, marker, random)
        case _:
            return _odd_safetensors(kind, save(values), random)
    if ending == ".pth":
        return saved_bytes(values)
    return save(values)


def _converted(weights, dtype):
    values = {}
    for key, value in weights.items():
        values[key] = value
        if value.is_floating_point():
            values[key] = value.to(dtype)
    return values


def _odd_archive(kind, values, marker, random) -> bytes | None:
    """Return what torch.save writes where only it can."""
    if kind.startswith("with a flipped bit in "):
        return flipped_in(saved_bytes(values), kind.removeprefix("with a flipped bit in "), random)
    former = saved_bytes(values, _use_new_zipfile_serialization=False)
    contents = {
        "below state_dict": {"state_dict": values, "epoch": 3},
        "below model": {"model": values},
        "with code in an archive": {KERNEL: Planting(marker)},
        "that claims 10^10 numbers": values | {KERNEL: torch.zeros(1).expand(10**10)},
        "a list": list(values.values()),
        "a text": "weights",
        "nothing": None,
        "numbers for tensors": dict.fromkeys(values, 1.5),
        "numbers for names": dict(enumerate(values.values())),
        "a text below state_dict": {"state_dict": "weights"},
    }
    if kind in contents:
        return saved_bytes(contents[kind])
    match kind:
        case "in the format before archives":
            return former
        case "in the format before archives, cut":
            return former[: random.integers(1, len(former))]
        case "with code in a pickle":
            return pickle.dumps({KERNEL: Planting(marker)}, protocol=2)
        case "that expands":
            return bomb(values, KERNEL)
    return None


def _odd_safetensors(kind, file, random) -> bytes | None:
    """Return a file of safetensors whose header was edited: its length, JSON, and the numbers behind it."""
    (length,) = struct.unpack_from("<Q", file)
    header = json.loads(file[8 : 8 + length])
    match kind:
        case "with a length that lies":
            lie = (0, 1, len(file), 2**31, 2**63, 2**64 - 1)[random.integers(6)]
            return struct.pack("<Q", lie) + file[8:]
        case "with a header that is no JSON":
            place = 8 + random.integers(length - 10)
            return file[:place] + b"\xff" + file[place + 1 :]
        case "with a header 100,000 deep":
            deep = b'{"a":' + b"[" * 100_000
            return struct.pack("<Q", len(deep)) + deep
        case "with tensors that overlap":
            header[SCALE]["data_offsets"] = header[BIAS]["data_offsets"]
        case "with a type that lies":
            header[KERNEL]["dtype"] = "I32"
        case "with a tensor beyond the end":
            header[KERNEL]["data_offsets"] = [0, 10**12]
        case "with a shape of 2^80":
            header[KERNEL]["shape"] = [2**40, 2**40]
        case _:
            return None
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + file[8 + length :]
