"""The C library of csrc/scan: its build, its structures and its calls on torch tensors."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mnist_mamba.c_build import NativeBuildError, build_library, csrc_dir, isa_flags, shared_flags
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

OptionalTensors = Mapping[str, Tensor | None]


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
_WEIGHTS = _SHARED_WEIGHTS + _MAX_DIRECTIONS * _DIRECTION_WEIGHTS
_BlockPointers = ctypes.c_void_p * len(_WEIGHTS)

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


@functools.lru_cache(maxsize=1)
def _load() -> ctypes.CDLL | str:
    """Return the library, or why there is none; cached, so that a failing compiler runs once.

    No lock: a fork could leave it locked in the child for ever. Threads may build at the same time.
    """
    try:
        library = ctypes.CDLL(str(library_path()))
    except (NativeBuildError, OSError) as error:
        return str(error)
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


def load() -> ctypes.CDLL:
    """Return the C library.

    Raises:
        ScanBackendError: the library cannot be built.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise ScanBackendError(f"the C kernels of the scan cannot be built: {loaded}")
    return loaded


def isa() -> str:
    """Return the name of the instruction set in use: $MAMBA_ISA, or else the best one here.

    Raises:
        ScanBackendError: the kernels cannot be built, or $MAMBA_ISA does not work here.
    """
    return ISAS[isa_number()]


def isa_number() -> int:
    """Return the instruction set in use as the value of the C enum; see `isa`."""
    return _isa_number(load(), os.environ.get(ISA_VARIABLE, ""))


@functools.lru_cache
def _isa_number(library: ctypes.CDLL, wanted: str) -> int:
    if not wanted:
        return int(library.mamba_scan_best_isa())
    working = [name for i, name in enumerate(ISAS) if library.mamba_scan_isa_works(i)]
    if wanted not in working:
        raise ScanBackendError(
            f"{ISA_VARIABLE}={wanted}: expected one that works here: {', '.join(working)}"
        )
    return ISAS.index(wanted)


def scan_forward(
    inputs: OptionalTensors, delta_softplus: bool, out: Tensor, keep_checkpoints: bool
) -> Tensor | None:
    """Run the forward scan into `out`; return the states at chunk borders if they are to be kept.

    Args:
        inputs: u, delta, z (batch, Di, length), B, C (batch, N, length), A (Di, N), D,
            delta_bias (Di). All have one dtype, float32 or float64; z, D and delta_bias may be
            None. Sequences may be strided; A, D and delta_bias are contiguous.
        delta_softplus: whether to apply a softplus to delta + delta_bias.
        out: (batch, Di, length).
        keep_checkpoints: whether a backward pass will follow.
    """
    library = load()
    dims = _scan_dims(inputs, delta_softplus)
    workspace = _bytes(library.mamba_scan_workspace_bytes(dims))
    checkpoints = _bytes(library.mamba_scan_checkpoint_bytes(dims)) if keep_checkpoints else None
    library.mamba_scan_forward(
        ctypes.byref(dims),
        ctypes.byref(_scan_tensors(inputs)),
        ctypes.byref(_tensor3(out)),
        _pointer(checkpoints),
        workspace.data_ptr(),
    )
    return checkpoints


def scan_backward(
    inputs: OptionalTensors,
    delta_softplus: bool,
    grad_out: Tensor,
    checkpoints: Tensor,
    grads: OptionalTensors,
) -> None:
    """Run the backward scan into `grads`, which have the names and shapes of `inputs`."""
    library = load()
    dims = _scan_dims(inputs, delta_softplus)
    workspace = _bytes(library.mamba_scan_workspace_bytes(dims))
    library.mamba_scan_backward(
        ctypes.byref(dims),
        ctypes.byref(_scan_tensors(inputs)),
        ctypes.byref(_tensor3(grad_out)),
        checkpoints.data_ptr(),
        ctypes.byref(_scan_tensors(grads)),
        workspace.data_ptr(),
    )


class BlockPlan(NamedTuple):
    """The checked sizes of a block's tensors, and the bytes of memory that its passes need."""

    dims: _BlockDims
    saved_bytes: int
    workspace_bytes: int


def block_plan(
    hidden: Tensor, weights: Sequence[Tensor | None], reverse: bool, norm_eps: float
) -> BlockPlan:
    """Check a block's tensors, of which the C code gets addresses only, and plan its calls.

    Args:
        hidden: (batch, length, d_model), float32 or float64.
        weights: of the same dtype: norm (d_model) or None for neither norm nor residual, in_proj
            (2 Di, d_model), out_proj (d_model, Di), then the fields of `DirectionWeights` for one
            or two directions.
        reverse: whether the first direction runs from the last step to the first.
        norm_eps: added to the mean of squares.

    Raises:
        TypeError, ValueError: a weight has the wrong dtype, shape or device.
    """
    for name, weight in zip(_WEIGHTS, weights, strict=False):
        if weight is not None and weight.dtype != hidden.dtype:
            raise TypeError(
                f"{name}: got dtype {weight.dtype}, expected {hidden.dtype} like hidden"
            )
        if weight is not None and not weight.is_cpu:
            raise ValueError(f"{name}: got device {weight.device}, expected cpu")
    return _block_plan(
        load(),
        hidden.shape,
        tuple(None if weight is None else weight.shape for weight in weights),
        reverse,
        norm_eps,
        torch.get_num_threads(),
        _TYPE[hidden.dtype],
        isa_number(),
    )


def block_forward(
    plan: BlockPlan, hidden: Tensor, weights: Sequence[Tensor | None], out: Tensor, keep: bool
) -> Tensor | None:
    """Run a block into `out`; return what its backward pass needs if that is to be kept.

    Args:
        plan: the plan of these tensors.
        hidden, weights: see `block_plan`; contiguous.
        out: (batch, length, d_model), contiguous.
        keep: whether a backward pass will follow.
    """
    workspace = _bytes(plan.workspace_bytes)
    saved = _bytes(plan.saved_bytes) if keep else None
    load().mamba_block_forward(
        ctypes.byref(plan.dims),
        _block_pointers(weights),
        hidden.data_ptr(),
        out.data_ptr(),
        _pointer(saved),
        workspace.data_ptr(),
    )
    return saved


def block_backward(
    plan: BlockPlan,
    hidden: Tensor,
    weights: Sequence[Tensor | None],
    saved: Tensor,
    grad_out: Tensor,
    grad_hidden: Tensor,
    grads: Sequence[Tensor | None],
) -> None:
    """Run the backward pass into `grad_hidden` and `grads`, which have the order of `weights`."""
    workspace = _bytes(plan.workspace_bytes)
    load().mamba_block_backward(
        ctypes.byref(plan.dims),
        _block_pointers(weights),
        hidden.data_ptr(),
        saved.data_ptr(),
        grad_out.data_ptr(),
        grad_hidden.data_ptr(),
        _block_pointers(grads),
        workspace.data_ptr(),
    )


def _bytes(count: int) -> Tensor:
    """Return memory of at least one byte, so that it has an address; torch aligns it to 64."""
    return torch.empty(max(1, count), dtype=torch.uint8, device="cpu")


def _given(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise TypeError("a required tensor is None")
    return tensor


def _threads(updates: int, at_most: int) -> int:
    return min(at_most, 1 + updates // _UPDATES_PER_THREAD)


def _scan_dims(inputs: OptionalTensors, delta_softplus: bool) -> _ScanDims:
    u = _given(inputs["u"])
    batch, channels, length = u.shape
    states = _given(inputs["A"]).shape[1]
    return _ScanDims(
        batch=batch,
        channels=channels,
        length=length,
        states=states,
        rank=0,
        threads=_threads(batch * channels * length * states, torch.get_num_threads()),
        delta_softplus=delta_softplus,
        type=_TYPE[u.dtype],
        isa=isa_number(),
    )


@functools.lru_cache(maxsize=256)
def _block_plan(
    library: ctypes.CDLL,
    hidden: Shape,
    weights: tuple[Shape | None, ...],
    reverse: bool,
    norm_eps: float,
    max_threads: int,
    type_number: int,
    isa: int,
) -> BlockPlan:
    """Return the plan for these shapes, cached: each training step has the same few."""
    batch, length, d_model = hidden
    conv_weight, _, x_proj, dt_proj, _, a_log, _ = (shape or () for shape in weights[3:10])
    channels, rank = dt_proj
    tied = a_log[1] == 1
    states = (x_proj[0] - rank) // 2 if tied else a_log[1]
    dims = _BlockDims(
        batch=batch,
        length=length,
        d_model=d_model,
        channels=channels,
        states=states,
        rank=rank,
        taps=conv_weight[-1],
        directions=(len(weights) - len(_SHARED_WEIGHTS)) // len(_DIRECTION_WEIGHTS),
        reverse=reverse,
        tied=tied,
        threads=_threads(batch * channels * length * states, max_threads),
        type=type_number,
        isa=isa,
        norm_eps=norm_eps,
    )
    for i, (got, expected) in enumerate(zip(weights, _weight_shapes(dims), strict=True)):
        if got is not None and tuple(got) != expected:
            raise ValueError(f"{_WEIGHTS[i]}: got shape {tuple(got)}, expected {expected}")
    return BlockPlan(
        dims,
        library.mamba_block_saved_bytes(dims),
        library.mamba_block_workspace_bytes(dims),
    )


def _weight_shapes(dims: _BlockDims) -> list[Shape]:
    """Return the shapes of _SHARED_WEIGHTS, then of _DIRECTION_WEIGHTS for each direction."""
    d_model, channels, rank, states = dims.d_model, dims.channels, dims.rank, dims.states
    shared: list[Shape] = [(d_model,), (2 * channels, d_model), (d_model, channels)]
    direction: list[Shape] = [
        (channels, 1, dims.taps),
        (channels,),
        (rank + 2 * states, channels),
        (channels, rank),
        (channels,),
        (channels, 1 if dims.tied else states),
        (channels,),
    ]
    return shared + int(dims.directions) * direction


def _tensor3(tensor: Tensor | None) -> _Tensor3:
    return _Tensor3() if tensor is None else _Tensor3(tensor.data_ptr(), tensor.stride())


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _scan_tensors(tensors: OptionalTensors) -> _ScanTensors:
    sequences = [_tensor3(tensors[name]) for name in ("u", "delta", "B", "C", "z")]
    return _ScanTensors(*sequences, *(_pointer(tensors[name]) for name in ("A", "D", "delta_bias")))


def _block_pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return _BlockPointers(*map(_pointer, tensors))


def _check_status(status: int, function: Any, arguments: tuple[Any, ...]) -> None:
    """Raise if a C function returned an error: ctypes calls this after each of its calls."""
    if status != 0:
        reason = _STATUS.get(status, f"status {status}")
        raise RuntimeError(f"the C kernel of the scan refused its arguments: {reason}")
