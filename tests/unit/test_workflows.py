"""GitHub's workflows: every step is a target of the Makefile, and no action can change under us."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = {
    target
    for file in (ROOT / "Makefile", ROOT / "csrc/engine.mk", ROOT / "csrc/tests.mk")
    for line in re.findall(r"^\.PHONY: (.*)$", file.read_text(), re.MULTILINE)
    for target in line.split()
}
OTHER_COMMANDS = r"sudo apt-get |pipx install |gh |test -z "
"""What a runner needs first, and what only GitHub has."""


def load(path: Path) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load(path.read_text())
    return content


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_are_three() -> None:
    assert {path.stem for path in WORKFLOWS} == {"ci", "nightly", "release"}


def test_steps_are_make_targets(workflow: Path) -> None:
    for step in steps(workflow):
        command = step.get("run", "make")
        assert re.match(rf"make\b|{OTHER_COMMANDS}", command), command
        for target in re.findall(r"\bmake ([a-z][a-z-]*)", command):
            assert target in TARGETS, target


def test_actions_are_pinned_by_hash(workflow: Path) -> None:
    text = workflow.read_text()
    uses = re.findall(r"uses: (.*)", text)
    assert uses
    for action in uses:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_one_action_has_one_pin() -> None:
    uses = {use for path in WORKFLOWS for use in re.findall(r"uses: (.*)", path.read_text())}
    assert len({use.split("@")[0] for use in uses}) == len(uses)


def test_permissions_are_given_job_by_job(workflow: Path) -> None:
    content = load(workflow)
    assert content["permissions"] == {}
    for name, job in content["jobs"].items():
        writes = {key for key, value in job["permissions"].items() if value != "read"}
        allowed = {"comment": {"pull-requests"}, "publish": {"contents"}}.get(name, set())
        assert writes <= allowed, name
        assert job["timeout-minutes"] <= 180


def test_nothing_of_an_event_is_pasted_into_a_command(workflow: Path) -> None:
    """A branch may be named like a command: such text goes through the environment."""
    for step in steps(workflow):
        assert "${{" not in step.get("run", ""), step
