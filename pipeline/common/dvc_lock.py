"""The facts that dvc.lock records of the last `dvc repro`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.params import read_yaml

LOCK = Path("dvc.lock")


def read_lock(path: Path = LOCK) -> dict[str, Any]:
    """Return the content of a dvc.lock."""
    lock: dict[str, Any] = read_yaml(path, path)
    return lock


def outputs(lock: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each output's entry (path, md5, size) by its path."""
    return {
        out["path"]: out
        for stage in lock["stages"].values()
        for out in stage.get("outs", [])
        if "md5" in out
    }


def locked_params(lock: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params and sections of params, by dotted key, that the stages last ran with."""
    return {
        name: value
        for stage in lock["stages"].values()
        for params in stage.get("params", {}).values()
        for name, value in params.items()
    }
