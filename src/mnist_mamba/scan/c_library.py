"""The C library of csrc/scan: its build, its structures and its calls on torch tensors."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mnist_mamba.c_build import (
    NativeBuildError,
    build_library,
    csrc_dir,
    is_forked,
    isa_flags,
    shared_flags,
)
from mnist_mamba.scan.errors import ScanBackendError

ISA_VARIABLE = "MAMBA_ISA"
"""Name of the environment variable that forces an instruction set, for tests and comparisons."""

ISAS = ("scalar", "neon", "avx2", "avx512")
"""Names of the instruction sets; the index is the value of the C enum."""

_TYPE = {torch.float32: 0, torch.float64: 1}
_STATUS = {
    1: "a dimension or the thread count is smaller than 1",
    2: "a pointer is NULL",
    3: "no kernel for this instruction set",
}
# State updates per thread: about 5 µs. Waking a thread for less costs more than it saves.
_UPDATES_PER_THREAD = 16384

Tensors = Sequence[Tensor | None]


class _Tensor3(ctypes.Structure):
    """struct scan_tensor and struct scan_mutable_tensor, which differ in const only."""

    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_ssize_t * 3)]


def _fields(ctype: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, ctype) for name in names.split()]


class _ScanDims(ctypes.Structure):
    _fields_ = [
        *_fields(ctypes.c_ssize_t, "batch channels length states rank threads"),
        ("delta_softplus", ctypes.c_bool),
        *_fields(ctypes.c_int, "type isa"),
    ]


class _ScanTensors(ctypes.Structure):
    """struct scan_inputs and struct scan_gradients, whose fields have the same order."""

    _fields_ = [
        *_fields(_Tensor3, "u delta B C z"),
        *_fields(ctypes.c_void_p, "A D delta_bias W"),
    ]


class _BlockDims(ctypes.Structure):
    _fields_ = [
        *_fields(
            ctypes.c_ssize_t,
            "batch length d_model channels states rank taps directions threads",
        ),
        *_fields(ctypes.c_bool, "reverse tied"),
        *_fields(ctypes.c_int, "type isa"),
        ("norm_eps", ctypes.c_double),
    ]


# struct block_weights and struct block_gradients: pointers in this order.
_SHARED_WEIGHTS = ("norm", "in_proj", "out_proj")
_DIRECTION_WEIGHTS = ("conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A_log", "D")
_MAX_DIRECTIONS = 2
WEIGHTS = (*_SHARED_WEIGHTS, *_DIRECTION_WEIGHTS, *(f"{name}_b" for name in _DIRECTION_WEIGHTS))
"""Names of a block's weights: shared ones, then each direction's."""
_BlockPointers = ctypes.c_void_p * len(WEIGHTS)

Shape = tuple[int, ...]


def library_path() -> Path:
    """Return the path of the library, which is built unless the cache has it."""
    folders = include_dirs()
    return build_library("scan", sources(), folders, cflags(), isa_flags("kernel_{}.c"))


def sources() -> list[Path]:
    """Return the paths of the C files."""
    return sorted((csrc_dir() / "scan").glob("*.c"))


def cflags() -> tuple[str, ...]:
    """Return the compiler flags of the C kernels."""
    return ("-std=c11", "-O3", *shared_flags("SCAN_MATH"))


def include_dirs() -> list[Path]:
    """Return the folders of the C code: first its own, then the one shared with the engine."""
    return [csrc_dir() / "scan", csrc_dir() / "simd"]


@functools.cache
def load() -> ctypes.CDLL:
    """Return the C library; cached if it loads, so that a cause that has gone is not remembered.

    No lock: a fork could leave it locked in the child for ever. Threads may build at the same time.

    Raises:
        ScanBackendError: the library cannot be built.
    """
    try:
        library = ctypes.CDLL(str(library_path()))
    except (NativeBuildError, OSError) as error:
        raise ScanBackendError(f"the C kernels of the scan cannot be built: {error}") from error
    library.mamba_scan_isa_works.argtypes = [ctypes.c_int]
    library.mamba_scan_isa_works.restype = ctypes.c_bool
    for name, dims in (
        ("mamba_scan_checkpoint", _ScanDims),
        ("mamba_scan_workspace", _ScanDims),
        ("mamba_block_saved", _BlockDims),
        ("mamba_block_workspace", _BlockDims),
    ):
        function = getattr(library, f"{name}_bytes")
        function.argtypes = [ctypes.POINTER(dims)]
        function.restype = ctypes.c_size_t
    void = ctypes.c_void_p
    library.mamba_scan_forward.argtypes = [void] * 5
    library.mamba_scan_backward.argtypes = [void] * 6
    library.mamba_block_forward.argtypes = [void] * 6
    library.mamba_block_backward.argtypes = [void] * 8
    for run in ("scan_forward", "scan_backward", "block_forward", "block_backward"):
        getattr(library, f"mamba_{run}").errcheck = _check_status
    return library


def why_unavailable() -> str | None:
    """Return None if the C kernels work here, else the reason why not."""
    try:
        isa()
    except ScanBackendError as error:
        return str(error)
    return None


def isa() -> str:
    """Return the name of the instruction set in use: $MAMBA_ISA, or else the best one here.

    Raises:
        ScanBackendError: the kernels cannot be built, or $MAMBA_ISA does not work here.
    """
    return ISAS[isa_number()]


@functools.cache
def isa_number() -> int:
    """Return the instruction set in use as the value of the C enum; see `isa`.

    It stays the same while the process runs: the layout of what a forward pass keeps depends on it.
    """
    library, wanted = load(), os.environ.get(ISA_VARIABLE)
    if not wanted:
        return int(library.mamba_scan_best_isa())
    working = [name for i, name in enumerate(ISAS) if library.mamba_scan_isa_works(i)]
    if wanted not in working:
        raise ScanBackendError(
            f"{ISA_VARIABLE}={wanted}: expected one that works here: {', '.join(working)}"
        )
    return ISAS.index(wanted)


def scan_item_bytes(tensors: Tensors) -> int:
    """Return the bytes that a forward scan keeps of each sequence; 0 for short ones."""
    return int(load().mamba_scan_checkpoint_bytes(_scan_dims(1, tensors, False)))


def scan_forward(
    tensors: Tensors, delta_softplus: bool, out: Tensor, checkpoints: Tensor | None
) -> None:
    """Run the forward scan into `out`.

    Args:
        tensors: u, delta (batch, Di, length), A (Di, N), B, C (batch, N, length), D (Di),
            z (batch, Di, length), delta_bias (Di). All have one dtype, float32 or float64; D, z and
            delta_bias may be None. Sequences may be strided; A, D and delta_bias are contiguous.
        delta_softplus: whether to apply a softplus to delta + delta_bias.
        out: (batch, Di, length).
        checkpoints: `scan_item_bytes` per sequence for the states at chunk borders; None if no
            backward pass will follow.
    """
    dims = _scan_dims(out.shape[0], tensors, delta_softplus)
    workspace = _bytes(load().mamba_scan_workspace_bytes(dims))
    load().mamba_scan_forward(
        ctypes.byref(dims),
        ctypes.byref(_scan_tensors(tensors)),
        ctypes.byref(_tensor3(out)),
        _pointer(checkpoints),
        workspace.data_ptr(),
    )


def scan_backward(
    tensors: Tensors, delta_softplus: bool, grad_out: Tensor, checkpoints: Tensor, grads: Tensors
) -> None:
    """Run the backward scan into `grads`, which have the order and shapes of `tensors`."""
    dims = _scan_dims(grad_out.shape[0], tensors, delta_softplus)
    workspace = _bytes(load().mamba_scan_workspace_bytes(dims))
    load().mamba_scan_backward(
        ctypes.byref(dims),
        ctypes.byref(_scan_tensors(tensors)),
        ctypes.byref(_tensor3(grad_out)),
        checkpoints.data_ptr() or workspace.data_ptr(),  # may be empty, but not NULL
        ctypes.byref(_scan_tensors(grads)),
        workspace.data_ptr(),
    )


class BlockPlan(NamedTuple):
    """The checked sizes of a block's tensors, and the bytes of memory that its passes need."""

    dims: _BlockDims
    saved_item_bytes: int
    """Bytes of each sequence that a forward pass saves for the backward pass."""
    workspace_bytes: int


def block_plan(
    hidden: Tensor, weights: Tensors, reverse: bool, norm_eps: float, fake: bool
) -> BlockPlan:
    """Check a block's tensors, of which the C code gets addresses only, and plan its calls.

    Args:
        hidden: (batch, length, d_model), float32 or float64.
        weights: of the same dtype, in the order of WEIGHTS: norm (d_model) or None for neither norm
            nor residual, in_proj (2 Di, d_model), out_proj (d_model, Di), then the fields of
            `DirectionWeights` for each direction; None for those of a missing second one.
        reverse: whether the first direction runs from the last step to the first.
        norm_eps: added to the mean of squares.
        fake: whether the batch may be a symbol. The plan is then for a batch of 1.

    Raises:
        TypeError, ValueError: a tensor has the wrong dtype, shape or device.
    """
    tensors = [hidden[:1], *weights] if fake else [hidden, *weights]
    return _block_plan(
        tuple(
            None if t is None else (_integers(t.shape) if fake else t.shape, t.dtype, t.device)
            for t in tensors
        ),
        reverse,
        norm_eps,
        _max_threads(),
    )


def _integers(shape: Sequence[Any]) -> Shape:
    """Return a shape of symbols as numbers."""
    return tuple(map(int, shape))


def block_forward(
    plan: BlockPlan, hidden: Tensor, weights: Tensors, out: Tensor, saved: Tensor | None
) -> None:
    """Run a block into `out`.

    Args:
        plan: the plan of these tensors.
        hidden, weights: see `block_plan`; contiguous.
        out: (batch, length, d_model), contiguous.
        saved: plan.saved_item_bytes per sequence; None if no backward pass will follow.
    """
    workspace = _bytes(plan.workspace_bytes)
    load().mamba_block_forward(
        ctypes.byref(plan.dims),
        _block_pointers(weights),
        hidden.data_ptr(),
        out.data_ptr(),
        _pointer(saved),
        workspace.data_ptr(),
    )


def block_backward(
    plan: BlockPlan,
    hidden: Tensor,
    weights: Tensors,
    saved: Tensor,
    grad_out: Tensor,
    grads: Tensors,
) -> None:
    """Run the backward pass into `grads`: that of `hidden`, then those of `weights`."""
    workspace = _bytes(plan.workspace_bytes)
    load().mamba_block_backward(
        ctypes.byref(plan.dims),
        _block_pointers(weights),
        hidden.data_ptr(),
        saved.data_ptr(),
        grad_out.data_ptr(),
        _pointer(grads[0]),
        _block_pointers(grads[1:]),
        workspace.data_ptr(),
    )


def _bytes(count: int) -> Tensor:
    """Return memory of at least one byte, so that it has an address; torch aligns it to 64."""
    return torch.empty(max(1, count), dtype=torch.uint8, device="cpu")


if hasattr(os, "register_at_fork"):
    # torch's own operations on these tensors would wait for the parent's threads, too.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def _max_threads() -> int:
    # The library may have been loaded after the fork, and not know of it.
    return 1 if is_forked() else torch.get_num_threads()


def _threads(updates: int, at_most: int) -> int:
    return min(at_most, 1 + updates // _UPDATES_PER_THREAD)


def _scan_dims(batch: int, tensors: Sequence[Any], delta_softplus: bool) -> _ScanDims:
    u, _, A, *_ = tensors
    channels, length = map(int, u.shape[1:])
    states = int(A.shape[1])
    return _ScanDims(
        batch=batch,
        channels=channels,
        length=length,
        states=states,
        rank=0,
        threads=_threads(batch * channels * length * states, _max_threads()),
        delta_softplus=delta_softplus,
        type=_TYPE[u.dtype],
        isa=isa_number(),
    )


@functools.lru_cache(maxsize=256)
def _block_plan(
    described: tuple[tuple[Shape, torch.dtype, torch.device] | None, ...],
    reverse: bool,
    norm_eps: float,
    max_threads: int,
) -> BlockPlan:
    """Return the plan for such tensors, cached: each training step has the same few."""
    hidden, *weights = (tensor and tensor[0] for tensor in described)
    dtype = _check_types(described)
    if hidden is None or len(hidden) != 3 or min(hidden) < 1:
        raise ValueError(
            f"hidden: got shape {hidden and tuple(hidden)}, expected (batch, length, d_model), all "
            "at least 1"
        )
    batch, length, d_model = hidden
    conv_weight, _, x_proj, dt_proj, _, a_log, _ = (shape or () for shape in weights[3:10])
    channels, rank = dt_proj
    tied = a_log[1] == 1
    states = (x_proj[0] - rank) // 2 if tied else a_log[1]
    shapes = weight_shapes(d_model, channels, states, rank, conv_weight[-1], tied)
    for name, got, expected in zip(WEIGHTS, weights, shapes, strict=True):
        if got is not None and got != expected:
            raise ValueError(f"{name}: got shape {tuple(got)}, expected {expected}")
    dims = _BlockDims(
        batch=batch,
        length=length,
        d_model=d_model,
        channels=channels,
        states=states,
        rank=rank,
        taps=conv_weight[-1],
        directions=2 if any(weights[10:]) else 1,
        reverse=reverse,
        tied=tied,
        threads=_threads(batch * channels * length * states, max_threads),
        type=_TYPE[dtype],
        isa=isa_number(),
        norm_eps=norm_eps,
    )
    return BlockPlan(
        dims,
        load().mamba_block_saved_bytes(dims) // batch,
        load().mamba_block_workspace_bytes(dims),
    )


def _check_types(
    described: tuple[tuple[Shape, torch.dtype, torch.device] | None, ...],
) -> torch.dtype:
    """Return the dtype of all tensors of a block, which are on the CPU."""
    dtype = torch.float32 if described[0] is None else described[0][1]
    if dtype not in _TYPE:
        raise TypeError(f"hidden: got dtype {dtype}, expected torch.float32 or torch.float64")
    for name, tensor in zip(("hidden", *WEIGHTS), described, strict=True):
        if tensor is not None and tensor[1] != dtype:
            raise TypeError(f"{name}: got dtype {tensor[1]}, expected {dtype} like hidden")
        if tensor is not None and tensor[2].type != "cpu":
            raise ValueError(f"{name}: got device {tensor[2]}, expected cpu")
    return dtype


def weight_shapes(
    d_model: int,
    channels: int,
    states: int,
    rank: int,
    taps: int,
    tied: bool,
    directions: int = _MAX_DIRECTIONS,
) -> tuple[Shape, ...]:
    """Return the shapes of WEIGHTS."""
    shared = [(d_model,), (2 * channels, d_model), (d_model, channels)]
    direction = [
        (channels, 1, taps),
        (channels,),
        (rank + 2 * states, channels),
        (channels, rank),
        (channels,),
        (channels, 1 if tied else states),
        (channels,),
    ]
    return (*shared, *directions * direction)


def _tensor3(tensor: Tensor | None) -> _Tensor3:
    return _Tensor3() if tensor is None else _Tensor3(tensor.data_ptr(), tensor.stride())


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _scan_tensors(tensors: Tensors) -> _ScanTensors:
    u, delta, A, B, C, D, z, delta_bias = tensors
    return _ScanTensors(*map(_tensor3, (u, delta, B, C, z)), *map(_pointer, (A, D, delta_bias)))


def _block_pointers(tensors: Tensors) -> ctypes.Array[ctypes.c_void_p]:
    return _BlockPointers(*map(_pointer, tensors))


def _check_status(status: int, function: Any, arguments: tuple[Any, ...]) -> None:
    """Raise if a C function returned an error: ctypes calls this after each of its calls."""
    if status != 0:
        reason = _STATUS.get(status, f"status {status}")
        raise RuntimeError(f"the C kernel of the scan refused its arguments: {reason}")
