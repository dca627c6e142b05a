"""The model that MLflow serves: a pyfunc that calls the C engine.

pipeline/tracking/model.py bundles this file with the model file, the engine's library and the
modules of mnist_mamba that are imported here. MLflow runs it wherever the model is loaded, without
PyTorch, a compiler or a package index, so it must import nothing else of the project. NumPy is
there, as MLflow depends on it; pictures also need Pillow.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from numpy.typing import NDArray

from mnist_mamba.engine import Engine, EngineError
from mnist_mamba.engine.pictures import read_picture

MODEL, LIBRARY = "model", "library"
"""Names of the bundled files among MLflow's artifacts."""


class EngineModel(PythonModel):  # type: ignore[misc]  # mlflow has no types here
    """Classifier of images and pictures.

    The input is one array: images [n, height, width(, channels)] of float32 in [0, 1] or of uint8,
    or [n] texts, picture files in base64, which are prepared for the model (docs/pictures.md).

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
            MlflowException: the input is refused; the server answers 400.
        """
        texts = isinstance(model_input, list) and any(isinstance(one, str) for one in model_input)
        # In an array of numpy's own texts each would take as much memory as the longest.
        images = np.asarray(model_input, dtype=object if texts else None)
        if images.dtype.kind in "OSU":
            images = self._read_pictures(images)
        elif images.dtype != np.uint8:
            images = images.astype(np.float32)
            _check_range(images)
        try:
            probabilities = self._engine.probabilities(images)
        except ValueError as error:
            raise _refusal(str(error)) from error
        prediction = probabilities.argmax(axis=1)
        names = np.array(self._engine.class_names)[prediction]
        return {"prediction": prediction, "class": names, "probabilities": probabilities}

    def _read_pictures(self, texts: NDArray[Any]) -> NDArray[np.uint8]:
        if texts.ndim != 1:
            raise _refusal(
                f"inputs: got texts of shape {texts.shape}, expected a list of pictures in base64"
            )
        prepared = []
        for index, text in enumerate(texts.tolist()):
            if not isinstance(text, str):
                got = type(text).__name__
                raise _refusal(f"inputs[{index}]: got {got}, expected a picture file in base64")
            try:
                content = base64.b64decode(text.rpartition(",")[2], validate=True)  # or a data URL
                picture = read_picture(io.BytesIO(content))
            except ValueError as error:
                message = f"inputs[{index}]: {error}; expected a picture file in base64"
                raise _refusal(message) from error
            try:
                prepared.append(self._engine.prepare(picture))
            except EngineError as error:
                raise _refusal(f"inputs[{index}]: {error}") from error
        return np.array(prepared)


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
