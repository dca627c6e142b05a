"""The C engine from Python; `mnist_mamba.engine.format` reads and writes its model files.

Neither needs PyTorch.
"""

from mnist_mamba.engine.binding import Engine, EngineError, prepare_picture

__all__ = ["Engine", "EngineError", "prepare_picture"]
