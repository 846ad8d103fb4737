"""config.yml fuzzed, its values and its text: refused by name, or read as it stands; nothing in it is run."""

import json
import math
import os
import re
import time
from functools import partial
from pathlib import Path

import yaml
from faults.outcomes import HANG, MEMORY, TRACEBACK, UNCLEAR, WRONG, Outcome, attempt
from helpers import ROOT, changed

from utils import load_config

LONGEST = 2  # seconds of computing that a config may take
SHIPPED = yaml.safe_load((ROOT / "config.yml").read_text(encoding="utf-8"))
TEXT = yaml.safe_dump(SHIPPED, sort_keys=False, default_flow_style=None)  # comments take long to read
FAULTS = {  # and what each has once brought to light
    "a value": WRONG,
    "a value on the command line": WRONG,
    "without a key": "",
    "another key": TRACEBACK,
    "another change": TRACEBACK,
    "a tag": WRONG,
    "a tag on the command line": WRONG,
    "another line": WRONG,
    "a line twice": WRONG,
    "a tab": UNCLEAR,
    "cut": TRACEBACK,
    "flipped bytes": TRACEBACK,
    "another encoding": TRACEBACK,
    "another character": TRACEBACK,
    "nested deeply": TRACEBACK,
    "aliases of aliases": MEMORY,
}
OFTEN = ("a value", "a value on the command line")  # every second fault
BOUNDS = """
number_of_iterations 1 1e4, image.brightness 0 1e3, image.contrast 0 1e3, image.saturation 0 1e3, image.hue 0 0.5,
image.RandomRotationDegrees 0 180, hyperparameters.epochs 0 1e6, hyperparameters.batch_size 2 1e6,
hyperparameters.num_workers 0 1e4, hyperparameters.learning_rate 0 1e3, hyperparameters.weight_decay 0 1e4,
hyperparameters.max_norm 0 inf, early_stopping.patience 1 inf, early_stopping.min_delta 0 inf,
LRScheduler.patience 0 inf,
LRScheduler.min_lr 0 1e3, seed 0 4294967295, gpu 0 inf, duplicate_radius 0 64,
backbone_rate 0 1e4, embedding_size 1 1e5,
margin 0 2, explanation.steps 1 1e5, explanation.test_pairs 1 inf, max_megapixels 0 1e6, image.size 32 8192,
image.normalization.mean -1e3 1e3, image.normalization.std 1e-6 1e3, image.value_range -inf inf
"""  # key, least and most: generous, but no machine takes more
SHARES = (
    *("test_size", "valid_size", "image.HorizontalFlip", "image.VerticalFlip", "image.RandomCropScale"),
    *("hyperparameters.momentum", "LRScheduler.factor", "decision.fmr", "decision.abstain", "explanation.opacity"),
    "gpu_cache_share",
)
CHOICES = {"image.Channels": (1, 3), "explanation.output_stride": (8, 16, 32)}
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
    *('"\\0"', '"a\\0b"', '"\\e[31m"', '"\\u202e"', '"\\x85"', '"\\n\\n"', '"\\U0001F4A5"', "../../..", "~/x", "~x/x"),
    *("x" * 5000, "/dev/null", "&a [*a]", "*missing", "'#'", "a: b", "- a", "%YAML", "@x", "`x`"),
    *("[96]", "[96, 96]", "[32, 8192]", "[0, 96]", "[96, 1.0e+9]", "[100000, 100000]", "[.nan, .nan]"),
)
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
    *("!!python/object/apply:os.system ['touch MARKER']", "!!python/object/new:os.system ['touch MARKER']"),
    *("!!python/object/apply:builtins.eval [\"open('MARKER', 'w')\"]", "!!python/name:os.system ''"),
    *("!!python/module:os ''", "!!python/tuple [32, 32]", "!!timestamp 2001-99-99", "!!timestamp x", "!!int ''"),
    *("!!int x", "!!float ''", "!!bool x", "!!binary '*'", "!!null x", "!!map [1]", "!!seq {a: 1}", "!local x"),
)
LINES = ("x: 1", "seed: 1", "image: {}", "  size: [1, 1]", "\tseed: 1", "---", "...", "- a", "[", "'", "? a", "<<: 1")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp037", "utf-7")
CHARACTERS = ("\0", "\ufeff", "\x1b", "\x85", "\u2028", "\r", "\xe4", "\x7f")


def faults(project, random, tries, folder):
    path = folder / "config.yml"
    marker = folder / "marker"
    path.write_text(TEXT)
    shipped = load_config(path)
    kinds = list(FAULTS)
    for number in range(tries):
        kind = kinds[number // 2 % len(kinds)]
        if number % 2:
            kind = OFTEN[number // 2 % len(OFTEN)]
        keys = list(_flat(SHIPPED, sections=True))
        key = str(random.choice(keys))
        content, changes = _faulty(kind, key, random, str(marker))
        path.write_bytes(content)
        fault = _shortened(f"{kind}, {key}: {changes or ''}")
        complaint = partial(_complaint, path, changes, shipped)
        began = time.process_time()
        names = (str(path), key, "--set", *[change.partition("=")[0] for change in changes if "=" in change[1:]])
        outcome = attempt(fault, partial(load_config, path, changes), complaint, names)
        seconds = time.process_time() - began
        if marker.exists():
            marker.unlink()
            outcome = Outcome(WRONG, f"{fault}: what the file says was run")
        if seconds > LONGEST:
            outcome = Outcome(WRONG, f"{fault}: {HANG}, {seconds:.1f} s")
        if outcome.bad:
            outcome = Outcome(outcome.kind, f"{outcome.note}; the file: {_shortened(content)}")
        yield outcome


def _faulty(kind, key, random, marker) -> tuple[bytes, list[str]]:
    """Return a file and changes of a command line, as one of FAULTS says."""
    lines = TEXT.splitlines()
    line = random.integers(len(lines))
    place = random.integers(len(TEXT))
    tag = str(random.choice(TAGS)).replace("MARKER", marker)
    match kind:
        case "a value":
            return changed_text(key, _value(key, random)), []
        case "a value on the command line":
            return TEXT.encode(), [f"{key}={_value(key, random)}"]
        case "without a key":
            return changed_text(key, None), []
        case "another key":
            return changed_text(key, "1", str(random.choice(ODD_KEYS))), []
        case "another change":
            return TEXT.encode(), [str(random.choice(ODD_CHANGES))]
        case "a tag":
            return changed_text(key, tag), []
        case "a tag on the command line":
            return TEXT.encode(), [f"{key}={tag}"]
        case "another line":
            lines.insert(line, str(random.choice(LINES)))
        case "a line twice":
            lines.insert(line, lines[line])
        case "a tab":
            lines[line] = "\t" + lines[line].lstrip()
        case "cut":
            return TEXT.encode()[:place], []
        case "flipped bytes":
            content = bytearray(TEXT.encode())
            for _ in range(random.integers(1, 9)):
                content[random.integers(len(content))] = random.integers(256)
            return bytes(content), []
        case "another encoding":
            return TEXT.encode(str(random.choice(ENCODINGS))), []
        case "another character":
            return (TEXT[:place] + random.choice(CHARACTERS) + TEXT[place:]).encode(), []
        case "nested deeply":
            depth = int(random.choice((100, 1000, 10_000)))
            opening, closing = (("[", ""), ("[", "]"), ("{a: ", ""), ("{a: ", "}"), ("- ", ""))[random.integers(5)]
            return changed_text(key, f"\n    {opening * depth}{closing * depth}"), []
        case "aliases of aliases":
            levels = ["&x0 [1, 1]"]
            for level in range(1, 9):
                levels.append(f"&x{level} [{', '.join([f'*x{level - 1}'] * 6)}]")
            return changed_text(key, f"[{', '.join(levels)}]"), []
    return "\n".join(lines).encode(), []


def changed_text(key, value, name=None) -> bytes:
    """Return the shipped config with YAML for the value of a key, under another name; None: without the key."""
    section, dot, last = key.rpartition(".")
    text = yaml.safe_dump(changed(SHIPPED, {key: "PLACE", f"{section}{dot}NAME": 0}), sort_keys=False)
    lines = []
    for line in text.splitlines():
        if "NAME: 0" in line:
            continue
        if "PLACE" in line:
            if value is None:
                continue
            line = line.replace("PLACE", value).replace(last, name or last, 1)
        lines.append(line)
    return "\n".join(lines).encode()


def _value(key, random) -> str:
    """Return YAML for a value in one line: every second of a kind that the key may take."""
    draw = random.integers(6)
    if draw < 2:
        return str(random.choice(VALUES))
    if draw == 2:
        characters = random.integers(0x3000, size=random.integers(20))
        return json.dumps("".join(map(chr, characters)), ensure_ascii=False)
    if draw == 3:
        return repr(float(random.normal() * 10.0 ** random.integers(-320, 309)))
    if key in SHARES:
        return repr(float(random.random()))
    return str(random.choice(NUMBERS))


def _complaint(path, changes, shipped, config):
    """Say what is wrong with a config that was loaded: it is not what YAML says, or of values that no machine takes."""
    try:
        given = yaml.safe_load(path.read_bytes())
        _refuse_twice(path.read_bytes())
        for change in changes:
            key, _, text = change.partition("=")
            _refuse_twice(text)
            given = changed(given, {key: yaml.safe_load(text)})
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return f"accepted, but {type(error).__name__}: {error}"
    values = _flat(config.model_dump())
    expected = _flat(shipped.model_dump()) | _flat(given)
    for key, value in values.items():
        if not _sane(key, value):
            return f"accepted {key}: {_shortened(value)}"
        if key in expected and not _same(key, expected[key], value, path.parent):
            return f"accepted {key}: {_shortened(expected[key])} as {_shortened(value)}"
    text = path.with_name("text.yml")
    text.write_text(str(config.absolute()), encoding="utf-8")
    if load_config(text).model_dump() != config.absolute().model_dump():
        return "accepted, but its text is another config"
    return None


def _refuse_twice(text):
    """Raise ValueError where YAML gives one key twice."""
    waiting = [yaml.compose(text, yaml.SafeLoader)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            keys = []
            for key, value in node.value:
                keys.append(key.value)
                waiting.append(value)
            if len(set(map(str, keys))) < len(keys):
                raise ValueError(f"one of {keys} twice")


def _flat(content, prefix="", sections=False) -> dict:
    """Return all values by their dotted keys."""
    values = {}
    for key, value in content.items():
        if isinstance(value, dict):
            values |= _flat(value, f"{prefix}{key}.", sections)
        if sections or not isinstance(value, dict):
            values[f"{prefix}{key}"] = value
    return values


def _sane(key, value) -> bool:
    """Whether no machine chokes on a value."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, tuple):
        return all(_sane(key, part) for part in value)
    if isinstance(value, str | Path):
        return "\0" not in str(value)
    if key in CHOICES:
        return value in CHOICES[key]
    least, most = 0, 1
    if key not in SHARES:
        least, most = map(float, re.search(rf"\b{key} (\S+) ([^\s,]+)", BOUNDS).groups())
    return math.isfinite(value) and least <= value <= most


def _same(key, given, value, folder) -> bool:
    """Whether a value is what the file gives."""
    if key == "backbone_model":  # may be spelled in several ways
        return re.sub("[^a-z0-9]", "", str(given).lower()) == re.sub("[^a-z0-9]", "", value.lower())
    if isinstance(value, Path):
        places = folder / str(given), ROOT / str(given), Path(str(given)).expanduser()
        return os.path.normpath(value) in [os.path.normpath(place) for place in (*places, Path(str(given)))]
    if isinstance(value, tuple) and isinstance(given, list | tuple):
        return len(given) == len(value) and all(_same(key, *pair, folder) for pair in zip(given, value, strict=True))
    if isinstance(value, float) and isinstance(given, str):
        return re.fullmatch(r"[-+]?\d+e[-+]?\d+", given.lower()) is not None and float(given) == value
    if isinstance(value, bool) or isinstance(given, bool) or value is None:
        return value is given or (value is None and given == "auto")  # of each file, or of the backbone
    return value == given


def _shortened(value) -> str:
    """Return a value in few characters."""
    if isinstance(value, int) and value.bit_length() > 1000:
        value = hex(value)
    text = repr(value)
    if len(text) > 160:
        return f"{text[:120]}... ({len(text)} characters)"
    return text
