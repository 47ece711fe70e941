"""Prediction: every form of image, the same detections alone and in a batch, and files that nothing overwrites."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

from focaldet import prediction as predict
from focaldet.errors import CheckpointError, ConfigError, DataError, ImageTooLargeError
from focaldet.evaluation.inference import InferenceOptions
from focaldet.models import build
from focaldet.prediction import Predictor, find_images, load, output_names, predict_files
from focaldet.types import Preprocessing, Resize
from focaldet.weights import save_detector
from focaldet.weights.thresholds import ScoreThreshold, ScoreThresholds
from tests.evaluation.cases import BrightDetector, make_image


def predictor(**settings):
    return Predictor(BrightDetector(**settings), device="cpu", precision="fp32", category_ids=(7, 9))


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return path


@pytest.fixture
def shots(tmp_path):
    """Three images in two folders, two of them with the same stem, and a broken one."""
    save(make_image(box=(8, 8, 24, 40)), tmp_path / "in" / "left" / "001.png")
    save(make_image(box=(0, 0, 32, 32), green=200), tmp_path / "in" / "right" / "001.png")
    save(make_image(red=0), tmp_path / "in" / "right" / "002.png")
    (tmp_path / "in" / "right" / "broken.jpg").write_bytes(b"<html>")
    return tmp_path / "in"


def test_every_form_of_image_gives_the_same_detections(tmp_path):
    image = make_image(size=(48, 64), box=(8, 8, 24, 40))
    path = save(image, tmp_path / "a.png")
    array = image.permute(1, 2, 0).numpy()
    forms = [path, str(path), array, Image.fromarray(array), image, image.float(), array.copy(order="F")]
    expected = [[8.0, 8.0, 24.0, 40.0]]
    for form in forms:
        detections = predictor().predict(form)
        assert detections.boxes.tolist() == expected, type(form)
        assert detections.names == ("cell",)


def test_channels_are_rgb():
    """What is red to PIL is red to the detector; an OpenCV image has to be turned round."""
    bgr = numpy.zeros((48, 64, 3), dtype=numpy.uint8)
    bgr[8:40, 8:24, 2] = 255
    assert len(predictor().predict(bgr)) == 0
    assert len(predictor().predict(bgr[..., ::-1])) == 1


def test_boxes_come_back_in_pixels_of_the_original_image():
    """128 × 96 is halved; both sides are scaled by their own ratio."""
    detections = predictor().predict(make_image(size=(96, 128), box=(16, 32, 64, 96)))
    assert detections.boxes.tolist() == [[16.0, 32.0, 64.0, 96.0]]
    warped = predictor(resize=Resize(mode="warp", size=32)).predict(make_image(size=(64, 128), box=(32, 16, 96, 64)))
    assert warped.boxes.tolist() == [[32.0, 16.0, 96.0, 64.0]]


def test_exif_orientation_turns_the_file_upright(tmp_path):
    """Orientation 6: the stored image is shown turned right by 90°."""
    stored = Image.fromarray(make_image(size=(48, 64), box=(0, 0, 16, 16)).permute(1, 2, 0).numpy())
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "turned.png", exif=exif)
    assert predictor().predict(tmp_path / "turned.png").boxes.tolist() == [[32.0, 0.0, 48.0, 16.0]]


def test_list_in_list_out_in_order_whatever_the_sizes():
    images = [make_image(size=(32 + 8 * (k % 3), 64), box=(k, 4, k + 10, 20)) for k in range(30)]
    detections = predictor().predict(images, batch_size=4)
    assert [one.boxes[0].tolist() for one in detections] == [[k, 4, k + 10, 20] for k in range(30)]
    assert predictor().predict([]) == []
    assert len(predictor().predict((images[0],))) == 1


def test_only_images_of_one_padded_size_share_a_batch():
    one = predictor()
    one.predict(
        [make_image(size=(32, 64), box=(0, 0, 9, 9)), make_image(size=(64, 64)), make_image(size=(30, 64))],
        batch_size=8,
    )
    assert sorted(tuple(batch.shape) for batch in one.detector.seen) == [(1, 3, 64, 64), (2, 3, 32, 64)]


def test_batches_hold_no_more_than_batch_size():
    one = predictor()
    one.predict([make_image()] * 5, batch_size=2)
    assert [len(batch) for batch in one.detector.seen] == [2, 2, 1]


@pytest.mark.parametrize(("antialias", "expected"), [(True, [10, 20, 31]), (False, [10.4, 20.0, 30.6])])
def test_padding_is_the_mean_exactly_where_pixels_are_floating_point(antialias, expected):
    one = predictor(resize=Resize(mode="long", size=64, antialias=antialias))
    one.detector.preprocessing = replace(one.detector.preprocessing, mean=(10.4, 20.0, 30.6))
    one.predict(make_image(size=(20, 64), box=(0, 0, 4, 4)))
    batch = one.detector.seen[0]
    assert batch.is_floating_point() is not antialias
    padding = batch[0, :, 20:].double().reshape(3, -1)
    assert padding.min(1).values.tolist() == padding.max(1).values.tolist() == pytest.approx(expected)


def test_same_detections_alone_and_in_a_batch_of_a_real_network():
    detector = build(
        "retinanet_mobilenet_v2_fpn",
        class_names=("a", "b"),
        preprocessing=Preprocessing(resize=Resize(mode="long", size=64)),
        architecture={"width": 16, "head_depth": 1, "detect": {"score_threshold": 0.001, "top_k": 20}},
    )
    one = Predictor(detector, device="cpu", precision="fp32")
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 48, 64), generator=generator, dtype=torch.uint8) for _ in range(4)]
    together = one.predict(images, batch_size=4)
    assert min(map(len, together)) > 0
    for image, expected in zip(images, together, strict=True):
        alone = one.predict(image)
        assert torch.allclose(alone.scores, expected.scores, atol=1e-6)
        assert torch.allclose(alone.boxes, expected.boxes, atol=1e-3)
        assert alone.labels.tolist() == expected.labels.tolist()


def test_a_stream_reads_ahead_a_little_and_no_more():
    taken = []

    def images():
        for number in range(200):
            taken.append(number)
            yield make_image()

    stream = predictor().predict_stream(images(), batch_size=2)
    next(stream)
    assert len(taken) <= 4 * predict.WINDOW_BATCHES
    assert sum(1 for _ in stream) == 199


def test_a_stream_says_which_image_is_broken_when_its_turn_comes(tmp_path):
    good = save(make_image(), tmp_path / "good.png")
    stream = predictor().predict_stream([good, tmp_path / "none.png"], batch_size=1)
    assert len(next(stream)) == 1
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        next(stream)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (7, "must be a path, a PIL image, a uint8 RGB array or a tensor, got int"),
        (numpy.zeros((4, 4, 4), dtype=numpy.uint8), "shape must be H × W × 3"),
        (numpy.zeros((4, 4, 3)), "values must be uint8"),
        (torch.rand(3, 4, 4), "multiply by 255"),
        (torch.full((3, 4, 4), -1.0), r"values must be in 0…255, got -1…-1"),
        (torch.full((3, 4, 4), torch.nan), "values must be in 0…255, got nan"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "shape must be 3 × H × W"),
        (torch.zeros(3, 0, 4), "shape must be 3 × H × W"),
    ],
)
def test_what_is_not_an_image_is_refused(image, problem):
    with pytest.raises(DataError, match=problem):
        predictor().predict(image)


def test_batch_size_below_one_is_refused():
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        predictor().predict([make_image()], batch_size=0)


def test_a_predictor_is_called_like_a_function():
    one, image = predictor(), make_image()
    assert one(image) == one.predict(image)
    assert one([image, image], batch_size=1) == [one.predict(image)] * 2


def test_the_two_halves_of_predict_give_what_it_gives(tmp_path):
    """A file and its content, prepared and then detected in a batch of one padded size."""
    path = tmp_path / "image.png"
    Image.fromarray(make_image(size=(96, 128), box=(16, 16, 48, 80)).permute(1, 2, 0).numpy()).save(path)
    predictor = Predictor(BrightDetector(), device="cpu", precision="fp32")
    prepared = [predictor.prepare(source) for source in (path, io.BytesIO(path.read_bytes()), make_image())]
    assert {image.padded_size for image in prepared} == {(64, 64)}
    results = predictor.detect_prepared(prepared)
    assert [result.size for result in results] == [(96, 128), (96, 128), (48, 64)]
    assert [result.detections for result in results] == predictor.predict([path, path, make_image()])
    with pytest.raises(ImageTooLargeError, match=r"allowed are 0\.01 megapixels"):
        predictor.prepare(path, most_pixels=10_000)


def test_a_predictor_prints_what_it_is():
    assert repr(predictor()) == "Predictor(BrightDetector, 2 classes, long side 64 px, cpu, fp32)"


def test_the_detector_is_used_as_at_inference():
    one = predictor()
    assert not any(module.training for module in one.detector.modules() if isinstance(module, nn.Module))
    assert not one.predict(make_image()).boxes.requires_grad


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    detector = build(
        "retinanet_mobilenet_v2_fpn",
        class_names=("cell", "dog"),
        preprocessing=Preprocessing(resize=Resize("long", 64)),
    )
    path = tmp_path_factory.mktemp("run") / "weights" / "best.safetensors"
    save_detector(path, detector)
    return path


def test_load_takes_a_run_folder_a_file_or_a_name_with_weights(weights):
    for one in (
        load(weights, device="cpu"),
        load(weights.parent.parent, device="cpu"),
        load("retinanet_mobilenet_v2_fpn", weights=weights, device="cpu"),
    ):
        assert one.class_names == ("cell", "dog")
        assert one.detector.preprocessing.resize == Resize("long", 64)


def test_load_can_change_the_size(weights):
    assert load(weights, size=128).detector.preprocessing.resize == Resize("long", 128, None)
    options = InferenceOptions(size=64, batch_size=3)
    assert load(weights, options=options).options == options
    assert load(weights, options=options, size=96).options == replace(options, size=96)
    assert load(weights, short_side=100, max_side=200).detector.preprocessing.resize == Resize("short", 100, 200)


def test_load_refuses_names_without_weights_and_weights_of_another_network(weights):
    with pytest.raises(ConfigError, match="has no weights of its own"):
        load("retinanet_r50_fpn")
    with pytest.raises(ConfigError, match=r"unknown detector 'retinanet_r5' \(did you mean"):
        load("retinanet_r5", weights=weights)
    with pytest.raises(CheckpointError, match="made for another network"):
        load("retinanet_r18_fpn", weights=weights)
    with pytest.raises(CheckpointError, match="no file or run folder"):
        load("nowhere")


def test_files_of_every_format_say_the_same(shots, tmp_path):
    result = predict_files(predictor(), [shots], tmp_path / "out", formats=("json", "coco", "yolo", "csv"))
    assert (result.num_images, result.num_detections) == (4, 2)
    entries = {entry["file"]: entry for entry in json.loads((tmp_path / "out" / "predictions.json").read_text())}
    first = entries[str(shots / "left" / "001.png")]
    assert (first["boxes"], first["names"], first["height"], first["width"]) == ([[8, 8, 24, 40]], ["cell"], 48, 64)
    assert entries[str(shots / "right" / "002.png")]["boxes"] == []

    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert coco["categories"] == [{"id": 7, "name": "cell"}, {"id": 9, "name": "dog"}]
    assert [image["file_name"] for image in coco["images"]] == list(entries)
    assert coco["annotations"][1] == {
        "id": 2, "image_id": 2, "category_id": 9, "bbox": [0, 0, 32, 32], "area": 1024, "iscrowd": 0, "score": 1.0,
    }  # fmt: skip

    assert (tmp_path / "out" / "classes.txt").read_text() == "cell\ndog\n"
    assert (
        tmp_path / "out" / "labels" / "left_001.txt"
    ).read_text() == "0 0.250000 0.500000 0.250000 0.666667 1.000000\n"
    assert (tmp_path / "out" / "labels" / "002.txt").read_text() == ""

    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "file": str(shots / "left" / "001.png"), "x1": "8.00", "y1": "8.00", "x2": "24.00", "y2": "40.00",
        "name": "cell", "label": "0", "score": "1.000000",
    }  # fmt: skip
    assert len(rows) == 2


def test_a_broken_image_is_reported_and_the_rest_goes_on(shots, tmp_path):
    calls = []
    result = predict_files(
        predictor(), [shots], tmp_path / "out", progress=lambda done, total: calls.append((done, total))
    )
    assert [error.file for error in result.failed] == [str(shots / "right" / "broken.jpg")]
    assert "is not an image in a known format" in str(result.failed[0])
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jpg")) == [
        "002.jpg",
        "left_001.jpg",
        "right_001.jpg",
    ]


class Doubtful(BrightDetector):
    """As sure as 0.9."""

    def detect(self, outputs, sizes):
        return [replace(each, scores=0.9 * each.scores) for each in super().detect(outputs, sizes)]


def test_the_drawn_image_shows_the_box_above_the_score_only(shots, tmp_path):
    doubtful = Predictor(Doubtful(), device="cpu", precision="fp32")
    predict_files(doubtful, [shots / "left"], tmp_path / "low", score=0.3)
    predict_files(doubtful, [shots / "left"], tmp_path / "high", score=1.0)
    drawn, plain = (numpy.asarray(Image.open(tmp_path / name / "001.jpg")).astype(int) for name in ("low", "high"))
    assert drawn.shape == plain.shape == (48, 64, 3)
    assert abs(drawn[40, 8:24] - plain[40, 8:24]).mean() > 40
    assert json.loads((tmp_path / "high" / "predictions.json").read_text())[0]["boxes"] == []


def test_without_a_score_that_of_the_weights_holds_by_class_and_is_told(shots, tmp_path):
    """The detector is sure of a cell and of a dog as 0.9; the best score of a dog is higher."""
    overall = ScoreThreshold(None, 0.5, 0.8, 0.8, 0.8, 90)
    best = ScoreThresholds(overall, (ScoreThreshold("dog", 0.95, 0.9, 0.9, 0.9, 40),), "val")

    def names(out, **settings):
        doubtful = Predictor(Doubtful(), device="cpu", precision="fp32", thresholds=best)
        result = predict_files(doubtful, [shots], tmp_path / out, drawn=False, **settings)
        rows = json.loads((tmp_path / out / "predictions.json").read_text())
        return [name for row in rows for name in row["names"]], result.notes

    told = ("score ≥ 0.50 (cell), 0.95 (dog): the largest F1 on val",)
    assert names("best") == (["cell"], told)
    assert names("typed", score=0.3) == (["cell", "dog"], ())


def test_weights_without_thresholds_take_the_default(shots, tmp_path):
    class Weak(BrightDetector):
        def detect(self, outputs, sizes):
            return [replace(each, scores=0.29 * each.scores) for each in super().detect(outputs, sizes)]

    weak = Predictor(Weak(), device="cpu", precision="fp32")
    assert predict_files(weak, [shots / "left"], tmp_path / "out", drawn=False).num_detections == 0
    assert predict_files(weak, [shots / "left"], tmp_path / "out", drawn=False, score=0.2).num_detections == 1


@pytest.mark.parametrize("score", [30.0, 1.5, -1.0, float("nan")])
def test_a_score_that_nothing_has_is_refused(shots, tmp_path, score):
    with pytest.raises(ConfigError, match="score: must be in 0…1, got"):
        predict_files(predictor(), [shots], tmp_path / "out", score=score)
    assert not (tmp_path / "out").exists()


def test_nothing_is_drawn_when_not_asked_for(shots, tmp_path):
    predict_files(predictor(), [shots], tmp_path / "out", drawn=False, formats=())
    assert list((tmp_path / "out").iterdir()) == []


def test_detections_are_kept_when_the_job_is_interrupted(shots, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor(), [shots], tmp_path / "out", progress=interrupt)
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 1


def test_a_file_in_place_of_the_folder_of_labels_is_reported(shots, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels").touch()
    with pytest.raises(ConfigError, match=r"out: .*labels: no folder can be made there"):
        predict_files(predictor(), [shots], tmp_path / "out", formats=("yolo",))


def test_a_second_run_does_not_take_its_own_results_for_images(shots):
    first = predict_files(predictor(), [shots], shots / "drawn")
    assert predict_files(predictor(), [shots], shots / "drawn").num_images == first.num_images == 4
    assert find_images([shots / "drawn" / "002.jpg"], exclude=shots / "drawn") == [shots / "drawn" / "002.jpg"]


def test_only_folders_exclude_earlier_results(shots, tmp_path):
    """However the folders are written. Patterns and lists name their images, so none is dropped."""
    left, right = shots / "left" / "001.png", shots / "right" / "002.png"
    (tmp_path / "list.txt").write_text("in/left/001.png\nin/right/002.png\n")
    assert find_images([tmp_path / "list.txt"], exclude=shots) == [left, right]
    assert find_images([str(shots / "*" / "00?.png")], exclude=shots / "left")[0] == left
    (tmp_path / "link").symlink_to(shots / "right")
    for exclude in (shots / "right", shots / "left" / ".." / "right", tmp_path / "link"):
        assert find_images([shots], exclude=exclude) == [left]


def test_a_folder_inside_the_results_says_why_it_holds_nothing(shots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for one in ("in", "."):
        with pytest.raises(DataError, match=r"lie in out, \., and are skipped as .*: choose another out, or give the"):
            predict_files(predictor(), [one], Path())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_drawing_never_replaces_an_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo = save(make_image(box=(8, 8, 24, 40)), tmp_path / "photo.jpg")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "photo.jpg").symlink_to(photo)
    save(make_image(), tmp_path / "other" / "photo.png")
    before = photo.read_bytes()
    for inputs, out in (
        (["photo.jpg"], Path()),
        (["*.jpg"], tmp_path / "links" / ".."),
        ([photo], tmp_path / "links"),
        (["links/photo.jpg"], Path()),
    ):
        with pytest.raises(ConfigError, match=r"out: the drawing of .*photo\.jpg would replace the image .*photo\.jpg"):
            predict_files(predictor(), inputs, out)
    assert photo.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["links", "other", "photo.jpg"]

    with pytest.raises(ConfigError, match=r"other_photo\.jpg: choose another folder"):
        save(make_image(), tmp_path / "other_photo.jpg")
        predict_files(predictor(), ["photo.jpg", "other/photo.png", "other_photo.jpg"], Path())
    assert predict_files(predictor(), ["photo.jpg"], Path(), drawn=False).num_detections == 1
    assert photo.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(shots, monkeypatch):
    def work(*arguments, **named):
        raise AssertionError

    monkeypatch.setattr(Predictor, "try_predict", work)
    for out in (shots / "left" / "001.png", shots / "left" / "001.png" / "drawn"):
        with pytest.raises(ConfigError, match=r"out: .*001\.png.*: no folder can be made there: (File|Not a)"):
            predict_files(predictor(), [shots], out)


def test_inputs_are_files_folders_patterns_and_lists(shots, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("in/left/001.png\n\nin/right/002.png\n")
    left, right = shots / "left" / "001.png", shots / "right" / "002.png"
    assert find_images([left]) == [left]
    assert find_images([shots / "left", right]) == [left, right]
    assert find_images([str(shots / "*" / "00?.png")]) == [left, shots / "right" / "001.png", right]
    assert find_images([str(shots / "**" / "002.png")]) == [right]
    assert find_images([listed, left]) == [left, right]


def test_inputs_without_images_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no images in it"):
        find_images([tmp_path / "empty"])
    for name in ("none.jpg", "*.jpg", "x" * 5000, "a\0b"):
        with pytest.raises(DataError, match=r"no such file|cannot be read"):
            find_images([str(tmp_path / name)])


def test_names_never_collide(tmp_path):
    paths = [tmp_path / part for part in ("a/1.png", "b/1.jpg", "b/1.png", "B/1.png", "x/b_1.png", "c.png", "C.jpg")]
    names = output_names(paths)
    assert names[:3] == ["a_1", "b_1", "b_1_2"]
    assert len({name.casefold() for name in names}) == len(paths)
    assert output_names([tmp_path / "one.png", tmp_path / "two.png"]) == ["one", "two"]


def test_a_detector_without_names_writes_labels(tmp_path):
    save(make_image(), tmp_path / "in" / "a.png")
    nameless = Predictor(BrightDetector(names=()), device="cpu", category_ids=(7, 9))
    predict_files(nameless, [tmp_path / "in"], tmp_path / "out", formats=("coco", "json"))
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert coco["categories"] == [{"id": 7, "name": "0"}, {"id": 9, "name": "1"}]
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())[0]["names"] == ["0"]


def test_every_file_says_which_image_it_belongs_to(tmp_path):
    """Of images of one name in folders of one name: the folders above tell them apart."""
    for place in ("north", "south"):
        save(make_image(), tmp_path / "in" / place / "cam" / "Image1.png")
    save(make_image(), tmp_path / "in" / "Other.png")
    for other in ("in/north/notes.txt", "in/north/.hidden.png", "in/.cache/a.png", "in/south/a.xml", "in/b.xml"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("")
    out = tmp_path / "in" / "out"
    for _ in range(2):  # the second time what the first one wrote is passed over
        result = predict_files(predictor(), [tmp_path / "in"], out, formats=("yolo", "json"))
    names = {"north_cam_Image1", "south_cam_Image1", "Other"}
    assert {path.stem for path in (out / "labels").iterdir()} == names == {path.stem for path in out.glob("*.jpg")}
    with (out / "images.csv").open() as file:
        files = {row["name"]: row["file"] for row in csv.DictReader(file)}
    assert {name: Path(file).relative_to(tmp_path / "in").as_posix() for name, file in files.items()} == {
        "north_cam_Image1": "north/cam/Image1.png",
        "south_cam_Image1": "south/cam/Image1.png",
        "Other": "Other.png",
    }
    entries = json.loads((out / "predictions.json").read_text())
    assert {entry["name"]: entry["file"] for entry in entries} == files
    with Image.open(out / "north_cam_Image1.jpg") as drawing:
        assert drawing.info["comment"].decode() == files["north_cam_Image1"]
    assert result.skipped == {".txt": 1, ".xml": 2, "hidden": 2, "in out": 9}


def test_a_size_that_cannot_fit_is_refused_with_the_estimate(shots):
    with pytest.raises(ConfigError, match=r"size: 1 × 1000000 × 7\d+ px at once need at least \d+ GB, .* has \d+ GB"):
        predictor(resize=Resize("long", 1_000_000)).predict(shots / "left" / "001.png")
