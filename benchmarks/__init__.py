"""Timings beside other implementations; no stage of the pipeline, which must not import this."""

import sys
from pathlib import Path

# The library beside this folder is what is measured, also while another copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
