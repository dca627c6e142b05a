"""The model that MLflow serves: a pyfunc that calls the C engine.

pipeline/tracking/model.py bundles this file with the model file, the engine's library and the
modules of mnist_mamba that are imported here. MLflow runs it wherever the model is loaded, without
PyTorch, a compiler or a package index, so it must import nothing else of the project. NumPy is
there, as MLflow depends on it; pictures also need Pillow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from numpy.typing import NDArray

from mnist_mamba.classify import read_inputs
from mnist_mamba.engine import Engine

MODEL, LIBRARY = "model", "library"
"""Names of the bundled files among MLflow's artifacts."""


class Refusal(MlflowException):  # type: ignore[misc]  # mlflow has no types here
    """Input that is refused, in one line; the server answers 400.

    MLflow's server replaces an error's message by one that repeats the whole input, so the first
    message stays.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "message" or not hasattr(self, name):
            super().__setattr__(name, value)


class EngineModel(PythonModel):  # type: ignore[misc]  # mlflow has no types here
    """Classifier of images and pictures.

    The input is that of `mnist_mamba.classify.read_inputs`: an array, lists, or a data frame of
    images or of picture files. From Spark it is a data frame of one column.

    The signature has no input: MLflow would convert one type to the other before any check.
    """

    # MLflow warns if model_input has no type hint, but would derive a signature from one. The model
    # is logged with its own signature.
    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        """Open the bundled model with the bundled library.

        Each request has one thread: the server runs requests at the same time.
        """
        artifacts = context.artifacts
        self._engine = Engine(artifacts[MODEL], threads=1, library=artifacts[LIBRARY])

    def predict(  # type: ignore[no-untyped-def]
        self, context: PythonModelContext, model_input, params: dict[str, Any] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return the most likely class of each image, its name, and all probabilities.

        Raises:
            Refusal: the input is refused.
        """
        try:
            probabilities = self._engine.probabilities(read_inputs(self._engine, model_input))
        except ValueError as error:
            raise Refusal(str(error)) from error
        prediction = probabilities.argmax(axis=1)
        names = np.array(self._engine.class_names)[prediction]
        return {"prediction": prediction, "class": names, "probabilities": probabilities}


set_model(EngineModel())
