"""`make publish`: renew models/ and the README's results from what the pipeline has made."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from mnist_mamba.files import replacing, write_text
from pipeline import paths, stage
from pipeline.documents import with_table
from pipeline.export import export_image

logger = logging.getLogger(__name__)

MODELS = Path("models")
README = Path("README.md")
TABLE = "results"


def results_table(metrics: Path) -> str:
    """The README's table from the files in `metrics`."""
    files = {name: json.loads((metrics / f"{name}.json").read_text()) for name in _FILES}
    lines = ["| figure | value | stands in | made by |", "|---|---:|---|---|"]
    for figure, value, name in _rows(**files):
        lines.append(f"| {figure} | {value} | `metrics/{name}.json` | `{_FILES[name]}` |")
    return "\n".join(lines) + "\n"


_FILES = {"eval": "make repro", "train": "make repro", "benchmark": "dvc repro -sf benchmark"}
"""The metrics files, and what makes each."""


def _rows(
    eval: dict[str, Any],  # noqa: A002  (the file's name)
    train: dict[str, Any],
    benchmark: dict[str, Any],
) -> list[tuple[str, str, str]]:
    us, parity = benchmark["us_per_image"], eval["parity"]
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
        ("C engine, one image (µs)", f"{us['engine']['b1']:,.0f}", "benchmark"),
        ("PyTorch eager, one image (µs)", f"{us['pytorch_eager']['b1']:,.0f}", "benchmark"),
        ("C engine, an image of 100 (µs)", f"{us['engine']['b100']:,.0f}", "benchmark"),
        ("PyTorch eager, an image of 100 (µs)", f"{us['pytorch_eager']['b100']:,.0f}", "benchmark"),
        ("opening and checking the file (µs)", f"{benchmark['load_us']:,.0f}", "benchmark"),
    ]


def main() -> None:
    """Copy the model, export the first test image, rewrite the table."""
    stage.parser(__doc__ or "").parse_args()
    with replacing(MODELS / paths.MODEL.name) as temporary:
        shutil.copyfile(paths.MODEL, temporary)
    export_image("test", 0, MODELS / "example_input.bin")
    table = results_table(paths.METRICS)
    write_text(README, with_table(README.read_text(), TABLE, table))
    logger.info("models/ and the README's results are those of the last run")


if __name__ == "__main__":
    stage.run(main)
