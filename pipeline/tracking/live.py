"""Streaming curves and the machine's load to MLflow during a training.

A thread of its own does all that may wait for MLflow. So a training does not wait for a server that
is slow, broken or gone: in all at most WAIT_S, at its end. `make track` completes the run.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_mamba.training.loop import StoppedError
from pipeline.common.content_key import content_key
from pipeline.common.params import Params
from pipeline.tracking import client as tracking
from pipeline.tracking.client import CurvePoint

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logger = logging.getLogger(__name__)

WAIT_S = 10
"""Seconds that a training waits for a server, in all. It waits longer for a file of its own."""


@contextmanager
def live_run(
    params: Params,
    enabled: bool = True,
    search: str | None = None,
    metrics: Path | None = None,
) -> Iterator[Callable[[CurvePoint], None]]:
    """Stream curves and the machine's load during a training; MLflow's failures only warn.

    Args:
        params: the training's.
        enabled: whether to do so, if the params agree.
        search: name of the search of which the training is a trial.
        metrics: a metrics file that is also sent at the end of a completed training.

    Yields:
        A function that logs one point of the curves; it does not wait.
    """
    if not (enabled and params.tracking.enabled):
        yield lambda point: None
        return
    stream = _Stream(params, search, metrics)
    stream.start()
    status = "FAILED"
    try:
        yield stream.queue.put
        status = "FINISHED"
    except (KeyboardInterrupt, StoppedError):
        status = "KILLED"
        raise
    finally:
        stream.queue.put(status)
        stream.join(None if tracking.is_local() else WAIT_S)
        if stream.is_alive():
            stream.warn(f"no answer in {WAIT_S:g} s")


class _Stream(threading.Thread):
    """Sends the points of a queue to the run, until the queue has the status of its end.

    It is a daemon: the process does not wait for it.
    """

    def __init__(self, params: Params, search: str | None, metrics: Path | None) -> None:
        super().__init__(name="MLflow", daemon=True)
        self._search, self._metrics = search, metrics
        self.queue: queue.SimpleQueue[CurvePoint | str] = queue.SimpleQueue()
        self._params = params
        self._has_warned = False

    def warn(self, cause: object) -> None:
        """Say, once, that MLflow lacks something of this training."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "MLflow: %s; the training goes on without it, and `make track` stores all later",
                cause,
            )

    def run(self) -> None:
        with self._only_warning():
            params = self._params
            client, experiment = tracking.connect(params)
            key = content_key(params)
            run = tracking.find_or_create(client, experiment, params, key, self._search)
            run_id = run.info.run_id
            client.update_run(run_id, status="RUNNING")
            client.set_tag(run_id, tracking.PROGRESS_TAG, "training alone")
            monitor = self._start_monitor(run_id, params.tracking.system_metrics)
            while not isinstance(item := self.queue.get(), str):
                with self._only_warning():
                    tracking.log_points(client, run_id, [item])
            if monitor:
                monitor.finish()
            if self._metrics and item == "FINISHED":
                content = json.loads(self._metrics.read_text(encoding="utf-8"))
                tracking.log_metrics(client, run_id, tracking.metrics_of(content, "train"))
            client.set_terminated(run_id, item)

    @contextmanager
    def _only_warning(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.warn(tracking.one_line(error))

    def _start_monitor(self, run_id: str, seconds: float) -> SystemMetricsMonitor | None:
        """Start MLflow's thread that measures the machine at this interval, unless it is 0."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if not seconds:
            return None
        # It logs its start, its end, each GPU that it does not find, and each failure.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
        uri = tracking.tracking_uri()
        try:
            monitor = SystemMetricsMonitor(
                run_id, sampling_interval=seconds, resume_logging=True, tracking_uri=uri
            )
            monitor.start()
        except Exception as error:
            logger.warning("MLflow gets no system metrics: %s", tracking.one_line(error))
            return None
        return monitor
