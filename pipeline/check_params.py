"""Stage `check_params`: refuse params that a later stage would refuse, before results are lost."""

from __future__ import annotations

import os
from pathlib import Path

from mnist_mamba.atomic_write import write_text
from mnist_mamba.config import SCANS
from mnist_mamba.data.folders import find_pictures, picture_size
from mnist_mamba.data.npz import load_npz
from mnist_mamba.data.sources import load_idx
from pipeline.common import command
from pipeline.common.git import check_identity
from pipeline.common.options import parse_params
from pipeline.common.params import Params, TrainParams

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


def check_data(params: Params) -> None:
    """Check that the user's own images, if they are chosen, are there and fit the model.

    Of a folder of pictures it reads the names, and the sizes unless data.resize changes them.
    """
    data = params.data
    match data.dataset:
        case "idx":
            train, _ = load_idx(Path(data.idx_dir))
            params.check_fit(*train.images.shape[1:3])
        case "npz":
            train, *_ = load_npz(Path(data.folder), data.test_fraction)
            params.check_fit(*train.images.shape[1:3])
        case "folder":
            files = find_pictures(Path(data.folder))
            params.check_fit(*(data.size or picture_size(files)))


def main() -> None:
    """Check params, the GPU, the user's own images, and Git for an experiment."""
    params = parse_params(command.parser(__doc__ or ""))
    check_data(params)
    check_gpu(params.train)
    if os.environ.get("DVC_EXP_NAME"):  # DVC commits an experiment after its last stage
        check_identity()
    write_text(CHECKED, "")


if __name__ == "__main__":
    command.run(main)
