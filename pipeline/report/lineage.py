"""Lineage of the results: data, model, revision, params."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pipeline.common import paths
from pipeline.common.content_key import content_key, file_md5
from pipeline.common.dvc_lock import outputs
from pipeline.common.git import GitError, git
from pipeline.common.params import Params
from pipeline.report.results import TemplateContext, html

RESULTS = ("metrics/", "plots/")


def lineage(lock: Mapping[str, Any], params: Params) -> TemplateContext:
    """Return outputs, keys, revision and params, and reasons to doubt the results."""
    rows = [
        {"path": path, "MD5": out["md5"], "bytes": out["size"], "here": _state(path, out)}
        for path, out in outputs(lock).items()
    ]
    key = content_key(params)
    recorded = None
    if paths.TRACKING_KEY.is_file():
        # A run that MLflow did not store is marked after its key.
        recorded = paths.TRACKING_KEY.read_text(encoding="utf-8").strip().partition(" ")[0]
    unchanged = [row["path"] for row in rows if row["here"] == "unchanged"]
    return {
        "outputs": html(pd.DataFrame(rows).set_index("path"), "file"),
        "n_outputs": len(rows),
        "data_info": _info() if str(paths.DATA_INFO) in unchanged else None,
        "model": next((row for row in rows if Path(row["path"]) == paths.MODEL), None),
        "content_key": key,
        "recorded_key": recorded,
        "git": git_state(),
        "params": yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False),
        "doubts": list(_doubts(rows, key, recorded)),
    }


def _info() -> Any:
    return json.loads(paths.DATA_INFO.read_text(encoding="utf-8"))


def _state(path: str, out: Mapping[str, Any]) -> str:
    """Compare a file with its MD5 in dvc.lock."""
    file = Path(path)
    if not file.is_file():
        return "missing"
    return "unchanged" if file_md5(file) == out["md5"] else "changed"


def _doubts(rows: list[dict[str, str]], key: str, recorded: str | None) -> Iterator[str]:
    """Yield reasons to doubt that all results come from one run."""
    changed = [row["path"] for row in rows if row["here"] == "changed"]
    if results := [path for path in changed if path.startswith(RESULTS)]:
        yield f"Not as in dvc.lock: {', '.join(results)}."
    if recorded is not None and recorded != key:
        yield "Params or sources have changed since these results were made."


def git_state() -> TemplateContext | None:
    """Return the revision, its date and the tracked files that differ; None without Git."""
    try:
        revision = git("rev-parse", "HEAD")
        status = git("status", "--porcelain", "--untracked-files=no")
        date = git("show", "--no-patch", "--format=%cs", "HEAD")
    except GitError:
        return None
    return {
        "revision": revision.strip(),
        "date": date.strip(),
        "changed": [line[3:] for line in status.splitlines()],
    }
