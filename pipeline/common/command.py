"""What every stage's command shares: logging, and errors told as one clear line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence


def parser(description: str, examples: Sequence[str] = ()) -> argparse.ArgumentParser:
    """An argument parser whose help ends with examples."""
    epilog = "examples:\n" + "\n".join(f"  {example}" for example in examples) if examples else None
    return argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(main: Callable[[], None]) -> None:
    """Run a stage; what a person can mend becomes one message and exit code 1.

    Every error that the project raises on purpose is a ValueError, an OSError or a RuntimeError;
    set MNIST_MAMBA_TRACEBACK=1 to see where it came from.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
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


def _process() -> str:
    """Which of torchrun's processes this is, as each of them tells its own error."""
    return f"process {os.environ['RANK']}: " if "TORCHELASTIC_RUN_ID" in os.environ else ""
