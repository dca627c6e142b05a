"""Nested dictionaries and their dotted keys: {"a": {"b": 1}} has the value 1 at "a.b"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values by their dotted keys, each with `prefix` in front."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def look_up(values: Mapping[str, Any], key: str) -> Any:
    """Return the value or the section at a dotted key."""
    found: Any = values
    for name in key.split("."):
        if not isinstance(found, Mapping):
            raise KeyError(key)
        found = found[name]
    return found
