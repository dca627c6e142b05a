"""Stage `check_params`: refuse params that a later stage would refuse, before results are lost."""

from __future__ import annotations

import os
from pathlib import Path

from mnist_mamba.atomic_write import write_text
from mnist_mamba.config import SCANS
from mnist_mamba.data.folders import find_pictures, picture_size
from mnist_mamba.data.splits import describe
from pipeline.common import command
from pipeline.common.git import check_identity
from pipeline.common.options import parse_params
from pipeline.common.params import Params, TrainParams
from pipeline.common.splitting import prepare
from pipeline.download import load

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

    It does with arrays all that `download` does, and splits them. Of a folder of pictures it reads
    the names, and the sizes unless data.resize changes them.
    """
    data = params.data
    match data.dataset:
        case "idx" | "npz":
            found = load(params)
            describe(prepare(found.train, found.test, data), found.class_names)
        case "folder":
            files = find_pictures(Path(data.folder))
            size = data.size or picture_size(files)
            params.check_fit(*size, class_names=files.class_names)


def main() -> None:
    """Check params, the GPU, the user's own images, and Git for an experiment."""
    params = parse_params(command.parser(__doc__ or ""))
    check_data(params)
    check_gpu(params.train)
    if os.environ.get("DVC_EXP_NAME"):  # DVC commits an experiment after its last stage
        check_identity()
    write_text(CHECKED, "params.yaml was checked\n")  # DVC warns of an empty file


if __name__ == "__main__":
    command.run(main)
