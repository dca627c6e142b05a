"""Run modules in forks of one process that has imported slow packages already.

The process imports nothing of this project and starts no thread before it forks. A fork differs
from a new Python only in the seconds that it does not spend importing and removing torch.
"""

from __future__ import annotations

import atexit
import functools
import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PROGRAM = """
import atexit, gc, json, os, runpy, signal, sys

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
        os.setpgid(child, child)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
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
def _server() -> subprocess.Popen[bytes]:
    """Start the server, which ends when this process closes its input."""
    server = subprocess.Popen(
        [sys.executable, "-E", "-c", PROGRAM],  # -E: PYTHONPATH may name other copies
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    atexit.register(server.communicate)
    return server


class Fork:
    """A started module, in a process group of its own; one at a time.

    Args:
        folder: the current folder, from which the module is imported.
        outputs: the files of stdout and stderr.
        module: its name, with its arguments.
        env: its environment.
    """

    def __init__(
        self, folder: Path, outputs: Sequence[Path], module: Sequence[str], env: Mapping[str, str]
    ) -> None:
        server = _server()
        assert server.stdin
        assert server.stdout
        self._answers = server.stdout
        self._code: int | None = None
        words = [str(folder), [*map(str, outputs)], module[0], module[1:], dict(env)]
        server.stdin.write(json.dumps(words).encode() + b"\n")
        self.pid = int(self._answers.readline())

    def wait(self) -> int:
        """Wait for the end and return the exit code, or minus the signal's number."""
        if self._code is None:
            self._code = int(self._answers.readline())
        return self._code

    def poll(self) -> int | None:
        """Return the exit code, or None if the process still runs."""
        if self._code is None and not select.select([self._answers], [], [], 0)[0]:
            return None
        return self.wait()


def run_forked(
    folder: Path, module: str, arguments: list[str], env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` in a folder and capture its output."""
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [Path(scratch, name) for name in ("stdout", "stderr")]
        code = Fork(folder, outputs, [module, *arguments], env).wait()
        texts = [path.read_text(encoding="utf-8") for path in outputs]
    return subprocess.CompletedProcess(arguments, code, *texts)
