"""The Python handle of the engine: its life, its copies and pickles, and its arguments."""

from __future__ import annotations

import copy
import ctypes
import gc
import math
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

import mnist_mamba
from mnist_mamba.c_build import build_library
from mnist_mamba.engine import Engine, EngineError, binding
from mnist_mamba.engine.format import decode, encode
from mnist_mamba.export import write_model
from tests.models import make_images, make_model
from tests.tools import golden

ROOT = Path(__file__).parents[2]
MODEL = golden.FOLDER / "patch_tied.bin"
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8), dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A model file whose mapping is_mapped finds."""
    (tmp_path / "own.bin").write_bytes(MODEL.read_bytes())
    return tmp_path / "own.bin"


@pytest.fixture(scope="module")
def expected() -> Any:
    return Engine(MODEL, threads=1).logits(IMAGES)


def is_mapped(path: Path) -> bool:
    """Whether this process maps the file, which Linux tells."""
    return str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")


def python(program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((f"{ROOT}/src", str(ROOT)))}
    command = [sys.executable, "-X", "dev", "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


# ---- the exit margin ----


def test_the_exit_margin_of_the_file_or_of_the_caller_decides_who_is_asked(path: Path) -> None:
    model = make_model("ensemble")
    write_model(path, model)
    images = make_images(model.config, 50).numpy()
    assert Engine(path).info["exit_margin"] == 0
    assert set(Engine(path).answers(images).members_asked) == {3}
    first, clear, unsure = (
        Engine(path, exit_margin=margin).answers(images) for margin in (2.0**-126, 0.3, 1e6)
    )
    assert set(first.members_asked) == {1}
    assert len(set(clear.members_asked)) > 1
    assert set(unsure.members_asked) == {3}
    np.testing.assert_array_equal(unsure.logits, Engine(path).logits(images))
    data = decode(path.read_bytes())
    data.header["exit_margin"] = 0.3
    path.write_bytes(encode(data))
    for engine in (Engine(path), pickle.loads(pickle.dumps(Engine(path)))):
        assert engine.info["exit_margin"] == np.float32(0.3)
        np.testing.assert_array_equal(engine.answers(images).members_asked, clear.members_asked)
        np.testing.assert_array_equal(engine.logits(images), clear.logits)
    again = pickle.loads(pickle.dumps(Engine(path, exit_margin=0)))
    assert set(again.answers(images).members_asked) == {3}


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize(
    ("margin", "got"),
    [
        *((value, repr(value)) for value in (-1, 1e7, math.nan, math.inf, -1e-30, 1e300)),
        *((value, repr(value)) for value in (1e6 + 0.03, 1e-40, -1e-40, 1e-46, -1e-60, 1e-300)),
        (10**400, "a number beyond all floats"),
    ],
)
def test_an_exit_margin_out_of_range_is_refused(margin: float, got: str, flush: bool) -> None:
    torch.set_flush_denormal(flush)
    try:
        with pytest.raises(
            EngineError, match=r"exit_margin: .*, expected 0 or 2\^-126 to"
        ) as error:
            Engine(MODEL, exit_margin=margin)
    finally:
        torch.set_flush_denormal(False)
    assert f"got {got}," in str(error.value)


@pytest.mark.parametrize("margin", ["1", True, [1.0]])
def test_an_exit_margin_that_is_no_number_is_refused(margin: Any) -> None:
    with pytest.raises(TypeError, match=r"exit_margin: got .*, expected a number"):
        Engine(MODEL, exit_margin=margin)


# ---- life ----


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are found by Linux only")
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_share_the_model_until_the_last_is_gone(
    duplicate: Callable[[Engine], Engine], path: Path, expected: Any
) -> None:
    first = Engine(path)
    path.unlink()  # it cannot be opened again
    second, third = duplicate(first), duplicate(first)
    first.close()
    assert is_mapped(path)
    np.testing.assert_array_equal(second.logits(IMAGES), expected)
    del second
    np.testing.assert_array_equal(third.logits(IMAGES), expected)
    with pytest.raises(EngineError, match="closed"):
        first.logits(IMAGES)
    with pytest.raises(EngineError, match="closed"):
        duplicate(first).logits(IMAGES)
    assert is_mapped(path)
    third.close()
    assert not is_mapped(path)
    assert third.info == first.info


def test_a_change_of_info_changes_no_call(expected: Any) -> None:
    engine = Engine(MODEL)
    engine.info["height"] = engine.info["n_classes"] = 1
    np.testing.assert_array_equal(engine.logits(IMAGES), expected)


def test_a_model_that_another_thread_closes_stays_open_for_running_calls(expected: Any) -> None:
    many, all_expected = np.tile(IMAGES, (300, 1, 1)), np.tile(expected, (300, 1))

    def classify(engine: Engine, running: threading.Event) -> str:
        while True:
            running.set()
            try:
                logits = engine.logits(many)
            except EngineError as error:
                return str(error)
            np.testing.assert_array_equal(logits, all_expected)

    def close(engine: Engine, running: threading.Event) -> str:
        running.wait()
        engine.close()
        return "the engine was closed"

    with ThreadPoolExecutor(6) as pool:
        for _ in range(30):
            arguments = (Engine(MODEL, threads=1), threading.Event())
            calls = [pool.submit(call, *arguments) for call in 4 * [classify] + 2 * [close]]
            assert {call.result() for call in calls} == {"the engine was closed"}


def test_calls_of_several_threads_run_at_the_same_time() -> None:
    engine = Engine(MODEL)
    model: Any = engine._model
    assert not isinstance(model.library, ctypes.PyDLL)  # which would keep Python's own lock
    both = threading.Barrier(2, timeout=60)
    model.library = SimpleNamespace(
        mamba_max_threads=lambda: 1,
        mamba_batch_bytes=lambda *arguments: 100,
        mamba_forward_batch_u8=lambda *arguments: both.wait() * 0,
    )
    with ThreadPoolExecutor(2) as pool:
        for call in [pool.submit(engine.logits, IMAGES) for _ in range(2)]:
            call.result()  # raises BrokenBarrierError if one call waits for the other


def test_the_interpreter_ends_quietly_while_threads_classify() -> None:
    done = python(
        f"""
import copy, threading
import numpy as np
from mnist_mamba.engine import Engine
engine = Engine({str(MODEL)!r}, threads=1)
engine.itself = engine
images, started = np.zeros((20000, 8, 8), np.uint8), threading.Barrier(3)
def run(engine):
    started.wait()
    while True:
        engine.logits(images)
for engine in (engine, copy.copy(engine)):
    threading.Thread(target=run, args=(engine,), daemon=True).start()
started.wait()
engine.logits(images)  # until the others are in their calls
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_engine_that_did_not_open_leaves_nothing(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    for arguments in ((path,), (path.read_bytes(),), (path, 1, path)):
        with pytest.raises(EngineError):
            Engine(*arguments)
    gc.collect()  # pytest turns an error of __del__ into a failure
    assert not is_mapped(path)


# ---- pickles ----


def test_a_pickle_opens_the_file_again(
    path: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    library = binding.find_library()
    for options in ({}, {"mmap": False}, {"threads": 1, "library": library}):
        monkeypatch.chdir(path.parent)
        monkeypatch.delenv(binding.LIBRARY_VARIABLE, raising=False)
        pickled = pickle.dumps(Engine(path.name, **options))
        assert len(pickled) < 2000  # the path, not the file
        monkeypatch.chdir("/")
        again = pickle.loads(pickled)
        np.testing.assert_array_equal(again.logits(IMAGES), expected)
        assert is_mapped(path) == ("mmap" not in options)
        monkeypatch.setenv(binding.LIBRARY_VARIABLE, "nowhere.so")
        if "library" in options:
            pickle.loads(pickled)
        else:
            with pytest.raises(EngineError, match=r"nowhere\.so not found"):
                pickle.loads(pickled)


def test_a_pickle_of_bytes_contains_them(path: Path, expected: Any) -> None:
    data = bytearray(MODEL.read_bytes())
    engine = Engine(data)
    data[:] = bytes(len(data))
    again = pickle.loads(pickle.dumps(engine))
    np.testing.assert_array_equal(again.logits(IMAGES), expected)


def test_a_pickle_refuses_another_file(path: Path) -> None:
    pickled = pickle.dumps(Engine(path, mmap=False))
    path.write_bytes((golden.FOLDER / "patch_forward_mean.bin").read_bytes())
    with pytest.raises(EngineError, match=r"own.bin: got a model with crc32 .*, the pickled"):
        pickle.loads(pickled)
    path.unlink()
    with pytest.raises(EngineError, match=r"own.bin: "):
        pickle.loads(pickled)


def test_a_closed_engine_and_an_error_can_be_pickled(path: Path) -> None:
    engine = Engine(path)
    engine.close()
    with pytest.raises(EngineError, match="closed") as error:
        pickle.loads(pickle.dumps(engine)).logits(IMAGES)
    again = pickle.loads(pickle.dumps(error.value))
    assert (type(again), again.status, str(again)) == (EngineError, 2, "the engine was closed")


# ---- values that C would cut or misread ----


@pytest.mark.parametrize("mmap", [True, False])
def test_a_path_does_not_end_at_a_nul(path: Path, mmap: bool) -> None:
    for name in (f"{path}\0.bin", Path(f"{path}\0.bin")):
        with pytest.raises(ValueError, match=r"own.bin\\x00.bin.*NUL"):
            Engine(name, mmap=mmap)
    with pytest.raises(EngineError, match="expected a built libmamba"):
        Engine(path, library=f"{binding.find_library()}\0")


@pytest.mark.parametrize("threads", [-1, 1025, 2**31, 2**32 + 1, 2**64 + 1, np.int64(-1)])
def test_another_number_of_threads_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=rf"threads: got {threads}, expected 1 to 1024, or 0"):
        Engine(MODEL, threads=threads)


@pytest.mark.parametrize("threads", [True, False, 1.0, "1", None, np.True_])
def test_threads_are_a_whole_number(threads: Any) -> None:
    with pytest.raises(TypeError, match=r"threads: got .*, expected a whole number"):
        Engine(MODEL, threads=threads)


@pytest.mark.parametrize("threads", [0, 1, 2, 1024, np.int64(2), np.uint8(2)])
def test_these_threads_are_accepted(threads: int, expected: Any) -> None:
    np.testing.assert_array_equal(Engine(MODEL, threads=threads).logits(IMAGES), expected)


@pytest.mark.parametrize(("threads", "used"), [(0, 5), (1, 1), (3, 3)])
def test_the_library_is_asked_for_that_many_threads(threads: int, used: int) -> None:
    asked = []
    engine = Engine(MODEL, threads=threads)
    model: Any = engine._model
    model.library = SimpleNamespace(
        mamba_max_threads=lambda: 5,
        mamba_batch_bytes=lambda model, count: asked.append(count) or 100,
        mamba_forward_batch_u8=lambda *arguments: asked.append(arguments[3]) or 0,
    )
    engine.logits(IMAGES)
    assert asked == [used, used]


def test_no_more_memory_is_taken_than_images_need(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Engine(MODEL, threads=64)
    library, asked = engine._model.library, []
    real = library.mamba_batch_bytes

    def batch_bytes(model: Any, threads: int) -> int:
        asked.append(threads)
        return int(real(model, threads))

    monkeypatch.setattr(library, "mamba_batch_bytes", batch_bytes)
    for n in (0, 1, 3):
        assert len(engine.logits(np.zeros((n, 8, 8), dtype=np.uint8))) == n
    assert asked == [1, 1, 3]


def test_a_model_in_bytes_with_gaps_is_refused() -> None:
    gaps = memoryview(MODEL.read_bytes())[::2]
    with pytest.raises(TypeError, match="got memoryview, expected a path or the bytes"):
        Engine(gaps)  # type: ignore[arg-type]


def test_masked_images_in_a_list_are_refused() -> None:
    image = np.ma.masked_array(np.zeros((8, 8), np.uint8), mask=np.eye(8))
    with pytest.raises(ValueError, match="masked pixels"):
        Engine(MODEL).logits([image, image])  # type: ignore[arg-type]
    rows: Any = [list(image), list(image)]
    with pytest.raises(ValueError, match="masked pixels"):
        Engine(MODEL).logits(rows)
    with_mask: Any = type("Images", (), {"__array__": lambda self, *_, **__: image[None]})()
    with pytest.raises(ValueError, match="masked pixels"):
        Engine(MODEL).logits(with_mask)


def test_a_pixel_just_above_1_is_shown_with_all_digits() -> None:
    images = np.full((1, 8, 8), np.nextafter(np.float32(1), np.float32(2)))
    with pytest.raises(ValueError, match=r"from 0 to 1\.00000012, outside \[0, 1\]"):
        Engine(MODEL).logits(images)


def stub(folder: Path, names: list[str]) -> Path:
    """Build a library with these functions, whose version is another."""
    source = folder / "stub.c"
    functions = "".join(f"int {name}(void) {{ return 0; }}\n" for name in names)
    version = 'const char *mamba_version(void) { return "0.0.9"; }\n'
    source.write_text(functions + version, encoding="utf-8")
    return build_library(folder.name, [source])


def test_a_wrong_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_MAMBA_CACHE", str(tmp_path / "cache"))
    calls = ("model_open", "model_read", "model_from_bytes", "model_close", "model_info")
    calls += ("set_exit_margin",)
    pictures = ("prepare_picture", "prepare_for_model")
    more = ("max_threads", "batch_bytes", "forward_batch", "forward_batch_u8")
    names = [f"mamba_{name}" for name in (*calls, *pictures, "class_name", *more)]
    advice = rf"expected libmamba {mnist_mamba.__version__}: .*make omp"
    for functions, got in (
        ([], "a library without mamba_model_open"),
        (names[:-1], "a library without mamba_forward_batch_u8"),
        (names, "libmamba 0.0.9"),
    ):
        library = stub(tmp_path, functions)
        with pytest.raises(EngineError, match=f"got {got}, {advice}") as error:
            Engine(MODEL, library=library)
        assert error.value.status == 3
    (tmp_path / "text.so").write_text("no library", encoding="utf-8")
    with pytest.raises(EngineError, match=r"text\.so cannot be loaded"):
        Engine(MODEL, library=tmp_path / "text.so")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(binding.LIBRARY_VARIABLE, raising=False)
    default = binding.find_library()
    monkeypatch.setenv(binding.LIBRARY_VARIABLE, "")
    assert binding.find_library() == default
    monkeypatch.setenv(binding.LIBRARY_VARIABLE, "nowhere.so")
    with pytest.raises(EngineError, match=r"nowhere\.so not found"):
        binding.find_library()
    assert binding.find_library(default) == default
    for folder in ("", "/"):
        with pytest.raises(EngineError, match=r"^[./] is not a file: expected a built libmamba"):
            binding.find_library(folder)


# ---- images ----


def as_floats() -> Any:
    return (IMAGES / np.float32(255)).astype(np.float32)


def unaligned(values: Any) -> Any:
    memory = np.zeros(values.nbytes + 1, np.uint8)
    found = memory[1:].view(values.dtype).reshape(values.shape)
    found[:] = values
    assert not found.flags.aligned
    return found


def read_only(values: Any) -> Any:
    values = values.copy()
    values.flags.writeable = False
    return values


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "Fortran order": np.asfortranarray,
    "every second": lambda values: np.repeat(values, 2, axis=0)[::2],
    "every second column": lambda values: np.repeat(values, 2, axis=2)[:, :, ::2],
    "backwards": lambda values: values[:, ::-1].copy()[:, ::-1],
    "read-only": read_only,
    "unmasked": np.ma.masked_array,
    "a subclass": lambda values: values.view(type("Pixels", (np.ndarray,), {})),
    "a list of arrays": list,
    "a tensor": torch.from_numpy,
    "a strided tensor": lambda values: torch.from_numpy(values.transpose(0, 2, 1).copy()).mT,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout_gives_the_same_bits(layout: str, expected: Any) -> None:
    engine = Engine(MODEL, threads=1)
    for values in (IMAGES, as_floats()):
        logits = engine.logits(LAYOUTS[layout](values))
        assert type(logits) is np.ndarray
        np.testing.assert_array_equal(logits, expected)
    odd = unaligned(as_floats())
    assert binding._pixels(odd, (8, 8, 1)).flags.aligned  # which x86 would not need
    np.testing.assert_array_equal(engine.logits(odd), expected)


def test_channels_and_names_are_the_model_s(expected: Any) -> None:
    grey, colours = Engine(MODEL), Engine(golden.FOLDER / "colours.bin")
    np.testing.assert_array_equal(grey.logits(IMAGES[..., None]), expected)
    assert grey.class_names == tuple("0123456789")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    logits = colours.logits(pixels)
    assert logits.shape == (2, 3)
    np.testing.assert_array_equal(colours.logits(np.asfortranarray(pixels)), logits)
    again = pickle.loads(pickle.dumps(colours))
    assert again.class_names == colours.class_names == ("cat", "Käse", 'a "b", c\\')
    for engine, wrong, shape in (
        (grey, pixels, "8, 8"),
        (colours, pixels[..., 0], "8, 8, 3"),
        (colours, pixels.transpose(0, 3, 1, 2), "8, 8, 3"),
    ):
        with pytest.raises(ValueError, match=rf"expected \(n, {shape}\)"):
            engine.logits(wrong)
    with pytest.raises(ValueError, match=r"for one image, pass image\[None\]"):
        colours.logits(pixels[0])


def test_a_broadcast_image_is_one_image_many_times(expected: Any) -> None:
    logits = Engine(MODEL).logits(np.broadcast_to(IMAGES[3], (5, 8, 8)))
    np.testing.assert_array_equal(logits, np.tile(expected[3], (5, 1)))


WRONG: dict[str, tuple[Any, str]] = {
    "other byte order": (as_floats().astype(as_floats().dtype.newbyteorder()), r"dtype [<>]f4"),
    "double": (IMAGES / 255, "dtype float64"),
    "half": (as_floats().astype(np.float16), "dtype float16"),
    "signed bytes": (IMAGES.view(np.int8), "dtype int8"),
    "truth values": (IMAGES > 99, "dtype bool"),
    "objects": (IMAGES.astype(object), "dtype object"),
    "numbers": (IMAGES.tolist(), r"\(list\) have dtype int64"),
    "no numbers": ([], r"\(list\) have shape \(0,\)"),
    "text": ("image", r"\(str\) have shape \(\)"),
    "bytes": (bytes(64), r"\(bytes\) have shape \(\)"),
    "nothing": (None, r"\(NoneType\) have shape \(\)"),
    "a number": (0.5, r"\(float\) have shape \(\)"),
    "a dictionary": ({"images": IMAGES}, r"\(dict\) have shape \(\)"),
    "a generator": ((image for image in IMAGES), r"\(generator\) have shape \(\)"),
    "a tensor of half type": (torch.zeros(2, 8, 8, dtype=torch.bfloat16), r"\(Tensor\) are not"),
    "a tensor with gradients": (torch.zeros(2, 8, 8, requires_grad=True), r"use tensor\.detach"),
    "a tensor elsewhere": (torch.zeros(2, 8, 8, device="meta"), r"meta device.*use tensor\.cpu"),
    "a sparse tensor": (torch.zeros(2, 8, 8).to_sparse(), r"\(Tensor\) are not an array: .*layout"),
    "integers in a tensor": (torch.zeros(2, 8, 8, dtype=torch.int64), "dtype int64"),
    "records": (np.zeros((2, 8, 8), [("grey", "u1")]), "dtype .*grey"),
    "complex numbers": (np.zeros((2, 8, 8), complex), "dtype complex128"),
    "a matrix": (IMAGES[0].view(np.matrix), r"shape \(8, 8\), expected \(n, 8, 8\)"),
    "one image": (IMAGES[0], r"shape \(8, 8\), expected \(n, 8, 8\).*: .* pass image\[None\]"),
    "channels": (IMAGES[:, None], r"shape \(7, 1, 8, 8\), expected \(n, 8, 8\)"),
    "other height": (IMAGES[:, :7], r"shape \(7, 7, 8\), expected \(n, 8, 8\)"),
    "other width": (IMAGES[:, :, :7], r"shape \(7, 8, 7\), expected \(n, 8, 8\)"),
    "other lengths": ([[1, 2], [3]], "inhomogeneous"),
    "masked": (np.ma.masked_less(IMAGES, 9), "masked"),
    "0 to 255": (IMAGES.astype(np.float32), r"from 0 to 2\d\d, outside \[0, 1\]: divide"),
    "above": (np.full((1, 8, 8), 1, np.float32) + np.float32(1e-6), "outside"),
    "one pixel above": (np.where(np.arange(64).reshape(1, 8, 8) < 63, 0, 2).astype("f4"), "to 2"),
    "below": (np.full((1, 8, 8), -1e-45, np.float32), "from -1.4.*e-45 to 0, outside"),
    "NaN": (np.where(np.arange(64).reshape(1, 8, 8) == 9, np.nan, 1).astype("f4"), "nan"),
    "infinity": (np.full((1, 8, 8), np.inf, np.float32), "to inf"),
}

VALUES = {"masked", "0 to 255", "above", "one pixel above", "below", "NaN", "infinity"}
"""Kinds of WRONG with the right shape and dtype."""


@pytest.mark.parametrize("kind", WRONG)
def test_other_images_are_refused(kind: str) -> None:
    images, words = WRONG[kind]
    engine = Engine(MODEL)
    for method in (engine.logits, engine.probabilities, engine.predict):
        with pytest.raises(ValueError, match=f"(?i){words}") as error:
            method(images)
        advice = "fill them|divide pixels" if kind in VALUES else r"expected \(n, 8, 8\), uint8 or"
        assert re.search(advice, str(error.value))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", [None, 3, [1], {}, object()])
def test_a_model_is_a_path_or_bytes(model: Any) -> None:
    name = type(model).__name__
    with pytest.raises(TypeError, match=rf"model: got {name}, expected a path or the bytes"):
        Engine(model)


def test_probabilities_are_the_softmax_of_the_logits(expected: Any) -> None:
    engine = Engine(MODEL)
    probabilities = engine.probabilities(IMAGES)
    assert probabilities.dtype == np.float64
    assert probabilities.shape == (7, 10)
    np.testing.assert_allclose(probabilities, softmax(expected.astype(np.float64), axis=1), 1e-14)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-14)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), engine.predict(IMAGES))
    assert engine.probabilities(IMAGES[:0]).shape == (0, 10)


def test_probabilities_of_large_logits_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(MODEL)
    logits = np.array([[3e38, -3e38, 3e38], [-1000, -1001, -3e38]], np.float32)
    monkeypatch.setattr(engine, "logits", lambda images: logits)
    exact = [[0.5, 0, 0.5], [1 / (1 + np.exp(-1)), np.exp(-1) / (1 + np.exp(-1)), 0]]
    np.testing.assert_allclose(engine.probabilities(IMAGES), exact, rtol=1e-14)


def test_black_white_and_no_images_are_answered() -> None:
    engine = Engine(MODEL)
    for value in (0, 1):
        bits = engine.logits(np.full((1, 8, 8), 255 * value, np.uint8))
        np.testing.assert_array_equal(engine.logits(np.full((1, 8, 8), value, np.float32)), bits)
    for dtype in (np.uint8, np.float32):
        assert engine.logits(np.zeros((0, 8, 8), dtype)).shape == (0, 10)
        assert engine.predict(np.zeros((0, 8, 8), dtype)).shape == (0,)


def test_the_number_of_images_is_not_cut() -> None:
    """More than 2^31 images fit no test, but a size_t that is not cut holds their number."""
    library = Engine(MODEL)._model.library  # type: ignore[union-attr]
    for forward in (library.mamba_forward_batch, library.mamba_forward_batch_u8):
        assert forward.argtypes[2] is forward.argtypes[5] is ctypes.c_size_t
