"""Settings of all tests."""

import os

# Several tests, each with a thread per core, run at a time. A thread that waits for others must
# leave its core to them: by default OpenMP's threads keep asking, for many times the time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
