"""The model in MLflow: logged once, registered by a promotion, served without PyTorch."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import time
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image
from scipy.special import softmax

from mnist_mamba.atomic_write import write_json
from mnist_mamba.data.idx import write_idx
from mnist_mamba.engine import Engine
from mnist_mamba.export import write_model
from mnist_mamba.model import MambaClassifier
from pipeline.common import paths
from pipeline.common.content_key import file_md5
from pipeline.common.params import load_params
from pipeline.tracking import client as tracking
from pipeline.tracking import model as tracked_model
from pipeline.tracking import run as tracked_run
from pipeline.tracking import serving
from tests.pipeline.conftest import CONFIG
from tests.pipeline.imports import ROOT
from tests.pipeline.project import SMALL, run, set_params, start

STARTS_WITHIN_S = 300
"""Enough for a busy machine; an idle one needs seconds."""


def write_other_model() -> None:
    torch.manual_seed(1)
    write_model(paths.MODEL, MambaClassifier(CONFIG, scan="reference"))


@pytest.fixture(scope="module")
def served_model(engine_files: tuple[Path, Path]) -> serving.EngineModel:
    """The pyfunc with the files that MLflow would pass to it."""
    return load_model(*engine_files)


def load_model(model: Path, library: Path) -> serving.EngineModel:
    loaded = serving.EngineModel()
    loaded.load_context(SimpleNamespace(artifacts={"model": model, "library": library}))
    return loaded


def test_probabilities_are_the_engine_s(
    served_model: serving.EngineModel, engine_files: tuple[Path, Path]
) -> None:
    images = np.random.default_rng(0).random((5, 2, 2), dtype=np.float32)
    answer = served_model.predict(None, images)
    with Engine(engine_files[0]) as engine:
        np.testing.assert_array_equal(
            answer["probabilities"], softmax(engine.logits(images).astype(np.float64), axis=1)
        )
        np.testing.assert_array_equal(answer["prediction"], engine.predict(images))
        names = [engine.class_names[label] for label in answer["prediction"]]
        assert answer["class"].tolist() == names


def test_a_request_has_one_thread(
    engine_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr(serving, "Engine", lambda *paths, **options: opened.append(options))
    artifacts = dict(zip(("model", "library"), engine_files, strict=True))
    serving.EngineModel().load_context(SimpleNamespace(artifacts=artifacts))
    assert opened == [{"threads": 1, "library": engine_files[1]}]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ((1, 0, 1), 7.0, r"inputs\[1\]\[0\]\[1\]: got 7, expected 0 \(background\) to 1; divide"),
        ((0, 1, 0), -0.5, r"inputs\[0\]\[1\]\[0\]: got -0.5, expected 0"),
        ((0, 0, 0), np.nan, r"inputs\[0\]\[0\]\[0\]: got nan, expected 0"),
        ((0, 0, 0), np.inf, r"got inf, expected 0"),
    ],
)
def test_pixels_out_of_range_are_the_caller_s_mistake(
    served_model: serving.EngineModel, place: tuple[int, ...], value: float, words: str
) -> None:
    images = np.zeros((2, 2, 2), np.float32)
    images[place], images[1, 1, 1] = value, 9  # the first wrong one is named
    with pytest.raises(MlflowException, match=words) as error:
        served_model.predict(None, images)
    assert error.value.get_http_status_code() == 400


def test_the_ends_of_the_range_of_pixels_belong_to_it(served_model: serving.EngineModel) -> None:
    images = np.array([[[0, 1], [1, 0]]], np.float32)
    assert served_model.predict(None, images)["prediction"].shape == (1,)


def test_another_shape_is_the_caller_s_mistake(served_model: serving.EngineModel) -> None:
    with pytest.raises(MlflowException, match=r"shape \(1, 3, 2\), expected \(n, 2, 2\)") as error:
        served_model.predict(None, np.zeros((1, 3, 2), np.float32))
    assert error.value.get_http_status_code() == 400


def in_base64(picture: np.ndarray[Any, Any]) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_pictures_in_base64_are_prepared(
    served_model: serving.EngineModel, engine_files: tuple[Path, Path]
) -> None:
    picture = np.array([[0, 0, 200], [40, 90, 255]], np.uint8)
    texts = [in_base64(picture), "data:image/png;base64," + in_base64(picture[:, :2])]
    answer = served_model.predict(None, np.array(texts))
    with Engine(engine_files[0]) as engine:
        prepared = np.array([engine.prepare(picture), engine.prepare(picture[:, :2])])
        np.testing.assert_array_equal(answer["prediction"], engine.predict(prepared))
        np.testing.assert_array_equal(
            served_model.predict(None, prepared)["probabilities"], answer["probabilities"]
        )


def test_a_long_text_does_not_lengthen_the_others(served_model: serving.EngineModel) -> None:
    short = in_base64(np.array([[0, 200], [90, 255]], np.uint8))
    texts = [short] * 200 + [100_000 * "A"]
    tracemalloc.start()
    try:
        with pytest.raises(MlflowException, match=r"inputs\[200\]: unknown format"):
            served_model.predict(None, texts)
        assert tracemalloc.get_traced_memory()[1] < 10e6  # 200 x 100,000 letters take 80 MB
    finally:
        tracemalloc.stop()


def test_no_picture_starts_a_program(served_model: serving.EngineModel) -> None:
    file = io.BytesIO()
    Image.new("L", (9, 9)).save(file, "EPS")
    with pytest.raises(MlflowException, match=r"inputs\[0\]: unknown format; expected PNG"):
        served_model.predict(None, [base64.b64encode(file.getvalue()).decode()])


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["no base64"], r"inputs\[0\]: .*base64"),
        (
            [in_base64(np.zeros((2, 2), np.uint8)), "aGVsbG8="],
            r"inputs\[1\]: unknown format",
        ),
        ([["aGVsbG8="]], r"texts of shape \(1, 1\), expected a list of pictures"),
        ([None], r"inputs\[0\]: got NoneType, expected a picture file in base64$"),
    ],
)
def test_a_broken_picture_is_the_caller_s_mistake(
    served_model: serving.EngineModel, texts: list[Any], words: str
) -> None:
    with pytest.raises(MlflowException, match=words) as error:
        served_model.predict(None, np.array(texts))
    assert error.value.get_http_status_code() == 400


def test_a_blank_picture_is_not_called_damaged(engine_files: tuple[Path, Path]) -> None:
    shipped = load_model(ROOT / "models/mnist_mamba.bin", engine_files[1])
    with pytest.raises(MlflowException, match=r"inputs\[0\]: nothing drawn: .* a digit on it$"):
        shipped.predict(None, [in_base64(np.zeros((9, 9), np.uint8))])


def test_a_model_is_logged_once_and_a_changed_one_again(project: Path) -> None:
    params = load_params()
    tracked_run.upsert(params)
    first = tracked_model.logged_model(params)
    tracked_run.upsert(params)
    assert tracked_model.logged_model(params).model_id == first.model_id
    write_other_model()
    scores = {"accuracy": 0.8, "nll": 0.5, "ece": 0.25, "n_test": 3}
    write_json(paths.METRICS / "eval.json", scores)
    tracked_run.upsert(params)
    second = tracked_model.logged_model(params)
    client, experiment = tracking.connect(params)
    models = client.search_logged_models([experiment])
    assert {model.model_id for model in models} == {first.model_id, second.model_id}
    (run,) = client.search_runs([experiment])
    assert {output.model_id for output in run.outputs.model_outputs} == {
        first.model_id,
        second.model_id,
    }
    assert second.name == params.tracking.model_name
    assert [(metric.key, metric.value) for metric in first.metrics] == [("eval/accuracy", 0.7)]
    assert {metric.key: metric.value for metric in second.metrics} == {
        f"eval/{name}": scores[name] for name in ("accuracy", "nll", "ece")
    }
    test = file_md5(paths.images(paths.PREPARED, "test"))
    assert {(one.dataset_name, one.dataset_digest) for one in second.metrics} == {("test", test)}
    assert len(client.get_metric_history(run.info.run_id, "eval/accuracy")) == 2


def test_each_file_in_a_model_makes_it_another(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, copies = load_params(), tmp_path_factory.mktemp("sources")
    tracked_run.upsert(params)
    model = tracked_model.logged_model(params).model_id
    package = shutil.copytree(tracked_model.PACKAGE, copies / "mnist_mamba")
    serving_file = Path(shutil.copy(tracked_model.SERVING, copies / "serving.py"))
    monkeypatch.setattr(tracked_model, "PACKAGE", package)
    monkeypatch.setattr(tracked_model, "SERVING", serving_file)
    modules = (package / "metrics.py", package / "engine/binding.py")
    for file in (paths.MODEL, paths.ENGINE_LIBRARY, serving_file, *modules):
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        with pytest.raises(tracking.TrackingError, match="no model"):
            tracked_model.logged_model(params)
        file.write_bytes(content)
    assert tracked_model.logged_model(params).model_id == model


def test_a_model_whose_upload_failed_is_logged_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    params = load_params()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifacts", full)
        with pytest.raises(tracking.TrackingError, match=r"disk full.*`make track`"):
            tracked_run.upsert(params)
    with pytest.raises(tracking.TrackingError, match="no model"):
        tracked_model.logged_model(params)
    tracked_run.upsert(params)
    found = tracked_model.logged_model(params)
    client, experiment = tracking.connect(params)
    status = {str(one.status) for one in client.search_logged_models([experiment])}
    assert status == {"FAILED", "READY"}
    folder = Path(found.artifact_location.removeprefix("file://"))
    example = json.loads((folder / "serving_input_example.json").read_text(encoding="utf-8"))
    np.testing.assert_allclose(example["inputs"], np.full((1, 2, 2), 2 / 255), rtol=1e-6)


def test_a_model_that_came_back_is_the_one_promoted(project: Path) -> None:
    """A promotion takes the run's model with the present files, not the newest."""
    params, original = load_params(), paths.MODEL.read_bytes()
    tracked_run.upsert(params)
    first = tracked_model.logged_model(params)
    write_other_model()
    with pytest.raises(tracking.TrackingError, match=r"no model .*`make track`"):
        tracked_model.logged_model(params)  # not logged yet
    tracked_run.upsert(params)
    assert tracked_model.logged_model(params).model_id != first.model_id
    paths.MODEL.write_bytes(original)
    tracked_run.upsert(params)
    assert tracked_model.logged_model(params).model_id == first.model_id
    tracked_model.register(params, "digits", "champion")
    client, _ = tracking.connect(params)
    champion = client.get_model_version_by_alias("digits", "champion")
    assert champion.source == first.model_uri


def test_a_registered_content_has_one_version(project: Path) -> None:
    params = load_params()
    with pytest.raises(tracking.TrackingError, match=r"no model .*`make track`"):
        tracked_model.register(params, "digits", "champion")
    tracked_run.upsert(params)
    client, _ = tracking.connect(params)
    assert not client.search_registered_models()  # tracking alone registers nothing
    assert "MLFLOW_TRACKING_URI" not in os.environ
    version = tracked_model.register(params, "digits", "champion")
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert tracked_model.register(params, "digits", "champion") == version == "1"
    champion = client.get_model_version_by_alias("digits", "champion")
    assert champion.source == tracked_model.logged_model(params).model_uri
    set_params(project, {**SMALL, "train.lr": 0.1})
    other = load_params()
    tracked_run.upsert(other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")  # as good as not set
        assert tracked_model.register(other, "digits", "champion") == "2"
        assert os.environ["MLFLOW_TRACKING_URI"] == ""
    assert str(client.get_model_version_by_alias("digits", "champion").version) == "2"
    assert tracked_model.register(params, "digits", "champion") == version
    assert str(client.get_model_version_by_alias("digits", "champion").version) == version
    assert len(client.search_model_versions("name = 'digits'")) == 2


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def post(url: str, body: Any) -> tuple[int, dict[str, Any]]:
    """Post JSON, or bytes unchanged; return status and answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@contextlib.contextmanager
def server(folder: Path, uri: str, **env: str) -> Iterator[Callable[[Any], tuple[int, Any]]]:
    """Run `mlflow models serve`, yield a function that posts to it, and stop the server."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    words = ["-m", uri, "--env-manager", "local", "-p", str(port)]
    process = start(folder, ["mlflow", "models", "serve", *words], **env)
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)
        yield lambda body: post(f"{address}/invocations", body)
    finally:
        with contextlib.suppress(ProcessLookupError):  # uvicorn is a child of mlflow's
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_the_shipped_model_served_without_torch_and_compiler(project: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "models/mnist_mamba.bin", paths.MODEL)
    example = ROOT / "models/example_input.bin"
    image = np.fromfile(example, "<f4").reshape(1, 28, 28)
    info = json.loads(paths.DATA_INFO.read_text(encoding="utf-8"))
    write_json(paths.DATA_INFO, {**info, "height": 28, "width": 28, "n_classes": 10})
    write_idx(paths.images(paths.PREPARED, "test"), np.rint(image * 255).astype(np.uint8))
    params = load_params()
    tracked_run.upsert(params)
    done = run(project, ["make", "-sf", "csrc/engine.mk", "build/plain/mamba"])
    assert done.returncode == 0, done.stderr
    mamba = run(project, ["build/plain/mamba", str(paths.MODEL), str(example), "--json"])
    expected = json.loads(mamba.stdout)

    poison = tmp_path / "poison"
    poison.mkdir()
    for package in ("torch", "mnist_mamba"):  # the model contains its own mnist_mamba
        (poison / f"{package}.py").write_text(
            f"raise ImportError('{package} cannot be imported here')\n", encoding="utf-8"
        )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    uri = tracked_model.logged_model(params).model_uri
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db", "CC": "false"}
    # Nothing can be compiled, as there is neither a compiler nor a cached library.
    env |= {"PYTHONPATH": str(poison), "MNIST_MAMBA_CACHE": str(elsewhere)}
    with server(elsewhere, uri, **env) as ask:
        status, answer = ask({"inputs": image.tolist()})
        assert status == 200
        assert answer["predictions"]["prediction"] == [expected["prediction"]]
        assert answer["predictions"]["class"] == [expected["class"]]
        (probabilities,) = answer["predictions"]["probabilities"]
        np.testing.assert_allclose(probabilities, expected["probabilities"], rtol=0, atol=1e-6)
        blank = np.full((50, 40), 240, np.uint8)
        drawn = np.pad(np.kron(255 - image[0] * 200, np.ones((3, 3))), 20, constant_values=255)
        status, answer = ask({"inputs": [in_base64(drawn.astype(np.uint8))]})
        assert (status, answer["predictions"]["prediction"]) == (200, [expected["prediction"]])
        bright, nan = image.copy(), image.copy()
        bright[0, 3, 4], nan[0, 0, 1] = 255, np.nan
        for body, words in (
            ({"inputs": bright.tolist()}, ["inputs[0][3][4]: got 255, expected 0", "divide"]),
            ({"inputs": nan.tolist()}, ["inputs[0][0][1]: got nan, expected 0"]),
            ({"inputs": [[[0, 1], [1, 0]]]}, ["(1, 2, 2)", "expected (n, 28, 28)"]),
            ({"inputs": image[0].tolist()}, ["(28, 28)", "expected (n, 28, 28)", "image[None]"]),
            ({"inputs": [[[0, 1], [1]]]}, ["inhomogeneous shape after 2 dimensions"]),
            ({"inputs": [[["dark"]]]}, ["(1, 1, 1)", "expected a list of pictures in base64"]),
            ({"inputs": ["dark"]}, ["inputs[0]: ", "expected a picture file in base64"]),
            ({"inputs": [in_base64(blank)]}, ["inputs[0]: nothing drawn"]),
            ({"inputs": []}, ["(0,)", "expected (n, 28, 28)"]),
            ({"images": image.tolist()}, ["exactly one of the input fields", "'inputs'"]),
            (b"a picture", ["valid JSON", "a picture"]),
        ):
            status, answer = ask(body)
            assert 400 <= status < 500, body
            for word in words:
                assert word in answer["message"], word
        assert ask({"inputs": image.tolist()})[0] == 200  # the server still runs
