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
    live = _start(params) if enabled and params.tracking.enabled else None
    try:
        yield live.log_point if live else lambda point: None
    except BaseException:
        if live:
            live.finish("FAILED")
        raise
    if live:
        live.finish("FINISHED")


def _start(params: Params) -> _LiveRun | None:
    try:
        return _LiveRun(params)
    except Exception as error:
        logger.warning("MLflow is not available, the training continues without it: %s", error)
        return None


class _LiveRun:
    """The run of a training in progress; after its creation, failures only warn."""

    def __init__(self, params: Params) -> None:
        self._client, experiment = tracking.connect(params)
        run = tracking.find_or_create(self._client, experiment, params, content_key(params))
        self._run_id = run.info.run_id
        self._client.update_run(self._run_id, status="RUNNING")
        self._client.set_tag(self._run_id, tracking.PROGRESS_TAG, "training alone")
        self._monitor = _start_monitor(self._run_id, params.tracking.system_metrics)

    def log_point(self, point: CurvePoint) -> None:
        try:
            tracking.log_points(self._client, self._run_id, [point])
        except Exception as error:
            logger.warning("MLflow did not store epoch %s: %s", point[tracking.EPOCH], error)

    def finish(self, status: str) -> None:
        try:
            if self._monitor:
                self._monitor.finish()
            self._client.set_terminated(self._run_id, status)
        except Exception as error:
            logger.warning("MLflow did not store the end of the run: %s", error)


def _start_monitor(run_id: str, seconds: float) -> SystemMetricsMonitor | None:
    """Start MLflow's thread that measures the machine at this interval; 0 starts none."""
    if not seconds:
        return None
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # It logs its start, its end and each GPU that it does not find.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
        monitor = SystemMetricsMonitor(
            run_id,
            sampling_interval=seconds,
            resume_logging=True,
            tracking_uri=tracking.tracking_uri(),
        )
        monitor.start()
        return monitor
    except Exception as error:
        logger.warning("MLflow gets no system metrics: %s", error)
        return None
