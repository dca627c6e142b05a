"""The Mamba-1 mixer, with the parameter names and shapes of `mamba_ssm.Mamba`."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mnist_mamba.scan import c_library, choose, selective_scan
from mnist_mamba.scan.cpu import DirectionWeights, mamba_block_cpu

_FUSED_DTYPES = (torch.float32, torch.float64)
_MIN_EPS = 1e-30
"""Smallest eps of a fused norm. Squares below float32's smallest normal number, 1.2e-38, lose bits
or all of their value; next to a larger eps, this loss is less than a rounding."""


class MambaMixer(nn.Module):
    """Selective state space mixer on (batch, length, d_model), any floating dtype.

    Its `state_dict` loads key for key into `mamba_ssm.Mamba` and Hugging Face's `MambaMixer`, and
    with `bidirectional` into Vision Mamba's mixer (`bimamba_type="v2"`, outputs averaged).

    Args:
        d_model: width of the tokens (D).
        d_state: states per channel (N).
        d_conv: taps of the causal depthwise convolution (K).
        expand: inner width as a multiple of d_model; Di = expand * D.
        dt_rank: rank of the step size's projection (R); "auto" is ceil(D / 16).
        dt_min, dt_max: range of the initial step sizes, log-uniform.
        dt_init_floor: smallest initial step size.
        dt_scale: scale of dt_proj's initial weights.
        a: "free" learns A (Di, N); "tied" learns a_log (Di, 1), A[d, n] = -n exp(a_log[d]).
        bidirectional: add a second scan, from the last token to the first, that shares in_proj and
            out_proj.
        scan: backend of the scan (`mnist_mamba.scan`): auto, reference, cpu, triton or cuda.

    Source: Gu & Dao 2023, arXiv 2312.00752; Zhu et al. 2024, arXiv 2401.09417 (bidirectional).

    >>> mixer = MambaMixer(d_model=8, d_state=4)
    >>> mixer(torch.randn(2, 10, 8)).shape
    torch.Size([2, 10, 8])
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_scale: float = 1.0,
        a: Literal["free", "tied"] = "free",
        bidirectional: bool = False,
        scan: str = "auto",
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv = d_model, d_state, d_conv
        self.d_inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.tied = a == "tied"
        self.bidirectional = bidirectional
        self.scan_backend = scan

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        for suffix in self.suffixes:
            self._add_scan(suffix, dt_min, dt_max, dt_init_floor, dt_scale)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def _add_scan(
        self, suffix: str, dt_min: float, dt_max: float, dt_init_floor: float, dt_scale: float
    ) -> None:
        """Register one direction's parameters, with the suffixes of Vision Mamba."""
        d_inner, d_state, dt_rank = self.d_inner, self.d_state, self.dt_rank
        conv1d = nn.Conv1d(
            d_inner, d_inner, self.d_conv, groups=d_inner, padding=self.d_conv - 1, bias=True
        )
        dt_proj = nn.Linear(dt_rank, d_inner, bias=True)
        bound = dt_rank**-0.5 * dt_scale
        nn.init.uniform_(dt_proj.weight, -bound, bound)
        log_range = math.log(dt_max) - math.log(dt_min)
        dt = torch.exp(torch.rand(d_inner) * log_range + math.log(dt_min)).clamp(min=dt_init_floor)
        with torch.no_grad():
            # The inverse of softplus: the initial step sizes are dt.
            dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

        self.add_module(f"conv1d{suffix}", conv1d)
        self.add_module(f"x_proj{suffix}", nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False))
        self.add_module(f"dt_proj{suffix}", dt_proj)
        states = torch.arange(1.0, d_state + 1)  # of the default dtype, as other weights
        a_log = torch.zeros(d_inner, 1) if self.tied else torch.log(states).repeat(d_inner, 1)
        self.register_parameter(self.a_name(suffix), nn.Parameter(a_log))
        self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(d_inner)))

    def a_name(self, suffix: str = "") -> str:
        """Return the name of one direction's A parameter."""
        return f"{'a' if self.tied else 'A'}{suffix}_log"

    def state_matrix(self, suffix: str = "") -> Tensor:
        """Return A (Di, N) of one direction, all negative, in the parameters' dtype."""
        log: Tensor = getattr(self, self.a_name(suffix))
        if not self.tied:
            return -torch.exp(log)
        states = torch.arange(1, self.d_state + 1, dtype=log.dtype, device=log.device)
        return -torch.exp(log) * states

    def untied_state_dict(self) -> dict[str, Tensor]:
        """Return the parameters for other implementations: a tied a_log becomes the equal A_log."""
        state = dict(self.state_dict())
        for suffix in self.suffixes if self.tied else ():
            del state[self.a_name(suffix)]
            state[f"A{suffix}_log"] = torch.log(-self.state_matrix(suffix).detach())
        return state

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the directions' parameter names."""
        return ("", "_b") if self.bidirectional else ("",)

    def scan_inputs(
        self, x: Tensor, suffix: str = ""
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Return the inputs of one direction's scan.

        Args:
            x: in_proj's first half, (batch, Di, length), in the order of the scan.
            suffix: the direction's.

        Returns:
            u (batch, Di, length), delta before bias and softplus (batch, Di, length),
            B and C (batch, N, length), and delta's bias (Di), or None if delta has it already.
        """
        length = x.shape[-1]
        u = F.silu(self.get_submodule(f"conv1d{suffix}")(x)[..., :length])
        projected = self.get_submodule(f"x_proj{suffix}")(u.transpose(1, 2))
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt_proj: Any = self.get_submodule(f"dt_proj{suffix}")
        if _is_plain(dt_proj, nn.Linear):
            delta, bias = F.linear(dt, dt_proj.weight), dt_proj.bias
        else:
            delta, bias = dt_proj(dt), None
        return u, delta.transpose(1, 2), B.transpose(1, 2), C.transpose(1, 2), bias

    def direction_weights(self, suffix: str = "") -> DirectionWeights:
        """Return one direction's parameters, assuming the modules that __init__ made.

        They need not be Parameters: `functional_call` and replicas put other tensors there.
        """
        conv1d: Any = self._modules[f"conv1d{suffix}"]
        dt_proj: Any = self._modules[f"dt_proj{suffix}"]
        x_proj: Any = self._modules[f"x_proj{suffix}"]
        return DirectionWeights(
            conv1d.weight,
            conv1d.bias,
            x_proj.weight,
            dt_proj.weight,
            dt_proj.bias,
            getattr(self, self.a_name(suffix)),
            getattr(self, f"D{suffix}"),
        )

    def runs_fused(self, hidden: Tensor, norm: nn.Module | None = None) -> bool:
        """Return whether `fused` computes what the modules would; otherwise torch must run them.

        It does on the CPU if there are tokens, if all tensors have one dtype, float32 or float64,
        without autocast, and if each module is as __init__ made it, but for the values of its
        weights: of the same class (no subclass, so not parametrised either), with the same settings
        and shapes, without hooks, its own or global ones, and with the methods of `_METHODS` that
        its class had when this file was imported. The norm has to be an RMSNorm with a weight and
        an eps of at least 1e-30.

        It does not notice functions that were replaced elsewhere: `torch.nn.functional.silu`,
        `torch.nn.Module.__call__`, which tracers replace, or those of a `TorchFunctionMode`.
        """
        return (
            hidden.dtype in _FUSED_DTYPES
            and hidden.numel() > 0
            and not torch.is_autocast_enabled("cpu")
            and _is_plain(self, MambaMixer)
            and all(map(self._has_own_parts, self.suffixes))
            and _is_linear(self.in_proj, with_bias=False)
            and _is_linear(self.out_proj, with_bias=False)
            and (norm is None or is_rms_norm(norm, self.d_model))
            and self._has_own_weights(hidden, norm)
            and choose(self.scan_backend, hidden.device) == "cpu"
        )

    def _has_own_parts(self, suffix: str) -> bool:
        """Return whether one direction's modules are as `_add_scan` made them."""
        conv1d: Any = self._modules[f"conv1d{suffix}"]
        return (
            _is_plain(conv1d, nn.Conv1d)
            and conv1d.bias is not None
            and (conv1d.padding, conv1d.padding_mode) == ((self.d_conv - 1,), "zeros")
            and (conv1d.stride, conv1d.dilation, conv1d.groups) == ((1,), (1,), self.d_inner)
            and _is_linear(self._modules[f"x_proj{suffix}"], with_bias=False)
            and _is_linear(self._modules[f"dt_proj{suffix}"], with_bias=True)
        )

    def _has_own_weights(self, hidden: Tensor, norm: Any) -> bool:
        """Return whether all weights have the shapes of __init__ and `hidden`'s dtype and device.

        All must be dense, and none may define torch's functions itself, as quantised tensors do.
        """
        weights = [None if norm is None else norm.weight, self.in_proj.weight, self.out_proj.weight]
        weights += [w for suffix in self.suffixes for w in self.direction_weights(suffix)]
        shapes = c_library.weight_shapes(
            self.d_model, self.d_inner, self.d_state, self.dt_rank, self.d_conv, self.tied
        )
        kinds = [(tensor, shape) for tensor, shape in zip(weights, shapes, strict=False)]
        return all(
            tensor is None
            or (
                (tensor.dtype, tensor.device, tensor.shape) == (hidden.dtype, hidden.device, shape)
                and tensor.layout == torch.strided
                and not has_own_functions(tensor)
            )
            for tensor, shape in [(hidden, hidden.shape), *kinds]
        )

    def fused(self, hidden: Tensor, reverse: bool, norm: nn.RMSNorm | None = None) -> Tensor:
        """Return mixer(hidden), or hidden + mixer(norm(hidden)), from one C call.

        Valid only where `runs_fused` says so.
        """
        return mamba_block_cpu(
            hidden,
            self.in_proj.weight,
            self.out_proj.weight,
            [self.direction_weights(suffix) for suffix in self.suffixes],
            reverse,
            None if norm is None else norm.weight,
            0.0 if norm is None or norm.eps is None else norm.eps,
        )

    def _composed(self, xz: Tensor, suffix: str, reverse: bool) -> Tensor:
        """Return one direction's gated y (batch, length, Di) of in_proj's (batch, length, 2 Di)."""
        if reverse:
            xz = xz.flip(1)
        x, z = xz.transpose(1, 2).chunk(2, dim=1)
        u, delta, B, C, delta_bias = self.scan_inputs(x, suffix)
        y = selective_scan(
            u,
            delta,
            self.state_matrix(suffix),
            B,
            C,
            D=getattr(self, f"D{suffix}"),
            z=z,
            delta_bias=delta_bias,
            delta_softplus=True,
            backend=self.scan_backend,
        ).transpose(1, 2)
        return y.flip(1) if reverse else y

    def forward(self, hidden: Tensor, reverse: bool = False) -> Tensor:
        """Mix (batch, length, d_model) tokens; `reverse` scans from the last token to the first."""
        if self.runs_fused(hidden):
            return self.fused(hidden, reverse)
        xz = self.in_proj(hidden)
        y = self._composed(xz, "", reverse)
        if self.bidirectional:
            y = (y + self._composed(xz, "_b", not reverse)) / 2
        out: Tensor = self.out_proj(y)
        return out


_CALL = ("_wrapped_call_impl", "_call_impl", "forward")
_METHODS: dict[type[nn.Module], list[tuple[str, Any]]] = {
    kind: [(name, getattr(kind, name)) for name in (*_CALL, *others)]
    for kind, others in (
        (nn.Linear, ()),
        (nn.RMSNorm, ()),
        (nn.Conv1d, ("_conv_forward",)),
        (MambaMixer, ("_composed", "scan_inputs", "state_matrix")),
    )
}
"""The methods that run when a module is called, as its class had them at import."""


def _is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Return whether a call of the module runs the methods of its class and nothing else."""
    return (
        type(module) is kind
        and _has_own_methods(module, kind)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and not _has_any_global_hook()
    )


def _has_own_methods(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether nobody has replaced a method of _METHODS in the module or in its class."""
    for name, method in _METHODS[kind]:
        if name in module.__dict__ or getattr(kind, name) is not method:
            return False
    return True


def _is_linear(module: Any, with_bias: bool) -> bool:
    return _is_plain(module, nn.Linear) and (module.bias is not None) == with_bias


def has_own_functions(tensor: Tensor) -> bool:
    """Return whether a tensor's class says what torch's functions do with it."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    function: Any = type(tensor).__torch_function__
    return getattr(function, "__func__", function) not in _TORCH_FUNCTIONS


_of_tensors: Any = Tensor.__torch_function__
_TORCH_FUNCTIONS = (_of_tensors.__func__, torch._C._disabled_torch_function_impl)
"""`__torch_function__` of tensors, and of subclasses that leave torch's functions alone."""


def is_rms_norm(norm: Any, d_model: int) -> bool:
    """Return whether a call of the module is an RMSNorm with a weight, and nothing else.

    Its eps has to be a number, not None (torch's choice by dtype), and at least `_MIN_EPS`.
    """
    return (
        _is_plain(norm, nn.RMSNorm)
        and norm.weight is not None
        and norm.eps is not None
        and norm.eps >= _MIN_EPS
        and norm.normalized_shape == (d_model,)
    )
