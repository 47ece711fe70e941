"""TensorFlow's SSD beside OpenCV: the same frozen graph and images through both, and what differs.

    python benchmarks/peer_opencv.py ssd_mobilenet_v2_coco.pb COCO/val2017 --annotations instances_val2017.json

OpenCV (package opencv-python-headless, version 4) reads a frozen graph beside a text that says what to run of it: here
it is made from the graph, with BatchNorm fused, a layer for the priors, and the released configuration's numbers.
Both get the image as OpenCV resizes it; detections are the same where class, score (1e-3) and box (.5 px of the image)
are. With annotations each one's AP is printed, focaldet's also with its own resizing.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import cv2
import numpy as np
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.compat.proto.graph_pb2 import GraphDef

from focaldet.evaluation.coco import evaluate_files
from focaldet.prediction import load
from focaldet.types import ImageSize
from focaldet.weights import load_detector

SIDE, INPUT, MAPS = 300, "Preprocessor/sub", 6
SCALES = [*(0.2 + 0.75 * level / (MAPS - 1) for level in range(MAPS)), 1.0]
RATIOS = (1.0, 2.0, 0.5, 3.0, 0.3333)
SAME_SCORE, SAME_PX = 1e-3, 0.5
OUTPUT = {
    "num_classes": "i: 91",
    "background_label_id": "i: 0",
    "share_location": "b: true",
    "loc_pred_transposed": "b: true",
    "code_type": 's: "CENTER_SIZE"',
    "confidence_threshold": "f: 0.01",
    "top_k": "i: 100",
    "nms_threshold": "f: 0.6",
    "keep_top_k": "i: 100",
}


class TextGraph:
    """What OpenCV is to run of a frozen graph."""

    def __init__(self, path: Path) -> None:
        graph = GraphDef.FromString(path.read_bytes())
        self.nodes = {node.name: node for node in graph.node}
        self.text = GraphDef()
        image = self.add("image_tensor", "Placeholder")
        text_format.Merge("type: DT_UINT8", image.attr["dtype"])
        self.copied = {INPUT}
        self.constant("flat", [-1])
        self.constant("coordinates", [-2])
        self.constant("four", [1, 2, -1, 1])
        outputs = [self.concat(self.heads(kind), "flat") for kind in ("BoxEncodingPredictor", "ClassPredictor")]
        self.add("scores", "Sigmoid", outputs[1])
        priors = self.concat([self.priors(level) for level in range(MAPS)], "coordinates")
        self.merge(self.add("detections", "DetectionOutput", outputs[0], "scores", priors), OUTPUT)

    def add(self, name, operation, *inputs):
        return self.text.node.add(name=name, op=operation, input=inputs)

    def merge(self, node, attributes):
        for key, value in attributes.items():
            text_format.Merge(value, node.attr[key])

    def constant(self, name, values):
        self.merge(self.add(name, "Const"), {"value": as_tensor(values)})

    def concat(self, names, axis):
        self.add(f"all {names[0]}", "ConcatV2", *names, axis)
        return f"all {names[0]}"

    def heads(self, kind):
        """The flat outputs of one kind on all maps."""
        for level in range(MAPS):
            name = f"BoxPredictor_{level}/{kind}/BiasAdd"
            self.copy(name)
            self.add(f"{name}/Flatten", "Flatten", name)
        return [f"BoxPredictor_{level}/{kind}/BiasAdd/Flatten" for level in range(MAPS)]

    def source(self, name):
        """The node behind those that only hand on."""
        while self.nodes[name].op == "Identity":
            name = self.nodes[name].input[0]
        return name

    def copy(self, name):
        """Copy a node after all that it reads; a normalization in six nodes as one."""
        node = self.nodes[name]
        if name in self.copied or node.op == "Const":
            return
        self.copied.add(name)
        scope, is_norm, _ = name.partition("batchnorm/add_1")
        inputs = [self.nodes[node.input[0]].input[0]] if is_norm else node.input
        inputs = [self.source(each) for each in inputs]
        for each in inputs:
            self.copy(each)
        inputs = ["image_tensor" if each == INPUT else each for each in inputs]
        if is_norm:
            parts = (f"{scope}{part}" for part in ("gamma", "beta", "moving_mean", "moving_variance"))
            self.merge(self.add(name, "FusedBatchNorm", *inputs, *parts), {"epsilon": "f: 0.001"})
            return
        new = self.add(name, node.op, *inputs)
        for key in ("strides", "padding", "dilations"):
            if key in node.attr:
                new.attr[key].CopyFrom(node.attr[key])

    def priors(self, level):
        scale, further = SCALES[level : level + 2]
        rows = [*((scale, ratio) for ratio in RATIOS), (sqrt(scale * further), 1.0)]
        if level == 0:
            rows = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
        name = f"priors {level}"
        node = self.add(name, "PriorBox", f"BoxPredictor_{level}/BoxEncodingPredictor/BiasAdd", "image_tensor")
        sides = {"width": [s * sqrt(r) * SIDE for s, r in rows], "height": [s / sqrt(r) * SIDE for s, r in rows]}
        self.merge(node, {key: as_tensor(values) for key, values in sides.items()})
        self.merge(node, {"variance": as_tensor([0.1, 0.1, 0.2, 0.2]), "flip": "b: false", "clip": "b: false"})
        self.add(f"{name} in four axes", "Reshape", name, "four")
        return f"{name} in four axes"


def as_tensor(values):
    kind, field = ("DT_FLOAT", "float_val") if isinstance(values[0], float) else ("DT_INT32", "int_val")
    numbers = " ".join(f"{field}: {value}" for value in values)
    return f"tensor {{ dtype: {kind} tensor_shape {{ dim {{ size: {len(values)} }} }} {numbers} }}"


def peer_detections(network, bgr):
    """Boxes clipped to the image, scores and category ids."""
    height, width = bgr.shape[:2]
    network.setInput(cv2.dnn.blobFromImage(bgr, 1 / 127.5, (SIDE, SIDE), (127.5,) * 3, swapRB=True, crop=False))
    rows = network.forward()[0, 0]
    rows = rows[rows[:, 2] > 0]
    limit = np.array([width, height, width, height])
    return np.clip(rows[:, 3:7], 0, 1) * limit, rows[:, 2], rows[:, 1].astype(int)


@torch.no_grad()
def own_detections(trained, bgr):
    """The same of focaldet's detector on the same pixels."""
    height, width = bgr.shape[:2]
    resized = torch.from_numpy(cv2.resize(bgr, (SIDE, SIDE))[:, :, ::-1].copy()).permute(2, 0, 1)[None]
    sizes = [ImageSize(SIDE, SIDE)]
    (detections,) = trained.detector.detect(trained.detector(resized, sizes), sizes)
    scaled = detections.scale(width / SIDE, height / SIDE)
    return scaled.boxes.numpy(), scaled.scores.numpy(), np.array(trained.category_ids)[scaled.labels.numpy()]


def pairs(own, peer) -> Iterator[tuple[float, float, float]]:
    """Of each of the peer's detections that is matched its score, and how far score and box are apart."""
    used: set[int] = set()
    for box, score, label in zip(*peer, strict=True):
        apart = np.abs(own[0] - box).max(1)
        same = (own[2] == label) & (np.abs(own[1] - score) <= SAME_SCORE) & (apart <= SAME_PX)
        free = [index for index in np.flatnonzero(same) if index not in used]
        if free:
            best = min(free, key=apart.__getitem__)
            used.add(best)
            yield float(score), abs(float(own[1][best] - score)), float(apart[best])


def as_results(image_id, boxes, scores, ids):
    return [
        {"image_id": image_id, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(score)}
        for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores, ids, strict=True)
    ]


def print_ap(name, results, annotations):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        path.write_text(json.dumps(results))
        print(f"{name}: AP {100 * evaluate_files(path, annotations).ap:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--count", type=int, default=20, help="how many images are compared")
    options = parser.parse_args()
    trained, predictor = load_detector(options.graph), load(options.graph, device="cpu", precision="fp32")
    trained.detector.eval()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "graph.pbtxt"
        text.write_text(text_format.MessageToString(TextGraph(options.graph).text))
        network = cv2.dnn.readNetFromTensorflow(str(options.graph), str(text))
    files = {path.name: path for path in sorted(options.images.glob("*.jpg"))}
    ids = {}
    if options.annotations:
        ids = {image["file_name"]: image["id"] for image in json.loads(options.annotations.read_text())["images"]}
    total, matched, results = 0, [], {"OpenCV": [], "focaldet": [], "focaldet, its own resizing": []}
    for number, (name, path) in enumerate(files.items()):
        if number >= options.count and not ids:
            break
        bgr = cv2.imread(str(path))
        peer, own = peer_detections(network, bgr), own_detections(trained, bgr)
        if number < options.count:
            total += len(peer[1])
            matched += pairs(own, peer)
        if name in ids:
            whole = predictor(Image.open(path).convert("RGB"))
            whole_ids = np.array(trained.category_ids)[whole.labels.numpy()]
            answers = (peer, own, (whole.boxes.numpy(), whole.scores.numpy(), whole_ids))
            for kind, answer in zip(results, answers, strict=True):
                results[kind] += as_results(ids[name], *answer)
    _, scores, boxes = zip(*matched, strict=True)
    print(f"OpenCV {cv2.__version__}: {total} detections in {min(options.count, len(files))} images")
    print(f"matched {len(matched) / total:.2%}, scores within {max(scores):.1e}, boxes within {max(boxes):.1e} px")
    for name, rows in results.items():
        if rows:
            print_ap(name, rows, options.annotations)


if __name__ == "__main__":
    main()
