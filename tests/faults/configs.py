"""config.yml fuzzed, its values and its text: refused by name, or read as it stands; nothing in it is run.

Encodings, missing keys and each refusal's words: tests/test_config.py and tests/test_yamlfile.py.
"""

import json
import math
import os
import re
import time
from functools import partial
from pathlib import Path

import yaml
from faults.outcomes import HANG, TRACEBACK, WRONG, Outcome, attempt
from helpers import ROOT, changed

from utils import load_config
from utils.config import ConfigError

LONGEST = 2  # seconds of computing that a config may take
SHIPPED = yaml.safe_load((ROOT / "config.yml").read_text(encoding="utf-8"))
TEXT = yaml.safe_dump(SHIPPED, sort_keys=False, default_flow_style=None)  # comments take long to read
FAULTS = {  # and what each has once brought to light
    "a value": WRONG,
    "another key": TRACEBACK,
    "a value on the command line": WRONG,
    "another change": TRACEBACK,
    "another line": WRONG,
    "cut": TRACEBACK,
    "flipped bytes": TRACEBACK,
    "another character": TRACEBACK,
}
OFTEN = ("a value", "a value on the command line")  # every second fault
NUMBERS = (
    *("0", "-1", "1", "2", "0.5", "1.5", "-0.0", "8193", "1_000", "1:30:00", "0o17", "5e-6", "1e-300", "1.0e-300"),
    *("1000000000", "1e9", "1.0e+9", "1e400", "1.0e+400", "9" * 400, "9" * 5000, "-" + "9" * 5000),
    *("0x" + "f" * 5000, "0b" + "1" * 5000, ".nan", ".inf", "-.inf", "True", "auto", "null"),
)
ALIASES = "[&x0 [1, 1]"  # MEMORY
for level in range(1, 9):
    ALIASES += f", &x{level} [" + f"*x{level - 1}, " * 6 + "]"
ALIASES += "]"
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
    # nested deeply: TRACEBACK
    *("[" * 10_000, "[" * 1000 + "]" * 1000, "{a: " * 10_000, "{a: " * 1000 + "}" * 1000, "\n    " + "- " * 10_000),
    ALIASES,
    # tags: WRONG
    *("!!python/object/apply:os.system ['touch MARKER']", "!!python/object/new:os.system ['touch MARKER']"),
    *("!!python/object/apply:builtins.eval [\"open('MARKER', 'w')\"]", "!!python/name:os.system ''"),
    *("!!python/module:os ''", "!!python/tuple [32, 32]", "!!timestamp 2001-99-99", "!!timestamp x", "!!int x"),
    *("!!float ''", "!!bool x", "!!binary '*'", "!!null x", "!!map [1]", "!!seq {a: 1}", "!local x"),
)
MOST = 2**32  # of any number: generous, but no machine takes more
KEYS = ("x", "Epochs", "image.size", "''", "1", "null", "True", '"\\0"', '"\\e[31m"', "x" * 5000, "[1, 2]", "<<")
CHANGES = ("", "=", "=1", "image", "image.size", "image..size=[32, 32]", "image.size.=1", "image.size.0=1", "x" * 5000)
LINES = ("x: 1", "seed: 1", "image: {}", "  size: [1, 1]", "\tseed: 1", "---", "...", "- a", "[", "'", "? a", "<<: 1")
CHARACTERS = ("\0", "\ufeff", "\x1b", "\x85", "\u2028", "\r", "\xe4", "\x7f")


def faults(project, random, tries, folder):
    path = folder / "config.yml"
    marker = folder / "marker"
    path.write_text(TEXT)
    shipped = load_config(path)
    for number in range(tries):
        kind = list(FAULTS)[number // 2 % len(FAULTS)]
        if number % 2:
            kind = OFTEN[number // 2 % len(OFTEN)]
        key = _drawn(list(_flat(SHIPPED, sections=True)), random)
        content, changes = _faulty(kind, key, _value(random).replace("MARKER", str(marker)), random)
        path.write_bytes(content)
        fault = _shortened(f"{kind}, {key}: {changes or ''}")
        names = (str(path), key, "--set", *[change.partition("=")[0] for change in changes if "=" in change[1:]])
        began = time.process_time()
        act = partial(load_config, path, changes)
        outcome = attempt(fault, act, partial(_complaint, path, changes, shipped), names)
        seconds = time.process_time() - began
        if marker.exists():
            marker.unlink()
            outcome = Outcome(WRONG, f"{fault}: what the file says was run")
        if seconds > LONGEST:
            outcome = Outcome(WRONG, f"{fault}: {HANG}, {seconds:.1f} s")
        if outcome.bad:
            outcome = Outcome(outcome.kind, f"{outcome.note}; the file: {_shortened(content)}")
        yield outcome


def _faulty(kind, key, value, random) -> tuple[bytes, list[str]]:
    """Return a file and changes of a command line, as one of FAULTS says."""
    content = bytearray(TEXT.encode())
    lines = TEXT.splitlines()
    line = random.integers(len(lines))
    place = random.integers(len(TEXT))
    match kind:
        case "a value":
            return _with(key, value), []
        case "a value on the command line":
            return content, [f"{key}={value}"]
        case "another key":
            section, dot, _ = key.rpartition(".")
            return _with(f"{section}{dot}PLACE", _drawn(KEYS, random)), []
        case "another change":
            return content, [_drawn(CHANGES, random)]
        case "another line":  # a line twice, or a tab before it, too
            lines.insert(line, _drawn([*LINES, lines[line], "\t" + lines[line].lstrip()], random))
            return "\n".join(lines).encode(), []
        case "cut":
            return content[:place], []
        case "flipped bytes":
            for _ in range(random.integers(1, 9)):
                content[random.integers(len(content))] = random.integers(256)
            return content, []
    return (TEXT[:place] + _drawn(CHARACTERS, random) + TEXT[place:]).encode(), []


def _drawn(texts, random) -> str:
    return texts[random.integers(len(texts))]  # in an array all would be as long as the longest, and NUL would be cut


def _with(key, text) -> bytes:
    """Return the shipped config with other text for the value of a key, or for PLACE in the key."""
    return yaml.safe_dump(changed(SHIPPED, {key: "PLACE"}), sort_keys=False).replace("PLACE", text, 1).encode()


def _value(random) -> str:
    """Return YAML for a value in one line."""
    draw = random.integers(6)
    if draw < 2:
        return _drawn(VALUES, random)
    if draw == 2:
        characters = random.integers(0x3000, size=random.integers(20))
        return json.dumps("".join(map(chr, characters)), ensure_ascii=False)
    if draw == 3:
        return repr(float(random.normal() * 10.0 ** random.integers(-320, 309)))
    if draw == 4:
        return repr(float(random.random()))
    return _drawn(NUMBERS, random)


def _complaint(path, changes, shipped, config):
    """Say what is wrong with a config that was loaded: it is not what YAML says, or of values that no machine takes."""
    try:
        given = yaml.safe_load(path.read_bytes())
        for change in changes:
            key, _, text = change.partition("=")
            given = changed(given, {key: yaml.safe_load(text)})
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return f"accepted, but {type(error).__name__}: {error}"
    expected = _flat(shipped.model_dump()) | _flat(given)
    for key, value in _flat(config.model_dump()).items():
        if not _sane(key, value):
            return f"accepted {key}: {_shortened(value)}"
        if key in expected and not _same(key, expected[key], value, path.parent):
            return f"accepted {key}: {_shortened(expected[key])} as {_shortened(value)}"
    text = path.with_name("text.yml")
    text.write_text(str(config.absolute()), encoding="utf-8")
    try:
        again = load_config(text)
    except ConfigError as error:
        return f"accepted, but its text is refused: {error}"
    if again.model_dump() != config.absolute().model_dump():
        return "accepted, but its text is another config"
    return None


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
    if isinstance(value, tuple):
        return all(_sane(key, part) for part in value)
    if isinstance(value, str | Path):
        return "\0" not in str(value)
    if value is None or isinstance(value, bool) or key == "image.value_range":
        return True
    least = -MOST if key == "image.normalization.mean" else 0
    return math.isfinite(value) and least <= value <= MOST


def _same(key, given, value, folder) -> bool:
    """Whether a value is what the file gives."""
    if key == "backbone_model":  # may be spelled in several ways
        return re.sub("[^a-z0-9]", "", str(given).lower()) == re.sub("[^a-z0-9]", "", value.lower())
    if isinstance(value, Path):
        places = folder / str(given), ROOT / str(given), Path(str(given)).expanduser(), Path(str(given))
        return os.path.normpath(value) in map(os.path.normpath, places)
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
