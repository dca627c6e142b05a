"""Steps of GitHub's workflows are targets of the Makefile, so that a laptop can run them.

`make lint-workflows` checks the rest: pinned actions, permissions, what events may inject.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKEFILES = ("Makefile", "csrc/engine.mk", "csrc/tests.mk")
TARGETS = {
    target
    for name in MAKEFILES
    for target in re.findall(r"^([a-z-]+):", (ROOT / name).read_text(encoding="utf-8"), re.M)
}
ONLY_ON_GITHUB = ("sudo apt-get ", "pipx install ", "gh ", "cat build/", "./mamba ", "test -z ")


@pytest.mark.parametrize("name", ["ci", "nightly", "pages", "release"])
def test_steps_are_make_targets_that_exist(name: str) -> None:
    text = (ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8")
    for job in yaml.safe_load(text)["jobs"].values():
        for step in job["steps"]:
            for command in re.split(r" && |\n", step.get("run", "").strip()):
                if command and not command.startswith(ONLY_ON_GITHUB):
                    assert re.match(r"make (?!\S+=)", command), command
                    assert command.split()[1] in TARGETS, command
