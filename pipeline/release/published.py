"""Files that a promotion updates: shipped model, example, model card and README's results."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.stats import binomtest

from pipeline.common import dvc_lock, paths
from pipeline.common.generated_tables import with_table
from pipeline.common.params import Params
from pipeline.export import export_image
from pipeline.series.engine_speed import mean_speed
from pipeline.series.trainings import is_of, plus_minus

MODELS = Path("models")
CARD = MODELS / "README.md"
EXAMPLE = MODELS / "example_input.bin"
ALIAS = "champion"
"""Alias of the promoted model in MLflow's registry."""
CHAMPION = MODELS / "champion.sha256"
"""Checksums of all files of that model, as `sha256sum` prints them."""
README = Path("README.md")
TABLE = "results"

CONFIDENCE = 0.95
"""Confidence level of `interval`."""


def results_table(root: Path = Path()) -> str:
    """Return the README's results, generated from metrics and lock in `root`."""
    files = _read_all(root)
    scores, train, benchmark = (files[name] for name in ("eval", "train", "benchmark"))
    n_test, us = f"{scores['n_test']:,}", benchmark["us_per_image"]
    accuracy, mean_us = f"{scores['accuracy']:.2%}", us["engine"]["b1"]
    rows = [("`models/mnist_mamba.bin`", train["parameters"], accuracy, mean_us, "repro")]
    runs = files.get("seeds", {"runs": {}})["runs"]
    series_us = mean_speed(files.get("seeds_speed", {"us_per_image": {}})["us_per_image"], runs)
    for name, run in runs.items():
        timing = series_us.get(name, {}).get("b1")
        rows.append((f"`{name}`", run["params"], plus_minus(run, ".2%"), timing, "seeds"))
    lines = [
        f"| model | parameters | accuracy, {n_test} test images | per image (µs) | command |",
        "|---|---:|---:|---:|---|",
    ]
    for name, parameters, accuracy, timing, target in rows:
        timed = "" if timing is None else f"{timing:,.0f}"
        lines.append(f"| {name} | {parameters:,} | {accuracy} | {timed} | `make {target}` |")
    parity = scores["parity"]
    validated = f"{train['val']['accuracy']:.2%}" if "val" in train else "(no images)"
    lines += [
        "",
        f"The first row is the shipped file: {scores['model']['file_bytes']:,} bytes, validation "
        f"accuracy {validated}.",
        f"On the test images, {parity['prediction_mismatches']} predictions differ from "
        f"PyTorch's, and no logit by more than {parity['max_abs_logit_diff']:.1e}.",
    ]
    if "engine_all_members" in us:
        lines += [
            f"It asks {scores['early_exit']['members_asked']['mean']:.2f} of its "
            f"{len(scores['early_exit']['members_asked']['share'])} members on average; all of "
            f"them take {us['engine_all_members']['b1']:,.0f} µs.",
        ]
    return "\n".join(lines) + "\n"


def _read_all(root: Path) -> dict[str, Any]:
    """Return the metrics files by name, without those of another data set than dvc.lock's."""
    lock = dvc_lock.read_lock(root / dvc_lock.LOCK)
    files = {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in (root / paths.METRICS).glob("*.json")
    }
    return {name: content for name, content in files.items() if is_of(content, lock)}


def interval(correct: int, n: int) -> tuple[float, float]:
    """Return Wilson's confidence interval of the accuracy for other images of the same kind."""
    low, high = binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def model_card(params: Params, root: Path = Path()) -> str:
    """Return models/README.md of the params, metrics and lock in `root`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    metrics = _read_all(root)
    scores = metrics["eval"]
    outputs = dvc_lock.outputs(dvc_lock.read_lock(root / dvc_lock.LOCK))
    return environment.get_template("model_card.md.j2").render(
        params=params.model_dump(mode="json"),
        title=params.data.title,
        scores=scores,
        interval=interval(scores["correct"], scores["n_test"]),
        train=metrics["train"],
        benchmark=metrics["benchmark"],
        seeds=metrics.get("seeds", {"runs": {}})["runs"],
        md5={path: out["md5"] for path, out in outputs.items()},
    )


def prepare(params: Params) -> dict[Path, bytes]:
    """Return the new model, example (the first test image), card and README; write nothing.

    Returns:
        The contents of all files that a promotion changes, by their paths.
    """
    with tempfile.TemporaryDirectory() as scratch:
        example = Path(scratch) / EXAMPLE.name
        export_image("test", 0, example)
        image = example.read_bytes()
    readme = with_table(README.read_text(encoding="utf-8"), TABLE, results_table())
    return {
        MODELS / paths.MODEL.name: paths.MODEL.read_bytes(),
        EXAMPLE: image,
        CARD: model_card(params).encode(),
        README: readme.encode(),
    }
