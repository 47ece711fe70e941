"""The Open Inference Protocol, with NVIDIA's own client and by hand."""

import base64
import json
import struct
import tracemalloc

import numpy
import pytest
from starlette.testclient import TestClient

from focaldet.service import inference_protocol as protocol
from focaldet.service.answers import SelectionReader
from focaldet.service.app import build_service
from focaldet.service.options import ServiceOptions
from focaldet.service.refusals import RefusalError
from tests.evaluation.cases import make_image
from tests.service.services import bright_predictor, encode, running_service

INFER = "/v2/models/focaldet/infer"
SIZES = ((48, 64), (60, 80))


def images():
    return [make_image(), make_image(size=(60, 80), box=(0, 0, 32, 32), green=200), make_image(red=0)]


@pytest.fixture(scope="module")
def client():
    with TestClient(
        build_service(bright_predictor(), ServiceOptions(queue=8)), raise_server_exceptions=False
    ) as client:
        yield client


def as_json(data=None, **changes):
    texts = [base64.b64encode(each).decode() for each in (data or map(encode, images()))]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
    return {"id": "seven", "inputs": [tensor]} | changes


def test_tritonclient_infers():
    """Encoded images of two sizes and a tensor of pixels, answers as bytes and as JSON, one after the other."""
    triton = pytest.importorskip("tritonclient.http", exc_type=ImportError)
    expected = bright_predictor().predict(images())
    with running_service(bright_predictor(), name="cells") as (host, port):
        client = triton.InferenceServerClient(f"{host}:{port}")
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("cells")
        assert client.is_model_ready("cells", "1")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        assert client.get_model_metadata("cells")["outputs"][0]["name"] == "boxes"
        sent = triton.InferInput("image", [3], "BYTES")
        sent.set_data_from_numpy(numpy.array([encode(image) for image in images()], dtype=object))
        for asked in (
            None,
            [triton.InferRequestedOutput("boxes"), triton.InferRequestedOutput("names", binary_data=False)],
        ):
            answer = client.infer("cells", [sent], outputs=asked)
            boxes, names = answer.as_numpy("boxes"), answer.as_numpy("names")
            assert boxes.shape == (3, 1, 4)
            assert [*boxes[:2, 0].tolist()] == [each.boxes[0].tolist() for each in expected[:2]]
            assert [str(name, "utf-8") if isinstance(name, bytes) else name for name in names[:, 0]] == [
                "cell",
                "dog",
                "",
            ]
        count = client.infer("cells", [sent]).as_numpy("count")
        assert (count.tolist(), count.dtype) == ([1, 1, 0], numpy.int64)
        pixels = numpy.stack([image.permute(1, 2, 0).numpy() for image in (images()[0], images()[2])])
        for binary in (True, False):
            sent = triton.InferInput("pixels", [*pixels.shape], "UINT8")
            sent.set_data_from_numpy(pixels, binary_data=binary)
            answer = client.infer("cells", [sent], request_id="9", parameters={"score": "0.9"})
            assert answer.get_response()["id"] == "9"
            assert answer.as_numpy("boxes")[0, 0].tolist() == [8, 8, 24, 40]
            assert answer.as_numpy("labels").tolist() == [[0], [-1]]
        with pytest.raises(triton.InferenceServerException, match="no such model"):
            client.infer("dogs", [sent])
        client.close()


def test_json_alone_is_enough(client):
    answer = client.post(INFER, json=as_json()).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("focaldet", "1", "seven")
    outputs = {row["name"]: row for row in answer["outputs"]}
    assert outputs["boxes"]["shape"] == [3, 1, 4]
    expected = [each.boxes.flatten().tolist() for each in bright_predictor().predict(images()[:2])]
    assert outputs["boxes"]["data"] == [*expected[0], *expected[1], 0, 0, 0, 0]
    assert outputs["count"] == {"name": "count", "datatype": "INT64", "shape": [3], "data": [1, 1, 0]}
    assert outputs["names"]["data"] == ["cell", "dog", ""]


def test_parameters_choose_score_and_classes(client):
    answer = client.post(INFER, json=as_json(parameters={"score": 0.5, "classes": "dog"})).json()
    assert next(row["data"] for row in answer["outputs"] if row["name"] == "count") == [0, 1, 0]


def test_no_detections_at_all_have_empty_tensors(client):
    answer = client.post(INFER, json=as_json([encode(make_image(red=0))])).json()
    assert {row["name"]: row["shape"] for row in answer["outputs"]} == {
        **{"boxes": [1, 0, 4], "scores": [1, 0], "labels": [1, 0], "names": [1, 0]},
        "count": [1],
    }


def tensor(**changes):
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["YQ=="]} | changes]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "JSON"),
        (b"[]", "JSON"),
        ({"inputs": []}, "give one"),
        (tensor(name="boxes"), "give one"),
        (tensor(datatype="FP32"), "datatype must be BYTES"),
        (tensor(shape=[2]), "the shape says 2 images, the data have 1"),
        (tensor(shape=[0], data=[]), "at least 1"),
        (tensor(data=["not base64!"]), "base64"),
        (tensor(data=[7]), "base64"),
        (tensor(data=None), "neither data"),
        (tensor(parameters={"binary_data_size": 4}), "0 bytes after the JSON"),
        (tensor() | {"outputs": [{"name": "masks"}]}, "'masks' is unknown"),
        (tensor() | {"parameters": {"score": 2}}, "score must be"),
        (tensor(name="pixels", datatype="UINT8", shape=[1, 1, 4], data=[1, 2, 3, 4]), r"[B, H, W, 3]"),
        (tensor(name="pixels", datatype="UINT8", shape=[1, 1, 3], data=[[1, 2], [256]]), "0…255"),
        (tensor(name="pixels", datatype="UINT8", shape=[1, 1, 3], data=[1, 2, True]), "0…255"),
        (tensor(name="pixels", datatype="UINT8", shape=[10**3, 10**3, 3], data=[1, 2]), "another number"),
        (tensor(), "not an image"),
    ],
)
def test_a_request_that_breaks_the_protocol_is_told_where(client, body, message):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(INFER, content=content)
    assert answer.status_code in (400, 422)
    assert message in answer.json()["error"]


def test_deeply_nested_data_do_no_harm(client):
    deep = "[" * 5000 + "]" * 5000
    text = json.dumps(tensor(data=["x"])).replace('["x"]', deep)
    assert client.post(INFER, content=text).status_code == 400


@pytest.mark.parametrize("value", [b"[]", b"{}", b'""', b"1"])
@pytest.mark.parametrize("where", ["data", "parameters", "another field"])
def test_json_of_millions_of_values_is_refused_with_little_memory(value, where):
    """Three bytes of text can be a list of a hundred: a body took 35 times its size before it was refused."""
    count = protocol.MOST_JSON_VALUES // (2 if value in (b"[]", b"{}") else 1)
    body = {
        "data": tensor(data=["x"]),
        "parameters": tensor() | {"parameters": {"a": ["x"]}},
        "another field": tensor() | {"a": ["x"]},
    }[where]
    text = json.dumps(body).encode().replace(b'["x"]', b"[" + (value + b",") * count + value + b"]")
    assert len(text) < ServiceOptions().max_bytes
    tracemalloc.start()
    try:
        with pytest.raises(RefusalError, match=r"more than 1\.5 million values") as refused:
            protocol.read_inference(
                text, None, selections=SelectionReader(bright_predictor()), options=ServiceOptions()
            )
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (refused.value.status, most < 1e6) == (413, True)


def test_as_many_values_as_are_allowed_are_read(client, monkeypatch):
    pixels = tensor(name="pixels", datatype="UINT8", shape=[1, 1, 3], data=[[1, 2, 3]])
    text = json.dumps(pixels)
    for missing, status in ((0, 200), (1, 413)):
        monkeypatch.setattr(protocol, "MOST_JSON_VALUES", sum(map(text.count, ",[{")) - missing)
        assert client.post(INFER, content=text).status_code == status


def test_a_request_that_waits_has_its_images_alone():
    """Base64 and lists of pixels are larger than what is read from them."""
    inference = protocol.read_inference(
        json.dumps(as_json()).encode(),
        None,
        selections=SelectionReader(bright_predictor()),
        options=ServiceOptions(),
    )
    assert (inference.request.id, inference.request.inputs, len(inference.images)) == ("seven", [], 3)


@pytest.mark.parametrize("length", ["-1", "x", "99999", "²"])
def test_a_wrong_length_of_the_json_is_refused(client, length):
    headers = {"Inference-Header-Content-Length": length.encode("latin-1")}
    answer = client.post(INFER, content=json.dumps(as_json()), headers=headers)
    assert answer.status_code == 400


@pytest.mark.parametrize("lengths", [(10**9,), (3, 3), (0, 0, 0, 0)])
def test_lying_lengths_of_binary_images_are_refused(client, lengths):
    raw = b"".join(struct.pack("<I", length) for length in lengths)
    head = json.dumps(tensor(data=None, parameters={"binary_data_size": len(raw)})).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = client.post(INFER, content=head + raw, headers=headers)
    assert answer.status_code in (400, 422)


def test_more_images_than_may_ever_wait_are_refused_for_good(client):
    answer = client.post(INFER, json=as_json([encode()] * 9))
    assert (answer.status_code, "retry-after" in answer.headers) == (413, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [2**62, 2**62]}, "at most 8 are taken"),
        ({"shape": [9]}, "9 images in a request, at most 8 are taken"),
        ({"name": "pixels", "datatype": "UINT8", "shape": [9, 1, 1, 3]}, "9 images in a request"),
        ({"name": "pixels", "datatype": "UINT8", "shape": [10**4, 10**4, 3]}, "at most 50 megapixels are taken"),
    ],
)
def test_a_shape_of_too_much_is_refused_before_its_data_are_read(client, monkeypatch, changes, message):
    """As bytes and as JSON: millions of images of one pixel would take a hundred times the memory of their bytes."""

    def fail(*_):
        raise AssertionError("the data were read")

    monkeypatch.setattr("focaldet.service.inference_protocol._flatten", fail)
    monkeypatch.setattr("focaldet.service.inference_protocol._split_bytes", fail)
    monkeypatch.setattr("numpy.frombuffer", fail)
    head = json.dumps(tensor(data=None, parameters={"binary_data_size": 27}, **changes)).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    for answer in (
        client.post(INFER, content=head + bytes(27), headers=headers),
        client.post(INFER, json=tensor(**changes)),
    ):
        assert (answer.status_code, message in answer.json()["error"]) == (413, True)


def test_other_models_and_versions_are_not_there(client):
    assert client.get("/v2/models/dogs").status_code == 404
    assert client.get("/v2/models/focaldet/versions/2/ready").status_code == 404
    assert client.get("/v2/models/focaldet/versions/1").status_code == 200
