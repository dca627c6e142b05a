"""Export: fold a torch model into the values of a model file, and write it (docs/format.md)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnist_mamba.atomic_write import write_bytes
from mnist_mamba.config import ModelConfig
from mnist_mamba.engine.format import (
    DIRECTIONS,
    FLAG_LOCAL_CONV,
    FLAG_POS_EMBED,
    FLAG_TIED_A,
    POOLS,
    STEMS,
    Array,
    FormatError,
    Header,
    encode,
    member_tensor,
)
from mnist_mamba.model import Classifier, ConvStem, MambaClassifier


def write_model(path: Path, model: Classifier) -> None:
    """Write a model as the file that the C engine maps, whole or not at all.

    Args:
        path: the file, replaced if it exists.
        model: a classifier or an ensemble, on any device.

    Raises:
        FormatError: a weight is NaN or infinite, which the engine would refuse.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> from mnist_mamba.engine.format import read_model
    >>> model = MambaClassifier(ModelConfig(height=8, width=8, n_classes=10, n_layers=1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_model(Path(folder) / "model.bin", model)
    ...     read_model(Path(folder) / "model.bin").tensors["head.weight"].shape
    (10, 64)
    """
    tensors = folded_tensors(model)
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise FormatError(f"{name} holds NaN or infinite values: the training has diverged")
    write_bytes(path, encode(header_of(model.config), tensors))


def header_of(config: ModelConfig) -> Header:
    """Return the header fields of a model's config."""
    patch = config.patch if config.stem == "patch" else (0, 0)
    flags = FLAG_TIED_A * (config.a == "tied") + FLAG_POS_EMBED * config.pos_embed
    flags += FLAG_LOCAL_CONV * config.local_conv
    return {
        "flags": flags,
        "height": config.height,
        "width": config.width,
        "channels": config.channels,
        "n_classes": config.n_classes,
        "stem": STEMS.index(config.stem),
        "patch_height": patch[0],
        "patch_width": patch[1],
        "stem_width": 0 if config.stem == "patch" else config.stem_width,
        "d_model": config.d_model,
        "n_layers": config.n_layers,
        "d_state": config.d_state,
        "d_conv": config.d_conv,
        "d_inner": config.d_inner,
        "dt_rank": config.resolved_dt_rank,
        "direction": DIRECTIONS.index(config.direction),
        "pool": POOLS.index(config.pool),
        "norm_eps": config.norm_eps,
        "pixel_mean": config.pixel_mean,
        "pixel_std": config.pixel_std,
        "more_members": config.members - 1,
    }


def folded_tensors(model: Classifier) -> dict[str, Array]:
    """Return a model's values by their names in the file, with the folds of docs/format.md.

    Products are computed in float64 and rounded once.
    """
    if isinstance(model, MambaClassifier):
        return _member_tensors(model)
    return {
        member_tensor(i, name): values
        for i, member in enumerate(model.classifiers)
        for name, values in _member_tensors(member).items()
    }


def _member_tensors(model: MambaClassifier) -> dict[str, Array]:
    """Return one classifier's float32 values by their names in the file."""
    state = {name: value.detach().cpu().double() for name, value in model.state_dict().items()}
    config = model.config
    folded: dict[str, Tensor] = {}
    if config.stem == "patch":
        folded["stem.weight"] = state["stem.linear.weight"]
        folded["stem.bias"] = state["stem.linear.bias"]
    elif isinstance(model.stem, ConvStem):
        for i in range(1, model.stem.n_convs + 1):
            weight, bias = model.stem.folded(i)
            folded[f"stem.conv{i}.weight"] = weight.permute(0, 2, 3, 1).flatten(1)
            folded[f"stem.conv{i}.bias"] = bias
    if config.pos_embed:
        folded["pos_embed"] = state["pos_embed"]
    for i, block in enumerate(model.blocks):
        mixer = block.mixer
        if block.local is not None:
            taps, bias = block.local.folded()
            folded[f"layers.{i}.local.weight"], folded[f"layers.{i}.local.bias"] = taps, bias
        source, target = f"layers.{i}.mixer", f"layers.{i}"
        in_proj = state[f"{source}.in_proj.weight"] * state[f"layers.{i}.norm.weight"]
        folded[f"{target}.in_proj.x"], folded[f"{target}.in_proj.z"] = in_proj.chunk(2)
        for suffix in mixer.suffixes:
            taps = state[f"{source}.conv1d{suffix}.weight"].squeeze(1)
            folded[f"{target}.conv1d{suffix}.weight"] = taps.T
            folded[f"{target}.conv1d{suffix}.bias"] = state[f"{source}.conv1d{suffix}.bias"]
            folded[f"{target}.x_proj{suffix}"] = state[f"{source}.x_proj{suffix}.weight"]
            folded[f"{target}.dt_proj{suffix}.weight"] = state[f"{source}.dt_proj{suffix}.weight"]
            folded[f"{target}.dt_proj{suffix}.bias"] = state[f"{source}.dt_proj{suffix}.bias"]
            log = state[f"{source}.{mixer.a_name(suffix)}"]
            A = -torch.exp(log) * math.log2(math.e)
            folded[f"{target}.A{suffix}"] = A.squeeze(1) if mixer.tied else A.T
            folded[f"{target}.D{suffix}"] = state[f"{source}.D{suffix}"]
        scans = len(mixer.suffixes)
        folded[f"{target}.out_proj"] = state[f"{source}.out_proj.weight"] / scans
    folded["head.weight"] = state["head.weight"] * state["norm_f.weight"]
    folded["head.bias"] = state["head.bias"]
    return {name: value.numpy().astype(np.float32) for name, value in folded.items()}
