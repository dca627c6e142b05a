"""Keys that identify a run or a training by the params and files that its results depend on."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.nested import look_up
from pipeline.common.params import Params

RESULT_STAGE = "evaluate"
"""The last stage whose results belong to a run's identity; timings do not."""

RESULT_PARAMS = ("data", "model", "train", "export", "evaluate")
"""Sections of params.yaml that these results depend on."""


def file_md5(path: Path) -> str:
    """Return the MD5 of a file, by which DVC identifies it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def content_key(params: Params, pipeline: Path = Path("dvc.yaml")) -> str:
    """Return a hash of the params and source files of `evaluate` and all stages above it.

    The hash does not use dvc.lock, which has no entry of a running stage. So `train` while it runs
    and `track` after it find the same run.
    """
    values = params.model_dump(mode="json")
    content = {
        "params": {name: values[name] for name in RESULT_PARAMS},
        "files": {str(path): file_md5(path) for path in source_files(values, pipeline)},
    }
    return hash_of(content)


def training_key(params: Params, pipeline: Path = Path("dvc.yaml")) -> str:
    """Return a hash of the params, sources and prepared data that determine trained weights.

    Unlike `content_key` it does not depend on the engine and its evaluation, which must not
    prevent a training from being resumed, but it does depend on the prepared data.
    """
    return hash_of(training_content(params, pipeline))


def training_content(params: Params, pipeline: Path = Path("dvc.yaml")) -> dict[str, Any]:
    """Return the "params" that determine trained weights, and the MD5 of such "files".

    Raises:
        FileNotFoundError: a dependency of the stage `train` is missing.
    """
    values = params.model_dump(mode="json")
    del values["train"]["save_every"]  # does not change the weights
    stage = _stages(pipeline)["train"]
    return {
        "params": {name: look_up(values, name) for name in stage["params"]},
        "files": {str(file): file_md5(file) for dep in stage["deps"] for file in _files(dep)},
    }


def source_files(values: dict[str, Any], pipeline: Path = Path("dvc.yaml")) -> list[Path]:
    """Return the files that `evaluate` and all stages above it depend on and no stage makes.

    Raises:
        ValueError: the pipeline lacks the stage.
    """
    stages = _stages(pipeline)
    if RESULT_STAGE not in stages:
        raise ValueError(f"{pipeline} has no stage '{RESULT_STAGE}', expected one")
    deps, made = set(), set()
    for name, stage in stages.items():
        deps |= {_fill(dep, values) for dep in stage.get("deps", [])}
        for out in chain(*(stage.get(kind, []) for kind in ("outs", "metrics", "plots"))):
            made |= {out} if isinstance(out, str) else set(out)
        if name == RESULT_STAGE:
            break
    return sorted(file for path in deps - made for file in _files(path))


def _stages(pipeline: Path) -> dict[str, Any]:
    text = pipeline.read_text(encoding="utf-8")
    stages: dict[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)["stages"]
    return stages


def _files(dep: str | Path) -> list[Path]:
    """Return a dependency's file, or all files of its folder except compiled Python."""
    path = Path(dep)
    if not path.is_dir():
        return [path]
    found = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in found if "__pycache__" not in file.parts)


def _fill(text: str, values: dict[str, Any]) -> str:
    """Replace DVC's ${section.key} by the param's value."""
    return re.sub(r"\$\{([^}]+)\}", lambda match: str(look_up(values, match[1].strip())), text)


def hash_of(content: Any) -> str:
    """Return a hash of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
