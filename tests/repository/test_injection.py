"""No shell runs what others may choose, like the name of a tag: it is data in a variable."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKEFILES = ("Makefile", *(f"csrc/{name}.mk" for name in ("engine", "flags", "install", "tests")))
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
TOOLS = {*("PYTHON", "MAKE", "RUN", "CC", "AR", "INSTALL"), *("CPPFLAGS", "LDFLAGS")}
"""Commands and flags, which a shell is meant to split into words."""
OWN = {"MAKEFILE_LIST", "LIBDIR"}
"""A list that make makes, and a path below PREFIX, chosen by the builder."""
WORDS = {"FILES", "ONLY", "PLATFORMS"}
"""Lists that a shell splits into words, which runs nothing."""
HOSTILE = "v9`touch run-1`$(touch run-2)$(shell touch run-3)\"; touch run-4; '; touch run-5 #"


def chosen() -> set[str]:
    """Return the variables that the Makefile passes in the environment."""
    match = re.search(r"^CHOSEN := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert match is not None
    return set(match[1].split())


def recipes(text: str) -> list[str]:
    """Return the logical lines of a makefile's recipes, as make expands them the last time."""
    blocks = re.split(r"^(define .*?^endef)$", text, flags=re.M | re.S)
    lines = "".join(
        block.replace("$$", "$") if block.startswith("define ") else block for block in blocks
    ).replace("\\\n", "")
    return [line[1:] for line in lines.splitlines() if line.startswith("\t")]


def expanded_by_make(recipe: str) -> set[str]:
    """Return the variables whose values make puts into the text that a shell reads."""
    parameters = set(re.findall(r"\$\(foreach (\w+),", recipe))
    return set(re.findall(r"(?<!\$)(?:\$\$)*\$[({]([A-Za-z_]\w*)[)}]", recipe)) - parameters


def assigned(text: str) -> set[str]:
    """Return the variables that a makefile itself gives a value to."""
    return set(re.findall(r"^(?:\S+: |override )?(?:define )?(\w+)(?: :?= ?| ?:=|$)", text, re.M))


def unquoted(script: str) -> Iterator[str]:
    """Yield the variables that a shell expands outside double quotes, except the script's own."""
    quote, outer = "", list[str]()
    i = 0
    while i < len(script):
        char = script[i]
        if char == "\\" and quote != "'":
            i += 1
        elif script.startswith("$(", i) and quote != "'":
            outer.append(quote)
            quote, i = "", i + 1
        elif char == ")" and outer and not quote:
            quote = outer.pop()
        elif char in "'\"" and quote in ("", char):
            quote = "" if quote else char
        elif char == "$" and not quote and (match := re.match(r"\$\{?(\w+)", script[i:])):
            own = rf"\bfor {match[1]} in|\b{match[1]}=|\bread {match[1]}\b"
            if not re.search(own, script):
                yield match[1]
        i += 1


def test_recipes_expand_only_what_the_makefiles_set() -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in MAKEFILES]
    known = set().union(*map(assigned, texts)) | TOOLS | OWN
    for recipe in (recipe for text in texts for recipe in recipes(text)):
        names = expanded_by_make(recipe)
        assert not names & chosen(), recipe
        assert names <= known, recipe


def test_shells_quote_what_others_choose() -> None:
    found = []
    for name in MAKEFILES:
        for recipe in recipes((ROOT / name).read_text(encoding="utf-8")):
            script = re.sub(r"\$\((?:[^()$]|\$\([^()]*\))*\)", "", recipe.replace("$$", "\0"))
            found += [(recipe, one) for one in unquoted(script.replace("\0", "$"))]
    for file in WORKFLOWS:
        for job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values():
            for script in (step["run"] for step in job["steps"] if "run" in step):
                assert "${{" not in script, f"{file.name}: {script}"
                found += [(script, one) for one in unquoted(script)]
    assert [(where, name) for where, name in found if name not in WORDS | {"QUICK"}] == []


def test_the_checks_see_what_they_look_for() -> None:
    assert recipes("a:\n\techo \\\n\t  $(TAG)\ndefine r\n\t$$(B) $$$$c\nendef\n") == [
        "echo \t  $(TAG)",
        "$(B) $$c",
    ]
    assert expanded_by_make('echo "$(TAG)" $$(BASE) $${X} ${FROM} $$$(Y)') == {"TAG", "FROM", "Y"}
    assert assigned("A ?= 1\nB := 2\nC = 3\ndefine D\n") == {"B", "C", "D"}
    assert list(unquoted('a $X "$Y" "$(b $Z "$V")" \'$W\' \\$U; for n in 1; do c $n; done')) == [
        "X",
        "Z",
    ]


@pytest.mark.parametrize("in_environment", [True, False])
def test_hostile_values_are_only_words(tmp_path: Path, in_environment: bool) -> None:
    """Each target that uses such a variable runs, with a program in place of Python and DVC."""
    for name in (*MAKEFILES, "pyproject.toml", "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    bin_ = tmp_path / ".venv/bin"
    bin_.mkdir(parents=True)
    for name in ("python", "dvc", "codespell"):
        (bin_ / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
        (bin_ / name).chmod(0o755)
    (tmp_path / ".venv/.installed").touch()
    (tmp_path / ".git").mkdir()
    values = dict.fromkeys(chosen(), HOSTILE)
    words = [] if in_environment else [f"{name}={value}" for name, value in values.items()]
    path = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    targets = ("gate", "gate-speed", "promote", "rekey", "summary", "prose", "mutants", "study")
    command = ["make", "-k", "check-version", "dist-collect", *targets, *words]
    env = {**path, **values} if in_environment else path
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert not list(tmp_path.rglob("run-*")), done.stdout + done.stderr
    assert done.stdout.count(f"\n{HOSTILE}\n") >= 4, done.stdout + done.stderr
    assert f"error: TAG={HOSTILE}, expected v" in done.stderr
    assert f"error: FROM={HOSTILE} is not a folder" in done.stderr
