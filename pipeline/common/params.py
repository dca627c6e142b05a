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

from mnist_mamba.config import SCANS, AugmentConfig, ConfigError, ModelConfig, TrainConfig

PARAMS_FILE = Path("params.yaml")
"""Relative: DVC runs an experiment's stages in a copy of the project."""
IMAGE_SIZES = {"mnist": (28, 28), "digits": (8, 8)}
"""(height, width) of the data sets whose images are known before they are there."""

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=4096, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
"""Neither 1 nor "1" stands for true."""


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
    idx_dir: Annotated[str, Field(min_length=1)]
    resize: Side | tuple[Side, Side] | None
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    split_seed: Annotated[int, Field(ge=0, lt=2**32)]

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
    stem_norm: str
    pos_embed: Flag
    local_conv: Flag
    direction: str
    pool: str
    d_model: int
    n_layers: int
    d_state: int
    d_conv: int
    expand: int
    dt_rank: Annotated[int, Field(strict=True)] | Literal["auto"]
    a: str
    dt_min: float
    dt_max: float
    dt_init_floor: float
    dt_scale: float
    members: int

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
    hold: Annotated[float, Field(ge=0, lt=1)]
    end: Fraction


class TrainParams(Section):
    """How the model is trained."""

    on_val: Flag
    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)]
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
    save_every: Annotated[int, Field(ge=0, le=1_000_000_000)]
    augment: AugmentParams
    scan: Literal["auto", "reference", "cpu", "triton", "cuda"]
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

    shift: list[Annotated[int, Field(ge=0, le=100, strict=True)]]
    rotate: list[Annotated[int, Field(ge=0, le=180, strict=True)]]
    scale: list[Annotated[int, Field(ge=1, le=1000, strict=True)]]
    noise: list[Annotated[int, Field(ge=0, le=1000, strict=True)]]
    blur: list[Annotated[int, Field(ge=0, le=100, strict=True)]]
    invert: list[Annotated[int, Field(ge=0, le=100, strict=True)]]


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

    enabled: Flag
    experiment: Annotated[str, Field(min_length=1)]
    # What MLflow allows in the name of a model.
    model_name: Annotated[str, Field(pattern=r"""^[^/:.%"']+$""")]
    system_metrics: Annotated[float, Field(ge=0, le=3600)]


class Rule(Section):
    """How much worse a figure may be than it was, and than it may ever be."""

    better: Literal["higher", "lower"]
    bound: Annotated[float, Field(allow_inf_nan=False)] | None = None
    absolute: NonNegative | None = None
    relative: NonNegative | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        if self.bound is self.absolute is self.relative is None:
            raise ValueError("expected at least one of bound, absolute and relative")
        return self


class GateAccuracyParams(Section):
    """When a loss of right answers is one."""

    floor: Fraction
    significance: Annotated[float, Field(gt=0, lt=1)]


class GateParams(Section):
    """What may get worse, and by how much."""

    accuracy: GateAccuracyParams
    metrics: dict[str, Rule]
    speed: dict[str, Rule]


class Params(Section):
    """All of params.yaml."""

    data: DataParams
    model: ModelParams
    train: TrainParams
    export: ExportParams
    evaluate: EvaluateParams
    benchmark: BenchmarkParams
    tracking: TrackingParams
    gate: GateParams

    @model_validator(mode="after")
    def _model_fits(self) -> Params:
        # A size that only the data will tell is checked as soon as it is read (download).
        self.check_fit(*(self.data.known_size or self.model.patch))
        if self.train.on_val and self.export.checkpoint == "best_model":
            raise ValueError(
                "export.checkpoint = 'best_model' is chosen on validation images, and with "
                "train.on_val = true there are none; expected 'last'"
            )
        scan, device = self.train.scan, self.train.device
        if device in SCANS and scan not in ("auto", "reference", *SCANS[device]):
            raise ValueError(
                f"train.scan = {scan!r} does not run on train.device = {device!r}; expected "
                f"train.scan = 'auto', 'reference' or {' or '.join(map(repr, SCANS[device]))}"
            )
        if self.model.dt_init_floor > self.model.dt_max:
            raise ValueError(
                f"model.dt_init_floor = {self.model.dt_init_floor} is above "
                f"model.dt_max = {self.model.dt_max}: expected up to that"
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
            # No key of params.yaml, but the product of two.
            message = str(error).replace("d_inner =", "expand * model.d_model =")
            raise ValueError(f"model.{message}") from error


class _UniqueKeysLoader(yaml.SafeLoader):
    """Refuses what YAML forbids and PyYAML takes: the last of a key's several values."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands here a second time",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml of the current folder.

    Raises:
        ParamsError: the file is missing, is not YAML, or holds a value that cannot be used.
    """
    try:
        content = yaml.load(path.read_text(), _UniqueKeysLoader)  # a safe loader
    except FileNotFoundError as error:
        raise ParamsError(f"{path} is missing: run from the project's folder") from error
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not UTF-8: {error}") from error
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
    if problem["type"] == "missing":
        return f"{source}: {key}: got nothing; expected a value"
    if problem["type"] == "extra_forbidden":
        return f"{source}: {key}: unknown key, got {problem['input']!r}; expected no such key"
    reason = problem["msg"].removeprefix("Value error, ").lower()
    return f"{source}: {key}: got {problem['input']!r}; {reason}"
