"""config.yml fuzzed, its values and its text: refused by name, or read as it stands; nothing in it is run."""

import copy
import json
import math
import os
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import hypothesis
import yaml
from faults.outcomes import RIGHT, WRONG, Outcome, attempt
from helpers import ROOT
from hypothesis import strategies as st

from utils import load_config

WORK = "fuzzed configs"
TRIES = 1000
QUICK = 150
LONGEST = 2  # seconds of computing that a config may take
SHIPPED = yaml.safe_load((ROOT / "config.yml").read_text(encoding="utf-8"))
TEXT = yaml.safe_dump(
    SHIPPED, sort_keys=False, default_flow_style=None
)  # without its comments, which take long to read
OWN = list(SHIPPED)[list(SHIPPED).index("split") :]  # keys that the paper's repository did not have carry a default
BOUNDS = {  # kind of number, least and most: generous, but no machine takes more
    "number_of_iterations": (int, 1, 10_000),
    "test_size": (float, 0, 1),
    "valid_size": (float, 0, 1),
    "image.HorizontalFlip": (float, 0, 1),
    "image.VerticalFlip": (float, 0, 1),
    "image.RandomRotationDegrees": (float, 0, 180),
    "image.brightness": (float, 0, 1000),
    "image.contrast": (float, 0, 1000),
    "image.saturation": (float, 0, 1000),
    "image.hue": (float, 0, 0.5),
    "image.RandomCropScale": (float, 0, 1),
    "hyperparameters.epochs": (int, 0, 1_000_000),
    "hyperparameters.batch_size": (int, 2, 1_000_000),
    "hyperparameters.num_workers": (int, 0, 10_000),
    "hyperparameters.learning_rate": (float, 0, 1000),
    "hyperparameters.weight_decay": (float, 0, 10_000),
    "hyperparameters.momentum": (float, 0, 1),
    "hyperparameters.max_norm": (float, 0, math.inf),
    "early_stopping.patience": (int, 1, math.inf),
    "early_stopping.min_delta": (float, 0, math.inf),
    "LRScheduler.patience": (int, 0, math.inf),
    "LRScheduler.min_lr": (float, 0, 1000),
    "LRScheduler.factor": (float, 0, 1),
    "seed": (int, 0, 2**32 - 1),
    "gpu": (int, 0, math.inf),
    "duplicate_radius": (int, 0, 64),
    "decision.fmr": (float, 0, 1),
    "decision.abstain": (float, 0, 1),
    "backbone_rate": (float, 0, 10_000),
    "embedding_size": (int, 1, 100_000),
    "margin": (float, 0, 2),
    "explanation.steps": (int, 1, 100_000),
    "explanation.test_pairs": (int, 1, math.inf),
    "explanation.opacity": (float, 0, 1),
    "gpu_cache_share": (float, 0, 1),
    "max_megapixels": (float, 0, 1_000_000),
}
TRUTHS = (
    "hyperparameters.verbose",
    "hyperparameters.nesterov",
    "LRScheduler.verbose",
    "cuda",
    "retrain",
    "deterministic",
    "compile",
)
WORDS = {
    "image.Channels": (1, 3),
    "hyperparameters.optimizer": ("Adam", "AdamW", "SGD"),
    "split": ("images", "classes", "groups"),
    "unreadable": ("skip", "stop"),
    "decision.rule": ("balanced", "eer", "fmr"),
    "backbone_training": ("full", "last", "frozen"),
    "pairs": ("batch", "paper"),
    "precision": ("auto", "float32", "bfloat16", "float16"),
    "explanation.output_stride": (8, 16, 32),
}
BESIDES = {  # what stands for no number
    "hyperparameters.max_norm": None,
    "early_stopping.patience": "auto",
    "LRScheduler.patience": "auto",
    "duplicate_radius": None,
    "decision.abstain": None,
    "explanation.steps": "auto",
}
PATHS = ("data_path", "checkpoints_path", "results_path")
LEAST_SIDE, MOST_SIDE = 32, 8192  # of image.size
NUMBERS = (
    *("0", "-1", "1", "2", "0.5", "1.5", "-0.0", "8193", "1_000", "1:30:00", "0o17", "5e-6", "1e-300", "1.0e-300"),
    *("1000000000", "1e9", "1.0e+9", "1e400", "1.0e+400", "9" * 400, "9" * 5000, "-" + "9" * 5000),
    *("0x" + "f" * 5000, "0b" + "1" * 5000, ".nan", ".inf", "-.inf", "True", "auto", "null"),
)
VALUES = (
    *NUMBERS,
    *("", "~", "yes", "eer", "ResNet50", "''", "' '", "[]", "{}", "[[]]", "[[[1], 2], 3]", "{a: {a: {a: 1}}}"),
    *("2001-01-01", "2001-99-99", "2001-01-01T99:99:99Z", "!!binary YQ==", "!!binary KGEp", "!!set {a, b}"),
    *("!!omap [a: 1]", "!!float x", "!!int ''", "{rule: eer, rule: fmr}", "{fmr: .nan}", "{fmr: 0.1}"),
    *("[0.5, 0.5, 0.5]", "{mean: [0.5, 0.5, 0.5], std: [0.1, 0.1, 0.1]}", "{mean: [.nan, 0, 0], std: [1, 1, 1]}"),
    *("{mean: [1.0e+9, 0, 0], std: [1, 1, 1]}", "{mean: [0, 0, 0], std: [1.0e-300, 1, 1]}", "'(('", "'(a+)+$'"),
    *('"\\0"', '"a\\0b"', '"\\e[31m"', '"\\u202e"', '"\\x85"', '"\\n\\n"', '"\\U0001F4A5"', "../../..", "~/x"),
    *("x" * 5000, "/dev/null", "&a [*a]", "*missing", "'#'", "a: b", "- a", "%YAML", "@x", "`x`"),
)
SIZES = ("[96]", "[96, 96]", "[32, 8192]", "[96, 96, 3]", "[0, 96]", "[96, 1.0e+9]", "[100000, 100000]", "[.nan, .nan]")
ODD_KEYS = ("x", "Epochs", "image.size", "''", "1", "null", "True", '"\\0"', '"\\e[31m"', "x" * 5000, "[1, 2]", "<<")
ODD_CHANGES = (
    "",
    "=",
    "=1",
    "image",
    "image.size",
    "image..size=[32, 32]",
    "image.size.=1",
    "image.size.0=1",
    "x" * 5000,
)
TAGS = (
    "!!python/object/apply:os.system ['{run}']",
    "!!python/object/new:os.system ['{run}']",
    "!!python/object/apply:subprocess.check_call [['touch', '{marker}']]",
    "!!python/object/apply:builtins.eval [\"open('{marker}', 'w')\"]",
    "!!python/name:os.system ''",
    "!!python/module:os ''",
    "!!python/tuple [32, 32]",
    "!!timestamp 2001-99-99",
    "!!timestamp x",
    "!!int ''",
    "!!int x",
    "!!float ''",
    "!!bool x",
    "!!binary '*'",
    "!!null x",
    "!!map [1]",
    "!!seq {{a: 1}}",
    "!local x",
    "!<tag:example.com,2000:x> x",
)
LINES = ("x: 1", "seed: 1", "image: {}", "  size: [1, 1]", "\tseed: 1", "---", "...", "- a", "[", "'", "? a", "<<: 1")


@dataclass(frozen=True)
class Fault:
    """said: what was done. content: of the file. changes: as on a command line. names: that a refusal may use besides
    the file.
    """

    said: str
    content: bytes
    changes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def faults(project, random, tries, folder):
    path = folder / "config.yml"
    marker = folder / "marker"
    strategies = (_edited(), _changed(), _edited(), _changed(), _cut(), _flipped(), _with_line(), _bomb(), _encoded())
    strategies = (*strategies, _tagged(marker))
    for number, strategy in enumerate(strategies):
        count = len(range(number, tries, len(strategies)))
        if count:
            yield from _fuzzed(strategy, count, int(random.integers(2**32)), path, marker)


def _fuzzed(strategy, count, seed, path, marker) -> list[Outcome]:
    """The outcomes of as many examples of a strategy."""
    outcomes = []

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate])
    @hypothesis.given(strategy)
    def inject(fault):
        path.write_bytes(fault.content)
        outcomes.append(_loaded(fault.said, path, fault.changes, (str(path), *fault.names), marker))

    inject()
    return outcomes


def _loaded(fault, path, changes, names, marker) -> Outcome:
    """What comes of loading a config."""
    began = time.process_time()
    complaint = partial(_complaint, path=path, changes=changes)
    outcome = attempt(fault, lambda: load_config(path, changes), complaint, names)
    seconds = time.process_time() - began
    if marker.exists():
        marker.unlink()
        return Outcome(WRONG, f"{fault}: what the file says was run")
    return outcome if seconds < LONGEST else Outcome(WRONG, f"{fault}: took {seconds:.1f} s")


def _complaint(config, path, changes):
    """What is wrong with a config that was loaded."""
    try:
        given = _given(path, changes)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return f"accepted, but {type(error).__name__}: {error}"
    if not isinstance(given, dict):
        return f"accepted, but holds {given!r}"
    for text in (path.read_bytes(), *(change.partition("=")[2] for change in changes)):
        twice = _twice(text)
        if twice:
            return f"accepted, but says {twice!r} twice"
    found = config.model_dump()
    values = dict(_flat(found))
    wrong = [key for key in values if not _sane(key, values[key])]
    if wrong:
        return f"accepted {wrong[0]}: {_shortened(values[wrong[0]])}"
    other = _difference(given, found, path.parent)
    return f"accepted {other}" if other else _changed_by_text(config, path)


def _given(path, changes):
    """What the file and the changes say, as far as YAML goes, with defaults."""
    content = yaml.safe_load(path.read_bytes())
    if not isinstance(content, dict):
        return content
    content = _filled(copy.deepcopy({key: SHIPPED[key] for key in OWN}), content)
    for change in changes:
        key, _, value = change.partition("=")
        _put(content, key.split("."), yaml.safe_load(value))
    return _filled({"decision": SHIPPED["decision"]}, content | {"decision": _rule(content["decision"])})


def _filled(defaults, content):
    """Nested settings with defaults for what they lack."""
    for key, value in content.items():
        both = isinstance(value, dict) and isinstance(defaults.get(key), dict)
        defaults[key] = _filled(dict(defaults[key]), _rule(value) if key == "decision" else value) if both else value
    return defaults


def _rule(decision):
    """The short forms of `decision`, in full."""
    if isinstance(decision, str):
        return {"rule": decision}
    return {"rule": "fmr"} | decision if isinstance(decision, dict) and "fmr" in decision else decision


def _put(content, names, value):
    """Set a value, whatever stands in the way."""
    *sections, name = names
    for section in sections:
        there = _rule(content.get(section)) if section == "decision" else content.get(section)
        content[section] = there if isinstance(there, dict) else {}
        content = content[section]
    content[name] = value


def _twice(text):
    """A key that YAML holds twice in one place, or nothing."""
    waiting = [yaml.compose(text, yaml.SafeLoader)]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(keys):
                return max(keys, key=keys.count)
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return None


def _flat(content, prefix=""):
    """All values by their dotted keys."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _sane(key, value) -> bool:
    """Whether a value is of the kind that its key has, and no machine chokes on it."""
    if key in BOUNDS:
        kind, least, most = BOUNDS[key]
        if key in BESIDES and value == BESIDES[key]:
            return True
        return type(value) is kind and least <= value <= most and math.isfinite(value)
    if key in TRUTHS:
        return type(value) is bool
    if key in WORDS:
        return value in WORDS[key] and type(value) is not bool
    if key in PATHS:
        return isinstance(value, Path) and "\0" not in str(value)
    if key in ("cache_path", "inference.image1", "inference.image2"):
        return value is None or (isinstance(value, Path) and "\0" not in str(value))
    if key == "pretrained":
        return type(value) is bool or (isinstance(value, Path) and "\0" not in str(value))
    if key == "image.size":
        return len(value) == 2 and all(type(side) is int and LEAST_SIDE <= side <= MOST_SIDE for side in value)
    if key == "image.normalization.mean":
        return len(value) == 3 and all(type(part) is float and abs(part) <= 1000 for part in value)
    if key == "image.normalization.std":
        return len(value) == 3 and all(type(part) is float and 1e-6 <= part <= 1000 for part in value)
    if key == "image.value_range":
        return value is None or (len(value) == 2 and value[0] < value[1] and all(map(math.isfinite, value)))
    if key == "group_pattern":
        return value is None or (type(value) is str and re.compile(value).groups == 1)
    return value is None or type(value) is str  # explanation.layer and method, run


def _difference(given, found, folder, prefix=""):
    """A key that a config holds otherwise than the file says, or lacks; nothing where there is none."""
    for key, value in found.items():
        if prefix + key == "backbone_model" and _plain(value) == _plain(str(given[key])):
            continue  # spelt in several ways
        if prefix + key == "image.normalization" and given.get(key, "auto") in ("auto", None):
            continue  # the backbone's own
        if prefix + key == "image.value_range" and value is None and given.get(key, "auto") in ("auto", None):
            continue  # by the type of each file
        if key not in given and prefix + key not in ("image.RandomCropScale",):
            return f"without {prefix}{key}"
        if isinstance(value, dict) and isinstance(given[key], dict):
            other = _difference(given[key], value, folder, f"{prefix}{key}.")
            if other:
                return other
        elif not _same(given.get(key, SHIPPED["image"].get(key)), value, folder):
            return f"{prefix}{key}: {_shortened(given[key])} as {_shortened(value)}"
    return None


def _same(given, found, folder) -> bool:
    """Whether a value is what the file says."""
    if found is None or isinstance(found, bool):
        return given is found
    if isinstance(found, Path):
        return isinstance(given, str) and str(found) in _meant(given, folder)
    if isinstance(found, tuple):
        return len(given) == len(found) and all(map(_same, given, found, [folder] * len(found)))
    if isinstance(found, float) and isinstance(given, str):
        return re.fullmatch(r"[-+]?\d+e[-+]?\d+", given.lower()) is not None and float(given) == found
    return given == found and not isinstance(given, bool)


def _plain(name):
    return re.sub("[^a-z0-9]", "", name.lower())


def _meant(given, folder):
    """The paths that a text may mean: below the folder of the file, below this one, or at home."""
    return os.path.normpath(folder / given), str(Path(given)), os.path.normpath(os.path.expanduser(given))


def _changed_by_text(config, path):
    """What is wrong with the text of a config, as a config."""
    text = path.with_name("text.yml")
    config = config.absolute()  # paths of changes are relative to the current folder
    text.write_text(str(config), encoding="utf-8")
    again = attempt("its text", lambda: load_config(text), lambda other: _other(other, config))
    return None if again.kind == RIGHT else f"accepted, but {again.note}"


def _other(config, before):
    return None if config.model_dump() == before.model_dump() else "is another config"


def _shortened(value):
    """A value in few characters."""
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 1000 else hex(value)
    return text if len(text) <= 160 else f"{text[:120]}... ({len(text)} characters)"


def _keys(content, prefix=""):
    """The dotted keys of nested settings, sections among them."""
    for key, value in content.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _values(key):
    """YAML of one value for a key, in one line; half of them of the kind that the key takes."""
    floats = st.one_of(st.floats(), st.floats(0, 1))
    kind = floats if BOUNDS.get(key, (int,))[0] is float else st.integers(-1)
    own = st.one_of(st.sampled_from(NUMBERS), kind.map(repr))
    if key not in BOUNDS:
        own = st.sampled_from(SIZES if key == "image.size" else VALUES)
    words = st.text(max_size=20).map(lambda text: json.dumps(text, ensure_ascii=False))
    parts = st.sampled_from(("0", "32", "1.0e+9", ".nan", "a", "''", "null"))
    nested = st.recursive(parts, lambda inner: st.lists(inner, max_size=3).map(lambda some: f"[{', '.join(some)}]"))
    return st.one_of(own, own, own, st.sampled_from(VALUES), words, nested)


@st.composite
def _edited(draw):
    """The shipped config with some values replaced, deleted or added."""
    content = copy.deepcopy(SHIPPED)
    written = {}
    said = []
    for number in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from(list(_keys(SHIPPED))))
        action = draw(st.sampled_from(("replace", "replace", "replace", "delete", "add")))
        *sections, name = key.split(".")
        section = content
        for part in sections:
            section = section[part] if isinstance(section.get(part), dict) else section
        if action == "delete":
            section.pop(name, None)
            said.append(f"without {key}")
            continue
        placeholder = f"value_{number}_"
        written[placeholder] = draw(_values(key))
        if action == "add":
            name = f"key_{number}_"
            written[name] = draw(st.sampled_from(ODD_KEYS))
        section[name] = placeholder
        said.append(f"{written.get(name, key)}: {written[placeholder]}")
    text = yaml.safe_dump(content, sort_keys=False)
    for placeholder, value in written.items():
        text = text.replace(placeholder, value)
    return Fault(_shortened("; ".join(said)), text.encode())


@st.composite
def _changed(draw):
    """The shipped config, changed as on a command line."""
    keys = draw(st.lists(st.sampled_from(list(_keys(SHIPPED))), min_size=1, max_size=2))
    changes = [f"{key}={draw(_values(key))}" for key in keys]
    if draw(st.integers(0, 9)) == 0:
        changes.append(draw(st.sampled_from(ODD_CHANGES)))
        keys.append(changes[-1].partition("=")[0] or "unknown key")
    return Fault(f"changed by {_shortened('; '.join(changes))}", TEXT.encode(), tuple(changes), tuple(keys))


@st.composite
def _cut(draw):
    length = draw(st.integers(0, len(TEXT)))
    return Fault(f"cut after {length} bytes", TEXT.encode()[:length])


@st.composite
def _flipped(draw):
    content = bytearray(TEXT.encode())
    flips = draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=8))
    for place, value in flips:
        content[place] = value
    return Fault(f"flipped {flips}", bytes(content))


@st.composite
def _with_line(draw):
    """Lines inserted, doubled, or indented by tabs."""
    lines = TEXT.splitlines()
    place = draw(st.integers(0, len(lines) - 1))
    action = draw(st.sampled_from(("odd", "double", "double", "tab", "any")))
    if action == "tab":
        lines[place] = "\t" + lines[place].lstrip()
        return Fault(f"line {place + 1} after a tab", "\n".join(lines).encode())
    odd = {"odd": st.sampled_from(LINES), "double": st.just(lines[place]), "any": st.text(max_size=40)}
    lines.insert(place, draw(odd[action]))
    return Fault(f"line {place + 1} inserted: {lines[place]!r}", "\n".join(lines).encode())


@st.composite
def _bomb(draw):
    """A value that is nested deeply, or that grows when its aliases are followed."""
    key = draw(st.sampled_from(list(SHIPPED)))
    if draw(st.booleans()):
        levels = [f"&x{level} [{', '.join([f'*x{level - 1}'] * 6)}]" for level in range(1, 9)]
        return Fault(
            f"{key}: aliases of aliases", f"{_without(key)}{key}: [&x0 [1, 1], {', '.join(levels)}]\n".encode()
        )
    depth = draw(st.sampled_from((100, 1000, 10_000)))
    kinds = ("[" * depth, "[" * depth + "]" * depth, "{a: " * depth, "{a: " * depth + "1" + "}" * depth, "- " * depth)
    value = draw(st.sampled_from(kinds))
    return Fault(f"{key}: {_shortened(value)}", f"{_without(key)}{key}:\n  {value}\n".encode())


@st.composite
def _encoded(draw):
    """Other encodings, and characters that YAML does not allow."""
    encoding = draw(
        st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp037", "utf-7"))
    )
    place = draw(st.integers(0, len(TEXT)))
    inserted = draw(st.sampled_from(("", "", "\0", "\ufeff", "\x1b", "\x85", "\u2028", "\r", "\xe4", "\x7f")))
    text = TEXT[:place] + inserted + TEXT[place:]
    return Fault(f"{encoding} with {inserted!r} at {place}", text.encode(encoding, "replace"))


@st.composite
def _tagged(draw, marker):
    """Values with tags, those that make Python run something among them."""
    key = draw(st.sampled_from(list(SHIPPED)))
    tag = draw(st.sampled_from(TAGS)).format(run=f"touch {marker}", marker=marker)
    if draw(st.booleans()):
        return Fault(f"changed by {key}={tag}", TEXT.encode(), (f"{key}={tag}",), (key,))
    return Fault(f"{key}: {tag}", f"{_without(key)}{key}: {tag}\n".encode())


def _without(key):
    """The text without a top key and what is below it."""
    return yaml.safe_dump({name: value for name, value in SHIPPED.items() if name != key}, sort_keys=False)
