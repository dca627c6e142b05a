"""Files that a promotion updates: shipped model, example, model card and README's results."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.stats import binomtest

from mnist_mamba.atomic_write import write_bytes
from pipeline.common import dvc_lock, paths
from pipeline.common.generated_tables import with_table
from pipeline.common.params import Params
from pipeline.export import export_image

MODELS = Path("models")
CARD = MODELS / "README.md"
EXAMPLE = MODELS / "example_input.bin"
README = Path("README.md")
TABLE = "results"

CONFIDENCE = 0.95
"""Confidence level of `interval`."""


def results_table(metrics: Path) -> str:
    """Return the README's table of the files in the folder `metrics`."""
    files = {
        name: json.loads((metrics / f"{name}.json").read_text(encoding="utf-8")) for name in _FILES
    }
    lines = ["| metric | value | file | made by |", "|---|---:|---|---|"]
    for metric, value, name in _rows(**files):
        lines.append(f"| {metric} | {value} | `metrics/{name}.json` | `{_FILES[name]}` |")
    return "\n".join(lines) + "\n"


_FILES = {"eval": "make repro", "train": "make repro", "benchmark": "dvc repro -sf benchmark"}
"""The metrics files and the command that makes each."""


def _rows(
    eval: dict[str, Any],  # noqa: A002  (the file's name)
    train: dict[str, Any],
    benchmark: dict[str, Any],
) -> list[tuple[str, str, str]]:
    engine, eager = (benchmark["us_per_image"][name] for name in ("engine", "pytorch_eager"))
    parity = eval["parity"]
    validated = f"{train['val']['accuracy']:.2%}" if "val" in train else "(trained on them)"
    return [
        (f"accuracy on the {eval['n_test']:,} test images", f"{eval['accuracy']:.2%}", "eval"),
        ("predictions that differ from PyTorch's", f"{parity['prediction_mismatches']}", "eval"),
        ("largest difference of a logit", f"{parity['max_abs_logit_diff']:.1e}", "eval"),
        ("negative log-likelihood (nats)", f"{eval['nll']:.4f}", "eval"),
        ("expected calibration error", f"{eval['ece']:.4f}", "eval"),
        ("validation accuracy", validated, "train"),
        ("parameters learned", f"{train['parameters']:,}", "train"),
        ("model file (bytes)", f"{eval['model']['file_bytes']:,}", "eval"),
        ("C engine, batch of 1, per image (µs)", f"{engine['b1']:,.0f}", "benchmark"),
        ("PyTorch eager, batch of 1, per image (µs)", f"{eager['b1']:,.0f}", "benchmark"),
        ("C engine, batch of 100, per image (µs)", f"{engine['b100']:,.0f}", "benchmark"),
        ("PyTorch eager, batch of 100, per image (µs)", f"{eager['b100']:,.0f}", "benchmark"),
        ("opening and checking the file (µs)", f"{benchmark['load_us']:,.0f}", "benchmark"),
    ]


def interval(correct: int, n: int) -> tuple[float, float]:
    """Return Wilson's confidence interval of the accuracy for other images of the same kind."""
    low, high = binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def model_card(params: Params, root: Path = Path()) -> str:
    """Return models/README.md of the params, metrics and lock in `root`.

    Raises:
        FileNotFoundError: one of these files is missing.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    metrics = {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted((root / paths.METRICS).glob("*.json"))
    }
    scores = metrics["eval"]
    outputs = dvc_lock.outputs(dvc_lock.read_lock(root / dvc_lock.LOCK))
    return environment.get_template("model_card.md.j2").render(
        params=params.model_dump(mode="json"),
        scores=scores,
        interval=interval(scores["correct"], scores["n_test"]),
        train=metrics["train"],
        benchmark=metrics["benchmark"],
        seeds=metrics.get("seeds", {}),
        md5={path: out["md5"] for path, out in outputs.items()},
    )


@dataclasses.dataclass(frozen=True)
class Update:
    """New contents of all files that a promotion changes, by their paths."""

    contents: dict[Path, bytes]

    def write(self) -> None:
        """Write the files, each completely or not at all."""
        for path, content in self.contents.items():
            write_bytes(path, content)


def prepare(params: Params) -> Update:
    """Return the new model, example (the first test image), card and README; write nothing.

    Raises:
        ValueError: the README lacks the table's marks, or a metrics file is not JSON.
        KeyError: a metrics file lacks a figure.
        OSError: a file is missing.
    """
    with tempfile.TemporaryDirectory() as scratch:
        example = Path(scratch) / EXAMPLE.name
        export_image("test", 0, example)
        image = example.read_bytes()
    readme = with_table(README.read_text(encoding="utf-8"), TABLE, results_table(paths.METRICS))
    return Update(
        {
            MODELS / paths.MODEL.name: paths.MODEL.read_bytes(),
            EXAMPLE: image,
            CARD: model_card(params).encode(),
            README: readme.encode(),
        }
    )
