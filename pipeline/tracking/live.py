"""Streaming curves and the machine's load to MLflow during a training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mnist_mamba.training.loop import StoppedError
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
    run_id = None
    if enabled and params.tracking.enabled:
        with _only_warning("MLflow is not available, the training continues without it"):
            client, experiment = tracking.connect(params)
            run = tracking.find_or_create(client, experiment, params, content_key(params))
            client.update_run(run.info.run_id, status="RUNNING")
            client.set_tag(run.info.run_id, tracking.PROGRESS_TAG, "training alone")
            run_id = run.info.run_id
    if run_id is None:
        yield lambda point: None
        return

    def log_point(point: CurvePoint) -> None:
        with _only_warning(f"MLflow did not store epoch {point[tracking.EPOCH]}"):
            tracking.log_points(client, run_id, [point])

    monitor, status = None, "FAILED"
    if params.tracking.system_metrics:
        with _only_warning("MLflow gets no system metrics"):
            monitor = _start_monitor(run_id, params.tracking.system_metrics)
    try:
        yield log_point
        status = "FINISHED"
    except (KeyboardInterrupt, StoppedError):
        status = "KILLED"
        raise
    finally:
        with _only_warning("MLflow did not store the end of the run"):
            if monitor:
                monitor.finish()
            client.set_terminated(run_id, status)


@contextmanager
def _only_warning(message: str) -> Iterator[None]:
    """Log an error of the body as a warning."""
    try:
        yield
    except Exception as error:
        logger.warning("%s: %s", message, error)


def _start_monitor(run_id: str, seconds: float) -> SystemMetricsMonitor:
    """Start MLflow's thread that measures the machine at this interval."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    # It logs its start, its end and each GPU that it does not find.
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    uri = tracking.tracking_uri()
    monitor = SystemMetricsMonitor(
        run_id, sampling_interval=seconds, resume_logging=True, tracking_uri=uri
    )
    monitor.start()
    return monitor
