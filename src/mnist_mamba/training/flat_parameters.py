"""Parameters as parts of one vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


class FlatParameters:
    """Moves parameters into one vector, whose parts they are from then on.

    What changes the vector changes them, and the other way round. So optimizer, average and
    clipping handle one tensor instead of dozens, each of which costs microseconds however small it
    is. Moving the model to another device or dtype afterwards takes its parameters out again.

    Args:
        parameters: of one dtype and device; there may be none.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        vector = torch.empty(0)
        if self.parameters:
            vector = parameters_to_vector(self.parameters).detach()
            vector_to_parameters(vector, self.parameters)
        self.vector = nn.Parameter(vector)
        """(number of elements), in the order of the parameters; its `grad` is its own."""

    def gradients(self) -> Iterator[Tensor]:
        """The parameters' gradients, each as a vector; zeros where there is none."""
        for parameter in self.parameters:
            gradient = parameter.grad
            yield (torch.zeros_like(parameter) if gradient is None else gradient).flatten()

    def clear_gradients(self) -> None:
        """Let the next backward pass begin without gradients."""
        for parameter in self.parameters:
            parameter.grad = None
