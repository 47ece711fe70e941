"""Text of others: what is shown and what is stored; and that every message and every writer goes through one place."""

import ast
import csv
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focaldet import files
from focaldet.errors import CheckpointError, ConfigError, DataError, FocaldetError
from focaldet.text import LONGEST_MESSAGE, LONGEST_SHOWN, is_whole, printable, storable

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "focaldet"
ANY_TEXT = st.text(st.characters(codec=None), max_size=600)  # surrogates among them


@given(ANY_TEXT)
def test_what_is_shown_is_one_short_line_that_can_be_printed(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= LONGEST_SHOWN
    assert shown == text or not (text.isprintable() and len(text) <= LONGEST_SHOWN)
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mRED\x1b]0;own\x07", "\\x1b[31mRED\\x1b]0;own\\x07"),
        ("a\u202eb", "a\\u202eb"),
        ("\udcff\udcfe.jpg", "\\udcff\\udcfe.jpg"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("혈구 × γ 🙂", "혈구 × γ 🙂"),
        ("x" * 392_000, "x" * 99 + "…" + "x" * 100),
        ("\x1b" * 300, ("\\x1b" * 25)[:99] + "…" + "\\x1b" * 25),
    ],
)
def test_examples_of_what_is_shown(text, shown):
    assert printable(text) == shown


@given(ANY_TEXT)
def test_what_is_stored_can_be_written_and_read_back_from_json(text):
    stored = files.to_json_text({"name": text})
    assert json.loads(stored.encode("utf-8")) == {"name": text}
    assert storable(text).encode("utf-8")[:0] == b""
    assert is_whole(storable(text))
    assert (storable(text) == text) == is_whole(text)


def test_a_file_name_that_is_no_text_comes_back_from_json(tmp_path):
    name = os.fsdecode(b"\xff\xfe.jpg")
    files.write_json(tmp_path / "names.json", [name])
    files.write_csv(tmp_path / "names.csv", ["file"], [[name]])
    (read,) = json.loads((tmp_path / "names.json").read_bytes())
    assert os.fsencode(read) == b"\xff\xfe.jpg"
    assert next(csv.reader((tmp_path / "names.csv").read_text().splitlines()[1:])) == ["\\udcff\\udcfe.jpg"]


@pytest.mark.parametrize("kind", [FocaldetError, ConfigError, CheckpointError])
def test_every_error_can_be_shown(kind):
    assert str(kind("a \x1b[31m " + "x" * 400_000)).startswith("a \\x1b[31m x")
    assert len(str(kind("x" * 400_000))) == LONGEST_MESSAGE
    error = DataError("is \x07 bad", file="\udcff" * 900, record="\x1b[0m", field="f" * 9_000)
    assert str(error).isprintable()
    assert len(str(error)) < 1000


# What writes text or prints, and the only files that may: all others call these.
WRITERS = {"write_text", "writer", "DictWriter", "dump", "dumps", "print"}
PLACES = {
    "print": {"cli/output.py", "training/logs.py", "report/monitor.py"},  # the last two are the console of rich
    "write_text": {"files.py"},
    "writer": {"files.py", "training/logs.py"},  # of rows that are added to a file that `open_growing` opened
    "dumps": {"files.py", "cli/output.py", "training/trainer.py", "training/phases.py", "data/dataset.py"},
}
READERS = {"read_text", "read_bytes", "urlopen", "open"}
INSIDE = {"files(", "joinpath("}  # what belongs to the program itself


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            yield node, function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@pytest.mark.parametrize("path", sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")))
def test_text_is_written_and_printed_in_one_place(path):
    source = (PACKAGE / path).read_text()
    for node, name in calls(ast.parse(source)):
        if name not in WRITERS or path in PLACES.get(name, ()):
            continue
        is_method = isinstance(node.func, ast.Attribute)
        of_files = name == "write_text" and (not is_method or ast.unparse(node.func.value) in ("files",))
        assert of_files, (
            f"{path}:{node.lineno}: {ast.unparse(node)[:80]}: goes through focaldet.files or cli.output.say"
        )


@pytest.mark.parametrize("path", sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")))
def test_files_of_others_are_opened_in_one_place(path):
    """A pipe or device is never waited for: everything that reads looks first."""
    source = (PACKAGE / path).read_text()
    for node, name in calls(ast.parse(source)):
        if name not in ("read_text", "read_bytes", "open") or not isinstance(node.func, ast.Attribute):
            continue
        owner = ast.unparse(node.func.value)
        # Image.open, os.open, av.open and archives were given what was looked at; the program's own files are plain.
        known = (
            owner in ("files", "Image", "os", "archive", "files_of", "av")
            or owner.startswith("files(")
            or "joinpath" in owner
        )
        writes = name == "open" and node.args and ast.unparse(node.args[0])[1:2] in ("w", "a")
        assert (
            known
            or writes
            or path
            in (
                "files.py",
                "runtime.py",
                "cores.py",
                "comparison/machine.py",
                "training/run_folder.py",
                "study/hard_page.py",
                "weights/download.py",
            )
        ), f"{path}:{node.lineno}: {ast.unparse(node)[:80]}: goes through focaldet.files"
