"""dvc.yaml against the code: a stage depends on every file of the project that it runs."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.common.content_key import source_files
from pipeline.common.params import load_params
from tests.pipeline.imports import ROOT, imported_files

STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

WATCHERS = {
    "pipeline/tracking/__init__.py",
    "pipeline/tracking/client.py",
    "pipeline/common/content_key.py",
}
"""They name a training and show it to MLflow, but change nothing in it: no need to retrain."""
PLUMBING = {f"pipeline/common/{name}.py" for name in ("params", "paths", "command")}
"""What they say reaches a training as params and data, which count themselves."""


def python_files(dep: str) -> set[str]:
    """The Python files that a dep names: itself, or all of its folder."""
    if dep.endswith(".py"):
        return {dep}
    return {str(path.relative_to(ROOT)) for path in (ROOT / dep).glob("**/*.py")}


@pytest.mark.parametrize("name", [name for name in STAGES if name != "compile"])
def test_every_import_is_a_dep(name: str) -> None:
    module = re.search(r"python -m (pipeline\.\w+)", STAGES[name]["cmd"])
    assert module is not None
    start = ROOT / (module[1].replace(".", "/") + ".py")
    imported = {str(path.relative_to(ROOT)) for path in imported_files(start)}
    if name == "train":
        imported -= WATCHERS | PLUMBING
    code = {file for dep in STAGES[name]["deps"] for file in python_files(dep)}
    assert imported - code == set(), "imported, but no dep"
    assert code - imported == set(), "a dep, but never imported"


def test_the_walk_sees_what_is_imported() -> None:
    """The test above cannot fail if the walk finds nothing."""
    found = imported_files(ROOT / "pipeline" / "train.py")
    names = {str(path.relative_to(ROOT)) for path in found}
    assert {"src/mnist_mamba/scan/cpu.py", "src/mnist_mamba/model/mixer.py"} <= names
    assert len(names) > 20


def test_c_sources_are_deps() -> None:
    engine = {"csrc/engine", "csrc/include", "csrc/simd", "csrc/engine.mk", "csrc/flags.mk"}
    assert engine == set(STAGES["compile"]["deps"])
    scan = {dep for dep in STAGES["train"]["deps"] if dep.startswith("csrc/")}
    assert scan == {"csrc/flags.mk", "csrc/scan", "csrc/simd"}


def test_every_stage_says_what_it_does() -> None:
    assert all(stage.get("desc") for stage in STAGES.values())


def test_metrics_and_plots_live_in_git_and_binaries_do_not() -> None:
    for name, stage in STAGES.items():
        for kind in ("metrics", "plots"):
            for entry in stage.get(kind, []):
                (options,) = entry.values()
                assert options["cache"] is False, (name, entry)
        for out in stage.get("outs", []):
            if name != "track":
                assert isinstance(out, str) or "cache" not in next(iter(out.values()))


def test_every_param_is_used_by_a_stage_and_commented() -> None:
    text = (ROOT / "params.yaml").read_text()
    content = yaml.safe_load(text)
    named = {param for stage in STAGES.values() for param in stage.get("params", [])}
    named.add("gate")  # judges what the stages have made
    for section, values in content.items():
        for key in values:
            known = section in named or f"{section}.{key}" in named
            assert known, f"{section}.{key} is in no stage"
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        # A second key may share its neighbour's comment where the comment speaks of both.
        if re.match(r" +\w+: ", line):
            shared = re.match(r" +(beta2|dt_max|dt_init_floor):", line)
            assert before.strip().startswith("#") or shared, f"no comment above {line.strip()}"


def test_the_content_key_covers_sources_but_nothing_that_a_stage_makes() -> None:
    values = load_params(ROOT / "params.yaml").model_dump(mode="json")
    files = {str(path) for path in source_files(values, ROOT / "dvc.yaml")}
    assert {"pipeline/train.py", "csrc/engine/forward.c", "csrc/scan/selective_scan.c"} <= files
    assert "pipeline/benchmark.py" not in files
    made = ("data/raw", "data/prepared", "checkpoints", "artifacts", "build", "metrics", "plots")
    assert not [file for file in files if file.startswith(made)]
    assert all(Path(ROOT / file).exists() for file in files)
