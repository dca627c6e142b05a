"""How timings are shown: names of implementations, rounded values, ratios."""

from __future__ import annotations

import math

TIMES = "\N{MULTIPLICATION SIGN}"
IMPLEMENTATIONS = {
    "engine": "C engine",
    "engine_all_threads": "C engine, all threads",
    "engine_avx2": "C engine, AVX2",
    "engine_scalar": "C engine, scalar",
    "pytorch_eager": "PyTorch, eager loop",
    "torch_compile": "torch.compile",
    "pytorch_cpu_kernel": "PyTorch, our C kernel",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ours": "our C kernel",
    "ours_tied": "our C kernel, tied A",
    "reference": "plain PyTorch loop",
    "mambapy": "mambapy",
    "mambapy_kept": "mambapy, our memory settings",
    "transformers": "transformers",
    "transformers_kept": "transformers, our memory settings",
}
"""Names to show, by the names in the metrics files."""


def format_value(value: float) -> str:
    """Format a measurement with three significant digits, and all digits before the point.

    >>> format_value(0.1234), format_value(12.34), format_value(1234.5)
    ('0.123', '12.3', '1,234')
    """
    decimals = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{decimals}f}"


def format_ratio(ratio: float) -> str:
    """Format a ratio with its sign: three digits from 1 on, two decimals below."""
    return (format_value(ratio) if ratio >= 1 else f"{ratio:.2f}") + TIMES
