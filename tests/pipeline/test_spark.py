"""The model in MLflow on a real Spark, as docs/serving.md shows it."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_mamba.engine import Engine
from pipeline.common import paths
from pipeline.tracking import model as tracked_model
from tests.pipeline.imports import ROOT

WHY = "needs pyspark: pip install -c constraints.txt -e '.[spark]'"
sql = pytest.importorskip("pyspark.sql", reason=WHY)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("java") or os.environ.get("JAVA_HOME")),
        reason="needs Java 17: on Debian, default-jre-headless",
    ),
]

IMAGES = np.random.default_rng(0).random((5, 2, 2), dtype=np.float32)


def code_blocks() -> list[str]:
    """Return the Python of the page's chapter on Spark."""
    chapter = (ROOT / "docs/serving.md").read_text(encoding="utf-8").split("## Score on Spark")[1]
    return re.findall(r"```python\n(.*?)```", chapter.split("\n## ")[0], re.DOTALL)


def png(picture: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def test_spark_answers_as_the_engine_does(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--master local[1] --driver-memory 512m --conf spark.ui.enabled=false pyspark-shell"
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", options)
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    with tracked_model.bundle() as ours:
        shutil.copytree(ours.folder, project / "build/champion")
    table = pa.table({"id": range(5), "image": IMAGES.tolist()})
    pq.write_table(table, "images.parquet")
    pictures = [np.random.default_rng(i).integers(0, 256, (4, 6), np.uint8) for i in range(2)]
    Path("folder").mkdir()
    for name, picture in zip("ab", pictures, strict=True):
        Path(f"folder/{name}.png").write_bytes(png(picture))
    with Engine(paths.MODEL, threads=1, library=paths.ENGINE_LIBRARY) as engine:
        expected = engine.probabilities(IMAGES).tolist()
        classes = [engine.class_names[label] for label in engine.predict(IMAGES)]
        prepared = np.stack([engine.prepare(picture) for picture in pictures])
        of_pictures = engine.probabilities(prepared).tolist()
    script, of_folder = code_blocks()
    names: dict[str, Any] = {}
    exec(script, names)
    try:
        answers = pq.read_table("answers.parquet").sort_by("id")
        assert answers["probabilities"].to_pylist() == expected
        assert answers["class"].to_pylist() == classes
        exec(of_folder, names)

        def ask(kind: str, *images: Any) -> list[list[float]]:
            frame = names["spark"].createDataFrame([(one,) for one in images], f"image {kind}")
            column = names["read"]("image").getField("probabilities").alias("p")
            return [row.p for row in frame.coalesce(1).select(column).collect()]

        assert ask("array<float>", *IMAGES.reshape(5, 4).tolist()) == expected
        assert ask("array<array<array<double>>>", *IMAGES[..., None].tolist()) == expected
        assert ask("binary", *map(bytearray, map(png, pictures))) == of_pictures
        texts = (base64.b64encode(png(picture)).decode() for picture in pictures)
        assert ask("string", *texts) == of_pictures
        with pytest.raises(Exception, match=r"inputs\[1\]: got null, expected an image"):
            ask("array<float>", [0.5] * 4, None)
    finally:
        names["spark"].stop()
