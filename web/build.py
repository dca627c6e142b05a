"""Build the page (`make page`) and the npm package (`make npm`) around the engine in WebAssembly.

python -m web.build page --model models/mnist_mamba.bin
python -m web.build npm
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import html
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

from mnist_mamba import __version__
from mnist_mamba.atomic_write import write_text
from mnist_mamba.c_build import shared_flags
from mnist_mamba.engine.format import rounded
from pipeline.common import command
from pipeline.common.zig import find_zig

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "web"
CACHE = ROOT / "build" / "web" / "cache"
MODEL = ROOT / "models" / "mnist_mamba.bin"

ISAS = {"simd128": ("-msimd128",), "scalar": ()}
"""Compiler flags of each set of kernels, fastest first. A browser without SIMD runs the last."""

EXPORTS = (
    "malloc",
    "mamba_class_name",
    "mamba_context_bytes",
    "mamba_context_init",
    "mamba_forward",
    "mamba_forward_u8",
    "mamba_member_info",
    "mamba_members_asked",
    "mamba_model_from_bytes",
    "mamba_model_info",
    "mamba_prepare_for_model",
    "mamba_set_exit_margin",
    "mamba_softmax",
    "set_trace",
)
"""Functions that JavaScript calls."""

BLOCK_BYTES = 8192  # wasm_module
STACK_BYTES = 256 * 1024  # mamba_prepare_picture uses 100 KB

# The files of the page's script, in the order in which it is put together.
SCRIPTS = ("colours.js", "draw.js", "picture.js", "inspect.js", "app.js")

# ---- the engine ------------------------------------------------------------------------------


def sources(isa: str) -> list[Path]:
    """Return the C sources of a module; glue.c stands for files, and JavaScript runs one image."""
    engine = ROOT / "csrc" / "engine"
    library = sorted(set(engine.glob("*.c")) - {engine / "file_bytes.c", engine / "batch.c"})
    kernels = [engine / "kernels" / f"{name}.c" for name in ("dispatch", isa)]
    return [*library, *kernels, *sorted((WEB / "wasm").glob("*.c"))]


@functools.cache
def compile_wasm(isa: str) -> bytes:
    """Compile the engine with the kernels of one instruction set.

    Raises:
        RuntimeError: the compiler is not installed, or refuses the sources.
    """
    include = (
        ROOT / "csrc/include",
        ROOT / "csrc/engine",
        ROOT / "csrc/simd",
        WEB / "wasm/include",
    )
    linker = [f"--export={name}" for name in EXPORTS]
    linker += ["--no-entry", "--gc-sections", "--strip-all"]
    compiler = [str(find_zig()), "cc", "-target", "wasm32-freestanding"]
    with tempfile.TemporaryDirectory() as folder:  # other processes may compile the same module
        output = Path(folder) / f"{isa}.wasm"
        done = subprocess.run(
            [
                *(*compiler, *ISAS[isa], "-std=c11", "-Os", "-DNDEBUG"),
                *(*shared_flags("ENGINE_MATH"), *shared_flags("WARNINGS"), "-Werror"),
                *(f"-I{path}" for path in include),
                *(str(source) for source in sources(isa)),
                *("-nostdlib", *(f"-Wl,{option}" for option in linker)),
                *(f"-Wl,-z,stack-size={STACK_BYTES}", "-o", str(output)),
            ],
            env=os.environ | {"ZIG_LOCAL_CACHE_DIR": str(CACHE)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"compiling {output.name} failed:\n{done.stderr}")
        return output.read_bytes()


def deflated(data: bytes) -> str:
    """Return base64 of the bytes as raw deflate, which engine.js expands."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return base64.b64encode(compressor.compress(data) + compressor.flush()).decode()


def wasm_module() -> str:
    """Return wasm.js: the compiled modules, their blocks in turn.

    Most functions are the same in all modules. Next to each other they are within the 32 KB in
    which deflate finds copies: 25 KB instead of 41.
    """
    modules = {isa: compile_wasm(isa) for isa in ISAS}
    starts = range(0, max(len(module) for module in modules.values()), BLOCK_BYTES)
    blocks = [module[at : at + BLOCK_BYTES] for at in starts for module in modules.values()]
    sizes = {isa: len(module) for isa, module in modules.items()}
    wasm = {"sizes": sizes, "block": BLOCK_BYTES, "packed": deflated(b"".join(blocks))}
    return f"export const WASM = {json.dumps(wasm)};\n"


# ---- the page --------------------------------------------------------------------------------


def without_comments(text: str) -> str:
    """Return a script or style without indentation and without lines that are comments alone."""
    text = re.sub(r"^[ ]*/\*(?:(?!\*/).)*\*/\n", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//")) + "\n"


def script(model: bytes) -> str:
    """Return the page's script: all modules in one, with the engine and the model inside."""
    packed = deflated(rounded(model))
    engine = (WEB / "npm" / "engine.js").read_text(encoding="utf-8")
    modules = [wasm_module(), engine]
    modules += [(WEB / "page" / name).read_text(encoding="utf-8") for name in SCRIPTS]
    text = "".join(without_comments(module) for module in modules)
    text = re.sub(r"^import .*?;\n", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^export (?=const|class|function|async)", "", text, flags=re.MULTILINE)
    return f'"use strict";\n{text}start("{packed}");\n'


def page(model: bytes) -> str:
    """Return the HTML page around a model file. It has no link to anything outside itself.

    Raises:
        FormatError: docs/format.md does not allow the file.
        RuntimeError: the engine does not compile.
    """
    parts = {
        "style": without_comments((WEB / "page" / "style.css").read_text(encoding="utf-8")),
        "script": script(model),
    }
    if re.search(r"</(script|style)", "".join(parts.values()), re.IGNORECASE):
        raise RuntimeError("a script or style must not end its own element")
    allowed = {"default-src": "'none'", "img-src": "data: blob:", "base-uri": "'none'"}
    allowed["form-action"] = "'none'"
    for name, text in parts.items():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed[f"{name}-src"] = f"'sha256-{digest}'"
    allowed["script-src"] += " 'wasm-unsafe-eval'"
    policy = "; ".join(f"{directive} {value}" for directive, value in allowed.items())
    text = (WEB / "page" / "index.html").read_text(encoding="utf-8")
    text = text.replace("POLICY", html.escape(policy, quote=True).replace("&#x27;", "'"))
    for name, part in parts.items():
        text = text.replace(f"<{name}></{name}>", f"<{name}>{part}</{name}>")
    return text


# ---- the npm package -------------------------------------------------------------------------


def npm_files(model: bytes) -> dict[str, bytes]:
    """Return the files of the npm package by name, with the model as an example."""
    files = {path.name: path.read_bytes() for path in sorted((WEB / "npm").iterdir())}
    manifest = json.loads(files["package.json"]) | {"version": __version__}
    files["package.json"] = (json.dumps(manifest, indent=2) + "\n").encode()
    files["wasm.js"] = wasm_module().encode()
    files["mnist_mamba.bin"] = rounded(model)
    files["LICENSE"] = (ROOT / "LICENSE").read_bytes()
    return files


def write_package(folder: Path, model: bytes) -> None:
    """Write the npm package to a folder, which it replaces."""
    files = npm_files(model)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def parse_arguments() -> argparse.Namespace:
    """Return the command's options."""
    arguments = command.parser(
        "Build the page or the npm package.", ["python -m web.build page --model mine.bin"]
    )
    arguments.add_argument("what", choices=("page", "npm"))
    arguments.add_argument(
        "--model", type=Path, default=MODEL, metavar="FILE", help="default: %(default)s"
    )
    arguments.add_argument(
        "--output", type=Path, help="default: build/mnist-mamba.html, or the folder build/npm"
    )
    return arguments.parse_args()


def main() -> None:
    """Build the page or the npm package."""
    arguments = parse_arguments()
    model = arguments.model.read_bytes()
    if arguments.what == "npm":
        output = arguments.output or ROOT / "build" / "npm"
        write_package(output, model)
    else:
        output = arguments.output or ROOT / "build" / "mnist-mamba.html"
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, page(model))
        logger.info("%s: %d bytes", output, output.stat().st_size)


if __name__ == "__main__":
    command.run(main)
