"""The processes that train one model together: usually one, several under torchrun."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

START_WAIT = dt.timedelta(minutes=10)
"""How long a process waits for the others to start, read data and compile kernels."""
STEP_WAIT = dt.timedelta(seconds=40)
"""How long a process then waits for the others, in each step and evaluation."""
SHOWN = 5
"""Number of differences that an error names."""


class PeerError(RuntimeError):
    """Another process of the training has ended, or the link to it was lost."""


class DifferenceError(ValueError):
    """The processes would train different things; the message says what differs, and where."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """All processes of a training, as seen by one of them.

    Every process must call `sum`, `from_first` and `check_same` equally often and in the same
    order. These raise PeerError if another process does not answer in time, or has ended.
    """

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    local_rank: int = 0
    """Number of this process among those on this machine."""
    local_size: int = 1
    group: dist.ProcessGroup | None = dataclasses.field(
        default=None, compare=False, repr=False, kw_only=True
    )
    """The connection by which tensors are summed; None before `connected`."""

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
    def connected(self, device: str) -> Iterator[Processes]:
        """Connect to the other processes while the body runs; yield the connected processes.

        Tensors are summed over nccl on a GPU, else over gloo. Objects always go over gloo, so that
        processes can compare what they train even if only some have a GPU.
        """
        if self.size == 1:
            yield self
            return
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        with _peers():
            dist.init_process_group("gloo", timeout=START_WAIT)
            group = dist.new_group(backend="nccl" if on_gpu else "gloo", timeout=STEP_WAIT)
        try:
            yield dataclasses.replace(self, group=group)
        except BaseException:
            # The others may never get here, and nccl would wait for them. Without this, gloo's
            # threads would abort the process at its end.
            if not on_gpu:
                dist.destroy_process_group()
            raise
        dist.destroy_process_group()

    def share(self, n: int) -> slice:
        """Return this process's contiguous share of n items; shares differ by at most one item."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values` over the processes, in place and with the same bits in each."""
        if self.size > 1:
            with _peers():
                dist.all_reduce(values, group=self.group)
        return values

    def any(self, value: bool, device: str) -> bool:
        """Return whether the value is true in any of the processes."""
        return value if self.size == 1 else bool(self.sum(torch.tensor(int(value), device=device)))

    def from_first(self, value: T) -> T:
        """Return the first process's value, in every process."""
        values = [value]
        if self.size > 1:
            with _peers():
                dist.broadcast_object_list(values, src=0)
        return values[0]

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Check that each process has the same values as the first one.

        Args:
            values: what this process trains, by names for the error message.

        Raises:
            DifferenceError: in every process, if any of them has other values.
        """
        if self.size == 1:
            return
        mine = (f"process {self.rank} on {socket.gethostname()}", dict(values))
        all_values = [mine] * self.size
        with _peers():
            dist.all_gather_object(all_values, mine)
        first, expected = all_values[0]
        differences = [
            f"{key} is {_shown(found, key)} in {name}, {_shown(expected, key)} in {first}"
            for name, found in all_values[1:]
            for key in sorted(expected.keys() | found.keys())
            if _shown(found, key) != _shown(expected, key)
        ]
        if differences:
            more = [f"{len(differences) - SHOWN} more"] if len(differences) > SHOWN else []
            shown = "; ".join(differences[:SHOWN] + more)
            raise DifferenceError(
                f"the processes differ in what they train: {shown}. "
                "Expected equal params, data and code in all of them"
            )


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "missing"


@contextmanager
def _peers() -> Iterator[None]:
    """Turn torch's errors of a connection into PeerError."""
    try:
        yield
    except RuntimeError as error:  # gloo's errors have no class of their own
        said = re.sub(r"^\[\S+\] ", "", str(error)).split(". ")[0]
        raise PeerError(
            f"another process of this training has ended, or the link to it was lost ({said})"
        ) from error


ALONE = Processes()
