"""`make test-platforms`: build the C engine for each platform, and test it where that can be run.

`python -m ziglang` (the extra `build`) compiles for all of them from one machine. The results go to
metrics/platforms.json and from there to the table of docs/platforms.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform as machine
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_mamba.atomic_write import write_json
from mnist_mamba.data.idx import read_images, read_labels, write_idx
from pipeline.common import command, paths
from pipeline.common.generated_tables import write_table
from pipeline.common.zig import find_zig

logger = logging.getLogger(__name__)

RESULTS = paths.METRICS / "platforms.json"
DOC = Path("docs/platforms.md")
MODEL = Path("models/mnist_mamba.bin")
BUILDS = Path("build/platforms")
LOGIT_TOLERANCE = 1e-4
"""Largest difference from the logits of this machine's own scalar engine."""
EMULATED_TESTS = "test_kernels test_model test_exit test_picture test_forward test_golden"
"""C tests that an emulator runs; the others take it many minutes. `make test-cross` runs all."""
X86, ARM64 = ("scalar", "avx2", "avx512"), ("scalar", "neon")
UNSUPPORTED = 2
"""Exit code of the engine if the processor lacks the instruction set that MAMBA_ISA names."""


@dataclass(frozen=True)
class Platform:
    """A system and a processor that the engine is built for."""

    name: str
    target: str
    """zig's name: processor, system, C library and its oldest version."""
    wheel_tag: str
    isas: tuple[str, ...] = ("scalar",)
    runner: tuple[str, ...] | None = ()
    """Program that runs the engine, with arguments; empty for this machine, None if none can."""
    packages: str = ""
    """Debian's packages of the runner."""
    library: str = "libmamba.so"
    """Name of the library in a wheel."""

    @property
    def folder(self) -> Path:
        return BUILDS / self.name / "plain"


def _emulated(cpu: str, name: str, debian: str) -> tuple[tuple[str, ...], str]:
    return (f"qemu-{cpu}", "-L", f"/usr/{name}"), f"qemu-user libc6-{debian}-cross"


_ARM64 = _emulated("aarch64", "aarch64-linux-gnu", "arm64")
_ARM32 = _emulated("arm", "arm-linux-gnueabihf", "armhf")
_RISCV = _emulated("riscv64", "riscv64-linux-gnu", "riscv64")

# fmt: off
PLATFORMS = {platform.name: platform for platform in (
    Platform("linux-x86_64", "x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64", X86),
    Platform("musl-x86_64", "x86_64-linux-musl", "musllinux_1_2_x86_64", X86),
    Platform("windows-x86_64", "x86_64-windows-gnu", "win_amd64", X86, ("wine",), "wine64 wine",
             library="mamba.dll"),
    Platform("linux-arm64", "aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64", ARM64, *_ARM64),
    Platform("musl-arm64", "aarch64-linux-musl", "musllinux_1_2_aarch64", ARM64, *_ARM64),
    Platform("linux-armv7", "arm-linux-gnueabihf.2.17", "manylinux_2_17_armv7l", ("scalar",),
             *_ARM32),
    Platform("musl-armv7", "arm-linux-musleabihf", "musllinux_1_2_armv7l", ("scalar",), *_ARM32),
    # The first glibc for this processor is 2.27.
    Platform("linux-riscv64", "riscv64-linux-gnu.2.27", "manylinux_2_27_riscv64", ("scalar",),
             *_RISCV),
    Platform("musl-riscv64", "riscv64-linux-musl", "musllinux_1_2_riscv64", ("scalar",), *_RISCV),
    Platform("macos-arm64", "aarch64-macos.11.0", "macosx_11_0_arm64", ARM64, None,
             library="libmamba.dylib"),
    Platform("macos-x86_64", "x86_64-macos.10.15", "macosx_10_15_x86_64", X86, None,
             library="libmamba.dylib"),
)}
# fmt: on


def make(*words: str) -> str:
    """Run make on csrc/tests.mk and return what it prints.

    Raises:
        RuntimeError: it failed; the message ends with its output.
    """
    # The tests under wine and qemu need no jobserver of an outer make.
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    command_line = ["make", "-f", "csrc/tests.mk", f"-j{os.cpu_count()}", *words]
    done = subprocess.run(
        command_line, capture_output=True, text=True, errors="replace", env=environment, check=False
    )
    if done.returncode != 0:
        output = (done.stdout + done.stderr)[-2000:]
        raise RuntimeError(f"{shlex.join(command_line)} failed:\n{output}")
    return done.stdout


def variables(platform: Platform) -> list[str]:
    """Return the variables of make for a platform's compiler and runner.

    Raises:
        RuntimeError: ziglang is not installed.
    """
    zig = shlex.quote(str(find_zig()))
    return [
        f"CC={zig} cc -target {platform.target} -O2",
        "CFLAGS=-O2",
        # zig compiles a platform's C library for each set of flags that it links with, which takes
        # a minute: it takes all of these, so make need not try them.
        "try=$(1)",
        "ENGINE_SMALL=-g0 -fPIC -fvisibility=hidden -ffunction-sections -fdata-sections",
        "ENGINE_LINK_SMALL=",
        f"BUILD={BUILDS / platform.name}",
        f"RUN={shlex.join(platform.runner or ())}",
        *([f"ENGINE_TESTS={EMULATED_TESTS}"] if "qemu" in str(platform.runner) else []),
    ]


def build(platform: Platform, *names: str) -> list[Path]:
    """Build files of a platform, such as its command `mamba`, and return their paths."""
    built = [platform.folder / name for name in names]
    make(*variables(platform), *map(str, built))
    return built


def check_runner(platform: Platform) -> None:
    """Raise RuntimeError if the program that runs a platform's engine is not installed."""
    if platform.runner is None:
        return
    program = platform.runner[:1]
    if not program and machine.machine() not in ("x86_64", "AMD64"):
        raise RuntimeError(f"{platform.name}: got a {machine.machine()} machine, expected x86_64")
    if program and shutil.which(program[0]) is None:
        raise RuntimeError(
            f"{platform.name}: {program[0]} not found; on Debian, run `apt-get install "
            f"{platform.packages}`"
        )


def logits(
    words: Sequence[str | Path], isa: str, images: Path, labels: Path
) -> NDArray[np.float32] | None:
    """Return the logits (n, n_classes) of a command, or None if the processor lacks `isa`.

    Raises:
        RuntimeError: the command failed otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.f32"
        arguments = [*words, "eval", MODEL, images, labels, "--logits", out]
        environment = {**os.environ, "MAMBA_ISA": isa}
        done = subprocess.run(
            list(map(str, arguments)), capture_output=True, text=True, env=environment, check=False
        )
        if done.returncode == UNSUPPORTED and "MAMBA_ISA" in done.stderr:
            return None
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(map(str, arguments))} failed: {done.stderr[-500:]}")
        values = np.fromfile(out, dtype="<f4")
    return values.reshape(len(read_labels(labels)), -1)


def compare(
    platform: Platform, engine: Path, images: Path, labels: Path, expected: NDArray[np.float32]
) -> dict[str, Any]:
    """Return how the logits of each instruction set differ from `expected`.

    Raises:
        RuntimeError: a prediction changed, or a logit differs by more than LOGIT_TOLERANCE.
    """
    found: dict[str, Any] = {}
    for isa in platform.isas:
        got = logits([*(platform.runner or ()), engine], isa, images, labels)
        if got is None:
            continue
        changed = int((got.argmax(1) != expected.argmax(1)).sum())
        difference = float(np.abs(got - expected).max())
        found[isa] = {"predictions_changed": changed, "max_abs_logit_diff": difference}
        if changed or not difference <= LOGIT_TOLERANCE:
            raise RuntimeError(
                f"{platform.name}, {isa}: {changed} of {len(got)} predictions changed and logits "
                f"differ by {difference:.2g}, expected 0 and {LOGIT_TOLERANCE:g} at most"
            )
    return found


def test(platform: Platform, data: tuple[Path, Path], expected: NDArray[np.float32]) -> Any:
    """Build a platform's engine, run its tests if that can be done, and return the record."""
    check_runner(platform)
    engine, library = build(platform, "mamba", "libmamba.so")
    record: dict[str, Any] = {
        "target": platform.target,
        "command_bytes": engine.stat().st_size,
        "library_bytes": library.stat().st_size,
        "runner": None if platform.runner is None else " ".join(platform.runner[:1]) or "native",
    }
    if platform.runner is not None:
        output = make(*variables(platform), "test-c-plain")
        record["c_tests"] = re.findall(r"^== .*?(test_\w+)", output, flags=re.MULTILINE)
        record["images"] = len(expected)
        record["isas"] = compare(platform, engine, *data, expected)
    return record


def subset(folder: Path, n: int | None) -> tuple[Path, Path]:
    """Return the files of the test images and their labels, or of the first n of them."""
    source = paths.images(paths.PREPARED, "test"), paths.labels(paths.PREPARED, "test")
    if n is None:
        return source
    cut = folder / source[0].name, folder / source[1].name
    write_idx(cut[0], read_images(source[0])[:n])
    write_idx(cut[1], read_labels(source[1])[:n])
    return cut


def render_row(name: str, record: Mapping[str, Any]) -> str:
    """Return a platform's row of the table in docs/platforms.md."""
    size = f"{record['library_bytes'] / 1000:.0f}, {record['command_bytes'] / 1000:.0f}"
    tested = ["not run", "0", "not run", "nothing here runs it"]
    if record["runner"] is not None:
        images = "; ".join(
            f"{isa} {found['predictions_changed']}, {found['max_abs_logit_diff']:.0e}"
            for isa, found in record["isas"].items()
        )
        passed = f"{len(record['c_tests'])} programs pass"
        tested = [passed, f"{record['images']:,}", images, record["runner"]]
    speed = "[gcc's build](benchmarks.md)" if name == "linux-x86_64" else "unknown"
    return " | ".join([f"| {name}", f"`{record['target']}`", size, *tested, f"{speed} |"])


def render_table(results: Mapping[str, Any]) -> str:
    """Return the table of docs/platforms.md."""
    lines = [
        "| platform | zig's target | library, command (KB) | C tests | images | predictions "
        "changed, largest difference of a logit | run by | speed |",
        "|---|---|---:|---|---:|---|---|---|",
        *(render_row(name, results[name]) for name in PLATFORMS if name in results),
    ]
    return "\n".join(lines) + "\n"


def record_result(name: str, record: Mapping[str, Any]) -> None:
    """Add a record to RESULTS and renew the table."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[name] = record
    write_json(RESULTS, results)
    write_table(DOC, "platforms", render_table(results))


def main(options: argparse.Namespace) -> None:
    """Build and test the platforms, and record the results."""
    native = Path("build/plain/mamba")
    make(str(native))
    with tempfile.TemporaryDirectory() as folder:
        data = subset(Path(folder), options.images)
        expected = logits([native], "scalar", *data)
        assert expected is not None
        for name in options.platforms or PLATFORMS:
            record = test(PLATFORMS[name], data, expected)
            logger.info(f"{name}: {json.dumps(record)}")
            record_result(name, record)


def add_platforms(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with names of platforms after the options."""
    parser.add_argument(
        "platforms", nargs="*", metavar="PLATFORM", help=f"default: all of {', '.join(PLATFORMS)}"
    )
    options = parser.parse_args()
    for name in options.platforms:
        if name not in PLATFORMS:
            parser.error(f"PLATFORM: got {name}, expected one of {', '.join(PLATFORMS)}")
    return options


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = command.parser(
        __doc__.split("\n")[0],
        ["python -m pipeline.release.platforms", "python -m pipeline.release.platforms musl-arm64"],
    )
    parser.add_argument("--images", type=int, metavar="N", help="only the first N test images")
    return add_platforms(parser)


if __name__ == "__main__":
    command.run(lambda: main(parse_arguments()))
