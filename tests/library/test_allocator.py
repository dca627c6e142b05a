"""What a training asks of the memory allocator."""

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

# Prints the KiB on huge pages that a tensor of 64 MB has brought.
MEASURE = """
import re
from pathlib import Path
from mnist_mamba.training.allocator import prepare_memory

def huge() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"AnonHugePages: +(\\d+) kB", text)[1])

prepare_memory()
import torch
before = huge()
tensor = torch.ones(16 << 20)
print(huge() - before)
"""

# Prints how many pages a tensor brings that is as large as those before it, all freed. glibc needs
# some rounds to find an aligned place for the next one within those it has.
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
    """The number that a fresh process prints; the allocator's settings are for its whole life."""
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


@pytest.mark.skipif(not huge_pages_on_request(), reason="the system gives no huge pages")
def test_large_tensors_are_on_huge_pages() -> None:
    assert run(MEASURE) >= 32 << 10  # of 64 MB; the system may not find all of them


@pytest.mark.skipif(not huge_pages_on_request(), reason="the system gives no huge pages")
def test_huge_pages_can_be_refused() -> None:
    if "[always]" in HUGE_PAGES.read_text(encoding="ascii"):
        pytest.skip("the system gives huge pages unasked")
    assert run(MEASURE, THP_MEM_ALLOC_ENABLE="0") < 32 << 10


@pytest.mark.skipif(not has_glibc(), reason="needs glibc")
@pytest.mark.parametrize("huge", ["0", "1"])
def test_freed_memory_is_used_again(huge: str) -> None:
    assert run(REUSE, THP_MEM_ALLOC_ENABLE=huge) < 100  # fresh ones bring 544 or 16384 pages


def test_the_users_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    monkeypatch.setenv(VARIABLE, "0")
    allocator.prepare_memory()
    assert os.environ[VARIABLE] == "0"
    monkeypatch.delenv(VARIABLE)
    allocator.prepare_memory()
    assert os.environ[VARIABLE] == "1"
    monkeypatch.delenv(VARIABLE)  # which sets back what was there before


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mallopt, no library to ask, or a system whose loader wants a name."""

    def without(name: object) -> object:
        if error is AttributeError:
            return object()
        raise error("no such library")

    monkeypatch.setenv(VARIABLE, "1")
    monkeypatch.setattr(ctypes, "CDLL", without)
    allocator.prepare_memory()
