"""Two processes with a Faster R-CNN take the steps of one, and do not wait forever where one has no region."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from focaldet.models import LossContext
from tests.models import region_ranks


@pytest.mark.prove
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(Path(region_ranks.__file__)), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = region_ranks.train((0, 1), LossContext(), parallel=False)
    start = dict(region_ranks.detector().named_parameters())
    assert first.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=name)
    moved = [name for name, value in alone.items() if not torch.equal(value, start[name])]
    assert {name.split(".")[0] for name in moved} == {
        "backbone",
        "pyramid",
        "rpn_head",
        "roi_head",
        "predictor",
    }
