"""Tables in documents that commands generate from metrics files, between two marks."""

from __future__ import annotations

import re
from pathlib import Path

from mnist_mamba.atomic_write import write_text

TRAINING_DOC = Path("docs/training.md")


def with_table(text: str, name: str, table: str) -> str:
    """Return a document with the text between the marks of `name` replaced by `table`.

    The marks are lines: `<!-- NAME: the command that writes it -->` and `<!-- end of NAME -->`.

    Raises:
        ValueError: the document does not have both marks once and in this order.
    """
    begin, end = rf"<!-- {re.escape(name)}: [^\n]* -->\n", rf"<!-- end of {re.escape(name)} -->"
    pattern = re.compile(rf"({begin}).*?({end})", flags=re.DOTALL)
    text, n = pattern.subn(lambda marks: marks[1] + table + marks[2], text)
    if n != 1:
        raise ValueError(
            f"the document has {n} tables {name}, expected one between the lines "
            f"<!-- {name}: COMMAND --> and <!-- end of {name} -->"
        )
    return text


def write_table(document: Path, name: str, table: str) -> None:
    """Replace the table `name` in a file."""
    write_text(document, with_table(document.read_text(encoding="utf-8"), name, table))
