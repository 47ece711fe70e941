"""What the paths of the service answer: detections as `predict` has them, refusals, and nothing about its machine."""

import base64
import json
import re
import time
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient

from focaldet.errors import ConfigError
from focaldet.prediction import Predictor
from focaldet.service.app import build_service
from focaldet.service.options import ServiceOptions
from focaldet.types import Resize
from focaldet.weights.thresholds import ScoreThreshold, ScoreThresholds
from tests.evaluation.cases import BrightDetector, make_image
from tests.service.services import SECRET, bright_predictor, encode

LEAKS = re.compile(r"/(home|root|tmp|usr|work|var|opt)\b|Traceback|site-packages|\.py\b|0x[0-9a-f]{6}|BytesIO")


@pytest.fixture(scope="module")
def client():
    options = ServiceOptions(max_megabytes=0.2, max_megapixels=0.05, queue=4)
    with TestClient(build_service(bright_predictor(), options), raise_server_exceptions=False) as client:
        yield client


def test_an_image_is_answered_in_the_usual_shape(client):
    answer = client.post("/predict", content=encode()).json()
    assert answer["image"] == {"width": 64, "height": 48}
    box = {"x1": 8.0, "y1": 8.0, "x2": 24.0, "y2": 40.0}
    assert answer["predictions"] == [{"box": box, "name": "cell", "class": 0, "confidence": 1.0}]
    assert {*answer["time_ms"]} == {"decode", "wait", "detect", "total"}
    assert answer["time_ms"]["total"] >= answer["time_ms"]["detect"] > 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_detections_are_those_of_predict_on_the_file(client, tmp_path, kind):
    """A turned JPEG too: boxes are pixels of the upright image."""
    image = make_image(size=(90, 170), box=(10, 20, 150, 60))
    settings = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}
    data = encode(image, kind, **(settings if kind == "JPEG" else {}))
    path = tmp_path / "image"
    path.write_bytes(data)
    expected = bright_predictor().predict(path)
    answer = client.post("/predict", content=data).json()
    assert len(expected) == 1
    assert [[*row["box"].values()] for row in answer["predictions"]] == expected.boxes.tolist()
    assert [row["confidence"] for row in answer["predictions"]] == expected.scores.tolist()
    assert answer["image"]["height"] == (170 if kind == "JPEG" else 90)


def test_a_form_is_taken_with_its_fields(client):
    form = {"files": {"file": ("../../etc/x.png", encode())}}
    assert len(client.post("/predict", **form).json()["predictions"]) == 1
    assert len(client.post("/predict", data={"classes": "dog"}, **form).json()["predictions"]) == 0
    assert len(client.post("/predict", data={"classes": ["dog", "cell"]}, **form).json()["predictions"]) == 1
    assert len(client.post("/predict?classes=dog,cell", **form).json()["predictions"]) == 1


def test_detections_below_the_score_are_left_out(client):
    data = encode(make_image(red=220))
    found = client.post("/predict?score=0.8", content=data).json()["predictions"]
    assert found[0]["confidence"] == pytest.approx(220 / 255)
    assert client.post("/predict?score=0.9", content=data).json()["predictions"] == []


def test_without_a_score_the_scores_that_the_weights_keep_are_taken():
    """As `focaldet predict` does: that of the class, in both protocols and at first on the page."""
    overall, cell = (ScoreThreshold(name, score, 0.9, 0.9, 0.9, 50) for name, score in ((None, 0.52), ("cell", 0.9)))
    kept = ScoreThresholds(overall, (cell,))
    predictor = Predictor(BrightDetector(), device="cpu", precision="fp32", thresholds=kept)
    bright, dim = (encode(make_image(red=red)) for red in (250, 220))  # scores of .98 and .86
    with TestClient(build_service(predictor, ServiceOptions())) as client:

        def count(data, **settings):
            texts = [base64.b64encode(data).decode()]
            tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": texts}
            form = {"inputs": [tensor], "outputs": [{"name": "count"}], "parameters": settings}
            (infer,) = client.post("/v2/models/focaldet/infer", json=form).json()["outputs"]
            predicted = client.post("/predict", content=data, params=settings).json()["predictions"]
            assert infer["data"] == [len(predicted)]
            return len(predicted)

        assert (count(bright), count(dim), count(dim, score=0.8), count(bright, score=0.99)) == (1, 0, 1, 0)
        assert client.get("/info").json()["score"] == 0.52


@pytest.mark.parametrize(
    ("request_of", "status", "message"),
    [
        (lambda: {"content": b""}, 422, "no image"),
        (lambda: {"content": b"<html>"}, 422, "not an image in a known format"),
        (lambda: {"content": encode(kind="JPEG")[:-200]}, 422, "is damaged"),
        (lambda: {"content": encode()[:60]}, 422, "is damaged"),
        (lambda: {"content": bytes(200_001)}, 413, "more than 0.2 MB"),
        (lambda: {"content": encode(torch.zeros(3, 250, 250, dtype=torch.uint8))}, 413, "250 × 250 pixels"),
        (lambda: {"content": encode(), "params": {"score": "high"}}, 422, "score must be a number in 0…1"),
        (lambda: {"content": encode(), "params": {"score": "nan"}}, 422, "score must be"),
        (lambda: {"content": encode(), "params": {"classes": "cat"}}, 422, "'cat' is unknown; allowed are cell, dog"),
        (lambda: {"content": encode(), "params": {"url": "http://example.org/a.jpg"}}, 422, "'url' is unknown"),
        (lambda: {"content": encode(), "params": {"conf": "0.5"}}, 422, "'conf' is unknown: it is called score here"),
        (lambda: {"content": b"\0\0\0\x18ftypheic" + bytes(99)}, 422, "is a HEIC image, which cannot be read here"),
        (lambda: {"files": {"image": encode()}}, 422, "the form's field file"),
        (lambda: {"files": [("file", encode()), ("file", encode())]}, 400, "more than one file"),
        (lambda: {"data": {"file": "/etc/passwd"}, "files": {"x": b""}}, 422, "field file"),
        (lambda: {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "form is damaged"),
        (lambda: {"content": b"x", "headers": {"content-encoding": "gzip"}}, 415, "compressed"),
        (lambda: {"content": b"http://example.org/image.jpg"}, 422, "not an image"),
    ],
)
def test_a_request_that_cannot_be_answered_is_told_why(client, monkeypatch, request_of, status, message):
    monkeypatch.setattr("focaldet.data.images._teach_heif", lambda: False)
    answer = client.post("/predict", **request_of())
    assert (answer.status_code, [*answer.json()]) == (status, ["error"])
    assert message in answer.json()["error"]
    assert not LEAKS.search(answer.text)
    assert client.post("/predict", content=encode()).status_code == 200


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_size_that_is_set_rules_and_boxes_are_pixels_of_the_whole_image(monkeypatch, kind):
    """An image that is read reduced, as one above 50 megapixels, is answered in its own pixels, as by `predict`."""
    image = make_image(size=(96, 128), box=(16, 16, 48, 80))
    expected = bright_predictor().predict([image])[0].boxes.tolist()
    monkeypatch.setattr("focaldet.data.images.MAX_PIXELS", 4000)
    options = ServiceOptions(max_megapixels=0.013)
    with TestClient(build_service(bright_predictor(), options)) as client:
        answer = client.post("/predict", content=encode(image, kind, **({"quality": 95} if kind == "JPEG" else {})))
        assert (answer.status_code, answer.json()["image"]) == (200, {"width": 128, "height": 96})
        (row,) = answer.json()["predictions"]
        assert [*row["box"].values()] == pytest.approx(expected[0], abs=4)
        refused = client.post("/predict", content=encode(make_image(size=(100, 140)), kind))
        assert (refused.status_code, "140 × 100 pixels" in refused.json()["error"]) == (413, True)


def test_an_image_that_cannot_be_resized_into_memory_is_refused():
    detector = BrightDetector(resize=Resize(mode="short", size=800, max_size=None))
    predictor = Predictor(detector, device="cpu", precision="fp32")
    with TestClient(build_service(predictor, ServiceOptions()), raise_server_exceptions=False) as client:
        answer = client.post("/predict", content=encode(torch.zeros(3, 1, 60_000, dtype=torch.uint8)))
        assert (answer.status_code, "too long for its other side" in answer.json()["error"]) == (422, True)
        assert not LEAKS.search(answer.text)


def test_memory_that_is_used_up_is_said_with_the_time_to_come_back():
    predictor = bright_predictor()

    def fail(_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory: you tried to allocate 9 bytes")

    predictor.detect_prepared = fail
    with TestClient(build_service(predictor, ServiceOptions()), raise_server_exceptions=False) as client:
        answer = client.post("/predict", content=encode())
        assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)


READY_PATHS = ("/healthz", "/v2/health/ready", "/v2/models/focaldet/ready")


def test_a_service_that_ends_is_not_ready():
    app = build_service(bright_predictor(), ServiceOptions())
    with TestClient(app) as client:
        assert [client.get(path).status_code for path in READY_PATHS] == [200] * 3
        app.state.is_ending = True
        assert [client.get(path).status_code for path in READY_PATHS] == [503] * 3
        assert client.get("/v2/health/live").status_code == 200


def test_no_request_is_taken_before_every_lane_is_warm():
    predictor = bright_predictor()
    warm_up, done = predictor.warm_up, []
    predictor.warm_up = lambda: (time.sleep(0.3), warm_up(), done.append(True))
    app = build_service(predictor, ServiceOptions())
    with TestClient(app) as client:
        assert (len(done) >= 1, app.state.pipeline.is_warm) == (True, True)
        assert client.get("/healthz").status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_service_whose_lane_has_ended_is_not_ready():
    predictor = bright_predictor()

    def end(_):
        raise SystemExit

    predictor.detect_prepared = end
    with TestClient(build_service(predictor, ServiceOptions()), raise_server_exceptions=False) as client:
        assert client.post("/predict", content=encode()).status_code == 500
        assert until(lambda: [client.get(path).status_code for path in READY_PATHS] == [503] * 3)


def until(holds):
    return any(holds() or time.sleep(0.05) for _ in range(100))


def test_a_failure_inside_says_nothing_of_it(caplog):
    predictor = bright_predictor()
    predictor.detect_prepared = lambda _: Path("/root/secret/weights.py").read_text()
    with TestClient(build_service(predictor, ServiceOptions()), raise_server_exceptions=False) as client:
        answer = client.post("/predict", content=encode())
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error"})
    assert "weights.py" in caplog.text  # the log of the service has it


def test_unknown_paths_and_methods_are_refused_in_the_same_form(client):
    assert client.get("/nothing").json() == {"error": "there is nothing at this path"}
    assert client.get("/predict").status_code == 405
    for path in ("/static/../app.py", "/static/index.html", "/static/%2e%2e%2fapp.py"):
        assert client.get(path).status_code == 404


def test_the_token_is_asked_for_where_there_are_answers():
    with TestClient(build_service(bright_predictor(), ServiceOptions(token=SECRET))) as client:
        # The page has a link to /docs, in which a browser sends no token.
        for path in (
            "/",
            "/docs",
            "/openapi.json",
            "/healthz",
            "/v2/health/live",
            "/v2/health/ready",
            "/static/app.js",
        ):
            assert client.get(path).status_code == 200
        for path in ("/info", "/metrics", "/v2", "/v2/models/focaldet"):
            assert client.get(path).status_code == 401
        for sent in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": SECRET}, {"Authorization": "Bearer "}):
            answer = client.post("/predict", content=encode(), headers=sent)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        right = {"Authorization": f"Bearer {SECRET}"}
        assert client.post("/predict", content=encode(), headers=right).status_code == 200


def test_a_token_may_hold_what_looks_percent_encoded():
    token = "100%25 of it"
    with TestClient(build_service(bright_predictor(), ServiceOptions(token=token))) as client:
        for sent, status in ((token, 200), ("100%2525%20of%20it", 200), ("100% of it", 401)):
            assert client.get("/info", headers={"Authorization": f"Bearer {sent}"}).status_code == status


def test_no_class_is_no_restriction_and_a_name_stands_for_all_its_labels(client):
    assert len(client.post("/predict?classes=", content=encode()).json()["predictions"]) == 1
    predictor = Predictor(BrightDetector(names=("cell", "cell")), device="cpu", precision="fp32")
    with TestClient(build_service(predictor, ServiceOptions())) as twice:
        for image in (make_image(), make_image(green=200)):
            assert len(twice.post("/predict?classes=cell", content=encode(image)).json()["predictions"]) == 1


def test_pages_load_nothing_from_elsewhere(client):
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        links = re.findall(r'(?:src|href)="([^"]*)"', page.text)
        assert [link for link in links if "//" in link] == []
    for path in ("/static/app.js", "/static/app.css"):
        assert not re.search(r"https?://|@import", client.get(path).text)


def test_docs_name_every_path_and_limit(client):
    page = client.get("/docs").text
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page
    limits = ("0.2 MB", "0.05 megapixels", "1.5 million values", "Retry-After")
    for text in (*limits, "curl -F file=@image.jpg", "tritonclient"):
        assert text in page


def test_info_has_the_classes_with_the_ids_of_the_data(client):
    info = client.get("/info").json()
    assert [(row["name"], row["id"]) for row in info["classes"]] == [("cell", 7), ("dog", 9)]
    assert all(re.fullmatch("#[0-9a-f]{6}", row["color"]) for row in info["classes"])


def test_metrics_count_answers_by_route(client):
    client.get("/nothing/1")
    client.post("/predict", content=encode())
    text = client.get("/metrics").text
    assert 'focaldet_requests_total{path="other",status="404"}' in text
    assert "/nothing/1" not in text
    (count,) = re.findall(r'focaldet_requests_total\{path="/predict",status="200"\} (\d+)', text)
    assert int(count) >= 1
    assert "focaldet_batch_size_sum" in text


def test_class_names_are_data_and_not_markup():
    names = ("<script>alert(1)</script>", "a,b")
    predictor = Predictor(BrightDetector(names=names), device="cpu", precision="fp32")
    with TestClient(build_service(predictor, ServiceOptions())) as client:
        assert "alert" not in client.get("/").text + client.get("/docs").text
        assert [row["name"] for row in client.get("/info").json()["classes"]] == [*names]
        answer = client.post("/predict", content=encode(), params={"classes": names[0]})
        assert answer.json()["predictions"][0]["name"] == names[0]
        assert client.post("/predict", content=encode(), params={"classes": "a,b"}).json()["predictions"] == []


def test_settings_out_of_range_are_refused():
    for wrong in ({"port": 70000}, {"queue": 0}, {"token": "short"}, {"name": "a/b"}, {"max_megabytes": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ServiceOptions(**wrong)


def test_the_openapi_description_is_plain_json(client):
    description = client.get("/openapi.json").json()
    assert "multipart/form-data" in json.dumps(description["paths"]["/predict"])
    assert not LEAKS.search(json.dumps(description))


def test_the_openapi_description_has_every_status_and_the_body_of_the_protocol(client):
    paths = client.get("/openapi.json").json()["paths"]
    predict, infer = (paths[path]["post"] for path in ("/predict", "/v2/models/{model}/infer"))
    for operation in (predict, infer):
        assert {"400", "401", "408", "413", "415", "422", "503"} <= {*operation["responses"]}
    schema = infer["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["inputs"]
    assert {"name", "shape", "datatype"} == {*schema["properties"]["inputs"]["items"]["required"]}
    assert "$ref" not in json.dumps(infer["requestBody"])
    assert {"model", "Inference-Header-Content-Length"} <= {row["name"] for row in infer["parameters"]}
