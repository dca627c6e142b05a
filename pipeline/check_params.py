"""Stage `check_params`: refuse params that a later stage would refuse, before results are lost."""

from __future__ import annotations

import os
from pathlib import Path

from mnist_mamba.atomic_write import write_text
from mnist_mamba.data.sources import load_idx
from pipeline.common import command
from pipeline.common.git import check_identity
from pipeline.common.options import parse_params

CHECKED = Path("build/dvc/params_checked")
"""Output whose content never changes, so that no later stage has to run again for it."""


def main() -> None:
    """Check params.yaml, the user's own images if they are chosen, and Git for an experiment."""
    params = parse_params(command.parser(__doc__ or ""))
    if params.data.dataset == "idx":
        train, _ = load_idx(Path(params.data.idx_dir))
        params.check_fit(*train.images.shape[1:])
    if os.environ.get("DVC_EXP_NAME"):  # DVC commits an experiment after its last stage
        check_identity()
    write_text(CHECKED, "")


if __name__ == "__main__":
    command.run(main)
