"""Checkpoints of a finished run, damaged and edited: explained and shown as before, or refused by name."""

import io
import pickle
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from functools import reduce
from operator import getitem
from unittest import mock

import numpy as np
import torch
from faults.damage import (
    ADVICE,
    Planting,
    appended,
    bomb,
    cut,
    directory_span,
    entry_span,
    flipped,
    foreign,
    limited,
    saved_bytes,
    spoil,
)
from faults.outcomes import KINDS, REFUSED, WRONG, Outcome, attempt

from utils import fit, load_trained
from utils.device import start
from utils.train.runs import BEST, CURRENT, FORMAT, LAST
from utils.trained import keep

WORK = "damaged and edited checkpoints"
TRIES = 200
QUICK = 36
SMALL = {"backbone_model": "test_resnet", "hyperparameters.verbose": False}  # loads in a fifth of the time
SECONDS = 10  # more than loading and explaining ever take
PARTS = """
format network config fingerprint history validation classes versions measurements
network/embedding.weight network/backbone.conv1.0.weight network/embedding.bias
config/image config/seed config/embedding_size config/backbone_model config/hyperparameters
fingerprint/settings fingerprint/images history/0/valid_auc history/0/seconds
validation/distances validation/first validation/second validation/labels
measurements/asked measurements/layer measurements/steps measurements/gaps measurements/names measurements/embeddings measurements/auc
measurements/auc/low measurements/calibration measurements/calibration/distances measurements/calibration/probabilities
"""  # of a checkpoint, and parts of these; a whole epoch less is a history that fits itself, so no one can tell
REMOVED = object()


class Retrained(Exception):  # noqa: N818
    """A step of the optimizer was taken."""


def faults(project, random, tries, folder):
    bench = Bench(project, folder)
    kinds = [*FILES, *EDITS, *PREPARED, *CHANGES, *CURRENTS]
    parts = [(change, part) for change in CHANGES for part in PARTS.split() if (change, part) not in HARMLESS]
    later = [parts[index] for index in random.permutation(len(parts))]
    for number in range(tries):
        name = LAST if number % 4 == 3 else BEST
        if number < len(kinds):  # each kind once, and then each change of each part
            kind, part = kinds[number], parts[random.integers(len(parts))][1]
        else:
            kind, part = later[(number - len(kinds)) % len(later)]
        if kind in FILES:
            yield bench.outcome(f"{name} {kind}", name, FILES[kind](bench.files[name], bench.marker, random))
        elif kind in EDITS:
            yield bench.edited_outcome(kind, name, EDITS[kind], random)
        elif kind in PREPARED:
            yield bench.edited_outcome(kind, BEST, PREPARED[kind], random)
        elif kind in CHANGES:
            yield bench.changed_outcome(kind, BEST if part.startswith("measurements") else name, part)
        else:
            yield bench.current_outcome(kind, random)


class Bench:
    """A finished and prepared run of a small network, and what it says while nothing is damaged."""

    def __init__(self, project, folder):
        large = load_trained(project.config(folder, {"checkpoints_path": str(project.checkpoints)}))
        self.config = project.config(folder, SMALL)
        self.runtime = start(self.config)
        with redirect_stdout(io.StringIO()):
            fit(self.config)
        trained = load_trained(self.config, self.runtime)
        asked = large.measurements.settings | {"threshold": trained.threshold}
        self.trained = keep(trained, replace(large.measurements, asked=asked))  # measuring its own takes 10 seconds
        self.run = self.trained.folder
        self.current = self.run.parent / CURRENT
        self.marker = folder / "planted"
        self.files = {name: (self.run / name).read_bytes() for name in (BEST, LAST)}
        self.splits = self.trained.load_splits()
        pair = self.splits.test_pairs.first[0], self.splits.test_pairs.second[0]
        self.pair = tuple(self.splits.folder.paths[index] for index in pair)
        self.said = self._explain()
        self.unprepared = replace(self.trained, measurements=None).explain(self.pair)
        self.history = self.content(LAST)["history"]

    def content(self, name) -> dict:
        return torch.load(io.BytesIO(self.files[name]), weights_only=True)

    def edited_outcome(self, fault, name, edit, random) -> Outcome:
        """A file whose content `edit(content, random)` has changed; it may say how."""
        content = self.content(name)
        detail = edit(content, random) or ""
        return self.outcome(f"{name} {fault} {detail}", name, saved_bytes(content))

    def changed_outcome(self, change, name, part) -> Outcome:
        """A file with one part changed as CHANGES say."""
        content = self.content(name)
        *sections, key = (int(one) if one.isdecimal() else one for one in part.split("/"))
        section = reduce(getitem, sections, content)
        value = CHANGES[change](section[key])
        if value is REMOVED:
            del section[key]
        else:
            section[key] = value
        return self.outcome(f"{name} {part} {change}", name, saved_bytes(content), prepared=part != "measurements")

    def current_outcome(self, fault, random) -> Outcome:
        """The file that names the current run, changed."""
        self.current.write_bytes(CURRENTS[fault](self.run.name.encode(), random))
        return self._tried(f"{CURRENT} {fault}", (str(self.current), "`run`"), self.files)

    def outcome(self, fault, name, damaged: bytes, prepared=True) -> Outcome:
        """What comes of a run with this file. prepared: whether it may not count as unprepared."""
        (self.run / name).write_bytes(damaged)
        return self._tried(fault, (str(self.run / name),), self.files | {name: damaged}, prepared)

    def _tried(self, fault, names, files, prepared=True):
        """The worse of what comes of explaining and of training, with these files in place; they are mended after."""
        explained = attempt(f"{fault}: explained", self._explain, lambda found: self._complaint(found, prepared), names)
        shown = attempt(f"{fault}: trained", self._train, self._complaint_of_history, names)
        worse = max(explained, shown, key=lambda one: KINDS.index(one.kind))
        found = self._harm(files) or (worse.kind == REFUSED and ADVICE.search(worse.note) and "gives unsafe advice")
        self._mend()
        return Outcome(WRONG, f"{fault}: {found}: {worse.note}") if found else worse

    def _explain(self):
        """The network, its explanation, and both in words."""
        with redirect_stdout(io.StringIO()), limited(SECONDS):
            trained = load_trained(self.config, self.runtime)
            explanation = trained.explain(self.pair)
            return trained, explanation, f"{trained}\n{explanation.sentence()}"

    def _train(self):
        """The history that training shows; None where it begins to train."""
        step = mock.patch.object(torch.optim.AdamW, "step", side_effect=Retrained)
        try:
            with redirect_stdout(io.StringIO()), step, limited(SECONDS):
                return fit(self.config, self.splits, self.runtime)
        except Retrained:
            return None

    def _complaint(self, found, prepared):
        """How a network and its explanation differ from those of the undamaged run."""
        trained, explanation, words = found
        own, expected, own_words = self.said
        if not prepared and trained.measurements is None:
            own, expected = replace(own, measurements=None), self.unprepared
            own_words = f"{own}\n{expected.sentence()}"
        if not torch.equal(explanation.distance, expected.distance):
            return "another distance"
        if not torch.equal(explanation.evidence, expected.evidence):
            return "another map"
        if words != own_words:
            return f"says otherwise: {words!r}"
        facts = [(one.threshold, one.history, one.images_digest) for one in (trained, own)]
        if facts[0] != facts[1]:
            return f"another threshold, history or digest: {facts[0]}"
        if any(not np.array_equal(*pair) for pair in zip(_numbers(trained), _numbers(own), strict=True)):
            return "other validation pairs, references or probabilities"
        return None

    def _complaint_of_history(self, history):
        if history is None:
            return "trained anew"
        return None if history == self.history else f"another history is shown: {history}"

    def _harm(self, files):
        """What was done to files that nothing may be done to, or by one of them."""
        if self.marker.exists():
            return "code was run"
        if any(not (self.run / name).is_file() or (self.run / name).read_bytes() != files[name] for name in files):
            return "a file was changed or deleted"
        beside = [path.name for path in self.run.iterdir() if path.name not in files and "lock" not in path.name]
        beside += [path.name for path in self.run.parent.iterdir() if path.is_dir() and path != self.run]
        return f"left behind: {', '.join(beside)}" if beside else None

    def _mend(self):
        """Everything as it was."""
        self.marker.unlink(missing_ok=True)
        for path in self.run.parent.iterdir():
            if path.is_dir() and path != self.run:
                shutil.rmtree(path)  # of a training that began
        for path in self.run.iterdir():
            path.unlink()
        for name, content in self.files.items():
            (self.run / name).write_bytes(content)
        self.current.write_text(f"{self.run.name}\n")


def _numbers(trained) -> list:
    """All arrays that a network brings beside its weights."""
    pairs, distances = trained.validation
    arrays = [distances, *vars(pairs).values()]
    if trained.measurements:
        calibration = trained.measurements.calibration
        arrays += [calibration.distances, calibration.probabilities, trained.measurements.embeddings]
        arrays.append(trained.measurements.names)
    return arrays


def _pickled_code(file, marker, random):
    """A plain pickle, or an archive of torch, that makes a file where code may run."""
    content = {"format": FORMAT, "network": Planting(marker)}
    return pickle.dumps(content, protocol=2) if random.random() < 0.5 else saved_bytes(content)


def _foreign_torch(file, marker, random):
    contents = [{"model": {"weight": torch.zeros(3)}}, torch.zeros(3), [1, 2], {"format": FORMAT}, {}]
    return saved_bytes(contents[random.integers(len(contents))])


def _expanding(file, marker, random):
    return bomb({"format": FORMAT}, "network")


def _flipped_in(ending):
    """A bit of the largest entry whose name contains `ending`."""
    return lambda file, marker, random: flipped(file, random, *entry_span(file, ending))


FILES = {  # (bytes of the file, what code would make, random) to the bytes of the damaged file
    "that expands": _expanding,
    "with a flipped bit in the weights": _flipped_in("/data/"),
    "with a flipped bit in the pickle": _flipped_in("/data.pkl"),
    "with a flipped bit in the directory": lambda file, marker, random: flipped(file, random, *directory_span(file)),
    "cut": lambda file, marker, random: cut(file, random),
    "with bytes behind": lambda file, marker, random: appended(file, random),
    "emptied": lambda file, marker, random: b"",
    "replaced by a text": lambda file, marker, random: foreign(random),
    "replaced by a pickle with code": _pickled_code,
    "of another program": _foreign_torch,
}


def _weights_not_finite(content, random):
    weights = [value for value in content["network"].values() if value.is_floating_point()]
    value = (np.nan, np.inf, -np.inf)[random.integers(3)]
    spoil(weights[random.integers(len(weights))], value, random)
    return str(value)


def _validation_not_finite(content, random):
    value = (np.nan, np.inf)[random.integers(2)]
    spoil(content["validation"]["distances"], value, random)
    return str(value)


def _validation_too_far(content, random):
    value = (-0.5, 2.5, 1e30)[random.integers(3)]
    spoil(content["validation"]["distances"], value, random)
    return str(value)


def _labels_beyond(content, random):
    value = (-1, 2, 1000)[random.integers(3)]
    spoil(content["validation"]["labels"], value, random)
    return str(value)


def _references_not_finite(content, random):
    spoil(content["measurements"]["embeddings"], (np.nan, np.inf)[random.integers(2)], random)


def _calibration_not_finite(content, random):
    name = ("distances", "probabilities")[random.integers(2)]
    spoil(content["measurements"]["calibration"][name], (np.nan, np.inf)[random.integers(2)], random)
    return name


def _probabilities_beyond(content, random):
    value = (-0.1, 1.5, 100.0)[random.integers(3)]
    spoil(content["measurements"]["calibration"]["probabilities"], value, random)
    return str(value)


def _prepared_for(name, value):
    """An edit of what was prepared."""
    return lambda content, random: content["measurements"].update({name: value})


def _history(content, random):
    name, value = list(HISTORIES.items())[random.integers(len(HISTORIES))]
    content["history"] = value(content["history"])
    return name


HISTORIES = {
    "empty": lambda history: [],
    "of texts": lambda history: ["an epoch"] * len(history),
    "of a NaN": lambda history: [epoch | {"valid_auc": np.nan} for epoch in history],
    "of an AUC above 1": lambda history: [epoch | {"valid_auc": 1.5} for epoch in history],
    "of numbers": lambda history: [0.5] * len(history),
}


def _unknown_key(content, random):
    content["config"]["unknown"] = 1
    content["config"]["image"]["unknown"] = 1


def _refused_value(content, random):
    key, value = (
        ("seed", -1), ("margin", 5.0), ("split", "none"), ("backbone_model", "no_such_model"), ("embedding_size", 0),
        ("test_size", 2.0), ("embedding_size", 10**9),
    )[random.integers(7)]  # fmt: skip
    content["config"][key] = value
    return f"{key} {value}"


def _claims(content, random):
    """A tensor of one stored number that claims to have 10^10."""
    section, key = (
        ("network", "embedding.weight"), ("validation", "distances"), ("validation", "labels"),
    )[random.integers(3)]  # fmt: skip
    content[section][key] = content[section][key].flatten()[:1].clone().expand(10**10)
    return f"{section}.{key}"


EDITS = {  # (content, random) to what was changed; the content is changed in place
    "with weights not finite": _weights_not_finite,
    "with validation distances not finite": _validation_not_finite,
    "with validation distances beyond [0, 2]": _validation_too_far,
    "with labels beyond 0 and 1": _labels_beyond,
    "with a history": _history,
    "with an unknown key": _unknown_key,
    "with a refused value": _refused_value,
    "with a tensor that claims 10^10 numbers": _claims,
}
PREPARED = {  # the same, of what best.pt alone has
    "with references not finite": _references_not_finite,
    "with a calibration not finite": _calibration_not_finite,
    "with probabilities beyond [0, 1]": _probabilities_beyond,
    "prepared for a layer that is not there": _prepared_for("layer", "layer9"),
    "prepared for 0 steps": _prepared_for("steps", 0),
    "prepared for -1 steps": _prepared_for("steps", -1),
    "prepared for 10^9 steps": _prepared_for("steps", 10**9),
}


def _turned(value):
    """Transposed, or what comes nearest."""
    if isinstance(value, torch.Tensor):
        return value.transpose(0, 1).contiguous() if value.dim() > 1 else value[None].clone()
    return list(value.items()) if isinstance(value, dict) else [value]


def _longer(value):
    """One more of what it holds."""
    if isinstance(value, torch.Tensor):
        return torch.cat([value, value[:1]])
    if isinstance(value, dict):
        return value | {"one more": next(iter(value.values()))}
    if isinstance(value, str):
        return f"{value}{value[:1]}"
    return value + value[:1] if isinstance(value, list | tuple) else [value, value]


def _emptied(value):
    if isinstance(value, torch.Tensor):
        return value[:0].clone()
    return type(value)() if isinstance(value, dict | list | tuple | str) else {}


CHANGES = {  # the value of a part to another
    "missing": lambda value: REMOVED,
    "as a text": lambda value: "nonsense",
    "as None": lambda value: None,
    "without content": _emptied,
    "transposed": _turned,
    "longer": _longer,
}
HARMLESS = {("longer", "measurements/gaps"), ("without content", "measurements/gaps")}  # nothing can tell that they are false
CURRENTS = {  # (name of the run, random) to the bytes of the file that names the current run
    "empty": lambda name, random: b"",
    "outside": lambda name, random: b"../" + name,
    "binary": lambda name, random: random.bytes(100),
    "of a run that is gone": lambda name, random: b"2020-01-01_00-00-00_0123456789ab\n",
}
