"""The benchmarks' shared parts: worker processes, interleaved rounds, memory, the machine."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.git import GitError, git
from pipeline.common.machine import cpu_name

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]

Spec = dict[str, Any]
"""A worker's task; plain values, since it travels as JSON."""
Answer = dict[str, Any]
"""A worker's measurements; plain values."""


class BenchError(RuntimeError):
    """The timings would be meaningless; the message says why."""


class DifferentWorkError(BenchError):
    """A peer computes something else, so its time does not compare."""


class UnfinishedError(RuntimeError):
    """A worker gave no timing; the message says why and goes into the table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one worker."""

    memory_gb: float
    """Private writable memory, in 10^9 bytes."""
    time_s: float
    """Seconds from the start of the process, imports included."""


def serve(measure: Callable[[Spec], Answer]) -> None:
    """Run a worker: read spec and memory limit from stdin, write the answer to stdout, as JSON.

    Running out of memory and a DifferentWorkError become replies; other errors are raised.
    """
    request = json.load(sys.stdin)
    limit_memory(request["memory_gb"])
    try:
        reply: dict[str, Any] = {"answer": measure(request["spec"])}
    except DifferentWorkError as error:
        reply = {"different": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reply = {"unfinished": f"more than {request['memory_gb']:g} GB of memory needed"}
    # On a new line, because libraries may have printed something before.
    print("\n" + json.dumps(reply))


def limit_memory(memory_gb: float) -> None:
    """Limit this process's private writable memory (10^9 bytes).

    The limit is RLIMIT_DATA. RLIMIT_AS would also count the mapped code of torch and memory that
    malloc only reserves: half a gigabyte before the first tensor. macOS does not enforce it.
    """
    size = int(memory_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def _is_out_of_memory(error: Exception) -> bool:
    words = ("can't allocate memory", "cannot allocate memory", "bad_alloc", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def run_worker(command: Sequence[str], spec: Spec, limits: Limits) -> Answer:
    """Start a process that calls `serve`, and return its answer.

    Raises:
        DifferentWorkError: the worker found that it computes something else than its peers.
        UnfinishedError: it ran out of time or memory, or failed.
    """
    request = json.dumps({"spec": spec, "memory_gb": limits.memory_gb})
    try:
        done = subprocess.run(
            command,
            input=request,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limits.time_s,
            check=False,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired as error:
        raise UnfinishedError(f"not done within {limits.time_s:g} s") from error
    if done.returncode != 0:
        raise UnfinishedError(_how_it_died(done))
    reply = _last_json(done.stdout)
    if "different" in reply:
        raise DifferentWorkError(reply["different"])
    if "unfinished" in reply:
        raise UnfinishedError(reply["unfinished"])
    answer: Answer = reply["answer"]
    return answer


def _last_json(text: str) -> dict[str, Any]:
    try:
        reply: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise UnfinishedError(f"no answer on stdout: got {text[-80:]!r}, expected JSON") from error
    return reply


def _how_it_died(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    lines = done.stderr.strip().splitlines() or ["no error message"]
    return f"failed with exit code {done.returncode}: {lines[-1][:200]}"


@dataclasses.dataclass(frozen=True)
class Rounds:
    """The answers of all rounds, by peer, and the reasons why some did not finish."""

    answers: dict[str, list[Answer]]
    unfinished: dict[str, str]


def interleaved(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield (round, name): every name once per round, each round starting one name later.

    A slow moment of the machine then affects all names, and none is always first.
    """
    for i in range(rounds):
        start = i % max(1, len(names))
        for name in (*names[start:], *names[:start]):
            yield i, name


def run_rounds(measure: Callable[[str], Answer], names: Sequence[str], rounds: int) -> Rounds:
    """Measure every name in interleaved rounds; skip a name after it did not finish once.

    Raises:
        DifferentWorkError: `measure` raised it.
    """
    answers: dict[str, list[Answer]] = {name: [] for name in names}
    unfinished: dict[str, str] = {}
    for i, name in interleaved(names, rounds):
        if name in unfinished:
            continue
        logger.info("round %d of %d: %s", i + 1, rounds, name)
        try:
            answers[name].append(measure(name))
        except UnfinishedError as error:
            unfinished[name] = str(error)
            logger.warning("%s did not finish: %s", name, error)
        except DifferentWorkError as error:
            raise DifferentWorkError(f"{name}: {error}") from error
    finished = {name: found for name, found in answers.items() if name not in unfinished}
    return Rounds(finished, unfinished)


def summary(found: Rounds, loads: Iterable[str]) -> dict[str, Any]:
    """Return the medians over rounds and the time of every round (µs per image), by peer and load.

    The answers have median_us, p50_us and p99_us in "loads", by load.
    """

    def of_rounds(key: str, value: Callable[[list[float]], Any]) -> dict[str, dict[str, Any]]:
        return {
            peer: {load: value([a["loads"][load][key] for a in answers]) for load in loads}
            for peer, answers in found.answers.items()
        }

    def median(times: list[float]) -> float:
        return significant(statistics.median(times), 4)

    return {
        "us_per_image": of_rounds("median_us", median),
        "p50_us": of_rounds("p50_us", median),
        "p99_us": of_rounds("p99_us", median),
        "round_us": of_rounds("median_us", lambda times: [significant(us, 4) for us in times]),
        "did_not_finish": found.unfinished,
    }


def rss_mb() -> float:
    """Return the resident memory of this process (10^6 bytes); the peak so far if unknown."""
    return _status_mb("VmRSS")


def peak_rss_mb() -> float:
    """Return the peak resident memory of this process (10^6 bytes)."""
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    """Return a field of /proc/self/status, or getrusage's peak where that file does not exist.

    On Linux getrusage's peak includes the parent's before exec.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def machine() -> dict[str, str | float]:
    """Return Git revision, processor and the load average at the start."""
    return {"git": git_revision(), "cpu": cpu_name(), "load_1m": round(os.getloadavg()[0], 2)}


def git_revision(folder: Path = ROOT) -> str:
    """Return the commit, with "-dirty" if tracked files differ; "unknown" outside Git."""
    words = ("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    try:
        return git(*words, folder=folder).strip()
    except GitError:
        return "unknown"


def significant(value: float, digits: int = 3) -> float:
    """Round a noisy measurement to its significant digits."""
    return float(f"{value:.{digits}g}")
