"""params.yaml as typed, checked values; unknown keys are refused.

Sections `model` and `train` are the library's own settings (src/mnist_mamba/config.py). params.yaml
must hold each of their keys except OPTIONAL, which have the library's defaults.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass

from mnist_mamba.config import (
    LIMITS,
    SCANS,
    AugmentConfig,
    ConfigError,
    ModelChoices,
    ModelConfig,
    TrainConfig,
)
from pipeline.common.nested import look_up

PARAMS_FILE = Path("params.yaml")
"""Relative: DVC runs an experiment's stages in a copy of the project."""
IMAGE_SIZES = {"mnist": (28, 28), "digits": (8, 8)}
"""(height, width) of the data sets whose image size is known before the download."""
OPTIONAL = frozenset(
    ("dt_min", "dt_max", "dt_init_floor", "dt_scale", "beta1", "beta2", "momentum", "elastic_scale")
)
"""Keys of `model` and `train` that params.yaml may omit."""

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=LIMITS["height"].low, le=LIMITS["height"].high, strict=True)]
Parsed = TypeVar("Parsed", bound="Section")


class ParamsError(ValueError):
    """A value in params.yaml or a similar file that cannot be used."""


def _refuse_conversions(owner: Any, value: Any, info: ValidationInfo) -> Any:
    """Refuse what pydantic would convert: true for 1, 1 for true, "10" for 10.

    YAML 1.1 reads 1e-3 as text, which is therefore converted where a float is expected.
    """
    kind = owner.__pydantic_fields__[str(info.field_name)].annotation
    if (kind is bool) != isinstance(value, bool):
        if kind is bool:
            raise ValueError("expected true or false")
        raise ValueError("expected a value other than true or false")
    if not isinstance(value, str) or kind not in (int, float):
        return value
    if kind is float and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", value, re.IGNORECASE):
        return float(value)
    raise ValueError("expected a valid number, without quotes")


@classmethod  # type: ignore[misc]  # of each class below
def _refuse_omissions(owner: Any, content: Any) -> Any:
    """Refuse a part of a YAML file that lacks a key: the library's default is another value."""
    if isinstance(content, dict):
        for field in dataclasses.fields(owner):
            if field.name not in content and field.name not in OPTIONAL:
                raise ConfigError(f"{field.name}: missing, expected a value")
    return content


class Section(BaseModel):
    """A part of a YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    _strict = field_validator("*", mode="before")(classmethod(_refuse_conversions))


class DataParams(Section):
    """Choice of the data set, and how it is split."""

    dataset: Literal["mnist", "digits", "idx"]
    idx_dir: Annotated[str, Field(min_length=1)]
    resize: Side | tuple[Side, Side] | None
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed that selects the validation images."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) to resample to, or None."""
        return (self.resize, self.resize) if isinstance(self.resize, int) else self.resize

    @property
    def known_size(self) -> tuple[int, int] | None:
        """(height, width) of the prepared images, if known before the download."""
        return self.size or IMAGE_SIZES.get(self.dataset)


@dataclass(config=ConfigDict(extra="forbid"), frozen=True, kw_only=True)
class ModelParams(ModelChoices):
    """The choices of a model that do not depend on the data."""

    patch: tuple[Side, Side] = (4, 4)
    dt_rank: Annotated[int, Strict()] | Literal["auto"] = "auto"
    _strict = field_validator("*", mode="before")(classmethod(_refuse_conversions))
    _complete = model_validator(mode="before")(_refuse_omissions)

    def config(self, height: int, width: int, n_classes: int, **statistics: float) -> ModelConfig:
        """Return the model's config for images of a data set.

        Raises:
            ConfigError: the model does not fit the images.
        """
        choices = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        sizes = {"height": height, "width": width, "n_classes": n_classes}
        return ModelConfig.from_dict({**choices, **sizes, **statistics})


@dataclass(config=ConfigDict(extra="forbid"), frozen=True, kw_only=True)
class AugmentParams(AugmentConfig):
    """Largest random changes of an image."""

    _strict = field_validator("*", mode="before")(classmethod(_refuse_conversions))
    _complete = model_validator(mode="before")(_refuse_omissions)


@dataclass(config=ConfigDict(extra="forbid"), frozen=True, kw_only=True)
class TrainParams(TrainConfig):
    """The training, and the hardware that it uses."""

    augment: AugmentParams = dataclasses.field(default_factory=AugmentParams)
    on_val: bool = False
    scan: Literal["auto", "reference", "cpu", "triton", "cuda"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    _strict = field_validator("*", mode="before")(classmethod(_refuse_conversions))
    _complete = model_validator(mode="before")(_refuse_omissions)


class ExportParams(Section):
    """Choice of the checkpoint that becomes the model file."""

    checkpoint: Literal["last", "best_model"]


class RobustnessParams(Section):
    """Strengths of the test images' corruptions; whole numbers, which become metrics' names."""

    shift: list[Annotated[int, Field(ge=0, le=100, strict=True)]]
    rotate: list[Annotated[int, Field(ge=0, le=180, strict=True)]]
    scale: list[Annotated[int, Field(ge=1, le=1000, strict=True)]]
    noise: list[Annotated[int, Field(ge=0, le=1000, strict=True)]]
    blur: list[Annotated[int, Field(ge=0, le=100, strict=True)]]
    invert: list[Annotated[int, Field(ge=0, le=100, strict=True)]]


class EvaluateParams(Section):
    """The evaluation of the C engine."""

    max_abs_logit_diff: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    ece_bins: Annotated[int, Field(ge=1, le=1000)]
    robustness: RobustnessParams


class BenchmarkParams(Section):
    """The timing of the C engine."""

    rounds: Annotated[int, Field(ge=1, le=1000)]


class TrackingParams(Section):
    """Names and switches for MLflow."""

    enabled: bool
    experiment: Annotated[str, Field(min_length=1)]
    # The characters that MLflow allows in the name of a model.
    model_name: Annotated[str, Field(pattern=r"""^[^/:.%"']+$""")]
    system_metrics: Annotated[float, Field(ge=0, le=3600)]


class Params(Section):
    """The content of params.yaml."""

    data: DataParams
    model: ModelParams
    train: TrainParams
    export: ExportParams
    evaluate: EvaluateParams
    benchmark: BenchmarkParams
    tracking: TrackingParams

    @model_validator(mode="after")
    def _sections_fit(self) -> Params:
        # The size of a user's own images is checked as soon as they are read (download).
        self.check_fit(*(self.data.known_size or self.model.patch))
        if self.train.on_val and self.export.checkpoint == "best_model":
            raise ValueError(
                "export.checkpoint = 'best_model' is chosen on validation images, which "
                "train.on_val = true leaves none of; expected 'last'"
            )
        scan, device = self.train.scan, self.train.device
        if device in SCANS and scan not in ("auto", "reference", *SCANS[device]):
            raise ValueError(
                f"train.scan = {scan!r} does not run on train.device = {device!r}; expected "
                f"train.scan = 'auto', 'reference' or {' or '.join(map(repr, SCANS[device]))}"
            )
        return self

    def changed(self, changes: Mapping[str, Any], source: str) -> Params:
        """Return these params with other values at dotted keys.

        Args:
            changes: new values by dotted keys.
            source: the origin of the changes, for error messages.

        Raises:
            ParamsError: unknown key or unsuitable value.
        """
        values = self.model_dump()
        for key, value in changes.items():
            name, _, last = key.rpartition(".")
            try:
                section = look_up(values, name) if name else values
            except KeyError:
                section = None
            if not isinstance(section, dict):
                raise ParamsError(f"{source}: {key}: unknown key, got {value!r}")
            section[last] = value
        return parse(Params, values, source)

    def check_fit(self, height: int, width: int) -> None:
        """Check that the model accepts images of this size.

        Raises:
            ValueError: it does not; the message names key, value and range.
        """
        try:
            self.model.config(height, width, n_classes=2)
        except ConfigError as error:
            raise ValueError(f"model.{_in_keys(error)}") from error


def _in_keys(error: ConfigError) -> str:
    """Return the message with the keys whose product d_inner is, as no key has that name."""
    return str(error).replace("d_inner =", "expand * model.d_model =")


class _UniqueKeysLoader(yaml.SafeLoader):
    """YAML loader that refuses duplicate keys, of which PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key {key!r}", problem_mark=key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml of the current folder."""
    return load(Params, path)


def load(kind: type[Parsed], path: Path) -> Parsed:
    """Read and check a YAML file.

    Raises:
        ParamsError: the file is missing, is not YAML, or holds a value that cannot be used.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeysLoader)  # a safe loader
    except FileNotFoundError as error:
        raise ParamsError(f"{path} not found: run in the project's folder") from error
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not UTF-8: {error}") from error
    return parse(kind, content, str(path))


def parse(kind: type[Parsed], content: Any, source: str) -> Parsed:
    """Check the content of a YAML file.

    Args:
        kind: the section that the content must match.
        content: parsed YAML.
        source: the file's name, for error messages.

    Raises:
        ParamsError: the content holds a value that cannot be used.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [_explain(source, problem) for problem in error.errors()]
        raise ParamsError("\n".join(lines)) from error


def _explain(source: str, problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):  # names the key within its section
        return f"{source}: {key}.{_in_keys(cause)}"
    if not key:  # a check across sections, which names the keys
        return f"{source}: {cause}"
    if problem["type"] == "missing":
        return f"{source}: {key}: missing, expected a value"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{source}: {key}: unknown key, got {problem['input']!r}"
    reason = problem["msg"].removeprefix("Value error, ").lower()
    return f"{source}: {key}: got {problem['input']!r}; {reason}"
