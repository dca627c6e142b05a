"""Small models of every architecture, and images for them."""

from __future__ import annotations

import torch

from mnist_mamba.model import Classifier, ModelConfig, build_classifier

SMALL = {"height": 8, "width": 8, "n_classes": 10, "pixel_mean": 0.13, "pixel_std": 0.31}
TINY = {"d_model": 8, "n_layers": 2, "d_state": 4, "patch": (4, 4)}

ARCHITECTURES: dict[str, ModelConfig] = {
    name: ModelConfig(**{**SMALL, **TINY, **changes})
    for name, changes in {
        "patch_forward_mean": {"direction": "forward"},
        "patch_alternate_last": {"direction": "alternate", "pool": "last", "n_layers": 3},
        "patch_bidirectional": {"direction": "bidirectional"},
        "patch_tied": {"a": "tied"},
        "patch_bidirectional_tied": {"direction": "bidirectional", "a": "tied"},
        "patch_no_positions": {"pos_embed": False, "n_layers": 1},
        "rows_of_three_cross": {"direction": "cross", "patch": (4, 3), "width": 9, "n_layers": 5},
        "conv_cross_last": {
            "stem": "conv",
            "stem_width": 4,
            "direction": "cross",
            "pool": "last",
            "a": "tied",
            "n_layers": 5,
        },
        "conv3_cross_odd_image": {
            "stem": "conv3",
            "stem_width": 5,
            "stem_norm": "batch",
            "direction": "cross",
            "a": "tied",
            "width": 11,
        },
        "patch_local": {"local_conv": True, "patch": (2, 2), "width": 6},
        "conv_local_cross": {
            "stem": "conv",
            "stem_width": 3,
            "local_conv": True,
            "direction": "cross",
            "width": 13,
        },
        "conv_alternate": {"stem": "conv", "stem_width": 5},
        "conv_tied_odd_image": {"stem": "conv", "stem_width": 3, "a": "tied", "height": 9},
        "pixels_last": {"patch": (1, 1), "direction": "forward", "pool": "last", "n_layers": 1},
        "rows_odd_dims": {
            "patch": (1, 8),
            "d_model": 5,
            "expand": 3,
            "d_state": 3,
            "dt_rank": 2,
            "d_conv": 3,
            "n_classes": 3,
        },
        "wide_panels": {"d_model": 20, "d_state": 8, "d_conv": 2, "n_classes": 17, "width": 12},
        "state_one_conv_one": {"d_state": 1, "d_conv": 1, "expand": 1},
        "ensemble": {"members": 3, "stem": "conv", "stem_width": 3, "stem_norm": "batch"},
        "mixed_members": {
            "members": 3,
            "pos_embed": False,
            "n_layers": 1,
            "other_members": [
                {"stem": "conv", "stem_width": 5, "pos_embed": True, "n_layers": 2},
                {"patch": [1, 1], "pool": "last", "d_model": 12, "local_conv": True},
            ],
            "preparation": "mnist",
        },
        "colours": {
            "channels": 3,
            "patch": (2, 4),
            "d_model": 40,
            "n_classes": 3,
            "class_names": ("cat", "Käse", 'a "b", c\\'),
        },
        "colours_conv3": {"channels": 4, "stem": "conv3", "stem_width": 5, "width": 11},
    }.items()
}


def make_model(name: str, seed: int = 0, scan: str = "reference") -> Classifier:
    """Return a model in evaluation mode, all its values moved away from 0 and 1."""
    torch.manual_seed(seed)
    model = build_classifier(ARCHITECTURES[name], scan=scan).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, statistic in model.named_buffers():
            if statistic.is_floating_point():
                noise = torch.rand_like(statistic) if "var" in name else torch.randn_like(statistic)
                statistic.add_(0.1 * noise)
    return model


def make_images(config: ModelConfig, n: int, seed: int = 1) -> torch.Tensor:
    """Return uint8 images as the model takes them: one black, one white, the rest noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, config.height, config.width, *([config.channels] if config.channels > 1 else []))
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    images[:1], images[1:2] = 0, 255
    return images
