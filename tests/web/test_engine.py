"""The engine in WebAssembly, run by Node: the native engine's answers, errors and traces."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mnist_mamba.data.idx import read_images
from mnist_mamba.engine import Engine, EngineError
from mnist_mamba.engine.format import CHECKED_FROM, CRC_OFFSET, decode, encode
from tests.web.conftest import MODEL, ROOT, digit_images

Node = Callable[..., str]
GOLDEN = sorted((ROOT / "csrc" / "tests" / "golden").glob("*.bin"))

# The scalar kernels call libm: web/wasm/math.c has the bits of glibc before 2.41.
LIBC, VERSION = platform.libc_ver()
SAME_LIBM = LIBC == "glibc" and tuple(map(int, VERSION.split("."))) < (2, 41)

CLASSIFY = """
const [isa, images, out, ...models] = args;
const floats = [], asked = [];
for (const path of models) {
  const model = await open(read(path), { isa });
  const all = read(images), n = Math.floor(all.length / model.size);
  for (let i = 0; i < n; i++) {
    const answer = model.forward(all.subarray(i * model.size, (i + 1) * model.size));
    floats.push(...answer.logits);
    asked.push(answer.asked);
  }
}
writeFileSync(out, Float32Array.from(floats));
writeFileSync(out + ".asked", Uint8Array.from(asked));
"""


def classify(
    node: Node, isa: str, images: NDArray[np.uint8], folder: Path, *models: Path
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the logits, of all models after each other, and the numbers of members asked."""
    (folder / "images").write_bytes(images.tobytes())
    node(CLASSIFY, isa, folder / "images", folder / "out", *models)
    asked = np.fromfile(folder / "out.asked", np.uint8)
    return np.fromfile(folder / "out", "<f4"), asked


def compare(node: Node, images: NDArray[np.uint8], folder: Path, isa: str) -> None:
    """Compare the shipped model's answers with those of the native scalar kernels."""
    with Engine(MODEL) as engine:
        native = engine.answers(images)
    logits, asked = classify(node, isa, images, folder, MODEL)
    logits = logits.reshape(native.logits.shape)
    np.testing.assert_array_equal(asked, native.members_asked)
    np.testing.assert_array_equal(logits.argmax(axis=1), native.logits.argmax(axis=1))
    np.testing.assert_allclose(logits, native.logits, rtol=0, atol=1e-4)
    if isa == "scalar" and SAME_LIBM:
        assert logits.tobytes() == native.logits.tobytes()


@pytest.mark.parametrize("isa", ["simd128", "scalar"])
def test_answers_are_those_of_the_native_scalar_engine(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str
) -> None:
    monkeypatch.setenv("MAMBA_ISA", "scalar")
    images = digit_images()[: 1000 if isa == "simd128" else 300]
    compare(node, images, tmp_path, isa)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["simd128", "scalar"])
def test_all_test_images(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str
) -> None:
    file = ROOT / "data/prepared/test-images.idx"
    if not file.is_file():
        pytest.skip("needs MNIST: run `dvc repro prepare`")
    monkeypatch.setenv("MAMBA_ISA", "scalar")
    compare(node, read_images(file), tmp_path, isa)


@pytest.mark.parametrize("isa", ["simd128", "scalar"])
def test_every_architecture(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str
) -> None:
    """Patch and conv stems, all directions, free and tied A, odd widths, members, int8 weights."""
    monkeypatch.setenv("MAMBA_ISA", "scalar")
    pixels = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8)
    found, _ = classify(node, isa, pixels, tmp_path, *GOLDEN)
    for path in GOLDEN:
        with Engine(path) as engine:
            shape = [int(engine.info[side]) for side in ("height", "width", "channels")]
            n = 4096 // int(np.prod(shape))
            images = pixels[: n * int(np.prod(shape))].reshape(n, *shape)
            native = engine.logits(images[..., 0] if shape[2] == 1 else images)
        logits, found = found[: native.size].reshape(native.shape), found[native.size :]
        np.testing.assert_allclose(logits, native, rtol=1e-5, atol=1e-5, err_msg=path.name)
        if isa == "scalar" and SAME_LIBM:
            assert logits.tobytes() == native.tobytes(), path.name
    assert not found.size


def damaged_files() -> list[bytes]:
    """Return files with errors of every class, with correct checksums where it matters."""
    data = (ROOT / "csrc/tests/golden/ensemble.bin").read_bytes()
    files = [b"", data[:50], data[:-1], data + b"\0", b"PK\3\4" + data[4:], data[:-1] + b"\1"]
    numbers = [struct.pack("<I", n) for n in (0, 7, 2**31, 2**32 - 1)]
    numbers += [struct.pack("<f", x) for x in (-0.5, 1e-30, 3.4e38, 123456.789)]
    numbers += [struct.pack("<f", x) for x in (float("inf"), float("-inf"))]
    for offset in range(8, 200, 4):
        for number in numbers:
            changed = bytearray(data)
            changed[offset : offset + 4] = number
            if offset != CRC_OFFSET:
                struct.pack_into("<I", changed, CRC_OFFSET, zlib.crc32(changed[CHECKED_FROM:]))
            files.append(bytes(changed))
    for i in range(30):  # class names and tensors
        changed = bytearray(data)
        struct.pack_into("<f", changed, len(data) - 4 - 400 * i, float("inf"))
        struct.pack_into("<I", changed, CRC_OFFSET, zlib.crc32(changed[CHECKED_FROM:]))
        files.append(bytes(changed))
    return files


def test_errors_are_the_native_engines(node: Node, tmp_path: Path) -> None:
    files = damaged_files()
    for i, data in enumerate(files):
        (tmp_path / f"{i}.bin").write_bytes(data)
    found = node(
        """
        const [folder, n] = args, messages = [];
        for (let i = 0; i < n; i++)
          messages.push(await open(read(`${folder}/${i}.bin`)).then(
            () => [0, ""], (error) => [error.exitCode, error.message]));
        console.log(JSON.stringify(messages));
        """,
        tmp_path,
        str(len(files)),
    )
    expected = []
    for i in range(len(files)):
        path = tmp_path / f"{i}.bin"
        try:
            Engine(path).close()
            expected.append([0, ""])
        except EngineError as error:
            expected.append([error.status, str(error).rpartition(f"{i}.bin: ")[2]])
    # Native builds count denormal numbers as zero, also in some messages.
    got, expected = (
        re.sub(r"\b[0-9.]+e-45\b", "0", text) for text in (found, json.dumps(expected))
    )
    assert json.loads(got) == json.loads(expected)
    assert len({message.split(":")[0] for _, message in json.loads(expected)}) > 30


def test_dims_and_names_are_the_native_engines(node: Node) -> None:
    paths = [MODEL, *GOLDEN]
    found = json.loads(
        node(
            """
            const all = [];
            for (const path of args) {
              const { info, classNames } = await open(read(path));
              all.push({ ...info, class_names: classNames });
            }
            console.log(JSON.stringify(all));
            """,
            *paths,
        )
    )
    for path, info in zip(paths, found, strict=True):
        with Engine(path) as engine:
            known = {key: value for key, value in engine.info.items() if key in info}
            assert len(known) > 25
            names = {"class_names": list(engine.class_names)}
            assert {key: info[key] for key in known} | names == known | names, path.name


def test_a_picture_is_prepared_as_by_the_native_engine(node: Node, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    drawn = [np.kron(image, np.ones((5, 7), np.uint8)) for image in digit_images()[:8]]
    pictures = [np.repeat(image[..., None], n % 4 + 1, 2) for n, image in enumerate(drawn)]
    for picture in pictures[4:]:
        picture[:] = 255 - picture // 2 - rng.integers(0, 20, picture.shape, dtype=np.uint8)
    sizes = [picture.shape for picture in pictures]
    (tmp_path / "pictures").write_bytes(b"".join(picture.tobytes() for picture in pictures))
    node(
        """
        const [path, out, sizes, model] = args, all = read(path), seen = [];
        const engine = await open(read(model));
        let at = 0;
        for (const [height, width, n] of JSON.parse(sizes)) {
          const data = all.subarray(at, at += height * width * n);
          seen.push(engine.prepare({ data, width, height }));
        }
        writeFileSync(out, Buffer.concat(seen));
        """,
        tmp_path / "pictures",
        tmp_path / "seen",
        json.dumps(sizes),
        MODEL,
    )
    with Engine(MODEL) as engine:
        expected = np.array([engine.prepare(np.squeeze(picture)) for picture in pictures])
    assert (tmp_path / "seen").read_bytes() == expected.tobytes()


def test_nothing_drawn_and_wrong_arguments_are_errors(node: Node) -> None:
    found = node(
        """
        const model = await open(read(args[0]));
        const blank = { data: new Uint8Array(400 * 4), width: 20, height: 20 };
        for (const call of [() => model.predict(blank),
                            () => model.prepare({ ...blank, width: 21 }),
                            () => model.forward(new Uint8Array(783)),
                            () => model.forward(new Float32Array(784).fill(NaN)),
                            () => model.setExitMargin(-1),
                            () => model.setExitMargin(1e-46)])
          try {
            call();
            console.log("no error");
          } catch (error) {
            console.log(error instanceof MambaError, error.kind, error.message);
          }
        """,
        MODEL,
    ).splitlines()
    for line, words in zip(
        found,
        (("empty",), ("argument", "1600", "21 x 20"), ("input", "783", "784"), ("model", "NaN"),
         ("argument", "-1", "exit_margin"), ("argument", "1e-46", "exit_margin")),
        strict=True,
    ):  # fmt: skip
        assert line.startswith("true"), line
        assert all(word in line for word in words), line


def test_without_simd_the_scalar_kernels_run(node: Node) -> None:
    """Node has SIMD: its check of modules is replaced by that of a browser without."""
    found = node(
        """
        const file = read(args[0]), { isa } = await open(file);
        WebAssembly.validate = () => false;
        console.log(isa, (await open(file)).isa);
        await open(file, { isa: "avx2" }).catch(({ message }) => console.log(message));
        """,
        MODEL,
    )
    assert found.splitlines() == ["simd128 scalar", "isa: got avx2, expected simd128 or scalar"]


def test_a_trace_keeps_what_it_is_told(node: Node) -> None:
    found = node(
        """
        const model = await open(read(args[0])), image = new Uint8Array(784).fill(9);
        model.setExitMargin(0);
        console.log(model.trace(image, ({ name, layer }) => name === "delta" ? layer : undefined)
          .join(" "));
        """,
        MODEL,
    )
    assert found == " ".join(["0,1", *["0,1,2"] * 5]) + "\n"


def test_the_trace_has_each_stage_of_each_member(node: Node, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(digit_images()[7].tobytes())
    found: list[list[dict[str, Any]]] = json.loads(
        node(
            """
            const model = await open(read(args[0]));
            model.setExitMargin(0);
            const image = read(args[1]), { logits } = model.forward(image);
            const members = model.trace(image);
            const last = members.map((stages) => stages[stages.length - 1].values);
            const mean = logits.map((_, i) => last.reduce((sum, each) => sum + each[i], 0) / 6);
            if (mean.some((value, i) => Math.abs(value - logits[i]) > 1e-5)) throw Error("logits");
            console.log(JSON.stringify(members.map((stages) => stages.map((stage) => (
              { ...stage, values: [...stage.values.slice(0, 3)], n: stage.values.length })))));
            """,
            MODEL,
            tmp_path / "image",
        )
    )
    layer = ["local", "in_proj.x", "in_proj.z", "conv", "x_proj", "delta", "scan", "residual"]
    for stages, n_layers in zip(found, (2, 3, 3, 3, 3, 3), strict=True):
        names = ["tokens", *layer * n_layers, "pooled", "logits"]
        assert [stage["name"] for stage in stages] == names
        for stage in stages:
            assert stage["n"] == stage["rows"] * stage["columns"]
            if stage["name"] == "delta":
                assert stage["rows"] == 49
                assert min(stage["values"]) > 0


def decaying_model() -> bytes:
    """Return a model that takes in nothing from black, and keeps 0.7 of each state at a step."""
    file = decode((ROOT / "csrc/tests/golden/pixels_last.bin").read_bytes())
    tensors = {name: values.copy() for name, values in file.tensors.items()}
    for name in ("stem.bias", "pos_embed"):
        tensors[name][:] = 0
    for name in ("conv1d.bias", "dt_proj.weight", "D"):
        tensors[f"layers.0.{name}"][:] = 0
    tensors["layers.0.dt_proj.bias"][:] = 20
    tensors["layers.0.A"][:] = np.log2(0.7) / 20
    return encode(
        dataclasses.replace(file, header=file.header | {"pixel_mean": 0.0}, tensors=tensors)
    )


@pytest.mark.parametrize("isa", ["simd128", "scalar"])
def test_a_black_image_is_not_slower(node: Node, tmp_path: Path, isa: str) -> None:
    """States decay to zero, not into denormals, which WebAssembly cannot count as zero.

    Without v_flush, simd128 takes 28 % longer on a Zen 4, and far longer on other processors.
    """
    (tmp_path / "model.bin").write_bytes(decaying_model())
    ratio = node(
        """
        const [isa, path] = args, model = await open(read(path), { isa });
        const digit = new Uint8Array(64).fill(200), black = new Uint8Array(64);
        black[0] = 255;
        const least = [Infinity, Infinity];
        for (let round = 0; round < 60; round++)
          [digit, black].forEach((image, i) => {
            const begin = process.cpuUsage();
            for (let run = 0; run < 100; run++) model.forward(image);
            const { user, system } = process.cpuUsage(begin);
            least[i] = Math.min(least[i], user + system);
          });
        console.log(least[1] / least[0]);
        """,
        isa,
        tmp_path / "model.bin",
    )
    assert float(ratio) <= 1.1
