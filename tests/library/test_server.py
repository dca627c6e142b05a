"""`mnist-mamba serve`: what it answers and refuses, under load and at its end."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist_mamba import classify
from mnist_mamba.__main__ import main
from mnist_mamba.engine import Engine

WHY = "needs starlette, uvicorn and httpx2: pip install -c constraints.txt -e '.[test]'"
testclient = pytest.importorskip("starlette.testclient", reason=WHY)
server = pytest.importorskip("mnist_mamba.server", reason=WHY)

ROOT = Path(__file__).parents[2]
IMAGE = np.fromfile(ROOT / "models/example_input.bin", "<f4").reshape(28, 28)
JSON = {"content-type": "application/json"}
SMALL = server.Limits(body_bytes=50_000, images=3, pixels=20_000, seconds=0.1)
SECRET = "the caller's own words"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(ROOT / "models/mnist_mamba.bin", threads=1) as engine:
        yield engine


def client(engine: Engine, limits: server.Limits | None = None) -> testclient.TestClient:
    return testclient.TestClient(server.application(engine, limits), raise_server_exceptions=False)


def encoded(picture: np.ndarray[Any, Any], kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


SEVEN = encoded(np.kron(np.uint8(255 - IMAGE * 200), np.ones((3, 3), np.uint8)))
TEXT = base64.b64encode(SEVEN).decode()


def body(*inputs: Any) -> bytes:
    return json.dumps({"inputs": inputs}).encode()


def test_images_are_answered_as_the_engine_does(engine: Engine) -> None:
    other = np.rot90(IMAGE)
    sent = body(IMAGE.tolist(), other.tolist())
    answer = client(engine).post("/predict", content=sent, headers=JSON).json()["predictions"]
    images = np.stack([IMAGE, other])
    assert [one["probabilities"] for one in answer] == engine.probabilities(images).tolist()
    assert [one["prediction"] for one in answer] == engine.predict(images).tolist()
    assert [one["class"] for one in answer] == [str(one["prediction"]) for one in answer]
    assert [one["members_asked"] for one in answer] == engine.answers(images)[1].tolist()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("image/png", SEVEN),
        ("Image/JPEG; a=b", encoded(np.asarray(Image.open(io.BytesIO(SEVEN))), "JPEG")),
        ("application/json; charset=utf-8", body(TEXT)),
        ("application/json", body("data:image/png;base64," + TEXT)),
        ("application/json", body(IMAGE.ravel().tolist())),
    ],
)
def test_pictures_and_flat_images_are_answered(engine: Engine, kind: str, content: bytes) -> None:
    answer = client(engine).post("/predict", content=content, headers={"content-type": kind})
    assert answer.status_code == 200
    (one,) = answer.json()["predictions"]
    assert one["class"] == "7"


def jpeg_of_many_scans() -> bytes:
    file = encoded(np.zeros((8, 8), np.uint8), "JPEG", progressive=True)
    scan = file[file.rindex(b"\xff\xda") : -2]
    return file[:-2] + 300 * scan + file[-2:]


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (SECRET, "application/json", 400, "body: not JSON: Expecting value: line 1"),
        (b"\xff" + SECRET.encode(), "application/json", 400, "body: not JSON: "),
        (b"[" * 40_000, "application/json", 400, "body: not JSON: maximum recursion depth"),
        (b"1" * 5000, "application/json", 400, "body: not JSON: Exceeds the limit"),
        (json.dumps([SECRET]), "application/json", 400, "body: expected .*inputs"),
        (json.dumps({SECRET: []}), "application/json", 400, "body: expected .*inputs"),
        (json.dumps({"inputs": SECRET}), "application/json", 400, "body: expected .*a list"),
        (body(), "application/json", 400, r"\(0,\), expected \(n, 28, 28\)"),
        (body(SECRET), "application/json", 400, r"inputs\[0\]: .*a picture file in base64"),
        (body(TEXT, 3), "application/json", 400, r"inputs\[1\]: got int among pictures"),
        (body(TEXT, None), "application/json", 400, r"inputs\[1\]: got null, expected an image"),
        (body([[SECRET]]), "application/json", 400, r"inputs: got no array of numbers: .*28, 28"),
        (body([[1], [0, 1]]), "application/json", 400, r"got no array .* different lengths"),
        (body([[10**400]]), "application/json", 400, "got no array of numbers"),
        (body([[0.5, 0.5]]), "application/json", 400, r"\(1, 1, 2\), expected \(n, 28, 28\)"),
        (body([[[1e300]]]), "application/json", 400, r"inputs\[0\]\[0\]\[0\]\[0\]: got inf"),
        ('{"inputs": [[[NaN]]]}', "application/json", 400, r"got nan, expected 0 .* to 1"),
        (body([[0.5, 1, 3], [9]]), "application/json", 400, "rows of different lengths"),
        (body([[0, 1], [3, 9]]), "application/json", 400, r"inputs\[0\]\[1\]\[0\]: got 3, exp"),
        (body((255 * IMAGE).tolist()), "application/json", 400, "expected 0 .* by 255"),
        (body(0, 0, 0, 0), "application/json", 413, "inputs: got 4 images, expected at most 3"),
        (SECRET, "image/png", 400, "unknown format; expected PNG, JPEG"),
        (SEVEN[:-30], "image/png", 400, r"inputs\[0\]: .*expected a complete picture"),
        (encoded(np.zeros((9, 9), np.uint8)), "image/png", 400, "nothing drawn"),
        (encoded(np.zeros((101, 200), np.uint8)), "image/png", 400, "200 x 101 pixels.* 20000"),
        (body(TEXT, TEXT, TEXT), "application/json", 400, r"inputs\[2\]: got 84 x 84 pixels"),
        (jpeg_of_many_scans(), "image/jpeg", 400, "got 30[0-9] scans in a JPEG file"),
        (SECRET, "text/csv", 415, "Content-Type: expected application/json, image/png"),
        (SECRET, "", 415, "Content-Type: expected"),
    ],
)
def test_a_refusal_is_one_line_without_the_input(
    engine: Engine, content: str | bytes, kind: str, status: int, words: str
) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = client(engine, SMALL).post("/predict", content=content, headers=headers)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert re.search(words, error), error
    assert len(error) < 200
    assert "\n" not in error
    assert SECRET not in error


def test_other_addresses_and_methods(engine: Engine) -> None:
    ask = client(engine)
    for answer, status in ((ask.get("/predict"), 405), (ask.get(f"/{SECRET}"), 404)):
        assert answer.status_code == status
        assert list(answer.json()) == ["error"]
        assert SECRET not in answer.text


Message = dict[str, Any]


def call(
    engine: Engine, receive: Callable[[], Any], headers: dict[str, str], limits: server.Limits
) -> tuple[int, str]:
    """Post a body that `receive` sends in parts; return status and error."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(server.application(engine, limits)(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]


def test_a_body_of_a_declared_size_is_refused_unread(engine: Engine) -> None:
    async def receive() -> Message:
        raise AssertionError("it was read")

    headers = {**JSON, "content-length": "50001"}
    status, error = call(engine, receive, headers, SMALL)
    assert (status, error) == (413, "body: got more than 50000 bytes, expected at most that")


def test_a_body_of_unknown_size_is_read_up_to_the_limit(engine: Engine) -> None:
    read = 0

    async def receive() -> Message:
        nonlocal read
        read += 10_000
        return {"type": "http.request", "body": bytes(10_000), "more_body": True}

    assert call(engine, receive, JSON, SMALL)[0] == 413
    assert read == 60_000


def test_a_body_that_does_not_come_is_given_up(engine: Engine) -> None:
    async def receive() -> Message:
        await asyncio.sleep(60)
        raise AssertionError("it was waited for")

    status, error = call(engine, receive, JSON, SMALL)
    assert (status, error) == (408, "body: got 0 bytes in 0.1 s, expected all of them")


def test_a_body_whose_sender_goes_away(engine: Engine) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    assert call(engine, receive, JSON, SMALL)[0] == 400


def test_requests_run_at_the_same_time_and_a_busy_server_says_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    inside, leave = threading.Barrier(3), threading.Event()

    def slow(*words: Any) -> list[dict[str, Any]]:
        inside.wait(30)
        assert leave.wait(30)
        return classify.classify(*words)

    monkeypatch.setattr(server, "classify", slow)
    statuses: list[int] = []
    with client(engine, SMALL) as ask:

        def post() -> None:
            answer = ask.post("/predict", content=body(IMAGE.tolist()), headers=JSON)
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=post) for _ in range(2)]
        for thread in threads:
            thread.start()
        inside.wait(30)  # both are in
        assert ask.get("/health").status_code == 200
        assert "mnist_mamba_requests_in_progress 2" in ask.get("/metrics").text
        post()
        assert statuses == [503]
        leave.set()
        for thread in threads:
            thread.join()
    assert statuses == [503, 200, 200]


def test_an_unexpected_error_tells_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(server, "classify", fail)
    answer = client(engine).post("/predict", content=body(IMAGE.tolist()), headers=JSON)
    assert answer.status_code == 500
    assert answer.json() == {"error": "internal error: see the server's log"}


def test_health_and_metrics(engine: Engine) -> None:
    ask = client(engine)
    for sent in (body(IMAGE.tolist(), IMAGE.tolist()), body(SECRET), body(SECRET)):
        ask.post("/predict", content=sent, headers=JSON)
    health = ask.get("/health").json()
    assert health["status"] == "ok"
    assert health["model"]["crc32"] == f"{engine.info['crc32']:08x}"
    assert health["model"]["classes"] == list("0123456789")
    answer = ask.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['mnist_mamba_requests_total{status="200"}'] == "1"
    assert values['mnist_mamba_requests_total{status="400"}'] == "2"
    assert values["mnist_mamba_images_total"] == "2"
    assert values["mnist_mamba_members_asked_total"] == str(2 * engine.answers(IMAGE[None])[1][0])
    assert values["mnist_mamba_requests_in_progress"] == "0"
    assert values["mnist_mamba_request_seconds_count"] == "3"
    assert values['mnist_mamba_request_seconds_bucket{le="+Inf"}'] == "3"
    assert float(values["mnist_mamba_request_seconds_sum"]) > 0


def listens(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=60).close()
    except OSError:
        return False
    return True


def test_sigterm_ends_running_requests_first(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mnist_mamba", "serve", "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        url = process.stdout.readline().split()[0]
        host = url.removeprefix("http://")
        running, large = http.client.HTTPConnection(host), http.client.HTTPConnection(host)
        large.request("POST", "/predict", bytes(9_000_000), {"Content-Type": "image/png"})
        assert large.getresponse().status == 413  # a client that only writes gets it too
        content = body(IMAGE.tolist())
        running.putrequest("POST", "/predict")
        for name, value in (*JSON.items(), ("content-length", str(len(content)))):
            running.putheader(name, value)
        running.endheaders(content[:100])
        deadline = time.monotonic() + 60
        while b"in_progress 1" not in urllib.request.urlopen(f"{url}/metrics", timeout=60).read():
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        while listens(url):
            assert time.monotonic() < deadline
        running.send(content[100:])
        answer = running.getresponse()
        assert json.loads(answer.read())["predictions"][0]["class"] == "7"
        assert process.wait(60) == 0
        assert process.stderr
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_errors_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "serve", lambda *_: pytest.fail("it served"))
    for words in (["--host", "192.0.2.1"], ["--port", "70000"]):
        assert main(["serve", *words]) == 3
        assert re.match(r"error: [\d.]+:\d+: .*; name others by --host", capsys.readouterr().err)
    (tmp_path / "model.bin").touch()
    assert main(["serve", "--model", str(tmp_path / "model.bin")]) == 4
    monkeypatch.delattr("mnist_mamba.server")
    monkeypatch.setitem(sys.modules, "mnist_mamba.server", None)
    assert main(["serve"]) == 3
    assert "pip install 'mnist-mamba[serve]'" in capsys.readouterr().err
