"""The command line: what is typed, what is called, what is printed, and the exit status."""

import dataclasses
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import focaldet
from focaldet.cli import build_app, main
from focaldet.cli.flags import GROUPS
from focaldet.cli.peers import read_answers
from focaldet.models import named_config
from focaldet.models.published import detector_rows
from focaldet.runtime import pick_device
from focaldet.training.rate_finder import RateCurve


@pytest.fixture(scope="module", autouse=True)
def the_table_of_detectors_is_made_once():
    """It builds them all, in seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("focaldet.models.published.detector_rows", functools.cache(detector_rows))
        yield


@pytest.fixture
def settings_of(monkeypatch):
    """The `RunConfig` that a `train` line comes to, without training."""
    seen = []
    result = SimpleNamespace(interrupted=False, out=Path("run"), best=None)
    monkeypatch.setattr("focaldet.cli.train.train", lambda config, **_: seen.append(config) or result)
    monkeypatch.setattr("focaldet.training.auto.AUTO_DEFAULTS", ())  # most of the data are only names

    def read(line):
        assert main(["train", *line.split()]) == 0
        return seen.pop()

    return read


def refused(capsys, line):
    """The one line with which a call is refused."""
    assert main(line.split()) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert "Traceback" not in output.err
    return output.err


def test_eval_and_predict_take_other_settings_of_a_trained_detector(monkeypatch):
    """`--architecture` reaches both as it was typed; what the weights were trained as is refused where it is known."""
    seen = []

    def note(*_, architecture=None, options=None, **__):
        seen.append(architecture if options is None else options.architecture)
        raise focaldet.ConfigError("enough")

    monkeypatch.setattr("focaldet.cli.evaluate.run_evaluation", note)
    monkeypatch.setattr("focaldet.cli.predict.load", note)
    typed = "--architecture.plus.refine.boxes best_class --architecture.plus.scales [0.5,1]"
    for line in (f"eval RUN --data D {typed}", f"predict RUN a.jpg {typed}", "eval RUN --data D"):
        assert main(line.split()) == 2
    overrides = {"plus": {"refine": {"boxes": "best_class"}, "scales": [0.5, 1]}}
    assert seen == [overrides, overrides, {}]


@pytest.mark.parametrize("flag", ["--architecture.detect.nms_iou 0.4", "--size 64", "--device cpu"])
def test_a_file_of_detections_refuses_the_flags_of_a_detector(capsys, flag):
    output = refused(capsys, f"eval --predictions results.json --data D {flag}")
    assert f"eval: {flag.split('.')[0].split()[0]} is for a detector" in output


class TestTrainFlags:
    def test_the_documented_call(self, settings_of):
        line = "--data DIR --model faster_rcnn_mobilenet_v2_fpn --weights W --epochs 24 --size 320 --out runs/cells"
        config = settings_of(line)
        expected = focaldet.RunConfig(
            data=focaldet.DataConfig(path=Path("DIR")),
            model="faster_rcnn_mobilenet_v2_fpn",
            weights="W",
            epochs=24,
            size=320,
            out=Path("runs/cells"),
        )
        assert config == expected

    def test_the_data_needs_no_flag(self, settings_of):
        config = settings_of("DIR --data.bad-boxes drop --epochs 2")
        assert config == focaldet.RunConfig(data=focaldet.DataConfig(path=Path("DIR"), bad_boxes="drop"), epochs=2)

    def test_no_flags_are_the_defaults(self, settings_of):
        assert settings_of("") == focaldet.RunConfig()

    def test_parts_of_the_data(self, settings_of):
        data = settings_of("--data D --data.train t.json --data.val v --data.images i --data.bad-boxes drop").data
        expected = focaldet.DataConfig(
            path=Path("D"), train=Path("t.json"), val=Path("v"), images=Path("i"), bad_boxes="drop"
        )
        assert data == expected
        assert settings_of("--data.path D --data.format voc").data == focaldet.DataConfig(path=Path("D"), format="voc")

    def test_the_form_of_the_paper_and_nested_parts(self, settings_of):
        config = settings_of("--short-side 800 --max-side 1333 --augment.preset strong --weights.input unit --ema none")
        assert (config.short_side, config.max_side, config.size) == (800, 1333, None)
        assert (config.augment.preset, config.weights_input, config.ema) == ("strong", "unit", None)
        assert settings_of("--loggers tensorboard wandb").loggers == ("tensorboard", "wandb")

    def test_the_architecture_is_typed_like_yaml(self, settings_of):
        line = "--architecture.loss.gamma 1.5 --architecture.p6-from P5 --architecture.anchors.scales [1,2]"
        overrides = settings_of(f"{line} --architecture.head-norm true --architecture.loss.alpha null").architecture
        expected = {
            "loss": {"gamma": 1.5, "alpha": None},
            "p6_from": "P5",
            "anchors": {"scales": [1, 2]},
            "head_norm": True,
        }
        assert overrides == expected

    @pytest.mark.parametrize("text", ["2020-99-99", "!!bool", "!!int", "[1"])
    def test_what_yaml_cannot_read_stays_text(self, settings_of, text):
        assert settings_of(f"--architecture.backbone {text}").architecture == {"backbone": text}


class TestConfigFile:
    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "run.yaml"
        path.write_text(
            "epochs: 7\nsize: 96\ndata: {path: FOLDER, bad_boxes: drop}\narchitecture: {width: 32, loss: {alpha: 0.5}}"
        )
        return path

    def test_it_is_read(self, settings_of, file):
        config = settings_of(f"--config {file}")
        assert (config.epochs, config.size) == (7, 96)
        assert config.data == focaldet.DataConfig(path=Path("FOLDER"), bad_boxes="drop")

    def test_typed_flags_overrule_it_even_with_a_default(self, settings_of, file):
        config = settings_of(f"--config {file} --epochs 24 --data OTHER --architecture.loss.gamma 1")
        assert focaldet.RunConfig().epochs == config.epochs == 24
        assert config.size == 96
        assert config.data == focaldet.DataConfig(path=Path("OTHER"), bad_boxes="drop")
        assert config.architecture == {"width": 32, "loss": {"alpha": 0.5, "gamma": 1}}

    def test_it_can_be_what_a_run_saved(self, settings_of, tiny_run):
        config = settings_of(f"--config {tiny_run / 'config.yaml'} --resume")
        assert config.resume
        assert (config.out, config.size) == (tiny_run, 64)

    @pytest.mark.parametrize("words", ["--resume {run}", "{run} --resume", "--out {run} --resume"])
    def test_the_folder_of_a_run_is_enough_to_resume_it(self, settings_of, tiny_run, words):
        config = settings_of(words.format(run=tiny_run))
        assert (config.resume, config.out, config.size) == (True, tiny_run, 64)

    def test_an_unknown_key_names_the_file_and_the_nearest(self, capsys, tmp_path):
        (tmp_path / "run.yaml").write_text("data: {pth: x}")
        output = refused(capsys, f"train --config {tmp_path / 'run.yaml'}")
        assert "run.yaml" in output
        assert "'data.pth'" in output
        assert 'did you mean "path"?' in output

    def test_a_bad_value_names_the_file(self, capsys, tmp_path):
        (tmp_path / "run.yaml").write_text("epochs: many")
        output = refused(capsys, f"train --config {tmp_path / 'run.yaml'}")
        assert "run.yaml" in output
        assert "epochs" in output
        assert "'many'" in output

    def test_a_missing_file(self, capsys, tmp_path):
        assert "cannot be read" in refused(capsys, f"train --config {tmp_path / 'none.yaml'}")


class TestPhases:
    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "run.yaml"
        path.write_text(
            "learning_rate: 0.1\nphases:\n- {epochs: 30, architecture: {loss: {gamma: 1}}}\n"
            "- {epochs: 10, weight_decay: 0.5}"
        )
        return path

    def test_they_are_read(self, settings_of, file):
        expected = {"epochs": 30, "architecture": {"loss": {"gamma": 1}}}, {"epochs": 10, "weight_decay": 0.5}
        assert settings_of(f"--config {file} --learning-rate 0.2").phases == expected

    def test_typed_epochs_are_shared_out(self, settings_of, file):
        config = settings_of(f"--config {file} --epochs 8")
        assert config.epochs == 8
        assert [phase["epochs"] for phase in config.phases] == [6, 2]
        assert config.phases[1]["weight_decay"] == 0.5

    def test_they_can_be_left_out(self, settings_of, file):
        config = settings_of(f"--config {file} --empty-phases --epochs 3 --weight-decay 0.1")
        assert (config.phases, config.epochs, config.weight_decay) == ((), 3, 0.1)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ("--weight-decay 0.1", "--weight-decay: has no effect in {file}: set in phase 2"),
            ("--architecture.loss.gamma 2", "--architecture.loss.gamma: has no effect in {file}: set in phase 1"),
            ("--epochs 1", "epochs: 1 for 2 phases"),
            ("--phases x", "--phases: phases are given in a file of settings"),
        ],
    )
    def test_a_flag_without_effect_is_refused(self, capsys, file, flags, message):
        assert message.format(file=file) in refused(capsys, f"train --config {file} {flags}")

    def test_a_mistake_in_a_phase_names_the_file(self, capsys, tmp_path):
        (tmp_path / "run.yaml").write_text("phases: [{epochs: 1}, {epochs: 2, lerning_rate: 1}]")
        output = refused(capsys, f"train --config {tmp_path / 'run.yaml'}")
        assert "run.yaml: phase 2: unknown setting 'lerning_rate' (did you mean \"learning_rate\"?)" in output


class TestDryRun:
    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "run.yaml"
        path.write_text("size: 320\naugment: {hue: 0.1}\narchitecture: {loss: {gamma: 1.0}}\nepochs: 7")
        return path

    def test_every_setting_with_its_source(self, capsys, file, monkeypatch):
        monkeypatch.chdir(file.parent)
        flags = "--augment.preset strong --architecture.width 64 --frozen-stages 2 --epochs 3 --dry-run"
        assert main(f"train DIR --config {file} {flags} --json".split()) == 0
        rows = {row["name"]: (row["value"], row["source"]) for row in json.loads(capsys.readouterr().out)}
        expected = {
            "data.path": ("DIR", "typed"),
            "epochs": (3, "typed"),
            "size": (320, "file"),
            "batch_size": (8, "default"),
            "augment.preset": ("strong", "typed"),
            "augment.hue": (0.1, "file"),
            "augment.mosaic": (0.5, "preset"),
            "architecture.width": (64, "typed"),
            "architecture.loss.gamma": (1.0, "file"),
            "architecture.loss.alpha": (0.25, "preset"),
            "architecture.frozen_stages": (2, "typed"),
            "architecture.norm": ("batch", "random weights"),
        }
        assert {name: rows[name] for name in expected} == expected
        assert list(file.parent.iterdir()) == [file]

    def test_as_a_table(self, capsys):
        assert main(["train", "--size", "320", "--dry-run"]) == 0
        output = capsys.readouterr().out
        assert re.search(r"^size +320 +typed$", output, re.MULTILINE)
        assert "retinanet_r50_fpn: 38.0 M parameters with the classes of the preset, long side 320 px" in output

    def test_what_is_decided_from_the_data_says_why(self, capsys, demo_data, file):
        assert main(f"train --data {demo_data} --sampling auto --dry-run".split()) == 0
        output = capsys.readouterr().out
        assert re.search(r"^size +320 +auto: 25% of the objects are smaller than \d+ px at 320$", output, re.MULTILINE)
        assert re.search(r"^model +faster_rcnn_\w+ +auto: ", output, re.MULTILINE)
        assert re.search(r"^sampling +\w+ +auto: .* images with the most frequent class", output, re.MULTILINE)
        assert re.search(r"^short_side +none +default$", output, re.MULTILINE)
        assert not re.search(r"^(?!architecture).* null ", output, re.MULTILINE)
        assert "augmentation light: flip_horizontal 0.5, scale_jitter 0.8 1.25" in output
        file.write_text("size: auto\nepochs: 7")
        assert main(f"train {demo_data} --config {file} --minutes 2 --batch-size auto --dry-run".split()) == 0
        output = capsys.readouterr().out
        assert re.search(r"^model +retinanet_r50_fpn +default$", output, re.MULTILINE), "a file means what it did"
        assert re.search(r"^size +320 +auto: ", output, re.MULTILINE)
        assert re.search(r"^batch_size +4 +auto: for 11 images$", output, re.MULTILINE)
        assert re.search(r"^minutes +2.0 +typed$", output, re.MULTILINE)

    def test_what_training_would_refuse_is_refused(self, capsys):
        assert "minutes or epochs, not both" in refused(capsys, "train D --minutes 3 --epochs 24")
        assert "unknown detector" in refused(capsys, "train --model retinanet_r --dry-run")
        assert "architecture" in refused(capsys, "train --architecture.widht 3 --dry-run")
        line = "train --model retinanet_mobilenet_v2_fpn --architecture.loss.alpha 0.5 --dry-run"
        assert "loss.alpha: has no effect with loss.quality: true" in refused(capsys, line)
        assert "--json is for --dry-run" in refused(capsys, "train DIR --json")


def test_a_file_in_place_of_a_folder_is_one_line_and_status_2(capsys, tiny_run, demo_data, tmp_path):
    (tmp_path / "file").touch()
    image = demo_data / "images" / "test_00000.png"
    for out in (tmp_path / "file", tmp_path / "file" / "sub"):
        for line in (f"train --data {demo_data}", f"eval {tiny_run}", f"predict {tiny_run} {image}"):
            output = refused(capsys, f"{line} --out {out}")
            assert output.startswith("focaldet: out: ")
            assert str(tmp_path / "file") in output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian", 'Did you mean "train"?'),
        ("train --epchs 3", "Did you mean --epochs?"),
        ("train --data.trian x", "Did you mean --data.train?"),
        ("train --epochs 0", 'Invalid value "0" for --epochs: Input should be greater than 0'),
        ("train --epochs three", 'unable to convert "three" into int'),
        ("train --precision fp8", 'Choose from: "fp32", "bf16", "fp16"'),
        ("train --architecture 3", "name the setting"),
        ("train --data nowhere --out nothing", "nowhere"),
        ("train --data nowhere --resume --overwrite", "exclude each other"),
        ("check nowhere --model retinanet_r5_fpn", 'did you mean "retinanet_r50_fpn"?'),
        ("eval", "either a run folder"),
        ("eval nowhere --data nowhere", "no file or run folder 'nowhere', and no weights have that name"),
        ("predict nowhere", "which images"),
        (
            "convert nowhere --out w.safetensors",
            "no file or run folder 'nowhere', and no weights have that name",
        ),
        ("convert nowhere --out w.pth", "no file or run folder 'nowhere'"),
        ("convert nowhere --out w.safetensors --from onnx", "from: no whole detectors of 'onnx' are known"),
        ("convert nowhere", "--out"),
        ("predict nowhere x.jpg", "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train D --lr 0.01", "--lr: say --learning-rate 0.01, the rate for 8 images per update"),
        ("train D --imgsz=640", "--imgsz: say --size 640"),
        ("train D --img_size", "--img_size: say --size VALUE"),
        ("train D -b 16", "-b: say --batch-size 16"),
        ("train D --bs 4", "--bs: say --batch-size 4"),
        ("train D --freeze 2", "--freeze: say --frozen-stages 2"),
        ("train D --name cells --epochs 3", "--name: say --out runs/cells"),
        ("train D --cos-lr", "--cos-lr: say --schedule cosine"),
        ("train D --wandb", "--wandb: say --loggers wandb"),
        ("train D --nosave", "--nosave: a run is always saved"),
        ("train D --num-gpus 4", "--num-gpus: say torchrun --nproc-per-node 4 -m focaldet train"),
        ("train epochs=3 lr0=0.1", "epochs=3: say --epochs 3"),
        ("study sweep D --wd 0.1", "--wd: say --weight-decay 0.1"),
        ("check D --imgsz 64", "--imgsz: say --size 64"),
        ("eval R --conf 0.5", "--conf: say --architecture.detect.score-threshold 0.5"),
        ("eval R --iou-thres 0.5", "--iou-thres: say --architecture.detect.nms-iou 0.5"),
        ("eval R --half", "--half: say --precision fp16"),
        ("predict R a.jpg --conf-thres 0.5", "--conf-thres: say --score 0.5"),
        ("predict R --source a.jpg", "--source: the images follow the run, without a flag: a.jpg"),
        ("predict R a.jpg --nosave", "--nosave: say --no-drawn"),
        ("predict R a.jpg --device 7", "device: '7' is not there; this machine has "),
        ("predict R a.jpg --device 0,1", "device: '0,1' is unknown; allowed: cpu, "),
    ],
)
def test_the_flags_of_other_programs_are_answered_with_the_flag_that_means_it(capsys, monkeypatch, line, message):
    monkeypatch.setattr("focaldet.cli.predict.load", lambda *_, device, **__: pick_device(device))
    assert refused(capsys, line).startswith(f"focaldet: {message}")


def test_every_answer_names_a_flag_of_its_command():
    """Every flag in every answer is known to each of its commands; no command has a flag of a peer's name itself."""
    flags = functools.cache(lambda command: build_app()[command].assemble_argument_collection())
    for commands, names, answer in read_answers():
        for command in set(commands.split()) - {"study"}:
            known = flags(command)
            for flag in re.findall(r"(?<![\w-])--[a-z][a-z.-]*", answer):
                assert flag == "--nproc-per-node" or flag in known, (command, answer)
            for name in names.split():
                assert f"--{name}" not in known, (command, name)


def test_flags_of_version_0_1_are_read_and_say_what_they_are_called_now(capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "focaldet.cli.convert.convert", lambda *_, **settings: seen.append(settings["license"]) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        main(["convert", "a.pth", "--out", "a.safetensors", "--licence=MIT"])
    assert seen == ["MIT"]
    assert capsys.readouterr().err == "focaldet: --licence is now called --license\n"


def test_an_unknown_setting_of_the_architecture_names_the_nearest(capsys, demo_data, tmp_path):
    output = refused(capsys, f"train --data {demo_data} --out {tmp_path / 'x'} --architecture.loss.gama 2")
    assert 'did you mean "gamma"?' in output


def test_interruptions_have_their_own_status(monkeypatch, capsys):
    monkeypatch.setattr("focaldet.cli.train.train", lambda config, **_: SimpleNamespace(interrupted=True))
    assert main(["train"]) == 130

    def ctrl_c(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("focaldet.cli.models.read_rows", ctrl_c)
    assert main(["models"]) == 130
    assert "interrupted" in capsys.readouterr().err


class TestModels:
    def test_the_table_has_every_name_and_the_papers_figures(self, capsys):
        assert main(["models"]) == 0
        lines = capsys.readouterr().out.splitlines()
        rows = {line.split()[0]: line.split() for line in lines[1:-3]}
        assert list(rows) == list(focaldet.models.PRESETS)
        assert rows["retinanet_r50_fpn"][3] == "37,915,572"
        assert rows["retinanet_r101_fpn"][3:10] == ["56,855,476", "39.1", "59.1", "42.3", "21.8", "42.7", "50.2"]
        assert rows["retinanet_x101_32x8d_fpn"][4:10] == ["40.8", "61.1", "44.1", "24.1", "44.2", "51.2"]
        assert rows["retinanet_r18_fpn"][4] == "-"

    def test_json(self, capsys):
        assert main(["models", "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert rows["retinanet_r50_fpn_tv"]["num_parameters"] == 34_014_999
        assert rows["retinanet_r101_fpn"]["published"]["ap"] == 39.1
        assert rows["retinanet_r50_fpn"]["published"] is None

    def test_a_new_process_prints_the_same_without_the_detectors(self, capsys):
        for words in (["models"], ["models", "--json"]):
            command = [sys.executable, "-m", "focaldet", *words]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            assert main(words) == 0
            assert ended.stdout == capsys.readouterr().out

    def test_a_registered_detector_is_listed(self, capsys, monkeypatch):
        preset = focaldet.models.PRESETS["ssd_r18"]
        monkeypatch.setitem(focaldet.models.PRESETS, "mine", preset)
        monkeypatch.setattr("focaldet.models.published.PRESETS", {"mine": preset})
        monkeypatch.setattr("focaldet.models.published.detector_rows", detector_rows)
        assert main(["models"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["mine", "resnet18"]


class TestCheck:
    def test_clean(self, capsys, demo_data):
        assert main(["check", str(demo_data)]) == 0
        output = capsys.readouterr().out
        header = next(number for number, line in enumerate(output.splitlines()) if line.startswith("SPLIT  "))
        assert output.splitlines()[header].split()[:2] == ["SPLIT", "IMAGES"]
        assert output.splitlines()[header + 1].split()[1] == "12"
        assert "anchors" in output

    def test_problems(self, capsys, demo_data, tmp_path):
        shutil.copytree(demo_data, tmp_path / "data")
        file = tmp_path / "data" / "instances_train.json"
        content = json.loads(file.read_text())
        content["annotations"][0]["bbox"] = [-5, -5, 50, 50]
        file.write_text(json.dumps(content))
        assert main(["check", str(tmp_path / "data"), "--json"]) == 0
        counts = json.loads(capsys.readouterr().out)["findings"]["counts"]
        assert any(row["severity"] == "warning" and row["count"] == 1 for row in counts)
        assert main(["check", str(tmp_path / "data"), "--list", "--strict"]) == 1
        page = tmp_path / "page.html"
        assert main(["check", str(tmp_path / "data"), "--skip", "box-clipped", "--strict", "--html", str(page)]) == 0
        output = capsys.readouterr().out
        assert f"look at  {page}" in output and page.read_text().startswith("<!doctype html>")
        command = next(line for line in output.splitlines() if line.startswith("next     focaldet train "))
        assert main([*shlex.split(command)[2:], "--dry-run"]) == 0

    def test_unreadable(self, capsys, tmp_path):
        (tmp_path / "instances_train.json").write_text("{")
        assert main(["check", str(tmp_path)]) == 3
        output = capsys.readouterr().err
        assert "instances_train.json" in output
        assert output.count("\n") == 1

    def test_no_data_is_a_mistake_of_usage(self):
        assert main(["check"]) == 2


class TestCheckMeasuresTheAnchorsOfEveryKind:
    @pytest.mark.parametrize(
        ("model", "size", "level"),
        [
            ("retinanet_mobilenet_v2_fpn", "long side 320 px", "STRIDE 128"),
            ("ssd_r18", "320 × 320 px", "C3"),
            ("yolov2", "544 × 544 px, letterbox", "STRIDE 32"),
        ],
    )
    def test_at_the_size_of_the_detector(self, capsys, demo_data, model, size, level):
        assert main(["check", str(demo_data), "--model", model]) == 0
        output = capsys.readouterr().out
        assert f"anchors at {size}" in output and level in output and f"those of {model}" in output
        assert ("width and height" in output) == (model == "yolov2")

    def test_the_side_of_a_square_is_asked_for_with_size(self, capsys, demo_data):
        assert main(["check", str(demo_data), "--model", "ssd_r18", "--size", "256"]) == 0
        assert "anchors at 256 × 256 px" in capsys.readouterr().out
        assert main(["check", str(demo_data), "--model", "ssd_r18", "--short-side", "256"]) == 2

    def test_settings_of_the_architecture_count(self, capsys, demo_data):
        command = ["check", str(demo_data), "--model", "yolov2_tiny", "--json"]
        covered = []
        for anchors in ("[[1,1],[2,2]]", "[[40,0.1],[50,0.1]]"):
            assert main([*command, "--architecture.anchors", anchors]) == 0
            covered.append(json.loads(capsys.readouterr().out)["splits"][0]["anchors"]["covered"])
        assert covered[0] > covered[1] == 0
        assert main([*command, "--architecture.anchor", "[[1,1]]"]) == 2
        assert "anchors" in capsys.readouterr().err


class TestAnchors:
    def test_what_it_prints_is_taken_by_training(self, capsys, demo_data):
        assert not main(["anchors", str(demo_data), "--clusters", "2", "--size", "320"])
        output = capsys.readouterr().out
        assert "average IoU 0." in output and "long side 320 px" in output
        flag, value = output.splitlines()[-1].split(": ")[1].split(" ")
        assert flag == "--architecture.anchors" and len(json.loads(value)) == 2
        assert len(named_config("yolov2", architecture={"anchors": json.loads(value)}).anchors) == 2

    def test_json(self, capsys, demo_data):
        assert not main(["anchors", str(demo_data), "--clusters", "3", "--json"])
        shapes = json.loads(capsys.readouterr().out)
        assert len(shapes["pixels"]) == len(shapes["cells"]) == 3
        assert 0.5 < shapes["average_iou"] <= 1
        assert shapes["cells"][2][0] == pytest.approx(shapes["pixels"][2][0] / 32, abs=1e-3)

    def test_too_many_clusters(self, capsys, demo_data):
        assert main(["anchors", str(demo_data), "--clusters", "100000"]) == 2
        assert "clusters: must be in 1…" in capsys.readouterr().err


class TestEval:
    def test_a_run_on_its_own_data(self, capsys, tiny_run, tmp_path):
        assert main(["eval", str(tiny_run), "--out", str(tmp_path / "e")]) == 0
        output = capsys.readouterr().out
        assert "AP50" in output
        assert "4 images" in output
        assert output.endswith(f"look at  {tmp_path / 'e' / 'report.html'}\n")
        assert json.loads((tmp_path / "e" / "metrics.json").read_text())["num_images"] == 4
        assert (tmp_path / "e" / "predictions.json").exists()

    def test_json_and_another_split(self, capsys, tiny_run, demo_data, tmp_path):
        line = ["eval", str(tiny_run), "--data", str(demo_data), "--data.val", f"{demo_data}/instances_test.json"]
        assert main([*line, "--split", "train", "--json", "--out", str(tmp_path)]) == 0
        assert json.loads(capsys.readouterr().out)["num_images"] == 12

    def test_a_result_file_of_perfect_detections(self, capsys, demo_data, tmp_path):
        truth = json.loads((demo_data / "instances_test.json").read_text())
        names = ("image_id", "category_id", "bbox")
        results = [{name: row[name] for name in names} | {"score": 0.9} for row in truth["annotations"]]
        (tmp_path / "results.json").write_text(json.dumps(results))
        line = ["eval", "--predictions", str(tmp_path / "results.json"), "--data", f"{demo_data}/instances_test.json"]
        assert main(line) == 0
        assert capsys.readouterr().out.split()[:2] == ["AP", "100.0"]
        assert main([*line, "--json", "--out", str(tmp_path / "out")]) == 0
        metrics = json.loads(capsys.readouterr().out)
        assert metrics["ap"] == pytest.approx(1)
        assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics


class TestPredict:
    def test_images_and_folders(self, capsys, tiny_run, demo_data, tmp_path):
        images = sorted((demo_data / "images").glob("test_*.png"))
        out = tmp_path / "drawn"
        line = ["predict", str(tiny_run), str(images[0]), str(demo_data / "images"), "--out", str(out)]
        assert main([*line, "--score", "0", "--formats", "json", "coco", "yolo", "csv"]) == 0
        assert "16 images, " in capsys.readouterr().out
        rows = json.loads((out / "predictions.json").read_text())
        assert len(rows) == 16
        assert any(row["scores"] for row in rows)
        assert len(list(out.glob("*.jpg"))) == 16
        assert (out / "coco.json").exists()
        assert (out / "predictions.csv").exists()

    def test_a_broken_image_is_reported_and_the_rest_goes_on(self, capsys, tiny_run, demo_data, tmp_path):
        shutil.copy(next((demo_data / "images").glob("*.png")), tmp_path / "good.png")
        (tmp_path / "broken.png").write_bytes(b"not an image")
        line = ["predict", str(tiny_run), str(tmp_path), "--out", str(tmp_path / "out"), "--no-drawn"]
        assert main(line) == 1
        output = capsys.readouterr()
        assert "broken.png" in output.err
        assert "2 images, 1 of them unreadable, " in output.out
        assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 1
        assert not list((tmp_path / "out").glob("*.jpg"))


def test_every_command_has_help(capsys):
    for command in ("models", "check", "anchors", "train", "eval", "predict", "serve", "convert", "demo"):
        assert main([command, "--help"]) == 0
        assert f"focaldet {command}" in capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    output = capsys.readouterr().out
    for flag in ("--data ", "--weights.input", "--architecture", "--augment.preset", "--short-side", "--config"):
        assert flag in output


def test_the_help_of_train_has_a_panel_for_every_setting():
    grouped = [field for group in GROUPS.values() for field in group]
    assert sorted(grouped) == sorted(field.name for field in dataclasses.fields(focaldet.RunConfig))
    flags = build_app()["train"].assemble_argument_collection()
    panels = {argument.name: argument.parameter.group[0].name for argument in flags}
    assert {"Data", "Input size", "Model", "Optimization", "Augmentation", "Run"} < {*panels.values()}
    assert panels["--augment.hue"] == "Augmentation"
    assert panels["--data.val"] == "Data"


def test_the_help_explains_every_flag_once(capsys):
    assert main(["train", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    flags = [word for line in lines for word in re.findall(r"^│ (--[a-z.-]+)", line)]
    assert len(flags) == len({*flags}) > 60


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["study", "--help"], ["models"], ["models", "--json"]])
def test_help_version_and_the_list_of_detectors_do_not_wait_for_torch(words):
    program = f"import sys, focaldet.cli; focaldet.cli.main({words}); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = ended.stdout.splitlines()[-1].split()
    assert "focaldet.cli" in modules
    assert [name for name in ("torch", "torchvision", "pydantic", "numpy", "focaldet.config") if name in modules] == []


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == focaldet.__version__


@pytest.mark.prove
def test_as_a_program(tmp_path):
    """The exit status leaves the process."""
    script = Path(sys.executable).parent / "focaldet"
    if not script.exists():
        pytest.skip("the focaldet script is not installed beside this Python")
    ended = subprocess.run([str(script), "eval"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("focaldet: eval:")


def test_as_a_module_and_with_a_closed_pipe():
    """A reader that has seen enough ends it quietly, with a status that leaves the process."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "focaldet", "models", "--json"]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("RANK", {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}),
        ("SLURM_PROCID", {"SLURM_JOB_NAME": "models", "SLURM_NTASKS": "2"}),
    ],
)
def test_only_the_first_of_several_processes_speaks(capsys, monkeypatch, name, others):
    for other, value in others.items():
        monkeypatch.setenv(other, value)
    monkeypatch.setenv(name, "1")
    assert main(["models"]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv(name, "0")
    assert main(["models"]) == 0
    assert "retinanet_r50_fpn" in capsys.readouterr().out


def test_flags_and_values_of_version_0_1_are_read(capsys):
    from focaldet.cli.peers import rename_old

    old = ["train", "--augment.recolour", "0.5", "--augment.keep-boxes", "centre", "--licence=MIT", "centre"]
    new = ["train", "--augment.recolor", "0.5", "--augment.keep-boxes=center", "--license=MIT", "centre"]
    assert rename_old(old) == new
    assert capsys.readouterr().err.count("is now called") == 3


def test_every_choice_of_a_run_that_is_resumed_says_where_it_comes_from(demo_data, tmp_path, capsys):
    """They all have the same reason."""
    (tmp_path / "config.yaml").write_text("model: ssd_r18\nsize: 96\nepochs: 7\n")
    line = f"train --data {demo_data} --out {tmp_path} --resume --dry-run --json"
    assert main([*line.split(), "--data.val", str(demo_data / "instances_test.json")]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    for name, value in {"model": "ssd_r18", "size": 96, "epochs": 7}.items():
        assert (rows[name]["value"], rows[name]["source"][:11]) == (value, "auto: as in")


def test_a_search_for_the_rate_says_what_was_chosen_before_it_begins(monkeypatch, capsys, demo_data):
    def search(settings, *, log, progress):
        log(f"weights: for {settings.model}")
        progress(1, 100)
        return RateCurve((), None)

    monkeypatch.setattr("focaldet.cli.train.find_rate", search)
    assert main(["train", "--data", str(demo_data), "--find-lr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["model", "size", "epochs"]
    assert lines[3].startswith("weights: for faster_rcnn_") and lines[-1].startswith("no rate made the loss fall")


def test_reading_the_data_counts_for_the_minutes(monkeypatch, demo_data):
    seen = []
    monkeypatch.setattr("focaldet.cli.train.read_clock", lambda: 7.0)
    result = SimpleNamespace(interrupted=True)
    monkeypatch.setattr("focaldet.cli.train.train", lambda config, **named: seen.append(named) or result)
    assert main(["train", "--data", str(demo_data), "--minutes", "3"]) == 130
    assert seen[0]["begin"] == 7.0
