"""Files of pretrained weights, damaged, false or in other formats: loaded as they are, or refused by name."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial

import numpy as np
import timm
import torch
from faults.damage import ADVICE, Planting, bomb, cut, entry_span, flipped, foreign, limited, saved_bytes, spoil
from faults.outcomes import REFUSED, WRONG, Outcome, attempt
from safetensors.torch import save

from utils import build_network

WORK = "pretrained weights"
TRIES = 104  # each kind twice
QUICK = 52  # each once: they are cheap
MODEL = "test_resnet"
OTHER = "test_convnext"
KERNEL, SCALE, BIAS = "conv1.0.weight", "bn1.weight", "bn1.bias"  # tensors of MODEL
PATIENCE = 30  # seconds, more than `limited` gives
UNBLOCK = "import os, sys, time; time.sleep(int(sys.argv[2])); os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)"
UNUSED = "num_batches_tracked"  # buffers that nothing reads


@dataclass(frozen=True)
class File:
    """A file of weights to make. name: in a folder. content: its bytes. right: the weights that it holds, or None where
    it can only be refused.
    """

    name: str
    content: bytes
    right: dict | None = None


def faults(project, random, tries, folder):
    marker = folder / "planted"
    for number in range(tries):
        kind = list(KINDS)[number % len(KINDS)]
        place = folder / str(number)
        place.mkdir()
        weights = random_weights(MODEL, random)
        made = KINDS[kind](weights, random, place, marker)
        path = place / made.name
        if made.content is not None:
            path.write_bytes(made.content)
        config = project.config(place, {"backbone_model": MODEL, "pretrained": str(path)})
        outcome = attempt(kind, partial(load, config), partial(complaint, right=made.right), (str(path),))
        yield checked(outcome, marker)


def load(config) -> dict:
    """The weights that the backbone has after loading."""
    with redirect_stdout(io.StringIO()), opened_later(config.pretrained), limited():
        return build_network(config).backbone.state_dict()


@contextmanager
def opened_later(path):
    """Where the file is a pipe, another process opens it after PATIENCE: that ends waiting that no signal ends."""
    if not path.is_fifo():
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", UNBLOCK, str(path), str(PATIENCE)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def complaint(found, right):
    """What is wrong with weights that were accepted."""
    if right is None:
        return "accepted"
    for key, value in found.items():
        if not key.endswith(UNUSED) and not np.array_equal(value.numpy(), right[key].float().numpy()):
            return f"other weights in {key}"
    return None


def checked(outcome, marker) -> Outcome:
    """Wrong, too, where code was run, or where a refusal says how to run it or does not name the key."""
    if marker.exists():
        marker.unlink()
        return Outcome(WRONG, f"code was run: {outcome.note}")
    if outcome.kind == REFUSED and ADVICE.search(outcome.note):
        return Outcome(WRONG, f"gives unsafe advice: {outcome.note}")
    if outcome.kind == REFUSED and "pretrained" not in outcome.note:
        return Outcome(WRONG, f"does not name `pretrained`: {outcome.note}")
    return outcome


def random_weights(model, random) -> dict:
    """The state dict of a model of timm without a classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.integers(2**32)))
        return timm.create_model(model, num_classes=0).state_dict()


def _torch_file(content, right=None, **settings) -> File:
    return File("weights.pth", saved_bytes(content, **settings), right)


def _safe_file(content: bytes, right=None) -> File:
    return File("weights.safetensors", content, right)


def _split(file: bytes) -> tuple[dict, bytes]:
    """The header of a safetensors file and the numbers behind it."""
    (length,) = struct.unpack_from("<Q", file)
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def _joined(header: dict | bytes, numbers: bytes) -> bytes:
    """The opposite."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + numbers


def _with_header(edit):
    """A safetensors file whose header, a dict, was changed in place."""

    def make(weights, random, place, marker):
        header, numbers = _split(save(weights))
        edit(header, random)
        return _safe_file(_joined(header, numbers))

    return make


def _overlapping(header, random):
    """One tensor lies where another of its size lies."""
    header[SCALE]["data_offsets"] = header[BIAS]["data_offsets"]


def _lying_type(header, random):
    header[KERNEL]["dtype"] = ("I32", "U32")[random.integers(2)]


def _beyond(header, random):
    header[KERNEL]["data_offsets"] = [0, 10**12]


def _huge_shape(header, random):
    header[KERNEL]["shape"] = [2**40, 2**40]


def _lying_length(weights, random, place, marker):
    file = save(weights)
    length = (0, 1, len(file), 2**31, 2**63, 2**64 - 1)[random.integers(6)]
    return _safe_file(struct.pack("<Q", length) + file[8:], weights)


def _broken_json(weights, random, place, marker):
    file = save(weights)
    (length,) = struct.unpack_from("<Q", file)
    at = 8 + random.integers(length - 10)
    return _safe_file(file[:at] + (b"}", b"\xff", b'"', b"[")[random.integers(4)] + file[at + 1 :], weights)


def _deep_json(weights, random, place, marker):
    return _safe_file(_joined(b'{"a":' + b"[" * 100_000, b""))


def _not_finite(weights, random):
    """A copy with a NaN or an infinity in one place."""
    value = (np.nan, np.inf, -np.inf)[random.integers(3)]
    keys = [key for key, values in weights.items() if values.is_floating_point()]
    key = keys[random.integers(len(keys))]
    spoilt = weights[key].clone()
    spoil(spoilt, value, random)
    return weights | {key: spoilt}


def _without_one(weights, random):
    keys = [key for key in weights if not key.endswith(UNUSED)]
    gone = keys[random.integers(len(keys))]
    return {key: value for key, value in weights.items() if key != gone}


def _another_shape(weights, random):
    keys = [key for key, value in weights.items() if value.dim()]
    key = keys[random.integers(len(keys))]
    value = weights[key]
    return weights | {key: (value[:-1].clone(), value[None].clone(), torch.zeros(0))[random.integers(3)]}


def _claiming(weights, random):
    """A stored number that claims to be 10^10."""
    return weights | {KERNEL: torch.zeros(1).expand(10**10)}


def _as_float(values, kind):
    return {key: value.to(kind) if value.is_floating_point() else value for key, value in values.items()}


def _in_directory(weights, random, place, marker):
    (place / "weights.pth").mkdir()
    return File("weights.pth", None)


def _in_fifo(weights, random, place, marker):
    os.mkfifo(place / "weights.safetensors")
    return File("weights.safetensors", None)


def _gone(weights, random, place, marker):
    return File("weights.pth", None)


def _flipped_in(ending):
    """A bit of an archive of torch."""

    def make(weights, random, place, marker):
        file = saved_bytes(weights)
        return File("weights.pth", flipped(file, random, *entry_span(file, ending)), weights)

    return make


def _bomb(weights, random, place, marker):
    rest = {key: value for key, value in weights.items() if key != KERNEL}
    return File("weights.pth", bomb(rest, KERNEL))


def _both(change):
    """A change of the weights, kept in either format; only to be refused."""
    return {
        "safetensors": lambda weights, random, place, marker: _safe_file(save(change(weights, random))),
        "pth": lambda weights, random, place, marker: _torch_file(change(weights, random)),
    }


def _saved(content):
    """What torch.save writes of another thing than weights."""
    return lambda weights, random, place, marker: _torch_file(content(weights))


def _short(kind):
    """Weights of 16 bits: right after conversion."""
    return {
        f"{kind} safetensors": lambda weights, random, place, marker: _safe_file(
            save(_as_float(weights, kind)), _as_float(weights, kind)
        ),
        f"{kind} pth": lambda weights, random, place, marker: _torch_file(
            _as_float(weights, kind), _as_float(weights, kind)
        ),
    }


def _kinds() -> dict:
    """What is wrong with a file, and a function (weights, random, folder, marker) that makes it; in some nothing is."""
    kinds = {
        "a pth that expands": _bomb,
        "a whole pth": lambda weights, random, place, marker: _torch_file(weights, weights),
        "a whole safetensors": lambda weights, random, place, marker: _safe_file(save(weights), weights),
        "weights in state_dict": lambda weights, *_: _torch_file({"state_dict": weights, "epoch": 3}, weights),
        "weights in model": lambda weights, *_: _torch_file({"model": weights}, weights),
        "the format before archives": lambda weights, *_: _torch_file(
            weights, weights, _use_new_zipfile_serialization=False
        ),
        "a cut pth": lambda weights, random, *_: File("weights.pth", cut(saved_bytes(weights), random)),
        "a cut safetensors": lambda weights, random, *_: _safe_file(cut(save(weights), random)),
        "the format before archives, cut": lambda weights, random, *_: File(
            "weights.pth", cut(saved_bytes(weights, _use_new_zipfile_serialization=False), random)
        ),
        "an empty pth": lambda *_: File("weights.pth", b""),
        "an empty safetensors": lambda *_: _safe_file(b""),
        "ten zeros, pth": lambda *_: File("weights.pth", bytes(10)),
        "ten zeros, safetensors": lambda *_: _safe_file(bytes(10)),
        "a text, pth": lambda weights, random, *_: File("weights.pth", foreign(random)),
        "a text, safetensors": lambda weights, random, *_: _safe_file(foreign(random)),
        "a length that lies": _lying_length,
        "a header that is no JSON": _broken_json,
        "a header 100,000 deep": _deep_json,
        "tensors that overlap": _with_header(_overlapping),
        "a type that lies": _with_header(_lying_type),
        "a tensor beyond the end": _with_header(_beyond),
        "a shape of 2^80": _with_header(_huge_shape),
        "flipped in the weights": _flipped_in("/data/"),
        "flipped in the pickle": _flipped_in("/data.pkl"),
        "a pickle with code": lambda weights, random, place, marker: File(
            "weights.pth", pickle.dumps({KERNEL: Planting(marker)}, protocol=2)
        ),
        "an archive with code": lambda weights, random, place, marker: _torch_file({KERNEL: Planting(marker)}),
        "a list": _saved(lambda weights: list(weights.values())),
        "a text in an archive": _saved(lambda weights: "weights"),
        "a number": _saved(lambda weights: 3),
        "nothing": _saved(lambda weights: None),
        "a tensor": _saved(lambda weights: torch.zeros(3)),
        "no tensors": _saved(lambda weights: dict.fromkeys(weights, 1.5)),
        "texts for tensors": _saved(lambda weights: dict.fromkeys(weights, "conv")),
        "numbers for names": _saved(lambda weights: dict(enumerate(weights.values()))),
        "a text in state_dict": _saved(lambda weights: {"state_dict": "weights"}),
        "nothing in model": _saved(lambda weights: {"model": None}),
        "a tensor that claims 10^10 numbers": lambda weights, random, *_: _torch_file(_claiming(weights, random)),
        "another model's, pth": lambda weights, random, *_: _torch_file(random_weights(OTHER, random)),
        "another model's, safetensors": lambda weights, random, *_: _safe_file(save(random_weights(OTHER, random))),
        "a folder": _in_directory,
        "a pipe": _in_fifo,
        "no file": _gone,
    }
    changes = {"NaN or inf": _not_finite, "one missing": _without_one, "a wrong shape": _another_shape}
    for name, change in changes.items():
        kinds |= {f"{name}, {suffix}": make for suffix, make in _both(change).items()}
    return kinds | _short(torch.float16) | _short(torch.bfloat16)


KINDS = _kinds()
