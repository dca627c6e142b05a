"""A hook of hatchling: put a compiled engine into the wheel, if $MNIST_MAMBA_WHEEL names one.

Its value is TAG=LIBRARY=NAME: the wheel's platform tag, the library's path, and its name in the
wheel. `python -m pipeline.release.wheels` sets it. Otherwise the wheel fits any platform and
compiles the engine on first use.
"""

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    """Found by hatchling under this name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library to the files of the wheel, and say which platform it fits."""
        named = os.environ.get("MNIST_MAMBA_WHEEL")
        if named and version == "standard":
            tag, _, rest = named.partition("=")
            library, _, name = rest.rpartition("=")  # a path may have this character
            build_data["tag"] = f"py3-none-{tag}"
            build_data["pure_python"] = False
            build_data["force_include"][library] = f"mnist_mamba/_engine/{name}"
