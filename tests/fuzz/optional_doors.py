"""Doors that need an optional library: the HTTP service, videos and exported files.

A request is a file here: its first line has method and path, then come headers, an empty line, and the body.
"""

import asyncio
import base64
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

from focaldet.errors import ConfigError
from focaldet.weights.exported.detector import open_exported
from focaldet.weights.exported.graphs import import_library
from tests.evaluation.cases import make_image
from tests.fuzz.door import Door
from tests.service.services import bright_predictor, encode

MOST_FRAMES = 20
DESCRIBED = json.dumps(
    {"architecture": "RetinaNetConfig", "config": {"num_classes": 1}, "class_names": ["a"], "category_ids": [1]}
    | {"preprocessing": {}, "version": 2}
)


class Service:
    """The application without a server: requests go in as the server would hand them over."""

    def __init__(self) -> None:
        from focaldet.service.app import build_service
        from focaldet.service.options import ServiceOptions

        self.loop = asyncio.new_event_loop()
        self.app = build_service(bright_predictor(), ServiceOptions(batch_size=1, max_megabytes=1))
        self.lifespan = self.app.router.lifespan_context(self.app)
        self.loop.run_until_complete(self.lifespan.__aenter__())

    def answer(self, content: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a request."""
        head, _, body = content.partition(b"\n\n")
        first, *lines = head.split(b"\n")
        method, _, target = first.partition(b" ")
        path, _, query = target.partition(b"?")
        headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": "",
            "method": method.decode("latin-1"), "path": path.decode("utf-8", "replace"), "raw_path": path,
            "query_string": query, "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        sent: list[dict[str, Any]] = []
        middle = len(body) // 2
        parts = iter([(body[:middle], True), (body[middle:], False)])

        async def receive() -> dict[str, Any]:
            part, is_more = next(parts, (None, False))
            if part is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": part, "more_body": is_more}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        self.loop.run_until_complete(self.app(scope, receive, send))
        starts = [message["status"] for message in sent if message["type"] == "http.response.start"]
        return starts[0], b"".join(message.get("body", b"") for message in sent)


@functools.cache
def service() -> Service:
    """One for all requests of this process."""
    return Service()


def send_request(path: Path) -> object:
    """What is answered to a request; a refusal is an error, and a failure of the service another one."""
    status, body = service().answer(path.read_bytes())
    if 400 <= status < 500:
        raise ConfigError(json.loads(body)["error"])
    if status not in (200, 307):
        raise AssertionError(f"status {status}: {body[:200]!r}")
    return body


def requests(folder: Path) -> list[bytes]:
    """Requests in each form that the service takes."""
    del folder
    image = encode(make_image())
    form = [
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n',
        image,
        b'\r\n--x\r\nContent-Disposition: form-data; name="score"\r\n\r\n0.4\r\n--x--\r\n',
    ]
    text = base64.b64encode(image).decode()
    encoded = {"id": "1", "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}]}
    pixels = numpy.zeros((1, 2, 3, 3), "uint8").tolist()
    tensor = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 2, 3, 3], "data": pixels}]}
    asked = {"outputs": [{"name": "boxes", "parameters": {"binary_data": True}}], "parameters": {"score": 0.1}}
    binary = {"inputs": [{**tensor["inputs"][0], "parameters": {"binary_data_size": 18}}]}
    del binary["inputs"][0]["data"]
    header = json.dumps(binary).encode()
    infer = b"POST /v2/models/focaldet/infer"
    return [
        b"POST /predict?score=0.2&classes=cell\n\n" + image,
        b"POST /predict\nContent-Type: multipart/form-data; boundary=x\n\n" + b"".join(form),
        infer + b"\n\n" + json.dumps(encoded).encode(),
        infer + b"\n\n" + json.dumps(tensor | asked).encode(),
        infer + b"\nInference-Header-Content-Length: %d\n\n" % len(header) + header + bytes(18),
        b"GET /v2/models/focaldet/versions/1\nAccept: */*\n\n",
        b"GET /docs\nHost: localhost:80\n\n",
    ]


def videos(kind: str, codec: str) -> Callable[[Path], list[bytes]]:
    """A video of three small frames."""

    def write(folder: Path) -> list[bytes]:
        import av

        del folder
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=kind) as container:
            stream = container.add_stream(codec, rate=5)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p" if codec != "mjpeg" else "yuvj420p"
            for _ in range(3):
                array = numpy.ascontiguousarray(make_image().permute(1, 2, 0).numpy())
                container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            container.mux(stream.encode(None))
        return [buffer.getvalue()]

    return write


def read_video(path: Path) -> object:
    """The first frames of a video."""
    from focaldet.video.reading import open_source

    return [frame for frame, _ in zip(open_source(str(path)).frames(), range(MOST_FRAMES), strict=False)]


def onnx_graph(folder: Path) -> list[bytes]:
    """A graph of ONNX of two operations."""
    from onnx import TensorProto, helper

    del folder
    given = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["b", 3, "h", "w"]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, ["b", 2]),
    ]
    answered = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, None),
    ]
    nodes = [
        helper.make_node("Cast", ["sizes"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "weight"], ["boxes"]),
        helper.make_node("Relu", ["boxes"], ["scores"]),
    ]
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [2, 3], [1.0, 2, 3, 4, 5, 6])
    graph = helper.make_graph(nodes, "g", given, answered, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"focaldet": DESCRIBED})
    return [model.SerializeToString()]


def openvino_graph(folder: Path) -> list[bytes]:
    """The same in OpenVINO's two files, of which the text is changed."""
    openvino = import_library("openvino", extra="openvino")
    (folder / "w.onnx").write_bytes(onnx_graph(folder)[0])
    model = openvino.convert_model(folder / "w.onnx")
    model.set_rt_info(DESCRIBED, ["focaldet"])
    openvino.save_model(model, folder / "w.xml", compress_to_fp16=False)
    return [(folder / "w.xml").read_bytes()]


def program(folder: Path) -> list[bytes]:
    """A program of `torch.export` that answers nothing."""

    class Nothing(torch.nn.Module):
        def forward(self, images: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
            count = sizes.sum(1)
            return images.new_zeros(len(images), 1, 4).float(), count[:, None].float(), count[:, None], count

    example = (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.ones(2, 2, dtype=torch.int64))
    exported = torch.export.export(Nothing(), example)
    torch.export.save(exported, folder / "w.pt2", extra_files={"focaldet": DESCRIBED})
    return [(folder / "w.pt2").read_bytes()]


def open_file(path: Path) -> object:
    """An exported file as a detector."""
    return open_exported(path, label=path.name)


OPTIONAL: dict[str, Door] = {
    "http": Door("request", requests, send_request),
    "video mp4": Door("a.mp4", videos("mp4", "libx264"), read_video),
    "video mkv": Door("a.mkv", videos("matroska", "mjpeg"), read_video),
    "video avi": Door("a.avi", videos("avi", "mpeg4"), read_video),
    "exported program": Door("w.pt2", program, open_file),
    "exported onnx": Door("w.onnx", onnx_graph, open_file),
    "exported openvino": Door("w.xml", openvino_graph, open_file, True),
}
