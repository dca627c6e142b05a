"""params.yaml as typed, checked values; unknown keys are refused.

Sections `model` and `train` are the library's own settings (src/mnist_mamba/config.py). params.yaml
must hold each of their keys except OPTIONAL, which have the library's defaults.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from mnist_mamba.config import (
    EXIT_MARGIN,
    LIMITS,
    SCANS,
    AugmentConfig,
    ConfigError,
    ModelChoices,
    ModelConfig,
    Preparation,
    TrainConfig,
    whole,
)
from pipeline.common.nested import look_up

PARAMS_FILE = Path("params.yaml")
"""Relative: DVC runs an experiment's stages in a copy of the project."""
IMAGE_SIZES = {"digits": (8, 8)} | dict.fromkeys(
    ("mnist", "fashion_mnist", "kmnist", "emnist", "qmnist"), (28, 28)
)
"""(height, width) of the data sets whose image size is known before the download."""
LIKE_MNIST = ("mnist", "emnist", "qmnist")
"""Data sets whose images are prepared as MNIST's from the start."""
TITLES = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "kmnist": "Kuzushiji-MNIST",
    "qmnist": "QMNIST",
    "digits": "scikit-learn's digits",
}
"""Names of data sets, for people."""
OPTIONAL = frozenset(
    (
        "dt_min",
        "dt_max",
        "dt_init_floor",
        "dt_scale",
        "beta1",
        "beta2",
        "momentum",
        "norm_momentum",
        "elastic_scale",
    )
)
"""Keys of `model` and `train` that params.yaml may omit."""

STRICT = ConfigDict(extra="forbid", strict=True)
"""Unknown keys are refused; true is not a number, and neither is "10"."""

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=LIMITS["height"].low, le=LIMITS["height"].high, strict=True)]
Size = Annotated[tuple[Side, Side], Strict(False)]  # a list in YAML
Parsed = TypeVar("Parsed", bound="Section")


class ParamsError(ValueError):
    """A value in params.yaml or a similar file that cannot be used."""


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

    model_config = STRICT | ConfigDict(frozen=True)


class DataParams(Section):
    """Choice of the data set, and how it is split."""

    dataset: Literal[
        "mnist", "fashion_mnist", "kmnist", "emnist", "qmnist", "digits", "idx", "npz", "folder"
    ]
    idx_dir: Annotated[str, Field(min_length=1)]
    folder: Annotated[str, Field(min_length=1)] = "data/pictures"
    """The folder of `folder`, or the file of `npz`."""
    emnist_split: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"] = (
        "balanced"
    )
    channels: Literal["auto", 1, 3] = "auto"
    preparation: Literal["auto", "mnist", "resize"] = "auto"
    resize: Side | Size | None
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of each class to split off as test images if `npz` or `folder` has none."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed that selects the validation images."""

    @model_validator(mode="after")
    def _mnist_is_grey(self) -> DataParams:
        if self.resolved_preparation == "mnist" and self.channels == 3:
            raise ValueError(
                "preparation = 'mnist' (which auto means for MNIST, EMNIST and QMNIST) is for grey "
                "images; expected channels = 1, or preparation = 'resize'"
            )
        return self

    @property
    def resolved_preparation(self) -> Preparation:
        """The preparation that the model file names."""
        if self.preparation == "auto":
            return "mnist" if self.dataset in LIKE_MNIST else "resize"
        return self.preparation

    @property
    def finds_digits(self) -> bool:
        """Whether `download` finds the digit in each image, as the engine does in a picture."""
        return self.preparation == "mnist" and self.dataset not in LIKE_MNIST

    @property
    def title(self) -> str:
        """The data set's name, for people."""
        match self.dataset:
            case "folder" | "npz":
                return Path(self.folder).absolute().name
            case "idx":
                return f"your own images in {Path(self.idx_dir).absolute().name}"
            case "emnist":
                return f"EMNIST ({self.emnist_split})"
            case known:
                return TITLES[known]

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) to resample to, or None."""
        if self.resize is None and self.finds_digits:
            return IMAGE_SIZES["mnist"]
        return (self.resize, self.resize) if isinstance(self.resize, int) else self.resize


@dataclass(config=STRICT, frozen=True, kw_only=True)
class ModelParams(ModelChoices):
    """The choices of a model that do not depend on the data."""

    patch: Size = (4, 4)
    other_members: Annotated[tuple[dict[str, Any], ...], Strict(False)] = ()
    _complete = model_validator(mode="before")(_refuse_omissions)

    def config(self, height: int, width: int, n_classes: int, **data: Any) -> ModelConfig:
        """Return the model's config for images of a data set, with its other fields in `data`.

        Raises:
            ConfigError: the model does not fit the images.
        """
        choices = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        sizes = {"height": height, "width": width, "n_classes": n_classes}
        return ModelConfig.from_dict({**choices, **sizes, **data})


@dataclass(config=STRICT, frozen=True, kw_only=True)
class AugmentParams(AugmentConfig):
    """Largest random changes of an image."""

    _complete = model_validator(mode="before")(_refuse_omissions)


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TrainParams(TrainConfig):
    """The training, and the hardware that it uses."""

    augment: AugmentParams = dataclasses.field(default_factory=AugmentParams)
    on_val: bool = False
    scan: Literal["auto", "reference", "cpu", "triton", "cuda"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, whole(0, 1024)] = 0
    _complete = model_validator(mode="before")(_refuse_omissions)


class ExportParams(Section):
    """The checkpoint that becomes the model file, its weights, and when its members are asked."""

    checkpoint: Literal["last", "best_model"]
    exit_margin: Literal["auto"] | Annotated[float, Field(ge=0, le=EXIT_MARGIN.high)]
    exit_reserve: Annotated[float, Field(ge=0, le=EXIT_MARGIN.high)]
    weight_type: Literal["float32", "int8"]


class RobustnessParams(Section):
    """Strengths of the test images' corruptions; whole numbers, which become metrics' names."""

    shift: list[Annotated[int, Field(ge=0, le=100)]]
    rotate: list[Annotated[int, Field(ge=0, le=180)]]
    scale: list[Annotated[int, Field(ge=1, le=1000)]]
    noise: list[Annotated[int, Field(ge=0, le=1000)]]
    blur: list[Annotated[int, Field(ge=0, le=100)]]
    invert: list[Annotated[int, Field(ge=0, le=100)]]


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
        # The size of a user's own images is checked when they are read.
        self.check_fit(*IMAGE_SIZES.get(self.data.dataset, self.model.patch))
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

    def check_fit(
        self, height: int, width: int, channels: int = 1, class_names: Sequence[str] = ("0", "1")
    ) -> None:
        """Check that the model accepts such images, resampled if `data.resize` says so.

        Raises:
            ValueError: it does not; the message names key, value and range.
        """
        size = self.data.size or (height, width)
        names = tuple(class_names)
        try:
            self.model.config(*size, len(names), channels=channels, class_names=names)
        except ConfigError as error:
            if str(error).startswith(("class_names", "n_classes", "channels")):
                raise ValueError(f"the data: {error}") from error
            advice = "" if self.data.size else "; data.resize changes the images' size"
            raise ValueError(f"model.{_in_keys(error)}{advice}") from error


def _in_keys(error: ConfigError) -> str:
    """Return the message with the keys whose product d_inner is, as no key has that name."""
    return str(error).replace("d_inner =", "expand * model.d_model =")


def read_yaml(content: Path | str, source: str | Path) -> Any:
    """Return the content of a YAML file or text, which is read as DVC reads it.

    Args:
        content: the file or, as str, the text.
        source: its name, for error messages.

    Raises:
        ParamsError: the file is missing, is not YAML, or has a key twice.
    """
    try:
        return YAML(typ="safe").load(content)
    except FileNotFoundError as error:
        raise ParamsError(f"{source} not found: run in the project's folder") from error
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ParamsError(f"{source} is not valid YAML: {error.problem}{line}") from error
    except OSError:
        raise
    except Exception as error:  # ruamel.yaml's constructors raise many kinds, as for `!!int x`
        raise ParamsError(f"{source} is not valid YAML: {error!r}") from error


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml of the current folder."""
    return parse(Params, read_yaml(path, path), str(path))


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
        # As JSON, in which a list can be a tuple, and a mapping a dataclass.
        text = json.dumps(content)
    except (
        TypeError,
        ValueError,
        RecursionError,
    ) as error:  # a date, an anchor in itself
        raise ParamsError(
            f"{source}: {error}: expected mappings of lists, numbers, true, false, null and text; "
            "put a date in quotes"
        ) from error
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        lines = [_explain(source, problem) for problem in error.errors()]
        raise ParamsError("\n".join(lines)) from error


def _explain(source: str, problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):  # names the key within its section
        return f"{source}: {key}.{_in_keys(cause)}"
    if not key and cause:  # a check across sections, which names the keys
        return f"{source}: {cause}"
    if not key:
        return f"{source}: got {problem['input']!r}, expected a mapping of keys to values"
    if problem["type"] == "missing":
        return f"{source}: {key}: missing, expected a value"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{source}: {key}: unknown key, got {problem['input']!r}"
    reason = problem["msg"].removeprefix("Value error, ").lower()
    return f"{source}: {key}: got {problem['input']!r}; {reason}"
