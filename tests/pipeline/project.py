"""A copy of the project with small params and small data, in which stages can run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mnist_mamba.c_build import CACHE_VARIABLE
from mnist_mamba.data.idx import write_idx
from mnist_mamba.data.sources import IDX_NAMES
from mnist_mamba.engine.binding import find_library
from pipeline.common.nested import look_up
from tests.pipeline.fork_server import Fork, run_forked
from tests.pipeline.imports import ROOT

PARTS = (
    *("pipeline", "src", "csrc", "params.yaml", "gate.yaml", "dvc.yaml"),
    *(".dvc", ".dvcignore", ".gitignore"),
)

SMALL: dict[str, Any] = {
    "data.dataset": "idx",
    "data.val_fraction": 0.2,
    "model.stem": "patch",
    "model.patch": [3, 4],
    "model.d_model": 16,
    "model.n_layers": 2,
    "model.members": 2,
    "model.other_members": [{"d_model": 12, "direction": "alternate"}],
    "model.local_conv": False,
    "model.d_state": 4,
    "train.epochs": 3,
    "train.batch_size": 16,
    "train.min_steps": 1,
    "train.lr": 0.02,
    "train.augment.rotate": 0,
    "train.augment.elastic": 0,
    "train.threads": 1,
    "export.weight_type": "float32",
    "benchmark.rounds": 2,
}

IDENTITY = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "test"), ("EMAIL", "test@localhost"))
}
"""An author for Git, which has none in an empty HOME."""


def copy_project(folder: Path, changes: Mapping[str, Any] = SMALL) -> Path:
    """Copy the pipeline, its sources and settings to `folder`, with changed params."""
    ignore = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    set_params(folder, changes)
    write_bars(folder / "data" / "idx")
    (folder / "data" / "pictures").mkdir()
    (folder / "data" / "pictures" / ".gitkeep").touch()  # Git keeps no empty folder
    return folder


def set_params(folder: Path, changes: Mapping[str, Any]) -> None:
    """Write this project's params.yaml with changes by dotted keys."""
    write_changed("params.yaml", folder, changes)


def write_changed(name: str, folder: Path, changes: Mapping[str, Any]) -> None:
    """Write a YAML file of this project to a folder, with changes by dotted keys."""
    content = yaml.load((ROOT / name).read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    for key, value in changes.items():
        section, _, last = key.rpartition(".")
        values = look_up(content, section) if section else content
        assert last in values, key
        values[last] = value
    text = yaml.dump(content, Dumper=yaml.CSafeDumper)
    (folder / name).write_text(text, encoding="utf-8")


def write_bars(folder: Path) -> None:
    """Write images of 9 x 12 in four classes: a bright band at one of four places, in noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for part, n in (("train", 200), ("test", 40)):
        labels = (np.arange(n) % 4).astype(np.uint8)
        images = generator.integers(0, 120, (n, 9, 12), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, 3 * label : 3 * label + 3] += 110
        write_idx(folder / IDX_NAMES[f"{part}_images"], images)
        write_idx(folder / IDX_NAMES[f"{part}_labels"], labels)


def run_module(
    folder: Path, module: str, *arguments: str | Path, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE` in the project and capture its output.

    A new Python reads variables that it needs when it starts. Otherwise a fork saves the seconds.
    """
    words = [str(argument) for argument in arguments]
    if any(name.startswith(("LC_", "PYTHON")) for name in env):
        return run(folder, [sys.executable, "-m", module, *words], **env)
    return run_forked(folder, module, words, environment(**env))


def run_stage(folder: Path, stage: str) -> str:
    """Run a stage of dvc.yaml in the project, without DVC, and return what it logs."""
    text = (folder / "dvc.yaml").read_text(encoding="utf-8")
    stages = yaml.load(text, Loader=yaml.CSafeLoader)["stages"]
    python, dash_m, module, *arguments = stages[stage]["cmd"].split()
    assert (python, dash_m) == ("python", "-m")
    done = run_module(folder, module, *arguments)
    assert done.returncode == 0, f"{stage}: {done.stderr}"
    return done.stderr


def start_module(folder: Path, module: str, *arguments: str, stderr: str = os.devnull) -> Fork:
    """Start `python -m MODULE` in the project, in a process group of its own, as a fork.

    Args:
        folder: the project.
        module: the name of the module.
        arguments: its arguments.
        stderr: the file that gets its stderr.
    """
    outputs = [Path(os.devnull), folder / stderr]
    return Fork(folder, outputs, [module, *arguments], environment())


def start(
    folder: Path, command: list[str], stderr: Path = Path(os.devnull), **env: str
) -> subprocess.Popen[bytes]:
    """Start a command in the project, in a process group of its own, with stderr in a file."""
    with stderr.open("w") as file:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment(**env),
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
            # A shell starts its background jobs, and so the tests, with SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def run_torchrun(
    folder: Path, processes: int, module: str, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `torchrun -m MODULE` in the project and capture its output."""
    words = ["--standalone", f"--nproc_per_node={processes}", "-m", module, *arguments]
    return run_module(folder, "torch.distributed.run", *words, **env)


def run(folder: Path, command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project and capture its output."""
    return subprocess.run(
        command, cwd=folder, env=environment(**env), capture_output=True, text=True
    )


def columns_shown() -> str:
    """Return the pattern of the columns that `make experiments` shows."""
    rule = "shown: ; @echo '$(COLUMNS_SHOWN)'"
    done = run(ROOT, ["make", "-s", "--eval", rule, "shown"], MAKEFLAGS="")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def documented(
    page: str, heading: str, number: int, values: Mapping[str, str] | None = None
) -> str:
    """Return a block of commands of docs/PAGE.md with a user's values in place of the examples.

    Args:
        page: the name of the page.
        heading: the section's heading.
        number: the block, counted from 0 below the heading.
        values: texts that replace parts of the block, which must be there.
    """
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    blocks = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", text.split("\n## ")[0], re.MULTILINE)
    block = textwrap.dedent(blocks[number])
    for example, value in (values or {}).items():
        assert example in block, f"{page}: {heading}: {example}"
        block = block.replace(example, value)
    return block


def git(folder: Path, home: str, *words: str) -> None:
    done = run(folder, ["git", *words], HOME=home, **IDENTITY)
    assert done.returncode == 0, done.stderr


def dvc(folder: Path, home: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    done = run(folder, ["dvc", *words], HOME=home, **IDENTITY, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def environment(**env: str) -> dict[str, str]:
    """Return this process's environment without variables that point outside the project.

    C libraries that this process has compiled are also found from an empty HOME.
    """
    cache = {CACHE_VARIABLE: str(find_library().parent)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    hidden = ("MLFLOW_TRACKING_URI", "PYTHONPATH", "DVC_ROOT", "MNIST_MIRROR")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, **quiet, **cache, "PATH": path, **env}
