"""Run modules in forks of one process that has imported slow packages already.

The process imports nothing of this project and starts no thread before it forks. A fork differs
from a new Python only in the seconds that it does not spend importing and removing torch.
"""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

PROGRAM = """
import atexit, gc, json, os, runpy, sys

def leave():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

atexit.register(leave)  # the first function to be registered is the last to be called
import matplotlib.figure, numpy, pydantic, ruamel.yaml, torch._dynamo

gc.freeze()
code = 0
for line in sys.stdin:
    folder, outputs, module, arguments, env = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for number, name in enumerate((os.devnull, *outputs)):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.path[0], sys.argv = folder, [module, *arguments]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
        raise
    break
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Start the server, which ends when this process closes its input."""
    server = subprocess.Popen(
        [sys.executable, "-E", "-c", PROGRAM],  # -E: PYTHONPATH may name other copies
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)
    return server


def run_forked(
    folder: Path, module: str, arguments: list[str], env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` in a folder and capture its output."""
    server = _server()
    assert server.stdin
    assert server.stdout
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [Path(scratch, name) for name in ("stdout", "stderr")]
        words = [str(folder), [*map(str, outputs)], module, arguments, env]
        print(json.dumps(words), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        texts = [path.read_text(encoding="utf-8") for path in outputs]
    return subprocess.CompletedProcess(arguments, code, *texts)
