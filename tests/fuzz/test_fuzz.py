"""A short run through every door, and everything that longer runs brought to light."""

import random
from pathlib import Path

import pytest

from tests.fuzz import run
from tests.fuzz.door import Door
from tests.fuzz.doors import DOORS, QUICK

FINDINGS = Path(__file__).parent / "findings"


@pytest.fixture(autouse=True)
def alarm():
    run.clock()


@pytest.mark.parametrize("name", QUICK)
def test_every_door_reads_or_refuses(name):
    (fuzzer,) = run.fuzz([name], seconds=0, seed=1, most=150)
    assert not fuzzer.failures, next(iter(fuzzer.failures.values()))[1]
    assert fuzzer.outcomes["read"] > 0
    assert fuzzer.lines


@pytest.mark.prove
@pytest.mark.parametrize("name", DOORS)
def test_every_door_for_long(name):
    (fuzzer,) = run.fuzz([name], seconds=0, seed=2, most=20_000)
    assert not fuzzer.failures, next(iter(fuzzer.failures.values()))[1]


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*")), ids=lambda path: path.name)
def test_what_was_brought_to_light(tmp_path, path):
    """A file is called as its door, and a word on what it is."""
    name = next(name for name in DOORS if path.name.startswith(name.replace(" ", "_").replace(",", "") + "-"))
    fuzzer = run.Fuzzer(name, DOORS[name], tmp_path, seed=0)
    fuzzer.open(path.read_bytes(), guided=False)
    assert not fuzzer.failures, next(iter(fuzzer.failures.values()))[1]


def test_a_door_that_raises_something_else_is_a_failure(tmp_path):
    def open_badly(path):
        if b"!" in path.read_bytes():
            raise KeyError("x")

    fuzzer = run.Fuzzer("bad", Door("x", lambda _: [b"a"], open_badly), tmp_path, seed=0)
    fuzzer.open(b"fine", guided=True)
    fuzzer.open(b"!", guided=False)
    assert fuzzer.outcomes == {"read": 1, "failed": 1}
    assert list(fuzzer.failures) == ["KeyError at ?"]


def test_a_door_that_takes_too_long_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "MOST_SECONDS", 0.05)

    def wait(_):
        while True:
            pass

    fuzzer = run.Fuzzer("slow", Door("x", lambda _: [b"a"], wait), tmp_path, seed=0)
    fuzzer.open(b"a", guided=False)
    assert "TooSlowError" in next(iter(fuzzer.failures))


def test_mutations_differ_and_are_the_same_again():
    first, again = ([run.mutate_bytes(bytes(range(64)), random.Random(seed)) for seed in range(200)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 150
