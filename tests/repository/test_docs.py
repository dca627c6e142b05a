"""Every relative link and anchor in the documents leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pipeline.imports import ROOT

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "csrc/README.md", "models/README.md")
    for path in ROOT.glob(pattern)
)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(\s*([^)\s]+)\s*\)")


OUTSIDE = re.compile(r"[a-z]+:|\.\./\.\./deployments/")
"""Web addresses, and the README's link to GitHub's page about what a repository has published."""


def links(text: str) -> list[str]:
    """Return the targets of all links that do not lead outside."""
    targets = LINK.findall(CODE.sub("", FENCED.sub("", text)))
    return [target for target in targets if not OUTSIDE.match(target)]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to a document's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *#*$", FENCED.sub("", text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words).lower().replace(" ", "-")
        n = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.add(f"{slug}-{n}" if n else slug)
    return found


def leads_somewhere(document: Path, link: str) -> bool:
    """Return whether a relative link's file exists and has its anchor."""
    name, _, anchor = link.partition("#")
    target = document.parent / name if name else document
    if not anchor:
        return target.exists()
    return target.is_file() and anchor in anchors(target.read_text(encoding="utf-8"))


def broken_links(document: Path) -> list[str]:
    """Return the links of a document that lead nowhere."""
    text = document.read_text(encoding="utf-8")
    return [link for link in links(text) if not leads_somewhere(document, link)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    assert broken_links(ROOT / document) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# The page: `make x`\n\n## Twice\n\n## Twice\n\n"
        "[a](page.md) [b](#the-page-make-x) [c](page.md#twice-1) [d](https://example.org)\n"
        "`[e](code.md)`\n\n```\n[f](fence.md)\n```\n\n"
        "[g](gone.md) [h](#gone) [i](page.md#twice-2)\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["gone.md", "#gone", "page.md#twice-2"]
