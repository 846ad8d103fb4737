"""YAML as config.yml needs it: what is ambiguous or monstrous is refused by a YAMLError that names line and cure."""

import codecs
import copy
import difflib
import json
import os
import re
import unicodedata
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from .files import UserError, printable, shortened

DEEPEST = 30  # lists and sections inside one another
LONGEST = 4096  # characters of a value
MOST_DIGITS = 40  # of a whole number
SHOWN = 100  # characters of a line, and lines of an error
SEARCHED = 30_000  # characters of a text in which changes are tried, each by reading it once more
ABOVE = 2  # lines above the one where an error is noticed in which it may lie
BYTE_ORDER_MARKS = {  # at the start of a file
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
SAVE_AS = "Save the file as UTF-8 (Notepad: Save as, Encoding: UTF-8)"
LAYOUT = (
    "Each line should be `key: value`, the keys of a section should start in the same column, and each bracket and "
    "quote should be closed"
)
CLOSING = {"[": "]", "{": "}"}
LETTER_ESCAPE = re.compile(r"\\[0abtnvfeNLP_]")  # in double quotes: \t is a tab, \P ends a paragraph
PAIR = re.compile(r"(?P<start>\s*[A-Za-z_]\w*)\s*:\s*(?P<value>\S.*?)(?:\s+#.*)?")
KEY_AND_VALUE = re.compile(r"(?P<start>\s*[A-Za-z_]\w*)(?:\s*[:=\uff1a]\s*|\s+)(?P<value>[^\s:=\uff1a].*)")


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader; a key that stands twice in a section is an error, not the last one's value.

    So is a value that is not what it looks like: a Windows path in double quotes, a word in typographic quotes.
    """

    depth = 0

    def compose_node(self, parent, index):
        if self.depth > DEEPEST:
            raise ConstructorError(None, None, f"nested deeper than {DEEPEST}", self.peek_event().start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node, deep=False):
        lines = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                cause = f"{key.value} stands in line {lines[key.value]} and in line {line}: delete one of the two"
                raise ConstructorError(None, None, cause)
            lines[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node, deep=False):
        if isinstance(node, yaml.ScalarNode):
            _check_length(node)
            _check_quotes(node)
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # as in !!int ""
            raise ConstructorError(None, None, f"no value of the kind {node.tag}: {error}", node.start_mark) from error

    def construct_yaml_int(self, node):
        if len(node.value) > MOST_DIGITS:
            raise ConstructorError(None, None, f"a number of {len(node.value)} characters", node.start_mark)
        return super().construct_yaml_int(node)


PlainLoader.add_constructor("tag:yaml.org,2002:int", PlainLoader.construct_yaml_int)


def load_yaml(text: str):
    """Read nested dicts, lists and plain values.

    Raises:
        yaml.YAMLError: The text is no YAML, or is refused. The message names the line, the cause and, where a change of
            that line ends the error, the changed line.
    """
    try:
        return yaml.load(text, PlainLoader)
    except yaml.YAMLError as error:
        raise yaml.YAMLError(_explained(error, text)) from error


def decoded(content: bytes) -> str:
    """Return the text of a file: UTF-8, or what the byte order mark at its start names, as Windows writes it.

    Raises:
        yaml.YAMLError: The bytes are no text in this encoding.
    """
    encoding = "utf-8"
    for mark, name in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            encoding = name
            break
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(content[: error.start].splitlines() or [b""])
        cause = f"line {line}: the byte 0x{content[error.start]:02x} is no {encoding.upper()}"
        raise yaml.YAMLError(f"{cause}, so the file was saved in another encoding. {SAVE_AS}") from error
    if "\0" in text:
        raise yaml.YAMLError(f"it holds zero bytes: UTF-16 without a byte order mark, UTF-32, or no text. {SAVE_AS}")
    return text


def _check_length(node):
    if len(node.value) > LONGEST:
        raise ConstructorError(None, None, f"a value of {len(node.value)} characters", node.start_mark)


def _check_quotes(node):
    """Raises ConstructorError for a value that YAML reads as another one than a reader does."""
    if node.style == '"':
        written = node.start_mark.buffer[node.start_mark.pointer : node.end_mark.pointer]
        escapes = LETTER_ESCAPE.search(written.replace(r"\\", "  "))
        if escapes:
            cause = f"{escapes[0]} in double quotes is one special character: write {_single_quoted(written)}"
            raise ConstructorError(None, None, cause, node.start_mark)
    value = node.value
    if "\0" in value:  # as \x00 and \u0000 say it; no file can have such a name
        raise ConstructorError(None, None, "the character U+0000 is not allowed: delete it", node.start_mark)
    if node.style is None and len(value) > 1 and _is_typographic(value[0]) and _is_typographic(value[-1]):
        cause = f"typographic quotes are part of the value: write {_single_quoted(value)}"
        raise ConstructorError(None, None, cause, node.start_mark)


def _is_typographic(character):
    """Whether this is a quote that is part of the value for YAML."""
    return not character.isascii() and "QUOTATION MARK" in unicodedata.name(character, "")


def _explained(error, text):
    """What is wrong in which line, and what to change."""
    if isinstance(error, ReaderError):
        line = len(text[: error.position].splitlines() or [""])
        return f"line {line}: the character U+{error.character:04X} is not allowed: delete it"
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return error.problem
    lines = text.splitlines()
    if "'\\t'" in error.problem:
        numbers = [str(number) for number, line in enumerate(lines, 1) if "\t" in line]
        return f"line {', '.join(numbers[:SHOWN])}: tabs are not allowed here: replace each by four spaces"
    shown = f", `{lines[mark.line].strip()[:SHOWN]}`" if mark.line < len(lines) else ""
    if isinstance(error, ConstructorError):
        return f"line {mark.line + 1}{shown}: {error.problem}"
    if len(text) <= SEARCHED:
        for number in _suspects(error, mark, lines):
            for cause, line in _corrections(lines, number):
                changed = [*lines[:number], line, *lines[number + 1 :]]
                if _reads_beyond("\n".join(changed), mark):
                    return f"line {number + 1}: {cause}: write `{line[:SHOWN]}`"
    cause = f"line {mark.line + 1}{shown}: {error.problem}"
    if error.context and error.context_mark:
        cause += f", {error.context} that began in line {error.context_mark.line + 1}"
    return f"{cause}. {LAYOUT}"


def _suspects(error, mark, lines):
    """The numbers of lines in which the error may lie, the likeliest first."""
    near = list(range(mark.line, mark.line - ABOVE - 1, -1))
    began = error.context_mark.line if error.context_mark else mark.line
    numbers = near if began in near else [began, *near]
    return [number for number in numbers if 0 <= number < len(lines) and len(lines[number]) <= LONGEST]


def _corrections(lines, number):
    """What may be wrong in a line, and the line without it."""
    line = lines[number].rstrip()
    if line == "---":
        yield "it begins a second document, and one is read", "#"
    pair = PAIR.fullmatch(line)
    if pair and pair["value"].startswith('"') and "\\" in pair["value"]:
        cause = "a backslash in double quotes begins a special character"
        yield cause, f"{pair['start']}: {_single_quoted(pair['value'])}"
    if KEY_AND_VALUE.fullmatch(line):
        yield "a colon and a space should follow the key", KEY_AND_VALUE.sub(r"\g<start>: \g<value>", line)
    if pair and pair["value"][0] in CLOSING:
        cause = "a bracket is not closed"
        yield cause, f"{pair['start']}: {pair['value']}{CLOSING[pair['value'][0]]}"
    if pair:
        quoted = pair["value"].strip("'\"").replace("'", "''")
        yield "this value needs quotes", f"{pair['start']}: '{quoted}'"
    above = [other for other in lines[:number] if other.strip() and not other.lstrip().startswith("#")]
    if above:
        margin = above[-1][: len(above[-1]) - len(above[-1].lstrip())]
        shift = f"it should start in column {len(margin) + 1}, as the line above"
        yield shift, margin + line.lstrip()


def _reads_beyond(text, mark):
    """Whether the text is YAML up to the line of a mark, and that line too."""
    try:
        yaml.load(text, PlainLoader)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        return place is not None and place.line > mark.line
    except yaml.YAMLError:
        return False
    return True


def _single_quoted(written):
    """A quoted value in single quotes, where each backslash stands for itself."""
    plain = written[1:].removesuffix('"') if written.startswith('"') else written[1:-1]
    return "'" + plain.replace(r"\\", "\\").replace("'", "''") + "'"


AUTO = "auto"  # chosen on validation pairs, or by the backbone
LAST = "last"  # the name of the last feature map, whatever the backbone calls it
PATHS = ("data_path", "pretrained", "checkpoints_path", "results_path", "cache_path")  # and the images of `inference`
CONFIG_VARIABLE = "SIAMESE_CONFIG"  # environment variable with the path that the notebooks load
CONFIG_FILE = "config.yml"  # without it
PROJECT = Path(__file__).parent.parent  # the folder to start in
LARGEST = 1_000_000  # bytes of a config file
SHOWN_ERRORS = 12  # errors of one file
WIDEST = 120  # characters of a value in an error
WORDS = {
    "path_type": "should be a path",
    "missing": "missing; add it",
    "model_type": "should hold `key: value` lines, with a space after the colon",
}


class ConfigError(UserError, ValueError):
    """config.yml cannot be used; the message names each key, its value and what is allowed."""


def _number(value):
    """YAML 1.1 reads 5e-6 (no dot) as text; any other text is left to the type check, which names the key."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value.lower()) else value


def _auto(value):
    """`auto` is the same as no key: the backbone's own."""
    if isinstance(value, str) and value != "auto":
        raise ValueError("should be auto, or hold mean and std")
    return None if value == "auto" else value


def _by_type(value):
    """`auto` is the same as no key: the range of the type of each file."""
    if isinstance(value, list | tuple | None):
        return value
    if value == AUTO:
        return None
    raise ValueError("should be auto or [low, high]")


def _rising(limits):
    if limits is not None and limits[0] >= limits[1]:
        raise ValueError("should be [low, high], the lower value first")
    return limits


def _at_home(path) -> Path:
    """The path, with a leading ~ spelt out; as it stands where there is no such user."""
    return Path(os.path.expanduser(path))


def _no_none(value):
    """Python's None is a word for YAML, and would name a folder."""
    if str(value) == "None":
        raise ValueError("None is text in YAML; null stands for no value")
    return value


def _pretrained(value):
    if isinstance(value, bool | str):
        return _at_home(Path(value)) if isinstance(value, str) else value
    raise ValueError("should be True, False or the path of a file of weights")


def _count_or_auto(value, least=1):
    if value == AUTO or (isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST):
        return value
    raise ValueError(f"should be auto or a whole number from {least} to {MOST}")


def _decision(value):
    """`decision: eer` and `decision: {fmr: 0.01}` are short for a rule."""
    if isinstance(value, str):
        return {"rule": value}
    if isinstance(value, dict) and "fmr" in value and "rule" not in value:
        return value | {"rule": "fmr"}
    return value


def _backbone_name(value):
    from .vision import backbone_name  # imports timm

    return backbone_name(value)


def _pattern(value):
    if value is None:
        return None
    try:
        groups = re.compile(value).groups
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"should be a regular expression: {error}") from error
    if groups != 1:
        raise ValueError("should hold one group in parentheses: what it catches names the group of a file")
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Rate = Annotated[Number, Field(gt=0, le=100)]
Factor = Annotated[Number, Field(ge=0, le=10)]
Share = Annotated[Number, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=32, le=4096)]
Between = Annotated[Number, Field(gt=0, lt=1)]
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_at_home), AfterValidator(_no_none)]
Method = Literal[
    "gradcam", "gradcam++", "layercam", "hirescam", "integrated", "path_layercam", "contrastive", "occlusion"
]
Limits = Annotated[
    tuple[Number, Number] | None, Field(strict=False), BeforeValidator(_by_type), AfterValidator(_rising)
]
Mean = Annotated[Number, Field(ge=-10, le=10)]
Deviation = Annotated[Number, Field(ge=1e-4, le=100)]
MOST = 100_000  # steps or epochs to wait


class Section(BaseModel):
    """A frozen group of keys that takes no unknown key and converts no type silently."""

    model_config = {"frozen": True, "extra": "forbid", "strict": True}

    def changed(self, **changes):
        """A copy with some keys changed. Raises ConfigError that names each unknown key and each refused value."""
        try:
            return type(self).model_validate(self.model_dump() | changes)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(problem, type(self)) for problem in error.errors())) from error

    def __str__(self):
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None).strip()


class Normalization(Section):
    """What each channel of images, in [0, 1], was normalised with: (image - mean) / std."""

    mean: Annotated[tuple[Mean, ...], Field(strict=False, min_length=1)]
    std: Annotated[tuple[Annotated[Number, Field(gt=0)], ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _of_equal_length(self):
        if len(self.mean) != len(self.std):
            raise ValueError(f"should hold as many values of mean as of std, not {len(self.mean)} and {len(self.std)}")
        return self


class ColourNormalization(Normalization):
    """The same of images in colour, as the networks of config.yml take them."""

    mean: Annotated[tuple[Mean, Mean, Mean], Field(strict=False)]
    std: Annotated[tuple[Deviation, Deviation, Deviation], Field(strict=False)]


class ImageSettings(Section):
    size: Annotated[tuple[Side, Side], Field(strict=False)]
    value_range: Limits = None  # not in the paper's repository; None: by the type of each file
    normalization: Annotated[ColourNormalization | None, BeforeValidator(_auto)] = None  # None until the whole is read
    Channels: Literal[1, 3]
    HorizontalFlip: Share
    VerticalFlip: Share
    RandomRotationDegrees: Annotated[Number, Field(ge=0, le=180)]
    brightness: Factor
    contrast: Factor
    saturation: Factor
    hue: Annotated[Number, Field(ge=0, le=0.5)]
    RandomCropScale: Annotated[Number, Field(gt=0, le=1)] = 1.0  # not in the paper's repository


class Hyperparameters(Section):
    epochs: Annotated[int, Field(ge=0, le=MOST)]
    verbose: bool
    batch_size: Annotated[int, Field(ge=2, le=MOST)]
    num_workers: Annotated[int, Field(ge=0, le=1024)]
    optimizer: Literal["Adam", "AdamW", "SGD"]
    learning_rate: Rate
    weight_decay: Annotated[Number, Field(ge=0, le=100)]
    momentum: Annotated[Number, Field(ge=0, lt=1)]
    nesterov: bool
    max_norm: Annotated[Number, Field(gt=0, le=1e6)] | None


class EarlyStopping(Section):
    patience: Annotated[int | str, PlainValidator(_count_or_auto)]
    min_delta: Share


class LRScheduler(Section):
    patience: Annotated[int | str, PlainValidator(partial(_count_or_auto, least=0))]
    min_lr: Annotated[Number, Field(ge=0, le=100)]
    factor: Between
    verbose: bool


class DecisionSettings(Section):
    rule: Literal["balanced", "eer", "fmr"] = "balanced"
    fmr: Between = 0.01
    abstain: Between | None = None


class ExplanationSettings(Section):
    method: Method = "contrastive"
    layer: str = AUTO
    output_stride: Literal[8, 16, 32] = 32
    steps: Annotated[int | str, PlainValidator(_count_or_auto)] = AUTO
    test_pairs: Annotated[int, Field(ge=1, le=MOST)] = 32
    opacity: Annotated[Number, Field(gt=0, le=1)] = 0.6


class Inference(Section):
    image1: FilePath | None = None
    image2: FilePath | None = None


class Config(Section):
    """The whole of config.yml; what each key does is said in the comments of the file itself."""

    data_path: FilePath
    number_of_iterations: Annotated[int, Field(ge=1, le=10_000)]
    backbone_model: Annotated[str, AfterValidator(_backbone_name)]
    pretrained: Annotated[bool | Path, PlainValidator(_pretrained)]
    checkpoints_path: FilePath
    test_size: Between
    valid_size: Between
    image: ImageSettings
    hyperparameters: Hyperparameters
    early_stopping: EarlyStopping
    LRScheduler: LRScheduler
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    cuda: bool
    gpu: Annotated[int, Field(ge=0, le=1023)]
    # the keys from here on are not in the paper's repository
    split: Literal["images", "classes", "groups"] = "images"
    group_pattern: Annotated[str | None, PlainValidator(_pattern)] = None
    duplicate_radius: Annotated[int, Field(ge=0, le=16)] | None = 6
    unreadable: Literal["skip", "stop"] = "skip"
    max_megapixels: Annotated[Number, Field(gt=0, le=100_000)] = 100.0
    retrain: bool = False
    run: Annotated[str, AfterValidator(_no_none)] | None = None
    decision: Annotated[DecisionSettings, BeforeValidator(_decision)] = DecisionSettings()
    backbone_training: Literal["full", "last", "frozen"] = "full"
    backbone_rate: Rate = 1.0
    embedding_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    margin: Annotated[Number, Field(gt=0, le=2)] = 1.0
    pairs: Literal["batch", "paper"] = "batch"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    deterministic: bool = False
    compile: bool = False
    explanation: ExplanationSettings = ExplanationSettings()
    inference: Inference = Inference()
    results_path: FilePath = Path("results")
    cache_path: FilePath | None = Path("cache")
    gpu_cache_share: Share = 0.5
    _source: str | None = PrivateAttr(None)

    @property
    def source(self) -> str | None:
        """The file that the settings were loaded from, and what was changed in it; None where there is no file."""
        return self._source

    def from_source(self, source: str | None) -> "Config":
        """A copy that names another source."""
        copy = self.model_copy()
        copy._source = source
        return copy

    def absolute(self) -> "Config":
        """A copy whose paths hold in any folder."""
        content = _below(Path.cwd(), self.model_dump(mode="json"))
        return Config.model_validate(content).from_source(self.source)

    def __str__(self):
        return f"# {self.source}\n{super().__str__()}" if self.source else super().__str__()

    @model_validator(mode="after")
    def _fits_together(self):
        if self.test_size + self.valid_size >= 1:
            raise ValueError("test_size + valid_size must stay below 1, or nothing is left for training")
        if self.pairs == "batch" and self.hyperparameters.batch_size < 4:
            raise ValueError("pairs: batch needs hyperparameters.batch_size of at least 4, two images of two classes")
        settings = self.hyperparameters
        if settings.optimizer == "SGD" and settings.nesterov and not settings.momentum:
            raise ValueError("hyperparameters.nesterov: True needs hyperparameters.momentum above 0")
        if (self.inference.image1 is None) != (self.inference.image2 is None):
            raise ValueError("inference: name both image1 and image2, or neither for a pair of the test split")
        if self.split == "groups" and self.group_pattern is None:
            raise ValueError("split: groups needs group_pattern, say '^[a-z]+_([0-9]+)_' for rose_12_front.jpg")
        if self.LRScheduler.min_lr > settings.learning_rate:
            raise ValueError("LRScheduler.min_lr: must not be above hyperparameters.learning_rate")
        if not settings.epochs and not self.pretrained:
            raise ValueError("hyperparameters.epochs: 0 needs `pretrained`, or the network knows nothing")
        return self

    @model_validator(mode="after")
    def _own_normalization(self):
        """Normalisation belongs to the weights: where the config gives none, it is the backbone's."""
        if self.image.normalization is not None:
            return self
        from .vision import normalization_of

        own = ColourNormalization(**normalization_of(self.backbone_model))
        return self.model_copy(update={"image": self.image.model_copy(update={"normalization": own})})


def load_config(path=None, changes=()) -> Config:
    """Read and check a config file; without `path`, the one that SIAMESE_CONFIG names, else config.yml.

    changes: settings that replace those of the file, as on a command line: "image.size=[224, 224]", values in YAML.
    Relative paths are relative to the folder of the file; those in `changes` to the current folder.
    Raises ConfigError, naming the file and every key at fault, for a file that is missing or no YAML and any bad key.
    The file may be UTF-8, or begin with a byte order mark that says UTF-16.
    """
    path = _at_home(path or os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)
    content = _below(path.parent, _read(path))
    for change in changes:
        if isinstance(content, dict) and "decision" in content:
            content["decision"] = _decision(content["decision"])  # so that a change of one key leaves the others
        _change(content, *change.partition("=")[::2])
    try:
        return Config.model_validate(content).from_source(_source(path, changes))
    except ValidationError as error:
        lines = [f"{path}: {_explain(problem)}{_hint(problem, content)}" for problem in error.errors()[:SHOWN_ERRORS]]
        more = error.error_count() - len(lines)
        raise ConfigError("\n".join(lines + [f"and {more} more"] * (more > 0))) from error


def _read(path):
    """What a config file holds: nested dicts, lists and plain values."""
    try:
        if not path.exists():
            raise ConfigError(_missing(path))
        if not path.is_file():
            raise ConfigError(f"{path}: is no file: name the config file itself")
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path}: is larger than {LARGEST} bytes, so it is no config file: name another one")
        return load_yaml(decoded(path.read_bytes()))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {shortened(str(error), 500)}") from error


def _hint(problem, content):
    """What to write instead of a refused value, where a likely meaning of it is accepted; else nothing."""
    for meant in _meanings(problem["input"]):
        changed = copy.deepcopy(content)
        section = changed
        *sections, key = problem["loc"] or ("",)
        for name in sections:
            section = section[name] if isinstance(section, dict) and name in section else None
        if not isinstance(section, dict) or key not in section:
            continue
        section[key] = meant
        try:
            Config.model_validate(changed)
        except ValidationError as error:
            if any(other["loc"][: len(problem["loc"])] == problem["loc"] for other in error.errors()):
                continue
        return f"; write `{key}: {json.dumps(meant)}`"
    return ""


def _meanings(value):
    """What a refused value may have been meant to be: 0,2 and 20% are 0.2, "42" is 42, None is null, 96 is [96, 96]."""
    if isinstance(value, float) and value.is_integer():
        return [int(value)]
    if isinstance(value, int):
        return [[value, value], *([bool(value)] if value in (0, 1) else [])]
    if not isinstance(value, str) or len(value) > WIDEST:
        return []
    text = value.strip().rstrip(",")
    if re.fullmatch(r"-?\d+,\d+", text):
        return [float(text.replace(",", "."))]
    if re.fullmatch(r"\d+(\.\d+)? ?%", text):
        return [float(text.rstrip("% ")) / 100]
    if re.fullmatch(r"\(?\d+ ?[x, ] ?\d+\)?", text):
        return [[int(number) for number in re.findall(r"\d+", text)]]
    words = {"none": None, "nil": None, "y": True, "n": False}
    if text.lower() in words:
        return [words[text.lower()]]
    try:
        return [load_yaml(text)]  # as without quotes
    except yaml.YAMLError:
        return []


def _missing(path):
    """Where a config file was looked for, and what to do."""
    cause = f"{path}: no such file" if path.is_absolute() else f"{path}: no such file in {Path.cwd()}"
    if os.environ.get(CONFIG_VARIABLE) == str(path):
        cause += f", and the environment variable {CONFIG_VARIABLE} names it"
    own = PROJECT / path  # an absolute path stays as it is
    if own.is_file():
        return f"{cause}. The project has it: start in {PROJECT}, or name {own}"
    return f"{cause}. Name a config file that exists, such as {PROJECT / CONFIG_FILE}"


def _below(folder, content):
    """Nested settings whose relative paths, those that stand for missing keys too, lie below a folder."""
    if not isinstance(content, dict):
        return content  # no settings at all: refused when they are checked
    defaults = {key: str(Config.model_fields[key].default) for key in ("results_path", "cache_path")}
    content = defaults | content
    for section, keys in ((content, PATHS), (content.get("inference"), ("image1", "image2"))):
        if isinstance(section, dict):
            given = [key for key in keys if isinstance(section.get(key), str) and section[key] != "None"]
            section |= {key: os.path.normpath(folder / _at_home(section[key])) for key in given}
    return content


def _source(path, changes):
    """The file and the changes to it, in one line."""
    return printable(" ".join(f"{path}{' with ' if changes else ''}{', '.join(changes)}".split()))


def _change(content, key, value):
    """Set a key, by its dotted name, of nested settings."""
    if not isinstance(content, dict):
        return  # no settings at all: refused when they are checked
    if not any(name == key or name.startswith(f"{key}.") for name in key_names()):
        raise ConfigError(f"{shortened(key, WIDEST)}: unknown key; known are {', '.join(key_names())}")
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(content.get(section), dict):
            content[section] = {}
        content = content[section]
    try:
        content[name] = load_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{'.'.join([*sections, name])}: its value cannot be read as YAML: {shortened(str(error), 500)}"
        ) from error


def key_names(section=Config, prefix="") -> list[str]:
    """The full path of every key: data_path, ..., image.size, ..., image.normalization.mean, ..."""
    names = []
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]  # the section itself, or the section and None
        nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        names += key_names(nested[0], f"{prefix}{name}.") if nested else [prefix + name]
    return names


def _explain(problem: dict, section=Config) -> str:
    """One line for one pydantic error: key path, value, what is allowed."""
    key = shortened(".".join(map(str, problem["loc"])) or "settings", WIDEST)
    message = WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, [*key_names(section), *section.model_fields], n=1, cutoff=0.5)
        hint = f"did you mean {near[0].removeprefix(key.rpartition('.')[0] + '.')}?" if near else None
        return f"{key}: unknown key; {hint or 'known are ' + ', '.join(key_names(section))}"
    value = (
        "" if isinstance(problem["input"], dict | list) else f" {shortened(repr(problem['input']), WIDEST)} is refused:"
    )
    return f"{key}:{value} {message}"
