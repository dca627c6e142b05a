"""The frozen models, peers and loads of `make bench-engine`.

They do not follow params.yaml, so that timings of different revisions compare.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.train_cases import MAIN
from mnist_mamba.config import ModelConfig

MODELS = {"tied": dataclasses.replace(MAIN, a="tied"), "free": MAIN}
"""By kind of A: 49 tokens, d_model 64, 4 layers, d_state 16, alternate directions, untrained."""
QUICK_MODELS = {
    name: dataclasses.replace(model, patch=(14, 14), d_model=16, n_layers=2)
    for name, model in MODELS.items()
}
"""Tiny models, which only show that everything runs; their times mean nothing."""

ENGINES = {"engine": None, "engine_avx2": "avx2", "engine_scalar": "scalar"}
"""MAMBA_ISA of each peer that is our engine; None leaves it unset."""
PEERS = (*ENGINES, "pytorch_eager", "torch_compile", "pytorch_cpu_kernel", "onnxruntime")
ALL_THREADS = 0
LOADS = {"b1": (1, 1), "b100": (100, 1), "b1000": (1000, ALL_THREADS)}
"""(batch, threads) by name."""
CHECK_IMAGES = 100
TOLERANCE = 1e-4
"""Largest accepted difference of a logit from the reference's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineCase:
    """A worker's task: one peer on one model, with all loads one after the other."""

    peer: str
    model: str
    """Key of MODELS."""
    folder: str
    """Folder of `prepare`'s files and of the compilers' caches."""
    loads: dict[str, tuple[int, int]]
    """(batch, threads) by name."""
    seconds: float
    """Minimum duration of the timed calls per load."""

    def path(self, name: str) -> Path:
        """Return the path of one of this model's files."""
        return Path(self.folder) / self.model / name

    def to_spec(self) -> dict[str, Any]:
        """Return the case as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> EngineCase:
        """Return the case of `to_spec`'s values."""
        loads = {name: (images, threads) for name, (images, threads) in spec["loads"].items()}
        return cls(**{**spec, "loads": loads})


def flops(config: ModelConfig) -> int:
    """Return the operations of the matrix products per image; a multiply-add counts as two."""
    from benchmarks.matmul import products

    return sum(2 * rows * inputs * outputs for rows, inputs, outputs in products(config, 1))


def exponentials(config: ModelConfig) -> int:
    """Return the exponentials per image: decays, and three per token and channel.

    The three are those of softplus and of two SiLUs.
    """
    decays = 1 if config.a == "tied" else config.d_state
    return config.n_layers * config.length * config.d_inner * (decays + 3)
