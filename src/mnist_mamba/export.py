"""Export: a torch model as a model file (docs/format.md), and a model file as a torch model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from mnist_mamba.atomic_write import write_bytes
from mnist_mamba.config import ConfigError, ModelConfig
from mnist_mamba.engine.format import (
    DIRECTIONS,
    FLAG_LOCAL_CONV,
    FLAG_POS_EMBED,
    FLAG_TIED_A,
    POOLS,
    PREPARATIONS,
    STEMS,
    WEIGHT_TYPES,
    Array,
    FormatError,
    Header,
    ModelFile,
    WeightType,
    encode,
    member_field,
    read_model,
)
from mnist_mamba.model import (
    Block,
    Classifier,
    ConvStem,
    MambaClassifier,
    MambaEnsemble,
    build_classifier,
)
from mnist_mamba.model.mixer import has_own_functions


def write_model(path: str | Path, model: Classifier, weight_type: WeightType = "float32") -> None:
    """Write a model as the file that the C engine maps, whole or not at all.

    Args:
        path: the file, replaced if it exists.
        model: a classifier or an ensemble, on any device.
        weight_type: "int8" rounds all tensors but vectors to a byte per value.

    Raises:
        FormatError: a part of the model or its setting is not what its config builds, so that the
            file would describe another model; a weight is NaN or infinite; or the exit margin is
            not 0 or 2^-126 to 1e6.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> from mnist_mamba.engine.format import read_model
    >>> model = MambaClassifier(ModelConfig(height=8, width=8, n_classes=10, n_layers=1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_model(Path(folder) / "model.bin", model)
    ...     read_model(Path(folder) / "model.bin").tensors["head.weight"].shape
    (10, 64)
    """
    _check_parts(model)
    exit_margin = model.exit_margin if isinstance(model, MambaEnsemble) else 0.0
    file = describe(model.config, folded_tensors(model), weight_type, exit_margin)
    write_bytes(Path(path), encode(file))


def _check_parts(model: Classifier) -> None:
    """Check that a model computes what its config builds, but for the values of its weights.

    Methods that were replaced in a class, and so in all models, are not noticed.
    """
    with torch.random.fork_rng(devices=[]):
        expected = build_classifier(model.config)
    parts, wanted = (dict(m.named_modules(remove_duplicate=False)) for m in (model, expected))
    _check_same("the part", *({k: type(v) for k, v in m.items()} for m in (parts, wanted)))
    _check_same("the order of parts,", {"": list(parts)}, {"": list(wanted)})
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if has_own_functions(weight):
            kind = type(weight).__name__
            raise FormatError(f"the weight {name} is a {kind}, expected a tensor of torch")
        if weight.is_complex():
            raise FormatError(f"the weight {name} has {weight.dtype}, expected real numbers")
    shapes = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (model, expected))
    _check_same("the weight", *shapes)
    if _has_any_global_hook():
        raise FormatError("torch has hooks for all modules, which the file cannot describe")
    for name, part in parts.items():
        settings = {k: v for k, v in vars(wanted[name]).items() if k not in _NO_RESULT}
        # A user's own attribute changes nothing, unless it replaces a method.
        found = {
            key: value
            for key, value in vars(part).items()
            if key in settings or (hasattr(type(part), key) and key not in _NO_RESULT)
        }
        _check_same(f"the part {name}:", found, settings)


_NO_RESULT = {"_parameters", "_buffers", "_modules"} | {
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
    "training",
    "momentum",
    "scan_backend",
    "_compiled_call_impl",
    "exit_margin",
}
"""Attributes of modules that hold weights and parts, those that do not change results, and the exit
margin, which the file describes."""


def _check_same(kind: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in expected | found:
        got, wanted = found.get(name), expected.get(name)
        if type(got) is not type(wanted) or got != wanted:
            raise FormatError(
                f"{kind} {name} is {got!r}, but the model's config builds {wanted!r}: the file "
                "cannot describe this model"
            )


def describe(
    config: ModelConfig,
    tensors: dict[str, Array],
    weight_type: WeightType = "float32",
    exit_margin: float = 0.0,
) -> ModelFile:
    """Return the contents of the file of a model with this config and these tensors."""
    header = {name: getattr(config, name) for name in _HEADER} | {
        "flags": 0,
        "preparation": PREPARATIONS.index(config.preparation),
        "weight_type": WEIGHT_TYPES.index(weight_type),
        "exit_margin": exit_margin,
    }
    shapes = [_shape_of(one) for one in config.member_configs]
    return ModelFile(header, shapes, config.resolved_class_names, tensors)


_HEADER = ("height", "width", "channels", "n_classes", "pixel_mean", "pixel_std")
_SHAPE = ("d_model", "n_layers", "d_state", "d_conv", "d_inner", "norm_eps")
"""Fields of the header and of a member's record that a config has under the same name."""


def _shape_of(config: ModelConfig) -> Header:
    """Return the record of a member."""
    patch = config.patch if config.stem == "patch" else (0, 0)
    flags = FLAG_TIED_A * (config.a == "tied") + FLAG_POS_EMBED * config.pos_embed
    flags += FLAG_LOCAL_CONV * config.local_conv
    return {name: getattr(config, name) for name in _SHAPE} | {
        "flags": flags,
        "stem": STEMS.index(config.stem),
        "patch_height": patch[0],
        "patch_width": patch[1],
        "stem_width": 0 if config.stem == "patch" else config.stem_width,
        "dt_rank": config.resolved_dt_rank,
        "direction": DIRECTIONS.index(config.direction),
        "pool": POOLS.index(config.pool),
    }


def folded_tensors(model: Classifier) -> dict[str, Array]:
    """Return a model's values by their names in the file, with the folds of docs/format.md.

    Products are computed in float64 and rounded once.
    """
    if isinstance(model, MambaClassifier):
        return _member_tensors(model)
    return {
        member_field(i, name): values
        for i, member in enumerate(model.classifiers)
        for name, values in _member_tensors(member).items()
    }


def _float64(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().double() for name, value in module.state_dict().items()}


def _member_tensors(model: MambaClassifier) -> dict[str, Array]:
    """Return one classifier's float32 values by their names in the file."""
    state = _float64(model)
    folded: dict[str, Tensor] = {}
    if isinstance(model.stem, ConvStem):
        for i in range(1, model.stem.n_convs + 1):
            weight, bias = model.stem.folded(i)
            folded[f"stem.conv{i}.weight"] = weight.permute(0, 2, 3, 1).flatten(1)
            folded[f"stem.conv{i}.bias"] = bias
    else:
        folded["stem.weight"] = state["stem.linear.weight"]
        folded["stem.bias"] = state["stem.linear.bias"]
    if model.config.pos_embed:
        folded["pos_embed"] = state["pos_embed"]
    for i, block in enumerate(model.blocks):
        folded |= {f"layers.{i}.{name}": value for name, value in _block_tensors(block).items()}
    folded["head.weight"] = state["head.weight"] * state["norm_f.weight"]
    folded["head.bias"] = state["head.bias"]
    return {name: value.numpy().astype(np.float32) for name, value in folded.items()}


def _block_tensors(block: Block) -> dict[str, Tensor]:
    """Return one layer's float64 values by their names in the file, without the layer's prefix."""
    folded: dict[str, Tensor] = {}
    if block.local is not None:
        folded["local.weight"], folded["local.bias"] = block.local.folded()
    mixer, state = block.mixer, _float64(block.mixer)
    in_proj = state["in_proj.weight"] * _float64(block.norm)["weight"]
    folded["in_proj.x"], folded["in_proj.z"] = in_proj.chunk(2)
    for suffix in mixer.suffixes:
        folded[f"conv1d{suffix}.weight"] = state[f"conv1d{suffix}.weight"].squeeze(1).T
        folded[f"x_proj{suffix}"] = state[f"x_proj{suffix}.weight"]
        A = -torch.exp(state[mixer.a_name(suffix)]) * math.log2(math.e)
        folded[f"A{suffix}"] = A.squeeze(1) if mixer.tied else A.T
        for name in ("conv1d{}.bias", "dt_proj{}.weight", "dt_proj{}.bias", "D{}"):
            folded[name.format(suffix)] = state[name.format(suffix)]
    folded["out_proj"] = state["out_proj.weight"] / len(mixer.suffixes)
    return folded


def load_model(path: str | Path, scan: str = "auto") -> Classifier:
    """Read a model file back into PyTorch, for inference.

    Args:
        path: the file.
        scan: backend of the scan, as in `MambaClassifier`.

    Returns:
        A model in evaluation mode on the CPU, with the file's weights. Where export folded one
        operation into another, the first does nothing: norms have a weight of 1.

    Raises:
        FormatError: not a model file, or one that no model of this package computes.
        OSError: the file cannot be read.
    """
    file = read_model(path)
    for name, values in file.tensors.items():
        if name.endswith((".A", ".A_b")) and (values > 0).any():
            raise FormatError(f"{path}: {name}: got {values.max()}, expected 0 or less: A is -exp")
    try:
        model = build_classifier(_config_of(file), scan).eval()
    except ConfigError as error:
        raise FormatError(f"{path}: no model of this package has such dims: {error}") from error
    for i, member in enumerate(model.classifiers):
        tensors = _part(file.tensors, member_field(i, "")) or file.tensors
        member.load_state_dict(member.state_dict() | _member_state(member, tensors))
    if isinstance(model, MambaEnsemble):
        model.exit_margin = file.header["exit_margin"]
    return model


def _config_of(file: ModelFile) -> ModelConfig:
    """Return the config of a file."""
    first, *others = [_choices_of(shape) for shape in file.shapes]
    changes = [{k: v for k, v in other.items() if v != first[k]} for other in others]
    header: Header = file.header | {
        "preparation": PREPARATIONS[file.header["preparation"]],
        "class_names": file.class_names,
        "other_members": changes if any(changes) else [],
    }
    return ModelConfig(**first, **_fields_of_config(header))


def _choices_of(shape: Header) -> dict[str, Any]:
    """Return the settings in a member's record."""
    if shape["d_inner"] % shape["d_model"]:
        raise ConfigError(f"d_inner = {shape['d_inner']}: expected a multiple of d_model")
    return _fields_of_config(shape) | {
        "stem": STEMS[shape["stem"]],
        "patch": (shape["patch_height"] or 1, shape["patch_width"] or 1),
        "stem_width": shape["stem_width"] or 1,
        "expand": shape["d_inner"] // shape["d_model"],
        "a": "tied" if shape["flags"] & FLAG_TIED_A else "free",
        "pos_embed": bool(shape["flags"] & FLAG_POS_EMBED),
        "local_conv": bool(shape["flags"] & FLAG_LOCAL_CONV),
        "direction": DIRECTIONS[shape["direction"]],
        "pool": POOLS[shape["pool"]],
    }


def _fields_of_config(record: Header) -> dict[str, Any]:
    """Return the fields of a record that a config has under the same name."""
    names = record.keys() & {field.name for field in dataclasses.fields(ModelConfig)}
    # The shortest decimal of a float: 0.1, which its float32 is above.
    values = {name: record[name] for name in names}
    return {k: float(str(np.float32(v))) if isinstance(v, float) else v for k, v in values.items()}


def _part(tensors: dict[str, Array], prefix: str) -> dict[str, Array]:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    found = (name for name in tensors if name.startswith(prefix))
    return {name.removeprefix(prefix): tensors[name] for name in found}


def _member_state(model: MambaClassifier, tensors: dict[str, Array]) -> dict[str, Tensor]:
    """Return one classifier's weights by their names in torch; the inverse of `_member_tensors`.

    Norms stay as in a new model, where they change nothing; local.norm also adds the bias.
    """
    state = {name: torch.from_numpy(tensors[name]) for name in ("head.weight", "head.bias")}
    if model.config.pos_embed:
        state["pos_embed"] = torch.from_numpy(tensors["pos_embed"])
    for name, values in _part(tensors, "stem.").items():
        weight = torch.from_numpy(values)
        if name.startswith("conv") and name.endswith("weight"):
            weight = weight.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
        state[f"stem.{name}" if name.startswith("conv") else f"stem.linear.{name}"] = weight
    for i, block in enumerate(model.blocks):
        weights = _block_state(block, _part(tensors, f"layers.{i}."))
        state |= {f"layers.{i}.{name}": weight for name, weight in weights.items()}
    return state


def _block_state(block: Block, tensors: dict[str, Array]) -> dict[str, Tensor]:
    """Return one layer's weights by their names in torch; the inverse of `_block_tensors`."""
    folded = {name: torch.from_numpy(values) for name, values in tensors.items()}
    state: dict[str, Tensor] = {}
    if block.local is not None:
        taps = folded["local.weight"].clone()
        taps[4] -= 1
        state["local.conv.weight"] = taps.T.unflatten(1, (1, 3, 3))
        state["local.norm.bias"] = folded["local.bias"]
        state["local.norm.running_var"] = torch.ones(len(taps.T)) - block.local.norm.eps
    mixer = block.mixer
    state["mixer.in_proj.weight"] = torch.cat([folded["in_proj.x"], folded["in_proj.z"]])
    state["mixer.out_proj.weight"] = folded["out_proj"] * len(mixer.suffixes)
    for suffix in mixer.suffixes:
        state[f"mixer.conv1d{suffix}.weight"] = folded[f"conv1d{suffix}.weight"].T.unsqueeze(1)
        state[f"mixer.x_proj{suffix}.weight"] = folded[f"x_proj{suffix}"]
        a_log = torch.log(-folded[f"A{suffix}"].double() / math.log2(math.e))
        state[f"mixer.{mixer.a_name(suffix)}"] = a_log.unsqueeze(1) if mixer.tied else a_log.T
        for name in ("conv1d{}.bias", "dt_proj{}.weight", "dt_proj{}.bias", "D{}"):
            state[f"mixer.{name.format(suffix)}"] = folded[name.format(suffix)]
    return state
