"""Settings of a model and of its training, and the limits that the model file sets.

Plain values: this module imports nothing of the library, since the pipeline checks params.yaml
here before any stage does work.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

Stem = Literal["patch", "conv", "conv3"]
StemNorm = Literal["none", "batch"]
Direction = Literal["forward", "alternate", "bidirectional", "cross"]
Pool = Literal["mean", "last"]
AForm = Literal["free", "tied"]
Preparation = Literal["resize", "mnist"]
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


BelowOne = Annotated[float, Range(0, 1, high_excluded=True)]
Fraction = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0)]
StepSize = Annotated[float, Range(1e-8, 1e3)]

LIMITS = {
    "height": whole(1, 4096),
    "width": whole(1, 4096),
    "channels": whole(1, 4),
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
EXIT_MARGIN = Range(0, 1e6)
"""Range of an ensemble's exit margin, 0 to ask all members."""
MAX_LENGTH = 65536
"""Largest number of tokens per image that the model file allows."""
MAX_ACTIVATIONS = 2**24
"""Largest number of floats in one activation array of an image."""
MAX_NAME_BYTES = 255
"""Longest class name of the model file, as UTF-8."""


def token_grid(stem: Stem, height: int, width: int, patch: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the tokens that a stem makes of an image."""
    if stem == "patch":
        return height // patch[0], width // patch[1]
    # Two of the 3x3 convolutions have stride 2 and padding 1: each halves, rounding up.
    return math.ceil(height / 4), math.ceil(width / 4)


def stem_convs(
    stem: Stem, channels: int, stem_width: int, d_model: int
) -> list[tuple[int, int, int]]:
    """Return (inputs, outputs, stride) of each 3x3 convolution of a conv stem, in order."""
    if stem == "patch":
        return []
    if stem == "conv":
        return [(channels, stem_width, 2), (stem_width, d_model, 2)]
    half = math.ceil(stem_width / 2)
    return [(channels, half, 1), (half, stem_width, 2), (stem_width, d_model, 2)]


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
        "channels": (height * width, dims["channels"]),
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


UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, on which terminals act, and surrogates, which are not UTF-8."""


def printable(name: str) -> str:
    """Return the name of a file from elsewhere as a terminal may show it, for instance `a\\x1b`."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], name)


def expected_name(name: object, earlier: Sequence[str]) -> str | None:
    """Return what a class should be called instead, or None if the model file allows the name.

    Args:
        name: the class's name.
        earlier: names of the classes before it.
    """
    if not isinstance(name, str) or UNPRINTABLE.search(name):
        return "UTF-8 without control characters"
    if not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
        return f"1 to {MAX_NAME_BYTES} bytes of UTF-8"
    return f"another name than that of class {earlier.index(name)}" if name in earlier else None


def check_value(name: str, value: object, hint: Any) -> None:
    """Check a value by its annotation: one of a Literal, a class, or in a range of Annotated.

    Raises:
        ConfigError: the value does not fit.
    """
    expected = None
    if get_origin(hint) is Literal and value not in get_args(hint):
        expected = f"one of {', '.join(get_args(hint))}"
    elif isinstance(hint, type) and not isinstance(value, hint):
        expected = "true or false" if hint is bool else f"a value of type {hint.__name__}"
    for allowed in getattr(hint, "__metadata__", ()):
        if isinstance(allowed, Range) and value not in allowed:
            expected = str(allowed)
    if expected is not None:
        raise ConfigError(f"{name} = {reprlib.repr(value)}: expected {expected}")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


class Checked:
    """A dataclass whose values are checked by the annotations of its fields."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, hint in _hints(kind).items():
            check_value(name, getattr(self, name), hint)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelChoices(Checked):
    """The user's choices of a classifier, without what the data set determines.

    Raises:
        ConfigError: a value out of range, or values that do not fit each other.
    """

    stem: Stem = "patch"
    patch: tuple[int, int] = (4, 4)
    """Height and width of the patch stem's patches, in pixels."""
    stem_width: Annotated[int, LIMITS["stem_width"]] = 16
    """Channels before a conv stem's last convolution."""
    stem_norm: StemNorm = "none"
    pos_embed: bool = True
    local_conv: bool = False
    direction: Direction = "alternate"
    pool: Pool = "mean"
    d_model: Annotated[int, LIMITS["d_model"]] = 64
    n_layers: Annotated[int, LIMITS["n_layers"]] = 4
    d_state: Annotated[int, LIMITS["d_state"]] = 16
    d_conv: Annotated[int, LIMITS["d_conv"]] = 4
    expand: Annotated[int, whole(1, 8)] = 2
    dt_rank: int | Literal["auto"] = "auto"
    a: AForm = "free"
    """Parameters of the state matrix A: one per channel and state, or ("tied") one per channel."""
    dt_min: StepSize = 0.001
    dt_max: StepSize = 0.1
    """Initial step sizes are log-uniform between dt_min and dt_max, and at least dt_init_floor."""
    dt_init_floor: StepSize = 1e-4
    dt_scale: StepSize = 1.0
    """Scale of dt_proj's initial weights."""
    members: Annotated[int, LIMITS["members"]] = 1
    """Classifiers whose logits are averaged."""
    other_members: tuple[dict[str, Any], ...] = ()
    """Settings in which the members after the first differ, one by one; a short list repeats. Empty
    if there is only one member."""

    def __post_init__(self) -> None:
        self._check_patch()
        self._check_other_members()
        super().__post_init__()
        if self.members == 1:  # `members = 1` is enough then
            object.__setattr__(self, "other_members", ())
        elif (count := len(self.other_members)) >= self.members:
            raise ConfigError(
                f"other_members = a list of {count}: expected up to {self.members - 1}, the number "
                "of members after the first"
            )
        check_value("d_inner", self.d_inner, Annotated[int, LIMITS["d_inner"]])
        if self.resolved_dt_rank not in LIMITS["dt_rank"]:
            got = reprlib.repr(self.dt_rank)
            raise ConfigError(f"dt_rank = {got}: expected {LIMITS['dt_rank']} or 'auto'")
        for name in ("dt_min", "dt_init_floor"):
            if getattr(self, name) > self.dt_max:
                raise ConfigError(f"{name} = {getattr(self, name)} is above dt_max = {self.dt_max}")

    def _check_patch(self) -> None:
        """Check the patch, and make a list, which is JSON's and YAML's kind, a tuple."""
        allowed = LIMITS["height"]
        patch: Any = list(self.patch) if isinstance(self.patch, tuple) else self.patch
        if not isinstance(patch, list) or len(patch) != 2 or any(n not in allowed for n in patch):
            got = reprlib.repr(patch)
            raise ConfigError(f"patch = {got}: expected [height, width], each {allowed}")
        object.__setattr__(self, "patch", tuple(patch))

    def _check_other_members(self) -> None:
        """Check kinds and keys, and make a list a tuple; a config also checks the values."""
        others: Any = self.other_members
        if not isinstance(others, list | tuple) or not all(isinstance(one, dict) for one in others):
            got = reprlib.repr(others)
            raise ConfigError(f"other_members = {got}: expected a list of settings and values")
        known = {field.name for field in dataclasses.fields(ModelChoices)}
        for i, changes in enumerate(others):
            if unknown := changes.keys() - known | changes.keys() & {"members", "other_members"}:
                key = reprlib.repr(min(unknown, key=str))
                raise ConfigError(f"other_members[{i}]: got {key}, expected settings of one member")
        plain = [
            {k: list(v) if isinstance(v, list | tuple) else v for k, v in one.items()}
            for one in others
        ]
        object.__setattr__(self, "other_members", tuple(plain))

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

    Image sizes, classes, preparation and pixel statistics come from the data set, the rest from the
    user.
    Limits are those of the model file (docs/format.md), so that what trains can be exported.

    Raises:
        ConfigError: a value out of range, or values that do not fit each other.
    """

    height: Annotated[int, LIMITS["height"]]
    width: Annotated[int, LIMITS["width"]]
    n_classes: Annotated[int, LIMITS["n_classes"]]
    channels: Annotated[int, LIMITS["channels"]] = 1
    class_names: tuple[str, ...] = ()
    """One for each class; empty: "0", "1", ..."""
    preparation: Preparation = "resize"
    """How a picture of any size becomes an image of the model's: as MNIST's digits, or resized."""
    pixel_mean: Annotated[float, LIMITS["pixel_mean"]] = 0.0
    pixel_std: Annotated[float, LIMITS["pixel_std"]] = 1.0
    norm_eps: Annotated[float, LIMITS["norm_eps"]] = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_classes()
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
        for i in range(len(self.other_members)):
            try:
                self.member(i + 1)
            except ConfigError as error:
                raise ConfigError(f"other_members[{i}]: {error}") from error

    def _check_classes(self) -> None:
        """Check class names and preparation, and make a list of names, as JSON has, a tuple."""
        names: Any = self.class_names
        if not isinstance(names, list | tuple) or len(names) not in (0, self.n_classes):
            raise ConfigError(
                f"class_names = {reprlib.repr(names)}: expected a list of {self.n_classes} names"
            )
        for i, name in enumerate(names):
            if expected := expected_name(name, names[:i]):
                got = reprlib.repr(name)
                raise ConfigError(f"class_names[{i}] = {got}: expected {expected}")
        object.__setattr__(self, "class_names", tuple(names))
        if self.preparation == "mnist" and self.channels != 1:
            raise ConfigError(
                f"preparation = 'mnist': expected 'resize' for {self.channels} channels"
            )

    def member(self, i: int) -> ModelConfig:
        """Return the config of member i, counted from 0, as of a model of its own."""
        others = self.other_members
        changes = others[(i - 1) % len(others)] if i and others else {}
        alone: dict[str, Any] = {"members": 1, "other_members": ()}
        return dataclasses.replace(self, **alone, **changes)

    @property
    def member_configs(self) -> list[ModelConfig]:
        """The config of each member."""
        return [self.member(i) for i in range(self.members)]

    @property
    def resolved_class_names(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.class_names or tuple(str(i) for i in range(self.n_classes))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens that the stem makes of an image."""
        return token_grid(self.stem, self.height, self.width, self.patch)

    @property
    def stem_convs(self) -> list[tuple[int, int, int]]:
        """(inputs, outputs, stride) of each 3x3 convolution of a conv stem, in order."""
        return stem_convs(self.stem, self.channels, self.stem_width, self.d_model)

    @property
    def length(self) -> int:
        """Number of tokens per image (L)."""
        return self.grid[0] * self.grid[1]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for a checkpoint or JSON."""
        values = dataclasses.asdict(self)
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return values | lists

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Return the config that `to_dict` described.

        Raises:
            ConfigError: unknown or missing keys, or values that do not pass the checks.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := values.keys() - known:
            raise ConfigError(f"unknown model setting: {reprlib.repr(min(unknown, key=str))}")
        if missing := sorted({"height", "width", "n_classes"} - set(values)):
            raise ConfigError(f"missing model settings: {', '.join(missing)}")
        return cls(**values)


SCANS: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
"""Scan backends of each kind of device, in order of preference; `reference` runs on any."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig(Checked):
    """Largest random changes of an image, drawn uniformly and independently per image.

    0 turns a change off. All images are mapped (rotated, ..., distorted); then a part of them gets
    one of the corruptions noise, blur, contrast, background and thickness, each equally likely.

    Raises:
        ConfigError: a value out of range.
    """

    rotate: Annotated[float, Range(0, 180)] = 10.0
    """Degrees, to either side."""
    scale: BelowOne = 0.1
    """Relative change of size, up or down."""
    shear: Annotated[float, Range(0, 90, high_excluded=True)] = 5.0
    """Degrees, to either side."""
    shift: Fraction = 0.08
    """Fraction of the image's height and width, to either side."""
    elastic: Fraction = 0.0
    """Standard deviation of each pixel's own shift, as a fraction of the image's sides."""
    elastic_scale: Annotated[float, Range(0, 1, low_excluded=True)] = 0.15
    """Standard deviation of the Gaussian that smooths these shifts, as a fraction of the sides."""
    hold: BelowOne = 0.5
    """Fraction of the training during which the maps have their full size."""
    end: Fraction = 1.0
    """Size of the maps at the end of the training as a fraction of their full size.

    They shrink linearly after `hold`.
    """
    corrupt: Fraction = 0.0
    """Fraction of the images that are corrupted."""
    noise: NotNegative = 0.45
    """Standard deviation of Gaussian noise, as a fraction of white."""
    blur: Fraction = 0.065
    """Standard deviation of a Gaussian blur, as a fraction of the sides."""
    contrast: Fraction = 0.7
    """Fraction of the contrast that is lost: the image fades towards a random grey."""
    background: Fraction = 0.7
    """Fraction of the contrast that is lost to a light from one side."""
    thickness: Fraction = 0.02
    """Widening or narrowing of strokes at each edge, as a fraction of the shorter side."""

    @property
    def maps(self) -> dict[str, float]:
        """The sizes of the maps that are on, which shrink after `hold`."""
        return self._sizes("rotate", "scale", "shear", "shift", "elastic")

    @property
    def corruptions(self) -> dict[str, float]:
        """The sizes of the corruptions that are on."""
        names = ("noise", "blur", "contrast", "background", "thickness")
        return self._sizes(*names) if self.corrupt else {}

    def _sizes(self, *names: str) -> dict[str, float]:
        return {name: size for name in names if (size := getattr(self, name))}

    def at(self, progress: float) -> AugmentConfig:
        """Return the changes after a fraction `progress` (0 to below 1) of the training."""
        falling = max(progress - self.hold, 0.0)
        size = 1 - (1 - self.end) * falling / (1 - self.hold) if falling else 1.0
        maps = {name: size * full for name, full in self.maps.items()}
        return dataclasses.replace(self, **maps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """How a model is trained.

    Raises:
        ConfigError: a value out of range.
    """

    epochs: Annotated[int, whole(1, 1_000_000)] = 10
    batch_size: Annotated[int, whole(1, 1_000_000)] = 128
    """Images per step, and fewer if an epoch has less than min_steps of them."""
    min_steps: Annotated[int, whole(1, 1_000_000)] = 16
    """Smallest number of steps per epoch, as far as the images reach."""
    optimizer: OptimizerName = "adamw"
    """muon: Muon for the matrices between stem and head, AdamW for the rest."""
    lr: Annotated[float, Range(0, low_excluded=True)] = 1e-3
    """Peak learning rate, reached after the warm-up."""
    warmup: Fraction = 0.1
    """Fraction of all steps during which the rate rises linearly."""
    lr_end: Fraction = 0.01
    """Rate of the last step as a fraction of the peak; the rate falls to it along a cosine."""
    weight_decay: NotNegative = 0.05
    beta1: BelowOne = 0.9
    """AdamW's decay per step of the gradient's mean."""
    beta2: BelowOne = 0.99
    """AdamW's decay per step of the squared gradient's mean."""
    momentum: BelowOne = 0.95
    """Muon's decay per step of the gradient's mean."""
    clip_norm: NotNegative = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    label_smoothing: BelowOne = 0.05
    ema_decay: BelowOne = 0.999
    """Decay per step of the averaged weights, which are validated and exported."""
    norm_momentum: float | Literal["auto"] = "auto"
    """Weight of a step's images in the batch norms' statistics; auto: see `resolved_momentum`."""
    seed: Annotated[int, whole(0, 2**32 - 1)] = 0
    save_every: Annotated[int, whole(0, 1_000_000_000)] = 500
    """Steps between saved states; 0 saves at the end of each epoch only."""
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_momentum != "auto" and self.norm_momentum not in _MOMENTUM:
            raise ConfigError(
                f"norm_momentum = {self.norm_momentum!r}: expected {_MOMENTUM} or 'auto'"
            )

    def images_per_step(self, n_images: int) -> int:
        """Return the number of images per step in epochs of n_images."""
        return min(self.batch_size, math.ceil(n_images / self.min_steps))

    def resolved_momentum(self, n_images: int) -> float:
        """Return the momentum of the batch norms' statistics in a training with n_images.

        auto averages over the last 100 steps or, in a training of less than 2,000 steps, over its
        last twentieth: with a fixed momentum, the statistics of a short training would be those of
        earlier weights, and much of the initial 0 and 1.
        """
        if self.norm_momentum != "auto":
            return self.norm_momentum
        steps = self.epochs * math.ceil(n_images / self.images_per_step(n_images))
        return min(max(0.01, 20 / steps), 1.0)


_MOMENTUM = Range(0, 1, low_excluded=True)
