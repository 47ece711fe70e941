"""A trained detector as a file: the same detections, described, rejected where they differ, opened everywhere."""

import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch

import focaldet
from focaldet.cli import main
from focaldet.data.dataset import FileSource
from focaldet.data.loading.collate import blank_image
from focaldet.errors import CheckpointError, ConfigError
from focaldet.export import benchmark as benchmarks
from focaldet.export import export, graph, quantize
from focaldet.export.graph import Traced, trace
from focaldet.export.images import open_export_images
from focaldet.export.metadata import describe_export, read_limits, read_training
from focaldet.export.openvino_file import convert_openvino, write_openvino
from focaldet.export.proof import Limits
from focaldet.export.quantize import postprocess_names
from focaldet.models import build
from focaldet.models.faster_rcnn.plus import RefineConfig
from focaldet.ops.padded import PaddedDetections
from focaldet.types import Resize
from focaldet.weights import load_detector, read_metadata
from focaldet.weights.checkpoint import describe_detector
from focaldet.weights.exported.detector import ExportedDetector
from focaldet.weights.exported.graphs import import_library
from focaldet.weights.thresholds import ScoreThreshold, ScoreThresholds, read_thresholds
from tests.evaluation.cases import BrightDetector, make_image
from tests.every_detector.test_plain_torch import DETECTORS
from tests.export.conftest import unchecked_shapes
from tests.test_docs import code_of

PROVE = pytest.mark.prove  # torch.export takes the program apart for half a minute
every = pytest.mark.parametrize("name", ["onnx", "openvino", pytest.param("torch", marks=PROVE)])


def pixels(count: int, *size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    small = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return torch.nn.functional.interpolate(small.float(), size, mode="bilinear").byte()


@every
@pytest.mark.parametrize(("count", "height", "width"), [(1, 64, 96), (4, 160, 128), (2, 32, 256)])
def test_the_file_detects_what_the_detector_does(exported, small_run, name, count, height, width):
    """At batch 1 and 4 and two sizes, neither of them what was traced; with padding at the right and the bottom."""
    sizes = [focaldet.ImageSize(height - 5 * image, width - 7 * image) for image in range(count)]
    images = pixels(count, height, width)
    detector, file = load_detector(small_run).detector.eval(), load_detector(getattr(exported, name).path).detector
    padded = images
    if name == "torch" and height < 64:  # a program is padded to what it takes
        padded = blank_image(focaldet.ImageSize(64, width), preprocessing=detector.preprocessing).repeat(count, 1, 1, 1)
        padded[:, :, :height] = images
    with torch.no_grad():
        right = detector.detect(detector(padded, sizes), sizes)
    actual = file.detect(file(images, sizes), sizes)
    for one, other in zip(right, actual, strict=True):
        assert len(one) == len(other) > 50
        torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=0)
    seen = export.compare_detections(right, actual)
    assert seen.unmatched <= 2
    assert seen.largest_px < 0.05


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_threads_detect_with_one_file_at_the_same_time(exported, name):
    """As the lanes of the service do; each gets the detections of its own images."""
    file = load_detector(getattr(exported, name).path).detector
    batches = [pixels(count, 64, 96) for count in (1, 2, 3, 4)]

    def detect(images):
        sizes = [focaldet.ImageSize(64, 96)] * len(images)
        return file.detect(file(images, sizes), sizes)

    alone = [detect(images) for images in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for one, other in zip(alone, pool.map(detect, batches), strict=True):
                assert [len(each) for each in one] == [len(each) for each in other]
                torch.testing.assert_close([each.boxes for each in one], [each.boxes for each in other])


@every
def test_the_comparison_is_done_on_the_images_of_the_run(exported, name):
    result = getattr(exported, name)
    assert result.is_accepted
    assert result.path.is_file()
    assert result.images == "4 images of val"
    assert result.comparison.num_images == 4
    assert result.comparison.matched > 100
    assert (result.ap, result.speed_ratio) == (None, None)


@every
def test_the_file_says_what_it_is(exported, small_run, name):
    metadata = load_detector(getattr(exported, name).path).metadata
    stated = read_metadata(small_run / "weights" / "best.safetensors")
    assert metadata.class_names == stated.class_names
    assert metadata.category_ids == stated.category_ids
    assert metadata.preprocessing == stated.preprocessing
    assert (metadata.license, metadata.model, metadata.config) == (stated.license, stated.model, stated.config)
    assert metadata.extra["format"] == name
    assert metadata.extra["score_threshold"] == "0"
    environment = json.loads((small_run / "environment.json").read_text())
    assert json.loads(metadata.extra["training"])["data"] == environment["data"]
    check = json.loads(metadata.extra["check"])
    assert check["comparison"]["matched"] == getattr(exported, name).comparison.matched
    assert check["path"] == getattr(exported, name).path.name


def test_onnx_is_one_valid_file_of_opset_18_without_names_of_this_machine(exported):
    model = onnx.load(exported.onnx.path)
    onnx.checker.check_model(model, full_check=True)
    assert {each.domain: each.version for each in model.opset_import}[""] == 18
    kinds = {node.op_type for node in model.graph.node}
    assert {"NonMaxSuppression", "ScatterND"} <= kinds
    assert b"focaldet/" not in exported.onnx.path.read_bytes()
    assert [each.name for each in model.graph.input] == ["images", "sizes"]
    assert [each.name for each in model.graph.output] == ["boxes", "scores", "labels", "count"]
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [bool(each.dim_param) for each in dimensions] == [True, False, True, True]


def test_openvino_states_what_its_model_api_asks_for(exported):
    text = exported.openvino.path.read_text()
    assert exported.openvino.path.with_suffix(".bin").is_file()
    for key, value in (("labels", "0 1 2 3 4 5 6 7 8 9"), ("resize_type", "fit_to_window")):
        assert f'<{key} value="{value}"' in text


@pytest.mark.prove
def test_half_precision_takes_half_the_room(exported, small_run, tmp_path, monkeypatch):
    monkeypatch.setitem(export.LIMITS, "fp16", Limits(px=9.0, score=0.1, unmatched=0.5, least_score=0.0))
    half = export.export_detector(small_run, tmp_path / "half.xml", format="openvino", precision="fp16")
    sizes = [each.path.with_suffix(".bin").stat().st_size for each in (half, exported.openvino)]
    assert sizes[0] < 0.6 * sizes[1]
    assert half.comparison.largest_score > 0
    assert load_detector(half.path).metadata.extra["precision"] == "fp16"


@PROVE
def test_pt2_runs_without_focaldet(exported):
    """With the lines of the guide."""
    lines = code_of("export", "run_pt2.py").replace("cells.pt2", str(exported.torch.path))
    lines = f"import sys\n{lines}\nprint(any(name.startswith('focaldet') for name in sys.modules))\n"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    *shapes, has_focaldet = done.stdout.splitlines()
    assert (shapes[-1], has_focaldet) == ("torch.Size([3, 100, 4]) torch.Size([3])", "False")


@every
def test_predict_and_evaluate_take_the_file(exported, small_run, demo_data, name):
    path = getattr(exported, name).path
    right, file = focaldet.load(small_run, precision="fp32"), focaldet.load(path)
    assert file.class_names == right.class_names
    image = make_image(size=(60, 80), box=(10, 10, 40, 40))
    one, other = right(image), file(image)
    assert len(one) == len(other)
    torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=0)
    data = focaldet.DataConfig(path=demo_data / "instances_test.json", images=demo_data / "images")
    before, after = (
        focaldet.evaluate(each, data, precision=exact) for each, exact in ((small_run, "fp32"), (path, None))
    )
    assert (before.num_detections, before.num_images) == (after.num_detections, after.num_images)
    assert before.ap == pytest.approx(after.ap, abs=2e-3)


def test_the_detector_still_detects_after_an_export(exported, small_run):
    """What a trace makes of anchors must not stay behind."""
    detections = focaldet.load(small_run)(make_image(size=(60, 80), box=(10, 10, 40, 40)))
    assert len(detections) > 50
    assert type(detections.boxes) is torch.Tensor and detections.boxes.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp32"}, "precision: .* is an exported file, in which it is fixed"),
        ({"architecture": {"detect": {"nms_iou": 0.3}}}, "architecture: .* is an exported file"),
    ],
)
def test_what_is_in_the_graph_cannot_be_changed(exported, options, message):
    with pytest.raises(ConfigError, match=message):
        focaldet.load(exported.onnx.path, **options)


def test_the_size_of_the_images_can_be_changed(exported):
    assert focaldet.load(exported.onnx.path, size=128).detector.preprocessing.resize.size == 128


def test_an_exported_file_cannot_be_trained_or_exported_again(exported, tmp_path):
    detector = load_detector(exported.onnx.path).detector
    with pytest.raises(ConfigError, match="cannot be saved as weights"):
        detector.save(tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"model\.onnx: an exported file cannot be exported; take the run folder"):
        export.export_detector(exported.onnx.path, tmp_path / "again.onnx")


def test_a_file_that_differs_is_rejected_and_kept_aside(traced_once, small_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(export.LIMITS, "fp32", Limits(px=-1.0, score=1.0, unmatched=1.0, least_score=0.0))
    out = tmp_path / "model.onnx"
    out.write_bytes(b"what was there before")
    assert main(["export", str(small_run), "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert "matched" in printed.out
    assert "model.onnx.rejected: rejected: " in printed.err
    assert "px between boxes, at most -1 is allowed" in printed.err
    assert out.read_bytes() == b"what was there before"
    assert (tmp_path / "model.onnx.rejected").stat().st_size > 10_000
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "model.onnx.rejected"]


@pytest.fixture
def files_of(tmp_path):
    """Written files of an export that are still to be moved, with this content, and where they go."""

    def make(content):
        folder = tmp_path / "trial"
        folder.mkdir(exist_ok=True)
        for name in ("m.xml", "m.bin"):
            (folder / name).write_text(content)
        return folder / "m.xml", tmp_path / "m.xml"

    return make


def texts_in(folder):
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}


def test_a_file_that_is_accepted_takes_the_place_of_all_before_it(files_of, tmp_path):
    trial, path = files_of("rejected")
    assert export.move_result(trial, path, is_accepted=False) == tmp_path / "m.xml.rejected"
    assert texts_in(tmp_path) == {"m.xml.rejected": "rejected", "m.bin.rejected": "rejected"}
    assert export.move_result(files_of("first")[0], path, is_accepted=True) == path
    assert texts_in(tmp_path) == {"m.xml": "first", "m.bin": "first"}


@pytest.mark.parametrize("moves", [0, 1])
def test_a_kill_between_two_moves_leaves_no_mixture(files_of, tmp_path, monkeypatch, moves):
    trial, path = files_of("first")
    export.move_result(trial, path, is_accepted=True)
    replace_file, done = Path.replace, []

    def replace_until_killed(self, target):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(target)
        return replace_file(self, target)

    trial, path = files_of("second")
    monkeypatch.setattr(Path, "replace", replace_until_killed)
    with pytest.raises(KeyboardInterrupt):
        export.move_result(trial, path, is_accepted=True)
    texts = texts_in(tmp_path)
    assert "m.xml" not in texts or texts["m.xml"] == texts["m.bin"]


def detections_of(*scores):
    boxes = torch.tensor([[10.0 * row, 0, 10 * row + 8, 8] for row in range(len(scores))]).reshape(-1, 4)
    return focaldet.Detections(boxes, torch.tensor(scores), torch.zeros(len(scores), dtype=torch.int64), ("a",))


class Silent:
    """A graph that is not run."""

    statement, runs_in_turn = None, False

    def __init__(self, least_px=1):
        self.least_px = least_px

    def run(self, images, sizes):
        raise AssertionError("nobody asks it")


def file_of(detector, *, size_divisor=32, least_px=1):
    """An exported file of the detector that pads images to this."""
    about = describe_detector(detector, license=None, extra={})
    about = replace(about, preprocessing=replace(about.preprocessing, size_divisor=size_divisor))
    return ExportedDetector(Silent(least_px), about, source="m.onnx")


@pytest.mark.parametrize(("own", "notes"), [(8, 1), (32, 0)])
def test_boxes_are_compared_as_the_file_pads_and_the_ap_is_that_of_the_detector(small_run, monkeypatch, own, notes):
    """Where the two pad differently they detect differently: no fault of the file, but its user must know."""
    detector, seen = load_detector(small_run).detector, []
    images = open_export_images(small_run, detector, data=None, split="val", needs_ap=True)
    detector.preprocessing = replace(detector.preprocessing, size_divisor=own)

    def note_padding(each, source, **_):
        seen.append(each.preprocessing.size_divisor)
        return SimpleNamespace(detections=[detections_of()] * len(source.dataset), milliseconds_per_image=1.0)

    monkeypatch.setattr(export, "detect", note_padding)
    result = export.compare_file(detector, file_of(detector), images, precision="fp32", max_drop=0.01)
    assert seen == [32, 32, own, 32]
    assert detector.preprocessing.size_divisor == own
    assert sum(f"multiples of 32 px, the detector in torch to {own}" in text for text in result.notes) == notes


@pytest.mark.parametrize(("least_px", "side"), [(1, 32), (64, 64)])
def test_the_detector_is_given_what_the_graph_gets(least_px, side):
    """A program of torch takes no side below 64 px, which its file pads."""
    detector = BrightDetector()
    with export.give_bytes(detector, file_of(detector, least_px=least_px)):
        detector(torch.full((1, 3, 32, 96), 7.6), [focaldet.ImageSize(32, 96)])
    (given,) = detector.seen
    assert given.dtype == torch.uint8
    assert given.shape == (1, 3, side, 96)
    assert given[0, 0, :32].eq(8).all()
    padding = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None]
    assert torch.equal(given[0, :, 32:], padding.expand(3, side - 32, 96))


@pytest.mark.parametrize(
    ("own", "traceable", "asked", "padded"),
    [(1, True, [1], 1), (24, False, [24, 32], 96), (32, True, [32], 32), (64, True, [32], 64)],
)
def test_the_graph_takes_what_the_detector_pads_to_where_it_can_be_traced(monkeypatch, own, traceable, asked, padded):
    steps = []

    def trace_or_fail(detector, size=None, *, step_px=32):
        steps.append(step_px)
        if not traceable and step_px != 32:
            raise ConfigError("a rest of a division")

    monkeypatch.setattr(graph, "trace_steps", trace_or_fail)
    assert trace(BrightDetector(size_divisor=own)).size_divisor == padded
    assert steps == asked


@pytest.mark.parametrize(
    ("before", "after", "least", "reason"),
    [
        ((0.9, 0.2), (0.88, 0.21), 0.3, None),
        ((0.2, 0.1), (0.2, 0.1), 0.2, None),
        ((0.2, 0.1), (), 0.2, "of the detections unmatched"),  # a file that has collapsed, of a weak detector
        ((), (), 0.3, "nothing was detected"),
    ],
)
def test_int8_is_compared_where_the_detector_is_sure(small_run, monkeypatch, before, after, least, reason):
    detector = load_detector(small_run).detector
    images = open_export_images(small_run, detector, data=None, split="val")
    file = file_of(detector)
    answers = {id(detector): before, id(file): after}
    monkeypatch.setattr(
        export, "detect", lambda each, *_, **__: SimpleNamespace(detections=[detections_of(*answers[id(each)])] * 4)
    )
    result = export.compare_file(detector, file, images, precision="int8", max_drop=0.01)
    assert result.comparison.least_score == pytest.approx(least)
    assert [reason in text for text in result.reasons] == ([True] if reason else [])


def test_an_int8_file_that_detects_nothing_is_rejected_where_the_split_has_no_boxes(small_run, monkeypatch):
    """0 and 0 would be no fall of the AP."""
    detector = load_detector(small_run).detector
    images = open_export_images(small_run, detector, data=None, split="val", needs_ap=True)
    dataset = images.labeled.dataset
    bare = FileSource(dataset.select_boxes(torch.zeros(len(dataset.boxes), dtype=torch.bool)))
    timed = SimpleNamespace(detections=[detections_of()] * len(dataset), milliseconds_per_image=1.0)
    monkeypatch.setattr(export, "detect", lambda *_, **__: timed)
    images = replace(images, labeled=bare)
    result = export.compare_file(detector, file_of(detector), images, precision="int8", max_drop=0.01)
    assert (result.ap, result.exported_ap) == (None, None)
    assert [text.partition(":")[0] for text in result.reasons] == ["nothing was detected on these images"]


@pytest.mark.parametrize(
    ("before", "after", "is_accepted"),
    [
        ((0.9, 0.8, 0.7, 0.6), (0.9, 0.8, 0.7), True),  # more than 1 %
        ((0.9, 0.8), (0.9,), True),
        ((0.9,), (), False),
        ((0.9, 0.8, 0.7, 0.6), (0.9,), False),
    ],
)
def test_one_decision_that_tips_over_does_not_reject_a_file(before, after, is_accepted):
    seen = export.compare_detections([detections_of(*before)], [detections_of(*after)])
    assert (seen.reasons(export.LIMITS["fp32"]) == ()) == is_accepted


@pytest.mark.parametrize(
    ("words", "has_ap", "most"),
    [
        (["--format", "openvino", "--precision", "int8"], True, 0.01),
        (["--format", "openvino", "--max-drop", "0.02"], True, 0.02),
        (["--format", "openvino"], False, 0.01),
    ],
)
def test_the_ap_is_measured_on_the_images_of_the_run(small_run, tmp_path, monkeypatch, words, has_ap, most):
    """For int8 and where somebody types a limit, also without --data."""
    seen = []

    def stop(detector, images, *, max_drop, **_):
        seen.append((images.labeled is not None and images.class_match is not None, max_drop))
        raise ConfigError("seen")

    monkeypatch.setattr(export, "convert_detector", stop)
    assert main(["export", str(small_run), "--out", str(tmp_path / "m.xml"), *words]) == 2
    assert seen == [(has_ap, most)]


def test_a_limit_on_the_fall_of_the_ap_needs_boxes(small_run, tmp_path, capsys):
    weights = small_run / "weights" / "best.safetensors"
    assert main(["export", str(weights), "--out", str(tmp_path / "m.onnx"), "--max-drop", "0.02"]) == 2
    assert "max_drop: AP cannot be measured, since the weights are not in a run folder" in capsys.readouterr().err


def test_the_ap_of_the_best_evaluation_is_stated_without_data(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    assert "ap" not in read_training(run)
    events = [{"event": "evaluation", "best": best, "ap": ap} for best, ap in ((True, 0.2), (True, 0.4), (False, 0.3))]
    (run / "events.jsonl").write_text("\n".join([*map(json.dumps, events), '{"event": "evalu']))
    assert read_training(run)["ap"] == 0.4


def test_what_was_measured_of_another_size_is_not_stated_as_that_of_the_file(small_run, tmp_path):
    """With --size or --architecture the AP of the training is of another detector, and the thresholds are."""
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    (run / "events.jsonl").write_text('{"event": "evaluation", "best": true, "ap": 0.4}\n')
    kept = ScoreThresholds(ScoreThreshold(None, 0.5, 0.9, 0.9, 0.9, 50), (), data="val")
    stated = []
    for options in ({}, {"size": 96}, {"architecture": {"detect": {"nms_iou": 0.3}}}):
        trained, is_changed = export.open_trained(run, focaldet.InferenceOptions(**options), purpose="exported")
        trained = replace(trained, thresholds=kept)
        about = describe_export(trained, trained.detector, run, format="onnx", precision="fp32", is_changed=is_changed)
        ap, text = json.loads(about.extra["training"]).get("ap"), about.extra.get("score_thresholds")
        stated.append((ap, text and read_thresholds(about.extra, source="m.onnx").data))
    changed = (None, "val, with another input size or other settings")
    assert stated == [(0.4, None), changed, changed]


def test_the_overlap_that_is_stated_is_that_of_the_refinement():
    detector = build("faster_rcnn_r18_c4", num_classes=2, architecture=DETECTORS["faster_rcnn_r18_c4"])
    assert read_limits(detector)["nms_iou"] == detector.config.detect.nms_iou
    plus = replace(detector.config.plus, refine=RefineConfig(nms_iou=0.25))
    detector.config = replace(detector.config, plus=plus)
    assert read_limits(detector)["nms_iou"] == 0.25


@pytest.mark.parametrize("command", ["export", "benchmark"])
@pytest.mark.parametrize("flag", ["--device", "--batch-size", "--workers", "--allow-nonfinite"])
def test_flags_that_would_do_nothing_are_unknown(command, flag, capsys):
    assert main([command, "no run", *(["--out", "m.onnx"] if command == "export" else []), flag, "1"]) == 2
    assert flag in capsys.readouterr().err


def test_an_exported_file_is_not_benchmarked(exported, capsys):
    assert main(["benchmark", str(exported.onnx.path)]) == 2
    assert "model.onnx: an exported file cannot be benchmarked; take the run folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "benchmark"])
def test_several_processes_are_refused(small_run, tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr(export, "num_processes", lambda: 2)
    words = ["--out", str(tmp_path / "m.onnx")] if command == "export" else []
    assert main([command, str(small_run), *words]) == 2
    assert "by one process; start it without torchrun or SLURM tasks" in capsys.readouterr().err


class BranchingDetector(BrightDetector):
    """Somebody's detector, which does something else for dark images."""

    def detect_padded(self, images, sizes):
        count = 1 if images.float().mean() > 9 else 2
        boxes = images.new_zeros(len(sizes), count, 4).float()
        return PaddedDetections(boxes, boxes[..., 0], boxes[..., 0].long(), sizes[:, 0])


def test_a_detector_that_torch_cannot_trace_is_one_line():
    start = "export: torch.export cannot trace BranchingDetector.detect_padded: "
    with unchecked_shapes(), pytest.raises(ConfigError) as caught:
        trace(BranchingDetector())
    text = str(caught.value)
    assert (text.startswith(start), len(text) > len(start) + 10, "\n" in text) == (True, True, False)


def test_what_openvino_cannot_convert_is_one_line(monkeypatch):
    def fail(_):
        raise RuntimeError("Exception from src/core.cpp:7:\nCheck 'true' failed\nat all")

    monkeypatch.setattr(import_library("openvino", extra="openvino"), "convert_model", fail)
    with pytest.raises(ConfigError, match=r"export: openvino cannot convert the model: Check 'true' failed$"):
        convert_openvino(SimpleNamespace(SerializeToString=lambda: b""))


def test_a_format_that_fails_is_a_note_in_its_row(small_run, monkeypatch):
    """Whatever library it fails in; the others are measured."""

    def fail(error):
        def write(*_):
            raise error

        return write

    writers = {
        ("onnx", "fp32"): fail(CheckpointError("m.onnx: onnxruntime cannot open it")),
        ("openvino", "fp32"): fail(RuntimeError("Exception from src/core.cpp:7:\nno such primitive\nat all")),
    }
    monkeypatch.setattr(benchmarks, "convert_all", lambda *_: iter(writers.items()))
    rows = {row.name: row for row in benchmarks.benchmark(small_run, rounds=1)}
    assert rows["onnx fp32"].note == "m.onnx: onnxruntime cannot open it"
    assert rows["openvino fp32"].note == "no such primitive"
    assert rows["torch, eager"].milliseconds_per_image > 0


@pytest.mark.parametrize("fails", ["trace", "convert_onnx"])
def test_what_fails_for_several_formats_is_tried_once_and_noted_in_each_row(small_run, monkeypatch, fails):
    """A detector that cannot be traced has its time in torch."""
    tries = []

    def fail(_):
        tries.append(fails)
        raise ConfigError(f"{fails} cannot do it")

    monkeypatch.setattr(export, "trace", lambda _: Traced(None, 32))
    monkeypatch.setattr(export, fails, fail)
    monkeypatch.setattr(benchmarks, "VARIANTS", benchmarks.VARIANTS[:-1])  # what is left is made of the ONNX model
    rows = {row.name: row for row in benchmarks.benchmark(small_run, rounds=1)}
    assert rows.pop("torch, eager").milliseconds_per_image > 0
    assert len(rows) == 4
    assert {row.note for row in rows.values()} == {f"{fails} cannot do it"}
    assert tries == [fails]


def test_each_file_is_timed_on_images_that_are_padded_as_it_pads(small_run, monkeypatch):
    times = []

    def note_batches(detector, batches):
        times.append((detector.preprocessing.size_divisor, {each.images.shape[-1] % 96 for each in batches}))
        return 1.0

    def make(path, *_):
        path.write_bytes(b"")

    file = file_of(load_detector(small_run).detector, size_divisor=96)
    monkeypatch.setattr(benchmarks, "convert_all", lambda *_: [(("onnx", "fp32"), make)])
    opened = iter([SimpleNamespace(detector=file)])
    monkeypatch.setattr(benchmarks, "load_detector", lambda _: next(opened))
    monkeypatch.setattr(benchmarks, "_time", note_batches)
    benchmarks.benchmark(small_run, rounds=1)
    assert times == [(96, {0}), *[(32, {64}), (96, {0})] * 2]


def test_the_ap_of_both_is_compared_where_data_are_given(traced_once, small_run, demo_data, tmp_path, capsys):
    out = tmp_path / "model.onnx"
    arguments = ["export", str(small_run), "--out", str(out), "--data", str(demo_data), "--split", "test", "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["path"] == str(out)
    assert result["ap"] == pytest.approx(result["exported_ap"], abs=1e-3)
    assert result["speed_ratio"] > 0


def test_a_detector_that_resizes_to_fractions_is_compared_on_bytes(exported, small_run):
    """Its file rounds them: the detector must be given the same, and be as it was afterwards."""
    detector, seen = load_detector(small_run).detector, []
    detector.preprocessing = replace(detector.preprocessing, resize=Resize(size=64, max_size=None, antialias=False))
    detector.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    images = export.open_export_images(small_run, detector, data=None, split="val")
    file = load_detector(exported.onnx.path).detector
    file.preprocessing = replace(file.preprocessing, resize=detector.preprocessing.resize)
    result = export.compare_file(detector, file, images, precision="fp32", max_drop=0.01)
    assert result.is_accepted
    assert result.notes == (export.ROUNDED_NOTE,)
    before = len(seen)
    export.detect(detector, images.proof)
    assert {*seen[before:]} == {torch.float32}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "m.xml"], "out: a file of onnx ends in .onnx, got m.xml"),
        (["--out", "M.XML", "--format", "openvino"], "out: a file of openvino ends in .xml, got M.XML"),
        (["--out", "m.onnx", "--precision", "int8"], "precision: int8 is for --format openvino"),
        (["--out", "m.onnx", "--max-drop", "2"], "max_drop: must be in 0…1, got 2"),
    ],
)
def test_what_does_not_fit_together_is_said_before_the_work(arguments, message, capsys):
    assert main(["export", "no run", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["m.xml", "m.bin", "m.xml.rejected", "m.bin.rejected"])
def test_a_folder_in_the_place_of_a_file_is_said_before_the_work(tmp_path, capsys, name):
    (tmp_path / name).mkdir()
    assert main(["export", "no run", "--out", str(tmp_path / "m.xml"), "--format", "openvino"]) == 2
    assert f"{name} is a folder" in capsys.readouterr().err


def test_what_openvino_says_of_a_file_it_cannot_write_is_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Exception from src/core.cpp:7:\nCannot open the file\nat all")

    monkeypatch.setattr(import_library("openvino", extra="openvino"), "save_model", fail)
    with pytest.raises(CheckpointError, match=r"m\.xml: cannot be written: Cannot open the file$"):
        write_openvino(SimpleNamespace(), tmp_path / "m.xml", half=False, statements={})


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_a_damaged_file_is_an_error_in_one_line(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(CheckpointError, match=f"broken{suffix}: ") as caught:
        focaldet.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_program_is_refused(exported, tmp_path):
    model = onnx.load(exported.onnx.path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(CheckpointError, match="was not written by `focaldet export`"):
        focaldet.load(tmp_path / "foreign.onnx")


@PROVE
def test_a_pt2_with_a_pickle_is_refused_unread(exported, tmp_path):
    """torch would unpickle it, and a pickle may run anything."""
    path = tmp_path / "evil.pt2"
    with zipfile.ZipFile(exported.torch.path) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            content = source.read(info)
            if info.filename.endswith("model_weights_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
                assert b'"use_pickle": true' in content
            target.writestr(info.filename, content)
    with pytest.raises(CheckpointError, match="pickle"):
        focaldet.load(path)


def test_a_library_that_is_not_installed_is_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime is needed and not installed: pip install 'focaldet\[onnx\]'"):
        focaldet.load(exported.onnx.path)


def test_nothing_is_sent_to_anybody(exported):
    """openvino and nncf would report their use: in this process they do not have what they report with."""
    program = f"""
import sys
used = []
sys.addaudithook(lambda event, arguments: used.append(event) if event.startswith("socket.") else None)
from focaldet.weights.exported.graphs import import_library, open_graph
from pathlib import Path
open_graph(Path({str(exported.openvino.path)!r}))
nncf = import_library("nncf", extra="openvino")
from nncf.telemetry import telemetry
print(type(telemetry).__name__, sys.modules["openvino_telemetry"], used)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["None", "[]"]
    assert done.stdout.split()[-3] in ("NNCFTelemetryStub", "MagicMock")  # of nncf itself


def test_everything_behind_the_network_is_left_alone(exported):
    model = import_library("openvino", extra="openvino").Core().read_model(exported.openvino.path)
    kinds = {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
    skipped = {kinds[name] for name in postprocess_names(model)}
    assert {"NonMaxSuppression", "TopK", "Sigmoid", "Exp", "ScatterNDUpdate"} <= skipped
    assert not {"Convolution", "MVN", "Relu", "MaxPool"} & skipped


def test_layers_are_counted_from_the_image(exported):
    """The ResNet of the tests, its pyramid and its heads: the first convolution is the only first layer."""
    model = import_library("openvino", extra="openvino").Core().read_model(exported.openvino.path)
    depths = quantize.layer_depths(model)
    kinds = {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
    assert {kinds[name] for name in depths} == {"Convolution"}
    assert sorted(depths.values())[:2] == [1, 2]
    assert 10 < max(depths.values()) < len(depths)


@pytest.mark.prove
def test_the_benchmark_has_a_row_for_every_format(traced_once, small_run, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "VARIANTS", (("onnx", "fp32"), ("openvino", "fp32")))
    assert main(["benchmark", str(small_run), "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split("  ")[0] for line in lines[1:]} == {"torch, eager", "onnx fp32", "openvino fp32"}
    (eager,) = (line for line in lines if line.startswith("torch, eager"))
    assert eager.split()[-1] == "1.00"


def test_a_format_whose_library_is_missing_says_so(traced_once, small_run, monkeypatch):
    monkeypatch.setattr(benchmarks, "VARIANTS", (("openvino", "fp32"),))
    monkeypatch.setitem(sys.modules, "openvino", None)
    rows = {row.name: row for row in benchmarks.benchmark(small_run, rounds=1)}
    assert rows["openvino fp32"].milliseconds_per_image is None
    assert "pip install 'focaldet[openvino]'" in rows["openvino fp32"].note
