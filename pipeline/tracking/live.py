"""Streaming curves and the machine's load to MLflow during a training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.common.content_key import content_key
from pipeline.common.params import Params
from pipeline.tracking import client as tracking
from pipeline.tracking.client import CurvePoint

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logger = logging.getLogger(__name__)


@contextmanager
def live_run(params: Params, enabled: bool = True) -> Iterator[Callable[[CurvePoint], None]]:
    """Stream curves and the machine's load during a training; MLflow's failures only warn.

    Yields a function that logs one point of the curves.
    """
    live = None
    if enabled and params.tracking.enabled:
        with _only_warning("MLflow is not available, the training continues without it"):
            live = _LiveRun(params)
    status = "FAILED"
    try:
        yield live.log_point if live else lambda point: None
        status = "FINISHED"
    finally:
        if live:
            live.finish(status)


@contextmanager
def _only_warning(message: str) -> Iterator[None]:
    """Log an error of the body as a warning."""
    try:
        yield
    except Exception as error:
        logger.warning("%s: %s", message, error)


class _LiveRun:
    """The run of a training in progress; after its creation, failures only warn."""

    def __init__(self, params: Params) -> None:
        self._client, experiment = tracking.connect(params)
        run = tracking.find_or_create(self._client, experiment, params, content_key(params))
        self._run_id = run.info.run_id
        self._client.update_run(self._run_id, status="RUNNING")
        self._client.set_tag(self._run_id, tracking.PROGRESS_TAG, "training alone")
        self._monitor: SystemMetricsMonitor | None = None
        if params.tracking.system_metrics:
            with _only_warning("MLflow gets no system metrics"):
                self._monitor = self._start_monitor(params.tracking.system_metrics)

    def log_point(self, point: CurvePoint) -> None:
        with _only_warning(f"MLflow did not store epoch {point[tracking.EPOCH]}"):
            tracking.log_points(self._client, self._run_id, [point])

    def finish(self, status: str) -> None:
        with _only_warning("MLflow did not store the end of the run"):
            if self._monitor:
                self._monitor.finish()
            self._client.set_terminated(self._run_id, status)

    def _start_monitor(self, seconds: float) -> SystemMetricsMonitor:
        """Start MLflow's thread that measures the machine at this interval."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # It logs its start, its end and each GPU that it does not find.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
        monitor = SystemMetricsMonitor(
            self._run_id,
            sampling_interval=seconds,
            resume_logging=True,
            tracking_uri=tracking.tracking_uri(),
        )
        monitor.start()
        return monitor
