"""Sizes, names and layers hold in the source tree; each rule is shown to catch a tree that breaks it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "src" / "focaldet"


@pytest.fixture
def breaks_of(tmp_path):
    """What is broken in a package of one file."""

    def breaks(text, path="ops.py"):
        file = tmp_path / "focaldet" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return house.breaks(tmp_path / "focaldet")

    return breaks


def test_sizes_and_names_hold():
    assert house.breaks(PACKAGE) == []


def test_no_chain_on_self_is_longer_than_two_dots():
    assert house.longest_chain(house.read_package(PACKAGE)).count(".") <= 2


def test_detectors_stand_in_one_table():
    files = house.read_package(PACKAGE)
    assert [place.split(":")[0] for place in house.detector_tables(files)] == ["models/presets.py"]
    assert house.device_imports(files) == []


SIX_LINES_OF_CODE = '''"""Doc

of module."""

# why
x = """a

b"""  # two written lines

def f():
    """Doc."""
    return (
        1
    )
'''


def test_lines_of_code_leave_out_blanks_comments_and_docstrings(tmp_path):
    (tmp_path / "ops.py").write_text(SIX_LINES_OF_CODE)
    (file,) = house.read_package(tmp_path).values()
    assert house.code_lines(*file) == {6, 8, 10, 12, 13, 14}


@pytest.mark.parametrize(
    ("path", "limit"), [("ops.py", 300), ("models/retinanet.py", 250), ("training/trainer.py", 600)]
)
def test_a_large_file_is_found(breaks_of, path, limit):
    assert breaks_of("x = 1\n" * limit, path) == []
    assert f"{limit + 1} lines of code" in breaks_of("x = 1\n" * (limit + 1), path)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f():\n" + "    x = 1\n" * 50, "f has 51 lines"),
        ("def merged():\n    pass", "neither a verb nor a noun"),
        ("class A:\n    def _kept(self):\n        pass", "neither a verb nor a noun"),
        ("# a picture of ours\n" * 20, "a picture of ours"),
    ],
)
def test_a_broken_rule_is_found(breaks_of, text, message):
    assert message in breaks_of(text)[0]


def test_a_property_and_a_verb_may_end_in_ed(breaks_of):
    text = "def exceed():\n    pass\nclass A:\n    @property\n    def scaled(self):\n        return 1"
    assert breaks_of(text) == []


def test_a_name_that_stands_twice_is_found(breaks_of):
    breaks_of("class View: ...\nLIMIT = 1")
    found = breaks_of("View = int\nLIMIT: int = 2", "nets.py")
    assert ["View is defined in nets.py and in ops.py" in found, len(found)] == [True, 2]


@pytest.mark.parametrize("name", sorted(house.SAYS_NOTHING))
def test_an_empty_name_is_found(breaks_of, name):
    assert "says nothing" in breaks_of("", f"{name}.py")[0]


def test_measures_of_a_small_tree(tmp_path):
    names = ", ".join(f"'{name}': 1" for name in ("retinanet_a", "ssd513", "yolov2", "dssd_b", "faster_rcnn_c"))
    (tmp_path / "a.py").write_text(
        f"class A:\n    def f(self):\n        return self.b.c.d\nTABLE = {{{names}}}\n"
        "from focaldet.evaluation.inference import pick_device\n"
    )
    files = house.read_package(tmp_path)
    assert house.longest_chain(files) == "self.b.c.d"
    assert house.detector_tables(files) == ["a.py:4"]
    assert house.device_imports(files) == ["a.py"]


def lint_imports(folder):
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": "src"}, capture_output=True, text=True, check=False)


def test_an_import_that_runs_back_is_found(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "src" / "focaldet", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    good = lint_imports(tmp_path)
    assert good.returncode == 0, good.stdout
    boxes = tmp_path / "src" / "focaldet" / "ops" / "boxes.py"
    boxes.write_text(boxes.read_text() + "\n\ndef late():\n    from focaldet.models import build\n")
    bad = lint_imports(tmp_path)
    assert bad.returncode == 1
    assert "focaldet.ops.boxes -> focaldet.models" in bad.stdout
