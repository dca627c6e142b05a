"""The table of platforms shows what was recorded; a wheel with an engine needs no compiler."""

from __future__ import annotations

import importlib.util
import json
import platform as machine
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_mamba.data.idx import write_idx
from pipeline.release import platforms, wheels

ROOT = Path(__file__).parents[2]
LINUX = platforms.PLATFORMS["linux-x86_64"]
RESULTS = json.loads((ROOT / platforms.RESULTS).read_text(encoding="utf-8"))


def test_the_table_shows_the_records() -> None:
    assert platforms.render_table(RESULTS) in (ROOT / platforms.DOC).read_text(encoding="utf-8")
    assert set(RESULTS) <= set(platforms.PLATFORMS)


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_records_are_of_runs_that_passed(name: str) -> None:
    platform, record = platforms.PLATFORMS[name], RESULTS[name]
    assert record["target"] == platform.target
    assert (record["runner"] is None) == (platform.runner is None)
    if platform.runner is not None:
        assert record["images"] >= 500
        assert "test_model" in record["c_tests"]
        assert "scalar" in record["isas"]
        for found in record["isas"].values():
            assert found["predictions_changed"] == 0
            assert found["max_abs_logit_diff"] <= platforms.LOGIT_TOLERANCE


def test_a_changed_prediction_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = np.eye(3, dtype=np.float32)
    got = expected + np.float32(2e-4)
    monkeypatch.setattr(platforms, "logits", lambda *arguments: got)
    platform = platforms.PLATFORMS["musl-riscv64"]
    with pytest.raises(
        RuntimeError, match=r"0 of 3 predictions changed and logits differ by 0.0002"
    ):
        platforms.compare(platform, tmp_path, tmp_path, tmp_path, expected)
    got = expected[::-1]
    with pytest.raises(RuntimeError, match="2 of 3 predictions changed"):
        platforms.compare(platform, tmp_path, tmp_path, tmp_path, expected)


def test_a_library_for_a_newer_glibc_is_refused(tmp_path: Path) -> None:
    library = tmp_path / "libmamba.so"
    library.write_bytes(b"\0GLIBC_2.2.5\0GLIBC_2.29\0GLIBC_2.4\0")
    assert wheels.newest_glibc(library) == (2, 29)
    with pytest.raises(RuntimeError, match=r"needs glibc \(2, 29\), expected \(2, 17\)"):
        wheels.pack(library, "manylinux_2_17_x86_64", "libmamba.so", tmp_path)


@pytest.fixture(scope="module")
def zig_built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The command and the library of this machine's platform."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed: `pip install -c constraints.txt -e '.[build]'`")
    if (sys.platform, machine.machine()) != ("linux", "x86_64"):
        pytest.skip("needs Linux on x86-64, which runs what is built here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(platforms, "BUILDS", tmp_path_factory.mktemp("platforms"))
        engine, library = platforms.build(LINUX, "mamba", "libmamba.so")
    return engine, library


@pytest.mark.slow
def test_zig_builds_an_engine_with_the_same_answers(
    zig_built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make test-platforms` does so for all platforms, with all C tests and the test images."""
    monkeypatch.chdir(ROOT)
    rng = np.random.default_rng(28)
    data = tmp_path / "images.idx", tmp_path / "labels.idx"
    write_idx(data[0], rng.integers(0, 256, (50, 28, 28), np.uint8))
    write_idx(data[1], np.zeros(50, np.uint8))
    native = tmp_path / "native" / "plain" / "mamba"
    platforms.make(f"BUILD={tmp_path / 'native'}", str(native))
    expected = platforms.logits([native], "scalar", *data)
    assert expected is not None
    engine, library = zig_built
    found = platforms.compare(LINUX, engine, *data, expected)
    assert found["scalar"]["predictions_changed"] == 0
    assert (0, 0) < wheels.newest_glibc(library) <= (2, 17)


@pytest.fixture
def installed(
    zig_built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A fresh environment with the wheel; numpy and Pillow are those of the tests."""
    monkeypatch.chdir(ROOT)
    wheel = wheels.pack(zig_built[1], LINUX.wheel_tag, LINUX.library, tmp_path)
    environment = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index"]
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    (site,) = environment.glob("lib/*/site-packages")
    (site / "others.pth").write_text(f"{Path(np.__file__).parents[1]}\n", encoding="utf-8")
    return environment / "bin"


@pytest.mark.slow
def test_a_wheel_needs_no_compiler(installed: Path, tmp_path: Path) -> None:
    """As for users: nothing on PATH, no PyTorch, no model named."""
    drawn = np.full((60, 60), 255, np.uint8)
    drawn[10:14, 15:45] = 0
    for row in range(14, 50):
        drawn[row, 42 - (row - 14) // 2 : 46 - (row - 14) // 2] = 0
    pictures = [tmp_path / "seven.pgm", tmp_path / "seven.png"]
    pictures[0].write_bytes(b"P5 60 60 255\n" + drawn.tobytes())
    Image.fromarray(drawn).save(pictures[1])

    def run(*words: str | Path) -> str:
        nothing = {"PATH": "/nonexistent", "HOME": str(tmp_path / "home")}
        done = subprocess.run(words, cwd=tmp_path, env=nothing, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "", "nothing was compiled"
        return done.stdout

    answers = run(installed / "mnist-mamba", "predict", *pictures).splitlines()
    assert [line.split()[:2] for line in answers] == [[f"{path}:", "7"] for path in pictures]
    program = (
        "import sys, mnist_mamba\n"
        "from mnist_mamba.engine import Engine\n"
        "assert 'torch' not in sys.modules\n"
        "print(mnist_mamba.__file__, Engine().info['n_classes'])\n"
    )
    package, classes = run(installed / "python", "-I", "-c", program).split()
    assert Path(package).is_relative_to(installed.parent)
    assert classes == "10"
