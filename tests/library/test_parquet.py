"""`mnist-mamba score`: a Parquet file with the answers to a column of images."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist_mamba.__main__ import main
from mnist_mamba.engine import Engine

WHY = "needs pyarrow: pip install -c constraints.txt -e '.[parquet]'"
pa = pytest.importorskip("pyarrow", reason=WHY)
pq = pytest.importorskip("pyarrow.parquet", reason=WHY)
parquet = pytest.importorskip("mnist_mamba.parquet", reason=WHY)

ROOT = Path(__file__).parents[2]
IMAGE = np.fromfile(ROOT / "models/example_input.bin", "<f4").reshape(28, 28)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.kron(np.uint8(255 - IMAGE * 200), np.ones((3, 3), np.uint8))).save(
        file, "PNG"
    )
    return file.getvalue()


def write(path: Path, images: list[Any], kind: Any = None) -> Path:
    """Write a file with the columns `id` and `image`."""
    ids = pa.array(range(len(images)), pa.int32())
    pq.write_table(pa.table({"id": ids, "image": pa.array(images, kind)}), path)
    return path


@pytest.mark.parametrize(
    "images",
    [
        [IMAGE.tolist(), np.rot90(IMAGE).tolist()],
        [IMAGE.ravel().tolist(), np.rot90(IMAGE).ravel().tolist()],
    ],
    ids=["nested", "flat"],
)
def test_each_row_gets_the_engine_s_answer(
    tmp_path: Path, images: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "BATCH", 4)
    source = write(tmp_path / "in.parquet", 5 * images)
    assert main(["score", str(source), str(tmp_path / "out.parquet")]) == 0
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.select(["id", "image"]) == pq.read_table(source)
    expected = np.stack(5 * [IMAGE, np.rot90(IMAGE)])
    with Engine(threads=1) as engine:
        assert out["prediction"].to_pylist() == engine.predict(expected).tolist()
        assert out["probabilities"].to_pylist() == engine.probabilities(expected).tolist()
        names = [engine.class_names[label] for label in out["prediction"].to_pylist()]
        assert out["class"].to_pylist() == names


def test_picture_files_and_no_rows(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert main(["score", str(write(tmp_path / "in.parquet", [png()])), str(out)]) == 0
    assert pq.read_table(out)["class"].to_pylist() == ["7"]
    assert main(["score", str(write(tmp_path / "in.parquet", [], pa.binary())), str(out)]) == 0
    assert pq.read_table(out).num_rows == 0
    assert pq.read_table(out).schema.names[-4:] == [
        "prediction",
        "class",
        "probabilities",
        "members_asked",
    ]


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        ([png(), b"no picture"], [], "rows 0 to 1, as inputs: inputs[1]: unknown format"),
        ([IMAGE.tolist(), None], [], "inputs[1]: got null, expected an image"),
        ([IMAGE.tolist()], ["--column", "x"], "column: got x, expected one of id, image"),
        ([IMAGE.tolist()], ["--column", "id"], "(1,), expected (n, 28, 28)"),
    ],
)
def test_a_refusal_leaves_the_old_file(
    tmp_path: Path,
    images: list[Any],
    options: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = write(tmp_path / "in.parquet", images), tmp_path / "out.parquet"
    out.write_bytes(b"old")
    assert main(["score", str(source), str(out), *options]) == 5
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith(f"error: {source}: ")
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_files_that_are_not_there_or_were_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(tmp_path / "in.parquet", [IMAGE.tolist()]), tmp_path / "out.parquet"
    assert main(["score", str(tmp_path / "missing"), str(out)]) == 3
    assert main(["score", str(source), str(tmp_path)]) == 3
    assert main(["score", str(source), str(out)]) == 0
    capsys.readouterr()
    assert main(["score", str(out), str(out)]) == 5
    assert "already has a column class: rename it" in capsys.readouterr().err
    (tmp_path / "text").write_text("text", encoding="utf-8")
    assert main(["score", str(tmp_path / "text"), str(out)]) == 5
    monkeypatch.setitem(sys.modules, "mnist_mamba.parquet", None)
    monkeypatch.delattr("mnist_mamba.parquet")
    assert main(["score", str(source), str(out)]) == 3
    assert "pip install 'mnist-mamba[parquet]'" in capsys.readouterr().err
