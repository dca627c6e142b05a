"""Processes that are forked after two threads have run: no child hangs, and the bits stay."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from mnist_mamba.engine import Engine
from mnist_mamba.scan import c_library, selective_scan
from tests.library.scan_cases import make_inputs, run
from tests.library.test_scan_block import make_mixer, run_block
from tests.tools import golden

ROOT = Path(__file__).parents[2]
LIMIT_S = 120
"""Seconds after which a process counts as hanging; a right one needs few."""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

Answer = dict[str, torch.Tensor]


def engine_answer() -> Callable[[], Answer]:
    engine = Engine(golden.FOLDER / "patch_tied.bin", threads=2)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    return lambda: {"logits": torch.from_numpy(engine.logits(images))}


def scan_answer(dtype: torch.dtype) -> Callable[[], Answer]:
    inputs = make_inputs(8, 16, 16, 16, dtype)
    return lambda: run(inputs, "cpu")


def block_answer(hidden: torch.Tensor) -> Callable[[], Answer]:
    mixer = make_mixer(d_model=8)
    return lambda: run_block(mixer, hidden, reverse=False)


def half_answer() -> Callable[[], Answer]:
    """A scan whose inputs torch converts, on threads of its own if they are many."""
    inputs = make_inputs(8, 64, 4, 128, torch.bfloat16)
    return lambda: {"out": selective_scan(**inputs, delta_softplus=True, backend="cpu")}


ANSWERS: dict[str, Callable[[], Callable[[], Answer]]] = {
    "engine": engine_answer,
    "scan": lambda: scan_answer(torch.float32),
    "double scan": lambda: scan_answer(torch.float64),
    "half types": half_answer,
    "block": lambda: block_answer(torch.randn(16, 12, 8)),
    "turned block": lambda: block_answer(torch.randn(128, 64, 8).transpose(0, 1)),
}


def check(answers: dict[str, Callable[[], Answer]], expected: dict[str, Answer]) -> None:
    signal.alarm(LIMIT_S)  # ends a process that hangs; children do not inherit it
    for kind, answer in answers.items():
        sys.stderr.write(f"{os.getpid()}: {kind}\n")
        for name, value in answer().items():
            assert torch.equal(value, expected[kind][name]), name


def fork_twice() -> None:
    """Compare the answers of a process, of its child and of its grandchild."""
    torch.set_num_threads(2)
    answers = {kind: prepare() for kind, prepare in ANSWERS.items()}
    expected = {kind: answer() for kind, answer in answers.items()}
    for _ in range(2):
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            check(answers, expected)
            os._exit(os.waitstatus_to_exitcode(status) and 1)
        check(answers, expected)
    os._exit(0)


class Answers(IterableDataset[Answer]):
    """The engine's logits, computed in a worker of a DataLoader."""

    def __init__(self, answer: Callable[[], Answer]) -> None:
        self.answer = answer

    def __iter__(self) -> Iterator[Answer]:
        yield self.answer()


def start_workers() -> None:
    """Compare the engine's answers in workers of multiprocessing and of torch's DataLoader."""
    answer = engine_answer()
    expected = answer()
    context = multiprocessing.get_context("fork")
    arguments = ({"engine": answer}, {"engine": expected})
    workers = [context.Process(target=check, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    loader = DataLoader(
        Answers(answer), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    signal.alarm(LIMIT_S)
    for got in loader:
        assert torch.equal(got["logits"], expected["logits"])


def fork_while_a_thread_loads_the_library() -> None:
    loading, really_load = threading.Event(), c_library.load

    def load_for_ever() -> None:
        loading.set()
        threading.Event().wait()

    c_library.load = load_for_ever  # type: ignore[assignment]
    threading.Thread(target=c_library.load, daemon=True).start()
    loading.wait()
    c_library.load = really_load
    child = os.fork()
    signal.alarm(LIMIT_S)
    c_library.load()
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) and 1 if child else 0)


LOAD_IN_A_CHILD = """
import os, signal, sys
import numpy as np
import torch
from mnist_mamba.engine import Engine
from mnist_mamba.scan import selective_scan

limit, model = sys.argv[1:]
torch.set_num_threads(2)
u, B, A = torch.rand(2, 16, 64), torch.rand(2, 16, 64), -torch.rand(16, 16)
torch.randn(1 << 20).exp_()
parent = os.getpid()
for kind in ("engine", "scan"):
    for process in ("other", "same"):
        if child := os.fork():
            if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
                sys.exit(f"{kind} in the {process} process: exit code {code}")
            continue
        if process == "same":  # as in another PID namespace
            os.getpid = lambda: parent
        signal.alarm(int(limit))
        if kind == "engine":
            Engine(model, threads=2).logits(np.zeros((40, 8, 8), dtype=np.uint8))
        else:
            selective_scan(u, u, A, B, B, backend="cpu")
        sys.exit()
"""
"""A program whose children load a library, while itself has used two threads of torch alone."""


def in_another_process(call: str) -> None:
    run_program(f"from tests.library import test_fork; test_fork.{call}")


def run_program(program: str, *arguments: object) -> None:
    path = os.pathsep.join((f"{ROOT}/src", str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=4 * LIMIT_S,
    )
    assert done.returncode == 0, done.stderr


def test_children_compute_the_bits_of_their_parent() -> None:
    in_another_process("fork_twice()")


def test_an_engine_works_in_forked_workers() -> None:
    in_another_process("start_workers()")


def test_a_library_that_is_loaded_in_a_child_works() -> None:
    run_program(LOAD_IN_A_CHILD, LIMIT_S, golden.FOLDER / "patch_tied.bin")


def test_a_fork_leaves_no_lock_on_the_scan_s_library() -> None:
    in_another_process("fork_while_a_thread_loads_the_library()")
