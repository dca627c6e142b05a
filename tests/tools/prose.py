"""Refuse phrases that CONTRIBUTING.md bans, and prose wider than 100 columns.

Run `make prose`, or `make prose FILES="README.md csrc/engine/fold.c"`. Text in backticks and
docs/log/ are exempt from the phrases; tables, code, URLs and templates from the width.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

WIDTH = 100
NOT_PROSE = re.compile(r"\.(bin|csv|golden|json|lock|png)$|^LICENSE$")
COMPARED = r"(longer|more|less|better|worse|(?!number)\w+er than)\b"
BANNED = {
    r"\bhang(s|ing)? on\b": "depend on",
    r"\banew\b": "again",
    r"\bwhoever\b": "the noun: the caller, a reader",
    r"\bmanieth\b": "every n-th",
    rf"(?<!there )\b(is|are|was|were) no (?!{COMPARED})": "is not a",
    r"\bis not there[:;]": "not found:",
    r"\bcomes? first(?=[.,;:\"')]|$)": "run X first",
    r"\b(leaves? (\S+ ){1,3}away|left away)\b": "omit",
    r"\bstands? in(?= *[`|])": "is in",
    r"\bpeople (who |that )?know\b": "the people, or the thing",
    r"\bbeside\b": "next to, compared with",
    r"\bbesides\b": "also, apart from",
    r"(?<!left )(?<!leave )(?<!leaves )\bbehind\b": "after, guarded by",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bwhat came of\b": "the results",
    r"\bso many\b(?!( \w+)? that)": "n, as many as",
    r"\bin turns\b": "interleaved",
    r"(\d|%|\b(µs|us|ms|\w*seconds?|instructions|cycles|bytes|tokens|images|steps)) an? "
    r"(image|epoch|step|token|row|batch|second)\b": "per image, per step",
}
PATTERNS = [(re.compile(phrase, re.IGNORECASE), advice) for phrase, advice in BANNED.items()]
COMMENT = re.compile(r"\s*(#|//|/\*|\*|<!--)")
OPENING = re.compile(
    r'(?:#:? +|// +|/\*+ +|<!-- +|""")(Of(?! course)|So|[Ww]hat|[Ww]here|[Ww]hose)\b[^?]*$'
)


def check_words(path: Path, line: str) -> Iterator[str]:
    """Yield a complaint per banned phrase."""
    text = re.sub(r"`[^`]+`", "`_`", line)
    for pattern, advice in PATTERNS:
        for match in pattern.finditer(text):
            yield f"'{match[0].strip()}': say '{advice}'"
    opening = OPENING.search(text)
    if opening and path.suffix != ".md":
        yield f"a comment opens with '{opening[1]}': put the subject first"


def is_prose(path: Path, line: str) -> bool:
    """Return whether a line outside code blocks must keep to the width; formatters see to code."""
    if "://" in line or path.suffix == ".j2" or path == Path("models/README.md"):
        return False
    if path.suffix == ".md":
        return not line.lstrip().startswith("|")
    in_yaml = path.suffix in {".yaml", ".yml"}
    return COMMENT.match(line) is not None or (in_yaml and " # " in line)


def check(path: Path) -> Iterator[str]:
    """Yield `file:line: complaint` for a file."""
    in_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if path.suffix == ".md" and line.lstrip().startswith("```"):
            in_code = not in_code
        if path != Path("tests/tools/prose.py") and Path("docs/log") not in path.parents:
            yield from (f"{path}:{number}: {words}" for words in check_words(path, line))
        if len(line) > WIDTH and not in_code and is_prose(path, line):
            yield f"{path}:{number}: {len(line)} columns, expected {WIDTH} at most"


def main(names: list[str]) -> int:
    if not names:
        names = subprocess.check_output(["git", "ls-files"], text=True).splitlines()
    paths = [Path(name) for name in names if not NOT_PROSE.search(name)]
    complaints = [complaint for path in paths if path.is_file() for complaint in check(path)]
    print("\n".join(complaints) or f"no complaint about the prose of {len(paths)} files")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
