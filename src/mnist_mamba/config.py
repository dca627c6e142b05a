"""Settings of a model and of its training, and the limits that the model file sets.

Plain values: this module imports nothing of the library, since the pipeline checks params.yaml
here before any stage does work.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any, Literal, get_args

Stem = Literal["patch", "conv", "conv3"]
StemNorm = Literal["none", "batch"]
Direction = Literal["forward", "alternate", "bidirectional", "cross"]
Pool = Literal["mean", "last"]
AForm = Literal["free", "tied"]
OptimizerName = Literal["adamw", "muon"]


class ConfigError(ValueError):
    """A setting that cannot work; the message names key, value and what was expected."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; never infinity or NaN."""

    low: float
    high: float = sys.float_info.max
    whole: bool = False
    """Whether only whole numbers are in it."""
    low_excluded: bool = False
    high_excluded: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        above = self.low < value if self.low_excluded else self.low <= value
        return above and (value < self.high if self.high_excluded else value <= self.high)

    def __str__(self) -> str:
        if self.whole:
            return f"a whole number in {self.low}..{self.high}"
        if self.high == sys.float_info.max:
            return f"a number {'above' if self.low_excluded else '>='} {self.low:g}"
        left, right = "(" if self.low_excluded else "[", ")" if self.high_excluded else "]"
        return f"a number in {left}{self.low:g}, {self.high:g}{right}"


def whole(low: int, high: int) -> Range:
    """Return the range of whole numbers from `low` to `high`."""
    return Range(low, high, whole=True)


BELOW_ONE = Range(0, 1, high_excluded=True)
FRACTION = Range(0, 1)
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, low_excluded=True)

LIMITS = {
    "height": whole(1, 4096),
    "width": whole(1, 4096),
    "channels": whole(1, 1),
    "n_classes": whole(2, 256),
    "stem_width": whole(1, 512),
    "d_model": whole(1, 2048),
    "n_layers": whole(1, 64),
    "d_state": whole(1, 256),
    "d_conv": whole(1, 16),
    "d_inner": whole(1, 8192),
    "dt_rank": whole(1, 2048),
    "norm_eps": Range(2**-149, 0.1),
    "pixel_mean": Range(0.0, 1.0),
    "pixel_std": Range(1e-6, 1e6),
    "members": whole(1, 64),
}
"""Ranges of the model file's fields (docs/format.md); `engine.format` checks files by them."""
MAX_LENGTH = 65536
"""Largest number of tokens per image that the model file allows."""
MAX_ACTIVATIONS = 2**24
"""Largest number of floats in one activation array of an image."""


def token_grid(stem: Stem, height: int, width: int, patch: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the tokens that a stem makes of an image."""
    if stem == "patch":
        return height // patch[0], width // patch[1]
    # Two of the 3x3 convolutions have stride 2 and padding 1: each halves, rounding up.
    return math.ceil(height / 4), math.ceil(width / 4)


def stem_convs(stem: Stem, stem_width: int, d_model: int) -> list[tuple[int, int, int]]:
    """Return (inputs, outputs, stride) of each 3x3 convolution of a conv stem, in order."""
    if stem == "patch":
        return []
    if stem == "conv":
        return [(1, stem_width, 2), (stem_width, d_model, 2)]
    half = math.ceil(stem_width / 2)
    return [(1, half, 1), (half, stem_width, 2), (stem_width, d_model, 2)]


def oversized_activations(
    stem: Stem, length: int, dims: Mapping[str, int]
) -> tuple[str, str] | None:
    """Return the first activation array above MAX_ACTIVATIONS: its columns' name, and its size.

    Args:
        stem: the kind of stem.
        length: number of tokens per image.
        dims: the model file's dimensions by name.
    """
    height, width, stem_width = dims["height"], dims["width"], dims["stem_width"]
    quarter = math.ceil(height / 2) * math.ceil(width / 2)
    arrays = {
        "d_model": (length, dims["d_model"]),
        "d_inner": (length, dims["d_inner"]),
        "dt_rank + 2 d_state": (length, dims["dt_rank"] + 2 * dims["d_state"]),
        "stem_width": (quarter, 0 if stem == "patch" else stem_width),
        "half of stem_width": (height * width, math.ceil(stem_width / 2) * (stem == "conv3")),
    }
    for name, (rows, columns) in arrays.items():
        if rows * columns > MAX_ACTIVATIONS:
            return name, f"{columns} at each of {rows} places"
    return None


def _check_ranges(config: object, ranges: Mapping[str, Range]) -> None:
    for name, allowed in ranges.items():
        value = getattr(config, name)
        if value not in allowed:
            raise ConfigError(f"{name} = {value!r}: expected {allowed}")


def _check_choices(config: object, choices: Mapping[str, Any]) -> None:
    for name, kind in choices.items():
        value = getattr(config, name)
        if value not in get_args(kind):
            raise ConfigError(f"{name} = {value!r}: expected one of {', '.join(get_args(kind))}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelChoices:
    """The user's choices of a classifier, without what the data set determines.

    Raises:
        ConfigError: a value out of range, or values that do not fit each other.
    """

    stem: Stem = "patch"
    patch: tuple[int, int] = (4, 4)
    """Height and width of the patch stem's patches, in pixels."""
    stem_width: int = 16
    """Channels before a conv stem's last convolution."""
    stem_norm: StemNorm = "none"
    pos_embed: bool = True
    local_conv: bool = False
    direction: Direction = "alternate"
    pool: Pool = "mean"
    d_model: int = 64
    n_layers: int = 4
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | Literal["auto"] = "auto"
    a: AForm = "free"
    """Parameters of the state matrix A: one per channel and state, or ("tied") one per channel."""
    dt_min: float = 0.001
    dt_max: float = 0.1
    """Initial step sizes are log-uniform between dt_min and dt_max, and at least dt_init_floor."""
    dt_init_floor: float = 1e-4
    dt_scale: float = 1.0
    """Scale of dt_proj's initial weights."""
    members: int = 1
    """Classifiers of this shape whose logits are averaged."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", tuple(self.patch))
        _check_ranges(self, _CHOICE_RANGES)
        if self.resolved_dt_rank not in LIMITS["dt_rank"]:
            raise ConfigError(f"dt_rank = {self.dt_rank!r}: expected {LIMITS['dt_rank']} or 'auto'")
        _check_choices(self, _MODEL_CHOICES)
        for name in ("pos_embed", "local_conv"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} = {getattr(self, name)!r}: expected true or false")
        for name in ("dt_min", "dt_init_floor"):
            if getattr(self, name) > self.dt_max:
                raise ConfigError(f"{name} = {getattr(self, name)} is above dt_max = {self.dt_max}")
        if len(self.patch) != 2 or not all(side in LIMITS["height"] for side in self.patch):
            raise ConfigError(
                f"patch = {list(self.patch)}: expected [height, width], each {LIMITS['height']}"
            )

    @property
    def d_inner(self) -> int:
        """Number of channels inside a mixer (Di)."""
        return self.expand * self.d_model

    @property
    def resolved_dt_rank(self) -> int:
        """dt_rank (R) as a number."""
        return math.ceil(self.d_model / 16) if self.dt_rank == "auto" else self.dt_rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelChoices):
    """Shape and arithmetic of a classifier.

    Image sizes, class count and pixel statistics come from the data set, the rest from the user.
    Limits are those of the model file (docs/format.md), so that what trains can be exported.

    Raises:
        ConfigError: a value out of range, or values that do not fit each other.
    """

    height: int
    width: int
    n_classes: int
    channels: int = 1
    pixel_mean: float = 0.0
    pixel_std: float = 1.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranges(self, _DATA_RANGES)
        image = f"{self.height} x {self.width} pixels"
        patch = f"patch = {list(self.patch)}"
        if self.stem == "patch" and (self.height % self.patch[0] or self.width % self.patch[1]):
            raise ConfigError(f"{patch} does not divide the image, which is {image}")
        if self.length > MAX_LENGTH:
            stem = patch if self.stem == "patch" else f"stem = {self.stem!r}"
            raise ConfigError(
                f"{stem} makes {self.length} tokens of an image of {image}: "
                f"expected up to {MAX_LENGTH}"
            )
        dims = {name: getattr(self, name) for name in LIMITS} | {"dt_rank": self.resolved_dt_rank}
        if found := oversized_activations(self.stem, self.length, dims):
            name, size = found
            raise ConfigError(f"{name} = {size}: expected up to {MAX_ACTIVATIONS} in all")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens that the stem makes of an image."""
        return token_grid(self.stem, self.height, self.width, self.patch)

    @property
    def stem_convs(self) -> list[tuple[int, int, int]]:
        """(inputs, outputs, stride) of each 3x3 convolution of a conv stem, in order."""
        return stem_convs(self.stem, self.stem_width, self.d_model)

    @property
    def length(self) -> int:
        """Number of tokens per image (L)."""
        return self.grid[0] * self.grid[1]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for a checkpoint or JSON."""
        return {**dataclasses.asdict(self), "patch": list(self.patch)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Return the config that `to_dict` described.

        Raises:
            ConfigError: unknown or missing keys, or values that do not pass the checks.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown model settings: {', '.join(unknown)}")
        if missing := sorted({"height", "width", "n_classes"} - set(values)):
            raise ConfigError(f"missing model settings: {', '.join(missing)}")
        return cls(**values)


_DATA_RANGES = {
    name: LIMITS[name]
    for name in ("height", "width", "channels", "n_classes", "norm_eps", "pixel_mean", "pixel_std")
}
_CHOICE_RANGES = {
    "expand": whole(1, 8),
    # dt_rank may be "auto", and is checked when it is resolved.
    **{name: LIMITS[name] for name in LIMITS if name not in (*_DATA_RANGES, "dt_rank")},
    **dict.fromkeys(("dt_min", "dt_max", "dt_init_floor", "dt_scale"), Range(1e-8, 1e3)),
}
_MODEL_CHOICES = {
    "stem": Stem,
    "stem_norm": StemNorm,
    "direction": Direction,
    "pool": Pool,
    "a": AForm,
}

SCANS: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
"""Scan backends of each kind of device, in order of preference; `reference` runs on any."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Largest random changes of an image, drawn uniformly and independently per image.

    0 turns a change off.

    Raises:
        ConfigError: a value out of range.
    """

    rotate: float = 10.0
    """Degrees, to either side."""
    scale: float = 0.1
    """Relative change of size, up or down."""
    shear: float = 5.0
    """Degrees, to either side."""
    shift: float = 0.08
    """Fraction of the image's height and width, to either side."""
    elastic: float = 0.0
    """Standard deviation of each pixel's own shift, as a fraction of the image's sides."""
    elastic_scale: float = 0.15
    """Standard deviation of the Gaussian that smooths these shifts, as a fraction of the sides."""
    hold: float = 0.5
    """Fraction of the training during which the changes have their full size."""
    end: float = 1.0
    """Size of the changes at the end of the training as a fraction of their full size.

    They shrink linearly after `hold`.
    """

    def __post_init__(self) -> None:
        _check_ranges(self, _AUGMENT_RANGES)

    @property
    def is_identity(self) -> bool:
        """Whether nothing is changed."""
        return not any(getattr(self, name) for name in _CHANGES)

    def at(self, progress: float) -> AugmentConfig:
        """Return the changes after a fraction `progress` (0 to below 1) of the training."""
        falling = max(progress - self.hold, 0.0)
        size = 1 - (1 - self.end) * falling / (1 - self.hold) if falling else 1.0
        sizes = {name: size * getattr(self, name) for name in _CHANGES}
        return dataclasses.replace(self, **sizes)


_CHANGES = ("rotate", "scale", "shear", "shift", "elastic")
"""The fields of AugmentConfig that shrink after `hold`."""
_AUGMENT_RANGES = {
    "rotate": Range(0, 180),
    "scale": BELOW_ONE,
    "shear": Range(0, 90, high_excluded=True),
    "shift": FRACTION,
    "elastic": FRACTION,
    "elastic_scale": Range(0, 1, low_excluded=True),
    "hold": BELOW_ONE,
    "end": FRACTION,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained.

    Raises:
        ConfigError: a value out of range.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: OptimizerName = "adamw"
    """muon: Muon for the matrices between stem and head, AdamW for the rest."""
    lr: float = 1e-3
    """Peak learning rate, reached after the warm-up."""
    warmup: float = 0.1
    """Fraction of all steps during which the rate rises linearly."""
    lr_end: float = 0.01
    """Rate of the last step as a fraction of the peak; the rate falls to it along a cosine."""
    weight_decay: float = 0.05
    beta1: float = 0.9
    """AdamW's decay per step of the gradient's mean."""
    beta2: float = 0.99
    """AdamW's decay per step of the squared gradient's mean."""
    momentum: float = 0.95
    """Muon's decay per step of the gradient's mean."""
    clip_norm: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    label_smoothing: float = 0.05
    ema_decay: float = 0.999
    """Decay per step of the averaged weights, which are validated and exported."""
    seed: int = 0
    save_every: int = 500
    """Steps between saved states; 0 saves at the end of each epoch only."""
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _check_ranges(self, _TRAIN_RANGES)
        _check_choices(self, {"optimizer": OptimizerName})


_TRAIN_RANGES = {
    "epochs": whole(1, 1_000_000),
    "batch_size": whole(1, 1_000_000),
    "lr": POSITIVE,
    "warmup": FRACTION,
    "lr_end": FRACTION,
    "weight_decay": NOT_NEGATIVE,
    "beta1": BELOW_ONE,
    "beta2": BELOW_ONE,
    "momentum": BELOW_ONE,
    "clip_norm": NOT_NEGATIVE,
    "label_smoothing": BELOW_ONE,
    "ema_decay": BELOW_ONE,
    "seed": whole(0, 2**32 - 1),
    "save_every": whole(0, 1_000_000_000),
}
