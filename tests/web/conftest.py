"""The npm package and the page, built once per worker, and what runs them: Node and a browser."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from web import build

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "mnist_mamba.bin"


@functools.cache
def digit_images() -> NDArray[np.uint8]:
    """Return scikit-learn's digits as MNIST shows them."""
    # Imported here: it compiles the library, and without a compiler nothing would be collected.
    from tests.library.test_pictures import digits

    return digits()[0]


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the npm package."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs the compiler for WebAssembly: pip install ziglang")
    folder = tmp_path_factory.mktemp("npm") / "mnist-mamba"
    build.write_package(folder, MODEL.read_bytes())
    return folder


@pytest.fixture(scope="session")
def node(package: Path) -> Callable[..., str]:
    """A function that runs a program in Node with the package's functions; it returns stdout."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("needs Node: apt-get install nodejs")

    def run(program: str, *arguments: str | Path) -> str:
        preamble = (
            'import { readFileSync, writeFileSync } from "node:fs";\n'
            f'import {{ open, MambaError }} from "{(package / "engine.js").as_uri()}";\n'
            "const read = (path) => readFileSync(path);\n"
            "const [, ...args] = process.argv;\n"
        )
        done = subprocess.run(
            [found, "--input-type=module", "-e", preamble + program, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def page_file(package: Path) -> Path:
    """The page with the shipped model, as `make page` writes it."""
    file = package.parent / "mnist-mamba.html"
    file.write_text(build.page(MODEL.read_bytes()), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    pytest.importorskip("playwright", reason="needs playwright: pip install playwright")
    from web.speed import chromium

    with contextlib.ExitStack() as stack:
        try:
            browser = stack.enter_context(chromium())
        except RuntimeError as error:
            pytest.skip(str(error))
        yield browser
