"""The Open Inference Protocol, version 2: tensors in requests and answers, as JSON or as bytes behind it.

Inputs, one of the two: `image`, BYTES of shape [B] (encoded images; in JSON as base64), or `pixels`, UINT8 of shape
[B, H, W, 3] or [H, W, 3] (RGB). Outputs, padded to the image with the most detections: `boxes` FP32 [B, D, 4] (xyxy
pixels), `scores` FP32 [B, D], `labels` INT64 [B, D] (padded with -1), `names` BYTES [B, D], `count` INT64 [B]. The
request's parameters may hold `score` and `classes`, as those of `POST /predict`.

The binary-data extension: the JSON is as long as the header Inference-Header-Content-Length says, and after it come the
data of the tensors that have the parameter `binary_data_size`.

Axes: B images, H W pixels, D detections.
"""

import base64
import binascii
import itertools
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from focaldet.service.answers import Selection, SelectionReader, encode_json
from focaldet.service.options import ServiceOptions
from focaldet.service.pipeline import ImageResult
from focaldet.service.refusals import RefusalError

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
MODEL_VERSION = "1"
EXTENSIONS = ("binary_tensor_data",)
TENSOR_INPUTS = (
    {"name": "image", "datatype": "BYTES", "shape": [-1]},
    {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
)
TENSOR_OUTPUTS = (
    {"name": "boxes", "datatype": "FP32", "shape": [-1, -1, 4]},
    {"name": "scores", "datatype": "FP32", "shape": [-1, -1]},
    {"name": "labels", "datatype": "INT64", "shape": [-1, -1]},
    {"name": "names", "datatype": "BYTES", "shape": [-1, -1]},
    {"name": "count", "datatype": "INT64", "shape": [-1]},
)
DATATYPES = {str(row["name"]): str(row["datatype"]) for row in (*TENSOR_INPUTS, *TENSOR_OUTPUTS)}
MOST_JSON_VALUES = 1_500_000
"""Numbers, texts, lists and objects in the JSON of a request: enough for the pixels of 640 × 480 in nested lists."""
_PARSING = threading.Lock()
"""Held while one request is parsed: Python parses one at a time anyway, and so only one takes the memory for it."""


class TensorIn(BaseModel):
    """A tensor of a request."""

    name: str
    shape: list[int] = Field(max_length=8)
    datatype: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


class TensorAsked(BaseModel):
    """An output that a request asks for."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(BaseModel):
    """The JSON of a request."""

    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[TensorIn] = Field(max_length=8)
    outputs: list[TensorAsked] = Field(default_factory=list, max_length=16)


def inline_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a model in one piece: references in it would be looked for in the whole of an OpenAPI file."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, list):
            return [resolve(member) for member in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return resolve(definitions[part["$ref"].rpartition("/")[2]])
        return {name: resolve(value) for name, value in part.items()}

    return {name: resolve(value) for name, value in schema.items()}


INFER_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": inline_schema(InferRequest)},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {
            "name": JSON_LENGTH_HEADER,
            "in": "header",
            "schema": {"type": "integer", "minimum": 0},
            "description": "Length of the JSON where the data of tensors come behind it.",
        }
    ],
}
"""What OpenAPI says of a request, which is read here and not by FastAPI."""


@dataclass(frozen=True, slots=True)
class Inference:
    """A request that was understood: its images, what is asked for, and how to answer.

    The request has no inputs any more: it waits for the detections, and the images are all that is needed of them.
    """

    request: InferRequest
    images: list[bytes | UInt8[Tensor, "3 H W"]]
    selection: Selection


def read_inference(
    body: bytes, json_length: str | None, *, selections: SelectionReader, options: ServiceOptions
) -> Inference:
    """The inference that the body of a request describes; `json_length` is the header, None where there is none.

    Raises:
        RefusalError: the body does not follow the protocol, says where; or it has too many values, images or pixels.
    """
    length = _read_length(json_length, len(body))
    text = body[:length]
    _require_few_values(text)
    with _PARSING:
        request = _parse_request(text)
        images = _read_images(request, body[length:], options)
        request.inputs.clear()
    return Inference(request, images, _read_parameters(request.parameters, selections))


def _require_few_values(text: bytes) -> None:
    """Refuse JSON of too many values by its commas and brackets, before it is parsed.

    Three bytes of text can be a list, which takes a hundred.
    """
    if sum(map(text.count, (b",", b"[", b"{"))) > MOST_JSON_VALUES:
        message = f"the request's JSON has more than {MOST_JSON_VALUES / 1e6:g} million values"
        raise RefusalError(413, f"{message}; send pixels as binary data, or an encoded image")


def _parse_request(text: bytes) -> InferRequest:
    """The request, with one input of its datatype and outputs that there are."""
    try:
        request = InferRequest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusalError(400, f"the request's JSON: {where}: {first['msg']}") from None
    if unknown := [
        output.name for output in request.outputs if output.name not in {row["name"] for row in TENSOR_OUTPUTS}
    ]:
        raise RefusalError(400, f"outputs: {unknown[0][:40]!r} is unknown")
    if len(request.inputs) != 1 or request.inputs[0].name not in ("image", "pixels"):
        raise RefusalError(400, "inputs: give one, either image (BYTES) or pixels (UINT8)")
    (tensor,) = request.inputs
    if tensor.datatype != DATATYPES[tensor.name]:
        raise RefusalError(400, f"inputs.{tensor.name}: the datatype must be {DATATYPES[tensor.name]}")
    return request


def _read_images(request: InferRequest, rest: bytes, options: ServiceOptions) -> list[bytes | Tensor]:
    """The images of the one input; `rest` are the bytes behind the JSON."""
    (tensor,) = request.inputs
    if any(side < 1 for side in tensor.shape):
        raise RefusalError(400, f"inputs.{tensor.name}: every side of the shape must be at least 1")
    read = _read_encoded if tensor.name == "image" else _read_pixels
    return read(tensor, _binary_part(tensor, rest), options)


def _read_length(text: str | None, limit: int) -> int:
    if text is None:
        return limit
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= limit):
        raise RefusalError(400, f"{JSON_LENGTH_HEADER} must be a number of bytes that the body has")
    return int(text)


def _read_parameters(parameters: Mapping[str, Any], selections: SelectionReader) -> Selection:
    fields = {name: [str(parameters[name])] for name in ("score", "classes") if name in parameters}
    return selections.read(fields)


def _binary_part(tensor: TensorIn, rest: bytes) -> bytes | None:
    """The bytes behind the JSON that belong to the tensor; None where its data stand in the JSON."""
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        return None
    if not isinstance(size, int) or size != len(rest):
        raise RefusalError(400, f"inputs.{tensor.name}: binary_data_size must be the {len(rest)} bytes after the JSON")
    return rest


def _require_few(count: int, options: ServiceOptions) -> None:
    """Refuse more images than may be inside, before anything is made of their data."""
    if count > options.queue:
        raise RefusalError(413, f"{count} images in a request, at most {options.queue} are taken")


def _read_encoded(tensor: TensorIn, raw: bytes | None, options: ServiceOptions) -> list[bytes | Tensor]:
    """The encoded images of a tensor of BYTES: each after its length of four bytes, or as base64."""
    count = int(numpy.prod(tensor.shape, dtype=object))
    _require_few(count, options)
    texts = _split_bytes(raw) if raw is not None else map(_decode_base64, _flatten(tensor.data))
    values = list(itertools.islice(texts, count + 1))
    if len(values) != count:
        has = "more" if len(values) > count else str(len(values))
        raise RefusalError(400, f"inputs.image: the shape says {count} images, the data have {has}")
    return list(values)


def _split_bytes(raw: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(raw):
        (length,) = struct.unpack_from("<I", raw, start) if start + 4 <= len(raw) else (len(raw),)
        start += 4
        if start + length > len(raw):
            raise RefusalError(400, "inputs.image: the lengths of the images pass the end of the data")
        yield raw[start : start + length]
        start += length


def _decode_base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise RefusalError(400, "inputs.image: in JSON an image is a text in base64") from None


def _flatten(data: Sequence[Any] | None) -> Iterator[Any]:
    """The values of nested lists."""
    if data is None:
        raise RefusalError(400, "inputs: neither data nor binary_data_size is given")
    waiting = [iter(data)]
    while waiting:
        for value in waiting[-1]:
            if isinstance(value, list):
                waiting.append(iter(value))
                break
            yield value
        else:
            waiting.pop()


def _read_pixels(tensor: TensorIn, raw: bytes | None, options: ServiceOptions) -> list[bytes | Tensor]:
    """The images of a tensor of RGB bytes."""
    shape = tensor.shape if len(tensor.shape) == 4 else [1, *tensor.shape]
    if len(shape) != 4 or shape[3] != 3:
        raise RefusalError(400, "inputs.pixels: the shape must be [B, H, W, 3] or [H, W, 3]")
    _require_few(shape[0], options)
    if shape[1] * shape[2] > options.max_pixels:
        most = f"at most {options.max_megapixels:g} megapixels are taken"
        raise RefusalError(413, f"inputs.pixels: an image has {shape[2]} × {shape[1]} pixels, {most}")
    count = int(numpy.prod(shape, dtype=object))
    if raw is None:
        values = list(itertools.islice(_flatten(tensor.data), count + 1))
        if not all(type(value) is int and 0 <= value <= 255 for value in values):
            raise RefusalError(400, "inputs.pixels: values must be whole numbers in 0…255")
        raw = bytes(values)
    if len(raw) != count:
        raise RefusalError(400, f"inputs.pixels: the shape says {count} values, the data have another number")
    array = numpy.frombuffer(raw, dtype=numpy.uint8).reshape(shape).copy()
    return list(torch.from_numpy(array).permute(0, 3, 1, 2))


def write_inference(inference: Inference, results: Sequence[ImageResult], *, name: str) -> tuple[bytes, int | None]:
    """The body of the answer, and the length of its JSON where bytes follow."""
    request = inference.request
    arrays = _stack_results([inference.selection.select(result.detections) for result in results])
    all_binary = request.parameters.get("binary_data_output") is True
    asked = request.outputs or [TensorAsked(name=output) for output in arrays]
    outputs, parts = [], []
    for output in asked:
        array = arrays[output.name]
        entry: dict[str, Any] = {"name": output.name, "datatype": DATATYPES[output.name], "shape": list(array.shape)}
        if output.parameters.get("binary_data", all_binary) is True:
            parts.append(_to_bytes(array))
            entry |= {"parameters": {"binary_data_size": len(parts[-1])}}
        else:
            entry |= {"data": array.ravel().tolist()}
        outputs.append(entry)
    answer: dict[str, Any] = {"model_name": name, "model_version": MODEL_VERSION, "outputs": outputs}
    if request.id is not None:
        answer["id"] = request.id
    text = encode_json(answer)
    return b"".join([text, *parts]), len(text) if parts else None


def _stack_results(detections: Sequence[Any]) -> dict[str, Any]:
    """The outputs of the images of a request, by name, padded to the most detections."""
    counts = [len(each) for each in detections]
    shape = (len(counts), max(counts, default=0))
    arrays: dict[str, Any] = {
        "boxes": numpy.zeros((*shape, 4), numpy.float32),
        "scores": numpy.zeros(shape, numpy.float32),
        "labels": numpy.full(shape, -1, numpy.int64),
        "names": numpy.full(shape, "", object),
        "count": numpy.array(counts, numpy.int64),
    }
    for row, (each, count) in enumerate(zip(detections, counts, strict=True)):
        arrays["boxes"][row, :count] = each.boxes.numpy()
        arrays["scores"][row, :count] = each.scores.numpy()
        arrays["labels"][row, :count] = each.labels.numpy()
        arrays["names"][row, :count] = each.names
    return arrays


def _to_bytes(array: Any) -> bytes:
    """The values as little-endian bytes; texts after their lengths of four bytes."""
    if array.dtype != object:
        return bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())
    texts = [text.encode() for text in array.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)
