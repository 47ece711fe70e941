"""Write the weights files of version 0.1 that `test_version_0_1.py` opens, with what version 0.1 detects with them.

Needs focaldet 0.1, see README.md.
"""

import json
import lzma
import sys
import tempfile
from pathlib import Path

import numpy
import torch

import focaldet
from focaldet.models import build
from focaldet.weights import save_detector

HEIGHT, WIDTH, PERIOD = 96, 128, 251
CLASSES = ("circle", "square", "혈소판")
PLUS = {"refine": {}, "context": True, "scales": [0.5, 1.0]}
FILES = {
    "retinanet": ("retinanet_mobilenet_v2_fpn", {"width": 24, "loss": {"normaliser": "image"}}),
    "faster_rcnn_fpn": ("faster_rcnn_mobilenet_v2_fpn", {"width": 24, "head_width": 32}),
    "faster_rcnn_c4_plus": ("faster_rcnn_r18_c4", {"plus": PLUS, "proposal_head": {"width": 32}}),
    "inception_resnet_tdm": ("faster_rcnn_inception_resnet_small_tdm", {"proposal_head": {"width": 32}}),
    "ssd": ("ssd_mobilenet_v2", {"loss": {"kind": "focal"}}),
    "dssd": ("dssd_r18", {"decoder": {"width": 32, "inter_width": None}}),
    "yolov2": ("yolov2_tiny", {"width": 64}),
}


class Classes:
    names = CLASSES
    category_ids = (1, 5, 7)


def image():
    rows, columns, channels = numpy.mgrid[0:HEIGHT, 0:WIDTH, 0:3]
    waves = rows * columns // 7 + 40 * (rows // 24 + columns // 16) * (channels + 1)
    return (waves % 256).astype(numpy.uint8)


def fill(detector, *, gain):
    """Random weights that repeat with a short period, so that a file of them packs well; the class scores vary."""
    generator = torch.Generator().manual_seed(7)
    for name, value in detector.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(PERIOD, generator=generator)
        if value.ndim > 1:
            is_output = any(part in name for part in ("predict", "classes", "boxes", "objectness"))
            noise = noise * (gain if is_output else 1.4) * value[0].numel() ** -0.5
        elif name.endswith("running_var"):
            noise = 1 + 0.1 * noise.abs()
        elif name.endswith(("running_mean", "bias")):
            noise = 0.1 * noise
        else:
            noise = 1 + 0.1 * noise
        noise = noise.to(torch.bfloat16).float()
        value.copy_(noise.repeat(value.numel() // PERIOD + 1)[: value.numel()].view_as(value))


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, (model, architecture) in FILES.items():
        torch.manual_seed(0)
        detector = build(model, class_names=CLASSES, architecture=architecture)
        fill(detector, gain=0.02 if name in ("retinanet", "faster_rcnn_fpn") else 0.5)
        with tempfile.TemporaryDirectory() as folder_of_one:
            path = Path(folder_of_one) / "weights.safetensors"
            save_detector(path, detector, classes=Classes(), licence="made for a test", extra={"note": "synthetic"})
            packed = lzma.compress(path.read_bytes(), preset=9)
            predictor = focaldet.load(path, device="cpu", precision="fp32")
        detections = predictor.predict(image())
        expected = {
            "detections": len(detections.scores),
            "boxes": detections.boxes[:8].tolist(),
            "scores": detections.scores[:8].tolist(),
            "labels": detections.labels[:8].tolist(),
        }
        (folder / f"{name}.safetensors.xz").write_bytes(packed)
        (folder / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n")
        print(name, len(packed), expected["detections"], expected["scores"], expected["labels"], expected["boxes"][:2])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
