"""The classifier, from images to logits: stem, residual blocks of mixers, pool, head."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_mamba.config import Direction, ModelConfig
from mnist_mamba.model.mixer import MambaMixer, is_rms_norm


class PatchStem(nn.Module):
    """A linear map of each patch.

    (batch, height, width[, channels]) to (batch, length, d_model).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.linear = nn.Linear(config.patch[0] * config.patch[1] * config.channels, config.d_model)

    def forward(self, pixels: Tensor) -> Tensor:
        rows, columns = self.patch
        patches = pixels.unfold(1, rows, rows).unfold(2, columns, columns)
        if pixels.dim() == 4:  # the channels are before the patch's rows and columns
            patches = patches.movedim(3, 5)
        tokens: Tensor = self.linear(patches.flatten(3).flatten(1, 2))
        return tokens


class BatchNorm(nn.BatchNorm2d):
    """torch's batch norm, but for one value per channel, and for weights anywhere in memory.

    One value has no variance, and torch refuses it in training. This norm then applies the running
    statistics, as in evaluation: a last batch of one image may have a grid of 1x1. On a GPU, cuDNN
    fails if a weight does not begin at a multiple of 16 bytes, as in the vector of all weights that
    a trainer makes. There it gets copies, and `num_batches_tracked`, which nothing reads, stays.
    """

    def forward(self, maps: Tensor) -> Tensor:
        one_value = self.training and maps.numel() == self.num_features
        if not one_value and not maps.is_cuda:
            return super().forward(maps)
        assert self.momentum is not None
        return F.batch_norm(
            maps,
            self.running_mean,
            self.running_var,
            self.weight.clone(),
            self.bias.clone(),
            self.training and not one_value,
            self.momentum,
            self.eps,
        )


class ConvStem(nn.Module):
    """3x3 convolutions with SiLU between them; two have stride 2.

    (batch, height, width[, channels]) to (batch, ceil(height / 4) * ceil(width / 4), d_model). With
    `stem_norm = "batch"`, a batch norm follows each convolution; export folds it into the weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_convs = len(config.stem_convs)
        normed = config.stem_norm == "batch"
        for i, (channels, out, stride) in enumerate(config.stem_convs, start=1):
            conv = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=not normed)
            self.add_module(f"conv{i}", conv)
            norm = BatchNorm(out) if normed else nn.Identity()
            self.add_module(f"norm{i}", norm)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.movedim(3, 1)
        for i in range(1, self.n_convs + 1):
            maps = F.silu(maps) if i > 1 else maps
            maps = self.get_submodule(f"norm{i}")(self.get_submodule(f"conv{i}")(maps))
        return torch.flatten(maps, 2).transpose(1, 2)

    def folded(self, i: int) -> tuple[Tensor, Tensor]:
        """Return weight (out, in, 3, 3) and bias (out,) of convolution i (from 1), norm folded.

        Both are float64.
        """
        conv, norm = self.get_submodule(f"conv{i}"), self.get_submodule(f"norm{i}")
        assert isinstance(conv, nn.Conv2d)
        return _folded(conv, norm)


def _folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a convolution's float64 weight and bias, with any batch norm after it folded."""
    weight = conv.weight.detach().cpu().double()
    if not isinstance(norm, nn.BatchNorm2d):
        assert conv.bias is not None
        return weight, conv.bias.detach().cpu().double()
    gain, shift, mean, var = (
        norm.state_dict()[name].cpu().double()
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain * torch.rsqrt(var + norm.eps)
    return weight * scale[:, None, None, None], shift - mean * scale


class ScanOrder(NamedTuple):
    """The order in which a layer scans the grid of tokens."""

    columns: bool
    """Column by column instead of row by row."""
    reverse: bool
    """From the last token to the first."""


def scan_order(direction: Direction, layer: int) -> ScanOrder:
    """Return the order of a layer, counted from 0.

    Cross repeats the four orders of VMamba's cross-scan (Liu et al. 2024), one per layer: rows,
    columns, rows backwards, columns backwards.
    """
    if direction == "cross":
        return ScanOrder(columns=layer % 2 == 1, reverse=layer % 4 >= 2)
    return ScanOrder(columns=False, reverse=direction == "alternate" and layer % 2 == 1)


class LocalConv(nn.Module):
    """x + norm(depthwise 3x3 convolution of x over the grid of tokens, zero-padded).

    Neighbours in the image may be far apart in a scan. This is CMT's local perception unit (Guo et
    al. 2022, arXiv 2107.06263). Export folds the batch norm into the convolution.
    """

    def __init__(self, d_model: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(d_model, d_model, 3, padding=1, groups=d_model, bias=False)
        self.norm = BatchNorm(d_model)

    def forward(self, residual: Tensor) -> Tensor:
        """Map (batch, length, d_model) to the same shape, in image order."""
        # A channels-last view of the tokens: no copy.
        maps = residual.unflatten(1, self.grid).permute(0, 3, 1, 2)
        near: Tensor = self.norm(self.conv(maps.to(self.conv.weight.dtype)))
        return residual + near.permute(0, 2, 3, 1).flatten(1, 2)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return taps (3 * 3, d_model) and bias (d_model,), float64, with the residual x folded."""
        weight, bias = _folded(self.conv, self.norm)
        taps = weight.flatten(1).T.clone()
        taps[4] += 1
        return taps, bias


class Block(nn.Module):
    """x + mixer(norm(x)), scanned in the layer's order, after an optional local convolution of x.

    x may have a wider dtype than the weights.

    Args:
        config: dims and choices.
        order: order of the scan.
        scan: backend of the scan, as in `MambaClassifier`.
    """

    def __init__(self, config: ModelConfig, order: ScanOrder, scan: str) -> None:
        super().__init__()
        self.order, self.grid = order, config.grid
        self.local = LocalConv(config.d_model, config.grid) if config.local_conv else None
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.mixer = MambaMixer(
            config.d_model,
            d_state=config.d_state,
            d_conv=config.d_conv,
            expand=config.expand,
            dt_rank=config.dt_rank,
            dt_min=config.dt_min,
            dt_max=config.dt_max,
            dt_init_floor=config.dt_init_floor,
            dt_scale=config.dt_scale,
            a=config.a,
            bidirectional=config.direction == "bidirectional",
            scan=scan,
        )

    def forward(self, residual: Tensor) -> Tensor:
        """Map (batch, length, d_model) to the same shape, both in image order."""
        if self.local is not None:
            residual = self.local(residual)
        if not self.order.columns:
            return self._mixed(residual)
        rows, columns = self.grid
        turned = _transposed(residual, rows, columns)
        return _transposed(self._mixed(turned), columns, rows)

    def _mixed(self, residual: Tensor) -> Tensor:
        """Return x + mixer(norm(x)) for tokens already in row or column order."""
        mixer, norm = self.mixer, self.norm
        # A user may have replaced the mixer by one that has only a forward.
        if isinstance(mixer, MambaMixer) and mixer.runs_fused(residual, norm):
            return mixer.fused(residual, self.order.reverse, norm)
        mixed: Tensor = mixer(norm(residual.to(norm.weight.dtype)), reverse=self.order.reverse)
        return residual + mixed


def _transposed(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Reorder the (batch, rows * columns, d_model) tokens of a grid from rows to columns."""
    turned: Tensor = tokens.unflatten(1, (rows, columns)).transpose(1, 2).flatten(1, 2)
    return turned


class MambaClassifier(nn.Module):
    """Mamba image classifier: pixels in [0, 1] to logits.

    The model includes the normalisation by the training set's mean and standard deviation, as does
    the exported file.

    Args:
        config: dims and choices.
        scan: backend of the scan (`mnist_mamba.scan`): auto, reference, cpu, triton or cuda.

    Raises:
        ValueError: a config of several members.

    >>> config = ModelConfig(height=28, width=28, n_classes=10, d_model=16, n_layers=2)
    >>> model = MambaClassifier(config)
    >>> model(torch.rand(5, 28, 28)).shape
    torch.Size([5, 10])
    """

    def __init__(self, config: ModelConfig, scan: str = "auto") -> None:
        super().__init__()
        if config.members != 1:
            raise ValueError(f"members = {config.members}: expected 1; see build_classifier")
        self.config = config
        self.stem = PatchStem(config) if config.stem == "patch" else ConvStem(config)
        if config.pos_embed:
            self.pos_embed = nn.Parameter(0.02 * torch.randn(config.length, config.d_model))
        else:
            self.register_parameter("pos_embed", None)
        self.layers = nn.ModuleList(
            Block(config, scan_order(config.direction, i), scan) for i in range(config.n_layers)
        )
        self.norm_f = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.head = nn.Linear(config.d_model, config.n_classes)
        self._scale_residual_branches()

    def _scale_residual_branches(self) -> None:
        """Make the residual's variance independent of depth, as GPT-2 and mamba_ssm do."""
        for block in self.blocks:
            nn.init.kaiming_uniform_(block.mixer.out_proj.weight, a=math.sqrt(5))
            with torch.no_grad():
                block.mixer.out_proj.weight /= math.sqrt(self.config.n_layers)

    @property
    def blocks(self) -> list[Block]:
        """The layers, typed; a user may have replaced one."""
        return [cast(Block, block) for block in self.layers]

    @property
    def classifiers(self) -> list[MambaClassifier]:
        """The model itself, like the members of an ensemble."""
        return [self]

    @property
    def n_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return (batch, length, d_model) tokens, positions added, of pixels as in `forward`."""
        config = self.config
        image: tuple[int, ...] = (config.height, config.width, config.channels)
        if config.channels == 1:
            image = image[:2]
            pixels = pixels.squeeze(3) if pixels.dim() == 4 else pixels
        if tuple(pixels.shape[1:]) != image:
            expected = ", ".join(map(str, image))
            raise ValueError(
                f"pixels have shape {tuple(pixels.shape)}, expected (batch, {expected})"
            )
        normalised = (pixels - self.config.pixel_mean) / self.config.pixel_std
        tokens: Tensor = self.stem(normalised)
        return tokens if self.pos_embed is None else tokens + self.pos_embed

    def pooled(self, residual: Tensor) -> Tensor:
        """Apply final norm and pool: (batch, length, d_model) to (batch, d_model)."""
        dtype = self.norm_f.weight.dtype
        if self.config.pool == "last":
            last: Tensor = self.norm_f(residual[:, -1].to(dtype))
            return last
        if not is_rms_norm(self.norm_f, self.config.d_model):  # replaced or hooked
            normed: Tensor = self.norm_f(residual.to(dtype))
            return normed.mean(dim=1)
        # The mean of the normed tokens as one matrix product: half the passes over the residual.
        mean_square = torch.linalg.vecdot(residual, residual) / self.config.d_model
        scale = torch.rsqrt(mean_square + self.norm_f.eps) / residual.shape[1]
        mean = torch.bmm(scale.unsqueeze(1), residual).squeeze(1)
        return mean.to(dtype) * self.norm_f.weight

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (batch, n_classes) logits of pixels in [0, 1].

        Args:
            pixels: (batch, height, width) for one channel, (batch, height, width, channels) for
                any number.

        Raises:
            ValueError: the pixels have another shape.
        """
        tokens = self.tokens(pixels)
        residual = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        for block in self.layers:
            residual = block(residual)
        logits: Tensor = self.head(self.pooled(residual))
        return logits
