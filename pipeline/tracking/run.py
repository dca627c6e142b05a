"""A run in MLflow, brought up to date with the files: whole and idempotent."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
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

RESULTS = ("train", "eval", "benchmark")
"""The metrics files of a run; metrics/ also has those of series and of timings beside others."""


def upsert(params: Params) -> str:
    """Bring this content's run up to date with the files, creating it where it is missing.

    Returns:
        The content key, which is the same whenever the content is.

    Raises:
        TrackingError: MLflow did not take it; the results themselves are there.
    """
    key = content_key(params)
    with tracking.reported():
        client, experiment = tracking.connect(params)
        run_id = tracking.find_or_create(client, experiment, params, key).info.run_id
        tracking.log_points(client, run_id, json.loads(paths.CURVES.read_text()))
        _log_metrics(client, run_id)
        _log_datasets(client, run_id)
        for folder, files in artifacts().items():
            for file in files:
                client.log_artifact(run_id, str(file), folder)
        run = client.get_run(run_id)
        model = tracked_model.log(client, run, params)
        client.set_tag(run_id, "mlflow.note.content", description(run, params))
        client.set_tag(run_id, tracking.PROGRESS_TAG, "whole")
        if run.info.status != "FINISHED":  # else its end, and so its duration, would move
            client.set_terminated(run_id, "FINISHED")
    logger.info(
        "MLflow: run %s of %s, model %s",
        run.info.run_name,
        params.tracking.experiment,
        model.model_uri,
    )
    return key


def artifacts() -> dict[str, list[Path]]:
    """Files of a run, by their folder in MLflow; those that are not there are left out."""
    wanted = {
        "": [Path("params.yaml"), Path("dvc.lock"), Path("dvc.yaml")],
        "metrics": [paths.METRICS / f"{name}.json" for name in RESULTS],
        "figures": sorted(paths.PLOTS.glob("*.png")),
        "plots": [paths.CURVES, paths.PREDICTIONS],
    }
    return {folder: [file for file in files if file.is_file()] for folder, files in wanted.items()}


def description(run: Run, params: Params) -> str:
    """What the run is, what came of it and how to have it again, in Markdown."""
    scores, trained = (
        json.loads((paths.METRICS / f"{name}.json").read_text()) for name in ("eval", "train")
    )
    model = params.model
    validated = f", {trained['val']['accuracy']:.2%} on validation" if "val" in trained else ""
    commit = run.data.tags.get(tracking.COMMIT_TAG)
    experiment = run.data.tags.get("dvc.experiment")
    again = [f"`git checkout {commit[:12]}`"] if commit else []
    again += ["this run's `params.yaml` in place", "`dvc repro`"]
    applied = f" Or take its files: `dvc exp apply {experiment}`." if experiment else ""
    return (
        f"The C engine reads **{scores['accuracy']:.2%}** of {scores['n_test']:,} test images of "
        f"{params.data.dataset} right{validated}.\n\n"
        f"{trained['parameters']:,} parameters: {model.n_layers} layers of width {model.d_model}, "
        f"{model.d_state} states, stem {model.stem}, direction {model.direction}, A {model.a}. "
        f"{trained['epochs']} epochs of {params.train.optimizer}, peak rate {params.train.lr:g}, "
        f"seed {params.train.seed}.\n\n"
        f"Again: {', '.join(again)}.{applied}"
    )


def _log_metrics(client: MlflowClient, run_id: str) -> None:
    """The figures of the results, under their file's name; logged again only if changed."""
    from mlflow.entities import Metric

    known = client.get_run(run_id).data.metrics
    now = int(time.time() * 1000)
    new = [Metric(name, value, now, 0) for name, value in _figures() if known.get(name) != value]
    if new:
        client.log_batch(run_id, metrics=new)


def _figures() -> Iterator[tuple[str, float]]:
    for stem in RESULTS:
        file = paths.METRICS / f"{stem}.json"
        content = json.loads(file.read_text()) if file.is_file() else {}
        for name, value in tracking.flatten(content, f"{stem}/").items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield name.replace(".", "/"), float(value)


def _log_datasets(client: MlflowClient, run_id: str) -> None:
    """The prepared splits as MLflow data sets; their digest is DVC's MD5 of the images."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = client.get_run(run_id).inputs
    entries = inputs.dataset_inputs if inputs else []
    known = {(entry.dataset.name, entry.dataset.digest) for entry in entries}
    info = json.loads(paths.DATA_INFO.read_text())
    new = []
    for part, counts in info["splits"].items():
        file = paths.images(paths.PREPARED, part)
        digest = file_md5(file)
        if (part, digest) in known:
            continue
        dataset = Dataset(
            name=part,
            digest=digest,
            source_type="local",
            source=json.dumps({"uri": str(file)}),
            profile=json.dumps(
                {
                    "num_rows": counts["n"],
                    "per_class": counts["per_class"],
                    "labels_md5": file_md5(paths.labels(paths.PREPARED, part)),
                }
            ),
        )
        new.append(DatasetInput(dataset, [InputTag("mlflow.data.context", part)]))
    if new:
        client.log_inputs(run_id, new)
