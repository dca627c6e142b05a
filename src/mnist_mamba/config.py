"""The settings of a model and of its training: plain values, importing nothing of the library.

The pipeline's params are checked against these before any stage does work, so this module must
not drag the model's code, and with it every stage's dependencies, along.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

Stem = Literal["patch", "conv", "conv3"]
StemNorm = Literal["none", "batch"]
Direction = Literal["forward", "alternate", "bidirectional", "cross"]
Pool = Literal["mean", "last"]
AForm = Literal["free", "tied"]
OptimizerName = Literal["adamw", "muon"]

MAX_LENGTH = 65536
"""Longest sequence of tokens that the model file allows (docs/format.md)."""
MAX_ACTIVATIONS = 2**24
"""Most floats that it allows in one array of an image's activations."""


class ConfigError(ValueError):
    """A model or training setting that cannot work; the message names key, value and range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that fixes a classifier's shape and arithmetic.

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
    stem: Stem = "patch"
    patch: tuple[int, int] = (4, 4)
    stem_width: int = 16
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
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_init_floor: float = 1e-4
    dt_scale: float = 1.0
    norm_eps: float = 1e-5
    members: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", tuple(self.patch))
        self._check_ranges()
        self._check_choices()
        self._check_fit()

    def _check_ranges(self) -> None:
        ranges: dict[str, tuple[int, int]] = {
            "height": (1, 4096),
            "width": (1, 4096),
            "channels": (1, 1),
            "n_classes": (2, 256),
            "stem_width": (1, 512),
            "d_model": (1, 2048),
            "n_layers": (1, 64),
            "d_state": (1, 256),
            "d_conv": (1, 16),
            "expand": (1, 8),
            "d_inner": (1, 8192),
            "resolved_dt_rank": (1, 2048),
            "members": (1, 64),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            key = "dt_rank" if name == "resolved_dt_rank" else name
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{key} = {value!r}: expected a whole number in {low}..{high}")
        floats: dict[str, tuple[float, float]] = {
            "pixel_mean": (0.0, 1.0),
            "pixel_std": (1e-6, 1e6),
            "dt_min": (1e-8, 1e3),
            "dt_max": (1e-8, 1e3),
            "dt_init_floor": (1e-8, 1e3),
            "dt_scale": (1e-8, 1e3),
            "norm_eps": (1e-12, 0.1),
        }
        for name, (lowest, highest) in floats.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and lowest <= value <= highest):
                raise ConfigError(f"{name} = {value!r}: expected {lowest:g} to {highest:g}")

    def _check_choices(self) -> None:
        choices = {
            "stem": Stem,
            "stem_norm": StemNorm,
            "direction": Direction,
            "pool": Pool,
            "a": AForm,
        }
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(
                    f"{name} = {getattr(self, name)!r}: expected one of {', '.join(get_args(kind))}"
                )

    def _check_fit(self) -> None:
        if self.dt_min > self.dt_max:
            raise ConfigError(f"dt_min = {self.dt_min} is above dt_max = {self.dt_max}")
        if self.stem == "patch":
            if len(self.patch) != 2 or not all(isinstance(p, int) and p >= 1 for p in self.patch):
                raise ConfigError(
                    f"patch = {list(self.patch)}: expected [height, width], each >= 1"
                )
            if self.height % self.patch[0] or self.width % self.patch[1]:
                raise ConfigError(
                    f"patch = {list(self.patch)} does not divide the image, "
                    f"which is {self.height} x {self.width} pixels"
                )
        if self.length > MAX_LENGTH:
            stem = (
                f"patch = {list(self.patch)}" if self.stem == "patch" else f"stem = {self.stem!r}"
            )
            raise ConfigError(
                f"{stem} makes {self.length} tokens of an image of {self.height} x {self.width} "
                f"pixels: expected up to {MAX_LENGTH}"
            )
        pixels = self.height * self.width
        quarter = math.ceil(self.height / 2) * math.ceil(self.width / 2)
        widths = {
            "d_model": (self.length, self.d_model),
            "d_inner": (self.length, self.d_inner),
            "dt_rank + 2 d_state": (self.length, self.resolved_dt_rank + 2 * self.d_state),
            "stem_width": (quarter, 0 if self.stem == "patch" else self.stem_width),
            "half of stem_width": (pixels, self.stem_convs[0][1] if self.stem == "conv3" else 0),
        }
        for name, (rows, columns) in widths.items():
            if rows * columns > MAX_ACTIVATIONS:
                raise ConfigError(
                    f"{name} = {columns} at each of {rows} places: expected up to "
                    f"{MAX_ACTIVATIONS} in all"
                )

    @property
    def d_inner(self) -> int:
        """Channels inside a mixer (Di)."""
        return self.expand * self.d_model

    @property
    def resolved_dt_rank(self) -> int:
        """dt_rank (R) as a number."""
        return math.ceil(self.d_model / 16) if self.dt_rank == "auto" else self.dt_rank

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens that the stem makes of an image."""
        if self.stem == "patch":
            return self.height // self.patch[0], self.width // self.patch[1]
        # Two of the 3x3 convolutions have stride 2 and padding 1: each halves, rounding up.
        return math.ceil(self.height / 4), math.ceil(self.width / 4)

    @property
    def stem_convs(self) -> list[tuple[int, int, int]]:
        """Channels of input and output and stride of a conv stem's 3x3 convolutions, in order."""
        if self.stem == "patch":
            return []
        if self.stem == "conv":
            return [(1, self.stem_width, 2), (self.stem_width, self.d_model, 2)]
        half = math.ceil(self.stem_width / 2)
        return [(1, half, 1), (half, self.stem_width, 2), (self.stem_width, self.d_model, 2)]

    @property
    def length(self) -> int:
        """Tokens of an image (L)."""
        return self.grid[0] * self.grid[1]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a checkpoint or JSON."""
        return {**dataclasses.asdict(self), "patch": list(self.patch)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """A config from plain values.

        Raises:
            ConfigError: unknown or missing keys, or values that do not pass the checks.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown model settings: {', '.join(unknown)}")
        if missing := sorted({"height", "width", "n_classes"} - set(values)):
            raise ConfigError(f"missing model settings: {', '.join(missing)}")
        return cls(**values)


SCANS: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
"""Backends of the scan by the kind of device, the one to try first first; reference runs on any."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Largest changes, each drawn uniformly and independently for each image; 0 is none."""

    rotate: float = 10.0
    """Degrees, to either side."""
    scale: float = 0.1
    """Relative change of size, up or down."""
    shear: float = 5.0
    """Degrees, to either side."""
    shift: float = 0.08
    """Fraction of the image's height and width, to either side."""
    elastic: float = 0.0
    """Standard deviation of a pixel's own shift, as a fraction of the image's sides."""
    elastic_scale: float = 0.15
    """Standard deviation of the Gaussian that smooths these shifts, as a fraction of the sides."""
    hold: float = 0.5
    """Fraction of the training over which the changes are as large as that."""
    end: float = 1.0
    """Their size at the end of the training as a fraction of that; linear between."""

    @property
    def is_identity(self) -> bool:
        """Whether nothing is changed."""
        return not any(getattr(self, name) for name in _CHANGES)

    def at(self, progress: float) -> AugmentConfig:
        """The changes when `progress` of the training, 0 to below 1, is done."""
        falling = max(progress - self.hold, 0.0)
        size = 1 - (1 - self.end) * falling / (1 - self.hold) if falling else 1.0
        sizes = {name: size * getattr(self, name) for name in _CHANGES}
        return dataclasses.replace(self, **sizes)


_CHANGES = ("rotate", "scale", "shear", "shift", "elastic")
"""The fields of AugmentConfig that are sizes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained; ranges are checked where the values come from (params.yaml)."""

    epochs: int = 10
    batch_size: int = 128
    optimizer: OptimizerName = "adamw"
    """muon: Muon for the matrices inside the network, AdamW for the rest."""
    lr: float = 1e-3
    """Peak learning rate, reached after the warm-up."""
    warmup: float = 0.1
    """Fraction of all steps over which the rate rises linearly."""
    lr_end: float = 0.01
    """Rate of the last step as a fraction of the peak; cosine between."""
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.99
    momentum: float = 0.95
    """Muon's decay of the gradient's mean."""
    clip_norm: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    label_smoothing: float = 0.05
    sam_rho: float = 0.0
    """Distance, towards a larger loss, at which each step takes its gradient (SAM); 0 is none."""
    sam_stride: int = 1
    """Every so manieth image of a batch says which way that is."""
    ema_decay: float = 0.999
    """Decay a step of the averaged weights, which are what is validated and exported."""
    seed: int = 0
    save_every: int = 500
    """Steps between two states to resume from; 0 makes one at the end of each epoch alone."""
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
