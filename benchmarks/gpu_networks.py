"""The networks of `gpu.py` with random weights, and how each form of them predicts and trains: eager, compiled, graphs.

Everything is computed in bf16 and channels-last, on images that are on the device already.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from focaldet.evaluation.inference import detect_batch
from focaldet.models import Detector, LossContext, build
from focaldet.nets.resnet import RESNETS, ResNetShape
from focaldet.runtime import autocast
from focaldet.training.config import RunConfig
from focaldet.training.state import TrainState, start_state
from focaldet.training.step import train_step
from focaldet.types import Batch, ImageSize, Target

# The backbone of MLPerf's RetinaNet; no detector of the table has it.
RESNETS["resnext50_32x4d"] = ResNetShape((3, 4, 6, 3), groups=32, width_per_group=4)
MLPERF_CLASSES = 264

RATE = 1e-6  # of the learning: random weights are to stay finite, however long a form is measured
BOXES = 10  # of an image
FEW = {"top_k": 100, "keep": 30}


@dataclass(frozen=True)
class Network:
    """A detector of the table at its own size, and a small one of its kind for `--small`."""

    preset: str
    side_px: int
    small_preset: str
    small_architecture: Mapping[str, Any]
    small_side_px: int = 64
    architecture: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int = 80

    def build(self, *, small: bool) -> Detector:
        """The detector with random weights whose outputs stay finite: no block of a deep ResNet adds much to its input.

        A frozen norm has nothing to keep them small.
        """
        torch.manual_seed(0)
        name, architecture = (self.preset, self.architecture) if not small else self.small
        detector = build(name, num_classes=self.num_classes, architecture=architecture)
        for module in detector.modules():
            if isinstance(norm := getattr(module, "bn3", None), nn.Module):
                nn.init.constant_(norm.weight, 0.2)
        return detector

    @property
    def small(self) -> tuple[str, Mapping[str, Any]]:
        return self.small_preset, self.small_architecture

    def batch(self, number: int, device: torch.device, *, small: bool) -> Batch:
        """So many images of noise on the device, with boxes of a sixteenth to a third of the side."""
        side = self.small_side_px if small else self.side_px
        rng = torch.Generator().manual_seed(0)
        images = torch.randint(256, (number, 3, side, side), generator=rng, dtype=torch.uint8)
        sides = side * (1 / 16 + (1 / 3 - 1 / 16) * torch.rand(number, BOXES, 2, generator=rng))
        corners = (side - sides) * torch.rand(number, BOXES, 2, generator=rng)
        labels = torch.randint(self.num_classes, (number, BOXES), generator=rng)
        nothing = torch.zeros(BOXES, dtype=torch.bool)
        targets = tuple(
            Target(torch.cat([corner, corner + size], 1), label, nothing)
            for corner, size, label in zip(corners, sides, labels, strict=True)
        )
        indices, sizes = tuple(range(number)), (ImageSize(side, side),) * number
        return Batch(images, sizes, targets, indices, sizes, tuple(map(str, indices))).to(device)


_SMALL_RETINANET = ("retinanet_mobilenet_v2_fpn", {"width": 40, "head_depth": 1})
NETWORKS = {
    "RetinaNet": Network("retinanet_r50_fpn", 800, *_SMALL_RETINANET),
    "Faster R-CNN": Network(
        "faster_rcnn_r50_fpn",
        800,
        "faster_rcnn_mobilenet_v2_fpn",
        {"width": 32, "head_width": 64, "proposals": {"detect": FEW, "train": FEW}},
    ),
    "SSD": Network("ssd513_r101", 513, "ssd_mobilenet_v2", {"extra_width": 32, "module_widths": (16,)}, 160),
    "YOLOv2": Network("yolov2", 544, "yolov2_tiny", {"width": 64}),
}
MLPERF = Network(
    "retinanet_r50_fpn",
    800,
    *_SMALL_RETINANET,
    architecture={"backbone": "resnext50_32x4d"},
    num_classes=MLPERF_CLASSES,
)


def compile_forward(detector: Detector, *, small: bool) -> None:
    """Have torch.compile make the forward pass, as `--compile` does; with `small` it is traced and nothing more."""
    detector.compile(backend="eager" if small else "inductor")


def predict_form(
    network: Network, number: int, device: torch.device, *, small: bool, form: str = "eager"
) -> Callable[[], object]:
    """Detections of so many images with `form` of the network, those of the whole batch on the CPU at the end."""
    detector = network.build(small=small).to(device, memory_format=torch.channels_last).eval()
    batch = network.batch(number, device, small=small)
    if form == "compiled":
        compile_forward(detector, small=small)
    elif form == "graph":
        graph_forward(detector, batch)
    sizes = list(batch.sizes)
    return lambda: detect_batch(detector, batch.images, sizes=sizes, original_sizes=sizes, precision="bf16")


def start_training(
    network: Network, device: torch.device, *, small: bool, optimizer: str = "adamw"
) -> tuple[TrainState, RunConfig]:
    """The state of the training engine at its first step, and the settings: its defaults, with random weights."""
    name = network.small_preset if small else network.preset
    config = RunConfig(model=name, weights=None, precision="bf16", optimizer=optimizer)
    state = start_state(network.build(small=small), config, context=LossContext(), device=device)
    return state, config


def train_form(
    network: Network, number: int, device: torch.device, *, small: bool, form: str = "eager"
) -> Callable[[], object]:
    """A step of the training engine on so many images: forward, losses, backward, clipping, optimizer, average."""
    state, config = start_training(network, device, small=small)
    batch = network.batch(number, device, small=small)
    if form == "compiled":
        compile_forward(state.detector, small=small)
    elif form == "graph":
        graph_backbone(state.detector, batch)
    return lambda: train_step(state, [batch], module=state.detector, config=config, rate=RATE)


def graph_backbone(detector: Detector, batch: Batch) -> None:
    """Have the backbone's forward and backward passes replayed as CUDA graphs.

    The rest of a step has shapes that depend on the matches, which a graph cannot have.
    """
    require_cuda(batch.images)
    images = detector.normalize(batch.images.contiguous(memory_format=torch.channels_last))
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        torch.cuda.make_graphed_callables(detector.get_submodule("backbone"), (images,))


def graph_forward(detector: Detector, batch: Batch) -> None:
    """Have the forward pass replayed as a CUDA graph; of a detector of two stages, whose regions vary, the backbone."""
    require_cuda(batch.images)
    device, sizes = batch.images.device, list(batch.sizes)
    images = batch.images.contiguous(memory_format=torch.channels_last)

    def in_bf16(forward: Callable[..., Any], *more: Any) -> Callable[[Tensor], Any]:
        def run(x: Tensor) -> Any:
            with torch.no_grad(), autocast(device, "bf16"):
                return forward(x, *more)

        return run

    if hasattr(detector, "roi_head"):
        backbone: Any = detector.get_submodule("backbone")
        backbone.forward = capture(in_bf16(backbone.forward), detector.normalize(images))
        return
    replay = capture(in_bf16(detector.forward, sizes), images)
    detector.forward = lambda images, *_: replay(images)


def capture(function: Callable[[Tensor], Any], example: Tensor) -> Callable[[Tensor], Any]:
    """`function` as a CUDA graph: it writes into the same tensors with every call."""
    given, stream = example.clone(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what is made once, such as anchors, must be there before
            function(given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(given)

    def replay(images: Tensor) -> Any:
        given.copy_(images)
        graph.replay()
        return outputs

    return replay


def require_cuda(tensor: Tensor) -> None:
    """Say in a word why there are no graphs elsewhere."""
    if not tensor.is_cuda:
        raise RuntimeError("CUDA graphs need a GPU")
