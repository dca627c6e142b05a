"""Tables in documents, between two marks, that commands write from metrics files."""

from __future__ import annotations

import re
from pathlib import Path

from mnist_mamba.atomic_write import write_text

TRAINING = Path("docs/training.md")


def with_table(text: str, name: str, table: str) -> str:
    """A document with what stands between the marks of `name` replaced.

    The marks are lines: `<!-- NAME: the command that writes it -->` and `<!-- end of NAME -->`.

    Raises:
        ValueError: the marks are not there, once and in this order.
    """
    begin, end = rf"<!-- {re.escape(name)}: [^\n]* -->\n", rf"<!-- end of {re.escape(name)} -->"
    parts = re.split(rf"({begin})(?:.*?)({end})", text, flags=re.DOTALL)
    if len(parts) != 4:
        raise ValueError(
            f"the document has {len(parts) // 3} tables {name}, expected one between the lines "
            f"<!-- {name}: COMMAND --> and <!-- end of {name} -->"
        )
    before, first, last, rest = parts
    return before + first + table + last + rest


def write_table(document: Path, name: str, table: str) -> None:
    """Renew the table `name` in a file.

    Raises:
        ValueError: the file has no place for it.
    """
    write_text(document, with_table(document.read_text(), name, table))
