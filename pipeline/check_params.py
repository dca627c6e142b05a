"""Stage `check_params`: refuse params that a later stage would refuse, before results are lost."""

from __future__ import annotations

import os
from pathlib import Path

from mnist_mamba.atomic_write import write_text
from mnist_mamba.config import SCANS
from mnist_mamba.data.sources import load_idx
from pipeline.common import command
from pipeline.common.git import check_identity
from pipeline.common.options import parse_params
from pipeline.common.params import TrainParams

CHECKED = Path("build/dvc/params_checked")
"""Output whose content never changes, so that no later stage has to run again for it."""


def check_gpu(params: TrainParams) -> None:
    """Check that a GPU is here if the training requires one.

    Raises:
        ValueError: there is none.
    """
    device, scan = params.device, params.scan
    if device != "cuda" and scan not in SCANS["cuda"]:
        return
    import torch  # takes a second

    if not torch.cuda.is_available():
        wrong = "train.device = cuda" if device == "cuda" else f"train.scan = {scan}"
        raise ValueError(f"{wrong}: PyTorch finds no GPU; use auto or cpu")


def main() -> None:
    """Check params, the GPU, the user's own images if chosen, and Git for an experiment."""
    params = parse_params(command.parser(__doc__ or ""))
    if params.data.dataset == "idx":
        train, _ = load_idx(Path(params.data.idx_dir))
        params.check_fit(*train.images.shape[1:])
    check_gpu(params.train)
    if os.environ.get("DVC_EXP_NAME"):  # DVC commits an experiment after its last stage
        check_identity()
    write_text(CHECKED, "")


if __name__ == "__main__":
    command.run(main)
