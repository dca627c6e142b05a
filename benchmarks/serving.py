"""`python -m benchmarks.serving MODEL`: load `mnist-mamba serve` and `mlflow models serve`.

Both servers answer the same requests with the same model file, interleaved. MODEL is a model that
MLflow saved: `make champion` fetches one.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil  # type: ignore[import-untyped]
from PIL import Image

from benchmarks.options import above_zero
from pipeline.common import command
from pipeline.common.machine import cpu_name, usable_cores

EXAMPLE = Path("models/example_input.bin")
"""28x28 float32 in [0, 1]."""
JSON, PNG = "application/json", "image/png"


class Server(NamedTuple):
    """A way to serve a model folder."""

    words: tuple[str, ...]
    """Command line, without the port."""
    path: str
    """Path of the address to which requests are posted."""
    takes_png: bool
    """Whether a picture may be the body itself; else it is base64 in JSON."""


def servers(model: Path) -> dict[str, Server]:
    """Return the servers to compare."""
    mlflow = ("mlflow", "models", "serve", "--env-manager", "local", "-m", str(model), "-p")
    file = str(model / "artifacts/mnist_mamba.bin")
    ours = (sys.executable, "-m", "mnist_mamba", "serve", "--model", file, "--port")
    return {
        "mlflow models serve": Server(mlflow, "/invocations", takes_png=False),
        "mnist-mamba serve": Server(ours, "/predict", takes_png=True),
    }


def bodies(server: Server) -> dict[str, tuple[str, bytes]]:
    """Return the content type and the body of each kind of request."""
    image = np.fromfile(EXAMPLE, "<f4").reshape(1, 28, 28)
    file = io.BytesIO()
    Image.fromarray(np.uint8(np.kron(255 - 255 * image[0], np.ones((8, 8))))).save(file, "PNG")
    png, text = file.getvalue(), base64.b64encode(file.getvalue()).decode()
    return {
        "1 image": (JSON, _inputs(image.tolist())),
        "100 images": (JSON, _inputs(100 * image.tolist())),
        "1 PNG, 224x224": (PNG, png) if server.takes_png else (JSON, _inputs([text])),
    }


def _inputs(entries: list[Any]) -> bytes:
    return json.dumps({"inputs": entries}).encode()


@contextlib.contextmanager
def running(server: Server) -> Iterator[tuple[int, psutil.Process]]:
    """Start a server, yield its port and process once it answers, and stop it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    words = [*server.words, str(port)]
    with subprocess.Popen(words, start_new_session=True, **quiet) as process:  # type: ignore[call-overload]
        try:
            deadline = time.monotonic() + 120
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{' '.join(words)}: got no answer on port {port}")
                time.sleep(0.2)
            yield port, psutil.Process(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def cpu_seconds(process: psutil.Process) -> float:
    """Return user and system time of a process and its children."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


async def post(port: int, request: bytes, deadline: float) -> list[float]:
    """Post a request again and again on one connection; return the seconds of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seconds = []
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"got {head.splitlines()[0].decode()}, expected 200")
        seconds.append(time.perf_counter() - start)
    writer.close()
    return seconds


async def load(port: int, request: bytes, connections: int, seconds: float) -> list[float]:
    """Return the seconds of all requests on several connections."""
    deadline = time.perf_counter() + seconds
    all_ = await asyncio.gather(*(post(port, request, deadline) for _ in range(connections)))
    return [one for each in all_ for one in each]


def measure(server: Server, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return requests per second, median and 99th percentile in ms, and ms of CPU per request."""
    answer = {}
    with running(server) as (port, process):
        for name, (kind, body) in bodies(server).items():
            head = f"POST {server.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
            request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
            asyncio.run(load(port, request, options.connections, 1))  # warm up
            before = cpu_seconds(process)
            times = asyncio.run(load(port, request, options.connections, options.seconds))
            cpu = (cpu_seconds(process) - before) / len(times)
            p99 = statistics.quantiles(times, n=100)[98]
            rate = len(times) / options.seconds
            answer[name] = [rate, 1e3 * statistics.median(times), 1e3 * p99, 1e3 * cpu]
    return answer


def main() -> None:
    """Compare the servers and print a table."""
    parser = command.parser(__doc__ or "", ["python -m benchmarks.serving build/champion"])
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model in MLflow")
    parser.add_argument(
        "--connections", type=command.positive, default=8, help="default: %(default)s"
    )
    parser.add_argument("--seconds", type=above_zero, default=5, help="default: %(default)s")
    parser.add_argument("--rounds", type=command.positive, default=3, help="default: %(default)s")
    options = parser.parse_args()
    rounds = [
        {name: measure(server, options) for name, server in servers(options.model).items()}
        for _ in range(options.rounds)
    ]
    print(f"{cpu_name()}, {usable_cores()} cores, {options.connections} connections\n")
    print("| request | server | requests per second | median (ms) | p99 (ms) | CPU (ms) |")
    print("|---|---|---:|---:|---:|---:|")
    for request in rounds[0]["mnist-mamba serve"]:
        for name in rounds[0]:
            # The best of the rounds: other work on the machine only adds time.
            columns = zip(*(one[name][request] for one in rounds), strict=True)
            rate, *times = columns
            best = [f"{max(rate):.0f}", *(f"{min(column):.2f}" for column in times)]
            print(f"| {request} | `{name}` | {' | '.join(best)} |")


if __name__ == "__main__":
    command.run(main)
