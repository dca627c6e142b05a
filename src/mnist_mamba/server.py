"""`mnist-mamba serve`: answer images and pictures over HTTP with the C engine.

Needs Starlette, Uvicorn and Pillow: the extra `serve`. docs/serving.md has the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator
from typing import NamedTuple

import anyio
import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mnist_mamba import __version__
from mnist_mamba.classify import classify, read_inputs
from mnist_mamba.engine import Engine

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the buckets of times, in seconds."""


class Limits(NamedTuple):
    """Bounds of a request."""

    body_bytes: int = 8 << 20
    images: int = 1000
    pixels: int = 1 << 25
    """Pixels of all pictures together. Decoding one takes up to 20 bytes per pixel."""
    seconds: float = 30
    """Time to send a body, and then time to wait for a free core."""
    connections: int = 128
    """Open connections; more are answered 503."""


class Metrics:
    """Counts since the start, changed and read by the event loop's thread alone."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        """Requests to classify, by status."""
        self.images = self.members_asked = self.in_progress = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(BUCKETS) + 1)

    @contextlib.asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Count a request that succeeds, fails with an HTTPException, or fails otherwise."""
        start, status = time.perf_counter(), 500
        self.in_progress += 1
        try:
            yield
            status = 200
        except HTTPException as error:
            status = error.status_code
            raise
        finally:
            seconds = time.perf_counter() - start
            self.in_progress -= 1
            self.requests[status] += 1
            self.seconds += seconds
            self.buckets[bisect_left(BUCKETS, seconds)] += 1

    def text(self) -> str:
        """Return the counts in Prometheus's text format."""
        lines = []

        def metric(name: str, kind: str, *samples: tuple[str, float]) -> None:
            lines.append(f"# TYPE mnist_mamba_{name} {kind}")
            lines.extend(f"mnist_mamba_{name}{suffix} {value}" for suffix, value in samples)

        by_status = sorted(self.requests.items())
        metric("requests_total", "counter", *((f'{{status="{code}"}}', n) for code, n in by_status))
        metric("images_total", "counter", ("", self.images))
        metric("members_asked_total", "counter", ("", self.members_asked))
        metric("requests_in_progress", "gauge", ("", self.in_progress))
        total, ends = 0, [*map(str, BUCKETS), "+Inf"]
        histogram: list[tuple[str, float]] = []
        for end, count in zip(ends, self.buckets, strict=True):
            total += count
            histogram.append((f'_bucket{{le="{end}"}}', total))
        histogram += [("_sum", self.seconds), ("_count", total)]
        metric("request_seconds", "histogram", *histogram)
        return "\n".join(lines) + "\n"


class Server:
    """The application's endpoints, around one engine that all requests share."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits, self.metrics = engine, limits, Metrics()
        # The engine and Pillow's decoders release Python's lock: more threads would only wait.
        self.cores = anyio.CapacityLimiter(os.cpu_count() or 1)

    async def predict(self, request: Request) -> Response:
        """Classify the images of a body, in a thread, so that no request blocks another."""
        async with self.metrics.request():
            is_json = _is_json(request)
            body = await self._body(request)
            try:
                with anyio.fail_after(self.limits.seconds):
                    content, images, asked = await to_thread.run_sync(
                        self._answer, body, is_json, limiter=self.cores
                    )
            except TimeoutError as error:
                raise HTTPException(503, "busy: no core was free in time; try again") from error
            self.metrics.images += images
            self.metrics.members_asked += asked
        return Response(content, media_type="application/json")

    async def _body(self, request: Request) -> bytes:
        """Return a body, or refuse it as soon as it is known to be too large or too slow."""
        limit, seconds = self.limits.body_bytes, self.limits.seconds
        too_large = HTTPException(413, f"body: got more than {limit} bytes, expected at most that")
        if int(request.headers.get("content-length", 0)) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError as error:
            message = f"body: got {len(body)} bytes in {seconds:g} s, expected all of them"
            raise HTTPException(408, message, {"Connection": "close"}) from error
        except ClientDisconnect as error:
            raise HTTPException(400, "body: the client ended the connection") from error
        return bytes(body)

    def _answer(self, body: bytes, is_json: bool) -> tuple[bytes, int, int]:
        """Return the answer, the number of images, and how many members were asked in all."""
        inputs = _json_inputs(body) if is_json else [body]
        if len(inputs) > self.limits.images:
            expected = f"expected at most {self.limits.images}"
            raise HTTPException(413, f"inputs: got {len(inputs)} images, {expected}")
        try:
            images = read_inputs(self.engine, inputs, self.limits.pixels)
            answers = classify(self.engine, images)
        except ValueError as error:  # an InputError, or the engine's about their shape
            raise HTTPException(400, str(error)) from error
        content = json.dumps({"predictions": answers}).encode()
        return content, len(answers), sum(answer["members_asked"] for answer in answers)

    async def health(self, request: Request) -> Response:
        """Say that requests are answered, and by which model."""
        info = self.engine.info
        return JSONResponse(
            {
                "status": "ok",
                "version": __version__,
                "model": {
                    "crc32": f"{int(info['crc32']):08x}",
                    **{key: info[key] for key in ("height", "width", "channels", "parameters")},
                    "classes": self.engine.class_names,
                },
            }
        )

    async def show_metrics(self, request: Request) -> Response:
        """Return the metrics."""
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")


def _is_json(request: Request) -> bool:
    """Return whether the body is JSON; False for a picture."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.startswith("image/"):
        raise HTTPException(415, "Content-Type: expected application/json, image/png or the like")
    return kind == "application/json"


def _json_inputs(body: bytes) -> list[object]:
    """Return the list `inputs` of a body."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"body: not JSON: {error}") from error
    inputs = request.get("inputs") if isinstance(request, dict) else None
    if not isinstance(inputs, list):
        raise HTTPException(400, 'body: expected {"inputs": [...]}, a list of images or pictures')
    return inputs


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer an error with one line."""
    if isinstance(error, HTTPException):
        content = {"error": " ".join(error.detail.split())}
        return JSONResponse(content, error.status_code, headers=error.headers)
    return JSONResponse({"error": "internal error: see the server's log"}, 500)


def application(engine: Engine, limits: Limits | None = None) -> Starlette:
    """Return the ASGI application."""
    server = Server(engine, limits or Limits())
    return Starlette(
        routes=[
            Route("/predict", server.predict, methods=["POST"]),
            Route("/health", server.health),
            Route("/metrics", server.show_metrics),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _refuse},
    )


def serve(engine: Engine, listener: socket.socket, limits: Limits) -> None:
    """Answer requests until SIGINT or SIGTERM; then end the running ones first."""
    config = uvicorn.Config(
        application(engine, limits),
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=int(limits.seconds),
    )
    # Uvicorn raises the signal again at its end, and this makes the exit code 0.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
