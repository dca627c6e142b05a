"""`make demo`: the real pipeline on the digits inside scikit-learn, in a copy of the project.

The copy is DVC's (`dvc exp run --temp`), so the work tree stays as it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any

from pipeline.common import command

NAME = "demo"
SETTINGS = {
    "data.dataset": "digits",
    "data.resize": "28",
    "train.epochs": "30",
    "train.batch_size": "32",
    "train.lr": "0.003",
}
SUMMARY = """
The C engine read {scores[n_test]} test digits and got {scores[accuracy]:.2%} right.
PyTorch agrees: {scores[parity][prediction_mismatches]} predictions differ, and no logit by more \
than {scores[parity][max_abs_logit_diff]:.1e}.
One digit takes {us[engine][b1]:.0f} us in C and {us[pytorch_eager][b1]:.0f} us in PyTorch; \
everything took {seconds:.0f} s.

Where to look next:
  make ui                  the run in MLflow: curves, figures, the model
  make && ./mamba models/mnist_mamba.bin models/example_input.bin
                           the shipped MNIST model, without any Python
  make repro               the whole pipeline on MNIST
  .venv/bin/dvc exp show   this run beside others
  .venv/bin/dvc exp apply {name}
                           its files in your work tree"""
IDENTITY = {"NAME": "MNIST Mamba demo", "EMAIL": "demo@localhost"}


def environment() -> dict[str, str]:
    """This process's environment, with an identity for Git where the user has none yet."""
    env = dict(os.environ)
    for field, value in IDENTITY.items():
        known = subprocess.run(["git", "config", f"user.{field.lower()}"], capture_output=True)
        if known.returncode:
            env.setdefault(f"GIT_AUTHOR_{field}", value)
            env.setdefault(f"GIT_COMMITTER_{field}", value)
    return env


def run_experiment(env: dict[str, str]) -> None:
    """Run the pipeline as a DVC experiment.

    Raises:
        RuntimeError: a stage failed; its output stands above.
    """
    command = ["dvc", "exp", "run", "--temp", "--force", "--name", NAME]
    for key, value in SETTINGS.items():
        command += ["--set-param", f"{key}={value}"]
    if subprocess.run(command, env=env).returncode:
        raise RuntimeError(f"the pipeline failed: {' '.join(command)}")


def result(path: str) -> Any:
    """A JSON file as the demo of the current commit left it.

    Raises:
        RuntimeError: there is no such experiment.
    """
    head = _git("rev-parse", "HEAD")
    # DVC files an experiment under the commit that it started from.
    return json.loads(_git("show", f"refs/exps/{head[:2]}/{head[2:]}/{NAME}:{path}"))


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def check_repository() -> None:
    """DVC keeps an experiment as a commit, which takes a repository with its history.

    Raises:
        RuntimeError: this is no such repository.
    """
    if _git("rev-parse", "--is-shallow-repository") == "true":
        raise RuntimeError(
            "this is a shallow clone, in which DVC keeps no experiments: git fetch --unshallow"
        )


def main() -> None:
    """Run the demo and say what came of it."""
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
