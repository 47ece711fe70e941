"""What the README says is run, parsed or looked up; its Korean form says the same."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from focaldet.cli import build_app

REPOSITORY = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.ko.md")
PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]
# Folders that are no part of the source: made by running things, or hidden.
MADE = {"runs", "build", "dist", "drawn", "__pycache__"}


def blocks(name, language):
    return re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / name).read_text(encoding="utf-8"), re.DOTALL)


def commands(name):
    """The command lines of a README, their comments left out."""
    lines = [line for block in blocks(name, "bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def without_comments(code):
    return [line.split("  #")[0].rstrip() for line in code.splitlines() if not line.startswith("#")]


def test_both_languages_show_the_same_code():
    english, korean = READMES
    assert commands(english) == commands(korean)
    assert len(commands(english)) > 8
    assert [without_comments(code) for code in blocks(english, "python")] == [
        without_comments(code) for code in blocks(korean, "python")
    ]


@pytest.mark.parametrize("words", commands("README.md"), ids=" ".join)
def test_every_command_line_is_understood(words):
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "pip":
        assert Path(REPOSITORY / words[words.index("-c") + 1]).is_file()
        assert '\nall = ["focaldet[' in (REPOSITORY / "pyproject.toml").read_text()
    elif words[0] == "curl":
        assert words[-1] == "http://127.0.0.1:8000/predict"  # `tests/service/test_server.py` runs the line
    else:
        start = words.index("focaldet") + 1
        assert words[0] in ("focaldet", "torchrun")
        build_app().parse_args(words[start:], exit_on_error=False, print_error=False)
        assert all((REPOSITORY / word).is_file() for word in words if word.startswith("recipes/"))


@pytest.mark.parametrize("name", READMES)
def test_the_python_code_runs(name, tiny_run, demo_data, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny_run, tmp_path / "runs" / "cells")
    shutil.copy(next((demo_data / "images").glob("test_*.png")), tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(name, "python")
    exec(compile(code, name, "exec"), {})
    assert (tmp_path / "drawn.png").stat().st_size > 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) > 0
    assert all(re.fullmatch(r"\d 0\.\d\d \(.*\)", line) for line in printed)


@pytest.mark.parametrize("page", ["focal_loss.md", "focal_loss.ko.md"])
def test_the_code_of_the_page_on_losses_runs(page):
    found = blocks(f"docs/{page}", "python")
    assert len(found) >= 8
    exec(compile("\n".join(found), page, "exec"), {})


def test_both_languages_of_the_page_on_losses_show_the_same_code():
    pages = (blocks(f"docs/focal_loss{end}", "python") for end in (".md", ".ko.md"))
    english, korean = ([without_comments(code) for code in page] for page in pages)
    assert english == korean


@pytest.mark.parametrize("name", READMES)
def test_the_map_shows_every_folder_and_only_what_is_there(name):
    rows = re.findall(r"^\| `([^`]+/)` \| (.*) \|$", (REPOSITORY / name).read_text(encoding="utf-8"), re.MULTILINE)
    shown = {folder.rstrip("/") for folder, _ in rows}
    assert all((REPOSITORY / folder).is_dir() for folder in shown)
    top = (
        {path.name for path in REPOSITORY.iterdir() if path.is_dir() and not path.name.startswith(".")} - MADE - {"src"}
    )
    package = REPOSITORY / "src" / "focaldet"
    rooms = {f"src/focaldet/{path.name}" for path in package.iterdir() if path.is_dir()} - {"src/focaldet/__pycache__"}
    assert top | rooms <= shown
    files = re.findall(r"`(\w+\.py)`", dict(rows)["src/focaldet/"])
    assert set(files) == {path.name for path in package.glob("[a-z]*.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize(
    ("page", "entry"), [("retinanet.md", "retinanet_r50_fpn"), ("ssd.md", "ssd513_r101"), ("yolov2.md", "yolov2")]
)
def test_the_settings_that_the_page_of_a_detector_names_exist(page, entry):
    from focaldet.models import find_preset

    rows = re.findall(r"^\| `([a-z0-9_.]+)` \|", (REPOSITORY / "docs" / page).read_text(), re.MULTILINE)
    assert len(rows) >= 8
    for row in rows:
        value = find_preset(entry).config
        for name in row.split("."):
            value = getattr(value, name)
