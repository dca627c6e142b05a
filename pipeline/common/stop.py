"""Stopping a training on request, so that it can go on later."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from types import FrameType

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_REPEAT_SECONDS = 1.0
"""torchrun passes the terminal's Ctrl-C on, so that a process gets it twice at once."""


STARTED_BY = ("DVC_STAGE", "MNIST_MAMBA_SERIES")
"""Variables of DVC and of a series, which start trainings that must not outlive them."""


class StopRequest:
    """Notes SIGINT (Ctrl-C), SIGTERM, SIGHUP, and the end of the DVC or series that started this.

    The same signal again after a second has its usual effect.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._at = 0.0
        self._parent = os.getppid() if any(name in os.environ for name in STARTED_BY) else None
        self._before = {}
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._at = number, now
            name = signal.Signals(number).name
            message = f"stopping after this step; another {name} ends the training at once"
            print(f"\n{name}: {message}", file=sys.stderr, flush=True)
        elif number == self.signal and now - self._at > _REPEAT_SECONDS:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)

    def __call__(self) -> bool:
        """Return whether the training should stop."""
        if self._parent not in (None, os.getppid()) and self.signal is None:
            self.signal = signal.SIGTERM
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The code with which a process ends that a signal has stopped."""
        return 128 + (self.signal or signal.SIGTERM)


def command_to_continue() -> str:
    """Return what the user types to continue this training."""
    if "DVC_STAGE" in os.environ:
        return "the same dvc command (dvc repro, or dvc exp run with the same -S)"
    words = [*sys.argv[1:], *([] if "--resume" in sys.argv else ["--resume"])]
    if os.environ.get("TORCHELASTIC_RUN_ID"):
        return f"torchrun as before, with {shlex.join(words)}"
    return f"python -m pipeline.train {shlex.join(words)}"
