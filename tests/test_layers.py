"""Imports go one way, in every form that Python knows; and the test that says so can fail."""

from pathlib import Path

import pytest

from tests.house import layer_breaks

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "focaldet"


@pytest.fixture
def plant(tmp_path):
    """Write a small package `focaldet` from (file name, text) pairs and return what breaks in it."""

    def planted(**files):
        package = tmp_path / "focaldet"
        for name, text in {"__init__": "", **files}.items():
            path = package / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return layer_breaks(package)

    return planted


def test_no_arrow_of_ours_runs_back():
    assert layer_breaks(PACKAGE) == []


def test_the_right_way_is_allowed(plant):
    ops = "from focaldet.types import Target\nfrom focaldet import errors\nimport torch"
    assert (
        plant(types="", errors="", ops__in____init__="", ops__in__boxes=ops, cli="import focaldet\nimport focaldet.ops")
        == []
    )


@pytest.mark.parametrize(
    "form",
    [
        "import focaldet.models.retinanet",
        "import focaldet.models as m",
        "from focaldet.models import build",
        "from focaldet.models.retinanet import RetinaNet as R",
        "from focaldet import models",
        "from ..models import build",
        "from .. import models",
        "from focaldet import types, models",
        "def late():\n    from focaldet.models import build",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import focaldet.models",
        "try:\n    import focaldet.models\nexcept ImportError:\n    pass",
        "import importlib\nimportlib.import_module('focaldet.models')",
        "from importlib import import_module\nm = import_module('focaldet.models.retinanet')",
        "__import__('focaldet.models')",
    ],
)
def test_every_form_of_import_is_seen(plant, form):
    found = plant(
        types="", ops__in____init__="", ops__in__boxes=form, models__in____init__="", models__in__retinanet=""
    )
    assert len(found) == 1
    assert "ops imports models, which stands above it" in found[0]


def test_a_package_file_counts_its_dots_from_itself(plant):
    assert plant(ops__in____init__="from . import boxes\nfrom .boxes import area", ops__in__boxes="") == []
    found = plant(ops__in____init__="from ..cli import main", ops__in__boxes="", cli="")
    assert len(found) == 1


def test_a_room_outside_of_the_plan_is_named(plant):
    assert ["no row" in line for line in plant(toolbox="")] == [True]


def test_coming_in_through_the_front_door_is_refused(plant):
    assert "name the room" in plant(__init__="from focaldet.data import x", data="from focaldet import x\nx = 1")[0]


def test_rooms_of_one_row_may_not_go_round(plant):
    found = plant(data="import focaldet.weights", weights="import focaldet.data")
    assert any(line.startswith("rooms import each other") for line in found)


def test_longer_circles_are_found(plant):
    arrows = {"train": "predict", "predict": "export", "export": "train"}
    found = plant(**{room: f"def f():\n    import focaldet.{other}" for room, other in arrows.items()})
    assert any(line.startswith("rooms import each other") and line.count("<") == 3 for line in found)


def test_circles_of_files_inside_a_room_are_found(plant):
    found = plant(ops__in____init__="", ops__in__a="from focaldet.ops import b", ops__in__b="from .a import f")
    assert len(found) == 1
    assert "ops.a" in found[0]
    assert "ops.b" in found[0]
