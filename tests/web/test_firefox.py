"""The page in Firefox, by the protocol that Firefox itself speaks (WebDriver BiDi)."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.web.test_page import HANDS, places

SECONDS = 120
"""Most time to start Firefox, and for each of its answers: the machine may be busy."""

ANSWER = """new Promise((done) => requestAnimationFrame(() =>
  setTimeout(() => done(document.getElementById("answer").textContent))))"""
BOX = "JSON.stringify(document.getElementById('paper').getBoundingClientRect())"
BLOCKED = """new Promise((done) => {
  addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
  fetch("https://example.org/").catch(() => {});
})"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address at which a new headless Firefox listens."""
    found = shutil.which("firefox-esr") or shutil.which("firefox")
    if found is None or importlib.util.find_spec("aiohttp") is None:
        pytest.skip("needs Firefox and aiohttp: apt-get install firefox-esr, pip install aiohttp")
    command = [found, "--headless", "--remote-debugging-port=0", "--profile", str(tmp_path)]
    file, end = tmp_path / "WebDriverBiDiServer.json", time.monotonic() + SECONDS
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as firefox:
        try:
            while not (file.is_file() and file.read_text(encoding="utf-8").endswith("}")):
                assert firefox.poll() is None, "Firefox ended"
                assert time.monotonic() < end, "Firefox does not listen"
                time.sleep(0.1)
            server = json.loads(file.read_text(encoding="utf-8"))
            yield f"ws://{server['ws_host']}:{server['ws_port']}/session"
        finally:
            firefox.terminate()


class Tab:
    """Firefox's tab, and the events that it reported."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.numbers = itertools.count()
        self.events: list[Any] = []
        self.context: str | None = None

    async def call(self, method: str, **params: Any) -> Any:
        """Return the result of a command of WebDriver BiDi."""
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": params})
        while (message := await self.socket.receive_json(timeout=SECONDS)).get("id") != number:
            self.events.append(message["params"])
        assert message["type"] == "success", message
        return message["result"]

    async def open(self, url: str) -> None:
        """Open a page of 1,000 x 900 pixels."""
        await self.call("session.new", capabilities={})
        await self.call("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent"])
        tree = await self.call("browsingContext.getTree")
        self.context = tree["contexts"][0]["context"]
        size = {"width": 1000, "height": 900}
        await self.call("browsingContext.setViewport", context=self.context, viewport=size)
        await self.call("browsingContext.navigate", context=self.context, url=url, wait="complete")

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a script, after the promise that it may be."""
        target = {"context": self.context}
        found = await self.call(
            "script.evaluate", expression=expression, target=target, awaitPromise=True
        )
        return found["result"].get("value")

    async def draw(self, strokes: list[str], pointer: str) -> str:
        """Draw strokes; return the answer."""
        box = json.loads(await self.evaluate(BOX))
        actions: list[dict[str, Any]] = []
        for stroke in strokes:
            for i, (x, y) in enumerate(places(stroke)):
                place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
                actions.append({"type": "pointerMove", **{k: round(v) for k, v in place.items()}})
                if i == 0:
                    actions.append({"type": "pointerDown", "button": 0})
            actions.append({"type": "pointerUp", "button": 0})
        source = {"type": "pointer", "id": pointer, "parameters": {"pointerType": pointer}}
        await self.call(
            "input.performActions", context=self.context, actions=[source | {"actions": actions}]
        )
        return str(await self.evaluate(ANSWER))


async def visit(address: str, url: str) -> tuple[list[str], list[Any], str]:
    """Draw a digit with each pointer, then try to connect.

    Returns:
        The answers, what Firefox reported, and the directive that blocked the connection.
    """
    import aiohttp

    async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
        tab, answers = Tab(socket), []
        await tab.open(url)
        for pointer, (_, _, strokes) in zip(("mouse", "touch"), HANDS[5:8:2], strict=True):
            answers.append(await tab.draw(strokes, pointer))
            await tab.evaluate("document.getElementById('clear').click()")
        reports = list(tab.events)
        return answers, reports, await tab.evaluate(BLOCKED)


def test_firefox_reads_what_is_drawn_and_reports_nothing(address: str, page_file: Path) -> None:
    with ThreadPoolExecutor(1) as thread:  # Playwright's event loop runs in this one
        run = thread.submit(asyncio.run, visit(address, page_file.as_uri()))
        answers, reports, blocked = run.result()
    assert answers == ["5", "7"]
    requests = [report["request"]["url"] for report in reports if "request" in report]
    assert set(requests) <= {page_file.as_uri(), "data:,"}
    assert len(requests) == len(reports), reports
    assert blocked == "connect-src"
