"""The README's code runs as it is printed, and the published files are those of one model."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAM = """
#include "mamba.h"
#include <stdio.h>
#include <stdlib.h>

int main(void)
{{
    float pixels[28 * 28], logits[10];
    FILE *file = fopen("models/example_input.bin", "rb");
    if (!file || fread(pixels, sizeof pixels, 1, file) != 1)
        return 2;
    {block}
    for (int i = 0; i < 10; i++)
        printf("%g\\n", (double)logits[i]);
    return 0;
}}
"""


def code_block(language: str) -> str:
    match = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert match is not None
    return match[1]


def test_the_python_example_classifies_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    image = np.fromfile("models/example_input.bin", dtype="<f4").reshape(1, 28, 28)
    picture = np.kron(np.uint8(255 - image[0] * 200), np.ones((3, 3), np.uint8))
    names = {"images": image, "picture": picture}
    exec(code_block("python"), names)
    assert names["digits"].tolist() == names["digit"].tolist() == [7]


def test_the_c_example_classifies_an_image(tmp_path: Path) -> None:
    if shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("no C compiler or no make here")
    build = ["make", "-s", "-f", "csrc/engine.mk", f"BUILD={tmp_path}/build"]
    library = tmp_path / "build/plain/libmamba.so"
    subprocess.run([*build, str(library)], cwd=ROOT, check=True)
    block = textwrap.indent(code_block("c"), "    ").strip()
    (tmp_path / "app.c").write_text(PROGRAM.format(block=block), encoding="utf-8")
    command = ["cc", tmp_path / "app.c", "-Icsrc/include", library, f"-Wl,-rpath,{library.parent}"]
    subprocess.run([*command, "-o", tmp_path / "app"], cwd=ROOT, check=True)
    done = subprocess.run([tmp_path / "app"], cwd=ROOT, check=True, capture_output=True, text=True)
    logits = [float(line) for line in done.stdout.split()]
    assert int(np.argmax(logits)) == 7


def test_the_champion_of_the_repository_is_the_shipped_model() -> None:
    checksums = ROOT / "models/champion.sha256"
    if not checksums.is_file():
        pytest.skip("the shipped model was promoted without MLflow: no models/champion.sha256")
    lines = (line.split("  ") for line in checksums.read_text(encoding="utf-8").splitlines())
    (found,) = (digest for digest, name in lines if name == "artifacts/mnist_mamba.bin")
    shipped = (ROOT / "models/mnist_mamba.bin").read_bytes()
    assert found == hashlib.sha256(shipped).hexdigest()
