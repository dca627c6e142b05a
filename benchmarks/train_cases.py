"""The frozen models, peers and numbers of steps of `make bench-train`.

They do not follow params.yaml, so that timings of different revisions compare.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mnist_mamba.config import ModelConfig, TrainConfig

KEPT = "_kept"
"""Suffix of peers that run with our trainer's memory settings (`prepare_memory`)."""
PEERS = (
    "ours",
    "ours_tied",
    "reference",
    "mambapy",
    "transformers",
    "mambapy" + KEPT,
    "transformers" + KEPT,
)
AS_IT_COMES = ("mambapy", "transformers")
"""Peers that run with the C library's own memory settings, as their users have them."""
MATMUL = "matmul"
"""Not a peer: only the matrix products of the same step."""
EPOCH = "epoch"
"""Not a peer: a whole epoch of ours, with loading, augmentation and evaluation."""

BATCH = 128
MAIN = ModelConfig(
    height=28,
    width=28,
    n_classes=10,
    stem="patch",
    patch=(4, 4),
    pos_embed=True,
    direction="alternate",
    pool="mean",
    d_model=64,
    n_layers=4,
    d_state=16,
    d_conv=4,
    expand=2,
    dt_rank="auto",
    a="free",
)
"""The main model: 49 tokens."""
LONG = dataclasses.replace(MAIN, patch=(1, 1), d_model=32, n_layers=2)
"""The pixel sequence: 784 tokens."""
TRAIN = TrainConfig(
    batch_size=BATCH,
    lr=1e-3,
    weight_decay=0.05,
    clip_norm=1.0,
    label_smoothing=0.05,
    ema_decay=0.999,
)

Steps = dict[str, tuple[int, int]]
"""(warm-up, timed) steps of a worker, by peer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Sizes of one benchmark."""

    batch: int
    main: ModelConfig
    main_steps: Steps
    long: ModelConfig
    long_steps: Steps
    epoch_steps: int


FULL = Bench(
    batch=BATCH,
    main=MAIN,
    # The loops take up to seconds per step, and their steps are less noisy.
    main_steps={
        **dict.fromkeys(("ours", "ours_tied", MATMUL), (3, 15)),
        "reference": (1, 3),
        **dict.fromkeys(PEERS[3:], (1, 2)),
    },
    long=LONG,
    long_steps={
        **dict.fromkeys(("ours", "ours_tied", MATMUL), (1, 5)),
        **dict.fromkeys(("reference", "mambapy", "transformers"), (1, 1)),
    },
    epoch_steps=100,
)
_QUICK_MAIN = dataclasses.replace(MAIN, patch=(14, 14), d_model=16, n_layers=2)
_QUICK_STEPS = dict.fromkeys((*PEERS, MATMUL), (1, 1))
QUICK = Bench(
    batch=8,
    main=_QUICK_MAIN,
    main_steps=_QUICK_STEPS,
    long=dataclasses.replace(_QUICK_MAIN, patch=(7, 7)),
    long_steps={name: steps for name, steps in _QUICK_STEPS.items() if not name.endswith(KEPT)},
    epoch_steps=2,
)
"""Tiny sizes, which only show that everything runs; the times mean nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainCase:
    """A worker's task."""

    peer: str
    model: ModelConfig
    batch: int
    threads: int
    warmup: int
    """Untimed steps; on a new machine the first one also compiles our kernel."""
    timed: int
    prepare_memory: bool
    """Use our trainer's memory settings."""

    def to_spec(self) -> dict[str, Any]:
        """Return the case as plain values."""
        return {**dataclasses.asdict(self), "model": self.model.to_dict()}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> TrainCase:
        """Return the case of `to_spec`'s values."""
        return cls(**{**spec, "model": ModelConfig.from_dict(spec["model"])})


def make_case(
    name: str, model: ModelConfig, batch: int, threads: int, steps: tuple[int, int]
) -> TrainCase:
    """Return a peer's case by its name in the table; `ours_tied` is `ours` with tied A."""
    if name == "ours_tied":
        model = dataclasses.replace(model, a="tied")
    return TrainCase(
        peer=name.removesuffix(KEPT),
        model=model,
        batch=batch,
        threads=threads,
        warmup=steps[0],
        timed=steps[1],
        prepare_memory=name not in AS_IT_COMES,
    )
