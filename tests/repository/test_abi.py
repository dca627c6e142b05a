"""A change of what linked programs rely on needs a new version of the library."""

from __future__ import annotations

import re
import shutil
import struct

import pytest

from tests.tools import abi

HEADER = abi.HEADER.read_text(encoding="utf-8")

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here"),
    pytest.mark.skipif(struct.calcsize("P") != 8, reason="the record is of 64-bit machines"),
]


@pytest.fixture(scope="module")
def recorded() -> str:
    return abi.RECORD.read_text(encoding="utf-8")


def test_the_interface_is_the_recorded_one(recorded: str) -> None:
    current = abi.describe(HEADER, abi.version())
    assert abi.problem(recorded, current) is None
    assert current == recorded, "run `make abi` and commit csrc/abi.txt"


def test_the_record_has_every_function_struct_and_constant(recorded: str) -> None:
    """The test above cannot fail for what the record does not know."""
    functions = [line for line in recorded.splitlines() if "(" in line]
    assert len(functions) == HEADER.count("\nMAMBA_API ") + 1, "and mamba_trace"
    for word in ("mamba_trace", "MAMBA_ERR_EMPTY = 7", "mamba_picture.row_stride: size_t at 32"):
        assert word in recorded
    members = re.findall(r"^mamba_info\.(\w+)", recorded, re.MULTILINE)
    assert len(members) == 32
    map_file = (abi.ROOT / "csrc/install/mnist_mamba.map").read_text(encoding="utf-8")
    assert f"MNIST_MAMBA_{abi.version().split('.')[0]} {{" in map_file


BREAKING = {
    "a parameter": ("int threads, const float *images", "unsigned threads, const float *images"),
    "a function": ("MAMBA_API int mamba_max_threads(void);", ""),
    "a new member": ("    char message[256];", "    int line;\n    char message[256];"),
    "another type": ("    float norm_eps;", "    uint32_t norm_eps;"),
    "another order": ("uint32_t version, crc32;", "uint32_t crc32, version;"),
    "a larger array": ("message[256]", "message[512]"),
    "a constant": ("MAMBA_ERR_MEMORY = 6", "MAMBA_ERR_MEMORY = 9"),
    "a callback": ("const float *data, size_t rows,", "const float *data, int rows,"),
}


@pytest.mark.parametrize("change", BREAKING)
def test_a_breaking_change_needs_a_new_major(recorded: str, change: str) -> None:
    before, after = BREAKING[change]
    assert before in HEADER
    changed = HEADER.replace(before, after)
    wrong = abi.problem(recorded, abi.describe(changed, abi.version()))
    assert wrong is not None
    assert "expected a MAJOR version above 0" in wrong
    assert abi.problem(recorded, abi.describe(changed, "1.0")) is None


def test_a_new_function_needs_a_new_minor(recorded: str) -> None:
    last = "MAMBA_API int mamba_max_threads(void);"
    changed = HEADER.replace(last, f"{last}\nMAMBA_API int mamba_new(void);")
    wrong = abi.problem(recorded, abi.describe(changed, abi.version()))
    assert wrong is not None
    assert "expected a newer MINOR" in wrong
    assert abi.problem(recorded, abi.describe(changed, "0.99")) is None
