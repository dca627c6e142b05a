"""The stages of dvc.yaml: load params, call the library, write files."""

import sys
from pathlib import Path

# The library beside this folder is the one that runs, also in a DVC temp copy of the project
# while another copy of it is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
