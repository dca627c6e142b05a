"""The plot of `make bench-digits`: accuracy against time per image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.digits_cases import PEERS
from pipeline.common.timings import IMPLEMENTATIONS

MARKERS = {"engine": "o", "onnxruntime": "s", "openvino": "^"}
"""Markers by runtime; a cross for all others."""


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
        len(machines), figsize=(9, 5 * len(machines)), squeeze=False, layout="constrained"
    )
    for axes, (machine, result) in zip(grid[:, 0], machines.items(), strict=True):
        for name, us in result["us_per_image"].items():
            peer = PEERS[name]
            if (accuracy := accuracies.get(peer.network)) is None:
                continue
            x, y, std = us["b1"], 100 * accuracy["mean"], 100 * (accuracy["std"] or 0)
            marker = MARKERS.get(peer.runtime, "x")
            color = f"C{list(accuracies).index(peer.network)}"
            axes.errorbar(x, y, std, fmt=marker, color=color, capsize=2, alpha=0.8)
            label = f"{peer.network}, {IMPLEMENTATIONS[peer.runtime]}"
            label += ", early exit" if peer.exits else ""
            axes.annotate(
                label, (x, y), xytext=(3, 4), textcoords="offset points", fontsize=7, rotation=30
            )
        axes.set_xscale("log")
        axes.set_title(machine, fontsize=10)
        axes.set_xlabel("one image, one thread (µs)")
        axes.set_ylabel("test accuracy (%), mean ± standard deviation over seeds")
        axes.grid(alpha=0.3)
        axes.margins(x=0.1, y=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)
