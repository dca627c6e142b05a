"""Parameters as views of one vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


class FlatParameters:
    """One vector that holds parameters, which become views of it.

    Optimizer, moving average and clipping then handle one tensor instead of dozens, each of which
    costs microseconds however small it is. Moving the model to another device or dtype afterwards
    separates its parameters from the vector again.

    Args:
        parameters: of one dtype and device; may be empty.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        vector = torch.empty(0)
        if self.parameters:
            vector = parameters_to_vector(self.parameters).detach()
            vector_to_parameters(vector, self.parameters)
        self.vector = nn.Parameter(vector)
        """(number of elements,), in the parameters' order; its `grad` is separate from theirs."""

    def gradients(self) -> Iterator[Tensor]:
        """Yield each parameter's gradient as a vector, zeros if it has none."""
        for parameter in self.parameters:
            gradient = parameter.grad
            yield (torch.zeros_like(parameter) if gradient is None else gradient).flatten()

    def clear_gradients(self) -> None:
        """Remove the parameters' gradients."""
        for parameter in self.parameters:
            parameter.grad = None
