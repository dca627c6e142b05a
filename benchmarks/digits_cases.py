"""The peers and loads of `make bench-digits`."""

from __future__ import annotations

import dataclasses

MAMBA = "mamba"
"""Name of the default model among the networks."""
CONVNETS = ("lenet", "vgg-48", "vgg-64")
"""Names of the convolutional networks, whose shapes are in benchmarks/convnets.py."""
LOADS = {"b1": 1, "b100": 100}
"""Batch sizes by name; all on one thread."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """A network and what runs it."""

    network: str
    runtime: str
    """A key of `IMPLEMENTATIONS` in pipeline/common/timings.py."""
    exits: bool = False
    """Whether the members are asked one after the other, until their mean is clear."""

    @property
    def work(self) -> tuple[str, bool]:
        """The computation, which several runners share: the network, and early exit or not."""
        return self.network, self.exits


PEERS = {
    "engine": Peer(MAMBA, "engine", exits=True),
    "engine_all_members": Peer(MAMBA, "engine"),
    "pytorch_exit": Peer(MAMBA, "pytorch_eager", exits=True),
    "pytorch_eager": Peer(MAMBA, "pytorch_eager"),
    "pytorch_cpu_kernel": Peer(MAMBA, "pytorch_cpu_kernel", exits=True),
    "torch_compile": Peer(MAMBA, "torch_compile"),
    "onnxruntime": Peer(MAMBA, "onnxruntime"),
    **{
        f"{network}_{runtime}": Peer(network, runtime)
        for network in CONVNETS
        for runtime in ("onnxruntime", "openvino")
    },
}
