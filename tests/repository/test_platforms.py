"""The table of platforms shows what was recorded; a wheel with an engine needs no compiler."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mnist_mamba.data.idx import write_idx
from pipeline.release import platforms, wheels

ROOT = Path(__file__).parents[2]
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


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None,
    reason="ziglang is not installed: `pip install -c constraints.txt -e '.[build]'`",
)
def test_zig_builds_an_engine_with_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make test-platforms` does so for all platforms, with all C tests and the test images."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(platforms, "BUILDS", tmp_path)
    rng = np.random.default_rng(28)
    data = tmp_path / "images.idx", tmp_path / "labels.idx"
    write_idx(data[0], rng.integers(0, 256, (50, 28, 28), np.uint8))
    write_idx(data[1], np.zeros(50, np.uint8))
    native = tmp_path / "native" / "plain" / "mamba"
    platforms.make(f"BUILD={tmp_path / 'native'}", str(native))
    expected = platforms.logits([native], "scalar", *data)
    assert expected is not None
    platform = platforms.PLATFORMS["linux-x86_64"]
    engine, library = platforms.build(platform, "mamba", "libmamba.so")
    found = platforms.compare(platform, engine, *data, expected)
    assert found["scalar"]["predictions_changed"] == 0
    assert wheels.newest_glibc(library) <= (2, 17)


@pytest.mark.slow
def test_a_wheel_with_an_engine_needs_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for users: no compiler on PATH, no PyTorch, no model named, and all of it at once."""
    monkeypatch.chdir(ROOT)
    built = tmp_path / "build"
    library = built / "plain" / "libmamba.so"
    subprocess.run(["make", "-f", "csrc/engine.mk", f"BUILD={built}", library], check=True)
    wheel = wheels.pack(library, "linux_x86_64", "libmamba.so", tmp_path)
    assert "mnist_mamba/_engine/mnist_mamba.bin" in zipfile.ZipFile(wheel).namelist()

    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", site, wheel], check=True)
    picture = tmp_path / "seven.pgm"
    drawn = np.full((60, 60), 255, np.uint8)
    drawn[10:14, 15:45] = 0
    for row in range(14, 50):
        drawn[row, 42 - (row - 14) // 2 : 46 - (row - 14) // 2] = 0
    picture.write_bytes(b"P5 60 60 255\n" + drawn.tobytes())
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r}); sys.modules['PIL'] = None\n"
        "from mnist_mamba import __main__\n"
        "from mnist_mamba.engine import Engine\n"
        f"assert __main__.__file__.startswith({str(site)!r})\n"
        "assert 'torch' not in sys.modules\n"
        "print(Engine().info['n_classes'])\n"
        f"sys.argv = ['mnist-mamba', 'predict', {str(picture)!r}]\n"
        "__main__.command()\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        env={"PATH": "/nonexistent", "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"10\n{picture}: 7 "), done.stdout
    assert done.stderr == "", "nothing was compiled"
    assert os.access(site / "bin" / "mnist-mamba", os.X_OK)
