"""Timings compared with other implementations. The pipeline must not import this package."""

import sys
from pathlib import Path

# Measure the library of this working tree, even if another copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
