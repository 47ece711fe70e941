"""Whole runs of a few steps: what they leave behind, how they stop, and how they are resumed."""

import csv
import dataclasses
import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from focaldet import config as configs
from focaldet.data.config import DataConfig
from focaldet.data.problems import Problem
from focaldet.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FocaldetError,
    NonFiniteLossError,
    OutOfMemoryError,
)
from focaldet.models import build
from focaldet.training import state as states
from focaldet.training import trainer
from focaldet.training.config import RunConfig
from focaldet.training.logs import MetricsFile
from focaldet.training.run_folder import RunFolder
from focaldet.training.trainer import explain_errors, train
from focaldet.weights import load_detector, read_metadata, save_detector
from tests.training.squares import ARCHITECTURE, small_run, squares

EIGHT = squares(8, empty=(5,))


def run(config, data=EIGHT):
    return train(config, sources=(data, data))


def rows_of(out, kind="step"):
    with RunFolder(out).metrics.open() as file:
        return [row for row in csv.DictReader(file) if row["kind"] == kind]


def last_state(out):
    return torch.load(RunFolder(out).state, weights_only=True)


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def assert_same_end(first, second):
    """Two runs ended alike, bit for bit: weights, optimizer, average and what was counted."""
    states = [last_state(out) for out in (first, second)]
    for name in ("detector", "ema", "optimizer", "context"):
        assert equal(states[0][name], states[1][name]), name
    positions = [dict(state["position"], seconds_training=None) for state in states]
    assert positions[0] == positions[1]
    weights = [load_file(RunFolder(out).last) for out in (first, second)]
    assert equal(*weights)
    losses = [[(row["step"], row["loss"], row["learning_rate"]) for row in rows_of(out)] for out in (first, second)]
    assert losses[0] == losses[1]


def stop_after(monkeypatch, *, steps, number=signal.SIGTERM):
    """Send this process a signal in the middle of update number `steps`."""
    plain = trainer.train_step

    def stopped(state, batches, **named):
        if state.step + 1 == steps:
            os.kill(os.getpid(), number)
        return plain(state, batches, **named)

    monkeypatch.setattr(trainer, "train_step", stopped)


def test_what_a_run_leaves_behind(tmp_path, capsys):
    result = run(small_run(tmp_path / "run", evaluate_every=2, epochs=3, ema=0.9))
    folder = RunFolder(tmp_path / "run")
    assert (result.out, result.epochs, result.interrupted) == (folder.path, 3, False)
    assert result.last.num_images == 8 and result.best.ap >= result.last.ap
    assert configs.from_dict(RunConfig, configs.read_mapping(folder.config)).epochs == 3
    assert [row["step"] for row in rows_of(folder.path)] == ["1", "2", "3", "4", "5", "6"]
    assert [row["epoch"] for row in rows_of(folder.path, "evaluation")] == ["2", "3"]
    assert result.seconds_training == pytest.approx(
        sum(float(row["seconds"]) for row in rows_of(folder.path)), rel=1e-3
    )
    events = [json.loads(line)["event"] for line in folder.events.read_text().splitlines()]
    assert events[-1] == "finished" and "started" in events and events.count("evaluation") == 2
    assert "Average precision" in folder.report.read_text() and "<svg" in folder.report.read_text()
    environment = json.loads(folder.environment.read_text())
    assert environment["data"]["train"] == EIGHT.dataset.fingerprint() and environment["versions"]["torch"]
    assert {record["image_id"] for record in json.loads(folder.predictions.read_text())} <= set(range(10, 18))
    for path in (folder.last, folder.best):
        assert read_metadata(path).category_ids == (3, 7)
        assert load_detector(path).detector.preprocessing.resize.size == 64
    assert load_detector(folder.best).thresholds == result.best.score_thresholds
    printed = capsys.readouterr().out
    assert "learning rate: 0.000707 = 0.001 × √(4 / 8) for 4 images per update" in printed
    assert "epoch 3/3  AP" in printed and "\x1b" not in printed


def test_the_license_of_the_initial_weights_stays_with_what_is_learned(tmp_path, monkeypatch):
    start = tmp_path / "start.safetensors"
    architecture = {**ARCHITECTURE, "num_classes": 2}
    save_detector(start, build("retinanet_mobilenet_v2_fpn", architecture=architecture), license="CC-BY-4.0")
    config = small_run(tmp_path / "run", weights=str(start), evaluate_every=1)
    stop_after(monkeypatch, steps=3)
    assert run(config).interrupted
    monkeypatch.undo()
    assert not run(dataclasses.replace(config, resume=True)).interrupted
    for path in (RunFolder(config.out).last, RunFolder(config.out).best):
        assert read_metadata(path).license == "CC-BY-4.0"


@pytest.mark.parametrize("name", ["save_state", "save_detector"])
def test_a_run_that_dies_in_its_last_save_goes_on_to_the_same_weights(tmp_path, monkeypatch, name):
    config = small_run(tmp_path / "straight")
    run(config)
    plain, saves = getattr(trainer, name), []

    def dying(*args, **kwargs):
        saves.append(args)
        if len(saves) == config.epochs:
            raise SystemExit
        plain(*args, **kwargs)

    monkeypatch.setattr(trainer, name, dying)
    config = dataclasses.replace(config, out=tmp_path / "dying")
    with pytest.raises(SystemExit):
        run(config)
    monkeypatch.undo()
    run(dataclasses.replace(config, resume=True))
    assert_same_end(tmp_path / "straight", tmp_path / "dying")


def test_settings_that_came_with_the_initial_weights_are_resumed(tmp_path, monkeypatch):
    plain = states.load_into

    def changing(detector, *args, **kwargs):
        for module in detector.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 1e-3
        detector.config = dataclasses.replace(detector.config, norm_eps=1e-3)
        return plain(detector, *args, **kwargs)

    start = tmp_path / "start.safetensors"
    architecture = {**ARCHITECTURE, "num_classes": 2}
    save_detector(start, build("retinanet_mobilenet_v2_fpn", architecture={**architecture, "norm_eps": 1e-3}))
    config = small_run(tmp_path / "straight", weights=str(start))
    monkeypatch.setattr(states, "load_into", changing)
    run(config)
    config = dataclasses.replace(config, out=tmp_path / "stopped")
    stop_after(monkeypatch, steps=3)
    assert run(config).interrupted
    monkeypatch.undo()
    run(dataclasses.replace(config, resume=True))
    assert load_detector(RunFolder(config.out).last).detector.config.norm_eps == 1e-3
    assert_same_end(tmp_path / "straight", tmp_path / "stopped")


def test_a_loading_process_that_dies_while_the_network_computes_is_not_a_traceback(tmp_path, monkeypatch):
    plain = trainer.train_step

    def bereft(state, batches, **named):
        if state.step == 1:
            child = next(iter(multiprocessing.active_children()))
            os.kill(child.pid, signal.SIGKILL)
            time.sleep(5)  # torch raises here, from its handler of SIGCHLD
        return plain(state, batches, **named)

    monkeypatch.setattr(trainer, "train_step", bereft)
    with pytest.raises(FocaldetError, match="a process that loads images ended"):
        run(small_run(tmp_path, workers=1))


def test_evaluation_takes_as_many_images_at_once_as_a_part_of_an_update(tmp_path, monkeypatch):
    sizes = []
    plain = trainer.detect_all
    monkeypatch.setattr(trainer, "detect_all", lambda *a, **k: sizes.append(k["batch_size"]) or plain(*a, **k))
    run(small_run(tmp_path, epochs=1, evaluate_every=1, batch_size=8, accumulate=4))
    assert sizes == [2]


def test_average_is_what_is_kept(tmp_path):
    run(small_run(tmp_path, ema=0.9, epochs=1))
    state, kept = last_state(tmp_path), load_file(RunFolder(tmp_path).last)
    # The statistics of BatchNorm are measured anew in so short a run.
    weights, average, detector = (
        {name: value for name, value in tensors.items() if "running" not in name}
        for tensors in (kept, state["ema"], state["detector"])
    )
    assert equal(weights, average) and not equal(weights, detector)


def test_existing_run_is_refused(tmp_path):
    run(small_run(tmp_path, epochs=1))
    before = RunFolder(tmp_path).state.read_bytes()
    with pytest.raises(ConfigError, match="already exists"):
        run(small_run(tmp_path, epochs=1))
    assert RunFolder(tmp_path).state.read_bytes() == before
    assert run(small_run(tmp_path, epochs=1, seed=3, overwrite=True)).epochs == 1
    assert RunFolder(tmp_path).state.read_bytes() != before


def test_failing_at_the_door_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match='did you mean "retinanet_r50_fpn"'):
        run(small_run(tmp_path / "run", model="retinanet_r50_fp", architecture={}))
    with pytest.raises(ConfigError, match="cuda:77"):
        run(small_run(tmp_path / "run", device="cuda:77"))
    assert not (tmp_path / "run").exists()


def test_random_weights_are_trained_in_every_layer_unless_somebody_asks(tmp_path, capsys):
    plain = {name: value for name, value in ARCHITECTURE.items() if name != "norm"}
    run(small_run(tmp_path / "own", epochs=1, architecture=plain))
    assert "starts from random ones (batch norm, 0 stages frozen)" in capsys.readouterr().out
    config = load_detector(RunFolder(tmp_path / "own").last).detector.config
    assert config.norm_eps == 1e-5
    assert (config.norm, config.frozen_stages) == ("batch", 0)
    run(small_run(tmp_path / "asked", epochs=1, frozen_stages=3, architecture={**plain, "norm": "frozen"}))
    assert "frozen BatchNorm has no statistics" in capsys.readouterr().out
    config = load_detector(RunFolder(tmp_path / "asked").last).detector.config
    assert (config.norm, config.frozen_stages) == ("frozen", 3)


def test_a_run_starts_from_the_weights_that_come_with_focaldet_and_is_resumed_with_them(tmp_path, capsys):
    architecture = {name: value for name, value in ARCHITECTURE.items() if name not in ("norm", "backbone")}
    model = "retinanet_efficientnet_lite0_fpn"
    config = small_run(tmp_path, epochs=1, model=model, schedule="constant", architecture=architecture)
    run(config)
    text = capsys.readouterr().out
    assert "no weights given: starts from those that come with focaldet" in text
    assert "weights: backbone from embedded:efficientnet_lite0" in text
    metadata = read_metadata(RunFolder(tmp_path).last)
    assert (metadata.license, metadata.preprocessing.mean) == ("Apache-2.0", (127.0,) * 3)
    with pytest.raises(CheckpointError, match="weights was 'embedded:efficientnet_lite0', is None"):
        run(dataclasses.replace(config, weights="none", resume=True))
    run(dataclasses.replace(config, weights="embedded:efficientnet_lite0", epochs=2, resume=True))


def test_network_can_be_compiled(tmp_path, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    run(small_run(tmp_path, epochs=1, compile=True))
    assert compiled == ["RetinaNet"]
    line = "compile: on the CPU a compiled network is trained more slowly than one that is not: leave it out"
    assert capsys.readouterr().out.count(line) == 1
    run(small_run(tmp_path / "plain", epochs=1))
    assert line not in capsys.readouterr().out


@pytest.fixture
def own_handlers():
    """Python's usual handlers: a program started in the background inherits that SIGINT is ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.prove)])
def test_signal_saves_and_the_run_goes_on_to_the_same_end(tmp_path, monkeypatch, capsys, number, own_handlers):
    config = small_run(tmp_path / "straight", epochs=2, ema=0.9, evaluate_every=1)
    run(config)
    stop_after(monkeypatch, steps=1, number=number)
    stopped = run(dataclasses.replace(config, out=tmp_path / "stopped"))
    monkeypatch.undo()
    assert stopped.interrupted and last_state(tmp_path / "stopped")["position"]["step"] == 1
    printed = capsys.readouterr().out
    assert f"stopped by {signal.Signals(number).name} after step 1" in printed
    assert "focaldet train" not in printed, "no command can bring these images back"
    assert signal.getsignal(number) not in (None, signal.SIG_IGN), "the handlers are those of before"
    resumed = run(dataclasses.replace(config, out=tmp_path / "stopped", resume=True, workers=2))
    assert not resumed.interrupted and resumed.epochs == 2
    assert_same_end(tmp_path / "straight", tmp_path / "stopped")


def test_resuming_a_finished_run_says_that_nothing_is_left(tmp_path, capsys):
    config = small_run(tmp_path, epochs=1)
    run(config)
    assert "nothing left to train" not in capsys.readouterr().out
    run(dataclasses.replace(config, resume=True))
    assert "nothing left to train: all epochs of this run are done (1 epoch)" in capsys.readouterr().out


def test_a_run_on_files_says_how_to_go_on(tmp_path, demo_data, monkeypatch, capsys, own_handlers):
    data = DataConfig(path=demo_data, val=demo_data / "instances_test.json")
    stop_after(monkeypatch, steps=1)
    assert train(small_run(tmp_path / "run", data=data)).interrupted
    command = f"continue with: focaldet train {tmp_path / 'run'} --resume"
    assert command in capsys.readouterr().out


def test_stopped_evaluation_is_made_again(tmp_path, monkeypatch):
    config = small_run(tmp_path / "straight", epochs=1, evaluate_every=1)
    run(config)
    plain = trainer.detect_all

    def stopped(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args, **kwargs)

    monkeypatch.setattr(trainer, "detect_all", stopped)
    config = dataclasses.replace(config, out=tmp_path / "stopped")
    assert run(config).interrupted and rows_of(config.out, "evaluation") == []
    monkeypatch.undo()
    assert run(dataclasses.replace(config, resume=True)).last is not None
    assert_same_end(tmp_path / "straight", tmp_path / "stopped")


def test_parts_and_half_precision_resume_too(tmp_path, monkeypatch):
    # The paper's head: gradients through norms on maps of one cell overflow fp16 until the scale has fallen.
    loss = {**ARCHITECTURE["loss"], "quality": False}
    anchors = {"base_scale": 2.0, "scales": [1.0, 1.26, 1.59], "ratios": [0.5, 1.0, 2.0]}
    classic = {"head_norm": False, "matching": {"rule": "iou", "low_quality": "any"}, "loss": loss, "anchors": anchors}
    architecture = {**ARCHITECTURE, **classic}
    half = {"precision": "fp16", "optimizer": "sgd", "learning_rate": 1e-4}
    config = small_run(tmp_path / "straight", epochs=2, accumulate=2, architecture=architecture, **half)
    run(config)
    stop_after(monkeypatch, steps=1)
    run(dataclasses.replace(config, out=tmp_path / "stopped"))
    monkeypatch.undo()
    run(dataclasses.replace(config, out=tmp_path / "stopped", resume=True))
    assert_same_end(tmp_path / "straight", tmp_path / "stopped")
    scalers = [last_state(tmp_path / name)["scaler"] for name in ("straight", "stopped")]
    assert scalers[0] == scalers[1] and scalers[0]["_growth_tracker"] > 0


def test_finished_run_has_nothing_left_to_do(tmp_path):
    config = small_run(tmp_path, epochs=1, evaluate_every=1)
    first = run(config)
    again = run(dataclasses.replace(config, resume=True))
    assert again.best == first.best and again.epochs == 1 and len(rows_of(tmp_path)) == 2


def test_constant_run_is_made_longer(tmp_path):
    config = small_run(tmp_path / "long", epochs=2, schedule="constant", warmup_epochs=0.5)
    run(config)
    short = dataclasses.replace(config, out=tmp_path / "short")
    run(dataclasses.replace(short, epochs=1))
    run(dataclasses.replace(short, resume=True))
    assert_same_end(tmp_path / "long", tmp_path / "short")


def test_a_run_keeps_the_rules_of_its_rate_and_of_its_last_sizes(tmp_path, monkeypatch):
    """12 updates: a square rise over 3, a tenth at the half and at three quarters, the last third at 96 px."""
    sides = []
    plain = trainer.train_step

    def noted(state, batches, **named):
        sides.extend(batch.images.shape[-1] for batch in batches)
        return plain(state, batches, **named)

    monkeypatch.setattr(trainer, "train_step", noted)
    rules = {"schedule": "step", "step_at": (0.5, 0.75), "warmup_epochs": 0.75, "warmup_power": 2.0}
    sizes = {"size": 64, "multi_scale": (32, 96), "multi_scale_end": 1 / 3, "seed": 1}
    config = small_run(tmp_path, epochs=3, batch_size=2, evaluate_every=None, **rules, **sizes)
    run(config)
    rates = [float(row["learning_rate"]) / config.scaled_learning_rate for row in rows_of(tmp_path)]
    assert rates == pytest.approx([1 / 9, 4 / 9, *[1.0] * 4, *[0.1] * 3, *[0.01] * 3], rel=1e-5)
    assert len(sides) == 12 and sides[8:] == [96] * 4 and sides[7] < 96


def test_resuming_another_run_is_refused(tmp_path):
    config = small_run(tmp_path, epochs=1)
    run(config)
    with pytest.raises(CheckpointError, match=r"weight_decay was 0\.05, is 0\.1"):
        run(dataclasses.replace(config, resume=True, weight_decay=0.1))
    with pytest.raises(CheckpointError, match="the train data changed; the validation data changed"):
        run(dataclasses.replace(config, resume=True), data=squares(8, seed=1))


def fake_ap(monkeypatch, values):
    """Let the evaluations of a run give these AP, one after another."""
    plain, left = trainer.evaluate_detections, iter(values)

    def evaluate(*args):
        return dataclasses.replace(plain(*args), ap=next(left))

    monkeypatch.setattr(trainer, "evaluate_detections", evaluate)


def test_no_gain_for_a_while_stops_the_run(tmp_path, monkeypatch, capsys):
    fake_ap(monkeypatch, [0.0, 0.2, 0.2, 0.1])
    result = run(small_run(tmp_path, epochs=9, evaluate_every=1, patience=2))
    assert result.epochs == 4 and not result.interrupted and result.best.ap == 0.2
    assert "no better AP" in capsys.readouterr().out


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [None, None, None], [None, 0.0, 0.0]])
def test_where_no_evaluation_can_tell_the_last_weights_are_the_best(tmp_path, monkeypatch, capsys, values):
    """And patience, which would have ended the run after the second, ends nothing."""
    fake_ap(monkeypatch, values)
    result = run(small_run(tmp_path, epochs=3, evaluate_every=1, patience=1))
    folder, told = RunFolder(tmp_path), capsys.readouterr().out
    assert result.epochs == 3 and equal(load_file(folder.best), load_file(folder.last))
    assert told.count("best is the last") == 3 and "best.safetensors are the last weights" in told


def test_validation_without_a_box_is_told_before_the_first_step(tmp_path, capsys):
    train(small_run(tmp_path, epochs=1, evaluate_every=1), sources=(EIGHT, squares(2, empty=(0, 1))))
    before, _, after = capsys.readouterr().out.partition("epoch 1/1")
    assert '"squares" has no box' in before and "AP could not be computed" in after


@pytest.mark.parametrize("ignored", [False, True])
def test_training_on_nothing_is_refused(tmp_path, ignored):
    source = squares(4, empty=() if ignored else range(4))
    source.dataset.flags[:] = 1
    source.dataset.problems.add(Problem("warning", "box empty", "dropped", "a.csv"))
    problem = r"nothing to train on: no box in 4 images.* \(1 × box empty\); focaldet check"
    with pytest.raises(DataError, match=problem) as caught:
        run(small_run(tmp_path / "run"), data=source)
    assert ("4 ignored boxes" in str(caught.value)) == ignored and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"batch_size": 1, "size": 32}, r"BatchNorm has one value per channel .* at 32 × 32 px.*architecture.norm"),
        ({"batch_size": 2, "accumulate": 2, "size": 24}, "batch_size 2 or more"),
        ({"size": 100_000}, r"size: 4 × 100000 × 100000 px at once need at least \d+ GB, .* has \d+ GB"),
        ({"multi_scale": (64, 200_000)}, r"size: 4 × 200000 × 200000 px"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(tmp_path, settings, problem):
    with pytest.raises(ConfigError, match=problem):
        run(small_run(tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_one_image_is_enough_where_norms_have_several_values(tmp_path):
    run(small_run(tmp_path / "larger", batch_size=1, size=256, epochs=1), data=squares(2))
    groups = {**ARCHITECTURE, "norm": "group"}
    run(small_run(tmp_path / "groups", batch_size=1, size=32, epochs=1, architecture=groups), data=squares(2))


def test_loss_that_is_not_finite_names_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr("focaldet.models.retinanet.smooth_l1_loss", lambda *args, **kwargs: args[0] * float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"step 1: .*box nan.*\d\.png"):
        run(small_run(tmp_path))
    assert not RunFolder(tmp_path).state.exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_out_of_memory_gives_advice(tmp_path, monkeypatch, error):
    def forward(*args, **kwargs):
        raise error

    monkeypatch.setattr("focaldet.models.retinanet.RetinaNet.forward", forward)
    with pytest.raises(OutOfMemoryError, match="4 images per update: try accumulate=2"):
        run(small_run(tmp_path))


def test_other_errors_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("focaldet.models.retinanet.RetinaNet.forward", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(small_run(tmp_path))


def test_only_a_full_disk_gets_the_advice_for_it():
    with pytest.raises(CheckpointError, match="no space left"), explain_errors(RunConfig()):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError), explain_errors(RunConfig()):
        raise FileNotFoundError(2, "missing")
    with pytest.raises(RuntimeError, match="shape"), explain_errors(RunConfig()):
        raise RuntimeError("shape mismatch")


def test_full_disk_is_an_error_of_one_line(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "metrics.csv")

    monkeypatch.setattr(MetricsFile, "write", full)
    with pytest.raises(CheckpointError, match=r"metrics\.csv: no space left .* continue with --resume"):
        run(small_run(tmp_path))


def test_overfit_takes_images_with_boxes_and_repeats_them(tmp_path):
    data = squares(12, empty=(0, 1))
    result = run(small_run(tmp_path, overfit=3, epochs=1, evaluate_every=1, sampling="class_balanced"), data=data)
    assert result.last.num_images == 3 and result.last.num_boxes == 3
    assert len(rows_of(tmp_path)) == 16


@pytest.mark.parametrize("ema", [None, 0.998])
def test_losses_fall_and_boxes_appear(tmp_path, ema):
    """The whole chain: shifted labels, anchors that are off or losses that do not reach the weights fail here.

    So does an average that still hangs on the first weights, or BatchNorm that does not fit it.
    """
    rates = {"learning_rate": 2e-3, "backbone_factor": 1.0}
    config = small_run(tmp_path, overfit=4, epochs=4, evaluate_every=4, ema=ema, **rates)
    result = run(config, data=squares(4))
    losses = [float(row["loss"]) for row in rows_of(tmp_path)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert result.last.ar100 > 0.1


@pytest.mark.prove
def test_small_network_overfits_eight_images(tmp_path):
    config = small_run(tmp_path, overfit=8, epochs=24, evaluate_every=24, learning_rate=2e-3, backbone_factor=1.0)
    assert run(config).last.ap50 >= 0.95


def test_errors_of_the_user_share_a_base():
    assert issubclass(OutOfMemoryError, FocaldetError)
