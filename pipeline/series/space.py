"""The space of a search: a YAML file that says which values each param may take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.common.params import Params, ParamsError, Section, parse, read_yaml

SECTIONS = ("model", "train")
"""Sections of params.yaml that a training depends on, apart from its data."""
REALS = Annotated[list[float], Field(min_length=2, max_length=2)]
WHOLES = Annotated[list[int], Field(min_length=2, max_length=2)]
KINDS = ("float", "log", "int", "choice")


class Dimension(Section):
    """The values of one param: one of four kinds."""

    real: REALS | None = Field(None, alias="float")
    """Least and largest value."""
    log: REALS | None = None
    """Least and largest value, of which the logarithm is uniform."""
    whole: WHOLES | None = Field(None, alias="int")
    """Least and largest value; both can be chosen."""
    choice: Annotated[list[Any], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _is_one_kind(self) -> Dimension:
        given = [
            kind for kind in (self.real, self.log, self.whole, self.choice) if kind is not None
        ]
        if len(given) != 1:
            raise ValueError(
                f"got {len(given)} kinds of values, expected one of {', '.join(KINDS)}"
            )
        bounds = self.bounds
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"got {bounds}, expected the smaller bound first")
        if self.log and self.log[0] <= 0:
            raise ValueError(f"log: got {self.log}, expected bounds above 0")
        if self.choice and len(self.options) < len(self.choice):
            raise ValueError(f"choice: got {self.choice}, expected different values")
        return self

    @property
    def bounds(self) -> list[float] | list[int] | None:
        """Least and largest value, or None for a choice."""
        return self.real or self.log or self.whole

    @property
    def options(self) -> dict[str, Any]:
        """The values of a choice by their text: Optuna stores no lists."""
        return {str(value): value for value in self.choice or []}


Space = dict[str, Dimension]
"""The values of each searched param, by its dotted key."""


def load_space(path: Path, params: Params) -> Space:
    """Read a space, and check each bound and choice as a value of its param.

    Raises:
        ParamsError: a wrong space, an unknown key or a value that the params refuse.
    """
    content = read_yaml(path, path)
    if not isinstance(content, dict) or not content:
        raise ParamsError(
            f"{path}: got {content!r}, expected dotted keys with their values, "
            "e.g. train.lr: {log: [1e-3, 1e-2]}"
        )
    space = {}
    for key, values in content.items():
        if str(key).partition(".")[0] not in SECTIONS:
            raise ParamsError(
                f"{path}: {key}: expected a key of {' or '.join(SECTIONS)}, which do not change "
                "the prepared data"
            )
        space[key] = parse(Dimension, values, f"{path}: {key}")
        for value in space[key].bounds or space[key].choice or []:
            check_validation(params.changed({key: value}, str(path)), path)
    return space


def check_validation(params: Params, source: Path | str) -> None:
    """Check that a training has validation images, whose loss is what a search compares.

    Raises:
        ParamsError: it trains on them.
    """
    if params.train.on_val:
        raise ParamsError(
            f"{source}: train.on_val = true leaves no validation images, whose loss a search "
            "compares; expected false"
        )
