"""A run that is killed anywhere goes on to the weights of one that was left alone, bit for bit."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.test_trainer import assert_same_end, last_state

HERE = Path(__file__).parent


def carry_out(folder, plan, *, seconds):
    """Run the plan in a program of its own; what it reported."""
    command = [sys.executable, str(HERE / "kills.py"), str(folder), json.dumps(plan)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, timeout=seconds, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "report.json").read_text())


@pytest.mark.prove
def test_killed_in_a_step_and_in_a_save(tmp_path):
    report = carry_out(tmp_path, {"straight": [], "killed": [{"write": 4, "fraction": 0.5}, {"step": 8}]}, seconds=500)
    assert report["killed"]["hits"] == [True, True]
    assert last_state(tmp_path / "straight")["position"]["step"] == 12
    assert_same_end(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.prove
def test_killed_in_every_phase_and_between_them(tmp_path):
    """3 steps an epoch in the first, 6 in the second phase; the border is passed again after the kill on it."""
    plan = {"phases_straight": [], "phases_killed": [{"step": 4}, {"phase": 2}, {"step": 14}]}
    report = carry_out(tmp_path, plan, seconds=500)
    assert report["phases_killed"]["hits"] == [True] * 3
    position = last_state(tmp_path / "phases_straight")["position"]
    assert (position["phase"], position["epoch"], position["step"]) == (1, 4, 18)
    assert_same_end(tmp_path / "phases_straight", tmp_path / "phases_killed")


@pytest.mark.prove
def test_twenty_kills(tmp_path):
    """12 at random moments from outside, 8 inside a save; every run is finished and compared."""
    draws = random.Random(0)
    plan = {"straight": []}
    plan |= {f"moment{i}": [{"rows": i % 11, "seconds": draws.uniform(0, 0.06)}] for i in range(12)}
    plan |= {
        f"save{i}": [{"write": draws.randint(2, 16), "fraction": fraction}]
        for i, fraction in enumerate([0, 0.3, 0.7, 1, 1, 1, 2, 2])
    }
    report = carry_out(tmp_path, plan, seconds=3600)
    del plan["straight"]
    hits = [name for name in plan if report[name]["hits"] == [True]]
    assert sum(name.startswith("save") for name in hits) >= 5
    assert len(hits) == 20, f"only {hits} met a living process"
    for name in plan:
        assert_same_end(tmp_path / "straight", tmp_path / name)
