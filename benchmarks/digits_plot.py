"""The plot of `make bench-digits`: accuracy against time per image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.digits_cases import MAMBA, PEERS
from pipeline.common.timings import IMPLEMENTATIONS

MARKERS = {
    "engine": "o",
    "pytorch_eager": "X",
    "pytorch_cpu_kernel": "P",
    "torch_compile": "D",
    "onnxruntime": "s",
    "openvino": "^",
}
"""Markers by runtime; they are hollow if all members of an ensemble are asked."""


def draw(
    path: Path, machines: Mapping[str, Mapping[str, Any]], accuracies: Mapping[str, Any]
) -> None:
    """Draw the accuracy over seeds against the time of single images, a panel for each machine.

    Args:
        path: a PNG file.
        machines: "machines" of metrics/bench_digits.json.
        accuracies: mean and standard deviation (or None) by network, as `tables.accuracies`.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from mnist_mamba.atomic_write import replacing

    figure, grid = plt.subplots(
        len(machines), figsize=(11, 5 * len(machines)), squeeze=False, layout="constrained"
    )
    for axes, (machine, result) in zip(grid[:, 0], machines.items(), strict=True):
        for name, us in result["us_per_image"].items():
            peer = PEERS[name]
            if (accuracy := accuracies.get(peer.network)) is None:
                continue
            x, y, std = us["b1"], 100 * accuracy["mean"], 100 * (accuracy["std"] or 0)
            label = f"{peer.network}, {IMPLEMENTATIONS[peer.runtime]}"
            axes.errorbar(
                *(x, y, std),
                fmt=MARKERS[peer.runtime],
                color=f"C{list(accuracies).index(peer.network)}",
                markerfacecolor="white" if peer.work == (MAMBA, False) else None,
                capsize=2,
                label=label + (", early exit" if peer.exits else ""),
            )
        axes.set_xscale("log")
        axes.set_title(machine, fontsize=10)
        axes.set_xlabel("one image, one thread (µs)")
        axes.set_ylabel("test accuracy (%), mean ± standard deviation over seeds")
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)
