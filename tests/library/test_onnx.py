"""ONNX files: ONNX Runtime computes what the C engine does, for any number of images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_mamba.data.idx import write_idx
from mnist_mamba.export import load_model, write_model
from mnist_mamba.model import MambaEnsemble
from mnist_mamba.onnx_file import OPSET, compare_onnx, write_onnx
from tests.bare_path import path_of
from tests.models import make_images, make_model

WHY = "needs onnx, onnxscript and onnxruntime: pip install -c constraints.txt -e '.[onnx]'"
onnx = pytest.importorskip("onnx", reason=WHY)
pytest.importorskip("onnxruntime", reason=WHY)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAMES = ("patch_bidirectional_tied", "mixed_members")
"""Both kinds of stems and of pools, all orders of scans, and members of different shapes."""


@pytest.mark.parametrize("name", NAMES)
def test_onnx_runtime_computes_what_the_engine_does(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    if isinstance(model, MambaEnsemble):
        model.exit_margin = 0.1  # all members are asked all the same
    write_model(tmp_path / "model.bin", model)
    write_onnx(tmp_path / "model.onnx", load_model(tmp_path / "model.bin"))
    images = make_images(model.config, 8).numpy()
    for batch in (1, 3):
        changed, largest = compare_onnx(
            tmp_path / "model.onnx", tmp_path / "model.bin", images, batch
        )
        assert changed == 0
        assert largest < 5e-6


def test_a_file_for_a_fixed_batch_takes_no_other(tmp_path: Path) -> None:
    model, path = make_model("patch_tied"), tmp_path / "model.onnx"
    write_model(tmp_path / "model.bin", model)
    write_onnx(path, model, batch=3)
    images = make_images(model.config, 6).numpy()
    changed, largest = compare_onnx(path, tmp_path / "model.bin", images, 3)
    assert changed == 0
    assert largest < 5e-6
    with pytest.raises(Exception, match="Got: 2 Expected: 3"):
        compare_onnx(path, tmp_path / "model.bin", images, 2)


def test_the_file_says_what_it_takes_and_nothing_of_this_machine(tmp_path: Path) -> None:
    model, path = make_model("colours"), tmp_path / "model.onnx"
    write_onnx(path, model)
    assert model.layers[0].mixer.scan_backend == "reference"  # the model is as it was
    file = onnx.load(path)
    onnx.checker.check_model(file)
    assert {one.domain: one.version for one in file.opset_import} == {"": OPSET}
    (pixels,) = file.graph.input
    assert pixels.name == "pixels"
    dims = [dim.dim_param or dim.dim_value for dim in pixels.type.tensor_type.shape.dim]
    assert dims == ["batch", 8, 8, 3]
    assert {one.key: one.value for one in file.metadata_props} == {
        "class_names": 'cat\nKäse\na "b", c\\',
        "preparation": "resize",
    }
    assert str(ROOT).encode() not in path.read_bytes()
    assert b".py" not in path.read_bytes()
    # A file of other weights is noticed.
    write_model(tmp_path / "model.bin", make_model("colours", seed=1))
    images = make_images(model.config, 20).numpy()
    changed, largest = compare_onnx(path, tmp_path / "model.bin", images)
    assert changed > 0
    assert largest > 1e-2


def test_the_command_needs_python_and_a_compiler_alone(tmp_path: Path) -> None:
    model, images = tmp_path / "model.bin", tmp_path / "images.idx"
    write_model(model, make_model("patch_tied"))
    write_idx(images, make_images(make_model("patch_tied").config, 5).numpy())
    words = ["onnx", model, tmp_path / "model.onnx", "--check", images]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.export", *words],
        cwd=ROOT,
        env={"PATH": path_of(""), "HOME": os.environ["HOME"], "PYTHONPATH": f"{ROOT}/src"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "0 of 5 predictions differ" in done.stderr
