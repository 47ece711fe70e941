"""Commands on hostile files and a hostile system: the right result or one clear line, and what was done stays."""

import csv
import errno
import io
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from focaldet import files, prediction
from focaldet.cli import main
from focaldet.config import read_mapping
from focaldet.data.formats.coco import read_coco_file
from focaldet.data.formats.reading import Reading
from focaldet.data.images import read_image
from focaldet.errors import ConfigError, DataError
from focaldet.models import build
from focaldet.training.config import RunConfig
from focaldet.training.run_folder import HOLDER, LOCK, lock_run
from focaldet.weights import save_detector
from tests import hostile

NOT_TEXT = os.fsdecode(b"\xff\xfe.png")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_detector(path, build("yolov2_tiny", num_classes=2, class_names=("혈구", "b")))
    return str(path)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (64, 48), "gray").save(folder / "a.png")
    return folder


def data_set(folder: Path, *, classes=("a", "b"), number=4, names=None) -> Path:
    """A COCO folder with one split."""
    draw = random.Random(0)
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (folder / split).mkdir()
        listed, rows = [], []
        for i in range(1, number + 1):
            image = Image.new("RGB", (64, 64), (draw.randrange(256),) * 3)
            x, y, label = draw.randrange(30), draw.randrange(30), draw.randrange(2)
            ImageDraw.Draw(image).rectangle((x, y, x + 20, y + 24), fill="red")
            rows.append(
                {"id": i, "image_id": i, "category_id": label + 1, "bbox": [x, y, 20, 24], "area": 480, "iscrowd": 0}
            )
            name = names[i - 1] if names else f"{i}.png"
            image.save(folder / split / name)
            listed.append({"id": i, "file_name": name, "width": 64, "height": 64})
        categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
        document = {"images": listed, "annotations": rows, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return folder


def predict(weights, *words, out, status=0):
    line = ["predict", weights, *map(str, words), "--out", str(out), "--size", "64", "--device", "cpu", "--score", "0"]
    assert main(line) == status


def one_line(capsys) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert err.replace("\n", "").isprintable()
    return err


# --- text


def test_a_name_that_is_no_text_is_predicted_and_comes_back(weights, images, tmp_path):
    shutil.copy(images / "a.png", images / NOT_TEXT)
    predict(weights, images, out=tmp_path / "out")
    entries = json.loads((tmp_path / "out" / "predictions.json").read_bytes())
    assert {os.fsencode(Path(entry["file"]).name) for entry in entries} == {b"a.png", b"\xff\xfe.png"}
    assert len(list(csv.reader((tmp_path / "out" / "images.csv").read_text().splitlines()))) == 3
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 2


def test_names_that_are_no_text_can_be_checked(tmp_path, capsys):
    folder = data_set(tmp_path / "data", names=["1.png", "2.png", "3.png", NOT_TEXT])
    shutil.copy(folder / "train" / "1.png", folder / "train" / NOT_TEXT)
    assert main(["check", str(folder), "--json", "--model", "yolov2_tiny"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["splits"]


@pytest.mark.parametrize("name", ["e\x1b[31mRED\x1b]0;own\x07.jpg", "a\u202egnp.jpg", "x" * 240 + ".jpg"])
def test_no_terminal_gets_a_command_from_a_name(weights, tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"bad")
    predict(weights, tmp_path / name, out=tmp_path / "out", status=1)
    output = capsys.readouterr()
    assert all(line.isprintable() and len(line) < 2100 for line in (output.out + output.err).split("\n"))


def test_no_terminal_gets_a_command_from_a_class(tmp_path, capsys):
    folder = data_set(tmp_path / "data", classes=("\x1b[31mRED\x1b]0;own\x07", "b"))
    for more in ([], ["--json"], ["--list", "--all"]):
        assert main(["check", str(folder), "--model", "yolov2_tiny", *more]) in (0, 1)
        output = capsys.readouterr()
        assert "\x1b" not in output.out + output.err
        assert "RED" in output.out


def test_half_a_character_in_a_class_name_is_one_line(tmp_path, capsys):
    folder = data_set(tmp_path / "data", classes=("\ud800x", "b"))
    assert main(["check", str(folder)]) == 3
    assert "got the class name '\\ud800x'; must be text of whole characters" in one_line(capsys)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding(tmp_path, monkeypatch, encoding):
    folder = data_set(tmp_path / "data", classes=("혈구", "γ"))
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["check", str(folder), "--model", "yolov2_tiny"]) in (0, 1)
    stream.flush()
    assert b"\\ud608\\uad6c" in stream.buffer.getvalue()


def test_a_closed_terminal(tmp_path, monkeypatch):
    folder = data_set(tmp_path / "data")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["check", str(folder), "--model", "yolov2_tiny"]) in (0, 1)
    for stream in (sys.stdout, sys.stderr):
        stream.close()


def test_a_terminal_whose_disk_is_full(tmp_path, monkeypatch, capsys):
    folder = data_set(tmp_path / "data")
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["check", str(folder), "--model", "yolov2_tiny"]) == 2
        assert "no space left on the disk" in one_line(capsys)
        monkeypatch.undo()


# --- the system


def fail(kind):
    def raise_error(*_, **__):
        raise kind

    return raise_error


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_a_disk_that_refuses_is_one_line(weights, images, tmp_path, monkeypatch, capsys, kind, message):
    monkeypatch.setattr(Path, "replace", fail(kind))
    predict(weights, images, out=tmp_path / "out", status=2)
    line = one_line(capsys)
    assert message in line
    assert str(tmp_path / "out") in line
    assert not list((tmp_path / "out").glob("*.partial"))


@pytest.mark.parametrize(
    "kind", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_no_memory_is_one_line(weights, images, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setattr(prediction, "detect_batch", fail(kind))
    predict(weights, images, out=tmp_path / "out", status=2)
    assert "out of memory" in one_line(capsys)


def test_a_folder_that_vanishes_is_one_line(weights, images, tmp_path, monkeypatch, capsys):
    draw = prediction._draw_file

    def vanish(*arguments):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return draw(*arguments)

    monkeypatch.setattr(prediction, "_draw_file", vanish)
    predict(weights, images, out=tmp_path / "out", status=2)
    assert "No such file or directory" in one_line(capsys)


def test_a_size_that_is_too_large_is_one_line(weights, images, tmp_path, capsys):
    assert main(["predict", weights, str(images), "--out", str(tmp_path / "out"), "--size", "1000000"]) == 2
    assert "size" in one_line(capsys)


def test_a_side_that_jpeg_cannot_hold_is_drawn_as_png(weights, images, tmp_path):
    Image.new("RGB", (65_501, 2)).save(images / "long.png")
    predict(weights, images, out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".jpg", ".png")} == {
        "a.jpg",
        "long.png",
    }
    with Image.open(tmp_path / "out" / "long.png") as drawn:
        assert drawn.size == (65_501, 2)


def test_a_png_drawing_replaces_no_image(weights, images, tmp_path, capsys):
    Image.new("RGB", (65_501, 2)).save(images / "long.png")
    predict(weights, images / "long.png", out=images, status=2)
    assert "would replace the image" in one_line(capsys)


# --- what is no file, and what is more than it seems


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".csv", ".txt", ""])
@pytest.mark.parametrize("kind", [hostile.fifo, hostile.directory])
def test_data_that_is_no_file_is_one_line(tmp_path, capsys, suffix, kind):
    assert main(["check", str(kind(suffix)(tmp_path))]) in (2, 3)
    assert ("is neither a file nor a folder" in one_line(capsys)) == (kind is hostile.fifo)


def test_pipes_among_images_and_annotations_are_not_waited_for(weights, tmp_path, capsys):
    folder = data_set(tmp_path / "data")
    os.mkfifo(folder / "train" / "0.png")
    os.mkfifo(folder / "annotations" / "instances_test.json")
    assert main(["check", str(folder), "--model", "yolov2_tiny"]) in (0, 1, 2, 3)
    predict(weights, folder / "train" / "0.png", out=tmp_path / "out", status=1)
    assert "is a folder, pipe or device" in capsys.readouterr().err


def test_settings_in_a_pipe_are_not_waited_for(tmp_path, capsys):
    assert main(["train", "--config", str(hostile.fifo(".yaml")(tmp_path))]) == 2
    assert "is a pipe" in one_line(capsys)


@pytest.mark.parametrize("sample", hostile.YAML)
def test_settings_that_stand_for_more_than_they_are(tmp_path, sample):
    text, message = hostile.YAML[sample]
    (tmp_path / "a.yaml").write_text(text)
    begin = time.process_time()
    with pytest.raises(ConfigError, match=message):
        read_mapping(tmp_path / "a.yaml")
    assert time.process_time() - begin < 10


def test_aliases_and_merges_of_a_usual_size_are_read(tmp_path):
    text = (
        "base: &base {epochs: 2, size: 64}\nphases:\n- {<<: *base, epochs: 3}\n- *base\n"
        + "# long enough to be judged\n" * 5
    )
    (tmp_path / "a.yaml").write_text(text)
    assert read_mapping(tmp_path / "a.yaml")["phases"] == [{"epochs": 3, "size": 64}, {"epochs": 2, "size": 64}]


def test_a_jpeg_of_a_thousand_scans_is_refused(tmp_path):
    read_image(hostile.jpeg_of_scans(3)(tmp_path))
    begin = time.process_time()
    with pytest.raises(DataError, match=r"is a JPEG of 10\d\d scans"):
        read_image(hostile.jpeg_of_scans(1000)(tmp_path))
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [], "images": [], "annotations": [], "categories": []}', "key 'images' twice"),
        ('{"images": [{"id": 1, "id": 2, "file_name": "a"}], "annotations": [], "categories": []}', "key 'id' twice"),
        ("\0" * 1000, "begins with zeros"),
        ("[" * 100_000, "nested too deeply|JSON"),
    ],
)
def test_json_that_is_not_what_it_seems(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_coco_file(tmp_path / "a.json", name="a", look_up=False)


def test_twenty_thousand_classes_are_checked_in_seconds(tmp_path, capsys):
    folder = data_set(tmp_path / "data", classes=[f"c{i}" for i in range(20_000)])
    begin = time.process_time()
    assert main(["check", str(folder), "--model", "yolov2_tiny"]) in (0, 1)
    assert time.process_time() - begin < 30  # of a time that grows with the square of them this would be minutes
    assert "19,998" in capsys.readouterr().out


def test_very_many_bad_rows_are_counted_in_seconds(tmp_path):
    (tmp_path / "a.json").write_text('{"annotations": [], "categories": [], "images": [' + "[]," * 299_999 + "[]]}")
    begin = time.process_time()
    reading = Reading(lenient=True)
    with pytest.raises(DataError, match="needs at least one class"):
        read_coco_file(tmp_path / "a.json", reading, name="a", look_up=False)
    assert time.process_time() - begin < 10
    assert reading.problems.counts["error", "record unreadable"] == 300_000
    assert len(reading.problems.examples) == 200


# --- folders of an earlier call, and of another training


def test_a_folder_of_an_earlier_call_has_no_mixture(weights, images, tmp_path, capsys):
    predict(weights, images, "--formats", "json", "--formats", "yolo", out=tmp_path / "out")
    (images / "a.png").rename(images / "b.png")
    (tmp_path / "out" / "own.txt").write_text("of the user")
    capsys.readouterr()
    predict(weights, images, out=tmp_path / "out")
    assert "replaces the 5 files of an earlier predict" in capsys.readouterr().out
    shown = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("[!.]*") if path.is_file()}
    assert shown == {"b.jpg", "predictions.json", "images.csv", "own.txt"}


def test_a_second_training_is_refused_and_says_who_holds_the_folder(tmp_path):
    out = tmp_path / "run"
    with lock_run(out):
        assert json.loads((out / HOLDER).read_text())["process"] == os.getpid()
        with (
            pytest.raises(ConfigError, match=f"another training writes to .*run: process {os.getpid()} on .*, since"),
            lock_run(out),
        ):
            pass
    assert not out.exists()  # it was made for the lock alone
    out.mkdir()
    with lock_run(out):
        (out / "config.yaml").write_text("model: x")
    assert [path.name for path in out.iterdir()] == ["config.yaml"]


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    """A process that was killed while its workers still have the lock."""
    out = tmp_path / "run"
    with lock_run(out):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        holder = json.loads((out / HOLDER).read_text())
        files.write_json(out / HOLDER, holder | {"process": child})
        with lock_run(out):
            assert json.loads((out / HOLDER).read_text())["process"] == os.getpid()
    assert not (out / LOCK).exists()


def test_train_is_refused_while_another_holds_the_folder(tmp_path, capsys):
    folder = data_set(tmp_path / "data")
    with lock_run(tmp_path / "run"):
        line = f"train {folder} --model yolov2_tiny --size 64 --epochs 1 --device cpu --out {tmp_path / 'run'}"
        assert main(line.split()) == 2
    assert "another training writes to" in one_line(capsys)
    assert RunConfig().out == Path("runs/train")
