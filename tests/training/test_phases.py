"""Phases of a run: what one may say, what it begins with, and that it goes on wherever it was stopped."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from focaldet import config as configs
from focaldet.data.augment.config import AugmentConfig
from focaldet.data.loading.sampler import Pick
from focaldet.data.loading.samples import Samples
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import build
from focaldet.training import trainer
from focaldet.training.config import IN_PHASES, RunConfig
from focaldet.training.phases import check_phases, describe_phase, split_epochs
from focaldet.training.run_folder import RunFolder
from focaldet.training.trainer import Trainer, train
from focaldet.types import Preprocessing
from focaldet.weights import load_detector, save_detector
from tests.training.squares import ARCHITECTURE, small_run, squares
from tests.training.test_trainer import assert_same_end, equal, last_state, rows_of, stop_after

EIGHT = squares(8, empty=(5,))
# 2 steps an epoch, then 4.
PHASES = (
    {"epochs": 2, "learning_rate": 2e-3, "frozen_stages": 5, "schedule": "constant", "warmup_epochs": 0.0},
    {"epochs": 1, "batch_size": 2, "size": 96, "schedule": "step", "architecture": {"norm": "frozen"}},
)


def run(config, data=EIGHT):
    return train(config, sources=(data, data))


class TestSettings:
    def test_without_phases_the_run_is_the_one_phase(self):
        config = RunConfig(epochs=7)
        assert config.phase_configs == (config,)
        check_phases(config)

    def test_a_phase_is_laid_over_the_run(self):
        config = RunConfig(
            architecture={"loss": {"gamma": 1.0, "alpha": 0.5}},
            augment=AugmentConfig(preset="strong", hue=0.1),
            learning_rate=1e-3,
            phases=({"epochs": 3}, {"epochs": 4, "architecture": {"loss": {"gamma": 3.0}}, "augment": {"mosaic": 0.0}}),
        )
        first, second = config.phase_configs
        assert (first.epochs, first.architecture, first.augment) == (3, config.architecture, config.augment)
        assert second.architecture == {"loss": {"gamma": 3.0, "alpha": 0.5}}
        assert second.augment == AugmentConfig(preset="strong", hue=0.1, mosaic=0.0)
        assert (second.epochs, second.learning_rate, second.phases) == (4, 1e-3, ())
        assert config.epochs == 7

    def test_a_setting_can_be_taken_away(self):
        config = RunConfig(ema=0.9, phases=({"epochs": 1}, {"epochs": 1, "ema": None}))
        run_with, without = config.phase_configs
        assert (run_with.ema, without.ema) == (0.9, None)

    @pytest.mark.parametrize(
        ("phase", "named"),
        [
            ({"epochs": 1, "seed": 3}, "phase 2: seed: is a setting of the whole run"),
            ({"epochs": 1, "phases": []}, "phase 2: phases: is a setting of the whole run"),
            ({"epochs": 1, "learning_rat": 3}, r'phase 2: unknown setting .*did you mean "learning_rate"'),
            ({"epochs": 1, "learning_rate": -1.0}, "phase 2: learning_rate: "),
            ({"epochs": 0}, "phase 2: epochs: "),
            ({"epochs": 1, "augment": {"mosaik": 1}}, r"phase 2: unknown setting 'augment.mosaik'"),
            ({"learning_rate": 1.0}, "phase 2: epochs: is missing"),
            ({"epochs": 1, "batch_size": 3, "accumulate": 2}, "phase 2: batch_size: 3 images"),
        ],
    )
    def test_a_mistake_names_phase_and_setting(self, phase, named):
        with pytest.raises(ConfigError, match=named):
            RunConfig(phases=({"epochs": 1}, phase))

    def test_settings_that_contradict_phases(self):
        phases = ({"epochs": 1}, {"epochs": 2})
        with pytest.raises(ConfigError, match="patience: a run with phases"):
            RunConfig(phases=phases, patience=2)
        with pytest.raises(ConfigError, match="epochs: 5, but the phases together have 3"):
            RunConfig(phases=phases, epochs=5)
        config = RunConfig(phases=phases)
        assert dataclasses.replace(config).epochs == config.epochs == 3, "what a run folder keeps is accepted again"

    def test_they_survive_yaml_as_they_were_written(self, tmp_path):
        configs.save(RunConfig(phases=PHASES), tmp_path / "config.yaml")
        assert configs.from_dict(RunConfig, configs.read_mapping(tmp_path / "config.yaml")).phases == PHASES

    def test_what_a_phase_may_set_exists(self):
        assert {field.name for field in dataclasses.fields(RunConfig)} > IN_PHASES


class TestTheDoor:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"architecture": {"width": 32}}, r"phase 2: architecture: .*the same tensors"),
            ({"architecture": {"backbone": "resnet18"}}, r"phase 2: architecture: .*the same tensors.*backbone"),
            ({"architecture": {"widht": 32}}, r'phase 2: .*did you mean "width"'),
            ({"short_side": 64}, "phase 2: size: give either"),
        ],
    )
    def test_what_cannot_be_trained_is_refused_before_the_first_phase(self, tmp_path, change, named):
        with pytest.raises(ConfigError, match=named):
            run(small_run(tmp_path / "run", phases=({"epochs": 1}, {"epochs": 1, **change})))
        assert not (tmp_path / "run").exists()

    def test_counters_of_batches_are_not_tensors_of_the_network(self):
        check_phases(small_run("run", phases=PHASES))

    def test_a_phase_says_when_it_is_and_what_differs(self):
        config = small_run("run", phases=PHASES)
        first, second = (describe_phase(config, number) for number in (1, 2))
        assert first.startswith("phase 1 of 2, epochs 1 to 2: learning_rate 0.002, frozen_stages 5, schedule constant")
        assert second == "phase 2 of 2, epoch 3: batch_size 2, size 96, schedule step, architecture.norm frozen"


class TestSplitEpochs:
    @pytest.mark.parametrize(
        ("epochs", "total", "expected"),
        [((41, 11), 52, [41, 11]), ((41, 11), 2, [1, 1]), ((15, 15), 30, [15, 15]), ((30, 10), 12, [9, 3])],
    )
    def test_by_hand(self, epochs, total, expected):
        assert split_epochs(epochs, total=total) == expected

    def test_every_length_is_met_and_close_to_the_proportion(self):
        for total in range(3, 60):
            lengths = split_epochs((20, 7, 3), total=total)
            assert sum(lengths) == total
            assert all(
                abs(length - epochs * total / 30) < 1 or length == 1
                for length, epochs in zip(lengths, (20, 7, 3), strict=True)
            )

    def test_every_phase_has_an_epoch(self):
        with pytest.raises(ConfigError, match="1 for 2 phases"):
            split_epochs((9, 1), total=1)


def test_a_run_of_two_phases(tmp_path, capsys):
    result = run(small_run(tmp_path, phases=PHASES, evaluate_every=2, ema=0.9, learning_rate=1e-3))
    assert (result.epochs, result.interrupted) == (3, False)
    steps, evaluations = rows_of(tmp_path), rows_of(tmp_path, "evaluation")
    assert [row["phase"] for row in steps] == ["1"] * 4 + ["2"] * 4
    assert [row["epoch"] for row in steps] == ["1", "1", "2", "2", "3", "3", "3", "3"]
    assert [row["step"] for row in steps] == list("12345678")
    assert [(row["phase"], row["epoch"]) for row in evaluations] == [("1", "2"), ("2", "3")]
    rates = [float(row["learning_rate"]) for row in steps]
    assert rates[:4] == pytest.approx([2e-3 * 0.5**0.5] * 4)
    assert rates[4:] == pytest.approx([1e-3 * 0.5 / 4, 1e-3 * 0.5 / 2, 1e-3 * 0.5 * 3 / 4, 1e-4 * 0.5])
    kept = load_detector(RunFolder(tmp_path).last).detector
    assert (kept.config.norm, kept.config.frozen_stages, kept.preprocessing.resize.size) == ("frozen", 0, 96)
    assert configs.from_dict(RunConfig, configs.read_mapping(RunFolder(tmp_path).config)).phases == PHASES
    events = [json.loads(line) for line in RunFolder(tmp_path).events.read_text().splitlines()]
    assert [event["phase"] for event in events if event["event"] == "phase"] == [1, 2]
    page = RunFolder(tmp_path).report.read_text()
    assert "<p>Phases:</p>" in page and "<li>epochs 3 to 3: batch_size 2" in page
    printed = capsys.readouterr().out
    assert printed.index("phase 1 of 2, epochs 1 to 2: ") < printed.index("phase 2 of 2, epoch 3: batch_size 2")
    assert "step 8/8" in printed and "epoch 3/3  AP" in printed


@pytest.mark.parametrize("ema", [0.9, None])
def test_a_phase_begins_with_the_weights_that_the_one_before_keeps(tmp_path, monkeypatch, ema):
    begun, plain = [], trainer.next_state

    def seen(state, *args, kept, **named):
        saved = {name: value.clone() for name, value in kept.state_dict().items()}
        images = state.context.images_seen
        begun.append((saved, images, plain(state, *args, kept=kept, **named)))
        raise SystemExit

    monkeypatch.setattr(trainer, "next_state", seen)
    with pytest.raises(SystemExit):
        run(small_run(tmp_path, phases=PHASES, ema=ema))
    ((kept, images, following),) = begun
    assert equal(load_file(RunFolder(tmp_path).last), kept)
    state = following.detector.state_dict()
    assert len(state) < len(kept), "frozen BatchNorm counts no batches"
    assert all(torch.equal(value, kept[name]) for name, value in state.items())
    assert (following.ema is None) == (ema is None)
    assert equal(following.evaluated.state_dict(), state)
    assert following.optimizer.state_dict()["state"] == {}
    assert following.context.images_seen == images == 16


def test_what_the_initial_weights_decided_stays_in_the_next_phase(tmp_path):
    """The ε of BatchNorm is that of whoever trained the weights; so are the license and the input."""
    start = tmp_path / "start.safetensors"
    detector = build("retinanet_mobilenet_v2_fpn", architecture={**ARCHITECTURE, "num_classes": 2, "norm_eps": 1e-3})
    detector.preprocessing = Preprocessing(channels="BGR", mean=(1.0, 2.0, 3.0))
    save_detector(start, detector, license="CC-BY-4.0")
    phases = ({"epochs": 1}, {"epochs": 1, "architecture": {"loss": {"gamma": 1.0}}})
    run(small_run(tmp_path / "run", weights=str(start), phases=phases))
    kept = load_detector(RunFolder(tmp_path / "run").last).detector
    assert (kept.config.norm_eps, kept.config.loss.gamma) == (1e-3, 1.0)
    assert (kept.preprocessing.channels, kept.preprocessing.mean) == ("BGR", (1.0, 2.0, 3.0))
    assert last_state(tmp_path / "run")["license"] == "CC-BY-4.0"


def test_what_is_frozen_in_the_first_phase_moves_in_the_second_alone(tmp_path, monkeypatch):
    config = small_run(tmp_path, phases=PHASES)
    torch.manual_seed(0)
    stop_after(monkeypatch, steps=1)
    run(config)
    early = load_file(RunFolder(tmp_path).last)
    monkeypatch.undo()
    stop_after(monkeypatch, steps=4)
    run(dataclasses.replace(config, resume=True))
    border = load_file(RunFolder(tmp_path).last)
    monkeypatch.undo()
    run(dataclasses.replace(config, resume=True))
    end = load_file(RunFolder(tmp_path).last)
    layers = [name for name in border if name.startswith("backbone.") and border[name].ndim == 4]
    assert layers and all(torch.equal(early[name], border[name]) for name in layers)
    assert not any(torch.equal(border[name], end[name]) for name in layers)


def test_stopped_in_either_phase_and_at_the_border(tmp_path, monkeypatch):
    """The border: everything of phase 1 is saved, phase 2 has begun and made no step."""
    config = small_run(tmp_path / "straight", phases=PHASES, ema=0.9, evaluate_every=1)
    run(config)
    config = dataclasses.replace(config, out=tmp_path / "stopped")
    stop_after(monkeypatch, steps=3)
    assert run(config).interrupted
    monkeypatch.undo()
    plain = Trainer._begin_phase

    def dying(self):
        plain(self)
        if self.state.phase == 1:
            raise SystemExit

    config = dataclasses.replace(config, resume=True)
    monkeypatch.setattr(Trainer, "_begin_phase", dying)
    with pytest.raises(SystemExit):
        run(config)
    position = last_state(config.out)["position"]
    assert (position["phase"], position["epoch"], position["step"]) == (0, 2, 4)
    monkeypatch.undo()
    stop_after(monkeypatch, steps=6)
    assert run(config).interrupted
    assert last_state(config.out)["position"]["phase"] == 1
    monkeypatch.undo()
    assert not run(config).interrupted
    assert_same_end(tmp_path / "straight", config.out)
    best = [load_file(RunFolder(out).best) for out in (tmp_path / "straight", config.out)]
    assert equal(*best)


def test_resuming_with_another_phase_is_refused(tmp_path, monkeypatch):
    config = small_run(tmp_path, phases=PHASES)
    stop_after(monkeypatch, steps=1)
    run(config)
    for changed, message in (
        ((PHASES[0], {**PHASES[1], "size": 64}), r"phases\.2\.size was 96, is 64"),
        ((PHASES[0],), r"phases\.2\.batch_size was 2, is None"),
        ((PHASES[0], {**PHASES[1], "epochs": 2}), r"epochs was 3, is 4; phases\.2\.epochs was 1, is 2"),
        ((), r"epochs was 3, is 2; phases\.1\."),
    ):
        with pytest.raises(CheckpointError, match=message):
            run(dataclasses.replace(config, phases=changed, epochs=24 if changed else 2, resume=True))


def test_a_constant_run_with_phases_does_not_grow(tmp_path, monkeypatch):
    config = small_run(tmp_path, phases=({"epochs": 1},), schedule="constant")
    stop_after(monkeypatch, steps=1)
    run(config)
    with pytest.raises(CheckpointError, match=r"epochs was 1, is 2; phases\.1\.epochs was 1, is 2"):
        run(dataclasses.replace(config, phases=({"epochs": 2},), epochs=2, resume=True))


def test_the_mosaic_ends_by_the_length_of_the_phase():
    """Of 4 epochs the last half has none; those of a phase that begins with epoch 6 are 6 to 9."""
    augmentation = AugmentConfig(preset="none", mosaic=1.0, mosaic_off_last=0.5)
    samples = Samples(
        EIGHT, preprocessing=Preprocessing(), seed=0, augmentation=augmentation, num_epochs=4, first_epoch=6
    )
    names = [samples.sample(Pick(epoch, image=0, repeat=0))[1] for epoch in range(6, 10)]
    assert [name.count("+") for name in names] == [3, 3, 0, 0]
