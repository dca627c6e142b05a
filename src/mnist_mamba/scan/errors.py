"""Errors of the selective scan."""


class ScanBackendError(RuntimeError):
    """The backend asked for cannot run here; the message says what is missing and what to do."""
