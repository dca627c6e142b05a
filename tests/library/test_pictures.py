"""Pictures: prepared by the C engine, read with Pillow, classified by the command."""

from __future__ import annotations

import csv
import ctypes
import dataclasses
import functools
import io
import json
import os
import shlex
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mnist_mamba.__main__ import main
from mnist_mamba.data.idx import read_images, read_labels
from mnist_mamba.engine import Engine, EngineError, binding, prepare_picture
from mnist_mamba.engine.format import decode, encode
from mnist_mamba.engine.pictures import FORMATS, PictureError, read_picture
from tests.tools.pasted_digits import LIGHT_AND_NOISE, PLAIN, Ranges, paste
from tests.tools.picture_accuracy import in_canvas, rotated

BICUBIC = Image.Resampling.BICUBIC
ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models/mnist_mamba.bin"


@pytest.fixture(scope="module")
def engine() -> Any:
    with Engine(MODEL) as engine:
        yield engine


@functools.cache
def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return scikit-learn's digits enlarged to 28x28 and prepared, and their classes."""
    from sklearn.datasets import load_digits

    known = load_digits()
    pictures = [
        np.asarray(Image.fromarray((image * 15.9).astype(np.uint8)).resize((28, 28)))
        for image in known.images
    ]
    prepared = [prepare_picture(picture, 28, 28) for picture in pictures]
    return np.array(prepared), known.target


def share_as_before(engine: Engine, images: NDArray[np.uint8], ranges: Ranges) -> float:
    """Return how many pasted images get the class that they have by themselves."""
    rng = np.random.default_rng(ranges.seed)
    prepared = np.array([engine.prepare(paste(rng, image, ranges)) for image in images])
    same: float = (engine.predict(prepared) == engine.predict(images)).mean()
    return same


@pytest.mark.parametrize("ranges", [PLAIN, LIGHT_AND_NOISE], ids=["plain", "light and noise"])
def test_a_pasted_digit_keeps_its_class(engine: Engine, ranges: Ranges) -> None:
    images, _ = digits()
    assert share_as_before(engine, images[:600], ranges) >= 0.98  # 8x8 pixels: many are unsure


def test_strokes_do_not_vanish_if_finer_cells_show_noise_alone(engine: Engine) -> None:
    """The ink is then that of the larger cells, with their noise, not that of the finer ones."""
    ranges = Ranges(
        seed=918, canvas=(100, 400), share=(0.12, 0.3), contrast=(60, 120), light=60, noise=24
    )
    image = digits()[0][ranges.seed]
    seen = engine.prepare(paste(np.random.default_rng(ranges.seed), image, ranges))
    assert engine.predict(np.array([seen, image])).tolist() == [3, 3]
    assert (seen > 0).sum() > 60


def test_a_negative_is_the_same_digit() -> None:
    images, _ = digits()
    for image in images[:100]:
        again = prepare_picture(255 - image, 28, 28).astype(int)
        np.testing.assert_allclose(again, image, atol=24)  # faint pixels around it are left out


@pytest.mark.parametrize(
    ("turned", "page_of"),
    [
        (True, rotated),
        (True, lambda page: rotated(page, "LA")),
        (True, lambda page: rotated(255 - page)),
        (False, lambda page: in_canvas(page, 8)),
        (False, lambda page: in_canvas(page, 20).convert("RGBA")),
        (False, lambda page: in_canvas(page, page.shape[0] // 2)),
        (False, lambda page: in_canvas(255 - page, page.shape[0] // 2)),
    ],
    ids=["rotated", "rotated LA", "rotated dark", "margin 8", "margin 20", "canvas x2", "dark x2"],
)
def test_transparent_pixels_around_a_page_are_its_paper(
    engine: Engine, turned: bool, page_of: Any
) -> None:
    """The answer is that for a white page without them, or rotated with white corners."""
    images, _ = digits()
    pages = [255 - np.kron(np.pad(image, 6), np.ones((3, 3), np.uint8)) for image in images[:100]]
    seen = np.array([engine.prepare(np.asarray(page_of(page))) for page in pages])
    expected = np.array(
        [engine.prepare(np.asarray(rotated(page, "L")) if turned else page) for page in pages]
    )
    assert (engine.predict(seen) == engine.predict(expected)).mean() >= 0.98


@pytest.mark.parametrize("ink", [(0, 0, 0), (255, 255, 255), (127, 127, 127), (255, 0, 0)])
def test_ink_alone_on_transparency_is_the_drawing(ink: tuple[int, int, int]) -> None:
    images, _ = digits()
    for image in images[:100]:
        drawing = Image.new("RGBA", (28, 28), ink)
        drawing.putalpha(Image.fromarray(image))
        for mode in ("RGBA", "LA"):
            picture = np.asarray(drawing.convert(mode))
            seen = prepare_picture(picture, 28, 28).astype(int)
            np.testing.assert_allclose(seen, image, atol=24)


@pytest.mark.slow
def test_the_bars_on_mnist(engine: Engine) -> None:
    """MNIST as it is, as negatives, and pasted, through the preparation."""
    prepared = ROOT / "data/prepared"
    if not (prepared / "test-images.idx").is_file():
        pytest.skip("needs MNIST: run `dvc repro prepare`")
    images = read_images(prepared / "test-images.idx")
    labels = read_labels(prepared / "test-labels.idx")

    def accuracy(pictures: Any, labels: NDArray[Any]) -> float:
        seen = np.array([engine.prepare(picture) for picture in pictures])
        np.testing.assert_array_equal([engine.prepare(image) for image in seen], seen)
        right: float = (engine.predict(seen) == labels).mean()
        return right

    assert accuracy(images, labels) >= (engine.predict(images) == labels).mean() - 0.0002
    assert accuracy(255 - images, labels) >= 0.995
    for ranges in (PLAIN, LIGHT_AND_NOISE):
        rng = np.random.default_rng(ranges.seed)
        chosen = rng.permutation(len(images))[:3000]
        pasted = (paste(rng, images[index], ranges) for index in chosen)
        assert accuracy(pasted, labels[chosen]) >= 0.995, ranges


def least_time(picture: NDArray[np.uint8], calls: int) -> float:
    """Return the least time in µs that C takes to find a digit, in which nothing else ran."""
    function = binding._load(binding.find_library()).mamba_prepare_picture
    height, width, channels = (*picture.shape, 1)[:3]
    out, error = np.zeros((28, 28), np.uint8), binding._Error()
    pixels = binding._Picture(picture.ctypes.data, width, height, channels, width * channels)
    arguments = (ctypes.byref(pixels), 1, 28, 28, 1, out.ctypes.data, ctypes.byref(error))
    least = np.inf
    for _ in range(calls):
        start = time.perf_counter()
        assert function(*arguments) == 0
        least = min(least, time.perf_counter() - start)
    return 1e6 * least


@pytest.mark.slow
def test_the_times_of_pictures() -> None:
    """Twice the aims of docs/pictures.md, 30 µs and 1 ms: processors differ."""
    rng = np.random.default_rng(0)
    negatives = [255 - image for image in digits()[0][:40]]
    assert np.mean([least_time(picture, 200) for picture in negatives]) <= 60
    opaque = np.full((512, 512), 255, np.uint8)
    middle = np.arange(512) - 256
    round_ = np.where(middle**2 + middle[:, None] ** 2 < 250**2, 255, 0).astype(np.uint8)
    for negative in negatives[:10]:
        page = np.kron(np.pad(negative, 18, constant_values=255), np.ones((8, 8))) * 0.7
        grey = (page + rng.normal(30, 6, page.shape)).clip(0, 255).astype(np.uint8)
        for layers in ([grey], [grey] * 3, [grey] * 3 + [opaque], [grey] * 3 + [round_]):
            assert least_time(np.dstack(layers), 40) <= 2000, f"{len(layers)} channels"


def test_the_model_s_preparation_is_the_engine_s(engine: Engine) -> None:
    picture = np.full((90, 60), 230, np.uint8)
    picture[20:70, 25:32] = 40
    np.testing.assert_array_equal(engine.prepare(picture), prepare_picture(picture, 28, 28))
    grid = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    resized = prepare_picture(grid, 2, 2, 3, preparation="resize")
    means = grid.reshape(2, 2, 2, 2, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(resized, np.floor(means + 0.5))


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.zeros((3, 3)), "float64, expected"),
        (np.zeros(3, np.uint8), r"shape \(3,\)"),
        (np.zeros((1, 2, 2, 1), np.uint8), r"shape \(1, 2, 2, 1\)"),
        (np.ma.array(np.zeros((2, 2), np.uint8), mask=[[0, 1], [0, 0]]), "masked pixels"),
    ],
)
def test_an_array_that_is_not_a_picture_is_refused(picture: NDArray[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prepare_picture(picture, 28, 28)


def test_errors_of_the_engine(engine: Engine) -> None:
    for picture, status, words in (
        (np.zeros((0, 5), np.uint8), 5, "got 5 x 0 pixels"),
        (np.zeros((5, 5, 5), np.uint8), 5, "got 5 channels"),
        (np.zeros((5, 5), np.uint8), 7, "nothing drawn"),
    ):
        with pytest.raises(EngineError, match=words) as error:
            engine.prepare(picture)
        assert error.value.status == status
    for size in ((0, 28, 1), (28, 4097, 1), (4096, 4096, 4096), (True, 28, 1), (28, 2.0, 1)):
        with pytest.raises(ValueError, match=r"(height|width|channels): got .*, expected a whole"):
            prepare_picture(np.zeros((5, 5), np.uint8), *size)  # type: ignore
    with pytest.raises(ValueError, match="preparation: got 'crop', expected one of"):
        prepare_picture(np.zeros((5, 5), np.uint8), 28, 28, preparation="crop")  # type: ignore


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


def test_all_modes_of_pillow_become_grey_or_rgb() -> None:
    grey = np.array([[0, 255], [51, 102]], np.uint8)
    plain = Image.fromarray(grey)
    np.testing.assert_array_equal(read_picture(encoded(plain)), grey)
    np.testing.assert_array_equal(read_picture(encoded(plain.convert("RGB")))[..., 1], grey)
    np.testing.assert_array_equal(read_picture(encoded(plain.convert("P"))).shape, (2, 2, 3))
    np.testing.assert_array_equal(
        read_picture(encoded(Image.fromarray(grey.astype(np.uint16) * 257))), grey
    )
    dark = encoded(Image.fromarray(grey.astype(np.uint16)))
    assert read_picture(dark).max() == 1  # the scale is that of the type, not of the picture
    for dtype in (np.float32, np.int32):
        with pytest.raises(PictureError, match=r"32 bits per pixel, expected 8 or 16$"):
            read_picture(encoded(Image.fromarray(grey.astype(dtype)), "TIFF"))
    deep = b"P5 2 2 65535\n" + (grey.astype(">u2") * 257).tobytes()
    np.testing.assert_array_equal(read_picture(io.BytesIO(deep)), grey)
    assert read_picture(encoded(plain.convert("LA"))).shape == (2, 2, 2)
    assert read_picture(encoded(plain.convert("RGBA"))).shape == (2, 2, 4)
    assert read_picture(encoded(plain.convert("P"), transparency=0)).shape == (2, 2, 4)
    cmyk = read_picture(encoded(plain.convert("CMYK"), "TIFF"))
    np.testing.assert_allclose(cmyk[..., 0], grey, atol=1)
    two = plain.convert("1", dither=Image.Dither.NONE)
    np.testing.assert_array_equal(read_picture(encoded(two)), [[0, 255], [0, 0]])


def grey_tiff(values: NDArray[np.uint16], bits: int, photometric: int) -> io.BytesIO:
    """Return a TIFF of one strip with `bits` per pixel."""
    height, width = values.shape
    packed = "".join(f"{value:0{bits}b}" for value in values.ravel().tolist())
    strip = int(packed, 2).to_bytes(len(packed) // 8, "big")
    if bits == 16:
        strip = values.astype("<u2").tobytes()
    tags = (256, width), (257, height), (258, bits), (259, 1), (262, photometric)
    tags += (273, 8), (277, 1), (278, height), (279, len(strip))
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    start = 8 + len(strip)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return io.BytesIO(b"II*\0" + struct.pack("<I", start) + strip + directory)


@pytest.mark.parametrize("bits", [12, 16])
def test_the_range_of_a_grey_tiff_is_that_of_its_bits(bits: int) -> None:
    grey = np.array([[0, 255], [51, 102]], np.uint8)
    values = np.rint(grey / 255 * (2**bits - 1)).astype(np.uint16)
    np.testing.assert_array_equal(read_picture(grey_tiff(values, bits, 1)), grey)


def test_a_tiff_whose_0_is_white_is_inverted() -> None:
    grey = np.array([[0, 255], [51, 102]], np.uint8)
    values = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_picture(grey_tiff(values, 16, 0)), 255 - grey)


def test_a_transparent_value_of_16_bits_becomes_alpha() -> None:
    values = Image.fromarray(np.array([[0, 8000], [1, 65535]], np.uint16))
    picture = read_picture(encoded(values, transparency=0))
    np.testing.assert_array_equal(picture[..., 0], [[0, 31], [0, 255]])
    np.testing.assert_array_equal(picture[..., 1], [[0, 255], [255, 255]])


@pytest.mark.parametrize("mode", ["RGB", "I;16", "P"])
def test_the_strips_of_a_large_picture_fit(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    if mode == "I;16":
        picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    elif mode == "P":
        picture = picture.quantize(8)
    whole = read_picture(encoded(picture))
    monkeypatch.setattr("mnist_mamba.engine.pictures.STRIP", 10)
    np.testing.assert_array_equal(read_picture(encoded(picture)), whole)


PEAK = """
import re, sys
from pathlib import Path
from mnist_mamba.engine.pictures import read_picture
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
read_picture(sys.argv[1])
before = peak()
height, width = read_picture(sys.argv[2]).shape[:2]
print((peak() - before) / (height * width))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("mode", "kind", "limit", "options"),
    [
        ("I;16", "PNG", 6, {}),
        ("CMYK", "JPEG", 14, {"progressive": True}),
        ("RGBA", "PNG", 10, {}),
        ("P", "PNG", 10, {"transparency": 0}),
        ("RGB", "TIFF", 10, {"compression": "tiff_deflate"}),
        ("RGB", "JPEG", 12, {"progressive": True, "subsampling": 0}),
        ("RGBA", "WEBP", 20, {"lossless": True}),
    ],
)
def test_the_memory_of_a_small_file_of_a_large_picture(
    tmp_path: Path, mode: str, kind: str, limit: float, options: dict[str, Any]
) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / "small", kind, **options)
    Image.new(mode, (4000, 4000)).save(tmp_path / "large", kind, **options)
    words = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= limit


def test_no_reader_that_starts_a_program_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eps = encoded(Image.new("L", (9, 9)), "EPS").getvalue()
    with pytest.raises(PictureError, match=f"^unknown format; expected {', '.join(FORMATS)}$"):
        read_picture(io.BytesIO(eps))
    (tmp_path / "a.png").write_bytes(eps)
    assert main(["predict", "--model", str(MODEL), str(tmp_path / "a.png")]) == 5
    assert "a.png: unknown format; expected PNG, JPEG" in capsys.readouterr().err


def test_exif_orientation_and_the_first_frame() -> None:
    wide = Image.fromarray(np.zeros((2, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert read_picture(encoded(wide, "JPEG", exif=exif)).shape == (3, 2)
    frames = [Image.fromarray(np.full((2, 2), value, np.uint8)) for value in (0, 255)]
    first = read_picture(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert first[..., 0].max() == 0


def test_a_damaged_picture_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        content = encoded(Image.fromarray(noise), kind).getvalue()
        for size in (0, 9, 30, len(content) // 2):
            with pytest.raises(PictureError, match=r"expected (a complete picture|PNG, JPEG)"):
                read_picture(io.BytesIO(content[:size]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(PictureError, match="decompression bomb"):
        read_picture(encoded(Image.fromarray(noise)))


def test_the_command_names_broken_pictures_and_answers_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stroke = np.full((50, 40, 3), 240, np.uint8)
    stroke[10:40, 18:23] = 20
    Image.fromarray(stroke).save("one.png")
    Image.fromarray(stroke[:5]).save("blank.png")
    Path("text.png").write_text("not a picture", encoding="utf-8")
    command = ["predict", "--model", str(MODEL)]
    assert main([*command, "one.png", "one.png", "--show"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("one.png: 1  ")
    assert len(out) == 2 * 29
    assert "@@" in out[14]
    assert main([*command, "blank.png", "text.png", "missing.png", "one.png", "--json"]) == 7
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["file"], result["prediction"]) == ("one.png", 1)
    assert result["picture"] == {"width": 40, "height": 50, "channels": 3}
    errors = err.splitlines()
    assert [line.split(": ")[1] for line in errors] == ["blank.png", "text.png", "missing.png"]
    assert "nothing drawn" in errors[0]
    assert main([*command, "text.png"]) == 5
    assert main([*command, "missing.png"]) == 3
    assert main(["predict", "one.png"]) == 0  # by the shipped model


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_a_fifo_is_not_waited_for_and_a_name_does_not_act_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(fifo := tmp_path / "pipe.png")
    (text := tmp_path / "a\x1b[31m\n\x9b.png").write_text("not a picture", encoding="utf-8")
    stroke = np.full((50, 40), 240, np.uint8)
    stroke[10:40, 18:23] = 20
    Image.fromarray(stroke).save(named := tmp_path / "a\x07.png")
    assert main(["predict", *map(str, (fifo, text, named))]) == 5
    out, err = capsys.readouterr()
    assert out.startswith(rf"{tmp_path}/a\x07.png: 1  ")
    assert err.splitlines() == [
        f"error: {fifo}: not a regular file",
        rf"error: {tmp_path}/a\x1b[31m\n\x9b.png: unknown format; expected {', '.join(FORMATS)}",
    ]


def test_the_compiled_library_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding it takes a hundred times as long as a small picture."""
    picture = np.eye(40, dtype=np.uint8) * 255
    first = prepare_picture(picture, 28, 28)
    monkeypatch.setattr(binding, "build_library", None)
    np.testing.assert_array_equal(prepare_picture(picture, 28, 28), first)


def test_a_folder_of_pictures_as_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stroke = np.full((50, 40), 240, np.uint8)
    stroke[10:40, 18:23] = 20
    names = (".home/set/b,2.png", ".home/set/a/1.png", ".home/set/.hidden.png", "alone.png")
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stroke).save(name)
    Path(".home/set/text").write_text("not a picture", encoding="utf-8")
    assert main(["predict", "--csv", ".home/set", "alone.png"]) == 5
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["file"] for row in rows] == [names[1], names[0], "alone.png"]
    assert [(row["prediction"], row["class"]) for row in rows] == [("1", "1")] * 3
    assert 0.5 < float(rows[0]["probability"]) <= 1
    assert err.startswith("error: .home/set/text: unknown format")
    Path("empty").mkdir()
    assert main(["predict", "empty"]) == 3
    assert capsys.readouterr().err == "error: empty: not a regular file\n"
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "--csv", "--show", "alone.png"])
    assert "--csv: got --show" in capsys.readouterr().err


def test_names_outside_the_encoding_and_a_second_stdin(tmp_path: Path) -> None:
    file = decode(MODEL.read_bytes())
    names = tuple(f"größe {label} ≥" for label in range(10))
    (tmp_path / "m.bin").write_bytes(encode(dataclasses.replace(file, class_names=names)))
    picture = np.full((50, 40), 240, np.uint8)
    picture[10:40, 18:23] = 20
    words = [sys.executable, "-m", "mnist_mamba", "predict", "--model", str(tmp_path / "m.bin")]

    def predict(*pictures: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*words, *pictures],
            input=encoded(Image.fromarray(picture)).getvalue(),
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            check=False,
        )

    done = predict("-")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(rb"-: gr\xf6\xdfe 1 \u2265  ")
    done = predict("-", "-")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"got - twice, expected it once" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
@pytest.mark.parametrize(
    ("pictures", "streams", "code", "error"),
    [
        ("one.png", ">&-", 3, "error: stdout: Bad file descriptor"),
        ("one.png", ">/dev/full", 3, "error: stdout: No space left on device"),
        ("one.png", "2>&-", 0, ""),
        ("- one.png", "<&-", 3, "error: -: Bad file descriptor"),
        ("text.png one.png", "2>&-", 5, ""),
        ("text.png one.png", "2>/dev/full", 5, ""),
    ],
)
def test_closed_and_full_streams(
    tmp_path: Path, pictures: str, streams: str, code: int, error: str
) -> None:
    stroke = np.full((50, 40), 240, np.uint8)
    stroke[10:40, 18:23] = 20
    Image.fromarray(stroke).save(tmp_path / "one.png")
    (tmp_path / "text.png").write_text("not a picture", encoding="utf-8")
    words = shlex.join([sys.executable, "-m", "mnist_mamba", "predict", "--model", str(MODEL)])
    done = subprocess.run(
        ["sh", "-c", f"{words} {pictures} {streams}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (code, error)
    assert done.stdout.startswith("one.png: 1  ") == (">" not in streams.removeprefix("2>"))


def test_binary_pgm_and_ppm_need_no_pillow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rng = np.random.default_rng(20)
    files = {}
    for kind, shape in (("P5", (7, 5)), ("P6", (7, 5, 3))):
        header = f"{kind}\n# a comment\n5 # another\n7 255\n".encode()
        files[tmp_path / kind] = header + rng.integers(0, 256, shape, np.uint8).tobytes()
    expected = {}
    for path, data in files.items():
        path.write_bytes(data)
        expected[path] = read_picture(path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    for path, data in files.items():
        np.testing.assert_array_equal(read_picture(path), expected[path])
        path.write_bytes(data[:-1])
        with pytest.raises(PictureError, match=r"5 x 7 pixels of [13] bytes in .* complete"):
            read_picture(path)
    with pytest.raises(ModuleNotFoundError, match="pip install pillow"):
        read_picture(io.BytesIO(b"\x89PNG\r\n\x1a\n"))


def test_no_compiler_is_an_error_of_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mnist_mamba", "predict", "--model", MODEL, "one.png"],
        env={**os.environ, "MNIST_MAMBA_CACHE": str(tmp_path), "CC": str(tmp_path / "cc")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: C compiler '{tmp_path / 'cc'}' not found")
