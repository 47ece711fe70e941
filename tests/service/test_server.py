"""The service as a process of its own: how it starts, ends, and shares a port."""

import json
import os
import pickle
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import httpx2
import numpy
import pytest

import focaldet
from focaldet.cli import main
from focaldet.errors import ConfigError
from focaldet.service.options import DRAIN_SECONDS, ServiceOptions
from focaldet.service.server import _reserve, share_cores
from tests.service.services import bright_predictor, encode


@contextmanager
def process_of(*words):
    """A started service: the process and its address, the first word with `http` that it prints."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    try:
        while "http" not in (line := process.stdout.readline()):
            assert line, "the service ended before it was ready"
        yield process, next(word for word in line.split() if word.startswith("http"))
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_sigterm_ends_it_after_accepted_requests_are_answered():
    """Three requests of .4 s each and a body that never ends: the three are answered, the process ends in time."""
    with process_of("-m", "tests.service.services", "0.4") as (process, address):
        answers = []

        def post():
            answer = httpx2.post(f"{address}/predict", content=encode(), timeout=30)
            answers.append((answer.status_code, answer.headers.get("connection")))

        assert httpx2.get(f"{address}/healthz").json() == {"status": "ok"}
        threads = [threading.Thread(target=post) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        for thread in threads:
            thread.join(20)
        assert answers == [(200, "close")] * 3  # so that no client sends its next request into the end
        assert process.wait(20) == 0
        assert time.monotonic() - started < 10


def test_a_request_that_outlasts_the_end_is_told_to_come_back():
    """A detector that takes a minute: after the time to drain its clients get 503, and the process ends."""
    with process_of("-m", "tests.service.services", "60", "1") as (process, address):
        answers = []

        def post():
            answers.append(httpx2.post(f"{address}/predict", content=encode(), timeout=30))

        assert httpx2.get(f"{address}/healthz", timeout=30).json() == {"status": "ok"}
        threads = [threading.Thread(target=post) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        for thread in threads:
            thread.join(20)
        assert [(each.status_code, "retry-after" in each.headers) for each in answers] == [(503, True)] * 3
        assert process.wait(20) == 0
        assert time.monotonic() - started < 5


@pytest.mark.skipif(sys.platform != "linux", reason="the port is shared otherwise")
def test_each_process_has_a_socket_of_its_own_on_the_port():
    reserved = _reserve(ServiceOptions(port=0, workers=2))
    others = [pickle.loads(ForkingPickler.dumps(reserved)) for _ in range(2)]
    assert {each.getsockname() for each in others} == {reserved.getsockname()}
    for each in others:
        each.listen()
    with pytest.raises(ConfigError, match="cannot listen"):
        _reserve(ServiceOptions(port=reserved.getsockname()[1], workers=2))
    accepted = [0, 0]
    for each in others:
        each.setblocking(False)
    clients = [socket.create_connection(reserved.getsockname()) for _ in range(40)]
    for index, each in enumerate(others):
        with suppress(BlockingIOError):
            while True:
                each.accept()[0].close()
                accepted[index] += 1
    assert (sum(accepted), min(accepted) > 0) == (40, True)
    for each in (reserved, *others, *clients):
        each.close()


def test_processes_share_the_cores_that_a_container_may_use(monkeypatch):
    seen = []
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    monkeypatch.setattr("torch.set_num_threads", seen.append)
    monkeypatch.setattr("focaldet.cores.usable_cores", lambda: 6)
    monkeypatch.setattr("sys.setswitchinterval", lambda _: None)
    for workers in (1, 2, 12):
        share_cores(workers)
    assert seen == [6, 3, 1]


@pytest.fixture
def at_hand(monkeypatch):
    """A detector for every run."""
    monkeypatch.setattr("focaldet.service.server.ServiceFactory.load", lambda _: bright_predictor())


def test_idle_connections_are_kept_longer_than_proxies_keep_them(monkeypatch, at_hand):
    """Else a proxy sends its next request into a connection that is being closed."""
    seen = []

    def run(self, sockets):
        seen.append(self.config.timeout_keep_alive)
        sockets[0].close()

    monkeypatch.setattr("uvicorn.Server.run", run)
    assert main(["serve", "RUN", "--port", "0"]) == 0
    assert seen[0] > 60


def test_a_port_that_is_taken_is_one_line(capsys, at_hand):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["serve", "RUN", "--port", str(other.getsockname()[1])]) == 2
    error = capsys.readouterr().err
    assert "cannot listen on 127.0.0.1" in error
    assert error.count("\n") == 1


def test_a_run_that_is_not_there_is_one_line(capsys, tmp_path):
    assert main(["serve", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_package_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", "RUN"]) == 2
    assert "pip install 'focaldet[serve]'" in capsys.readouterr().err


def test_the_token_may_stand_in_the_environment(monkeypatch):
    seen = []
    monkeypatch.setattr("focaldet.cli.serve.serve", lambda factory, ready: seen.append(factory))
    monkeypatch.setenv("FOCALDET_TOKEN", "from the environment")
    assert main(["serve", "RUN", "--queue", "9", "--size", "320", "--batch-size", "2"]) == 0
    (factory,) = seen
    assert (factory.options.token, factory.options.queue, factory.options.host) == (
        "from the environment",
        9,
        "127.0.0.1",
    )
    assert factory.inference == {"size": 320, "batch_size": 2}
    assert DRAIN_SECONDS < 10


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_token_in_the_environment_is_refused(monkeypatch, capsys, text):
    """Else a variable that somebody forgot to fill would open the service to everybody."""
    monkeypatch.setattr("focaldet.cli.serve.serve", lambda *_, **__: None)
    monkeypatch.setenv("FOCALDET_TOKEN", text)
    assert main(["serve", "RUN"]) == 2
    assert "FOCALDET_TOKEN: is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "is_said"),
    [
        (["--host", "0.0.0.0"], True),
        (["--host", "::"], True),
        (["--host", "0.0.0.0", "--token", "long enough"], False),
        (["--host", "::1"], False),
        (["--host", "localhost"], False),
        ([], False),
    ],
)
def test_a_service_that_others_reach_without_a_token_says_so(monkeypatch, capsys, words, is_said):
    monkeypatch.delenv("FOCALDET_TOKEN", raising=False)
    monkeypatch.setattr("focaldet.cli.serve.serve", lambda factory, ready: ready("http://x:1", "Predictor()"))
    assert main(["serve", "RUN", *words]) == 0
    assert ("no token is set" in capsys.readouterr().out) == is_said


def readme_line(start):
    """The words of the first line of the README's commands that begins so."""
    lines = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    return shlex.split(next(line for line in lines if line.startswith(start)), comments=True)


def replace_words(words, changes):
    return [changes.get(word, word) for word in words]


def ask_with_curl(served):
    """What the service answers to the README's curl, all detections."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl on this machine")
    serve, post = readme_line("focaldet serve"), readme_line("curl -F")
    with process_of("-m", *replace_words(serve, {"8000": "0", "runs/cells": served})) as (_, address):
        url = post[-1].replace("http://127.0.0.1:8000", address) + "?score=0"
        done = subprocess.run([curl, "--silent", *post[1:-1], url], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["predictions"]


def require_detections(predictions, expected):
    """The same classes, scores and boxes in the same order, and at least one."""
    assert len(expected) > 0
    assert [row["class"] for row in predictions] == expected.labels.tolist()
    assert [row["confidence"] for row in predictions] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    boxes = numpy.array([[row["box"][side] for side in ("x1", "y1", "x2", "y2")] for row in predictions])
    assert numpy.abs(boxes - expected.boxes.numpy()).max() < 0.05


def test_the_readme_s_serve_and_curl_answer_what_predict_does(tiny_run, demo_data, tmp_path, monkeypatch):
    shutil.copytree(tiny_run, tmp_path / "runs" / "cells")
    shutil.copy(next((demo_data / "images").glob("test_*.png")), tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    require_detections(ask_with_curl("runs/cells"), focaldet.load("runs/cells").predict("image.jpg"))


@pytest.mark.prove
def test_the_lines_of_the_readme_from_train_to_curl(demo_data, tmp_path, monkeypatch):
    """An epoch of a tiny network; of the file, which computes in fp32, the answer is that of the run in fp32."""
    shutil.copy(next((demo_data / "images").glob("test_*.png")), tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    tiny = {"width": "32", "head-depth": "1", "norm": "batch", "detect.score-threshold": "0"}
    overrides = [word for name, value in tiny.items() for word in (f"--architecture.{name}", value)]
    train = replace_words(
        readme_line("focaldet train   DIR"), {"DIR": str(demo_data), "W": "none", "24": "1", "320": "64"}
    )
    export = replace_words(readme_line("focaldet export"), {"DIR": str(demo_data)})
    assert (train[-1], export[2:5]) == ("runs/cells", ["runs/cells", "--out", "cells.onnx"])
    subprocess.run([sys.executable, "-m", *train, *overrides], check=True)
    subprocess.run([sys.executable, "-m", *export], check=True)
    expected = focaldet.load("runs/cells", precision="fp32").predict("image.jpg")
    require_detections(ask_with_curl("cells.onnx"), expected)


@pytest.mark.prove
def test_processes_share_a_port_and_a_slow_body_does_not_hold_their_end(tiny_run, demo_data):
    image = next((demo_data / "images").glob("*.png")).read_bytes()
    with process_of("-m", "focaldet", "serve", str(tiny_run), "--port", "0", "--workers", "2") as (process, address):
        seen = set()
        for _ in range(200):
            try:
                with httpx2.Client(timeout=60) as client:
                    assert client.post(f"{address}/predict", content=image).status_code == 200
                    seen.add(client.get(f"{address}/metrics").status_code)
                break
            except httpx2.TransportError:
                time.sleep(0.5)
        assert seen == {200}
        host, port = address.removeprefix("http://").split(":")
        slow = socket.create_connection((host, int(port)))
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
        time.sleep(0.5)
        started = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - started < 10.5
        slow.close()
