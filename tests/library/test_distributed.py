"""Training with two processes compared with one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from mnist_mamba.config import TrainConfig
from mnist_mamba.model import MambaClassifier
from mnist_mamba.training.distributed import Processes
from mnist_mamba.training.trainer import Trainer
from tests.library.ranks import CONFIG, N_TRAIN
from tests.library.test_training import MODEL
from tests.pipeline.fork_server import run_forked

ROOT = Path(__file__).parents[2]


def start(
    folder: Path, processes: int, failing_rank: int = -1, case: str = "patch"
) -> subprocess.CompletedProcess[str]:
    """Run tests/library/ranks.py under torchrun; its results go to `folder`."""
    folder.mkdir()
    words = ["--standalone", f"--nproc_per_node={processes}", "-m", "tests.library.ranks"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}/src{os.pathsep}{ROOT}"}
    words += [str(folder), str(failing_rank), case]
    return run_forked(ROOT, "torch.distributed.run", words, env)


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one_up_to_rounding(tmp_path: Path) -> None:
    last = N_TRAIN % CONFIG.batch_size
    assert [Processes(rank, 2).share(last) for rank in range(2)] == [slice(0, 0), slice(0, 1)]
    for processes in (1, 2):
        done = start(tmp_path / str(processes), processes)
        assert done.returncode == 0, done.stderr
    alone, first, second = (
        (
            torch.load(tmp_path / folder / f"weights{rank}.pth", weights_only=True),
            json.loads((tmp_path / folder / f"points{rank}.json").read_text(encoding="utf-8")),
        )
        for folder, rank in (("1", 0), ("2", 0), ("2", 1))
    )
    assert first[1] == second[1]
    for part in ("model", "ema"):
        for name, value in first[0][part].items():
            assert torch.equal(value, second[0][part][name]), name
            # Sums in another order differ by about 6e-8 of their size in float32. AdamW divides a
            # gradient by its own size, which amplifies this noise where the gradient is nearly 0.
            # The tolerance is 1e-3 of the largest possible change: 12 steps of at most 3e-3.
            torch.testing.assert_close(value, alone[0][part][name], rtol=0, atol=3e-5)
    for one, two in zip(alone[1], first[1], strict=True):
        # Weights with such small gradients hardly change the loss.
        assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.slow
def test_two_processes_agree_on_the_statistics_of_batch_norms(tmp_path: Path) -> None:
    done = start(tmp_path / "2", 2, case="conv_batch_norm")
    assert done.returncode == 0, done.stderr
    first, second = (
        torch.load(tmp_path / f"2/weights{rank}.pth", weights_only=True) for rank in (0, 1)
    )
    for part in ("model", "ema"):
        for name, value in first[part].items():
            # The counts of batches, which are not used, differ: the first process has empty shares.
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(value, second[part][name]), name
    assert float(first["model"]["stem.norm1.running_mean"].abs().max()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_failing_process_ends_all(tmp_path: Path, rank: int) -> None:
    done = start(tmp_path / "failing", 2, failing_rank=rank)
    assert done.returncode != 0
    assert "this process fails on purpose" in done.stderr
    assert list((tmp_path / "failing").iterdir()) == []


def test_the_shares_gradients_sum_to_the_batch_s() -> None:
    pixels, labels = torch.rand(5, 8, 8), torch.tensor([0, 1, 2, 0, 1])

    def gradients(chosen: slice) -> tuple[list[torch.Tensor], torch.Tensor]:
        torch.manual_seed(0)
        trainer = Trainer(MambaClassifier(MODEL, scan="reference"), TrainConfig())
        mine = labels[chosen]
        sums = trainer.backward(pixels[chosen], mine, len(mine) / len(labels))
        return [
            p.grad if p.grad is not None else torch.zeros_like(p)
            for p in trainer.model.parameters()
        ], sums

    whole, sums = gradients(slice(0, 5))
    parts = [gradients(chosen) for chosen in (slice(0, 2), slice(2, 5), slice(5, 5))]
    torch.testing.assert_close(sum(part[1] for part in parts), sums)
    for i, expected in enumerate(whole):
        total = sum(part[0][i] for part in parts)
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-7)


def test_only_torchrun_s_environment_makes_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert Processes.of_torchrun() == Processes()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert Processes.of_torchrun() == Processes(rank=1, size=2, local_rank=1, local_size=2)
