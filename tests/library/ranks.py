"""A small training that test_distributed.py starts under torchrun, once per process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from mnist_mamba.config import ModelConfig, TrainConfig
from mnist_mamba.model import MambaClassifier
from mnist_mamba.training.distributed import Processes
from mnist_mamba.training.loop import train
from tests.library.test_training import MODEL, NORMED, bars

CONFIG = TrainConfig(epochs=3, batch_size=19, min_steps=1, lr=3e-3)
"""Two processes share 19 of the 58 images as 9 and 10, and the last step's one as 0 and 1."""
N_TRAIN, N_VAL = 58, 15
CASES = {"patch": MODEL, "conv_batch_norm": NORMED}


def main(folder: Path, failing_rank: int, dims: ModelConfig) -> None:
    """Train, and write this process's weights and curve; `failing_rank` fails after an epoch."""
    torch.set_num_threads(1)
    processes = Processes.of_torchrun()
    torch.manual_seed(0)
    model = MambaClassifier(dims, scan="reference")
    points = []
    with processes.connected("cpu") as processes:
        processes.check_same({"trained": "the same"})
        assert processes.from_first(processes.rank + 5) == 5
        sets = bars(N_TRAIN, 1), bars(N_VAL, 2)
        for report in train(model, *sets, CONFIG, progress=False, processes=processes):
            points.append(report.curve_point())
            if processes.rank == failing_rank:
                raise RuntimeError("this process fails on purpose")
    weights = {"model": model.state_dict(), "ema": report.model.state_dict()}
    torch.save(weights, folder / f"weights{processes.rank}.pth")
    (folder / f"points{processes.rank}.json").write_text(json.dumps(points), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), CASES[sys.argv[3]])
