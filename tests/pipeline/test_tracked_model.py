"""The model in MLflow: logged once, registered by a promotion, served without PyTorch."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import sys
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
from pipeline.common.params import Params, load_params
from pipeline.release import champion
from pipeline.tracking import client as tracking
from pipeline.tracking import model as tracked_model
from pipeline.tracking import run as tracked_run
from pipeline.tracking import served, serving
from tests.pipeline.conftest import CONFIG
from tests.pipeline.imports import ROOT
from tests.pipeline.project import SMALL, run, set_params, start
from tests.pipeline.servers import free_port

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
        ([["aGVsbG8="]], r"got no array of numbers: .* or a list of pictures"),
        ([None], r"inputs\[0\]: got null, expected an image or a picture file$"),
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
    package = shutil.copytree(tracked_model.PACKAGE, copies / "mnist_mamba")
    serving_file = Path(shutil.copy(tracked_model.SERVING, copies / "serving.py"))
    monkeypatch.setattr(tracked_model, "PACKAGE", package)
    monkeypatch.setattr(tracked_model, "SERVING", serving_file)
    tracked_run.upsert(params)
    model = tracked_model.logged_model(params).model_id
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
    crowned = client.get_model_version_by_alias("digits", "champion")
    assert crowned.source == first.model_uri


def test_a_registered_content_has_one_version(project: Path) -> None:
    params = load_params()
    with pytest.raises(tracking.TrackingError, match=r"no model .*`make track`"):
        tracked_model.register(params, "digits", "champion")
    tracked_run.upsert(params)
    client, _ = tracking.connect(params)
    assert not client.search_registered_models()  # tracking alone registers nothing
    assert "MLFLOW_TRACKING_URI" not in os.environ
    version, checksums = tracked_model.register(params, "digits", "champion")
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert version == "1"
    assert tracked_model.register(params, "digits", "champion") == (version, checksums)
    crowned = client.get_model_version_by_alias("digits", "champion")
    assert crowned.source == tracked_model.logged_model(params).model_uri
    set_params(project, {**SMALL, "train.lr": 0.1})
    other = load_params()
    tracked_run.upsert(other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")  # as good as not set
        assert tracked_model.register(other, "digits", "champion")[0] == "2"
        assert os.environ["MLFLOW_TRACKING_URI"] == ""
    assert str(client.get_model_version_by_alias("digits", "champion").version) == "2"
    assert tracked_model.register(params, "digits", "champion") == (version, checksums)
    assert str(client.get_model_version_by_alias("digits", "champion").version) == version
    assert len(client.search_model_versions("name = 'digits'")) == 2


def forge(params: Params, folder: Path) -> str:
    """Put a model that writes a file when it is loaded in the place of the run's; return its id."""
    code = (
        "from pathlib import Path\nfrom mlflow.models import set_model\n"
        "from mlflow.pyfunc import PythonModel\n\n\n"
        "class Foreign(PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n        return [0]\n\n\n"
        f"Path({str(folder / 'was-run')!r}).touch()\nset_model(Foreign())\n"
    )
    client, experiment = tracking.connect(params)
    (run,) = client.search_runs([experiment])
    (theirs,) = client.search_logged_models([experiment])
    foreign = client.create_logged_model(
        experiment, name=theirs.name, source_run_id=run.info.run_id, tags=theirs.tags
    )
    local = folder / "foreign"
    shutil.copytree(artifacts_of(theirs), local)
    (local / "serving.py").write_text(code, encoding="utf-8")
    client.log_model_artifacts(foreign.model_id, str(local))
    client.finalize_logged_model(foreign.model_id, "READY")
    return str(foreign.model_id)


def artifacts_of(model: Any) -> Path:
    """Return the folder in which MLflow keeps a model."""
    return Path(model.artifact_location.removeprefix("file://"))


def test_a_forged_model_is_neither_run_nor_crowned(
    project: Path, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Tags, name and run are those of the true model; only the bytes tell the two apart."""
    params, folder = load_params(), tmp_path_factory.mktemp("forger")
    tracked_run.upsert(params)
    true = tracked_model.logged_model(params)
    foreign = forge(params, folder)
    assert tracked_model.logged_model(params).model_id == true.model_id
    assert f"models:/{foreign} is not used: " in caplog.text
    assert "serving.py: got " in caplog.text
    tracked_run.upsert(params)
    tracked_model.register(params, "digits", "champion")
    client, experiment = tracking.connect(params)
    crowned = client.get_model_version_by_alias("digits", "champion")
    assert crowned.source == true.model_uri
    assert len(client.search_logged_models([experiment])) == 2  # `track` logged no third one
    assert not (folder / "was-run").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "code/numpy.py").write_text("raise SystemExit"),
        lambda folder: (folder / "conda.yaml").write_text("name: other\n"),
        lambda folder: (folder / "requirements.txt").unlink(),
        lambda folder: (folder / "MLmodel").write_text("[1, 2"),
        lambda folder: (folder / "MLmodel").write_text(
            (folder / "MLmodel").read_text().replace("code: code", "code: elsewhere")
        ),
    ],
)
def test_each_file_of_a_served_model_is_compared(
    project: Path, change: Callable[[Path], Any]
) -> None:
    """An additional module would be imported first; an environment names packages to install."""
    params = load_params()
    tracked_run.upsert(params)
    first = tracked_model.logged_model(params)
    change(artifacts_of(first))
    with pytest.raises(tracking.TrackingError, match=r"no model .*`make track`"):
        tracked_model.register(params, "digits", "champion")
    tracked_run.upsert(params)
    assert tracked_model.logged_model(params).model_id != first.model_id


def test_lost_files_are_noticed_and_logged_again(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = load_params()
    tracked_run.upsert(params)
    first = tracked_model.logged_model(params)
    tracked_model.register(params, "digits", "champion")
    (artifacts_of(first) / "artifacts" / paths.MODEL.name).unlink()
    with pytest.raises(tracking.TrackingError, match=r"no model .*`make track`"):
        tracked_model.register(params, "digits", "champion")
    tracked_run.upsert(params)
    assert f"{first.model_uri} in MLflow is not the model of these files: " in caplog.text
    assert f"artifacts/{paths.MODEL.name}: missing" in caplog.text
    assert tracked_model.register(params, "digits", "champion")[0] == "2"
    shutil.rmtree(artifacts_of(tracked_model.logged_model(params)))
    tracked_run.upsert(params)  # also if nothing is left of it
    assert tracked_model.register(params, "digits", "champion")[0] == "3"


def test_an_alias_that_leads_elsewhere_after_crowning_is_removed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params()
    tracked_run.upsert(params)
    true = tracked_model.logged_model(params)
    crown = MlflowClient.set_registered_model_alias

    def crown_and_tamper(*arguments: Any) -> None:
        crown(*arguments)
        with (artifacts_of(true) / "serving.py").open("a") as file:
            file.write("raise SystemExit")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", crown_and_tamper)
    with pytest.raises(
        tracking.TrackingError, match=r"champion in MLflow is not .*: serving.py: got"
    ):
        tracked_model.register(params, "digits", "champion")
    client, _ = tracking.connect(params)
    with pytest.raises(MlflowException, match="champion"):
        client.get_model_version_by_alias("digits", "champion")


@pytest.mark.parametrize("restores", [True, False])
def test_the_former_champion_is_back_after_an_error(
    restores: bool,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    params = load_params()
    tracked_run.upsert(params)
    client, _ = tracking.connect(params)
    client.create_registered_model("digits")
    former = client.create_model_version("digits", str(project / "former")).version
    client.set_registered_model_alias("digits", "champion", former)
    check, crown = tracked_model.Bundle.check, MlflowClient.set_registered_model_alias

    def fail(self: tracked_model.Bundle, uri: str) -> str:
        if uri.endswith("@champion"):
            raise MlflowException("the first error")
        return check(self, uri)

    def crown_once(self: MlflowClient, name: str, alias: str, version: str) -> None:
        if str(version) == str(former) and not restores:
            raise MlflowException("the second error")
        crown(self, name, alias, version)

    monkeypatch.setattr(tracked_model.Bundle, "check", fail)
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", crown_once)
    with pytest.raises(tracking.TrackingError, match="the first error"):
        tracked_model.register(params, "digits", "champion")
    found = client.get_model_version_by_alias("digits", "champion").version
    assert (str(found) == str(former)) == restores
    assert ("not restored: the second error" in caplog.text) != restores


def test_a_served_model_must_answer_as_the_engine_does(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, errors = Engine.probabilities, iter((0.0, 1e-9))
    with tracked_model.bundle() as ours:
        monkeypatch.setattr(Engine, "probabilities", lambda *words: true(*words) + next(errors))
        path = list(sys.path)
        with pytest.raises(tracking.TrackingError, match=r"answers .*, expected .* as the engine"):
            served.check_answer("models:/x", ours.folder, ours.folder, ours.image)
        assert sys.path == path


def test_a_server_can_check_the_champion_before_it_serves_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    params, uri = load_params(), "models:/digits@champion"
    list_, folder = Path("models/champion.sha256"), Path("build/champion")
    with pytest.raises(FileNotFoundError, match=r"champion.sha256 not found: .*`make promote`"):
        champion.fetch(uri, list_, folder)
    tracked_run.upsert(params)
    list_.parent.mkdir()
    list_.write_text(tracked_model.register(params, "digits", "champion")[1], encoding="utf-8")
    champion.fetch(uri, list_, folder)
    champion.fetch(uri, list_, folder)  # it replaces the folder
    checked = run(folder, ["sha256sum", "--check", "--strict", "--quiet", str(list_.absolute())])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    # The alias is moved to a model with the same tags.
    client, _ = tracking.connect(params)
    elsewhere = tmp_path_factory.mktemp("forger")
    foreign = forge(params, elsewhere)
    created = client.create_model_version("digits", f"models:/{foreign}", model_id=foreign)
    client.set_registered_model_alias("digits", "champion", created.version)
    before = served.checksums(folder)
    with pytest.raises(
        tracking.TrackingError, match=r"not the model that was promoted: .*Do not load"
    ):
        champion.fetch(uri, list_, folder)
    assert served.checksums(folder) == before
    assert not (elsewhere / "was-run").exists()
    assert [path.name for path in folder.parent.iterdir() if "tmp" in path.name] == []


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_only_a_model_is_replaced_by_the_champion(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(champion.served, "fetch", lambda *_: pytest.fail("it was fetched"))
    list_, folder = tmp_path / "list", tmp_path / "home"
    list_.touch()
    kept = tmp_path / "model" if kind == "link" else folder
    if kind == "file":
        kept.touch()
    else:
        kept.mkdir()
        (kept / ("MLmodel" if kind == "link" else "letter")).touch()
    if kind == "link":
        folder.symlink_to(kept)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="name a new folder by --output"):
        champion.fetch("models:/digits@champion", list_, folder)
    assert sorted(tmp_path.rglob("*")) == before


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
            ({"inputs": [[["dark"]]]}, ["got no array of numbers", "a list of pictures in base64"]),
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
            assert len(answer["message"]) < 250 or "inputs" not in body  # it repeats no input
        assert ask({"inputs": image.tolist()})[0] == 200  # the server still runs
