"""`make wheels`: pack a wheel for each platform, with its compiled engine and the shipped model.

`python -m ziglang` (the extra `build`) compiles the engines, all on one machine.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from pipeline.common import command
from pipeline.release.platforms import PLATFORMS, add_platforms, build

DIST = Path("dist")
MAX_BYTES = 1_000_000
"""Largest size of a wheel."""


def newest_glibc(library: Path) -> tuple[int, int]:
    """Return the newest version of glibc that a library names, (0, 0) if none."""
    versions = re.findall(rb"GLIBC_(\d+)\.(\d+)", library.read_bytes())
    return max(((int(major), int(minor)) for major, minor in versions), default=(0, 0))


def pack(library: Path, tag: str, name: str, folder: Path = DIST) -> Path:
    """Pack a built libmamba and return the wheel's path.

    Args:
        library: the built file.
        tag: platform tag of the wheel.
        name: the library's name in the wheel.
        folder: gets the wheel.

    Raises:
        RuntimeError: the library needs a newer glibc than the tag says, the wheel is larger than
            MAX_BYTES, or none was made.
    """
    named = re.match(r"manylinux_(\d+)_(\d+)", tag)
    oldest = (int(named[1]), int(named[2])) if named else None
    if oldest and newest_glibc(library) > oldest:
        raise RuntimeError(f"{library}: needs glibc {newest_glibc(library)}, expected {oldest}")
    words = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), "."]
    environment = {**os.environ, "MNIST_MAMBA_WHEEL": f"{tag}={library.resolve()}={name}"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob(f"*-py3-none-{tag}.whl"), key=lambda path: path.stat().st_mtime)
    if done.returncode != 0 or not wheels:
        raise RuntimeError(f"{tag}: no wheel: {(done.stdout + done.stderr)[-1000:]}")
    size = wheels[-1].stat().st_size
    if size > MAX_BYTES:
        raise RuntimeError(f"{wheels[-1]}: got {size:,} bytes, expected {MAX_BYTES:,} at most")
    return wheels[-1]


def main(options: argparse.Namespace) -> None:
    """Pack the wheels and print their names and sizes."""
    for name in options.platforms or PLATFORMS:
        platform = PLATFORMS[name]
        (library,) = build(platform, "libmamba.so")
        wheel = pack(library, platform.wheel_tag, platform.library)
        print(f"{wheel} {wheel.stat().st_size:,} bytes")


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = command.parser(
        __doc__.split("\n")[0],
        ["python -m pipeline.release.wheels", "python -m pipeline.release.wheels musl-arm64"],
    )
    return add_platforms(parser)


if __name__ == "__main__":
    command.run(lambda: main(parse_arguments()))
