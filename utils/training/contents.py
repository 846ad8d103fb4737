"""What the checkpoint of a training run holds: a missing or misshapen part is refused by its name when it is loaded."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from utils.config import Config
from utils.training.checkpoint import damaged, load_checkpoint, short_name

ROUNDING = 1e-3  # beyond 2, for distances
SHOWN = 3  # parts that an error names


def load_run(path: Path, device="cpu") -> dict:
    """The checkpoint of a training run, as `Contents` has it, with its tensors on `device`.

    Raises CheckpointError as `load_checkpoint` does, and for a file whose parts are missing, of another type or shape,
    not finite or beyond their range.
    """
    content = load_checkpoint(path, device)
    try:
        contents = Contents.model_validate(content)
    except ValidationError as error:
        raise damaged(path, "; ".join(map(_explained, error.errors()[:SHOWN]))) from error
    if not path.parent.name.endswith(f"_{short_name(content['fingerprint'])}"):
        raise damaged(path, "fingerprint: it is not that of the name of its folder")
    return content | {"config": contents.config}


def _explained(problem) -> str:
    """One error of pydantic in words."""
    place = ".".join(map(str, problem["loc"])) or "the whole"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}"


def _dense(values: torch.Tensor) -> torch.Tensor:
    """A few stored numbers may claim to be billions, which the next copy would allocate."""
    if values.numel() * values.element_size() > values.untyped_storage().nbytes():
        raise ValueError(f"claims {values.numel():,} values and holds fewer")
    return values


def _finite(values):
    if not values.isfinite().all():
        raise ValueError("holds values that are not finite")
    return values


def _of(dtype, dimensions):
    """A check that a tensor has this dtype and so many dimensions."""

    def check(values):
        if values.dtype != dtype or values.dim() != dimensions:
            raise ValueError(f"should be {dtype} of {dimensions} dimensions, not {values.dtype} of {values.dim()}")
        return values

    return AfterValidator(check)


def _within(low, high):
    """A check that all values of a tensor lie between these."""

    def check(values):
        if len(values) and not low <= values.min() <= values.max() <= high:
            raise ValueError(f"should lie in [{low:g}, {high:g}]")
        return values

    return AfterValidator(check)


def _settings(values: dict) -> dict:
    """All settings: those of an earlier version of this project with what newer keys stand for."""
    try:
        return Config.model_validate(values).model_dump(mode="json")
    except ValidationError as error:
        raise ValueError(f"holds refused settings, {_explained(error.errors()[0])}") from error


def _names_of_folders(names: list[str]) -> list[str]:
    if names != sorted(set(names)) or len(names) < 2:
        raise ValueError("should be the names of two classes or more, sorted, each once")
    return names


Tensor = Annotated[torch.Tensor, AfterValidator(_dense), AfterValidator(_finite)]
Rows = Annotated[Tensor, _of(torch.float32, 2)]
Values = Annotated[Tensor, _of(torch.float32, 1)]
Indices = Annotated[Tensor, _of(torch.int64, 1), _within(0, 2**62)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]


class Part(BaseModel):
    """Of a checkpoint; of exact types."""

    model_config = {"strict": True, "extra": "forbid", "arbitrary_types_allowed": True}


class Epoch(Part):
    train_loss: Number
    valid_loss: Number
    valid_auc: Share
    valid_auc_error: Share
    learning_rate: Positive
    seconds: Positive


class Validation(Part):
    """The validation pairs and their distances."""

    distances: Annotated[Values, _within(0, 2 + ROUNDING)]
    first: Indices
    second: Indices
    labels: Annotated[Indices, _within(0, 1)]

    @model_validator(mode="after")
    def _fit_together(self):
        if len({len(self.distances), len(self.first), len(self.second), len(self.labels)}) != 1:
            raise ValueError("its parts are of different lengths")
        if len(self.labels.unique()) != 2:
            raise ValueError("lacks pairs of the same class or of different ones")
        return self


class Measured(Part):
    """A rate and its interval."""

    value: Share
    low: Share
    high: Share


class Curve(Part):
    """A calibration."""

    distances: Values
    probabilities: Annotated[Rows, _within(0, 1)]

    @model_validator(mode="after")
    def _fits(self):
        if len(self.distances) < 2 or self.probabilities.shape != (len(self.distances), 3):
            raise ValueError("should be of some distances, with three probabilities for each")
        if not (self.distances.diff() > 0).all():
            raise ValueError("its distances should rise")
        return self


class Asked(Part):
    """The settings that were in force."""

    method: str
    layer: str
    steps: str | int
    output_stride: int | None = None  # an earlier version did not keep it, and is prepared anew
    threshold: Number


class Preparation(Part):
    """What `utils.prepared.Prepared` is made of."""

    asked: Asked
    layer: str
    steps: Annotated[int, Field(ge=1, le=10000)]
    gaps: dict[str, Number]
    names: Annotated[tuple[str, ...], Field(min_length=1)]
    embeddings: Rows
    auc: Measured
    calibration: Curve

    @model_validator(mode="after")
    def _fits(self):
        if len(self.names) != len(self.embeddings):
            raise ValueError(f"{len(self.names)} references with {len(self.embeddings)} embeddings")
        return self


class Fingerprint(Part):
    settings: str
    images: str


class Contents(Part):
    """best.pt; last.pt has the states of optimizer, scheduler and scaler as well."""

    format: str
    network: dict[str, Tensor]
    config: Annotated[dict[str, Any], AfterValidator(_settings)]
    fingerprint: Fingerprint
    history: list[Epoch]
    validation: Validation
    classes: Annotated[list[str], AfterValidator(_names_of_folders)]
    versions: dict[str, str]
    prepared: Preparation | None = None
    optimizer: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _was_trained(self):
        epochs = self.config["hyperparameters"]["epochs"]
        if not min(epochs, 1) <= len(self.history) <= epochs:
            raise ValueError(f"history: is of {len(self.history)} epochs, and {epochs} were asked for")
        return self
