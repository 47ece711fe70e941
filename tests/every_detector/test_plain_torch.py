"""What users do to a module of torch: other types and devices, empty memory, copies, pickles, compilers, export."""

import copy
import functools
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from focaldet.errors import ConfigError
from focaldet.export.proof import compare_detections
from focaldet.models import Detector, build
from focaldet.models.faster_rcnn.model import FasterRCNN
from focaldet.types import Detections, ImageSize
from focaldet.weights import override_postprocess
from tests import tiny_backbones  # noqa: F401  their names are used here

TINY = {"backbone": "resnet_tiny"}
SMALL_HEAD = {"proposals": {"detect": {"top_k": 20, "keep": 10}}}
DETECTORS = {
    "retinanet_r18_fpn": {**TINY, "width": 16, "head_depth": 1},
    "ssd_efficientnet_lite0": {"extra_width": 32, "module_widths": [16]},
    "dssd_r18": {**TINY, "extra_width": 32, "module_widths": [16], "decoder": {"width": 16, "inter_width": 16}},
    "yolov2_tiny": {"width": 32},
    "faster_rcnn_r18_fpn": {**TINY, "width": 16, "head_width": 16, **SMALL_HEAD},
    "faster_rcnn_r18_c4": {**TINY, "pooling": {"size": 4}, "plus": {"context": True}, **SMALL_HEAD},
    "faster_rcnn_r101_c4_plus": {
        **TINY,
        "norm": "batch",
        "pooling": {"size": 4},  # of the kind max
        "plus": {"scales": []},  # which no graph can say; the refinement and the context remain
        "anchors": {"base_scale": 1.0},
        "proposals": {"detect": {"top_k": 60, "keep": 40}},
    },
    "faster_rcnn_inception_resnet_small_tdm": {
        "backbone": "inception_resnet_tiny",
        "top_down": [16],
        "rpn_head": {"width": 16},
        **SMALL_HEAD,
    },
}
DAILY = (
    "retinanet_r18_fpn",
    "yolov2_tiny",
    "faster_rcnn_r18_fpn",
)  # exported every day; the others, and what is compiled, take their time
ROOT = Path(__file__).parents[2]
SIZES = [ImageSize(64, 64), ImageSize(50, 64)]
every = pytest.mark.parametrize("name", DETECTORS)


def make(name: str) -> Detector:
    torch.manual_seed(0)
    return build(name, class_names=("cat", "dog"), architecture={"frozen_stages": 0, **DETECTORS[name]}).eval()


@functools.cache
def shared(name: str) -> Detector:
    """Never change it."""
    return make(name)


def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)


def values(outputs: object) -> list[Tensor]:
    """All tensors of nested outputs."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [value for part in outputs for value in values(part)] if isinstance(outputs, tuple) else []


@functools.cache
def expected(name: str) -> list[Tensor]:
    with torch.no_grad():
        return values(shared(name)(images(), SIZES))


def assert_same_outputs(detector: Detector, name: str) -> None:
    with torch.no_grad():
        actual = values(detector(images(), SIZES))
    assert len(actual) == len(expected(name))
    assert all(torch.equal(*pair) for pair in zip(actual, expected(name), strict=True))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type(name: str, dtype: torch.dtype) -> None:
    detector = copy.deepcopy(shared(name)).to(dtype)
    assert detector.dtype == dtype
    with torch.no_grad():
        outputs = detector(images(), SIZES)
        first = getattr(outputs, "rpn", outputs)
        assert first.anchors.dtype == torch.float32
        assert all(value.isfinite().all() for value in values(outputs))
        detections = detector.detect(outputs, SIZES)
    assert [each.boxes.dtype for each in detections] == [torch.float32] * 2
    exact = next(value for value in expected(name) if value.is_floating_point())
    difference = (values(outputs)[0].float() - exact).abs().mean()
    assert difference <= 0.1 * max(1.0, float(exact.std())) * (1e-3 if dtype == torch.float64 else 1.0)


@every
def test_half_and_back_keeps_the_scaling_of_the_input_exact(name: str) -> None:
    detector = make(name).half().float()
    detector.load_state_dict(shared(name).state_dict())
    assert_same_outputs(detector, name)


@every
def test_from_meta_through_empty_memory(name: str) -> None:
    with torch.device("meta"):
        detector = make(name)
    detector.to_empty(device="cpu").load_state_dict(shared(name).state_dict())
    assert_same_outputs(detector.eval(), name)


@every
def test_from_meta_by_assignment(name: str) -> None:
    with torch.device("meta"):
        detector = make(name)
    detector.load_state_dict(copy.deepcopy(shared(name).state_dict()), assign=True)
    assert_same_outputs(detector, name)


@every
def test_all_that_is_not_in_the_state_dict_follows_from_the_preprocessing(name: str) -> None:
    """A further buffer outside the state dict would have to survive `to_empty` too."""
    detector = shared(name)
    assert {each for each, _ in detector.named_buffers()} - set(detector.state_dict()) == {"_mean", "_std"}


@every
def test_to_a_device_and_back(name: str) -> None:
    detector = make(name).to("meta")
    outputs = None
    if not isinstance(detector, FasterRCNN):  # whose number of regions depends on numbers
        with torch.device("meta"):
            outputs = detector(images().to("meta"), SIZES)
        assert all(value.is_meta for value in values(outputs))
    if torch.cuda.is_available():
        detector = copy.deepcopy(shared(name)).to("cuda")
        with torch.no_grad():
            outputs = detector(images().cuda(), SIZES)
        assert all(value.is_cuda for value in values(outputs))
        assert_same_outputs(detector.cpu(), name)


@every
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies(name: str, duplicate) -> None:
    other = duplicate(shared(name))
    assert (other.config, other.preprocessing, other.class_names) == (
        shared(name).config,
        shared(name).preprocessing,
        shared(name).class_names,
    )
    assert_same_outputs(other, name)


@every
def test_sizes_as_a_tensor(name: str) -> None:
    with torch.no_grad():
        actual = values(shared(name)(images(), torch.tensor(SIZES)))
    assert all(torch.equal(*pair) for pair in zip(actual, expected(name), strict=True))


def check_compiled(name: str) -> None:
    """Detectors of one stage as one graph; the second stage, whose regions nobody can count beforehand, as several."""
    detector = make(name)
    compiled = torch.compile(detector, backend="aot_eager", fullgraph=not isinstance(detector, FasterRCNN))
    with torch.no_grad():
        actual = values(compiled(images(), torch.tensor(SIZES)))
    for value, right in zip(actual, expected(name), strict=True):
        torch.testing.assert_close(value, right, rtol=1e-3, atol=1e-3)
    assert_same_outputs(make(name), name)


@pytest.mark.parametrize("names", [pytest.param((each,), marks=pytest.mark.prove) for each in DETECTORS])
def test_compiled(names: tuple[str, ...]) -> None:
    """In a process of its own: the checks of shapes that the tests put around every function are no part of a graph."""
    lines = ["from tests.every_detector.test_plain_torch import check_compiled"]
    lines += [f"check_compiled({name!r})" for name in names]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "name", [name if name in DAILY else pytest.param(name, marks=pytest.mark.prove) for name in DETECTORS]
)
def test_exported(name: str) -> None:
    detector = make(name)
    arguments = (images(), torch.tensor(SIZES))
    if isinstance(detector, FasterRCNN):
        with pytest.raises(ConfigError, match=r"Faster R-CNN cannot be exported .* number of regions"):
            torch.export.export(detector, arguments)
    else:
        program = torch.export.export(detector, arguments)
        with torch.no_grad():
            actual = values(program.module()(*arguments))
        for value, right in zip(actual, expected(name), strict=True):
            torch.testing.assert_close(value, right, rtol=1e-4, atol=1e-4)
    assert_same_outputs(make(name), name)


@pytest.mark.parametrize("across", [False, True])
@every
def test_detections_of_fixed_shapes_are_the_same(name: str, across: bool) -> None:
    """With a threshold that lets a detector that has learned nothing detect much, and class layers that differ."""
    detector = make(name)
    detect = {"score_threshold": 0.005, "across_classes": across}
    detector.config = override_postprocess(detector.config, {"detect": detect})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in detector.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.05)
        right = detector.detect(detector(images(), SIZES), SIZES)
        padded = detector.detect_padded(images(), torch.tensor(SIZES))
    assert sum(map(len, right)) >= (4 if across else 10)
    rows = zip(padded.boxes, padded.scores, padded.labels, padded.counts.tolist(), strict=True)
    actual = [Detections(boxes[:count], scores[:count], labels[:count]) for boxes, scores, labels, count in rows]
    seen = compare_detections(right, actual)
    assert seen.matched == seen.num_detections
    assert seen.unmatched == 0
    assert seen.largest_px < 1e-3
    assert seen.largest_score < 1e-6


@pytest.mark.parametrize("name", ["retinanet_r18_fpn", "ssd_efficientnet_lite0"])
def test_what_a_trace_makes_is_not_kept(name: str) -> None:
    """Of a size that nobody has asked for before, so that the cache is empty."""
    sizes = [ImageSize(96, 64)]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        make(name)(torch.zeros(1, 3, 96, 64), sizes)
    with torch.no_grad():
        outputs = make(name)(torch.zeros(1, 3, 96, 64), sizes)
    assert all(type(value) is Tensor and value.isfinite().all() for value in values(outputs))
