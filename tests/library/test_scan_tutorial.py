"""The code blocks of docs/the-scan.md, run as they stand on the page."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_mamba.c_build import CACHE_VARIABLE, build_library
from mnist_mamba.scan import selective_scan

PAGE = (Path(__file__).parents[2] / "docs" / "the-scan.md").read_text(encoding="utf-8")


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL))


def test_the_python_loops_are_the_scan_and_its_gradients() -> None:
    names: dict[str, Any] = {}
    exec(blocks("python"), names)  # it compares both passes with selective_scan
    assert len(names["grads"]) == 6


def test_the_c_loop_is_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    source = tmp_path / "plain_scan.c"
    source.write_text(blocks("c"), encoding="utf-8")
    library = ctypes.CDLL(str(build_library("plain_scan", [source], [], ["-std=c11", "-O1"])))
    channels, states, length = 5, 4, 9
    random = np.random.default_rng(0)
    shapes = [
        (channels, length),
        (channels, length),
        (channels, states),
        (states, length),
        (states, length),
        (channels,),
    ]
    inputs = [random.uniform(0.1, 1, shape).astype(np.float32) for shape in shapes]
    inputs[2] *= -1
    out, state = np.empty((channels, length), np.float32), np.empty(states, np.float32)
    arrays = [array.ctypes.data_as(ctypes.c_void_p) for array in (*inputs, out, state)]
    library.scan_forward(channels, states, length, *arrays)
    u, delta, A, B, C, D = map(torch.from_numpy, inputs)
    expected = selective_scan(u[None], delta[None], A, B[None], C[None], D)[0]
    torch.testing.assert_close(torch.from_numpy(out), expected)
