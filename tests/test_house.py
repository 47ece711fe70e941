"""Sizes and habits hold in our tree; each rule is shown to catch a tree that breaks it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "src" / "focaldet"


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "focaldet"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "__init__.py").write_text("")
    return folder


def test_nothing_of_ours_has_grown_too_large():
    assert house.size_breaks(PACKAGE) == []


def test_habits_hold():
    assert house.habit_breaks(PACKAGE) == []


def test_the_tree_as_a_whole_holds():
    assert house.summary(PACKAGE, REPOSITORY / "tests")[1] == []


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


def test_lines_of_code_leave_out_blanks_comments_and_docstrings(package):
    path = package / "ops.py"
    path.write_text(SIX_LINES_OF_CODE)
    module = house.read_package(package)["ops",]
    assert module.code == {6, 8, 10, 12, 13, 14}
    assert [size for _, size in module.functions] == [4]


@pytest.mark.parametrize(("room", "limit"), [("ops", 300), ("models/retinanet", 250)])
def test_a_large_file_is_found(package, room, limit):
    path = package / f"{room}.py"
    path.write_text("x = 1\n" * limit)
    assert house.size_breaks(package) == []
    path.write_text("x = 1\n" * (limit + 1))
    assert f"{limit + 1} lines of code" in house.size_breaks(package)[0]


def test_a_long_function_is_found(package):
    (package / "ops.py").write_text("def f():\n" + "    x = 1\n" * 50)
    assert "f has 51 lines" in house.size_breaks(package)[0]


@pytest.mark.parametrize("name", sorted(house.SAYS_NOTHING))
def test_an_empty_name_is_found(package, name):
    (package / f"{name}.py").write_text("")
    assert "says nothing" in house.size_breaks(package)[0]


@pytest.mark.parametrize(
    "text",
    [
        "try:\n    x = 1\nexcept:\n    pass",
        "print('hello')",
        "import sys\nsys.exit(1)",
        "from __future__ import annotations",
    ],
)
def test_a_bad_habit_is_found(package, text):
    (package / "ops.py").write_text(text)
    assert len(house.habit_breaks(package)) == 1


def test_the_command_line_may_print(package):
    (package / "cli.py").write_text("print('hello')")
    assert house.habit_breaks(package) == []


def test_too_few_tests_and_long_functions_on_the_whole_are_found(package, tmp_path):
    (package / "ops.py").write_text("def f():\n" + "    x = 1\n" * 20)
    found = house.summary(package, tmp_path / "tests")[1]
    assert ["median" in found[0], "lines of test" in found[1]] == [True, True]


def test_as_a_command_it_fails_on_a_bad_tree_and_passes_on_a_good_one(package, tmp_path):
    def run():
        command = [sys.executable, house.__file__, str(package), str(tmp_path / "tests")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_ops.py").write_text("x = 1\n" * 5)
    (package / "ops.py").write_text("def f():\n    return 1\n")
    good = run()
    assert good.returncode == 0, good.stdout
    assert "no rule is broken" in good.stdout
    (package / "ops.py").write_text("import focaldet.models\n")
    bad = run()
    assert bad.returncode == 1
    assert "which stands above it" in bad.stdout
