"""`python -m tests.tools.golden` (`make golden`): write PyTorch's activations for the C tests.

Replaces csrc/tests/golden/: one model file and one file of activations, layer by layer, for each
architecture. The C test compares the engine with them tensor by tensor, without Python.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_mamba.atomic_write import write_bytes
from mnist_mamba.export import load_model, write_model
from mnist_mamba.model import Block, Classifier, MambaClassifier
from mnist_mamba.scan import selective_scan
from tests.models import ARCHITECTURES, make_images, make_model

FOLDER = Path(__file__).parents[2] / "csrc" / "tests" / "golden"
MAGIC = b"MNGOLD1\n"
ROUNDED = "conv_local_cross"
"""Architecture of `int8_weights`, which has all kinds of tensors."""

NAMES = (*ARCHITECTURES, "int8_weights")
"""All golden files."""

Record = tuple[str, int, Tensor]
"""Name, layer (-1 outside the layers), and values (rows, columns) in image order."""


def trace_block(block: Block, layer: int, residual: Tensor) -> tuple[list[Record], Tensor]:
    """Return a layer's activations for residual (length, d_model), and its output.

    All records but `local` and `residual` are in the layer's order, which may be by columns.
    """
    records: list[Record] = []
    if block.local is not None:
        residual = block.local(residual[None])[0]
        records.append(("local", layer, residual))
    mixer, image_order = block.mixer, residual
    if block.order.columns:
        residual = residual.unflatten(0, block.grid).transpose(0, 1).flatten(0, 1)
    x, z = mixer.in_proj(block.norm(residual)).chunk(2, dim=-1)
    records += [("in_proj.x", layer, x), ("in_proj.z", layer, z)]
    y = torch.zeros_like(x)
    for suffix in mixer.suffixes:
        reverse = block.order.reverse or suffix == "_b"

        def ordered(rows: Tensor, reverse: bool = reverse) -> Tensor:
            """Reorder (length, n) from the layer's order to the scan's, or back."""
            return rows.flip(0) if reverse else rows

        u, dt, B, C, _ = mixer.scan_inputs(ordered(x).T[None], suffix)
        delta = F.softplus(dt + mixer.get_submodule(f"dt_proj{suffix}").bias[:, None])
        A, D = mixer.state_matrix(suffix), mixer.get_parameter(f"D{suffix}")
        z_scan = ordered(z).T[None]
        out = selective_scan(u, delta, A, B, C, D=D, z=z_scan, backend="reference")
        projected = mixer.get_submodule(f"x_proj{suffix}")(u.transpose(1, 2))[0]
        records += [
            (f"conv{suffix}", layer, ordered(u[0].T)),
            (f"x_proj{suffix}", layer, ordered(projected)),
            (f"delta{suffix}", layer, ordered(delta[0].T)),
            (f"scan{suffix}", layer, ordered(out[0].T)),
        ]
        y = y + ordered(out[0].T)
    mixed = mixer.out_proj(y / len(mixer.suffixes))
    if block.order.columns:
        mixed = mixed.unflatten(0, block.grid[::-1]).transpose(0, 1).flatten(0, 1)
    residual = image_order + mixed
    return [*records, ("residual", layer, residual)], residual


@torch.no_grad()
def trace(model: Classifier, pixels: Tensor) -> list[Record]:
    """Return all activations for one image, member by member."""
    members = [record for one in model.classifiers for record in trace_member(one, pixels)]
    return [("input", -1, pixels.flatten(1)), *members]


def trace_member(model: MambaClassifier, pixels: Tensor) -> list[Record]:
    """Return one classifier's activations, after checking that they give its logits."""
    residual = model.tokens(pixels[None])[0]
    records: list[Record] = [("tokens", -1, residual)]
    for i, block in enumerate(model.blocks):
        layer, residual = trace_block(block, i, residual)
        records += layer
    # The file folds norm_f's weight into the head, so the engine's pooled lacks that weight.
    weight = model.norm_f.weight
    pooled = model.pooled(residual[None])
    records += [("pooled", -1, pooled / weight), ("logits", -1, model.head(pooled))]
    torch.testing.assert_close(records[-1][2], model(pixels[None]), rtol=1e-5, atol=1e-6)
    return records


def encode(records: list[Record]) -> bytes:
    """Return the bytes of a .golden file (csrc/tests/engine/test_golden.c reads them)."""
    parts = [MAGIC, struct.pack("<I", len(records))]
    for name, layer, rows in records:
        values = rows.detach().contiguous().numpy().astype("<f4")
        parts.append(struct.pack("<I", len(name)) + name.encode())
        parts.append(struct.pack("<iII", layer, *values.shape) + values.tobytes())
    return b"".join(parts)


def decode(data: bytes) -> list[Record]:
    """Return the records of a .golden file."""
    assert data.startswith(MAGIC)
    (count,) = struct.unpack_from("<I", data, len(MAGIC))
    at, records = len(MAGIC) + 4, []
    for _ in range(count):
        (length,) = struct.unpack_from("<I", data, at)
        name = data[at + 4 : at + 4 + length].decode()
        at += 4 + length
        layer, rows, columns = struct.unpack_from("<iII", data, at)
        values = np.frombuffer(data, "<f4", count=rows * columns, offset=at + 12)
        records.append((name, layer, torch.tensor(values).reshape(rows, columns)))
        at += 12 + 4 * rows * columns
    assert at == len(data)
    return records


def write_golden(folder: Path, name: str) -> None:
    """Write NAME.bin and NAME.golden for one architecture, or ROUNDED."""
    model = make_model(ROUNDED if name == "int8_weights" else name)
    pixels = make_images(model.config, 3)[2].float() / 255
    if name == "int8_weights":
        write_model(folder / f"{name}.bin", model, "int8")
        model = load_model(folder / f"{name}.bin", scan="reference")
    else:
        write_model(folder / f"{name}.bin", model)
    write_bytes(folder / f"{name}.golden", encode(trace(model, pixels)))


def main() -> int:
    """Replace every golden file."""
    for old in (*FOLDER.glob("*.bin"), *FOLDER.glob("*.golden")):
        old.unlink()
    for name in NAMES:
        write_golden(FOLDER, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
