"""The code blocks of docs/python.md run as they stand on the page, and learn what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
CLASSIFIER, ENGINE, SCAN = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "docs/python.md", "exec"), names)
    return names


def test_the_classifier_learns_digits_and_the_engine_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(CLASSIFIER, {"__name__": "page"})
    assert names["accuracy"] > 0.95
    run(ENGINE, names)  # it names the file by a string
    np.testing.assert_array_equal(names["classes"], names["predictions"].numpy())
    assert names["probabilities"].shape == (len(names["test"].labels), 10)


def test_the_scan_alone_learns_to_remember() -> None:
    names = run(SCAN, {"__name__": "page"})
    assert names["loss"].item() < 0.05
