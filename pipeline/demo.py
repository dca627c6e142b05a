"""`make demo`: run the whole pipeline on scikit-learn's digits, in a copy of the project.

DVC makes the copy (`dvc exp run --temp`), so the work tree does not change.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any

from pipeline.common import command
from pipeline.common.git import git

NAME = "demo"
SETTINGS = {
    "data.dataset": "digits",
    "data.resize": "28",
    "train.epochs": "30",
    "train.batch_size": "32",
    "train.lr": "0.003",
    "model.members": "2",
}
SUMMARY = """
The C engine classifies {scores[accuracy]:.2%} of {scores[n_test]} test digits correctly.
PyTorch agrees: {scores[parity][prediction_mismatches]} predictions differ, and logits differ by \
at most {scores[parity][max_abs_logit_diff]:.1e}.
One digit takes {us[engine][b1]:.0f} us in C and {us[pytorch_eager][b1]:.0f} us in PyTorch. \
The demo took {seconds:.0f} s.

Where to look next:
  make ui                  show the run in MLflow: curves, plots, the model
  make experiments         compare this run with others
  make && ./mamba models/mnist_mamba.bin models/example_input.bin
                           run the shipped MNIST model, without Python
  make repro               run the whole pipeline on MNIST
  .venv/bin/dvc exp apply {name}
                           copy its files to your work tree"""
IDENTITY = {"NAME": "MNIST Mamba demo", "EMAIL": "demo@localhost"}


def environment() -> dict[str, str]:
    """Return this process's environment, with an identity for Git if the user has none."""
    env = dict(os.environ)
    for field, value in IDENTITY.items():
        known = subprocess.run(["git", "config", f"user.{field.lower()}"], capture_output=True)
        if known.returncode:
            for role in ("AUTHOR", "COMMITTER"):
                env[f"GIT_{role}_{field}"] = env.get(f"GIT_{role}_{field}") or value
    return env


def run_experiment(env: dict[str, str]) -> None:
    """Run the pipeline as a DVC experiment.

    Raises:
        RuntimeError: a stage failed; its output is above.
    """
    command = ["dvc", "exp", "run", "--temp", "--force", "--name", NAME]
    for key, value in SETTINGS.items():
        command += ["--set-param", f"{key}={value}"]
    if subprocess.run(command, env=env).returncode:
        raise RuntimeError(f"the pipeline failed: {' '.join(command)}")


def result(path: str) -> Any:
    """Return a JSON file of the current commit's demo."""
    head = git("rev-parse", "HEAD").strip()
    # DVC names an experiment's ref after the commit that it started from.
    return json.loads(git("show", f"refs/exps/{head[:2]}/{head[2:]}/{NAME}:{path}"))


def check_repository() -> None:
    """Check that DVC can store an experiment, which is a commit, in this repository.

    Raises:
        RuntimeError: the repository is a shallow clone.
    """
    if git("rev-parse", "--is-shallow-repository").strip() == "true":
        raise RuntimeError(
            "DVC cannot store experiments in a shallow clone: run `git fetch --unshallow` first"
        )


def main() -> None:
    """Run the demo and print its results."""
    command.parser(__doc__ or "").parse_args()
    started = time.monotonic()
    check_repository()
    run_experiment(environment())
    print(
        SUMMARY.format(
            scores=result("metrics/eval.json"),
            us=result("metrics/benchmark.json")["us_per_image"],
            seconds=time.monotonic() - started,
            name=NAME,
        )
    )


if __name__ == "__main__":
    command.run(main)
