"""The C engine from Python; `mnist_mamba.engine.format` reads and writes its model files.

Neither needs PyTorch.
"""

from mnist_mamba.engine.binding import Answers, Engine, EngineError, prepare_picture, softmax

__all__ = ["Answers", "Engine", "EngineError", "prepare_picture", "softmax"]
