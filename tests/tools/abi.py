"""`python -m tests.tools.abi` (`make abi`): record the interface of libmnist_mamba.

csrc/abi.txt has what linked programs rely on: the functions of mamba.h, the values of its enum, and
the layout of its structs on 64-bit machines, with the version that they belong to.
tests/repository/test_abi.py compares them with the header.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "csrc" / "include" / "mamba.h"
RECORD = ROOT / "csrc" / "abi.txt"
PROGRAM = """
#include "mamba.h"
#include <stdio.h>
int main(void)
{{
{lines}
    return 0;
}}
"""


def version() -> str:
    """Return the engine's version without its last number, which changes no interface."""
    text = (ROOT / "csrc/engine/version.h").read_text(encoding="utf-8")
    (found,) = re.findall(r'MAMBA_VERSION "(\d+\.\d+)\.\d+"', text)
    return str(found)


def functions(header: str) -> list[str]:
    """Return the prototypes of a header, each on one line."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    found = re.findall(r"^(?:MAMBA_API|typedef void) ([^;]*);", text, re.MULTILINE)
    return sorted(" ".join(prototype.split()) for prototype in found)


def layout(header: str) -> list[str]:
    """Return one line for each value of an enum, each struct and each member, compiled by cc."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    lines = []
    for body in re.findall(r"typedef enum \w+ \{(.*?)\}", text, re.DOTALL):
        names = re.findall(r"(\w+) =", body)
        lines += [f'printf("{name} = %d\\n", (int){name});' for name in names]
    for struct, body in re.findall(r"typedef struct (\w+) \{(.*?)\}", text, re.DOTALL):
        lines.append(f'printf("struct {struct}: %zu bytes\\n", sizeof(struct {struct}));')
        for kind, declared in re.findall(r"((?:const )?\w+ \*?)(\w[^;]*);", body):
            for name in declared.split(","):
                member, bracket, rest = name.strip().partition("[")
                field = f"{struct}.{member}: {kind.strip()}{bracket}{rest}"
                offset = f"offsetof(struct {struct}, {member})"
                lines.append(f'printf("{field} at %zu\\n", {offset});')
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mamba.h").write_text(header, encoding="utf-8")
        source = PROGRAM.format(lines="\n".join(lines))
        command = ["cc", "-x", "c", "-", "-o", f"{folder}/layout", f"-I{folder}"]
        subprocess.run(command, input=source, text=True, check=True)
        done = subprocess.run([f"{folder}/layout"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def describe(header: str, of_version: str) -> str:
    """Return the text of csrc/abi.txt."""
    return "\n".join([f"version {of_version}", *functions(header), *layout(header)]) + "\n"


def problem(recorded: str, current: str) -> str | None:
    """Say which number of the version must change before `current` may be recorded, or None."""
    (old_version, *old), (new_version, *new) = recorded.splitlines(), current.splitlines()
    major, new_major = (text.split()[1].split(".")[0] for text in (old_version, new_version))
    gone, added = (
        [line for line in lines if line not in others] for lines, others in ((old, new), (new, old))
    )
    if gone and major == new_major:
        return (
            f"mamba.h changed or lost {gone[0]!r}, so programs linked with .so.{major} would "
            f"break: expected a MAJOR version above {major}; raise it in csrc/engine/version.h"
        )
    if added and old_version == new_version:
        return (
            f"mamba.h has {added[0]!r}, which {old_version} has not: expected a newer MINOR "
            "version; raise it in csrc/engine/version.h"
        )
    return None


def main() -> None:
    current = describe(HEADER.read_text(encoding="utf-8"), version())
    if RECORD.exists():
        wrong = problem(RECORD.read_text(encoding="utf-8"), current)
        if wrong:
            sys.exit(f"error: {wrong}")
    RECORD.write_text(current, encoding="utf-8")
    print(RECORD.relative_to(ROOT))


if __name__ == "__main__":
    main()
