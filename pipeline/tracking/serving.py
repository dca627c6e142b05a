"""The model that MLflow serves: a pyfunc that calls the C engine.

pipeline/tracking/model.py bundles this file with the model file, the engine's library and the
modules of mnist_mamba that are imported here. MLflow runs it wherever the model is loaded, without
PyTorch, a compiler or a package index, so it must import nothing else of the project. NumPy is
there, as MLflow depends on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from numpy.typing import NDArray

from mnist_mamba.engine import Engine

MODEL, LIBRARY = "model", "library"
"""Names of the bundled files among MLflow's artifacts."""


class EngineModel(PythonModel):  # type: ignore[misc]  # mlflow has no types here
    """Classifier of images [n, height, width(, channels)], float32 in [0, 1].

    The signature does not allow uint8: MLflow would turn a pixel of 0.5 into 0 before any check.
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
        """Return the most likely class of each image and the probabilities of all classes.

        Raises:
            MlflowException: the engine refuses the images; the server answers 400.
        """
        _check_range(model_input)
        try:
            probabilities = self._engine.probabilities(model_input)
        except ValueError as error:
            raise _refusal(str(error)) from error
        return {"prediction": probabilities.argmax(axis=1), "probabilities": probabilities}


def _check_range(images: NDArray[Any]) -> None:
    wrong = np.argwhere(~((images >= 0) & (images <= 1)))  # also finds NaN
    if len(wrong):
        place = "".join(f"[{index}]" for index in wrong[0])
        raise _refusal(
            f"inputs{place}: got {images[tuple(wrong[0])]:g}, expected 0 (background) to 1; "
            "divide pixels of 0 to 255 by 255"
        )


def _refusal(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


set_model(EngineModel())
