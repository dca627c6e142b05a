"""What a promotion renews: the shipped model, its card and example, and the README's results."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.stats import binomtest

from mnist_mamba.atomic_write import write_bytes
from pipeline.common import paths
from pipeline.common.generated_tables import with_table
from pipeline.common.params import Params
from pipeline.export import export_image

MODELS = Path("models")
CARD = MODELS / "README.md"
EXAMPLE = MODELS / "example_input.bin"
README = Path("README.md")
LOCK = Path("dvc.lock")
TABLE = "results"

CONFIDENCE = 0.95
"""Of `interval`."""


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


def interval(correct: int, n: int) -> tuple[float, float]:
    """Wilson's interval of the share of right answers, had other images been drawn."""
    low, high = binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def locked_md5s(root: Path = Path()) -> dict[str, str]:
    """MD5 of each output by its path, as dvc.lock has them."""
    stages = yaml.safe_load((root / LOCK).read_text())["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


def locked_params(root: Path = Path()) -> dict[str, Any]:
    """Params and sections of them by dotted names, as dvc.lock's stages last ran with them."""
    stages = yaml.safe_load((root / LOCK).read_text())["stages"].values()
    return {
        name: value
        for stage in stages
        for params in stage.get("params", {}).values()
        for name, value in params.items()
    }


def model_card(params: Params, root: Path = Path()) -> str:
    """models/README.md, from the params, metrics and lock in `root`.

    Raises:
        FileNotFoundError: a file of these is missing.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    metrics = {
        file.stem: json.loads(file.read_text())
        for file in sorted((root / paths.METRICS).glob("*.json"))
    }
    scores = metrics["eval"]
    return environment.get_template("model_card.md.j2").render(
        params=params.model_dump(mode="json"),
        scores=scores,
        interval=interval(scores["correct"], scores["n_test"]),
        train=metrics["train"],
        benchmark=metrics["benchmark"],
        seeds=metrics.get("seeds", {}),
        md5=locked_md5s(root),
    )


@dataclasses.dataclass(frozen=True)
class Renewal:
    """New contents of all files that a promotion changes, by their paths."""

    contents: dict[Path, bytes]

    def write(self) -> None:
        """Write them, each whole or not at all."""
        for path, content in self.contents.items():
            write_bytes(path, content)


def prepare(params: Params) -> Renewal:
    """The model, the first test image, the card and the README with its table; writes nothing.

    Raises:
        ValueError: the README has no place for the table, or a metrics file is no JSON.
        KeyError: a metrics file lacks a figure.
        OSError: a file is missing.
    """
    with tempfile.TemporaryDirectory() as scratch:
        example = Path(scratch) / EXAMPLE.name
        export_image("test", 0, example)
        image = example.read_bytes()
    readme = with_table(README.read_text(), TABLE, results_table(paths.METRICS))
    return Renewal(
        {
            MODELS / paths.MODEL.name: paths.MODEL.read_bytes(),
            EXAMPLE: image,
            CARD: model_card(params).encode(),
            README: readme.encode(),
        }
    )
