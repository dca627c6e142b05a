"""Errors of the selective scan."""


class ScanBackendError(RuntimeError):
    """The requested backend cannot run here; the message says why, and what to do."""
