"""The Mamba-1 mixer, with the parameter names and shapes of `mamba_ssm.Mamba`."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_mamba.scan import choose, selective_scan
from mnist_mamba.scan.cpu import DirectionWeights, mamba_block_cpu

_FUSED_DTYPES = (torch.float32, torch.float64)


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
        states = torch.arange(1, d_state + 1, dtype=torch.float32)
        a_log = torch.zeros(d_inner, 1) if self.tied else torch.log(states).repeat(d_inner, 1)
        self.register_parameter(self.a_name(suffix), nn.Parameter(a_log))
        self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(d_inner)))

    def a_name(self, suffix: str = "") -> str:
        """Return the name of one direction's A parameter."""
        return f"{'a' if self.tied else 'A'}{suffix}_log"

    def state_matrix(self, suffix: str = "") -> Tensor:
        """Return A (Di, N) of one direction, all negative, in the parameters' dtype."""
        log = self.get_parameter(self.a_name(suffix))
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

    def scan_inputs(self, x: Tensor, suffix: str = "") -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the inputs of one direction's scan.

        Args:
            x: in_proj's first half, (batch, Di, length), in the order of the scan.
            suffix: the direction's.

        Returns:
            u (batch, Di, length), delta before bias and softplus (batch, Di, length),
            B and C (batch, N, length).
        """
        length = x.shape[-1]
        u = F.silu(self.get_submodule(f"conv1d{suffix}")(x)[..., :length])
        projected = self.get_submodule(f"x_proj{suffix}")(u.transpose(1, 2))
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt_proj = self.get_submodule(f"dt_proj{suffix}")
        assert isinstance(dt_proj, nn.Linear)
        delta = F.linear(dt, dt_proj.weight)  # the scan adds the bias
        return u, delta.transpose(1, 2), B.transpose(1, 2), C.transpose(1, 2)

    def direction_weights(self, suffix: str = "") -> DirectionWeights:
        """Return one direction's parameters, assuming the modules that __init__ made."""
        parts, parameters = self._modules, self._parameters
        conv1d: Any = parts[f"conv1d{suffix}"]
        dt_proj: Any = parts[f"dt_proj{suffix}"]
        x_proj: Any = parts[f"x_proj{suffix}"]
        a_log, D = parameters[self.a_name(suffix)], parameters[f"D{suffix}"]
        assert a_log is not None
        assert D is not None
        return DirectionWeights(
            conv1d.weight, conv1d.bias, x_proj.weight, dt_proj.weight, dt_proj.bias, a_log, D
        )

    def runs_fused(self, hidden: Tensor, norm: nn.Module | None = None) -> bool:
        """Whether `fused` may replace the modules: CPU, one dtype, and no module was changed.

        If a module was replaced, hooked or given a bias, torch must run it. The check runs in
        every layer at every step, so it is kept short.
        """
        return (
            hidden.dtype in _FUSED_DTYPES
            and not _has_hooks(self)
            and all(self._is_own(name, module) for name, module in self._modules.items())
            and (norm is None or _is_plain_norm(norm))
            and all(weight.dtype == hidden.dtype for weight in self._weights(norm))
            and choose(self.scan_backend, hidden.device) == "cpu"
        )

    def _is_own(self, name: str, module: nn.Module | None) -> bool:
        """Whether a child module is as __init__ made it, and without hooks."""
        if module is None or _has_hooks(module):
            return False
        if name.startswith("conv1d"):
            padding = (self.d_conv - 1,)
            return (
                type(module) is nn.Conv1d and module.bias is not None and module.padding == padding
            )
        wants_bias = name.startswith("dt_proj")
        return type(module) is nn.Linear and (module.bias is not None) == wants_bias

    def _weights(self, norm: Any) -> list[Tensor]:
        """Return all that `fused` reads; call after `_is_own` and `_is_plain_norm`."""
        shared = [self.in_proj.weight, self.out_proj.weight]
        if norm is not None:
            shared.append(norm.weight)
        return shared + [w for suffix in self.suffixes for w in self.direction_weights(suffix)]

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
        u, delta, B, C = self.scan_inputs(x, suffix)
        y = selective_scan(
            u,
            delta,
            self.state_matrix(suffix),
            B,
            C,
            D=self.get_parameter(f"D{suffix}"),
            z=z,
            delta_bias=self.get_parameter(f"dt_proj{suffix}.bias"),
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


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _is_plain_norm(norm: nn.Module) -> bool:
    """Whether the kernel computes this norm; without an eps, torch chooses one by the dtype."""
    plain = type(norm) is nn.RMSNorm and norm.weight is not None and norm.eps is not None
    return plain and not _has_hooks(norm)
