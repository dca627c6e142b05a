"""The C engine, as command and through its binding, compared with PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_mamba.config import ModelConfig
from mnist_mamba.data.idx import write_idx
from mnist_mamba.engine import Engine, EngineError
from mnist_mamba.engine.format import WeightType, decode, encode
from mnist_mamba.export import load_model, write_model
from mnist_mamba.model import MambaEnsemble, build_classifier
from mnist_mamba.training.evaluation import predict
from tests.models import ARCHITECTURES, make_images, make_model
from tests.tools import golden

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the command as the pipeline does."""
    out = tmp_path_factory.mktemp("engine")
    make = ["make", "-s", "-f", "csrc/engine.mk", "dvc-engine", f"OUT={out}"]
    subprocess.run(make, cwd=ROOT, check=True)
    return out / "mamba"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


@pytest.mark.parametrize("margin", [0.2, 0.35, 0.5])
def test_command_asks_the_members_that_pytorch_asks(
    margin: float, mamba: Path, tmp_path: Path
) -> None:
    model = make_model("ensemble").eval()
    assert isinstance(model, MambaEnsemble)
    model.exit_margin = margin
    images = make_images(model.config, 200)
    with torch.inference_mode():
        logits, asked = model.answers(images / 255)
    write_model(tmp_path / "model.bin", model)
    write_idx(tmp_path / "images.idx", images.numpy())
    write_idx(tmp_path / "labels.idx", np.zeros(200, np.uint8))
    files = [tmp_path / file for file in ("model.bin", "images.idx", "labels.idx")]
    out = ["--logits", tmp_path / "logits", "--asked", tmp_path / "asked"]
    done = run(mamba, "eval", *files, "--json", *out)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.fromfile(tmp_path / "asked", np.uint8), asked)
    found = np.fromfile(tmp_path / "logits", "<f4").reshape(logits.shape)
    np.testing.assert_allclose(found, logits, rtol=0, atol=2e-6)
    report = json.loads(done.stdout)
    assert report["members_asked"] == [int((asked == count).sum()) for count in (1, 2, 3)]
    assert report["members_asked_mean"] == pytest.approx(float(asked.float().mean()))
    assert len(set(asked.tolist())) > 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_command_agrees_with_pytorch(name: str, mamba: Path, tmp_path: Path) -> None:
    model = make_model(name)
    images = make_images(model.config, 40)
    expected = predict(model, images).numpy()
    labels = expected.argmax(axis=1).astype(np.uint8)
    labels[0] = (labels[0] + 1) % model.config.n_classes
    write_model(tmp_path / "model.bin", model)
    write_idx(tmp_path / "images.idx", images.numpy())
    write_idx(tmp_path / "labels.idx", labels)
    files = [tmp_path / file for file in ("model.bin", "images.idx", "labels.idx")]
    done = run(mamba, "eval", *files, "--json", "--logits", tmp_path / "logits")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["n"], report["correct"]) == (40, 39)
    assert report["accuracy"] == pytest.approx(39 / 40)
    logits = np.fromfile(tmp_path / "logits", "<f4").reshape(expected.shape)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-6)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    stem=st.sampled_from(["patch", "conv", "conv3"]),
    direction=st.sampled_from(["forward", "alternate", "bidirectional", "cross"]),
    pool=st.sampled_from(["mean", "last"]),
    a=st.sampled_from(["free", "tied"]),
    pos_embed=st.booleans(),
    local_conv=st.booleans(),
    d_model=st.integers(1, 35),
    expand=st.integers(1, 3),
    n_layers=st.integers(1, 4),
    d_state=st.integers(1, 19),
    d_conv=st.integers(1, 5),
    n_classes=st.integers(2, 20),
    members=st.integers(1, 3),
    channels=st.integers(1, 4),
    weight_type=st.sampled_from(["float32", "int8"]),
    seed=st.integers(0, 99),
)
def test_any_model_agrees_with_pytorch(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    weight_type: WeightType,
    **dims: int | str | bool,
) -> None:
    # The norm of a single value amplifies a rounding error near 0 by 1 / sqrt(eps).
    eps = 0.1 if dims["d_model"] == 1 else 1e-5
    config = ModelConfig(patch=(1, dims["width"]), stem_width=3, norm_eps=eps, **dims)
    torch.manual_seed(seed)
    model = build_classifier(config, scan="reference").eval()
    images = make_images(config, 5, seed)
    path = tmp_path_factory.mktemp("model") / "model.bin"
    write_model(path, model, weight_type)
    if weight_type == "int8":
        model = load_model(path, scan="reference")
    with Engine(path, threads=2) as engine:
        logits = engine.logits(images.numpy())
        assert engine.class_names == config.resolved_class_names
    np.testing.assert_allclose(logits, predict(model, images).numpy(), rtol=0, atol=2e-6)


def test_the_command_classifies_one_image(mamba: Path, tmp_path: Path) -> None:
    model = make_model("patch_alternate_last")
    image = make_images(model.config, 3)[2:]
    logits = predict(model, image)[0]
    write_model(tmp_path / "model.bin", model)
    (tmp_path / "input.bin").write_bytes((image.numpy() / np.float32(255)).astype("<f4").tobytes())
    done = run(mamba, tmp_path / "model.bin", tmp_path / "input.bin", "--json")
    answer = json.loads(done.stdout)
    assert answer["prediction"] == int(logits.argmax())
    np.testing.assert_allclose(answer["probabilities"], logits.softmax(0), atol=1e-6)
    people = run(mamba, tmp_path / "model.bin", tmp_path / "input.bin")
    assert people.returncode == 0
    assert str(answer["prediction"]) in people.stdout.splitlines()[0]


def test_info_prints_the_dims(mamba: Path) -> None:
    for name in ("conv_tied_odd_image", "rows_odd_dims"):
        config = ARCHITECTURES[name]
        info = json.loads(run(mamba, "info", golden.FOLDER / f"{name}.bin", "--json").stdout)
        assert (info["height"], info["width"]) == (config.height, config.width)
        assert (info["d_inner"], info["length"]) == (config.d_inner, config.length)
        assert info["weight_type"] == "float32"
    path = golden.FOLDER / "int8_weights.bin"
    info = json.loads(run(mamba, "info", path, "--json").stdout)
    assert (info["weight_type"], info["file_bytes"]) == ("int8", path.stat().st_size)


def test_batches_and_threads_give_the_same_bits(tmp_path: Path) -> None:
    model = make_model("wide_panels")
    write_model(tmp_path / "model.bin", model)
    images = make_images(model.config, 17).numpy()
    with Engine(tmp_path / "model.bin", threads=1) as engine:
        one_by_one = np.concatenate([engine.logits(images[i : i + 1]) for i in range(17)])
        floats = engine.logits((images / np.float32(255)).astype(np.float32))
    for threads in (1, 2, 5):
        with Engine(tmp_path / "model.bin", threads=threads) as engine:
            np.testing.assert_array_equal(engine.logits(images), one_by_one)
    np.testing.assert_array_equal(floats, one_by_one)


def test_the_binding_s_errors_name_their_cause(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nowhere") as error:
        Engine(tmp_path / "nowhere")
    assert error.value.status == 3
    (tmp_path / "bad.bin").write_bytes(b"x" * 300)
    with pytest.raises(EngineError, match="magic") as error:
        Engine(tmp_path / "bad.bin")
    assert error.value.status == 4
    with pytest.raises(EngineError, match="expected a built libmamba"):
        Engine(golden.FOLDER / "patch_tied.bin", library=tmp_path / "libmamba.so")
    engine = Engine(golden.FOLDER / "patch_tied.bin")
    with pytest.raises(ValueError, match=r"\(2, 8, 9\), expected \(n, 8, 8\)"):
        engine.logits(np.zeros((2, 8, 9), np.uint8))
    with pytest.raises(ValueError, match="float64"):
        engine.logits(np.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match="outside"):
        engine.logits(np.full((1, 8, 8), np.nan, np.float32))
    assert engine.logits(np.zeros((0, 8, 8), np.uint8)).shape == (0, 10)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.logits(np.zeros((1, 8, 8), np.uint8))


def test_a_file_its_copy_and_its_bytes_are_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    data = (golden.FOLDER / "patch_tied.bin").read_bytes()
    path.write_bytes(data)
    images = np.arange(128, dtype=np.uint8).reshape(2, 8, 8)
    with Engine(path) as engine:
        mapped = engine.logits(images)
    with Engine(path, mmap=False) as engine:
        path.write_bytes(b"")  # a mapped file would end this process
        np.testing.assert_array_equal(engine.logits(images), mapped)
    with Engine(data) as engine:
        np.testing.assert_array_equal(engine.logits(images), mapped)
    with pytest.raises(EngineError, match="crc32"):
        Engine(data[:-1] + b"\1")
    with pytest.raises(EngineError, match="file size: got 0"):
        Engine(b"")


def test_logits_that_overflow_are_an_error(tmp_path: Path) -> None:
    file = decode((golden.FOLDER / "patch_tied.bin").read_bytes())
    file.tensors["head.weight"][:] = 3e38
    file.tensors["head.bias"][:] = 3e38
    with (
        Engine(encode(file)) as engine,
        pytest.raises(EngineError, match=r"logits of image \d+: got a NaN") as error,
    ):
        engine.logits(np.arange(128, dtype=np.uint8).reshape(2, 8, 8))
    assert error.value.status == 4


def test_the_engine_needs_no_pytorch() -> None:
    program = (
        "import sys; sys.path.insert(0, 'src'); sys.modules['torch'] = None; import numpy as np;"
        "from mnist_mamba.engine import Engine;"
        f"engine = Engine({str(golden.FOLDER / 'patch_tied.bin')!r});"
        "print(engine.predict(np.zeros((1, 8, 8), np.uint8)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", golden.NAMES)
def test_golden_files_are_up_to_date(name: str, tmp_path: Path) -> None:
    """If not, run `make golden`. The last bits of the values may differ between machines."""
    golden.write_golden(tmp_path, name)
    fresh, kept = (
        golden.decode((folder / f"{name}.golden").read_bytes())
        for folder in (tmp_path, golden.FOLDER)
    )
    assert [record[:2] for record in fresh] == [record[:2] for record in kept]
    for (tensor, layer, new), (_, _, old) in zip(fresh, kept, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-6, msg=f"{tensor} of layer {layer}")
    model, kept_model = (
        (folder / f"{name}.bin").read_bytes() for folder in (tmp_path, golden.FOLDER)
    )
    file, kept_file = decode(model), decode(kept_model)
    assert (file.header, file.shapes) == (kept_file.header, kept_file.shapes)
    assert file.class_names == kept_file.class_names
    for tensor, values in file.tensors.items():
        np.testing.assert_allclose(values, kept_file.tensors[tensor], rtol=1e-6, atol=1e-7)
