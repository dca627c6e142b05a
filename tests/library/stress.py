"""Threads and forked processes that share one engine.

`python -m tests.library.stress LIBRARY MODEL SECONDS FORKS SEED`: 8 threads open, close, copy,
pickle and call one engine at random. Meanwhile the main thread keeps FORKS children running, which
do the same with the engine that they inherit. Every answer must have the bits that the library gave
at the start. A wrong answer or an error ends the process with a traceback; so does a child that
crashes or hangs.
"""

from __future__ import annotations

import copy
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mnist_mamba.engine import Engine, EngineError

THREADS = 8
CHILD_STEPS = 40
CHILD_LIMIT_S = 60
"""Seconds after which a child counts as hanging; a right one needs less than one."""


class Stress:
    """One engine that many threads share, and what they may do with it."""

    def __init__(self, library: Path, model: Path) -> None:
        self.library, self.model = library, model
        self.engine = self.open(random.Random(0))
        info = self.engine.info
        shape = (40, int(info["height"]), int(info["width"]))
        self.bytes = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self.floats = (self.bytes / np.float32(255)).astype(np.float32)
        self.expected = Engine(model, 1, library).logits(self.bytes)
        self.calls = 0

    def open(self, choice: random.Random) -> Engine:
        source: Any = choice.choice([self.model, str(self.model), self.model.read_bytes()])
        mmap = choice.choice([True, False])
        return Engine(source, choice.choice([0, 1, 2, 3]), self.library, mmap=mmap)

    def step(self, choice: random.Random) -> None:
        """Do one thing with the engine, most often a call."""
        engine = self.engine
        action = choice.randrange(16)
        if action == 0:
            engine.close()
        elif action == 1:
            self.engine = copy.copy(engine)
        elif action == 2:
            self.engine = copy.deepcopy(engine)
        elif action == 3:
            self.engine = pickle.loads(pickle.dumps(engine))
        elif action <= 6:
            self.engine = self.open(choice)
        else:
            self.call(engine, choice)

    def call(self, engine: Engine, choice: random.Random) -> None:
        start, end = sorted(choice.randrange(len(self.bytes) + 1) for _ in range(2))
        images = choice.choice([self.bytes, self.floats])[start:end]
        try:
            logits = engine.logits(images)
        except EngineError as error:
            if str(error) != "the engine was closed":
                raise
        else:
            np.testing.assert_array_equal(logits, self.expected[start:end])
            self.calls += 1


def run_threads(stress: Stress, count: int, seed: int, more: Callable[[], bool]) -> list[Any]:
    """Start threads that step while `more` says so; return them, and the list of their errors."""
    errors: list[BaseException] = []

    def run(choice: random.Random) -> None:
        try:
            while more() and not errors:
                stress.step(choice)
        except BaseException as error:
            errors.append(error)

    generators = [random.Random(f"{seed} {i}") for i in range(count)]
    threads = [threading.Thread(target=run, args=(choice,)) for choice in generators]
    for thread in threads:
        thread.start()
    return [threads, errors]


def run_child(stress: Stress, seed: int) -> None:
    """Use the inherited engine in the forked thread, then in new ones; end the process."""
    signal.alarm(CHILD_LIMIT_S)
    choice = random.Random(seed)
    for _ in range(CHILD_STEPS):
        stress.step(choice)
    left = iter(range(CHILD_STEPS))
    threads, errors = run_threads(stress, 2, seed, lambda: next(left, None) is not None)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def fork(stress: Stress, seed: int) -> int:
    """Start a child from a thread that has just used the engine on several threads."""
    stress.call(Engine(stress.model, 2, stress.library), random.Random(seed))
    child = os.fork()
    if child:
        return child
    try:
        run_child(stress, seed)
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def main() -> None:
    library, model, seconds, forks, seed = sys.argv[1:]
    stress = Stress(Path(library), Path(model))
    ends = time.monotonic() + float(seconds)
    threads, errors = run_threads(stress, THREADS, int(seed), lambda: time.monotonic() < ends)
    children: set[int] = set()
    forked = 0
    while (time.monotonic() < ends and not errors) or children:
        while len(children) < int(forks) and time.monotonic() < ends and not errors:
            forked += 1
            children.add(fork(stress, forked))
        if not children:
            time.sleep(0.1)
            continue
        child, status = os.wait()
        children.remove(child)
        if status:
            errors.append(RuntimeError(f"a child ended with {os.waitstatus_to_exitcode(status)}"))
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    calls, stress.engine = stress.calls, None  # type: ignore[assignment]
    mappings = Path("/proc/self/maps")
    if mappings.exists() and str(model) in mappings.read_text(encoding="utf-8"):
        raise RuntimeError(f"{model} is still mapped")
    sys.stdout.write(f"{calls} calls, {forked} children\n")


if __name__ == "__main__":
    main()
