"""dvc.yaml and the code: a stage depends on exactly the files of the project that it imports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.common import paths
from pipeline.common.content_key import RESULT_PARAMS, source_files
from pipeline.common.nested import flatten
from pipeline.common.params import load_params
from tests.pipeline.imports import ROOT, imported_files
from tests.pipeline.project import columns_shown

STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

NO_RETRAINING = {f"pipeline/tracking/{name}.py" for name in ("__init__", "client", "live")} | {
    f"pipeline/common/{name}.py"
    for name in (
        "command",
        "content_key",
        "git",
        "locks",
        "machine",
        "nested",
        "options",
        "params",
        "paths",
        "stop",
    )
}
"""Modules that `train` imports without depending on them.

They show a training in MLflow, choose its hardware, note a request to stop it, or pass on params
and data, on which the stage depends directly.
"""


def python_files(dep: str) -> set[str]:
    """Return the Python files of a dependency, a file or a folder."""
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
        imported -= NO_RETRAINING
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
                ((path, options),) = ({out: {}} if isinstance(out, str) else out).items()
                assert options.get("cache", True) is not path.startswith("plots/"), path


def test_a_run_s_pictures_are_drawn_shown_and_tracked() -> None:
    drawn = {"evaluate": paths.FIGURES, "prepare": (paths.EXAMPLES, paths.AUGMENTATION)}
    figures = {str(path) for found in drawn.values() for path in found}
    for stage, found in drawn.items():
        shown = {path for plot in STAGES[stage]["plots"] for path in plot}
        assert shown == {str(path) for path in found}
    tracked = {dep for dep in STAGES["track"]["deps"] if dep.endswith(".png")}
    assert tracked == figures
    assert all((ROOT / path).is_file() for path in figures)


def test_the_table_of_experiments_has_the_main_metrics_and_all_params() -> None:
    """DVC shows metrics and params by key, and dependencies by path."""
    metrics: dict[str, object] = {}
    for name in ("train", "eval", "benchmark"):
        metrics |= flatten(json.loads((ROOT / f"metrics/{name}.json").read_text("utf-8")))
    pattern = re.compile(f"({columns_shown()})$")
    shown = {name for name in metrics if pattern.match(name)}
    assert shown == {
        *("val.accuracy", "val.loss", "accuracy", "parameters", "us_per_image.engine.b1"),
    }
    params = load_params(ROOT / "params.yaml").model_dump(include=set(RESULT_PARAMS))
    assert all(pattern.match(name) for name in flatten(params))
    assert not [dep for stage in STAGES.values() for dep in stage["deps"] if pattern.match(dep)]


def test_the_plots_page_needs_no_network() -> None:
    """DVC draws tables with scripts that its page takes from the network; it embeds pictures."""
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    shown = [
        path
        for stage in content["stages"].values()
        for plot in stage.get("plots", [])
        for path in plot
    ]
    assert shown
    assert all(path.endswith(".png") for path in shown)
    assert "plots" not in content


def test_every_param_is_used_by_a_stage() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    stages = (stage for name, stage in STAGES.items() if name != "check_params")  # depends on all
    named = {param for stage in stages for param in stage.get("params", [])}
    for section, values in content.items():
        for key in values:
            assert section in named or f"{section}.{key}" in named, f"{section}.{key}"


@pytest.mark.parametrize("name", ["params.yaml", "gate.yaml"])
def test_every_setting_has_a_comment(name: str) -> None:
    """Above it, or above a group of settings with common dotted parts, as in gate.yaml."""
    previous, commented = "", False
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        setting = re.match(r" +([\w.*]+): \S", line)
        if setting:
            group = setting[1].rpartition(".")[0].split(".")[0]
            same_group = bool(group) and group == previous
            assert commented or same_group, f"no comment above {line.strip()}"
            previous = group
        commented = line.lstrip().startswith("#")


def test_only_the_tracking_folder_imports_mlflow() -> None:
    modules = [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("src/**/*.py")]
    folders = {
        module.parent.relative_to(ROOT).as_posix()
        for module in modules
        if re.search(r"^ *(from|import) mlflow\b", module.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert folders == {"pipeline/tracking"}


def test_every_command_is_in_the_list() -> None:
    text = (ROOT / "pipeline/__init__.py").read_text(encoding="utf-8")
    listed = re.findall(r"^ +([\w.]+) ", text.split('"""')[1], re.MULTILINE)
    folder = ROOT / "pipeline"
    commands = {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__main__")
        for path in folder.rglob("*.py")
        if re.search(r"^    command\.run(_judge)?\(main", path.read_text("utf-8"), re.MULTILINE)
    }
    assert sorted(listed) == sorted(commands)
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} <= commands


def test_the_content_key_covers_sources_but_nothing_that_a_stage_makes() -> None:
    values = load_params(ROOT / "params.yaml").model_dump(mode="json")
    files = {str(path) for path in source_files(values, ROOT / "dvc.yaml")}
    assert {"pipeline/train.py", "csrc/engine/forward.c", "csrc/scan/selective_scan.c"} <= files
    assert "pipeline/benchmark.py" not in files
    made = ("data/raw", "data/prepared", "checkpoints", "artifacts", "build", "metrics", "plots")
    assert not [file for file in files if file.startswith(made)]
    assert all(Path(ROOT / file).exists() for file in files)


def test_the_content_key_needs_the_stage_whose_results_it_identifies(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}", encoding="utf-8")
    with pytest.raises(ValueError, match="no stage 'evaluate'"):
        source_files({}, tmp_path / "dvc.yaml")
