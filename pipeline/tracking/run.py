"""Bringing a run in MLflow up to date with the project's files, as often as one likes."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common import paths
from pipeline.common.content_key import content_key, file_md5
from pipeline.common.params import Params
from pipeline.tracking import client as tracking
from pipeline.tracking import model as tracked_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

RESULTS = {"train": "train", "eval": "eval", "benchmark": "wall_clock"}
"""The metrics files of a run, and the first part of their metrics' names in MLflow. It sorts these:
curves first, timings last. metrics/ also holds the files of series and of benchmarks."""
MAX_CLASS = 100
"""Number of characters of a class name in a metric's name, of which MLflow allows 250 in all."""


def upsert(params: Params, key: str | None = None) -> str:
    """Bring the current content's run up to date with the files, or create it.

    Args:
        params: the run's.
        key: its content key; None: that of the files at hand.

    Returns:
        The content key, which is equal for equal contents.

    Raises:
        FileNotFoundError: a file of the results is missing.
        TrackingError: MLflow failed.
    """
    key = key or content_key(params)
    tracking.check_files(_needed())
    with tracking.mlflow_errors():
        client, experiment = tracking.connect(params)
        run_id = tracking.find_or_create(client, experiment, params, key).info.run_id
        tracking.log_points(client, run_id, json.loads(paths.CURVES.read_text(encoding="utf-8")))
        tracking.log_metrics(client, run_id, _metrics())
        _log_datasets(client, run_id)
        for folder, files in artifacts().items():
            for file in files:
                client.log_artifact(run_id, str(file), folder)
        run = client.get_run(run_id)
        model = tracked_model.log(client, run, params)
        client.set_tag(run_id, "mlflow.note.content", description(run, params))
        client.set_tag(run_id, tracking.PROGRESS_TAG, "whole")
        # Another clone may have created one at the same moment. All clones keep the same one.
        first, *others = tracking.find_all(client, experiment, key)
        if first.info.run_id != run_id:
            client.delete_run(run_id)
            return upsert(params, key)
        for other in others:
            client.delete_run(other.info.run_id)
        # A finished run would get a new end time, and so another duration.
        if run.info.status != "FINISHED":
            client.set_terminated(run_id, "FINISHED")
    logger.info(
        "MLflow: run %s of %s, model %s",
        run.info.run_name,
        params.tracking.experiment,
        model.model_uri,
    )
    return key


def is_whole(params: Params, key: str) -> bool:
    """Return whether MLflow has all results of a content."""
    with tracking.mlflow_errors():
        client, experiment = tracking.connect(params)
        run = tracking.find(client, experiment, key)
        return run is not None and run.data.tags.get(tracking.PROGRESS_TAG) == "whole"


def _needed() -> Iterator[Path]:
    """Yield the results without which there is no run."""
    yield from (paths.CURVES, paths.METRICS / "train.json", paths.METRICS / "eval.json")
    yield from tracked_model.FILES
    for split in json.loads(paths.DATA_INFO.read_text(encoding="utf-8"))["splits"]:
        yield paths.images(paths.PREPARED, split)
        yield paths.labels(paths.PREPARED, split)


def artifacts() -> dict[str, list[Path]]:
    """Return the existing files of a run by their folder in MLflow."""
    wanted = {
        "": [Path("params.yaml"), Path("dvc.lock"), Path("dvc.yaml")],
        "metrics": [paths.METRICS / f"{name}.json" for name in ("data", "exit", *RESULTS)],
        "figures": [paths.EXAMPLES, paths.AUGMENTATION, *paths.FIGURES],
        "plots": [paths.CURVES, paths.PREDICTIONS],
    }
    return {folder: [file for file in files if file.is_file()] for folder, files in wanted.items()}


def description(run: Run, params: Params) -> str:
    """Return what the run is, its results and how to reproduce it, in Markdown."""
    scores, trained = (
        json.loads((paths.METRICS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("eval", "train")
    )
    model = params.model
    validated = f", {trained['val']['accuracy']:.2%} on validation" if "val" in trained else ""
    commit = run.data.tags.get(tracking.COMMIT_TAG)
    experiment = run.data.tags.get("dvc.experiment")
    steps = [f"`git checkout {commit[:12]}`"] if commit else []
    steps += ["copy this run's `params.yaml` into the project", "`dvc repro`"]
    applied = f" Or restore its files: `dvc exp apply {experiment}`." if experiment else ""
    return (
        f"The C engine classifies **{scores['accuracy']:.2%}** of {scores['n_test']:,} test images "
        f"({params.data.title}) correctly{validated}.\n\n"
        f"{trained['parameters']:,} parameters: {model.n_layers} layers of width {model.d_model}, "
        f"{model.d_state} states, stem {model.stem}, direction {model.direction}, A {model.a}. "
        f"{trained['epochs']} epochs of {params.train.optimizer}, peak learning rate "
        f"{params.train.lr:g}, "
        f"seed {params.train.seed}.\n\n"
        f"To reproduce: {', '.join(steps)}.{applied}"
    )


def _metrics() -> Iterator[tuple[str, float]]:
    """Yield the numbers of all metrics files by their names in MLflow."""
    for stem, prefix in RESULTS.items():
        file = paths.METRICS / f"{stem}.json"
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if classes := content.get("per_class"):
            content["per_class"] = dict(zip(metric_names(classes), classes.values(), strict=True))
        yield from tracking.metrics_of(content, prefix)


def metric_names(classes: Iterable[str]) -> list[str]:
    """Return class names as MLflow allows them in metrics; numbers if they would not differ."""
    names = [re.sub(r"[^\w :-]", "_", name)[:MAX_CLASS] for name in classes]
    return names if len({*names}) == len(names) else [f"class {i}" for i in range(len(names))]


def _log_datasets(client: MlflowClient, run_id: str) -> None:
    """Log the prepared splits as MLflow data sets; the digest is DVC's MD5 of the images."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    info = json.loads(paths.DATA_INFO.read_text(encoding="utf-8"))
    inputs = []
    for split, counts in info["splits"].items():
        file = paths.images(paths.PREPARED, split)
        profile = {
            "num_rows": counts["n"],
            "per_class": dict(zip(info["class_names"], counts["per_class"], strict=True)),
            "labels_md5": file_md5(paths.labels(paths.PREPARED, split)),
        }
        dataset = Dataset(
            name=split,
            digest=file_md5(file),
            source_type="local",
            source=json.dumps({"uri": str(file)}),
            profile=json.dumps(profile),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
    client.log_inputs(run_id, inputs)
