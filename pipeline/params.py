"""params.yaml, typed and range-checked; unknown keys are refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mnist_mamba.config import AugmentConfig, ConfigError, ModelConfig, TrainConfig

PARAMS_FILE = Path("params.yaml")
"""Relative: DVC runs an experiment's stages in a copy of the project."""
IMAGE_SIZES = {"mnist": (28, 28), "digits": (8, 8)}
"""(height, width) of the data sets whose images are known before they are there."""

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=4096)]


class ParamsError(ValueError):
    """params.yaml does not make sense; the message names key, value and range."""


def _number(text: str, kind: Any) -> Any:
    """The number that YAML 1.1 takes for text, as it does 1e-3; other text is no number.

    Raises:
        ValueError: text where a number belongs.
    """
    if kind not in (int, float):
        return text
    if kind is float and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", text, re.IGNORECASE):
        return float(text)
    raise ValueError("expected a valid number, without quotes")


class Section(BaseModel):
    """A part of params.yaml that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML's yes, on and true would count as 1.
        if (
            isinstance(value, bool)
            and cls.model_fields[str(info.field_name)].annotation is not bool
        ):
            raise ValueError("expected something else than true or false")
        if isinstance(value, str):
            return _number(value, cls.model_fields[str(info.field_name)].annotation)
        return value


class DataParams(Section):
    """Which data, and how it is split."""

    dataset: Literal["mnist", "digits", "idx"]
    idx_dir: str
    resize: Side | tuple[Side, Side] | None
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    split_seed: Annotated[int, Field(ge=0)]

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) to resample to, or None to keep."""
        return (self.resize, self.resize) if isinstance(self.resize, int) else self.resize

    @property
    def known_size(self) -> tuple[int, int] | None:
        """(height, width) of the images that the model will get, where the params tell."""
        return self.size or IMAGE_SIZES.get(self.dataset)


class ModelParams(Section):
    """The model's choices; `ModelConfig` holds the ranges."""

    stem: str
    patch: tuple[Side, Side]
    stem_width: int
    pos_embed: bool
    direction: str
    pool: str
    d_model: int
    n_layers: int
    d_state: int
    d_conv: int
    expand: int
    dt_rank: int | Literal["auto"]
    a: str
    dt_min: float
    dt_max: float
    dt_init_floor: float
    dt_scale: float

    def config(self, height: int, width: int, n_classes: int, **statistics: float) -> ModelConfig:
        """The model's config for images of a data set.

        Raises:
            ConfigError: a value out of range or one that does not fit the images.
        """
        values = {"height": height, "width": width, "n_classes": n_classes, **statistics}
        return ModelConfig.from_dict({**self.model_dump(), **values})


class AugmentParams(Section):
    """Largest random changes of an image."""

    rotate: Annotated[float, Field(ge=0, le=180)]
    scale: Annotated[float, Field(ge=0, lt=1)]
    shear: Annotated[float, Field(ge=0, lt=90)]
    shift: Fraction
    elastic: Fraction
    elastic_scale: Annotated[float, Field(gt=0, le=1)]


class TrainParams(Section):
    """How the model is trained."""

    on_val: bool
    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    optimizer: Literal["adamw", "muon"]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    warmup: Fraction
    lr_end: Fraction
    weight_decay: NonNegative
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    clip_norm: NonNegative
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    save_every: Annotated[int, Field(ge=0)]
    augment: AugmentParams
    scan: Literal["auto", "reference", "cpu", "cuda"]
    device: Literal["auto", "cpu", "cuda"]
    threads: Annotated[int, Field(ge=0, le=1024)]

    def config(self) -> TrainConfig:
        """The library's settings, without those that only choose hardware."""
        names = {field.name for field in dataclasses.fields(TrainConfig)} - {"augment"}
        augment = AugmentConfig(**self.augment.model_dump())
        return TrainConfig(**self.model_dump(include=names), augment=augment)


class ExportParams(Section):
    """What becomes the model file."""

    checkpoint: Literal["last", "best_model"]


class RobustnessParams(Section):
    """How much harder the test images are made; whole numbers, which name the metrics."""

    shift: list[Annotated[int, Field(ge=0, le=100)]]
    rotate: list[Annotated[int, Field(ge=0, le=180)]]
    scale: list[Annotated[int, Field(ge=1, le=1000)]]
    noise: list[Annotated[int, Field(ge=0, le=1000)]]
    blur: list[Annotated[int, Field(ge=0, le=100)]]
    invert: list[Annotated[int, Field(ge=0, le=100)]]


class EvaluateParams(Section):
    """How the C engine is judged."""

    max_abs_logit_diff: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    ece_bins: Annotated[int, Field(ge=1, le=1000)]
    robustness: RobustnessParams


class BenchmarkParams(Section):
    """How it is timed."""

    rounds: Annotated[int, Field(ge=1, le=1000)]


class TrackingParams(Section):
    """Where runs are shown."""

    enabled: bool
    experiment: Annotated[str, Field(min_length=1)]


class Params(Section):
    """All of params.yaml."""

    data: DataParams
    model: ModelParams
    train: TrainParams
    export: ExportParams
    evaluate: EvaluateParams
    benchmark: BenchmarkParams
    tracking: TrackingParams

    @model_validator(mode="after")
    def _model_fits(self) -> Params:
        # A size that only the data will tell is checked as soon as it is read (download).
        self.check_fit(*(self.data.known_size or self.model.patch))
        if self.train.on_val and self.export.checkpoint == "best_model":
            raise ValueError(
                "export.checkpoint = 'best_model' is chosen on validation images, and with "
                "train.on_val = true there are none; expected 'last'"
            )
        return self

    def changed(self, changes: Mapping[str, Any], source: str) -> Params:
        """These params with other values at dotted keys.

        Raises:
            ParamsError: no such key, or a value that cannot be used.
        """
        values = self.model_dump()
        for key, value in changes.items():
            *path, name = key.split(".")
            section = values
            for part in path:
                inner = section.get(part)
                if not isinstance(inner, dict):
                    raise ParamsError(f"{source}: {key}: unknown key, expected one of params.yaml")
                section = inner
            section[name] = value
        return parse_params(values, source)

    def check_fit(self, height: int, width: int) -> None:
        """Whether the model takes images of this size.

        Raises:
            ValueError: it does not; the message names key, value and range.
        """
        try:
            self.model.config(height, width, n_classes=2)
        except ConfigError as error:
            raise ValueError(f"model.{error}") from error


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml of the current folder.

    Raises:
        ParamsError: the file is missing, is not YAML, or holds a value that cannot be used.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ParamsError(f"{path} is missing: run from the project's folder") from error
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from error
    return parse_params(content, str(path))


def parse_params(content: Any, source: str = "params.yaml") -> Params:
    """`load_params` on parsed YAML."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        lines = [_explain(source, problem) for problem in error.errors()]
        raise ParamsError("\n".join(lines)) from error


def _explain(source: str, problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if not key:  # a check of our own, which names its key itself
        return f"{source}: {problem['msg'].removeprefix('Value error, ')}"
    if problem["type"] == "extra_forbidden":
        return f"{source}: {key}: unknown key, got {problem['input']!r}; expected no such key"
    reason = problem["msg"].removeprefix("Value error, ").lower()
    return f"{source}: {key}: got {problem['input']!r}; {reason}"
