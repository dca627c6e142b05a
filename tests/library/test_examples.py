"""The examples in the library's docstrings."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "data.idx",
    "engine.binding",
    "export",
    "metrics",
    "model.classifier",
    "model.mixer",
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"mnist_mamba.{name}"))
    assert tried > 0
    assert failed == 0
