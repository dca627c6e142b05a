"""Measure the page (`make page-speed`): its sizes, the engine's CPU time, the time to an answer.

Writes metrics/page.json, and the tables of docs/page.md from it. Each time is the least of many, so
that other work on the machine hardly counts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from mnist_mamba.atomic_write import write_json
from mnist_mamba.data.idx import read_images
from mnist_mamba.engine.format import rounded
from mnist_mamba.export import write_model
from mnist_mamba.model import ModelConfig, build_classifier
from pipeline.common import command, paths
from pipeline.common.generated_tables import write_table
from pipeline.common.machine import cpu_name
from web import build

logger = logging.getLogger(__name__)

METRICS = build.ROOT / "metrics" / "page.json"
DOCUMENT = build.ROOT / "docs" / "page.md"
IMAGES = 1000
ROUNDS = 10
OPENED_PER_ROUND = 5

# Root needs the first one. The camera is one of Chromium's own.
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream"]

NODE = """
import { readFileSync } from "node:fs";
const [, engine, file, images, rounds] = process.argv;
const { open } = await import(engine), all = readFileSync(images);
const cases = { simd128: ["simd128"], simd128_all: ["simd128", 0], scalar: ["scalar"] };
const us = {}, asked = {};
for (let round = 0; round < rounds; round++)
  for (const [name, [isa, margin]] of Object.entries(cases)) {
    const model = await open(readFileSync(file), { isa }), n = all.length / model.size;
    if (margin !== undefined) model.setExitMargin(margin);
    let members = 0;
    const begin = process.cpuUsage();
    for (let i = 0; i < n; i++)
      members += model.forward(all.subarray(i * model.size, (i + 1) * model.size)).asked;
    const { user, system } = process.cpuUsage(begin);
    us[name] = Math.min(us[name] ?? Infinity, (user + system) / n);
    asked[name] = members / n;
  }
console.log(JSON.stringify({ us_per_image: us, members_asked: asked }));
"""

ANSWER_AT_ONCE = """
new MutationObserver((_, observer) => {
  if (!("ready" in document.documentElement.dataset)) return;
  observer.disconnect();
  document.getElementById("example").click();
  requestAnimationFrame(() => setTimeout(() => (window.answered = performance.now())));
}).observe(document, { subtree: true, attributeFilter: ["data-ready"] });
"""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run a headless Chromium.

    Raises:
        RuntimeError: Chromium is not installed.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise RuntimeError("Chromium not found: run `apt-get install chromium` first")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def tiny_model() -> bytes:
    """Return a model file of the size of the series' model `tiny`, with random weights."""
    config = ModelConfig(
        height=28, width=28, n_classes=10, pixel_mean=0.13, pixel_std=0.31, stem="conv3",
        stem_width=12, stem_norm="batch", direction="cross", d_model=32, n_layers=2,
        a="tied",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tiny.bin"
        write_model(file, build_classifier(config).eval())
        return file.read_bytes()


def sizes(page: str, model: bytes) -> dict[str, int]:
    """Return the bytes of the page and of its parts, and of the page with the model `tiny`."""
    packed = len(build.deflated(rounded(model)))
    engine = len(build.wasm_module())
    return {
        "engine": engine,
        "page": len(page.encode()) - packed - engine,
        "model": packed,
        "whole": len(page.encode()),
        "whole_tiny": len(build.page(tiny_model()).encode()),
    }


def times_in_node(folder: Path, model: bytes, rounds: int) -> dict[str, Any]:
    """Return the least CPU time per test image (µs) and the members asked, on one thread.

    Raises:
        RuntimeError: Node or the test images are not there, or Node fails.
    """
    node, file = shutil.which("node"), build.ROOT / paths.images(paths.PREPARED, "test")
    if node is None:
        raise RuntimeError("Node not found: run `apt-get install nodejs` first")
    if not file.is_file():
        raise RuntimeError(f"{file} not found: run `dvc repro prepare` first")
    build.write_package(folder / "npm", model)
    (folder / "images").write_bytes(read_images(file)[:IMAGES].tobytes())
    engine, packed = folder / "npm" / "engine.js", folder / "npm" / "mnist_mamba.bin"
    words = [engine.as_uri(), str(packed), str(folder / "images"), str(rounds)]
    done = subprocess.run(
        [node, "--input-type=module", "-e", NODE, *words], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"Node failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def times_in_chromium(browser: Browser, page: str, folder: Path, opened: int) -> dict[str, float]:
    """Return the least times from opening the page until it is ready, and until it answers (ms)."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    found = []
    for _ in range(opened):
        tab = browser.new_page()
        tab.add_init_script(ANSWER_AT_ONCE)
        tab.goto((folder / "page.html").as_uri())
        tab.wait_for_function("() => window.answered")
        ready = float(tab.get_attribute("html", "data-ready") or "nan")
        found.append((ready, float(tab.evaluate("answered"))))
        if tab.inner_text("#answer") != "0":
            raise RuntimeError(f"the first answer: got {tab.inner_text('#answer')}, expected 0")
        tab.close()
    ready, answered = map(min, zip(*found, strict=True))
    return {"ready": round(ready), "first_answer": round(answered)}


def measure(model: bytes, browser: Browser, rounds: int) -> dict[str, Any]:
    """Return all figures of the page around a model."""
    page, opened = build.page(model), OPENED_PER_ROUND * rounds
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        return {
            "machine": {
                "cpu": cpu_name(),
                "chromium": browser.version,
                "load_1m": round(os.getloadavg()[0], 2),
            },
            "images": IMAGES,
            "rounds": rounds,
            "opened": opened,
            "bytes": sizes(page, model),
            **times_in_node(folder, model, rounds),
            "ms_after_opening": times_in_chromium(browser, page, folder, opened),
        }


def sizes_table(found: dict[str, Any]) -> str:
    """Return the table of sizes."""
    names = {
        "engine": "engine, twice: SIMD128 and scalar",
        "page": "page, style and script",
        "model": "the shipped model, int8",
        "whole": "whole page",
        "whole_tiny": "whole page with a model of the size of `tiny`",
    }
    rows = [f"| {text} | {found['bytes'][name]:,} |" for name, text in names.items()]
    return "\n".join(["| part | bytes |", "|---|---:|", *rows]) + "\n"


def times_table(found: dict[str, Any]) -> str:
    """Return the table of times."""
    names = {"simd128": "SIMD128", "simd128_all": "SIMD128", "scalar": "scalar"}
    rows = [
        f"| one image, {text}, {found['members_asked'][name]:.3g} members (CPU time in Node) "
        f"| {found['us_per_image'][name]:,.0f} µs |"
        for name, text in names.items()
    ]
    ready, answered = found["ms_after_opening"].values()
    rows.append(f"| from opening the page until it is ready (Chromium) | {ready:.0f} ms |")
    rows.append(f"| from opening the page until it answers (Chromium) | {answered:.0f} ms |")
    return "\n".join([f"| {found['machine']['cpu']} | least |", "|---|---:|", *rows]) + "\n"


def main() -> None:
    """Measure the page with the shipped model."""
    arguments = command.parser("Measure the page's sizes and times.", ["python -m web.speed"])
    arguments.add_argument(
        "--rounds", type=command.positive, default=ROUNDS, help="default: %(default)s"
    )
    rounds = arguments.parse_args().rounds
    with chromium() as browser:
        found = measure(build.MODEL.read_bytes(), browser, rounds)
    write_json(METRICS, found)
    write_table(DOCUMENT, "sizes", sizes_table(found))
    write_table(DOCUMENT, "times", times_table(found))
    logger.info("%s\n%s", sizes_table(found), times_table(found))


if __name__ == "__main__":
    command.run(main)
