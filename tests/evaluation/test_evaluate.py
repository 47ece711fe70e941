"""A detector over a whole split: order, pixels, class names, files, and shares of the work."""

import json

import pytest
import torch
import yaml
from PIL import Image

from focaldet.cli import main
from focaldet.data.config import DataConfig
from focaldet.data.dataset import Classes
from focaldet.data.splits import open_split
from focaldet.errors import CheckpointError, ConfigError, DataError
from focaldet.evaluation import evaluate as module
from focaldet.evaluation.coco import Metrics
from focaldet.evaluation.evaluate import (
    describe_folder,
    detect_all,
    evaluate,
    evaluation_folder,
    match_classes,
    relabel_detections,
    relabel_target,
    run_data_config,
    set_up_evaluation,
)
from focaldet.evaluation.result_files import evaluate_files
from focaldet.models import build
from focaldet.prediction import Predictor
from focaldet.runtime import Process
from focaldet.types import Preprocessing, Resize, Target
from focaldet.weights import Trained
from tests.evaluation.cases import BrightDetector, make_dataset, make_detections, make_image, size_of

BOXES = [[k, 4, k + 16, 36] for k in range(0, 40, 4)]


class Scenes:
    """Images of three sizes with one bright box each, cells and dogs in turn."""

    def __init__(self, boxes=BOXES):
        self.images = [
            make_image(size=(40 + 8 * (k % 3), 64), box=box, green=200 * (k % 2)) for k, box in enumerate(boxes)
        ]
        self.dataset = make_dataset(
            [[(box, k % 2, 0)] for k, box in enumerate(boxes)], sizes=[tuple(size_of(image)) for image in self.images]
        )

    def load(self, i, *, epoch):
        return self.images[i], self.dataset.target(i)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_image_has_its_own_detections_in_the_order_of_the_source(batch_size):
    detections = detect_all(BrightDetector(), Scenes(), batch_size=batch_size, precision="fp32").detections
    assert [one.boxes[0].tolist() for one in detections] == BOXES
    assert [one.labels.tolist() for one in detections] == [[k % 2] for k in range(10)]


def test_boxes_are_pixels_of_the_original_images():
    detections = detect_all(
        BrightDetector(resize=Resize("long", 128)), Scenes(), batch_size=4, precision="fp32"
    ).detections
    for one, box in zip(detections, BOXES, strict=True):
        assert one.boxes[0].tolist() == pytest.approx(box, abs=0.5)


def test_modes_are_the_same_afterwards_and_progress_counts_images():
    detector, calls = BrightDetector().train(), []
    detect_all(detector, Scenes(), batch_size=4, progress=lambda *call: calls.append(call))
    assert detector.training
    assert calls[-1] == (10, 10)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_time_is_per_image_without_the_first_batch(monkeypatch):
    ticks = iter([0.0, 100.0, 0.0, 0.4, 0.0, 0.2])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    detected = detect_all(BrightDetector(), Scenes(), batch_size=4, precision="fp32")
    assert detected.milliseconds_per_image == pytest.approx(1e3 * 0.6 / 6)


CLASSES = Classes(("cell", "dog", "cat"), (5, 7, 9))


def test_the_same_names_in_the_same_order_need_no_note():
    match = match_classes(CLASSES.names, CLASSES, num_classes=3)
    assert (match.labels, match.notes) == ({0: 0, 1: 1, 2: 2}, ())


def test_another_order_is_matched_by_name():
    match = match_classes(("cat", "cell", "dog"), CLASSES, num_classes=3)
    assert (match.labels, match.notes) == ({0: 2, 1: 0, 2: 1}, ())
    detections = relabel_detections(make_detections(([0, 0, 1, 1], 0.9, 0), ([0, 0, 2, 2], 0.5, 2)), match, CLASSES)
    assert detections.names == ("cat", "dog")


def test_classes_that_one_side_lacks_are_noted_and_ignored():
    match = match_classes(("N/A", "cell", "bus", "bus"), CLASSES, num_classes=4)
    assert match.labels == {1: 0}
    assert match.notes == (
        "2 classes of the data unknown to the detector, never detected: dog, cat",
        "3 classes of the detector not in the data, detections ignored: N/A, bus, bus",
    )
    detections = relabel_detections(make_detections(([0, 0, 1, 1], 0.9, 0), ([0, 0, 2, 2], 0.5, 1)), match, CLASSES)
    assert (detections.boxes.tolist(), detections.names) == ([[0, 0, 2, 2]], ("cell",))


def test_the_truth_in_the_labels_of_the_detector():
    match = match_classes(("dog", "bus", "cell", "cell"), CLASSES, num_classes=4)
    truth = Target(
        torch.arange(16.0).reshape(4, 4), torch.tensor([0, 1, 2, 0]), torch.tensor([False, True, False, False])
    )
    relabeled = relabel_target(truth, match)
    assert torch.equal(relabeled.boxes, truth.boxes)
    assert relabeled.ignored.tolist() == [False, True, True, False]  # a cat is unknown
    assert [relabeled.labels[index] for index in (0, 1, 3)] == [2, 0, 2]
    assert len(relabel_target(Target.empty(), match).labels) == 0


def test_nothing_in_common_is_an_error():
    with pytest.raises(ConfigError, match="no class in common: the detector knows bus; the data have cell, dog, cat"):
        match_classes(("bus",), CLASSES, num_classes=1)


def test_a_detector_without_names_must_have_as_many_classes():
    assert match_classes((), CLASSES, num_classes=3).labels == {0: 0, 1: 1, 2: 2}
    assert "no class names" in match_classes((), CLASSES, num_classes=3).notes[0]
    with pytest.raises(ConfigError, match="has 91 classes without names, the data have 3"):
        match_classes((), CLASSES, num_classes=91)


@pytest.fixture
def data(tmp_path):
    """A COCO folder with sparse ids: ten images, cells and dogs."""
    scenes = Scenes()
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for k, image in enumerate(scenes.images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "images" / f"{k}.png")
    document = {
        "images": [
            {"id": 100 - k, "file_name": f"{k}.png", "height": image.shape[1], "width": image.shape[2]}
            for k, image in enumerate(scenes.images)
        ],
        "categories": [{"id": 40, "name": "dog"}, {"id": 90, "name": "cell"}],
        "annotations": [
            {"id": k, "image_id": 100 - k, "category_id": 90 - 50 * (k % 2), "bbox": [box[0], 4, 16, 32], "iscrowd": 0}
            for k, box in enumerate(BOXES)
        ],
    }
    (folder / "instances_val.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def run(tmp_path, data, monkeypatch):
    """A run folder whose weights are a detector that finds every box."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"val": str(data / "instances_val.json")}, "seed": 3}))
    monkeypatch.setattr(module, "load_detector", lambda spec, **_: Trained(BrightDetector(), (1, 2), str(spec)))
    return folder


def test_evaluate_finds_all_and_leaves_its_files(run, data):
    metrics = evaluate(run, device="cpu")
    assert metrics.ap50 == pytest.approx(1.0)
    assert [(one.name, one.category_id, one.num_boxes) for one in metrics.per_class] == [
        ("dog", 40, 5),
        ("cell", 90, 5),
    ]
    assert metrics.milliseconds_per_image > 0

    values = json.loads((run / "eval-val" / "metrics.json").read_text())
    assert values.pop("split") == "val"
    assert len(values.pop("data")) == 64  # the fingerprint
    assert Metrics.from_dict(values) == metrics
    records = json.loads((run / "eval-val" / "predictions.json").read_text())
    assert {one["image_id"] for one in records} == set(range(91, 101))
    assert {one["category_id"] for one in records} == {40, 90}
    again = evaluate_files(run / "eval-val" / "predictions.json", data / "instances_val.json")
    assert again.ap == metrics.ap


def test_the_files_go_where_out_says_and_sizes_are_those_of_the_options(run, data, tmp_path):
    metrics = evaluate(run, data / "instances_val.json", split="val", out=tmp_path / "here", size=24, device="cpu")
    assert (tmp_path / "here" / "predictions.json").is_file()
    assert not (run / "eval-val").exists()
    assert metrics.num_images == 10  # a single file is one split, none of it is held out
    assert metrics.ap < 0.999  # at three eighths of its size an image does not give corners to the pixel


def test_results_are_evaluated_on_the_split_that_is_named_and_never_lost(run, data, tmp_path, capsys):
    """`--data` one file and `--data.val` another; the result file lies where an earlier `eval` wrote it."""
    metrics = evaluate(run, device="cpu")
    results = run / "eval-val" / "predictions.json"
    whole = json.loads((data / "instances_val.json").read_text())
    few = {**whole, "images": whole["images"][:1], "annotations": []}
    (data / "few.json").write_text(json.dumps(few))
    parts = DataConfig(path=data / "few.json", val=data / "instances_val.json")
    assert evaluate_files(results, parts).ap == metrics.ap
    line = ["eval", "--predictions", str(results), "--data", str(data / "instances_val.json")]
    assert main([*line, "--out", str(results.parent)]) == 0
    assert results.is_file() and json.loads((results.parent / "metrics.json").read_text())["ap"] == metrics.ap
    before = (results.parent / "metrics.json").read_bytes()
    assert main(["eval", "--predictions", str(tmp_path / "none.json"), *line[3:], "--out", str(results.parent)]) != 0
    assert (results.parent / "metrics.json").read_bytes() == before, "a mistake costs nothing of what was there"
    capsys.readouterr()


def test_a_limit_that_cannot_be_is_said_before_the_work(run):
    with pytest.raises(ConfigError, match="max_detections: must be at least 11, got 5"):
        evaluate(run, max_detections=5, device="cpu")
    assert not (run / "eval-val").exists()


def test_weights_without_a_run_folder_need_data_and_write_nothing(run, data, tmp_path):
    with pytest.raises(ConfigError, match="name the images and annotations"):
        evaluate("torchvision:coco_v1", device="cpu")
    config = DataConfig(val=data / "instances_val.json")
    assert evaluate("torchvision:coco_v1", config, device="cpu").ap50 == pytest.approx(1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run"]


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(run, tmp_path):
    (tmp_path / "file").touch()
    (run / "eval-val").touch()
    seen = []
    for out in (tmp_path / "file", tmp_path / "file" / "sub", None):
        with pytest.raises(ConfigError, match=r"out: .*: no folder can be made there"):
            evaluate(run, out=out, device="cpu", progress=lambda *counts: seen.append(counts))
    assert seen == []


def test_classes_that_do_not_match_are_an_error_before_anything_is_detected(run, data, monkeypatch):
    strange = Trained(BrightDetector(names=("bus", "tram")), (), "strange")
    monkeypatch.setattr(module, "load_detector", lambda spec, **_: strange)
    seen = []
    with pytest.raises(ConfigError, match="no class in common"):
        evaluate(run, data / "instances_val.json", device="cpu", progress=lambda *counts: seen.append(counts))
    assert seen == []


def test_mistakes_are_errors(run, data, monkeypatch):
    with pytest.raises(ConfigError, match="give either"):
        evaluate(run, size=3, short_side=4)
    with pytest.raises(DataError, match="no such file"):
        evaluate(run, data / "none.json", device="cpu")
    (data / "images" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3\.png"):
        evaluate(run, device="cpu")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="not a run folder with weights"):
        evaluate(run)


def test_ranks_share_the_batches_and_take_the_parts_of_all(monkeypatch):
    """Both ranks in turn, each given what the other one finds."""
    parts = []
    other = ({index: make_detections((box, 0.9, 0)) for index, box in enumerate(BOXES)}, [])
    monkeypatch.setattr(module, "gather_objects", lambda part, *, num_ranks: parts.append(part) or [part, other])
    for rank in range(2):
        ranks = Process(rank, 2, torch.device("cpu"))
        detections = detect_all(BrightDetector(), Scenes(), batch_size=2, precision="fp32", fabric=ranks).detections
        assert [one.boxes[0].tolist() for one in detections] == BOXES
    first, second = (set(part) for part, _ in parts)
    assert first | second == set(range(10))
    assert not first & second
    assert min(len(first), len(second)) >= 2


@pytest.mark.parametrize("antialias", [True, False])
def test_a_real_network_gives_the_same_over_a_split_as_image_by_image(antialias):
    """Evaluation and prediction are one path: bit-equal where batches are equal."""
    scenes = Scenes(BOXES[:3])
    detector = build(
        "retinanet_mobilenet_v2_fpn",
        class_names=("cell", "dog"),
        preprocessing=Preprocessing(resize=Resize("long", 50, antialias=antialias)),
        architecture={"width": 16, "head_depth": 1, "detect": {"score_threshold": 0.001, "top_k": 20}},
    )
    predictor = Predictor(detector, device="cpu", precision="fp32")
    over_split = detect_all(detector, scenes, batch_size=1, precision="fp32").detections
    for image, expected in zip(scenes.images, over_split, strict=True):
        alone = predictor.predict(image)
        assert len(expected) > 0
        assert torch.equal(alone.boxes, expected.boxes)
        assert torch.equal(alone.scores, expected.scores)


def test_other_settings_than_the_trained_ones_are_noted_with_the_metrics(tiny_run, tmp_path):
    plain = evaluate(tiny_run, device="cpu", out=tmp_path / "plain")
    other = evaluate(tiny_run, device="cpu", out=tmp_path / "other", architecture={"detect": {"nms_iou": 0.7}})
    note = "the detector was run with other settings than it was trained with: detect.nms_iou 0.7"
    assert plain.notes == () and other.notes == (note,)
    assert json.loads((tmp_path / "other" / "metrics.json").read_text())["notes"] == [note]


def test_other_data_than_those_of_the_run_get_a_folder_of_their_own(tmp_path):
    """The run's own data are known by their path or, where they were moved, by their fingerprint."""
    run, own, other = tmp_path / "run", make_dataset([[(BOXES[0], 0, 0)]]), make_dataset([[(BOXES[0], 1, 0)]])
    for folder in (run, tmp_path / "cells", tmp_path / "moved", tmp_path / "more dogs"):
        folder.mkdir()
    (run / "config.yaml").write_text(f"data: {{path: {tmp_path / 'cells'}}}\n")
    (run / "environment.json").write_text(json.dumps({"data": {"validation": own.fingerprint()}}))

    def folder_of(dataset, data, **settings):
        return evaluation_folder(run, dataset, data, **{"split": "val", "out": None} | settings)

    assert folder_of(own, None) == run / "eval-val"
    assert folder_of(other, tmp_path / "cells" / ".." / "cells") == run / "eval-val"
    assert folder_of(own, tmp_path / "moved") == run / "eval-val"
    assert folder_of(other, tmp_path / "more dogs") == run / "eval-more_dogs-val"
    assert folder_of(other, tmp_path / "moved", kind="hard") == run / "hard-moved-val"
    assert folder_of(other, tmp_path / "moved", out=tmp_path) == tmp_path
    assert evaluation_folder("name:x", other, None, split="val", out=None) is None
    (run / "eval-moved-val").mkdir()
    (run / "eval-moved-val" / "metrics.json").write_text(json.dumps({"data": "of still others"}))
    assert folder_of(other, tmp_path / "moved") == run / f"eval-moved-val-{other.fingerprint()[:6]}"
    assert describe_folder(run, run / "eval-val", out=None, split="val") is None
    assert "eval-moved-val, those of its own data stay" in describe_folder(
        run, run / "eval-moved-val", out=None, split="val"
    )


def test_named_data_are_divided_as_those_of_the_run(run, data):
    """The second seed of a comparison leaves out the images that the first one does, and says so in its settings."""
    (data / "instances_val.json").rename(data / "instances_train.json")
    settings = {"data": {"path": str(data), "split_seed": 3}, "seed": 4}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    held_out, others = (open_split(DataConfig(path=data), "val", seed=seed).fingerprint() for seed in (3, 4))
    assert held_out != others
    for named in (None, data, DataConfig(path=data)):
        assert set_up_evaluation(run, named, split="val").dataset.fingerprint() == held_out
    assert evaluate(run, data, device="cpu") and [path.name for path in run.glob("eval*")] == ["eval-val"]
    typed = DataConfig(path=data, split_seed=4)
    assert set_up_evaluation(run, typed, split="val").dataset.fingerprint() == others
    with pytest.raises(ConfigError, match=r"config\.yaml of the run: data: split_seed: .*'x'"):
        run_data_config(data, {"data": {"split_seed": "x"}})


def test_no_page_of_numbers_that_are_gone_stays(run):
    evaluate(run, device="cpu")
    (run / "eval-val" / "report.html").write_text("of that evaluation")
    evaluate(run, device="cpu")
    assert not (run / "eval-val" / "report.html").exists()
