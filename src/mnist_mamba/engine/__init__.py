"""The shipped side: the model file, and the C engine from Python."""

from mnist_mamba.engine.binding import Engine, EngineError
from mnist_mamba.engine.format import FormatError, ModelFile, read_model, write_model

__all__ = ["Engine", "EngineError", "FormatError", "ModelFile", "read_model", "write_model"]
