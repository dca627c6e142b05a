"""The selective scan on the CPU: an autograd function around the C kernel in csrc/scan."""

from __future__ import annotations

import ctypes
import functools
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_mamba.native import NativeBuildError, build_library, csrc_dir
from mnist_mamba.scan.errors import ScanBackendError

# No -ffast-math: NaN, infinity and the order of sums keep their meaning. -ffp-contract=fast allows
# fused multiply-adds, which -std=c11 forbids. -fno-trapping-math says that nobody reads the
# floating-point exception flags; without it gcc leaves selects as branches, and the AVX2 code, not
# vectorised then, is seven times slower.
CFLAGS = (
    "-std=c11",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
)

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_STATUS = {1: "a dimension or the thread count is smaller than 1", 2: "a pointer is NULL"}
# About 15 microseconds of work; for less, waking another thread costs more than it saves.
_UPDATES_PER_THREAD = 16384
_lock = threading.Lock()


class _Dims(ctypes.Structure):
    _fields_ = [
        (field, ctypes.c_ssize_t)
        for field in ("batch", "channels", "length", "states", "threads", "delta_softplus")
    ]


class _Tensor3(ctypes.Structure):
    """ScanTensor and ScanMutableTensor, which differ in const only."""

    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_ssize_t * 3)]


class _Tensors(ctypes.Structure):
    """ScanInputs and ScanGradients, whose fields stand in the same order."""

    _fields_ = [
        ("u", _Tensor3),
        ("delta", _Tensor3),
        ("B", _Tensor3),
        ("C", _Tensor3),
        ("z", _Tensor3),
        ("A", ctypes.c_void_p),
        ("D", ctypes.c_void_p),
        ("delta_bias", ctypes.c_void_p),
    ]


def library_path() -> Path:
    """Build the C kernel, or find it in the cache, and return its path."""
    folder = csrc_dir() / "scan"
    return build_library("selective_scan", [folder / "selective_scan.c"], [folder], CFLAGS)


@functools.lru_cache(maxsize=1)
def _load() -> ctypes.CDLL | str:
    """The kernel, or why there is none; remembered, so that a failing compiler runs once."""
    try:
        library = ctypes.CDLL(str(library_path()))
    except (NativeBuildError, OSError) as error:
        return str(error)
    for count in ("checkpoint", "forward_workspace", "backward_workspace"):
        function = getattr(library, f"selective_scan_{count}_count")
        function.argtypes = [ctypes.POINTER(_Dims)]
        function.restype = ctypes.c_ssize_t
    for suffix in _SUFFIX.values():
        forward = getattr(library, f"selective_scan_forward_{suffix}")
        forward.argtypes = [ctypes.c_void_p] * 5
        forward.restype = ctypes.c_int
        backward = getattr(library, f"selective_scan_backward_{suffix}")
        backward.argtypes = [ctypes.c_void_p] * 6
        backward.restype = ctypes.c_int
    return library


def why_unavailable() -> str | None:
    """Return None where the C kernel can be used, else the reason why not."""
    with _lock:
        loaded = _load()
    return loaded if isinstance(loaded, str) else None


def _library() -> ctypes.CDLL:
    with _lock:
        loaded = _load()
    if isinstance(loaded, str):
        raise ScanBackendError(f"the C kernel of the selective scan cannot be built: {loaded}")
    return loaded


def selective_scan_cpu(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Scan with the C kernel on ``torch.get_num_threads()`` threads; same bits for any number.

    float32 and float64; half types are computed in float32. Strided inputs (u, delta, z, B, C) are
    read in place, and the result has the memory layout of ``delta``: when that comes from a linear
    layer (a transposed (batch, length, d_inner)), the next linear layer needs no copy either.

    Shapes and errors: see ``selective_scan``, which checks them.

    Raises:
        ScanBackendError: the kernel cannot be built.
    """
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    tensors = [
        None if tensor is None else tensor.to(dtype)
        for tensor in (u, delta, A, B, C, D, z, delta_bias)
    ]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        out: Tensor = _SelectiveScan.apply(*tensors, delta_softplus)  # type: ignore[no-untyped-call]
    else:
        out = _forward(tensors, delta_softplus, keep_checkpoints=False)[0]
    return out.to(u.dtype)


class _SelectiveScan(torch.autograd.Function):
    """Keeps the inputs and the states at the chunk borders; the backward recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, delta_softplus = arguments
        out, checkpoints = _forward(tensors, delta_softplus, keep_checkpoints=True)
        ctx.save_for_backward(*tensors, checkpoints)
        ctx.delta_softplus = delta_softplus
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; torch's own check looks at grad_out only
            raise RuntimeError(
                "the C kernel of the selective scan has no second derivatives (create_graph=True); "
                "use backend='reference'"
            )
        *tensors, checkpoints = ctx.saved_tensors
        grads = _backward(tensors, ctx.delta_softplus, grad_out, checkpoints)
        needed = ctx.needs_input_grad
        return (*(grad if need else None for grad, need in zip(grads, needed, strict=False)), None)


def _forward(
    tensors: list[Tensor | None], delta_softplus: bool, keep_checkpoints: bool
) -> tuple[Tensor, Tensor | None]:
    """Run the forward kernel on (u, delta, A, B, C, D, z, delta_bias)."""
    library = _library()
    tensors = _contiguous_parameters(tensors)
    delta = _given(tensors[1])
    dims = _dims(tensors, delta_softplus)
    out = torch.empty_like(delta)
    workspace = delta.new_empty(library.selective_scan_forward_workspace_count(dims))
    checkpoints = None
    if keep_checkpoints:
        # One element at least, so that there is an address.
        checkpoints = delta.new_empty(max(1, library.selective_scan_checkpoint_count(dims)))
    status = getattr(library, f"selective_scan_forward_{_SUFFIX[delta.dtype]}")(
        ctypes.byref(dims),
        ctypes.byref(_structure(tensors)),
        ctypes.byref(_tensor3(out)),
        None if checkpoints is None else checkpoints.data_ptr(),
        workspace.data_ptr(),
    )
    _check(status)
    return out, checkpoints


def _backward(
    tensors: list[Tensor | None], delta_softplus: bool, grad_out: Tensor, checkpoints: Tensor
) -> list[Tensor | None]:
    """Run the backward kernel; the gradients stand in the order of the inputs."""
    library = _library()
    tensors = _contiguous_parameters(tensors)
    dims = _dims(tensors, delta_softplus)
    # empty_like gives an expanded input a gradient of its full size; autograd sums it.
    grads = [None if tensor is None else torch.empty_like(tensor) for tensor in tensors]
    count = library.selective_scan_backward_workspace_count(dims)
    workspace = checkpoints.new_empty(count)
    status = getattr(library, f"selective_scan_backward_{_SUFFIX[checkpoints.dtype]}")(
        ctypes.byref(dims),
        ctypes.byref(_structure(tensors)),
        ctypes.byref(_tensor3(grad_out)),
        checkpoints.data_ptr(),
        ctypes.byref(_structure(grads)),
        workspace.data_ptr(),
    )
    _check(status)
    return grads


def _contiguous_parameters(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """A, D and delta_bias, which are small, are read contiguously."""
    u, delta, a, b, c, d, z, bias = tensors
    a, d, bias = (None if t is None else t.contiguous() for t in (a, d, bias))
    return [u, delta, a, b, c, d, z, bias]


def _given(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise TypeError("a required tensor is None")
    return tensor


def _dims(tensors: list[Tensor | None], delta_softplus: bool) -> _Dims:
    batch, channels, length = _given(tensors[0]).shape
    states = _given(tensors[2]).shape[1]
    worthwhile = 1 + batch * channels * length * states // _UPDATES_PER_THREAD
    threads = min(torch.get_num_threads(), worthwhile)
    return _Dims(batch, channels, length, states, threads, int(delta_softplus))


def _tensor3(tensor: Tensor | None) -> _Tensor3:
    if tensor is None:
        return _Tensor3(None, (ctypes.c_ssize_t * 3)(0, 0, 0))
    return _Tensor3(tensor.data_ptr(), (ctypes.c_ssize_t * 3)(*tensor.stride()))


def _structure(tensors: list[Tensor | None]) -> _Tensors:
    u, delta, a, b, c, d, z, bias = tensors
    strided = [_tensor3(tensor) for tensor in (u, delta, b, c, z)]
    vectors = [None if tensor is None else tensor.data_ptr() for tensor in (a, d, bias)]
    return _Tensors(*strided, *vectors)


def _check(status: int) -> None:
    if status != 0:
        reason = _STATUS.get(status, f"status {status}")
        raise RuntimeError(f"the C kernel of the selective scan refused its arguments: {reason}")
