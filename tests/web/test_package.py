"""The npm package: packed, unpacked, and used as its README says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mnist_mamba import __version__
from tests.web.conftest import ROOT


@pytest.fixture(scope="module")
def installed(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has the package in node_modules."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm: apt-get install npm")
    project = tmp_path_factory.mktemp("project")
    command = [npm, "pack", "--silent", "--offline", str(package)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (project / "node_modules").mkdir()
    archive = project / done.stdout.strip()
    subprocess.run(["tar", "-xzf", archive, "-C", project / "node_modules"], check=True)
    (project / "node_modules" / "package").rename(project / "node_modules" / "mnist-mamba")
    return project


def test_it_has_these_files(installed: Path) -> None:
    folder = installed / "node_modules" / "mnist-mamba"
    names = {"README.md", "LICENSE", "package.json", "engine.js", "engine.d.ts", "wasm.js"}
    assert {path.name for path in folder.iterdir()} == names | {"mnist_mamba.bin"}
    manifest = json.loads((folder / "package.json").read_text(encoding="utf-8"))
    assert manifest["version"] == __version__
    assert not {"dependencies", "scripts"} & manifest.keys()
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sum(sizes.values()) - sizes["mnist_mamba.bin"] < 70_000


def test_its_readme_runs(installed: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node: apt-get install nodejs")
    readme = (ROOT / "web" / "npm" / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```js\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    imports, _, rest = program.partition("\n\n")
    picture = """
    const width = 200, height = 300, data = new Uint8ClampedArray(4 * width * height).fill(255);
    for (let y = 50; y < 250; y++)
      for (let x = 95; x < 110; x++) data.fill(0, 4 * (y * width + x), 4 * (y * width + x) + 3);
    """
    show = "console.log(name, probabilities.length, asked);"
    (installed / "use.mjs").write_text(f"{imports}\n{picture}\n{rest}\n{show}", encoding="utf-8")
    done = subprocess.run([node, "use.mjs"], cwd=installed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "10", "1"]


def test_its_types_name_what_it_exports(installed: Path) -> None:
    folder = installed / "node_modules" / "mnist-mamba"
    pattern = r"^export (?:async )?(?:function|class) (\w+)"
    script, types = (
        set(re.findall(pattern, (folder / name).read_text(encoding="utf-8"), re.MULTILINE))
        for name in ("engine.js", "engine.d.ts")
    )
    assert script == types >= {"open", "Model", "MambaError"}
