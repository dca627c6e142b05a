"""The processes that train one model together: usually one, several under torchrun."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Processes:
    """All processes of a training, as seen by one of them.

    Every process must call `sum` and `from_first` equally often and in the same order.
    """

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    local_rank: int = 0
    """Number of this process among those on this machine."""
    local_size: int = 1

    @classmethod
    def of_torchrun(cls) -> Processes:
        """Return torchrun's processes, or a single one if torchrun did not start this process."""
        if not (dist.is_available() and os.environ.get("TORCHELASTIC_RUN_ID")):
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    @contextmanager
    def connected(self, device: str) -> Iterator[None]:
        """Connect to the other processes while the body runs: nccl for a GPU, gloo for the CPU."""
        if self.size == 1:
            yield
            return
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if on_gpu else "gloo")
        yield
        # Not after an error: the others may never get here, and torchrun ends them.
        dist.destroy_process_group()

    def share(self, n: int) -> slice:
        """Return this process's contiguous share of n items; shares differ by at most one item."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values` over the processes, in place and with the same bits in each."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, value: bool, device: str) -> bool:
        """Return whether the value is true in any of the processes."""
        return value if self.size == 1 else bool(self.sum(torch.tensor(int(value), device=device)))

    def from_first(self, value: T) -> T:
        """Return the first process's value, in every process."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]


ALONE = Processes()
