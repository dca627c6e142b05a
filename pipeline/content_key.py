"""One name for a run's content: its params and every file that its results come from."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.params import Params

LAST_STAGE = "evaluate"
"""The stages up to this one make the results that a run stands for; timings are no content."""


def file_md5(path: Path) -> str:
    """MD5 of a file, which is also DVC's name for it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def content_key(params: Params, pipeline: Path = Path("dvc.yaml")) -> str:
    """A hash of the params and of every source file that stages up to evaluate depend on.

    It comes from files alone (no dvc.lock, which has no entry of a stage that is still running),
    so that `train` while it runs and `track` after it find the same run.

    Raises:
        ValueError: dvc.yaml has no such stages.
    """
    values = params.model_dump(mode="json")
    relevant = {name: values[name] for name in ("data", "model", "train", "export", "evaluate")}
    content = {
        "params": relevant,
        "files": {str(path): file_md5(path) for path in source_files(values, pipeline)},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def source_files(values: dict[str, Any], pipeline: Path = Path("dvc.yaml")) -> list[Path]:
    """Every dependency of the stages up to evaluate that no stage makes; folders as their files."""
    stages: dict[str, Any] = yaml.safe_load(pipeline.read_text())["stages"]
    if LAST_STAGE not in stages:
        raise ValueError(f"{pipeline} has no stage {LAST_STAGE}")
    names = list(stages)[: list(stages).index(LAST_STAGE) + 1]
    made = {_path(out) for name in names for out in _outputs(stages[name])}
    needed = {_fill(dep, values) for name in names for dep in stages[name].get("deps", [])}
    files: set[Path] = set()
    for path in map(Path, sorted(needed - made)):
        files.update(_files_in(path) if path.is_dir() else [path])
    return sorted(files)


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".gitignore"]


def _outputs(stage: dict[str, Any]) -> list[Any]:
    return [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]


def _path(out: str | dict[str, Any]) -> str:
    return out if isinstance(out, str) else next(iter(out))


def _fill(text: str, values: dict[str, Any]) -> str:
    """Replace DVC's ${section.key} by the params' value."""

    def look_up(match: re.Match[str]) -> str:
        value: Any = values
        for part in match[1].strip().split("."):
            value = value[part]
        return str(value)

    return re.sub(r"\$\{([^}]+)\}", look_up, text)
