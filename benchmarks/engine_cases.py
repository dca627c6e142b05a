"""What `make bench-engine` measures: frozen models, peers, loads.

Frozen, and apart from params.yaml, so that figures of different revisions compare.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.train_cases import MAIN
from mnist_mamba.config import ModelConfig

MODELS = {"tied": dataclasses.replace(MAIN, a="tied"), "free": MAIN}
"""By the kind of A: 49 tokens, d_model 64, 4 layers, d_state 16, alternate; random weights."""
QUICK_MODELS = {
    name: dataclasses.replace(model, patch=(14, 14), d_model=16, n_layers=2)
    for name, model in MODELS.items()
}
"""Whether everything still runs; their times say nothing."""

ENGINES = {"engine": None, "engine_avx2": "avx2", "engine_scalar": "scalar"}
"""Peers that are our engine: what MAMBA_ISA is set to."""
PEERS = (*ENGINES, "pytorch_eager", "torch_compile", "pytorch_cpu_kernel", "onnxruntime")
ALL_THREADS = 0
LOADS = {"b1": (1, 1), "b100": (100, 1), "b1000": (1000, ALL_THREADS)}
"""Images of a call, and threads."""
CHECK_IMAGES = 100
TOLERANCE = 1e-4
"""Largest difference of a logit from the reference's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineCase:
    """One worker's task: a peer on one model, all loads one after the other."""

    peer: str
    model: str
    """Key of MODELS."""
    folder: str
    """Where `prepare` put the model's files, and where compilers keep theirs."""
    loads: dict[str, tuple[int, int]]
    """Images of a call and threads, by name."""
    seconds: float
    """Of timed calls a load, at least."""

    def path(self, name: str) -> Path:
        """A file of this model."""
        return Path(self.folder) / self.model / name

    def to_spec(self) -> dict[str, Any]:
        """The case as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> EngineCase:
        """The case of `to_spec`'s values."""
        loads = {name: (images, threads) for name, (images, threads) in spec["loads"].items()}
        return cls(**{**spec, "loads": loads})


def flops(config: ModelConfig) -> int:
    """Of an image's matrix products; a multiplication and an addition are two."""
    from benchmarks.matmul import products

    return sum(2 * rows * inputs * outputs for rows, inputs, outputs in products(config, 1))


def exponentials(config: ModelConfig) -> int:
    """Of an image: decays, and one each for softplus and the two SiLUs of a token and channel."""
    decays = 1 if config.a == "tied" else config.d_state
    return config.n_layers * config.length * config.d_inner * (decays + 3)
