"""The engine in WebAssembly, its npm package, and a page that reads handwriting."""

import sys
from pathlib import Path

# Build from this working tree, even if another copy of the library is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
