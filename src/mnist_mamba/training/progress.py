"""Showing how far a training is."""

from __future__ import annotations

import logging
import time
from typing import Any

from tqdm import tqdm

from mnist_mamba.training.epoch import Epoch

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0
"""Time between two lines where there is no terminal."""


class Progress:
    """A bar for each epoch on a terminal; elsewhere a log line every half minute.

    Args:
        done: images that were seen before this process began.
        total: images of all epochs.
        shown: whether to show anything.
    """

    def __init__(self, done: int, total: int, shown: bool) -> None:
        self._done, self._total, self._shown = done, total, shown
        self._began = self._last_line = time.perf_counter()

    def bar(self, epoch: Epoch) -> tqdm[Any]:
        """Return an epoch's progress bar over images, which is disabled without a terminal."""
        return tqdm(
            desc=f"epoch {epoch.number}/{epoch.config.epochs}",
            total=epoch.n_images,
            initial=epoch.images_seen,
            unit=" images",
            disable=None if self._shown else True,
            mininterval=1,
            leave=False,
            nrows=24,  # tqdm would show nothing on a terminal that says that it has 0 rows
        )

    def seconds_left(self, epoch: Epoch) -> float:
        """Estimate the time left for all epochs from the pace since this process began."""
        seen = epoch.images_seen_total
        pace = (time.perf_counter() - self._began) / (seen - self._done)
        return pace * (self._total - seen)

    def step(self, bar: tqdm[Any], epoch: Epoch, n: int) -> None:
        """Show a step of n images that an epoch has just done."""
        seen, left = epoch.images_seen, tqdm.format_interval(self.seconds_left(epoch))
        scores = f"loss {epoch.loss_sum / seen:.4f}, accuracy {epoch.correct / seen:.4f}"
        bar.set_postfix_str(f"{scores}, all epochs in {left}", refresh=False)
        bar.update(n)
        now = time.perf_counter()
        if bar.disable and self._shown and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            where = f"epoch {epoch.number}/{epoch.config.epochs}, {seen}/{epoch.n_images} images"
            logger.info("  %s: %s; about %s left for all epochs", where, scores, left)
