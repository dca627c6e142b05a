"""The report's pictures: files of plots/, and the learning curves, as data URIs."""

from __future__ import annotations

import base64
from io import BytesIO

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.common.plots import MUTED, RIGHT

CURVES = {
    "error rate": ("val_error", "train_error"),
    "cross-entropy": ("val_loss", "train_loss"),
    "learning rate": ("lr",),
}
"""Charts by title, each with the columns that it shows."""


def data_uri(content: bytes, kind: str) -> str:
    """Return a picture as the value of an HTML attribute; `kind` is png or svg+xml."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def learning_curves(epochs: pd.DataFrame) -> str:
    """Return charts of the columns in CURVES that `epochs` has, as one picture.

    A scale is logarithmic if its values span a factor of 10.
    """
    buffer = BytesIO()
    # Equal inputs give an equal file: ids do not depend on chance, and there is no date.
    with mpl.rc_context({"svg.hashsalt": "curves", "font.size": 9}):
        figure = Figure(figsize=(10, 3), layout="constrained")
        for axes, (title, columns) in zip(figure.subplots(1, 3), CURVES.items(), strict=True):
            shown = epochs[[name for name in columns if name in epochs]]
            for colour, name in zip((RIGHT, MUTED), shown, strict=False):
                label = f"{name}, at the end {shown[name].iloc[-1]:.3g}"
                axes.plot(shown[name], color=colour, label=label)
            if shown.max(axis=None) > 10 * shown.min(axis=None) > 0:
                axes.set_yscale("log")
            axes.set(title=title, xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.grid(axis="y", alpha=0.3)
            axes.legend(frameon=False)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return data_uri(buffer.getvalue(), "svg+xml")
