"""The shipped side: the C engine from Python here, the model file in `mnist_mamba.engine.format`.

Only the engine is imported here, so that using it needs no PyTorch.
"""

from mnist_mamba.engine.binding import Engine, EngineError

__all__ = ["Engine", "EngineError"]
