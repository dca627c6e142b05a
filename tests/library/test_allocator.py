"""prepare_memory: huge pages, reuse of freed memory, other C libraries."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_mamba.training import allocator

VARIABLE = "THP_MEM_ALLOC_ENABLE"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SOURCES = Path(allocator.__file__).parents[2]

# Prints the KiB on huge pages that a tensor of 64 MB added.
MEASURE = """
import re
from pathlib import Path
from mnist_mamba.training.allocator import prepare_memory

def huge() -> int:
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return int(re.search(r"AnonHugePages: +(\\d+) kB", text)[1])

prepare_memory()
import torch
before = huge()
tensor = torch.ones(16 << 20)
print(huge() - before)
"""

# Prints the page faults of a tensor as large as those freed before it. glibc needs some rounds
# before it finds an aligned place for the next tensor in the memory it has kept.
REUSE = """
import resource
from mnist_mamba.training.allocator import prepare_memory

prepare_memory()
import torch
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor = torch.ones(16 << 20)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del tensor
print(faults)
"""


def has_glibc() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")


def run(script: str, **environment: str) -> int:
    """Return the number that a new process prints; allocator settings last for its lifetime."""
    inherited = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**inherited, "PYTHONPATH": str(SOURCES), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def huge_pages_on_request() -> bool:
    readable = HUGE_PAGES.is_file() and Path("/proc/self/smaps_rollup").is_file()
    return readable and "[never]" not in HUGE_PAGES.read_text(encoding="ascii")


@pytest.mark.skipif(not huge_pages_on_request(), reason="the system has no huge pages")
def test_large_tensors_are_on_huge_pages() -> None:
    assert run(MEASURE) >= 32 << 10  # half of 64 MB: the system may not find all


@pytest.mark.skipif(not huge_pages_on_request(), reason="the system has no huge pages")
def test_huge_pages_can_be_turned_off() -> None:
    if "[always]" in HUGE_PAGES.read_text(encoding="ascii"):
        pytest.skip("the system uses huge pages for everything")
    assert run(MEASURE, THP_MEM_ALLOC_ENABLE="0") < 32 << 10


@pytest.mark.skipif(not has_glibc(), reason="needs glibc")
@pytest.mark.parametrize("huge", ["0", "1"])
def test_freed_memory_is_reused(huge: str) -> None:
    assert run(REUSE, THP_MEM_ALLOC_ENABLE=huge) < 100  # new memory takes 544 or 16384


def test_a_value_that_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    monkeypatch.setenv(VARIABLE, "0")
    allocator.prepare_memory()
    assert os.environ[VARIABLE] == "0"
    monkeypatch.delenv(VARIABLE)
    allocator.prepare_memory()
    assert os.environ[VARIABLE] == "1"
    monkeypatch.delenv(VARIABLE)  # so that pytest restores the old value


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_prepare_memory_ignores_other_c_libraries(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library may lack mallopt, be missing, or the loader may need a name."""

    def without(name: object) -> object:
        if error is AttributeError:
            return object()
        raise error("no such library")

    monkeypatch.setenv(VARIABLE, "1")
    monkeypatch.setattr(ctypes, "CDLL", without)
    allocator.prepare_memory()
