"""The classifier with other implementations' mixers, and the check that they compute the same."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import DifferentWorkError
from mnist_mamba.config import ModelConfig
from mnist_mamba.data.torchvision_compat import import_torchvision
from mnist_mamba.model import MambaClassifier

TOLERANCE = 1e-4
"""Accepted relative difference of the loss, and of each gradient in L2: fp32 rounding."""
CHECK_IMAGES = 2
SCANS = {"ours": "cpu", "ours_tied": "cpu"}


class PeerMixer(nn.Module):
    """Another implementation's mixer in place of ours; it flips the tokens to run backwards."""

    def __init__(self, theirs: nn.Module) -> None:
        super().__init__()
        self.theirs = theirs

    def forward(self, hidden: Tensor, reverse: bool = False) -> Tensor:
        """Mix (batch, length, d_model) into the same shape, from the last token if `reverse`."""
        mixed: Tensor = self.theirs(hidden.flip(1) if reverse else hidden)
        return mixed.flip(1) if reverse else mixed


def mambapy_mixer(config: ModelConfig) -> nn.Module:
    """Return mambapy's block with its default, the parallel scan."""
    mambapy = importlib.import_module("mambapy.mamba")
    settings = mambapy.MambaConfig(
        d_model=config.d_model,
        n_layers=1,
        dt_rank=config.resolved_dt_rank,
        d_state=config.d_state,
        expand_factor=config.expand,
        d_conv=config.d_conv,
        pscan=True,
    )
    mixer: nn.Module = mambapy.MambaBlock(settings)
    return mixer


def transformers_mixer(config: ModelConfig) -> nn.Module:
    """Return Hugging Face's mixer on its default path for a CPU, a loop over the tokens."""
    # If the package `kernels` is installed, transformers looks for kernels on its hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # transformers imports torchvision.
    import_torchvision()
    modeling = importlib.import_module("transformers.models.mamba.modeling_mamba")
    settings = modeling.MambaConfig(
        hidden_size=config.d_model,
        state_size=config.d_state,
        conv_kernel=config.d_conv,
        expand=config.expand,
        time_step_rank=config.resolved_dt_rank,
        num_hidden_layers=1,
        use_mambapy=False,
    )
    mixer: nn.Module = modeling.MambaMixer(settings, layer_idx=0)
    return mixer


MIXERS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "mambapy": mambapy_mixer,
    "transformers": transformers_mixer,
}


def build_model(peer: str, config: ModelConfig) -> MambaClassifier:
    """Return the classifier with a peer's mixers; every peer has the same weights."""
    torch.manual_seed(0)
    model = MambaClassifier(config, scan=SCANS.get(peer, "reference"))
    if peer in MIXERS:
        for block in model.blocks:
            theirs = MIXERS[peer](config)
            theirs.load_state_dict(block.mixer.state_dict(), strict=True)
            block.add_module("mixer", PeerMixer(theirs))
    return model


def random_batch(config: ModelConfig, batch: int) -> tuple[Tensor, Tensor]:
    """Return pixels (batch, height, width) in [0, 1] and labels (batch,), always the same."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(batch, config.height, config.width, generator=generator)
    return pixels, torch.randint(config.n_classes, (batch,), generator=generator)


def check_same_model(model: MambaClassifier, config: ModelConfig) -> None:
    """Compare a fresh model's loss and gradients on two images with the reference loop's.

    Raises:
        DifferentWorkError: they differ by more than rounding; the message names the worst.
    """
    expected = _loss_and_gradients(build_model("reference", config), config)
    actual = _loss_and_gradients(model, config)
    if actual.keys() != expected.keys():
        odd = ", ".join(sorted(actual.keys() ^ expected.keys()))
        raise DifferentWorkError(f"parameters that only one of peer and reference has: {odd}")
    differences = {
        name: float((actual[name] - value).norm() / value.norm().clamp(min=1e-30))
        for name, value in expected.items()
    }
    # NaN compares as neither larger nor smaller, and must win.
    worst = max(
        differences, key=lambda name: (differences[name] != differences[name], differences[name])
    )
    if not differences[worst] <= TOLERANCE:
        raise DifferentWorkError(
            f"{worst} differs from the reference's by a relative {differences[worst]:.1e}, "
            f"expected at most {TOLERANCE:.0e}: the peer computes something else"
        )


def _loss_and_gradients(model: MambaClassifier, config: ModelConfig) -> dict[str, Tensor]:
    pixels, labels = random_batch(config, CHECK_IMAGES)
    loss = F.cross_entropy(model.train()(pixels), labels)
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        found[f"gradient of {name.replace('.theirs.', '.')}"] = (
            torch.full_like(parameter, torch.nan) if gradient is None else gradient
        )
    return found
