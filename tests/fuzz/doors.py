"""The doors through which files of others come in: for each some whole files, and what opens one."""

import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from safetensors.torch import save

from focaldet import config as configs
from focaldet.config import read_mapping
from focaldet.data.config import DataConfig
from focaldet.data.formats.classes import read_class_file
from focaldet.data.formats.coco import read_coco_file
from focaldet.data.formats.csv import _read_rows
from focaldet.data.formats.imagefolder import _read_lines
from focaldet.data.formats.json_files import read_json
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.voc_xml import read_xml
from focaldet.data.images import read_header, read_image
from focaldet.data.problems import Problems
from focaldet.data.splits import inspect_splits
from focaldet.evaluation.results import read_results
from focaldet.outputs import earlier_call
from focaldet.training.config import RunConfig
from focaldet.weights.checkpoint import parse_metadata, saved_config
from focaldet.weights.formats.darknet import read_darknet
from focaldet.weights.formats.files import read_tensors
from focaldet.weights.tensor_names import build_on_meta
from tests.data.formats.test_mutations import FILES
from tests.fuzz.door import Door
from tests.fuzz.optional_doors import OPTIONAL
from tests.hostile import mapping, old_torch_file, settings, tensor, torch_file


def field(number: int, value: bytes | int) -> bytes:
    """A field of a message of protocol buffers."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def graph(folder: Path) -> list[bytes]:
    """A frozen graph of TensorFlow with a tensor, a convolution and a normalization."""
    del folder
    shape = b"".join(field(2, field(1, side)) for side in (2, 3))
    numbers = struct.pack("<6f", *range(6))
    content = field(1, 1) + field(2, shape) + field(4, numbers)
    repeated = field(1, 1) + field(2, shape) + varint(5 << 3 | 2) + varint(4) + struct.pack("<f", 1.5)
    nodes = b""
    for name, operation, key, value in (
        (b"a/weights", b"Const", b"value", field(8, content)),
        (b"b/weights", b"Const", b"value", field(8, repeated)),
        (b"c/conv", b"Conv2D", b"strides", field(1, field(3, b"\x01\x02\x02\x01"))),
        (b"d/norm", b"FusedBatchNormV3", b"epsilon", varint(4 << 3 | 5) + struct.pack("<f", 1e-3)),
    ):
        nodes += field(1, field(1, name) + field(2, operation) + field(5, field(1, key) + field(2, value)))
    return [nodes]


def torch_files(folder: Path) -> list[bytes]:
    weights = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2), "n": torch.tensor(1)}
    torch.save({"state_dict": weights, "epoch": 3}, folder / "w")
    new = (folder / "w").read_bytes()
    torch.save({"model": weights}, folder / "w", _use_new_zipfile_serialization=False)
    old = (folder / "w").read_bytes()
    value = mapping(tensor(4, size=4))
    return [
        new,
        old,
        torch_file(value)(folder).read_bytes(),
        old_torch_file(value, behind=bytes(24))(folder).read_bytes(),
    ]


def npz(folder: Path) -> list[bytes]:
    numpy.savez(folder / "w.npz", a=numpy.ones((2, 3), "f4"), b=numpy.zeros(2, ">f8"))
    plain = (folder / "w.npz").read_bytes()
    numpy.savez_compressed(folder / "w.npz", a=numpy.ones((2, 3), "f4"))
    return [plain, (folder / "w.npz").read_bytes()]


def pickles(folder: Path) -> list[bytes]:
    del folder
    value = {
        "model": {"a": numpy.ones((2, 3), "f4"), "b": numpy.zeros(2, ">f8")},
        "__author__": "x",
        "list": [1, (2, None)],
    }
    return [pickle.dumps(value, protocol) for protocol in (2, 4, 5)]


def own(folder: Path) -> list[bytes]:
    """Files of focaldet's: with settings, and of tensors alone."""
    files = [
        settings(anchors={"scales": [1.0, 1.5]}, detect={"top_k": 10}),
        settings("SSDConfig", priors={"percents": [4, 10, 27], "starts_px": [2.5, None]}, sources=["C3", "C5"]),
        settings("YOLOv2Config", anchors=[[1.0, 2.0]], preprocessing={"std": [1, 1, 1], "resize": {"size": 64}}),
    ]
    plain = save({"a": torch.ones(2), "b": torch.zeros(3, dtype=torch.float16)}, metadata={"input": "imagenet"})
    return [*(write(folder).read_bytes() for write in files), plain]


def describe_own(path: Path) -> object:
    """What `load_detector` reads of a file of focaldet's before it builds: the network, with shapes only."""
    file = read_tensors(path)
    if "focaldet" not in file.statements:
        return file
    return build_on_meta(saved_config(parse_metadata(file.statements, path), path))


def metadata(folder: Path) -> list[bytes]:
    del folder
    classes = {"class_names": ["a"], "category_ids": [3], "preprocessing": {"mean": [1, 2, 3]}, "version": 2}
    return [
        json.dumps({"architecture": name, "config": {"num_classes": 1, **config}, **classes}).encode()
        for name, config in (
            ("RetinaNetConfig", {"head_depth": 2, "anchors": {"base_scale": 4.0}, "backbone": "timm:resnet18"}),
            ("FasterRCNNConfig", {"pooling": {"size": 7}, "rpn_head": {"depth": 1}}),
            ("SSDConfig", {"module_widths": [64], "kernels": [3]}),
        )
    ]


def read_described(path: Path) -> object:
    text = path.read_bytes().decode("utf-8", "replace")
    return saved_config(parse_metadata({"focaldet": text}, path), path)


def darknet(folder: Path) -> list[bytes]:
    del folder
    return [struct.pack("<3iq", 0, 2, 0, 9) + bytes(40), struct.pack("<4i", 0, 1, 0, 9) + bytes(40)]


def images(folder: Path) -> list[bytes]:
    del folder
    image = Image.effect_noise((40, 24), 60).convert("RGB")
    seeds = []
    for kind, options in (
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}),
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("PPM", {}),
        ("JPEG2000", {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        seeds.append(buffer.getvalue())
    return seeds


def look_and_read(path: Path) -> object:
    return read_header(path), read_image(path)


def texts(*values: Any) -> Callable[[Path], list[bytes]]:
    return lambda _: [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": "8"}, {"id": 4, "file_name": "b.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12.0, "iscrowd": 0},
        {"id": 2, "image_id": 4, "category_id": 7, "segmentation": [[1, 1, 5, 1, 5, 5]], "ignore": 1},
    ],
    "categories": [{"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}],
}
XML = b"""<annotation><filename>a.jpg</filename><source><database>VOC2007</database></source>
<size><width>9</width><height>8</height><depth>3</depth></size>
<object><name>cat</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox>
</object></annotation>"""
RUN = b"""data: {path: data, classes: [a, b]}
model: yolov2_tiny
size: 64
architecture: &a {detect: {top_k: 5}}
phases:
  - {epochs: 2, architecture: *a}
  - {<<: {epochs: 3}, learning_rate: 1e-3}
augment: {preset: strong, scale_jitter: [0.5, 2]}
"""
LINES = (
    b'{"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "categories": [0]}}\n'
    b'{"file_name": "b.jpg", "objects": {"bbox": [], "categories": []}}\n'
)
RESULTS = [{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}]


def read_settings(path: Path) -> object:
    return configs.from_dict(RunConfig, read_mapping(path), source=str(path))


def lenient() -> Reading:
    return Reading(lenient=True, problems=Problems())


def read_result_file(path: Path) -> object:
    from focaldet.data.dataset import Classes

    return read_results(path, image_ids=(1, 4), classes=Classes(("cat", "dog"), (2, 7)))


QUICK: dict[str, Door] = {
    "coco": Door("a.json", texts(COCO), lambda path: read_coco_file(path, lenient(), name="a", look_up=False), True),
    "coco, strict": Door("a.json", texts(COCO), lambda path: read_coco_file(path, name="a", look_up=False), True),
    "json": Door("a.json", texts(COCO, [1, {"a": None}]), read_json, True),
    "results": Door("a.json", texts(RESULTS), read_result_file, True),
    "voc": Door("a.xml", texts(XML), lambda path: read_xml(path, lenient()), True),
    "csv": Door("a.csv", texts(b'a.jpg,1,2,3,4,cat\n"b, c.jpg",,,,,\n'), lambda path: list(_read_rows(path)), True),
    "imagefolder": Door("a.jsonl", texts(LINES), lambda path: _read_lines(path, lenient()), True),
    "class names": Door("a.yaml", texts(b"nc: 2\nnames: {0: cat, 1: 'dog'}\n"), read_class_file, True),
    "settings": Door("a.yaml", texts(RUN), read_settings, True),
    "metadata": Door("a.json", metadata, read_described, True),
    "list of files": Door(
        ".focaldet-files.json",
        texts({"command": "eval", "files": ["a.json"]}),
        lambda path: earlier_call(path.parent),
        True,
    ),
    "own weights": Door("w.safetensors", own, describe_own),
    "torch": Door("w.pth", torch_files, read_tensors),
    "pickle": Door("w.pkl", pickles, read_tensors),
    "npz": Door("w.npz", npz, read_tensors),
    "darknet": Door("w.weights", darknet, read_darknet),
    "tensorflow": Door("w.pb", graph, read_tensors),
    "image": Door("a.jpg", images, look_and_read),
}
"""Readers of one file."""


def _annotations(kind: str) -> Door:
    """A whole data set of which one file is changed, opened as training does."""
    write, name = FILES[kind]

    def seeds(folder: Path) -> list[bytes]:
        write(folder)
        return [(folder / name).read_bytes()]

    depth = name.count("/") + 1
    return Door(name, seeds, lambda path: inspect_splits(DataConfig(path=path.parents[depth - 1]), seed=0), True)


WHOLE: dict[str, Door] = {f"data set: {kind}": _annotations(kind) for kind in FILES}
"""Whole data sets, with their images; some hundred a second."""
DOORS = QUICK | OPTIONAL | WHOLE


def scratch(base: Path) -> Path:
    """A folder in memory where there is one."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else base
