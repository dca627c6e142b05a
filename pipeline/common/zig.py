"""The compiler zig, which builds for other platforms and for WebAssembly."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def find_zig() -> Path:
    """Return the path of zig in the package ziglang.

    Raises:
        RuntimeError: ziglang is not installed.
    """
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("ziglang not found: run `pip install -c constraints.txt -e '.[build]'`")
    return Path(spec.submodule_search_locations[0]) / "zig"
