"""`make bench-train`: workers, limits, rounds, peers that compute the same, the metrics file."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import harness, peers, tables, train_cases, train_step
from benchmarks import options as options_module
from benchmarks.harness import BenchError, DifferentWorkError, Limits, UnfinishedError
from benchmarks.train_cases import QUICK, TrainCase
from tests.pipeline.imports import ROOT

LIMITS = Limits(memory_gb=4, time_s=120)
SERVE = "from benchmarks import harness; import time; harness.serve(lambda spec: {})"


def serve(body: str, memory_gb: float = 4, time_s: float = 60) -> harness.Answer:
    """Return the answer of a worker without torch that evaluates an expression of `spec`."""
    command = [sys.executable, "-c", SERVE.format(body)]
    return harness.run_worker(command, {"n": 3}, Limits(memory_gb=memory_gb, time_s=time_s))


def test_a_worker_answers() -> None:
    assert serve("(print('a library talks'), {'n': spec['n'] + 1})[1]") == {"n": 4}


def test_a_worker_over_its_memory_limit_is_unfinished() -> None:
    with pytest.raises(UnfinishedError, match=r"more than 0\.3 GB of memory needed"):
        serve("{'n': len(bytearray(10**9))}", memory_gb=0.3)


def test_torch_over_its_memory_limit_is_unfinished() -> None:
    body = "{'n': __import__('torch').ones(10**9).numel()}"
    with pytest.raises(UnfinishedError, match="more than 2 GB of memory needed"):
        serve(body, memory_gb=2)


def test_a_worker_over_its_time_limit_is_unfinished() -> None:
    with pytest.raises(UnfinishedError, match=r"not done within 0\.5 s"):
        serve("time.sleep(60)", time_s=0.5)


def test_a_failed_worker_says_why() -> None:
    with pytest.raises(UnfinishedError, match=r"exit code 1: KeyError: 'nowhere'"):
        serve("spec['nowhere']")
    with pytest.raises(UnfinishedError, match="killed by SIGKILL"):
        serve("__import__('os').kill(__import__('os').getpid(), 9)")
    with pytest.raises(UnfinishedError, match="no answer on stdout"):
        serve("__import__('os')._exit(0)")


def test_rounds_are_interleaved_and_rotated() -> None:
    order = [name for _, name in harness.interleaved(("a", "b", "c"), 4)]
    assert "".join(order) == "abcbcacababc"


def test_other_peers_continue_after_one_did_not_finish() -> None:
    asked = []

    def measure(name: str) -> harness.Answer:
        asked.append(name)
        if name == "large":
            raise UnfinishedError("too large")
        return {"step_ms": 1.0}

    found = harness.run_rounds(measure, ("small", "large"), 3)
    assert found.unfinished == {"large": "too large"}
    assert found.answers == {"small": [{"step_ms": 1.0}] * 3}
    assert asked.count("large") == 1, "a peer that did not finish must not run again"


@pytest.mark.parametrize("peer", ["ours", "ours_tied", "mambapy", "transformers"])
def test_every_peer_computes_our_reference_model(peer: str) -> None:
    """Compare loss and gradients, with a layer that runs from the last token to the first."""
    case = train_cases.make_case(peer, QUICK.long, 2, threads=1, steps=(1, 1))
    assert case.model.direction == "alternate"
    assert (case.model.a == "tied") == (peer == "ours_tied")
    model = peers.build_model(peer, case.model)
    assert any(isinstance(b.mixer, peers.PeerMixer) for b in model.blocks) == (
        peer in ("mambapy", "transformers")
    )
    peers.check_same_model(model, case.model)


def test_a_peer_mixer_flips_the_tokens_to_run_backwards() -> None:
    mixer = peers.PeerMixer(nn.Identity())
    mixer.theirs.forward = lambda x: x.cumsum(1)  # type: ignore[method-assign]
    ones = torch.ones(1, 3, 1)
    assert mixer(ones).flatten().tolist() == [1, 2, 3]
    assert mixer(ones, reverse=True).flatten().tolist() == [3, 2, 1]


class _Louder(nn.Module):
    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.theirs = mixer

    def forward(self, hidden: Tensor, reverse: bool = False) -> Tensor:
        louder: Tensor = 1.01 * self.theirs(hidden, reverse=reverse)
        return louder


def test_a_peer_that_computes_something_else_is_refused() -> None:
    model = peers.build_model("ours", QUICK.main)
    model.blocks[0].add_module("mixer", _Louder(model.blocks[0].mixer))
    with pytest.raises(DifferentWorkError, match="differs from the reference's by a relative"):
        peers.check_same_model(model, QUICK.main)
    with torch.no_grad():
        model.head.bias.fill_(math.nan)
    with pytest.raises(DifferentWorkError, match="by a relative nan"):
        peers.check_same_model(model, QUICK.main)


def test_different_work_in_a_worker_ends_the_benchmark() -> None:
    code = (
        "from benchmarks import harness\n"
        "def measure(spec):\n    raise harness.DifferentWorkError('the loss differs')\n"
        "harness.serve(measure)"
    )

    def measure(name: str) -> harness.Answer:
        return harness.run_worker([sys.executable, "-c", code], {}, LIMITS)

    with pytest.raises(DifferentWorkError, match="peer: the loss differs"):
        harness.run_rounds(measure, ("peer",), 2)


def stand_in(case: TrainCase) -> harness.Answer:
    """Return a worker's answer at once: 10 ms per letter of the peer's name, memory by batch."""
    answer: dict[str, Any] = {"step_ms": 10.0 * len(case.peer), "torch": "2"}
    if case.peer == "mambapy" and case.model == QUICK.long:
        raise UnfinishedError("more than 1 GB of memory needed")
    if case.peer != train_cases.MATMUL:
        above = 20.0 * case.batch + case.model.d_state
        answer |= {"first_loss": 2.3, "peak_rss_mb": 100 + above, "above_start_mb": above}
    if case.peer == train_cases.EPOCH:
        answer |= {"data_s": 0.5, "steps_s": 4.0, "evaluation_s": 0.5, "images_per_s": 640.4}
    return answer


def options(*words: str) -> argparse.Namespace:
    return train_step.parse(["--quick", *words])


def test_metrics_of_all_sections() -> None:
    result = train_step.run_all(options(), stand_in)
    lengths = {peer: len(peer.removesuffix(train_cases.KEPT)) for peer in train_cases.PEERS}
    assert result["step_ms"] == {peer: 10.0 * length for peer, length in lengths.items()}
    assert result["ratio"]["reference"] == 2.25
    assert result["matmul_ms"] == 60
    assert result["long"]["did_not_finish"] == {"mambapy": "more than 1 GB of memory needed"}
    assert "mambapy" not in {**result["long"]["step_ms"], **result["long"]["ratio"]}
    assert (result["memory"]["batch_x2"], result["memory"]["state_x4"]) == (1.91, 1.27)
    assert result["epoch"]["beside_steps"] == 0.2
    assert result["long"].keys() <= result.keys()
    text = tables.training_tables(result)
    assert "mambapy           did not finish: more than 1 GB of memory needed" in text
    json.dumps(result, allow_nan=False)


def test_a_first_step_with_another_loss_is_refused() -> None:
    def measure(case: TrainCase) -> harness.Answer:
        return {**stand_in(case), "first_loss": 2.3 if case.peer == "ours" else 2.301}

    with pytest.raises(DifferentWorkError, match=r"first step's loss is 2\.301000"):
        train_step.run_all(options("--only", "main"), measure)


def test_ours_must_finish() -> None:
    def measure(case: TrainCase) -> harness.Answer:
        if case.peer == "ours":
            raise UnfinishedError("no compiler")
        return stand_in(case)

    with pytest.raises(BenchError, match="ours did not finish: no compiler"):
        train_step.run_all(options("--only", "main"), measure)


def test_the_frozen_models_have_not_changed() -> None:
    full = train_cases.FULL
    assert (full.batch, full.main.length, full.main.d_model) == (128, 49, 64)
    assert (full.main.n_layers, full.main.d_state, full.main.a) == (4, 16, "free")
    assert (full.long.length, full.long.d_model, full.long.n_layers) == (784, 32, 2)
    names = {*train_cases.PEERS, train_cases.MATMUL}
    long_names = {name for name in names if not name.endswith(train_cases.KEPT)}
    assert (set(full.main_steps), set(full.long_steps)) == (names, long_names)


def test_which_peers_have_the_trainer_s_memory_settings() -> None:
    def case(name: str) -> TrainCase:
        return train_cases.make_case(name, QUICK.main, 8, 1, (1, 1))

    assert case("ours").prepare_memory
    assert case("reference").prepare_memory
    assert not case("mambapy").prepare_memory
    assert (case("mambapy_kept").peer, case("mambapy_kept").prepare_memory) == ("mambapy", True)


@pytest.mark.parametrize("words", [("--peers", "pytorch"), ("--rounds", "x"), ("--time-s", "0")])
def test_wrong_options_are_refused(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options(*words)
    assert "expected" in capsys.readouterr().err


def test_real_workers_from_the_command_line_to_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "metrics.json"
    chosen = ["--only", "main", "--peers", "ours,mambapy", "--threads", "1"]
    train_step.main(["--quick", *chosen, "--output", str(output)])
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["step_ms"].keys() == result["peak_rss_mb"].keys() == {"ours", "mambapy"}
    ratio = result["step_ms"]["mambapy"] / result["step_ms"]["ours"]
    assert result["ratio"] == {"mambapy": pytest.approx(ratio, rel=0.01)}
    numbers = [*result["step_ms"].values(), *result["peak_rss_mb"].values(), result["matmul_ms"]]
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    assert result["torch"] == torch.__version__
    assert result["threads"] == 1
    assert result["did_not_finish"] == {}
    assert result["git"]
    assert result["cpu"]
    assert "mambapy" in capsys.readouterr().out


def test_a_real_epoch_is_profiled(tmp_path: Path) -> None:
    output = tmp_path / "metrics.json"
    train_step.main(["--quick", "--only", "epoch", "--threads", "1", "--output", str(output)])
    epoch = json.loads(output.read_text(encoding="utf-8"))["epoch"]
    assert epoch["steps"] == QUICK.epoch_steps
    assert min(epoch["data_s"], epoch["steps_s"], epoch["evaluation_s"]) > 0
    other_s = epoch["data_s"] + epoch["evaluation_s"]
    assert epoch["beside_steps"] == pytest.approx(other_s / (other_s + epoch["steps_s"]), rel=0.02)


def test_only_a_whole_run_changes_committed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_step, "measure_case", lambda case, limits: stand_in(case))
    monkeypatch.setattr(options_module, "write_blocks", lambda: Path("blocks").touch())
    train_step.main(["--quick"])
    train_step.main(["--only", "memory"])
    assert not list(tmp_path.iterdir())
    train_step.main([])
    assert tables.TRAINING_METRICS.is_file()
    assert Path("blocks").is_file()


def test_the_product_imports_no_benchmark() -> None:
    for folder in ("src", "pipeline"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = path.read_text(encoding="utf-8").splitlines()
            assert not [line for line in lines if "import" in line and "benchmarks" in line], path
