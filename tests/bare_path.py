"""A PATH with nothing but named tools, as on a machine where little is installed."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import pytest

SCRATCH = tempfile.TemporaryDirectory()


@functools.cache
def path_of(tools: str) -> str:
    """Return a PATH that has the compiler `cc`, its assembler and linker, and these tools only."""
    folder = Path(tempfile.mkdtemp(dir=SCRATCH.name))
    for tool in ("cc", "as", "ld", *tools.split()):
        place = shutil.which(tool)
        if place is None:
            pytest.skip(f"{tool} is not installed")
        (folder / tool).symlink_to(place)
    return str(folder)
