"""The frame of every command: argument parser, logging, and errors as one clear line."""

from __future__ import annotations

import argparse
import atexit
import gc
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mnist_mamba.atomic_write import write_text

PASS, REGRESSION, NO_VERDICT = 0, 1, 2
"""Exit codes of the commands that judge this work tree against a Git revision."""


def parser(description: str, examples: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return an argument parser whose help ends with examples."""
    epilog = "examples:\n" + "\n".join(f"  {example}" for example in examples) if examples else None
    return argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def positive(text: str) -> int:
    """Parse a whole number of at least 1, as a type of an option.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def run(main: Callable[[], object]) -> None:
    """Run a command; turn an error that the user can fix into one line and exit code 1.

    All errors that the project raises on purpose are ValueError, OSError or RuntimeError. Set
    MNIST_MAMBA_TRACEBACK=1 to see the traceback.
    """
    _start()
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("MNIST_MAMBA_TRACEBACK"):
            raise
        print(f"error: {_process()}{error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def judge_arguments(description: str, module: str) -> argparse.Namespace:
    """Return the options of a command that judges this work tree."""
    arguments = parser(description, [f"python -m {module} --base origin/main"])
    arguments.add_argument(
        "--base",
        default="origin/main",
        metavar="REVISION",
        help="Git revision to compare with; default: %(default)s",
    )
    arguments.add_argument(
        "--output", type=Path, metavar="FILE.md", help="also write the page to this file"
    )
    return arguments.parse_args()


def run_judge(main: Callable[[argparse.Namespace], int], description: str, module: str) -> None:
    """Run a command that judges this work tree, and exit with the code that `main` returns.

    An error that prevents a verdict is printed as one line, with exit code NO_VERDICT. It also
    replaces the page in --output, which would otherwise hold an earlier verdict.
    """
    _start()
    options = judge_arguments(description, module)
    try:
        code = main(options)
    except (ValueError, ArithmeticError, LookupError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = NO_VERDICT
        if options.output is not None:
            name = module.rsplit(".", 1)[-1]
            page = f"## {name} against {options.base}: no verdict\n\n{error}\n"
            try:
                write_text(options.output, page)
            except OSError as second:
                print(f"error: {second}", file=sys.stderr)
    sys.exit(code)


def _start() -> None:
    # A third of the CPU time of importing and removing torch would be a search for garbage.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may lack ≥ and ±
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def _process() -> str:
    """Return the name of this process of torchrun's, each of which prints its own error."""
    return f"process {os.environ['RANK']}: " if os.environ.get("TORCHELASTIC_RUN_ID") else ""
