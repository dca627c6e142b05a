"""The model of a run in MLflow: logged with the run, registered only by a promotion.

The model is a pyfunc around the C engine (serving.py). It contains all files that it needs: the
model file, the engine's library and the package mnist_mamba, of which serving.py imports modules
that need only NumPy and, for pictures, Pillow.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

import mnist_mamba
from mnist_mamba.data.idx import read_images
from pipeline.common import paths
from pipeline.common.content_key import content_key, file_md5
from pipeline.common.params import Params
from pipeline.tracking import client as tracking
from pipeline.tracking.client import KEY_TAG, TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import ModelSignature

logger = logging.getLogger(__name__)

SERVING = Path(__file__).with_name("serving.py")
PACKAGE = Path(mnist_mamba.__file__).parent
SCORES = ("eval/accuracy", "eval/nll", "eval/ece")
"""Metrics of the run that MLflow also shows with the model."""
BUNDLE_TAG = "bundle_md5"
"""Tag with a hash of all files in the model, so that equal models are logged once."""


def log(client: MlflowClient, run: Run, params: Params) -> LoggedModel:
    """Return the run's model with the current files; log it first if the run lacks it.

    Raises:
        OSError: a file of the model is missing; the stages before `track` write them.
    """
    import mlflow
    import PIL
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    from pipeline.tracking import serving

    bundle = _bundle_md5()
    if known := _find(client, run, bundle):
        return known
    model = client.create_logged_model(
        run.info.experiment_id,
        name=params.tracking.model_name,
        source_run_id=run.info.run_id,
        tags={BUNDLE_TAG: bundle, KEY_TAG: run.data.tags[KEY_TAG]},
        params=dict(run.data.params),
    )
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    _log_scores(client, run, model)
    signature, image = _signature_and_example()
    with _process_default():
        # Without a run, of which it would log all metrics again.
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            model_id=model.model_id,
            python_model=str(SERVING),
            artifacts={serving.MODEL: str(paths.MODEL), serving.LIBRARY: str(paths.ENGINE_LIBRARY)},
            code_paths=[str(PACKAGE)],
            signature=signature,
            input_example=image,
            # Without a list MLflow would search for imports.
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"numpy=={np.__version__}",
                f"pillow=={PIL.__version__}",
            ],
        )
    return model


def _log_scores(client: MlflowClient, run: Run, model: LoggedModel) -> None:
    """Log the run's scores on the test images as the model's."""
    from mlflow.entities import Metric

    digest = file_md5(paths.images(paths.PREPARED, "test"))
    links = {"model_id": model.model_id, "dataset_name": "test", "dataset_digest": digest}
    scores = [
        # The run's own time, or its history would get the value again.
        Metric(known.key, known.value, known.timestamp, known.step, **links)
        for name in SCORES
        for known in client.get_metric_history(run.info.run_id, name)[-1:]
    ]
    client.log_batch(run.info.run_id, metrics=scores)


def _find(client: MlflowClient, run: Run, bundle: str) -> LoggedModel | None:
    """Return the run's newest complete model with this bundle, or None.

    A run may have several models: the engine may change and change back.
    """
    for model in client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    ):
        if str(model.status) == "READY" and model.tags.get(BUNDLE_TAG) == bundle:
            return model
    return None


def _bundle_md5() -> str:
    files = [paths.MODEL, paths.ENGINE_LIBRARY, SERVING, *sorted(PACKAGE.rglob("*.py"))]
    return hashlib.md5(json.dumps([file_md5(file) for file in files]).encode()).hexdigest()


def _signature_and_example() -> tuple[ModelSignature, Any]:
    """Return the shape and type of the answer, and the first test image."""
    from mlflow.models import infer_signature

    classes = json.loads(paths.DATA_INFO.read_text(encoding="utf-8"))["n_classes"]
    image = read_images(paths.images(paths.PREPARED, "test"))[:1] / np.float32(255)
    answer = {
        "prediction": np.zeros(1, np.int64),
        "class": np.array(["0"]),
        "probabilities": np.zeros((1, classes)),
    }
    return infer_signature(None, answer), image


def logged_model(params: Params) -> LoggedModel:
    """Return the current content's model with the current files.

    Raises:
        TrackingError: MLflow has no such run, or the run has no such model.
        OSError: a file of the model is missing.
    """
    bundle = _bundle_md5()
    with tracking.mlflow_errors():
        client, experiment = tracking.connect(params)
        key = content_key(params)
        run = tracking.find(client, experiment, key)
        model = _find(client, run, bundle) if run else None
        if model is None:
            raise TrackingError(
                f"experiment {params.tracking.experiment} in MLflow has no model with content key "
                f"{key} and the present {paths.MODEL} and engine: run `make track`"
            )
        return model


def register(params: Params, name: str, alias: str) -> str:
    """Register the current content's model under a name, and point the alias at it.

    Returns:
        The model's version; a model that is registered already keeps its version.
    """
    model = logged_model(params)
    with tracking.mlflow_errors():
        client, _ = tracking.connect(params)
        with tracking.project_lock():
            version = _version(client, name, model)
            client.set_registered_model_alias(name, alias, version)
    logger.info("MLflow: version %s of %s has the alias %s", version, name, alias)
    return version


def _version(client: MlflowClient, name: str, model: LoggedModel) -> str:
    """Return the model's version; register it first if needed."""
    import mlflow

    for known in client.search_model_versions(f"name = '{name}'"):
        if known.source == model.model_uri:
            return str(known.version)
    with _process_default():
        created = mlflow.register_model(model.model_uri, name, tags={KEY_TAG: model.tags[KEY_TAG]})
    return str(created.version)


def _process_default() -> Any:
    """Return a context in which functions of MLflow that take no client use our database."""
    return mock.patch.dict(os.environ, MLFLOW_TRACKING_URI=tracking.tracking_uri())
