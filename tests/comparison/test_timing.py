"""Times of detectors: who takes turns, what the parts are, what a network costs."""

import gc
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from focaldet.comparison import timing
from focaldet.comparison.compare_page import _machine_note
from focaldet.comparison.machine import PROBE_MS, Probe
from focaldet.comparison.timing import (
    DetectorTiming,
    Spread,
    TimingReport,
    count_gflop,
    measure_peak_memory,
    time_detectors,
    time_image,
)
from focaldet.errors import CheckpointError
from focaldet.prediction import Predictor
from tests.evaluation.cases import BrightDetector, make_image


class ConvolvedDetector(BrightDetector):
    """As its base, behind a convolution of 3 → 3 channels, the identity."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1, bias=False)
        self.convolution.weight.data = torch.eye(3)[:, :, None, None]

    def forward(self, images, sizes, targets=None):
        return super().forward(self.convolution(images.float()), sizes, targets)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(make_image().permute(1, 2, 0).numpy()).save(path)
    return path


def test_detectors_take_turns_and_the_first_round_does_not_count(image, monkeypatch):
    order, seconds = [], iter(range(100))
    predictors = {name: Predictor(BrightDetector(), device="cpu", precision="fp32") for name in ("a", "b")}
    monkeypatch.setattr(timing, "load", lambda run, **_: predictors[run.name])

    def lap(predictor, path):
        order.append(next(name for name, each in predictors.items() if each is predictor))
        return [1e-3 * next(seconds)] * 4

    monkeypatch.setattr(timing, "time_image", lap)
    monkeypatch.setattr(timing, "measure_peak_memory", lambda *_, **__: None)
    monkeypatch.setattr(timing, "count_gflop", lambda *_: 1.0)
    report = time_detectors({"a": Path("a"), "b": Path("b")}, [image, image], rounds=2, batch_size=2)
    assert "".join(order) == "aabbaabbaabb"
    total = report.detectors["a"].total
    assert total.num_values == 4 and total.median == pytest.approx(4 * (4 + 5 + 8 + 9) / 4)
    assert total.best == pytest.approx(4 * (4 + 5) / 2)  # of each image the faster round
    assert report.detectors["b"].parts["decode"].median == pytest.approx((6 + 7 + 10 + 11) / 4)
    assert report.detectors["a"].throughput.num_values == 2 and report.detectors["a"].throughput.best > 0
    assert report.probe.num_values == 4 and 0 < report.probe.best <= report.probe.median  # two detectors in two rounds
    assert report.detectors["a"].parameters == 1 and report.detectors["a"].input == (64, 64)


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 3), (6.0, 1)])
def test_each_round_reads_the_weights_anew_where_that_is_quick(image, monkeypatch, seconds, times):
    runs, now = [], [0.0]

    def read(run, **_):
        runs.append(run)
        now[0] += seconds
        return Predictor(BrightDetector(), device="cpu", precision="fp32")

    def tick():
        now[0] += 1e-3
        return now[0]

    monkeypatch.setattr(timing, "load", read)
    monkeypatch.setattr(timing.time, "perf_counter", tick)
    monkeypatch.setattr(timing, "measure_peak_memory", lambda *_, **__: None)
    report = time_detectors({"a": Path("a")}, [image], rounds=2, batch_size=1)
    assert len(runs) == times and report.detectors["a"].total.num_values == 2


def test_the_parts_are_measured_one_after_another(image):
    laps = time_image(Predictor(BrightDetector(), device="cpu"), image)
    assert len(laps) == 4 and min(laps) > 0


def test_operations_are_those_of_the_convolution(image):
    predictor = Predictor(ConvolvedDetector(), device="cpu", precision="fp32")
    assert count_gflop(predictor, image) * 1e9 == 2 * 3 * 3 * 64 * 64


def test_a_loaded_machine_is_told_from_a_quiet_one():
    one = DetectorTiming(Spread(1.0, 1.0, 1.0, 1, 1.0), {})
    settings = {"detectors": {"a": one}, "machine": {}, "threads": 2, "rounds": 1, "images": 1, "batch_size": 1}
    assert TimingReport(**settings, load_before=0.5, load_after=2.1).is_quiet
    assert not TimingReport(**settings, load_before=0.5, load_after=4.0).is_quiet
    assert TimingReport(**settings, load_before=None, load_after=None).is_quiet
    for slowest, is_quiet in ((1.2, True), (1.3, False)):  # no load tells of the other users of a virtual machine
        probe = Spread(1.1, 1.0, slowest, 10, 1.0)
        assert TimingReport(**settings, load_before=0.5, load_after=2.1, probe=probe).is_quiet == is_quiet


@pytest.mark.prove
def test_memory_is_that_of_a_process_of_its_own(tiny_run, demo_data):
    image = next((demo_data / "images").glob("test_*.png"))
    held = torch.ones(600_000_000)  # 2.4 GB here count for nothing there
    assert held[0] == 1 and 100 < measure_peak_memory(tiny_run, image, device="cpu") < 2000


def test_a_detector_that_fails_has_its_reason_and_the_others_their_times(image, monkeypatch):
    def open_run(run, **_):
        if run.name == "gone":
            raise CheckpointError("gone: no weights")
        return Predictor(BrightDetector(), device="cpu", precision="fp32")

    def grow(predictor, images, **_):
        raise MemoryError("out of memory")

    monkeypatch.setattr(timing, "load", open_run)
    monkeypatch.setattr(timing, "measure_peak_memory", lambda *_, **__: None)
    runs, lines = {"gone": Path("gone"), "good": Path("good")}, []
    report = time_detectors(runs, [image], rounds=1, batch_size=1, log=lines.append)
    assert set(report.detectors) == {"good"} and report.reasons == {"gone": "gone: no weights"}
    assert lines[0] == "time: gone is left out: gone: no weights"
    monkeypatch.setattr(timing, "_time_batches", grow)
    assert time_detectors(runs, [image], rounds=1, batch_size=1).reasons["good"] == "out of memory"


def test_the_memory_of_a_process_that_hangs_is_not_known(monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(subprocess, "run", hang)
    assert measure_peak_memory(Path("run"), Path("image"), device="cpu") is None


def test_objects_are_looked_through_again_after_an_error(image, monkeypatch):
    def fail(*_):
        raise TypeError("of the caller's own")

    monkeypatch.setattr(timing, "_open", fail)
    before = gc.get_freeze_count()
    with pytest.raises(TypeError):
        time_detectors({"a": Path("a")}, [image], rounds=1, batch_size=1)
    assert gc.get_freeze_count() <= before


def test_a_probe_takes_as_long_as_it_says():
    probe = Probe()
    assert probe.repeats >= 1 and probe() > PROBE_MS / 4


@pytest.mark.parametrize(("slowest", "is_steady"), [(6.4, True), (9.0, False)])
def test_the_page_says_whether_the_machine_was_steady(slowest, is_steady):
    one = DetectorTiming(Spread(1.0, 1.0, 1.0, 1, 1.0), {})
    probe = Spread(6.2, 6.0, slowest, 10, 5.9)
    settings = {"machine": {}, "threads": 2, "rounds": 1, "images": 1, "batch_size": 1}
    report = TimingReport({"a": one}, **settings, load_before=0.5, load_after=0.5, probe=probe)
    note = _machine_note(report)
    assert f"{slowest} or more in the slowest tenth" in note
    assert ("not quiet or not steady" in note) != is_steady
