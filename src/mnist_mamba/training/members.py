"""Running the members of an ensemble at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

from mnist_mamba.c_build import this_process
from mnist_mamba.model import Classifier, MambaClassifier

T = TypeVar("T")


class Members:
    """The classifiers of a model, and the threads that run them.

    On the CPU the members of an ensemble run at the same time, each on one thread: faster than one
    after the other on all threads, and the results do not depend on the number of cores. They do
    not see contexts of the caller's thread, such as autocast. A single classifier runs in the
    caller's thread with all of PyTorch's threads. On a GPU, members run at the same time when they
    are recorded as a CUDA graph.

    Args:
        model: on its device already.
    """

    def __init__(self, model: Classifier) -> None:
        self.all = model.classifiers
        # No thread begins a long member when the others have almost finished.
        sizes = [sum(weight.numel() for weight in member.parameters()) for member in self.all]
        self._largest_first = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
        self._threads = 0
        self._on_gpu = next(model.parameters()).is_cuda
        if len(self.all) > 1 and not self._on_gpu:
            self._threads = min(len(self.all), torch.get_num_threads())
        self._process: tuple[int, int] | None = None

    def map(self, function: Callable[[MambaClassifier], T]) -> list[T]:
        """Return the function's results for all members, in their order.

        After an error no member is still running.
        """
        # The question starts CUDA, which a forked child may not do.
        if self._on_gpu and torch.cuda.is_current_stream_capturing():
            return self._recorded_side_by_side(function)
        if not self._threads:
            return list(map(function, self.all))
        if self._process != this_process():  # a forked child lacks its parent's threads
            self._pool = ThreadPoolExecutor(self._threads, "member", torch.set_num_threads, (1,))
            self._process = this_process()
        calls: dict[int, Future[T]] = {}
        try:
            for i in self._largest_first:
                calls[i] = self._pool.submit(function, self.all[i])
            return [calls[i].result() for i in range(len(self.all))]
        finally:
            wait(calls.values())

    def _recorded_side_by_side(self, function: Callable[[MambaClassifier], T]) -> list[T]:
        """Record each member on a CUDA stream of its own."""
        recorded, results = torch.cuda.current_stream(), []
        streams = [torch.cuda.Stream() for _ in self.all]
        for stream, member in zip(streams, self.all, strict=True):
            stream.wait_stream(recorded)
            with torch.cuda.stream(stream):
                results.append(function(member))
        for stream in streams:
            recorded.wait_stream(stream)
        return results

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        """Run the body's own operations on one thread too, if the members do.

        `map` must be called within: a thread of the pool sets the number of threads that all new
        threads of this process get.
        """
        threads = torch.get_num_threads()
        if self._threads:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
