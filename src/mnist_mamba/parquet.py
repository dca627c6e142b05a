"""`mnist-mamba score`: classify a column of a Parquet file. Needs PyArrow: the extra `parquet`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from mnist_mamba.atomic_write import replacing
from mnist_mamba.classify import InputError, classify, read_inputs
from mnist_mamba.engine import Engine

BATCH = 1024
"""Rows that are in memory at a time."""


def score(engine: Engine, source: Path, column: str, output: Path) -> int:
    """Write a Parquet file with its rows and the answer to each; return the number of rows.

    Args:
        engine: the model.
        source: a Parquet file.
        column: its column of images, as `mnist_mamba.classify.read_inputs` takes them.
        output: file to write, completely or not at all.

    Raises:
        InputError: there is no such column, or an entry is refused; rows count from 0.
        ValueError: it has columns of the answer's names, or is not a Parquet file.
        OSError: a file cannot be read or written.
    """
    answer = pa.schema(
        {
            "prediction": pa.int64(),
            "class": pa.string(),
            "probabilities": pa.list_(pa.float64()),
            "members_asked": pa.int64(),
        }
    )
    with pq.ParquetFile(source) as rows, replacing(output) as path:
        names = rows.schema_arrow.names
        if column not in names:
            raise InputError(f"column: got {column}, expected one of {', '.join(names)}")
        if taken := set(names) & set(answer.names):
            raise ValueError(f"it already has a column {min(taken)}: rename it first")
        done = 0
        with pq.ParquetWriter(path, pa.unify_schemas([rows.schema_arrow, answer])) as writer:
            for batch in rows.iter_batches(BATCH):
                images = batch.column(column).to_numpy(zero_copy_only=False)
                try:
                    answers = classify(engine, read_inputs(engine, images))
                except ValueError as error:
                    last = done + len(batch) - 1
                    raise InputError(f"rows {done} to {last}, as inputs: {error}") from error
                columns = pa.Table.from_pylist(answers, answer).combine_chunks().columns
                table = pa.Table.from_batches([batch])
                for name, values in zip(answer.names, columns, strict=True):
                    table = table.append_column(answer.field(name), values)
                writer.write_table(table)
                done += len(batch)
    return done
