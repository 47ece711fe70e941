"""Limits on a real connection: bodies too large, too slow, shorter or longer than they say, and a full queue."""

import socket
import threading
import time

import httpx2
import pytest

from focaldet.service.options import ServiceOptions
from focaldet.service.pipeline import DetectionPipeline
from focaldet.service.refusals import RefusalError
from tests.service.services import bright_predictor, encode, running_service, slow_predictor


@pytest.fixture(scope="module")
def address():
    with running_service(bright_predictor(), max_megabytes=0.2, body_seconds=0.6) as address:
        yield address


def exchange(address, *parts, pause=0.0):
    """What the server answers to these bytes, until it closes the connection or is silent for long."""
    with socket.create_connection(address, timeout=5) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:  # it has answered and closed
                break
            time.sleep(pause)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
                if b"\r\n\r\n" in answer and b"connection: close" not in answer.lower():
                    break
        except OSError:
            pass
        return answer.decode()


def head(length, *lines):
    return "\r\n".join(
        ["POST /predict HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *lines, "", ""]
    ).encode()


def works(address):
    return httpx2.post(f"http://{address[0]}:{address[1]}/predict", content=encode()).status_code == 200


def test_a_body_that_says_it_is_too_large_is_refused_unread(address):
    assert " 413 " in exchange(address, head(10**12, "Expect: 100-continue"))
    assert works(address)


def test_a_body_that_grows_too_large_is_refused_while_it_comes(address):
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    start = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert " 413 " in exchange(address, start, *[chunk] * 40, b"0\r\n\r\n")
    assert works(address)


def test_a_client_that_sends_all_before_it_reads_sees_the_refusal(address):
    answer = httpx2.post(f"http://{address[0]}:{address[1]}/predict", content=bytes(5_000_000))
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")


def test_a_slow_body_is_given_up(address):
    started = time.monotonic()
    answer = exchange(address, head(1000), *[b"x"] * 30, pause=0.05)
    assert " 408 " in answer
    assert time.monotonic() - started < 4
    assert works(address)


def test_a_body_shorter_than_it_says_is_given_up(address):
    data = encode()
    assert " 408 " in exchange(address, head(len(data) + 10), data)
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(head(len(data) + 10) + data)  # and goes away
    assert works(address)


def test_a_body_longer_than_it_says_is_cut_there(address):
    data = encode()
    assert " 422 " in exchange(address, head(len(data) - 30), data)
    assert works(address)


@pytest.mark.parametrize("line", ["Content-Length: 5\r\nContent-Length: 6", "Content-Length: -1", "Content-Length: ²"])
def test_a_length_that_is_none_is_refused(address, line):
    answer = exchange(address, f"POST /predict HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n".encode())
    assert " 400 " in answer
    assert works(address)


def test_a_full_queue_refuses_with_the_time_to_come_back():
    """One may be inside: another is refused at once, the first is answered, then there is room again."""
    gate, started = threading.Event(), threading.Event()
    predictor = slow_predictor(gate=gate, started=started)
    with running_service(predictor, queue=1, batch_size=1) as (host, port):
        url, answers = f"http://{host}:{port}/predict", []
        first = threading.Thread(target=lambda: answers.append(httpx2.post(url, content=encode(), timeout=30)))
        first.start()
        try:
            assert started.wait(10)
            refused = httpx2.post(url, content=encode(), timeout=10)
            health = httpx2.get(f"http://{host}:{port}/healthz", timeout=10)
        finally:
            gate.set()
            first.join(30)
        assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (503, True)
        assert [answer.status_code for answer in (health, *answers)] == [200, 200]
        assert httpx2.post(url, content=encode(), timeout=10).status_code == 200


def test_what_would_wait_longer_than_an_end_takes_is_refused():
    """Only where others wait: a detector that is slow for everybody still answers."""
    pipeline = DetectionPipeline(bright_predictor(), ServiceOptions(), observe=lambda *_: None)
    pipeline._note_batch(1, 1000.0, is_shared=False)
    pipeline.require_room()
    pipeline.images.take(1)
    with pytest.raises(RefusalError) as refused:
        pipeline.require_room()
    assert (refused.value.status, refused.value.retry_seconds) == (503, 60)
    pipeline.images.give_back(1)
    pipeline.require_room()


def test_one_slow_batch_does_not_refuse_those_behind_it():
    """As the first one of a size is, while a library prepares itself for it."""
    pipeline = DetectionPipeline(bright_predictor(), ServiceOptions(), observe=lambda *_: None)
    pipeline._note_batch(1, 30.0, is_shared=False)
    for _ in range(9):
        pipeline._note_batch(1, 0.1, is_shared=False)
    pipeline.images.take(1)
    pipeline.require_room()
    for _ in range(40):
        pipeline._note_batch(1, 2.0, is_shared=False)
    assert pipeline._seconds_per_image == pytest.approx(2.0, abs=0.1)


def test_a_full_queue_refuses_before_the_body_comes():
    gate, started = threading.Event(), threading.Event()
    predictor = slow_predictor(gate=gate, started=started)
    with running_service(predictor, queue=1, batch_size=1, body_seconds=30) as address:
        url = f"http://{address[0]}:{address[1]}/predict"
        first = threading.Thread(target=lambda: httpx2.post(url, content=encode(), timeout=30))
        first.start()
        try:
            assert started.wait(10)
            begun = time.monotonic()
            for path in ("/predict", "/v2/models/focaldet/infer"):
                lines = head(1000, "Expect: 100-continue").replace(b"/predict", path.encode())
                assert exchange(address, lines).startswith("HTTP/1.1 503")
            assert time.monotonic() - begun < 4
        finally:
            gate.set()
            first.join(30)


def test_the_image_of_a_client_that_has_gone_is_not_computed(monkeypatch):
    monkeypatch.setattr("focaldet.service.pipeline.MOST_LANES", 1)
    gate, started, sizes = threading.Event(), threading.Event(), []
    predictor = slow_predictor(gate=gate, started=started)
    detect = predictor.detect_prepared
    predictor.detect_prepared = lambda images: sizes.append(len(images)) or detect(images)
    with running_service(predictor) as address:
        url = f"http://{address[0]}:{address[1]}"
        first = threading.Thread(target=lambda: httpx2.post(f"{url}/predict", content=encode(), timeout=30))
        first.start()
        try:
            assert started.wait(10)
            for _ in range(3):
                with socket.create_connection(address, timeout=5) as connection:
                    connection.sendall(head(len(encode())) + encode())
                    time.sleep(0.2)  # and goes away
            gone = 'focaldet_requests_total{path="/predict",status="499"} 3'
            assert any(gone in httpx2.get(f"{url}/metrics").text or time.sleep(0.05) for _ in range(100))
        finally:
            gate.set()
            first.join(30)
        assert httpx2.post(f"{url}/predict", content=encode(), timeout=10).status_code == 200
    assert sizes == [1, 1]


def until(post, *, status):
    """The answer once it has this status: the other requests take a moment to arrive."""
    for _ in range(100):
        try:
            answer = post()
        except httpx2.TimeoutException:  # it was let in before the others
            continue
        if answer.status_code == status:
            return answer
    raise AssertionError(status)


def test_bodies_that_are_held_count_together():
    with running_service(bright_predictor(), buffer_megabytes=0.3, body_seconds=3) as (host, port):
        with socket.create_connection((host, port)) as slow:
            slow.sendall(head(250_000) + bytes(200_000))
            url = f"http://{host}:{port}/predict"
            answer = until(lambda: httpx2.post(url, content=bytes(150_000)), status=503)
            assert "retry-after" in answer.headers
            assert httpx2.post(url, content=encode()).status_code == 200
        time.sleep(0.1)
        assert until(lambda: httpx2.post(url, content=bytes(150_000)), status=422)
