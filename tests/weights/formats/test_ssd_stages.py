"""The two stages of training a DSSD: from an SSD's encoder, then from the DSSD with a frozen encoder."""

import pytest
import torch

from focaldet.errors import CheckpointError
from focaldet.models import build
from focaldet.weights import load_into, save_detector

SMALL = {"backbone": "resnet18", "extra_width": 64, "module_widths": (16,), "norm_eps": 1e-4}
DECODER = {"width": 32, "inter_width": 32, "norm": "batch", "frozen_encoder": True}
FROZEN = {"norm": "frozen", "extra_norm": "frozen"}
CLASSES = ("circle", "square")


@pytest.fixture(scope="module")
def ssd_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("ssd") / "ssd.safetensors"
    torch.manual_seed(1)
    save_detector(path, build("ssd513_r101", class_names=("a", "b", "c"), architecture=SMALL))
    return path


def stage(**changes):
    torch.manual_seed(2)
    return build("dssd513_r101", class_names=CLASSES, architecture=SMALL | {"decoder": DECODER} | FROZEN | changes)


def test_a_dssd_takes_the_encoder_of_an_ssd_and_starts_the_rest_afresh(ssd_file):
    ssd = build("ssd513_r101", class_names=("a", "b", "c"), architecture=SMALL)
    load_into(ssd, ssd_file)
    fresh, detector = stage(norm_eps=1e-3), stage(norm_eps=1e-3)
    report = load_into(detector, ssd_file)
    assert report.kind == "encoder"
    assert all(name.startswith(("backbone.", "extras.")) for name in report.loaded)
    assert all(name.startswith("predictors.") for name in report.skipped) and report.skipped
    reference, state, before = ssd.state_dict(), detector.state_dict(), fresh.state_dict()
    assert all(torch.equal(state[name], reference[name]) for name in report.loaded)
    assert all(torch.equal(state[name], before[name]) for name in state if name not in report.loaded)
    assert detector.config.norm_eps == 1e-4 and detector.backbone.bn1.eps == 1e-4
    assert detector.class_names == CLASSES


def test_the_second_stage_takes_all_of_the_first(ssd_file, tmp_path):
    first = stage()
    load_into(first, ssd_file)
    save_detector(tmp_path / "first.safetensors", first)
    second = build(
        "dssd513_r101",
        class_names=CLASSES,
        architecture=SMALL | FROZEN | {"decoder": DECODER | {"norm": "frozen", "frozen_encoder": False}},
    )
    report = load_into(second, tmp_path / "first.safetensors")
    assert (report.kind, report.skipped, report.reset) == ("detector", (), ())
    reference, state = first.state_dict(), second.state_dict()
    assert all(torch.equal(state[name], reference[name]) for name in state)
    assert all(parameter.requires_grad for parameter in second.parameters())


def test_another_backbone_is_refused_where_no_shape_tells(ssd_file):
    with pytest.raises(CheckpointError, match="ceil_pool"):
        load_into(stage(ceil_pool=False), ssd_file)


@pytest.mark.parametrize("change", [{"sources": ("C4", "C5")}, {"extra_paddings": (1,)}])
def test_another_encoder_gives_its_backbone_alone(ssd_file, change):
    report = load_into(stage(**change), ssd_file)
    assert report.kind == "backbone" and all(name.startswith("backbone.") for name in report.loaded)
    assert next(iter(change)) in report.notes[0]


def test_an_ssd_starts_from_the_backbone_of_a_dssd(tmp_path):
    save_detector(tmp_path / "dssd.safetensors", stage())
    ssd = build("ssd513_r101", class_names=CLASSES, architecture=SMALL)
    report = load_into(ssd, tmp_path / "dssd.safetensors")
    assert report.kind == "backbone" and "decoder" in report.notes[0]
