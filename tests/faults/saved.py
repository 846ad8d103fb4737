"""Damaged caches, checkpoints and pretrained weights: what they held is read, computed again, or refused by name.

Code in files, other programs' files, `current`, parts of best.pt: tests/train/test_checkpoint.py, test_contents.py and
tests/network/test_backbones.py. Edited images and caches that go while they are read: tests/data/test_cache.py.
"""

import io
import json
import struct
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from unittest import mock

import numpy as np
import timm
import torch
from faults.damage import DAMAGES, bomb, contents, damage, flipped_in, limited, restore, saved_bytes
from faults.outcomes import MEMORY, REFUSED, RIGHT, TRACEBACK, WRONG, Outcome, attempt
from helpers import pixels_of
from safetensors.torch import save

from utils import build_network, fit, gallery, load_trained, scan
from utils.data.duplicates import hashes_of
from utils.data.reading import decode
from utils.device import start
from utils.train.runs import BEST, LAST

SIZE = (32, 40)
STORED = {"rows": "*.json", "pixels": "*.npy", "hashes": "*.hashes", "embeddings": "embeddings/*.np*"}
UNSEALED = ("pixels", ".safetensors")  # files without checksums, of which UNNOTICED cannot be noticed
UNNOTICED = ("with a flipped bit", "with a blank part")
EDITS = {  # of checkpoints, beside DAMAGES, and what each has once brought to light
    "with a flipped bit in its largest tensor": WRONG,
    "with a flipped bit in its pickle": TRACEBACK,
    "with a flipped bit in its directory": TRACEBACK,
    "that expands": MEMORY,
    "with a tensor that claims 10^10 numbers": MEMORY,
    "of an impossible size": MEMORY,
    "without a part": TRACEBACK,
    "with a text for a part": TRACEBACK,
}
PARTS = ("network", "config", "fingerprint", "validation", "network/embedding.weight", "config/image", "config/seed")
MODEL = "test_resnet"
KERNEL, SCALE, BIAS = "conv1.0.weight", "bn1.weight", "bn1.bias"  # tensors of MODEL
UNUSED = "num_batches_tracked"  # buffers that nothing reads
PTH = {  # files of torch.save, whether their weights may be accepted, and what each has once brought to light
    "in the format before archives": (RIGHT, TRACEBACK),
    "in the format before archives, cut": (REFUSED, TRACEBACK),
    "below state_dict": (RIGHT, ""),
    "below model": (RIGHT, ""),
    "that expands": (REFUSED, MEMORY),
    "that claims 10^10 numbers": (REFUSED, MEMORY),
    "with a flipped bit in its largest tensor": ("", WRONG),
    "with a flipped bit in its pickle": ("", TRACEBACK),
    "a text": (REFUSED, TRACEBACK),
    "nothing": (REFUSED, TRACEBACK),
    "numbers for tensors": (REFUSED, TRACEBACK),
    "numbers for names": (REFUSED, TRACEBACK),
    "a text below state_dict": (REFUSED, TRACEBACK),
}
SAFETENSORS = {  # the same of files of safetensors
    "with a length that lies": ("", MEMORY),
    "with a header 100,000 deep": (REFUSED, TRACEBACK),
    "with tensors that overlap": (REFUSED, WRONG),
    "with a type that lies": (REFUSED, WRONG),
    "with a tensor beyond the end": (REFUSED, TRACEBACK),
    "with a shape of 2^80": (REFUSED, MEMORY),
}
WEIGHTS = {  # the same of either
    "of 16 bits": (RIGHT, WRONG),
    "of bfloat16": (RIGHT, WRONG),
    "with a NaN": (REFUSED, WRONG),
    "with an infinity": (REFUSED, WRONG),
}


def damaged_caches(project, random, tries, folder):
    """Damage what is stored of images: what is read is what is read without a cache."""
    trained = project.trained(folder / "run")
    cache = folder / "cache"
    right = _read_stored(trained, project.data, None)
    _read_stored(trained, project.data, cache)
    files = contents(cache)
    kinds = []
    for name in STORED:
        for kind in DAMAGES:
            if kind != "a pipe" and (name not in UNSEALED or kind not in UNNOTICED):
                kinds.append((name, kind))
    for number in range(tries):
        name, kind = kinds[number % len(kinds)]
        (file,) = cache.glob(STORED[name])
        damage(file, kind, random)
        act = partial(_read_warned, trained, project.data, cache, file)
        yield attempt(f"{name} {kind}", act, partial(_other_values, 2 * right), (str(file),))
        restore(cache, files)


def _read_stored(trained, images, cache) -> list:
    """Read all that a cache holds of images: pixels, hashes, embeddings and names."""
    config = trained.config.model_copy(update={"cache_path": cache})
    pixels = pixels_of(images, SIZE, cache)
    found = gallery(replace(trained, config=config), images)
    values = pixels[np.arange(len(pixels))]
    if cache is None:
        values = np.stack([decode(path, SIZE) for path in scan(images).paths])
    return [values, hashes_of(pixels), np.array(found.embeddings), found.names]


def _read_warned(trained, images, cache, file):
    """Read, twice; a warning must name the file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arrays = _read_stored(trained, images, cache) + _read_stored(trained, images, cache)
    for warning in caught:
        if str(file) not in str(warning.message):
            raise RuntimeError(f"a warning does not name the file: {warning.message}")
    return arrays


def _other_values(right, values):
    if len(values) != len(right):
        return f"{len(values)} values, not {len(right)}"
    for value, expected in zip(values, right, strict=True):
        if not np.array_equal(value, expected):
            return f"{value}, not {expected}"
    return None


class Retrained(Exception):  # noqa: N818
    """A step of the optimizer was taken."""


def damaged_checkpoints(project, random, tries, folder):
    """Damage checkpoints of a finished run: it is explained and shown as before, or refused by name."""
    config = project.trained_config(folder)
    runtime = start(config)
    splits = load_trained(config, runtime).load_splits()
    act = partial(_explained_and_shown, config, runtime, splits)
    right = act()
    files = contents(config.checkpoints_path)
    (best,) = config.checkpoints_path.glob(f"*/{BEST}")
    kinds = []
    for name in (BEST, LAST):
        for kind in (*EDITS, *DAMAGES):
            if kind not in ("deleted", "a link to itself"):  # without a checkpoint there is no run
                kinds.append((name, kind))
    order = random.permutation(len(kinds))
    for number in range(tries):
        name, kind = kinds[order[number % len(kinds)]]
        path = best.with_name(name)
        part = str(random.choice(PARTS))
        if kind in DAMAGES:
            damage(path, kind, random)
        else:
            path.write_bytes(_edited(kind, part, path.read_bytes(), random))
        damaged = contents(config.checkpoints_path)
        outcome = attempt(f"{name} {kind}, {part}", act, partial(_other_values, right), (str(path), "`run`"))
        if contents(config.checkpoints_path) != damaged:
            outcome = Outcome(WRONG, f"a file was changed, made or deleted: {outcome.note}")
        yield outcome
        restore(config.checkpoints_path, files)


def _explained_and_shown(config, runtime, splits) -> list:
    """Return what the network says of a pair and the history that training shows.

    Raises:
        Retrained: Where training begins.
    """
    step = mock.patch.object(torch.optim.AdamW, "step", side_effect=Retrained)
    with redirect_stdout(io.StringIO()), step, limited():
        trained = load_trained(config, runtime)
        explanation = trained.explain(splits.files(splits.test_pairs, 1)[0])
        history = fit(config, splits, runtime)
    values = [trained.validation[1], explanation.distance, explanation.evidence, explanation.probability]
    return [*values, trained.history, trained.threshold, f"{trained}\n{explanation.sentence()}", history]


def _edited(kind, part, content, random) -> bytes:
    """Edit a checkpoint as one of EDITS says."""
    if "flipped bit" in kind:
        return flipped_in(content, kind.split()[-1], random)
    values = torch.load(io.BytesIO(content), weights_only=True)
    match kind:
        case "that expands":
            return bomb({}, "network")
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


def pretrained_weights(project, random, tries, folder):
    """Damage files of pretrained weights: they are loaded as they are, or refused by name."""
    kinds = []
    for ending, own in ((".pth", PTH), (".safetensors", SAFETENSORS)):
        for kind in (*own, *WEIGHTS, *DAMAGES):
            if ending not in UNSEALED or kind not in UNNOTICED:
                kinds.append((ending, kind))
    order = random.permutation(len(kinds))
    for number in range(tries):
        ending, kind = kinds[order[number % len(kinds)]]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(random.integers(2**32)))
            weights = timm.create_model(MODEL, num_classes=0).state_dict()
        path = folder / str(number) / f"weights{ending}"
        config = project.config(path.parent, {"backbone_model": MODEL, "pretrained": str(path)})
        values = _odd_weights(kind, weights, random)
        if kind in PTH:
            content = _odd_archive(kind, values, random)
        elif ending == ".pth":
            content = saved_bytes(values)
        else:
            content = save(values)
        if kind in SAFETENSORS:
            content = _odd_safetensors(kind, content, random)
        path.write_bytes(content)
        if kind in DAMAGES:
            damage(path, kind, random)
        must, _ = (PTH | SAFETENSORS | WEIGHTS).get(kind, ("", ""))
        act = partial(_load, config)
        outcome = attempt(f"{ending} {kind}", act, partial(_other_weights, weights), (str(path),), must)
        if outcome.kind == REFUSED and "pretrained" not in outcome.note:
            outcome = Outcome(WRONG, f"does not name `pretrained`: {outcome.note}")
        yield outcome


def _load(config) -> dict:
    """Return the weights that the backbone has after loading."""
    with redirect_stdout(io.StringIO()), limited():
        return build_network(config).backbone.state_dict()


def _other_weights(right, loaded):
    for key, value in loaded.items():
        close = np.allclose(value.numpy(), right[key].float().numpy(), rtol=0.01, atol=1e-6)  # stored in 16 bits
        if not key.endswith(UNUSED) and not close:
            return f"other weights in {key}"
    return None


def _odd_weights(kind, weights, random) -> dict:
    """Change weights as WEIGHTS says."""
    values = dict(weights)
    match kind:
        case "of 16 bits" | "of bfloat16":
            dtype = torch.float16 if kind == "of 16 bits" else torch.bfloat16
            for name, value in weights.items():
                if value.is_floating_point():
                    values[name] = value.to(dtype)
        case "with a NaN":
            values[KERNEL] = torch.where(torch.rand_like(weights[KERNEL]) < 0.5, np.nan, weights[KERNEL])
        case "with an infinity":
            values[KERNEL] = weights[KERNEL] * np.inf
    return values


def _odd_archive(kind, values, random) -> bytes:
    """Write what PTH says."""
    former = saved_bytes(values, _use_new_zipfile_serialization=False)
    match kind:
        case "in the format before archives":
            return former
        case "in the format before archives, cut":
            return former[: random.integers(1, len(former))]
        case "that expands":
            return bomb(values, KERNEL)
    if "flipped bit" in kind:
        return flipped_in(saved_bytes(values), kind.split()[-1], random)
    contents = {
        "below state_dict": {"state_dict": values, "epoch": 3},
        "below model": {"model": values},
        "that claims 10^10 numbers": values | {KERNEL: torch.zeros(1).expand(10**10)},
        "a text": "weights",
        "nothing": None,
        "numbers for tensors": dict.fromkeys(values, 1.5),
        "numbers for names": dict(enumerate(values.values())),
        "a text below state_dict": {"state_dict": "weights"},
    }
    return saved_bytes(contents[kind])


def _odd_safetensors(kind, file, random) -> bytes:
    """Edit the header of a file of safetensors as SAFETENSORS says: its length, JSON, and the numbers behind it."""
    (length,) = struct.unpack_from("<Q", file)
    header = json.loads(file[8 : 8 + length])
    match kind:
        case "with a length that lies":
            lie = (0, 1, len(file), 2**31, 2**63, 2**64 - 1)[random.integers(6)]
            return struct.pack("<Q", lie) + file[8:]
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
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + file[8 + length :]
