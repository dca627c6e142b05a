"""The model of a run in MLflow: logged with the run, registered only by a promotion.

The model is a pyfunc around the C engine (serving.py). It contains all files that it needs: the
model file, the engine's library and the package mnist_mamba, of which serving.py imports modules
that need only NumPy and, for pictures, Pillow.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import mnist_mamba
from mnist_mamba.data.idx import read_images
from pipeline.common import paths
from pipeline.common.content_key import content_key, file_md5
from pipeline.common.params import Params
from pipeline.tracking import client as tracking
from pipeline.tracking import served
from pipeline.tracking.client import KEY_TAG, TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import ModelSignature

logger = logging.getLogger(__name__)

SERVING = Path(__file__).with_name("serving.py")
PACKAGE = Path(mnist_mamba.__file__).parent
FILES = (paths.MODEL, paths.ENGINE_LIBRARY, paths.DATA_INFO, paths.images(paths.PREPARED, "test"))
"""Results that a model is made of; the stages before `track` write them."""
SCORES = ("eval/accuracy", "eval/nll", "eval/ece")
"""Metrics of the run that MLflow also shows with the model."""
DIGEST_TAG = "files_sha256"
"""Tag with a hash of the model's files. It only says which models are worth fetching: anybody who
may write to the server can copy it."""


class Bundle(NamedTuple):
    """The model of the files at hand."""

    folder: Path
    """The model as MLflow stores it."""
    image: NDArray[np.float32]
    """The example, the first test image, [1, height, width(, channels)]."""
    contents: dict[str, Any]
    """Arguments with which MLflow saves the model."""

    def check(self, uri: str) -> str:
        """Check that MLflow serves this model, byte for byte, and that it answers the example.

        Nothing of a foreign model is run.

        Returns:
            The served files' checksums, as `sha256sum` prints them.

        Raises:
            TrackingError: it is another model, or cannot be fetched, loaded or asked.
        """
        with tempfile.TemporaryDirectory() as scratch:
            copy = served.fetch(uri, Path(scratch, "served"))
            served.check_same(uri, copy, self.folder)
            served.check_answer(uri, copy, self.folder, self.image)
            return served.checksums(copy)


@contextmanager
def bundle() -> Iterator[Bundle]:
    """Yield the model of the files at hand.

    Raises:
        OSError: a file of the model is missing; the stages before `track` write them.
    """
    import mlflow
    import PIL

    from pipeline.tracking import serving

    signature, image = _signature_and_example()
    contents = {
        # Relative, because MLflow notes the path in the model.
        "python_model": os.path.relpath(SERVING),
        "artifacts": {serving.MODEL: str(paths.MODEL), serving.LIBRARY: str(paths.ENGINE_LIBRARY)},
        "code_paths": [str(PACKAGE)],
        "signature": signature,
        "input_example": image,
        # Without a list MLflow would search for imports.
        "pip_requirements": [
            f"mlflow=={mlflow.__version__}",
            f"numpy=={np.__version__}",
            f"pillow=={PIL.__version__}",
        ],
    }
    logging.getLogger("mlflow.pyfunc").setLevel(
        logging.WARNING
    )  # it says that it checks an example
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        with served.loading():  # to check the example
            mlflow.pyfunc.save_model(folder, **contents)
        yield Bundle(folder, image, contents)


def log(client: MlflowClient, run: Run, params: Params) -> LoggedModel:
    """Return the run's model with the current files; log it if the run lacks it or has lost it.

    Raises:
        OSError: a file of the model is missing; the stages before `track` write them.
        TrackingError: MLflow does not serve what was just logged.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    with bundle() as ours:
        if known := _find(client, run, ours):
            return known
        model = client.create_logged_model(
            run.info.experiment_id,
            name=params.tracking.model_name,
            source_run_id=run.info.run_id,
            tags={DIGEST_TAG: served.digest(ours.folder), KEY_TAG: run.data.tags[KEY_TAG]},
            params=dict(run.data.params),
        )
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
        _log_scores(client, run, model)
        with tracking.process_default(), served.loading():
            # Without a run, of which it would log all metrics again.
            Model.log(
                artifact_path=None,
                flavor=mlflow.pyfunc,
                model_id=model.model_id,
                **ours.contents,
            )
        ours.check(model.model_uri)
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


def _find(client: MlflowClient, run: Run, ours: Bundle) -> LoggedModel | None:
    """Return the run's newest model that MLflow serves with our bytes, or None.

    A run may have several models: the engine may change and change back. A model with our digest
    but other bytes, or without files, is passed over with a warning.
    """
    digest = served.digest(ours.folder)
    of_run = f"source_run_id = '{run.info.run_id}'"
    for model in tracking.all_pages(client.search_logged_models, [run.info.experiment_id], of_run):
        claims_it = str(model.status) == "READY" and model.tags.get(DIGEST_TAG) == digest
        if claims_it and _serves(model.model_uri, ours):
            return model
    return None


def _serves(uri: str, ours: Bundle) -> bool:
    """Return whether MLflow serves our model under a URI; warn if it does not."""
    try:
        ours.check(uri)
    except Exception as error:  # MLflow and its stores raise errors of every kind
        logger.warning("%s is not used: %s", uri, tracking.one_line(error))
        return False
    return True


def _signature_and_example() -> tuple[ModelSignature, Any]:
    """Return the columns of the answer, which Spark takes from here, and the first test image."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    answer = Schema(
        [
            ColSpec(DataType.long, "prediction"),
            ColSpec(DataType.string, "class"),
            ColSpec(Array(DataType.double), "probabilities"),
        ]
    )
    image = read_images(paths.images(paths.PREPARED, "test"))[:1] / np.float32(255)
    return ModelSignature(outputs=answer), image


def logged_model(params: Params) -> LoggedModel:
    """Return the current content's model with the current files, as MLflow serves them.

    Raises:
        TrackingError: MLflow has no such run, or the run has no such model.
        OSError: a file of the model is missing.
    """
    tracking.check_files(FILES)
    with tracking.mlflow_errors(), bundle() as ours:
        return _logged_model(params, ours)


def _logged_model(params: Params, ours: Bundle) -> LoggedModel:
    client, experiment = tracking.connect(params)
    key = content_key(params)
    run = tracking.find(client, experiment, key)
    model = _find(client, run, ours) if run else None
    if model is None:
        raise TrackingError(
            f"experiment {params.tracking.experiment} in MLflow has no model with content key "
            f"{key} and the present {paths.MODEL} and engine: run `make track`"
        )
    return model


def register(params: Params, name: str, alias: str) -> tuple[str, str]:
    """Register the current content's model under a name, and point the alias at it.

    What the alias then serves is checked again. If that fails, the alias leads to the former
    champion again, or is removed if there was none.

    Returns:
        The model's version, and its files' checksums. A model that is registered already keeps its
        version.
    """
    tracking.check_files(FILES)
    with tracking.mlflow_errors("make promote"), bundle() as ours:
        model = _logged_model(params, ours)
        client, _ = tracking.connect(params)
        with tracking.project_lock():
            version = _version(client, name, model, ours)
            former = client.get_registered_model(name).aliases.get(alias)
            client.set_registered_model_alias(name, alias, version)
            try:
                checksums = ours.check(f"models:/{name}@{alias}")
            except BaseException as error:
                is_foreign = former == version and isinstance(error, served.ForeignModelError)
                _restore_alias(client, name, alias, None if is_foreign else former)
                raise
    logger.info("MLflow: version %s of %s has the alias %s", version, name, alias)
    return version, checksums


def _restore_alias(client: MlflowClient, name: str, alias: str, version: str | None) -> None:
    """Point an alias at its former version, or remove it; a failure is logged, not raised."""
    try:
        if version is None:
            client.delete_registered_model_alias(name, alias)
        else:
            client.set_registered_model_alias(name, alias, version)
    except Exception as error:  # the caller's error is the one to see
        logger.error(
            "MLflow: the alias %s of %s is not restored: %s; correct it by hand, expected: %s",
            alias,
            name,
            tracking.one_line(error),
            f"version {version}" if version else "no alias",
        )


def _version(client: MlflowClient, name: str, model: LoggedModel, ours: Bundle) -> str:
    """Return the model's version; register it first if needed."""
    import mlflow

    for known in tracking.all_pages(client.search_model_versions, f"name = '{name}'"):
        if known.source == model.model_uri and _serves(f"models:/{name}/{known.version}", ours):
            return str(known.version)
    with tracking.process_default():
        created = mlflow.register_model(model.model_uri, name, tags={KEY_TAG: model.tags[KEY_TAG]})
    return str(created.version)
