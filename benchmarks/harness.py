"""What the benchmarks share: workers in processes of their own, interleaved rounds, the machine."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.git import GitError, git
from pipeline.common.machine import cpu_name

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]

Spec = dict[str, Any]
"""What a worker is to measure; plain values, since it travels as JSON."""
Answer = dict[str, Any]
"""What a worker found; plain values."""


class BenchError(RuntimeError):
    """A benchmark whose figures would not mean what they say; the message says why."""


class DifferentWorkError(BenchError):
    """A peer that computes something else, whose time therefore compares with nothing."""


class UnfinishedError(RuntimeError):
    """A worker that gave no figure; the message says why and belongs into the table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one worker may use."""

    memory_gb: float
    """Private writable memory, in 10^9 bytes."""
    time_s: float
    """From the start of the process, imports included."""


def serve(measure: Callable[[Spec], Answer]) -> None:
    """A worker's main: the spec and its memory limit from stdin, the answer to stdout, as JSON.

    Out of memory, and work that differs from the others', are answers; other errors are raised.
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
    # On a line of its own: libraries may have printed something before.
    print("\n" + json.dumps(reply))


def limit_memory(memory_gb: float) -> None:
    """Make this process fail to allocate more than that, in 10^9 bytes.

    The limit is RLIMIT_DATA, private writable memory, which on Linux follows what a process
    fills. RLIMIT_AS would also count the mapped code of torch and what malloc only reserves,
    half a gigabyte before the first tensor. macOS accepts the limit and does not enforce it.
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
        raise UnfinishedError(f"no answer on stdout, which ends in {text[-80:]!r}") from error
    return reply


def _how_it_died(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    lines = done.stderr.strip().splitlines() or ["it said nothing"]
    return f"failed with exit code {done.returncode}: {lines[-1][:200]}"


@dataclasses.dataclass(frozen=True)
class Rounds:
    """What all rounds gave, by name: one answer a round, or why there is none."""

    answers: dict[str, list[Answer]]
    unfinished: dict[str, str]


def interleaved(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, name): every name once a round, each round starting one name further on.

    So whatever else slows the machine for a while meets all of them, and none is always first.
    """
    for i in range(rounds):
        start = i % max(1, len(names))
        for name in (*names[start:], *names[:start]):
            yield i, name


def run_rounds(measure: Callable[[str], Answer], names: Sequence[str], rounds: int) -> Rounds:
    """Measure every name in interleaved rounds; one that did not finish is not tried again.

    Raises:
        DifferentWorkError: from `measure`; nothing further is measured.
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


def rss_mb() -> float:
    """Resident memory of this process now, in 10^6 bytes; where unknown, the peak so far."""
    return _status_mb("VmRSS")


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in 10^6 bytes."""
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    """A field of /proc/self/status; getrusage's peak where there is no such file.

    Not getrusage at once, because Linux carries its peak over from the parent through exec.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def machine() -> dict[str, str | float]:
    """Where and of what the figures are: Git revision, processor, load before the start."""
    return {"git": git_revision(), "cpu": cpu_name(), "load_1m": round(os.getloadavg()[0], 2)}


def git_revision(folder: Path = ROOT) -> str:
    """The commit, with "-dirty" where tracked files differ from it; "unknown" outside Git."""
    words = ("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    try:
        return git(*words, folder=folder).strip()
    except GitError:
        return "unknown"


def significant(value: float, digits: int = 3) -> float:
    """A value rounded to some significant digits, which is what a noisy figure has."""
    return float(f"{value:.{digits}g}")
