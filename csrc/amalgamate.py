"""Write the engine as two files, mamba.c and mamba.h: python3 csrc/amalgamate.py FOLDER

gcc and clang build them without flags: `cc app.c mamba.c -lm`. In mamba.c all headers come
first, and then each source is a section. So

- a name that several sections define gets the section's name in front of it;
- kernels for one instruction set carry it as an attribute, not as flags of the command line;
- the rules of floating point that csrc/flags.mk gives to the compiler are pragmas.

`make test-amalgamation` runs the C tests against them, and compares the bits of the results.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

CSRC = Path(__file__).resolve().parent
FOLDERS = (CSRC / "engine", CSRC / "engine/kernels", CSRC / "simd")
# Headers that depend on the instruction set: each section of kernels has a copy of its own.
COPIED = {"vector.inc", "simd.h", "vector_math.h", "gemm_tile.h"}

BEGINNING = """\
/* The engine of MNIST Mamba {version} in one file: a small Mamba image classifier. C11.
 *
 *     cc -O2 app.c mamba.c -lm
 *
 * Made from csrc/engine by `make amalgamation`: change the sources there. Apache License 2.0. */
{feature_macros}
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "compile mamba.c without -ffast-math and -Ofast, which drop its checks for NaN and infinity"
#endif

/* a * b + c rounds twice, whatever the compiler and the processor. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off", "no-math-errno")
#endif
#include "mamba.h"
#include <math.h>
#include <stdbool.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-const-variable"
#pragma GCC diagnostic ignored "-Wshadow"
#endif
"""
# All functions of a section are compiled for these features of x86.
FEATURES = """
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("{features}"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("{features}")
#endif
{text}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
"""
# Names that a line at file scope defines. (An indented line belongs to a function.)
DEFINITIONS = (
    r"^static (?:inline )?(?:__attribute__\(\(\w+\)\) )?[^;=({]*?(\w+)(?:\(|\[|;| =)",
    r"^(struct \w+) \{",
    r"^typedef [^;]*?(\w+);",
)
ENUM = r"^enum (?:\w+ )?\{(.*?)\}"
MACRO = r"^ *# *define (\w+)"
# Comments and strings keep their words, members of structs their names.
WORD = r'"(?:\\.|[^"\\\n])*"|/\*.*?\*/|(?<![.\w])(?<!->)(?:struct )?[A-Za-z_]\w*'


def flags(name: str) -> str:
    """Return the flags that csrc/flags.mk has under a name, or ""."""
    text = (CSRC / "flags.mk").read_text(encoding="utf-8")
    match = re.search(rf"^{name} := (.*)$", text, re.MULTILINE)
    return match[1] if match else ""


def read(source: Path, headers: dict[str, str], copied: set[str]) -> str:
    """Return a source without its includes of our headers.

    A header of COPIED replaces its first include; others are added to `headers`, each after those
    that it needs itself.
    """
    lines = []
    for line in source.read_text(encoding="utf-8").splitlines():
        match = re.match(r'#include "(?:.*/)?(\S+)"', line)
        if not match:
            lines.append(line)
        elif match[1] not in headers and match[1] not in copied and match[1] != "mamba.h":
            (path,) = (folder / match[1] for folder in FOLDERS if (folder / match[1]).exists())
            if match[1] in COPIED:
                copied.add(match[1])
                lines.append(read(path, headers, copied))
            else:
                headers[match[1]] = read(path, headers, copied)
    return "\n".join(lines)


def defined(text: str) -> set[str]:
    """Return the names, not macros, that a section defines for itself."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    constants = re.findall(r"(?:^|,)\s*(\w+)", " ,".join(re.findall(ENUM, text, re.M | re.S)))
    return {name for find in DEFINITIONS for name in re.findall(find, text, re.M)}.union(constants)


def rename(text: str, names: set[str], section: str) -> str:
    """Put the section in front of some names: tile -> avx2_tile, struct tap -> struct avx2_tap."""

    def word(match: re.Match[str]) -> str:
        start, _, name = match[0].rpartition(" ")
        return f"{start} {section}_{name}".lstrip() if match[0] in names else match[0]

    return re.sub(WORD, word, text, flags=re.DOTALL)


def amalgamate() -> str:
    """Return the text of mamba.c."""
    headers: dict[str, str] = {}
    sources = [*sorted(CSRC.glob("engine/*.c")), *sorted(CSRC.glob("engine/kernels/*.c"))]
    sections = {source.stem: read(source, headers, set()) for source in sources}
    texts = [*headers.values(), *sections.values()]
    count = Counter(name for text in texts for name in defined(text))
    feature_macros = set()
    parts = [f"\n/* ---- {name} ---- */\n{text}\n" for name, text in headers.items()]
    for section, text in sections.items():
        ours = {name for name in defined(text) if count[name] > 1}
        text = rename(text, ours, section)
        feature_macros.update(re.findall(r"^#define _.*$", text, re.M))
        text = re.sub(r"^#define _.*\n", "", text, flags=re.M)
        text += "".join(f"\n#undef {name}" for name in sorted(set(re.findall(MACRO, text, re.M))))
        features = flags(f"ISA_{section}").replace("-m", "").replace(" ", ",")
        if features:
            text = FEATURES.format(features=features, text=text)
        parts.append(f"\n/* ---- {section}.c ---- */\n{text}\n")
    (version,) = re.findall(r'MAMBA_VERSION "(.*)"', headers["version.h"])
    beginning = BEGINNING.replace("{version}", version)
    beginning = beginning.replace("{feature_macros}", "\n".join(sorted(feature_macros)))
    return beginning + "".join(parts)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mamba.c").write_text(amalgamate(), encoding="utf-8")
    header = (CSRC / "include/mamba.h").read_text(encoding="utf-8")
    (folder / "mamba.h").write_text(header, encoding="utf-8")


if __name__ == "__main__":
    main()
