"""Why AP is 0: one line with the likeliest reason."""

from dataclasses import replace

import pytest
import torch

from focaldet.models import build
from focaldet.training.diagnosis import explain_zero_ap
from focaldet.training.trainer import train
from focaldet.types import Resize
from tests.training.squares import small_run, squares

DATA = squares(8).dataset


@pytest.mark.parametrize(
    ("data", "size", "updates", "from_random", "text"),
    [
        (DATA, 16, 10, True, "of the boxes hold the center of an anchor at long side 16 px; try --size auto"),
        (DATA, 64, 10, True, "only 10 updates from random weights; try --weights"),
        (DATA, 64, 10, False, "only 10 updates"),
        (DATA, 64, 5000, True, "try --find-lr"),
    ],
)
def test_the_first_reason_that_holds_is_told(data, size, updates, from_random, text):
    detector = build("retinanet_mobilenet_v2_fpn", num_classes=2)
    resize = Resize(mode="long", size=size, max_size=None)
    detector.preprocessing = replace(detector.preprocessing, resize=resize)
    line = explain_zero_ap(detector, data, updates=updates, from_random=from_random)
    assert text in line and "\n" not in line


@pytest.mark.parametrize(
    ("model", "flag"),
    [
        ("retinanet_mobilenet_v2_fpn", "another --architecture.anchors.base-scale"),
        ("faster_rcnn_mobilenet_v2_fpn", "another --architecture.anchors.base-scale"),
        ("ssd_mobilenet_v2", "other --architecture.priors"),
        ("yolov2_tiny", "focaldet anchors"),
    ],
)
def test_a_size_that_auto_has_chosen_is_not_advised(model, flag):
    """It is 320 px, the smallest of all: the images have 64 px, and the boxes a part of one."""
    corner = torch.arange(8, dtype=torch.float64)[:, None].expand(8, 2) * 7.3
    tiny = replace(DATA, boxes=torch.cat([corner, corner + 0.2], 1))
    detector = build(model, num_classes=2)
    for size, advice in ((320, flag), (256, f"--size auto, or {flag}")):
        resize = detector.preprocessing.resize.with_sides(size=size)
        detector.preprocessing = replace(detector.preprocessing, resize=resize)
        line = explain_zero_ap(detector, tiny, updates=10, from_random=True)
        assert f"; try {advice} (focaldet check measures how they fit)" in line


def test_a_run_says_it_once_after_two_evaluations(tmp_path, capsys):
    data = squares(8)
    train(small_run(tmp_path, epochs=3, evaluate_every=1, learning_rate=1e-12), sources=(data, data))
    lines = capsys.readouterr().out.splitlines()
    told = [number for number, line in enumerate(lines) if line.startswith("AP is still 0: ")]
    assert len(told) == 1 and lines[told[0] - 1].startswith("epoch 2/3  AP 0.0")
