"""Names of contents: a run's, a training's; both from params and the files that it comes from."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.params import Params

LAST_STAGE = "evaluate"
"""Its results, and those of the stages before it, are what a run stands for; timings are not."""

SECTIONS = ("data", "model", "train", "export", "evaluate")
"""The params that those results depend on."""


def file_md5(path: Path) -> str:
    """MD5 of a file, which is also DVC's name for it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def content_key(params: Params, pipeline: Path = Path("dvc.yaml")) -> str:
    """A hash of the params and of every source file that evaluate rests on, however far back.

    It comes from files alone (no dvc.lock, which has no entry of a stage that is still running),
    so that `train` while it runs and `track` after it find the same run.

    Raises:
        ValueError: dvc.yaml has no such stages.
    """
    values = params.model_dump(mode="json")
    content = {
        "params": {name: values[name] for name in SECTIONS},
        "files": {str(path): file_md5(path) for path in source_files(values, pipeline)},
    }
    return _hash(content)


def training_key(params: Params, pipeline: Path = Path("dvc.yaml")) -> str:
    """A hash of the params, sources and prepared data that a training's weights come from.

    Narrower than `content_key`, because a change of the engine or of its evaluation keeps no
    training from being resumed; and wider, because the data that stages made counts.

    Raises:
        FileNotFoundError: a dep of the stage is missing.
    """
    values = params.model_dump(mode="json")
    del values["train"]["save_every"]  # the weights are the same for any
    stage = yaml.safe_load(pipeline.read_text())["stages"]["train"]
    return _hash(
        {
            "params": {name: _look_up(values, name) for name in stage["params"]},
            "files": {str(file): file_md5(file) for dep in stage["deps"] for file in _files(dep)},
        }
    )


def source_files(values: dict[str, Any], pipeline: Path = Path("dvc.yaml")) -> list[Path]:
    """What evaluate and the stages before it depend on and no stage makes; folders as files."""
    stages: dict[str, Any] = yaml.safe_load(pipeline.read_text())["stages"]
    if LAST_STAGE not in stages:
        raise ValueError(f"{pipeline} has no stage {LAST_STAGE}")
    maker = {_path(out): name for name, stage in stages.items() for out in _outputs(stage)}
    needed, waiting, seen = set(), [LAST_STAGE], {LAST_STAGE}
    while waiting:
        for dep in stages[waiting.pop()].get("deps", []):
            path = _fill(dep, values)
            if path not in maker:
                needed.add(Path(path))
            elif maker[path] not in seen:
                seen.add(maker[path])
                waiting.append(maker[path])
    return sorted(file for path in needed for file in _files(path))


def _files(dep: str | Path) -> list[Path]:
    """Return a dep's file, or all files of its folder except compiled Python."""
    path = Path(dep)
    if not path.is_dir():
        return [path]
    found = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in found if "__pycache__" not in file.parts)


def _outputs(stage: dict[str, Any]) -> list[Any]:
    return [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]


def _path(out: str | dict[str, Any]) -> str:
    return out if isinstance(out, str) else next(iter(out))


def _fill(text: str, values: dict[str, Any]) -> str:
    """Replace DVC's ${section.key} by the params' value."""

    return re.sub(r"\$\{([^}]+)\}", lambda match: str(_look_up(values, match[1].strip())), text)


def _look_up(values: dict[str, Any], key: str) -> Any:
    """The value at a dotted key."""
    value: Any = values
    for part in key.split("."):
        value = value[part]
    return value


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
