"""Forward and backward passes recorded as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Passes = Callable[[Tensor, Tensor, float], Tensor]
"""(pixels, labels, part) -> gradient and sums of a batch."""


class RecordedPasses:
    """Passes that are recorded on a GPU and repeated without Python.

    To launch the kernels of a small model takes longer than to run them. The first batch of each
    size and part runs as usual, the second is recorded as a CUDA graph, and each later one is one
    launch, without the model's Python code. On the CPU nothing is recorded.

    Args:
        passes: the function to record. It must read nothing but its arguments and tensors that keep
            their memory, and must not wait for the GPU.
    """

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self._graphs: dict[tuple[torch.Size, float], _Graph | None] = {}

    def __call__(self, pixels: Tensor, labels: Tensor, part: float) -> Tensor:
        """Return the passes' result, which the next call may overwrite."""
        if not pixels.is_cuda:
            return self._passes(pixels, labels, part)
        key = (pixels.shape, part)
        if key not in self._graphs:
            # The first batch compiles kernels and chooses algorithms, which no graph can record.
            self._graphs[key] = None
            return self._passes(pixels, labels, part)
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = _Graph(self._passes, pixels, labels, part)
        return graph.replay(pixels, labels)


class _Graph:
    """The passes of one size of batches, with the memory of their inputs and result."""

    def __init__(self, passes: Passes, pixels: Tensor, labels: Tensor, part: float) -> None:
        self._pixels, self._labels = pixels.clone(), labels.clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):  # records the kernels and runs none
            self._result = passes(self._pixels, self._labels, part)

    def replay(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Run the recorded passes on these images and return their result."""
        self._pixels.copy_(pixels)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._result
