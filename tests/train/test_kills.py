"""A run that is killed anywhere goes on to the weights of one that was left alone, bit for bit."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from test_engine import assert_same_end, last_state

HERE = Path(__file__).parent


def carry_out(folder, plan, *, seconds):
    """Run the plan in a program of its own, with a run that nobody kills before it; what it told."""
    command = [sys.executable, str(HERE / "kills.py"), str(folder), json.dumps({"straight": [], **plan})]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, timeout=seconds, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "told.json").read_text())


def test_killed_in_a_step_and_in_a_save(tmp_path):
    told = carry_out(tmp_path, {"killed": [{"write": 4, "share": 0.5}, {"step": 8}]}, seconds=500)
    assert told["killed"]["hits"] == [True, True]
    assert last_state(tmp_path / "straight")["position"]["step"] == 12
    assert_same_end(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.prove
def test_twenty_kills(tmp_path):
    """12 at random moments from outside, 8 inside a save; every run is finished and compared."""
    draws = random.Random(0)
    plan = {f"moment{i}": [{"rows": i % 11, "seconds": draws.uniform(0, 0.06)}] for i in range(12)}
    plan |= {
        f"save{i}": [{"write": draws.randint(2, 16), "share": share}]
        for i, share in enumerate([0, 0.3, 0.7, 1, 1, 1, 2, 2])
    }
    told = carry_out(tmp_path, plan, seconds=3600)
    hits = [name for name in plan if told[name]["hits"] == [True]]
    assert sum(name.startswith("save") for name in hits) >= 5
    assert len(hits) == 20, f"only {hits} met a living process"
    for name in plan:
        assert_same_end(tmp_path / "straight", tmp_path / name)
