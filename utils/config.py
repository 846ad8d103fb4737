"""The settings of config.yml: which keys there are, what each may hold, and how the file is read."""

import difflib
import os
import re
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

from .files import UserError, printable, shortened

STEPS = 3  # of paths
AUTO = "auto"  # chosen by the data, or by the backbone
LOCAL_DIR = "local-dir"  # backbone_model: local-dir:PATH names the folder of a model
LAST = "last"  # the name of the last feature map, whatever the backbone calls it
MORE = "+"  # behind the name of a layer: with the last layer of each coarser stride
# and the images of `inference`
PATHS = ("data_path", "corrections", "pretrained", "checkpoints_path", "results_path", "cache_path")
CONFIG_VARIABLE = "SIAMESE_CONFIG"  # environment variable with the path that the notebooks load
CONFIG_FILE = "config.yml"  # without it
PROJECT = Path(__file__).parent.parent  # the folder with config.yml and the notebooks
MOST = 100_000  # steps or epochs to wait
LONGEST = 3500  # characters of a value in YAML; Python prints no integer of 4301 digits
WIDEST = 120  # characters of a value in an error
ESCAPES = re.compile(r"(?<!\\)(?:\\\\)*\\(?:[0abtnvfeNLP_]|x00|u0000)")  # in double quotes: \t is a tab
LINE_ENDS = set("\x85\u2028\u2029")  # which YAML prints with a backslash
# quotes that YAML takes for a part of the value
TYPOGRAPHIC = set("\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\u00ab\u00bb")
YAML_CURE = (
    "Write each line as `key: value`, indent the keys of a section equally and by spaces, and put values with special "
    "characters in single quotes"
)
MESSAGES = {
    "path_type": "should be a path",
    "missing": "missing; add it",
    "model_type": "should hold `key: value` lines, with a space after the colon",
}


class ConfigError(UserError, ValueError):
    """config.yml cannot be used; the message names each key, its value and what is allowed."""


class ConfigLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that is given twice and a value that is not what it looks like."""

    def construct_mapping(self, node, deep=False):
        lines = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise yaml.YAMLError(f"{key.value} is given in line {lines[key.value]} and in line {line}: delete one")
            lines[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node):
        value = node.value
        line = f"line {node.start_mark.line + 1}"
        if len(value) > LONGEST:
            raise yaml.YAMLError(f"{line}: a value of {len(value)} characters is too long")
        written = node.start_mark.buffer[node.start_mark.pointer : node.end_mark.pointer]
        if node.style == '"' and ESCAPES.search(written):
            raise yaml.YAMLError(f"{line}: a backslash in double quotes starts a special character: use single quotes")
        if LINE_ENDS & set(value):
            raise yaml.YAMLError(f"{line}: an invisible line end is part of the value: type the value anew")
        if node.style is None and {value[:1], value[-1:]} <= TYPOGRAPHIC:
            raise yaml.YAMLError(f"{line}: typographic quotes would be part of the value: use straight single quotes")
        return super().construct_scalar(node)


def load_yaml(content: bytes | str):
    """Read nested dicts, lists and plain values from YAML.

    Args:
        content: Text, or the bytes of a file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        yaml.YAMLError: The message names the line, the cause and the cure.
    """
    try:
        return yaml.load(content, ConfigLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"line {mark.line + 1}: {error.problem}"
        if error.context_mark:
            message += f" ({error.context} from line {error.context_mark.line + 1})"
        raise yaml.YAMLError(f"{message}. {YAML_CURE}") from error
    except yaml.reader.ReaderError as error:
        cause = " ".join(str(error).split())
        raise yaml.YAMLError(f"{cause}. Save the file as UTF-8 (Notepad: Save as, Encoding: UTF-8)") from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # as PyYAML raises them for `!!int ""` and 2001-99-99
        raise yaml.YAMLError(f"a value cannot be read ({error}). {YAML_CURE}") from error


def _number(value):
    """Read 5e-6 (no dot), which YAML 1.1 takes for text; other text is left to the type check, which names the key."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value.lower()):
        return float(value)
    return value


def _auto(value):
    """Read `auto` as None, like a missing key."""
    if value == AUTO:
        return None
    if isinstance(value, str):
        raise ValueError("should be auto or the values themselves")
    return value


def _rising(limits):
    if limits is not None and limits[0] >= limits[1]:
        raise ValueError("should be [low, high], the lower value first")
    return limits


def _expand_home(path) -> Path:
    return Path(os.path.expanduser(path))


def _no_none(value):
    """Refuse Python's None, which is text in YAML and would name a folder."""
    if str(value) == "None":
        raise ValueError("None is text in YAML; null means no value")
    return value


def _pretrained(value):
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _expand_home(value)
    raise ValueError("should be True, False or the path of a file of weights")


def _count_or_auto(value, least=1):
    if value == AUTO or (type(value) is int and least <= value <= MOST):
        return value
    raise ValueError(f"should be auto or a whole number from {least} to {MOST}")


def _steps(value):
    return STEPS if value == AUTO else value  # as runs of earlier versions have it


def _decision(value):
    """Expand the short forms `decision: eer` and `decision: {fmr: 0.01}`."""
    if isinstance(value, str):
        return {"rule": value}
    if isinstance(value, dict) and "fmr" in value and "rule" not in value:
        return value | {"rule": "fmr"}
    return value


def _backbone_name(value):
    from .vision import backbone_name  # imports timm

    return backbone_name(value)


def _pattern(value):
    try:
        groups = re.compile(value).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"should be a regular expression: {error}") from error
    if groups != 1:
        raise ValueError("should hold one group in parentheses, which names the group of a file")
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Rate = Annotated[Number, Field(gt=0, le=100)]
Factor = Annotated[Number, Field(ge=0, le=10)]
Share = Annotated[Number, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=32, le=4096)]
Between = Annotated[Number, Field(gt=0, lt=1)]
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_expand_home), AfterValidator(_no_none)]
Method = Literal[  # the keys of `explanations.methods.METHODS`
    "gradcam",
    "gradcam++",
    "layercam",
    "hirescam",
    "integrated",
    "path_layercam",
    "contrastive",
    "thorough",
    "occlusion",
]
Limits = Annotated[tuple[Number, Number] | None, Field(strict=False), BeforeValidator(_auto), AfterValidator(_rising)]
Mean = Annotated[Number, Field(ge=-10, le=10)]
Deviation = Annotated[Number, Field(ge=1e-4, le=100)]


class Section(BaseModel):
    """A frozen group of keys, which refuses unknown keys and converts no type silently."""

    model_config = {"frozen": True, "extra": "forbid", "strict": True}

    def changed(self, **changes):
        """Return a copy with some keys changed.

        Raises:
            ConfigError: The message names each unknown key and each refused value.
        """
        try:
            return type(self).model_validate(self.model_dump() | changes)
        except ValidationError as error:
            raise ConfigError("\n".join(_messages(error, type(self)))) from error

    def as_text(self, without=()) -> str:
        """Return the settings as YAML, without those keys."""
        content = self.model_dump(mode="json", exclude=set(without))
        return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True).strip()

    def __str__(self):
        return self.as_text()


class Normalization(Section):
    """Mean and std with which each channel of images, in [0, 1], was normalised: (image - mean) / std."""

    mean: Annotated[tuple[Mean, ...], Field(strict=False, min_length=1)]
    std: Annotated[tuple[Annotated[Number, Field(gt=0)], ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _of_equal_length(self):
        if len(self.mean) != len(self.std):
            raise ValueError(f"should hold as many values of mean as of std, not {len(self.mean)} and {len(self.std)}")
        return self


class ColourNormalization(Normalization):
    """The normalisation of images in colour, which the networks of config.yml take."""

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
    schedule: Literal["plateau", "cosine"] = "plateau"
    patience: Annotated[int | str, PlainValidator(partial(_count_or_auto, least=0))]
    min_lr: Annotated[Number, Field(ge=0, le=100)]
    factor: Between
    verbose: bool


class DecisionSettings(Section):
    rule: Literal["balanced", "eer", "fmr"] = "balanced"
    fmr: Between = 0.01
    abstain: Between | None = None
    fpir: Between = 0.05


class ExplanationSettings(Section):
    method: Method = "contrastive"
    layer: str = AUTO
    output_stride: Literal[8, 16, 32] = 32
    steps: Annotated[int, Field(ge=1, le=MOST), BeforeValidator(_steps)] = STEPS
    test_pairs: Annotated[int, Field(ge=1, le=MOST)] = 8
    opacity: Annotated[Number, Field(ge=0, le=1)] = 0.6


class Inference(Section):
    image1: FilePath | None = None
    image2: FilePath | None = None


class Config(Section):
    """The settings of config.yml; the comments of that file say what each key does."""

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
    group_pattern: Annotated[str, AfterValidator(_pattern)] | None = None
    corrections: FilePath | None = None
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
        """The file that the settings were loaded from, with the changes to it; None without a file."""
        return self._source

    def from_source(self, source: str | None) -> "Config":
        """Return a copy with another source."""
        copy = self.model_copy()
        copy._source = source
        return copy

    def absolute(self) -> "Config":
        """Return a copy whose paths are absolute."""
        content = _below(Path.cwd(), self.model_dump(mode="json"))
        return Config.model_validate(content).from_source(self.source)

    def __str__(self):
        settings = super().__str__()
        if self.source:
            return f"# {self.source}\n{settings}"
        return settings

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
        """Set the normalisation that belongs to the backbone's weights where the config gives none."""
        if self.image.normalization is not None:
            return self
        from .vision import normalization_of  # imports timm

        try:
            own = ColourNormalization(**normalization_of(self.backbone_model))
        except ValidationError as error:
            causes = "; ".join(_messages(error, ColourNormalization))
            raise ValueError(f"image.normalization: auto is refused with this backbone_model: {causes}") from error
        return self.model_copy(update={"image": self.image.model_copy(update={"normalization": own})})


def config_file(path=None) -> Path:
    """Return the config file: `path`, or by default the one that SIAMESE_CONFIG names, else config.yml."""
    return _expand_home(path or os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)


def load_config(path=None, changes=()) -> Config:
    """Read and check a config file.

    Args:
        path: The file, by default the one that the environment variable SIAMESE_CONFIG names, else config.yml. Relative
            paths in it are relative to its folder.
        changes: Settings that replace those of the file, as on a command line: "image.size=[224, 224]", with values in
            YAML. Relative paths in them are relative to the current folder.

    Raises:
        ConfigError: The file is missing or not YAML, or keys are refused. The message names the file and every key.
    """
    path = config_file(path)
    content = _below(path.parent, _read(path))
    source = str(path)
    if changes:
        source += f" with {', '.join(changes)}"
    for change in changes:
        _change(content, *change.partition("=")[::2])
    try:
        return Config.model_validate(content).from_source(printable(" ".join(source.split())))
    except ValidationError as error:
        messages = _messages(error)
        raise ConfigError("\n".join(f"{path}: {message}" for message in messages)) from error


def inference_pair(config: Config, default: tuple[str, str]) -> tuple[str, str]:
    """Return the two images of `inference` in config.yml; without them, `default`.

    Raises:
        ConfigError: A file does not exist.
    """
    if config.inference.image1 is None:
        return default
    for key in ("image1", "image2"):
        path = getattr(config.inference, key)
        if not path.is_file():
            raise ConfigError(f"inference.{key}: {path} does not exist: name an image file")
    return str(config.inference.image1), str(config.inference.image2)


def _read(path):
    try:
        if not path.is_file():
            raise ConfigError(_missing(path))
        return load_yaml(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {shortened(str(error), 500)}") from error


def _missing(path):
    message = f"{path.absolute()}: no such file"
    if os.environ.get(CONFIG_VARIABLE) == str(path):
        message += f", which the environment variable {CONFIG_VARIABLE} names"
    message += ". Name a config file that exists"
    shipped = PROJECT / CONFIG_FILE
    if shipped.is_file():
        message += f", such as {shipped}"
    return message


def local_folder(backbone_model: str) -> Path | None:
    """Return the folder that local-dir:PATH names; None for any other backbone."""
    source, _, place = backbone_model.partition(":")
    if source == LOCAL_DIR:
        return Path(place)
    return None


def _below(folder, content):
    """Join a folder and the relative paths of settings, and the defaults of missing keys."""
    if not isinstance(content, dict):
        return content  # not settings at all: refused by the check
    for key in ("results_path", "cache_path"):
        content.setdefault(key, str(Config.model_fields[key].default))
    _join(folder, content, PATHS)
    source, _, place = str(content.get("backbone_model")).partition(":")
    if source.lower() == LOCAL_DIR and place:
        content["backbone_model"] = f"{LOCAL_DIR}:{os.path.normpath(folder / _expand_home(place))}"
    if isinstance(content.get("inference"), dict):
        _join(folder, content["inference"], Inference.model_fields)
    return content


def _join(folder, section, keys):
    for key in keys:
        value = section.get(key)
        if isinstance(value, str) and value != "None":
            section[key] = os.path.normpath(folder / _expand_home(value))


def _change(content, key, value):
    """Set a key, given by its dotted name, in nested settings."""
    if not isinstance(content, dict):
        return  # not settings at all: refused by the check
    if "decision" in content:
        content["decision"] = _decision(content["decision"])  # so that a change of one key keeps the others
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(content.get(section), dict):
            content[section] = {}
        content = content[section]
    try:
        content[name] = load_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: its value cannot be read as YAML: {shortened(str(error), 500)}") from error


def key_names(section=Config, prefix="") -> list[str]:
    """Return the full name of every key: data_path, ..., image.size, ..., image.normalization.mean, ..."""
    names = []
    for name, field in section.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):  # the section itself, or the section and None
            if isinstance(kind, type) and issubclass(kind, Section):
                names += key_names(kind, f"{prefix}{name}.")
                break
        else:
            names.append(prefix + name)
    return names


def _messages(error: ValidationError, section=Config) -> list[str]:
    """Return a line for each error of pydantic: the key, its value and what is allowed."""
    messages = []
    for problem in error.errors():
        key = shortened(".".join(map(str, problem["loc"])) or "settings", WIDEST)
        if problem["type"] == "extra_forbidden":
            messages.append(f"{key}: unknown key; {_suggestion(key, section)}")
            continue
        allowed = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        allowed = MESSAGES.get(problem["type"], allowed)
        value = ""
        if not isinstance(problem["input"], dict | list):
            value = f" {shortened(repr(problem['input']), WIDEST)} is refused:"
        messages.append(f"{key}:{value} {allowed}")
    return messages


def _suggestion(key, section):
    similar = difflib.get_close_matches(key, [*key_names(section), *section.model_fields], n=1, cutoff=0.5)
    if similar:
        return f"did you mean {similar[0].removeprefix(key.rpartition('.')[0] + '.')}?"
    return f"known are {', '.join(key_names(section))}"
