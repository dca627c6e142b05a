"""Threads and forked processes share one engine, in a debug build of the library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import golden

ROOT = Path(__file__).parents[2]
STRESS_S = float(os.environ.get("STRESS_S", "20"))
"""Seconds that threads and forks use one engine, longer at night; threads alone get a third."""
PATIENCE_S = 240
"""Seconds that a busy machine may need more, before the test counts as hanging."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]


def build(folder: Path, sanitizer: str) -> Path:
    """Build libmamba with OpenMP, assertions and the sanitizer."""
    flags = f"-O1 -g -fopenmp -fsanitize={sanitizer} -fno-sanitize-recover=all"
    make = ["make", "-s", "-j2", "-f", "csrc/engine.mk", f"{folder}/libmamba.so"]
    subprocess.run([*make, f"OUT={folder}", f"ENGINE_CFLAGS_dvc={flags}"], cwd=ROOT, check=True)
    return folder / "libmamba.so"


def runtime_of_asan() -> str:
    """Return the path of AddressSanitizer's library, which must be loaded before Python."""
    compiler = os.environ.get("CC") or "cc"
    command = [*compiler.split(), "-print-file-name=libasan.so"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip("the compiler has no libasan.so to load before Python")
    return found


# gcc's AddressSanitizer may leave its allocator locked in a forked child, so it gets no forks. The
# other build fills freed memory with rubbish instead.
@pytest.mark.parametrize(("sanitizer", "forks"), [("undefined", 4), ("address", 0)])
def test_threads_and_forks_on_one_engine(sanitizer: str, forks: int, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((f"{ROOT}/src", str(ROOT))),
        "PYTHONFAULTHANDLER": "1",
        "OMP_NUM_THREADS": "2",
    }
    if sanitizer == "address":
        environment |= {"LD_PRELOAD": runtime_of_asan(), "ASAN_OPTIONS": "detect_leaks=0"}
    else:
        environment |= {"MALLOC_PERTURB_": "165"}
    model = tmp_path / "stressed.bin"
    shutil.copy(golden.FOLDER / "patch_tied.bin", model)
    library = build(tmp_path, sanitizer)
    seconds = STRESS_S if forks else STRESS_S / 3
    arguments = (library, model, seconds, forks, 1)
    done = subprocess.run(
        [sys.executable, "-m", "tests.library.stress", *(str(word) for word in arguments)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=STRESS_S + PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    calls, _, children, _ = done.stdout.split()
    assert int(calls) > 1000
    assert int(children) >= forks
