"""Running the members of an ensemble at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from mnist_mamba.model import Classifier, MambaClassifier

T = TypeVar("T")


class Members:
    """The classifiers of a model, and the threads that run them.

    On the CPU the members of an ensemble run at the same time, each on one thread: faster than one
    after the other on all threads, and the results do not depend on the number of cores. A single
    classifier runs in the caller's thread with all of PyTorch's threads.

    Args:
        model: on its device already.
    """

    def __init__(self, model: Classifier) -> None:
        self.all = model.classifiers
        self._pool = None
        if len(self.all) > 1 and next(model.parameters()).device.type == "cpu":
            workers = min(len(self.all), torch.get_num_threads())
            self._pool = ThreadPoolExecutor(workers, "member", torch.set_num_threads, (1,))

    def map(self, function: Callable[[MambaClassifier], T]) -> list[T]:
        """Return the function's results for all members, in their order."""
        return list((self._pool.map if self._pool else map)(function, self.all))

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        """Run the body's own operations on one thread too, if the members do.

        `map` must be called within: a thread of the pool sets the number of threads that all new
        threads of this process get.
        """
        threads = torch.get_num_threads()
        if self._pool:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
