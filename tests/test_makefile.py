"""The set-up happens once, and again only when what it installs from has changed; what it installs is pinned."""

import os
import re
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def clone(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    return tmp_path


def planned(folder, target):
    """The commands that `make target` would run."""
    command = ["make", "--dry-run", "--no-print-directory", target]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@needs_make
@pytest.mark.parametrize("target", ["demo", "test", "check", "prove"])
def test_every_target_sets_up_first(clone, target):
    assert "-m venv" in planned(clone, target)
    assert "pip install" in planned(clone, target)


@needs_make
def test_a_second_call_does_not_set_up_again_until_the_versions_change(clone):
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".installed").touch()
    assert "pip install" not in planned(clone, "test")
    later = time.time() + 10
    os.utime(clone / "constraints.txt", (later, later))
    assert "pip install" in planned(clone, "test")


@needs_make
def test_the_tests_leave_the_proofs_out_and_prove_runs_only_them(clone):
    assert '-m "not prove"' in planned(clone, "test")
    assert "-m prove" in planned(clone, "prove")


def test_versions_are_exact_and_nothing_names_a_machine():
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line) for line in lines)
    pins = dict(line.split("==") for line in lines)
    assert (pins["torch"], pins["torchvision"]) == ("2.14.1", "0.29.1")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *(need for part in project["optional-dependencies"].values() for need in part)]
    wanted = {re.match(r"[A-Za-z0-9_-]+", need).group() for need in needed}
    pinned = {name.lower().replace("_", "-") for name in pins}
    assert {name.lower() for name in wanted} - pinned == {"focaldet"}
