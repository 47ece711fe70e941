"""Two processes under torchrun take the same steps as one with the same global batches."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.evaluation.test_evaluate import BOXES
from tests.training import ranks
from tests.training.test_trainer import last_state, rows_of

HERE = Path(__file__).parent


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start_two(folder, *words):
    """What two processes of ranks.py printed."""
    done = subprocess.run(
        [*TORCHRUN, str(HERE / "ranks.py"), str(folder), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders of the runs of one process and of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    ranks.write_images(two / "images")
    done = start_two(two)
    assert done.stdout.count("2 processes") == 6, "only the first process talks, once per run and phase"
    ranks.train_both(one)
    return one, two


@pytest.mark.parametrize("name", list(ranks.EMPTY))
def test_losses_of_two_ranks_are_those_of_one(both, name):
    one, two = (rows_of(folder / name) for folder in both)
    assert len(one) == len(two) == 20
    for column in ("class_loss", "box_loss", "gradient_norm", "learning_rate"):
        expected = [float(row[column]) for row in one]
        assert [float(row[column]) for row in two] == pytest.approx(expected, rel=1e-5, abs=1e-9), column


@pytest.mark.parametrize("name", list(ranks.EMPTY))
def test_weights_and_metrics_of_two_ranks_are_those_of_one(both, name):
    one, two = (load_file(folder / name / "weights" / "last.safetensors") for folder in both)
    for key, value in one.items():
        assert (value - two[key]).abs().max() <= 1e-5 * value.abs().max().clamp(min=1e-3), key
    numbers = [last_state(folder / name)["position"]["last"] for folder in both]
    assert numbers[0]["num_images"] == numbers[1]["num_images"] == 16
    assert last_state(both[1] / name)["context"]["images_seen"] == 80


def test_one_image_gives_losses_now_and_then(both):
    """The second case is what it says: in most steps no rank has a box, and in some one has."""
    boxes = [float(row["box_loss"]) for row in rows_of(both[1] / "one_image")]
    assert 1 <= sum(loss > 0 for loss in boxes) <= 10


def test_all_ranks_begin_a_phase_with_the_weights_of_the_first(both):
    first, second = (json.loads((both[1] / f"rank{rank}.json").read_text())["phases"] for rank in (0, 1))
    assert first == second and len(set(first)) == 1, "the average begins as the network itself"
    assert [row["phase"] for row in rows_of(both[1] / "phases")] == ["1"] * 4 + ["2"] * 4


def test_all_ranks_stop_at_a_loss_that_is_not_finite_on_one(both):
    messages = [json.loads((both[1] / f"rank{rank}.json").read_text())["broken"] for rank in (0, 1)]
    assert messages[0] == messages[1] and "step 3: the loss is not finite" in messages[0]
    assert messages[0].count(".png") == 2, "only the images of the rank that met it"


def test_all_ranks_stop_when_one_is_asked_to(both):
    assert all(json.loads((both[1] / f"rank{rank}.json").read_text())["interrupted"] for rank in (0, 1))
    assert last_state(both[1] / "stopped")["position"]["step"] == 3


def test_evaluation_and_prediction_of_two_ranks_are_those_of_one(both, tmp_path):
    """A broken image among the good ones."""
    two = both[1]
    first, second = (json.loads((two / f"rank{rank}.json").read_text())["work"] for rank in (0, 1))
    alone = ranks.evaluate_and_predict(two / "images", tmp_path / "predicted")
    assert first["boxes"] == second["boxes"] == alone["boxes"] == BOXES
    assert first["predicted"] == second["predicted"] == alone["predicted"]
    assert alone["predicted"][:2] == [7, 6] and "5.png" in alone["predicted"][2][0]
    for kind in range(2):
        shares = [one["seen"][kind] for one in (first, second)]
        assert sum(shares) == alone["seen"][kind] and min(shares) >= 2
    names = sorted(path.name for path in (tmp_path / "predicted").iterdir())
    assert names == sorted(path.name for path in (two / "predicted").iterdir()) and len(names) == 10
    for name in names:
        assert (tmp_path / "predicted" / name).read_bytes() == (two / "predicted" / name).read_bytes(), name


@pytest.mark.prove
def test_a_run_of_two_goes_on_with_one_and_the_reverse(tmp_path):
    assert ranks.stop_after(tmp_path / "one_then_two", 2)
    said = start_two(tmp_path, "half").stdout
    assert "resumed with 2 processes, before with 1:" in said
    assert not ranks.stop_after(tmp_path / "two_then_one", 99, resume=True)
    events = (tmp_path / "two_then_one" / "events.jsonl").read_text()
    assert "resumed with 1 process, before with 2:" in events
    assert not ranks.stop_after(tmp_path / "one", 99)
    expected = load_file(tmp_path / "one" / "weights" / "last.safetensors")
    for name in ("two_then_one", "one_then_two"):
        assert len(rows_of(tmp_path / name)) == 8
        for key, value in load_file(tmp_path / name / "weights" / "last.safetensors").items():
            assert (value - expected[key]).abs().max() <= 1e-4 * value.abs().max().clamp(min=1e-3), (name, key)


@pytest.mark.prove
@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_of_two_is_killed_both_end_within_ten_seconds(tmp_path, demo_data, victim):
    out = tmp_path / "run"
    words = (
        f"--data {demo_data} --data.val {demo_data / 'instances_test.json'} --model yolov2_tiny --size 64 --device cpu"
    )
    words += f" --epochs 900 --batch-size 4 --workers 0 --evaluate-every 300 --out {out}"
    process = subprocess.Popen(
        [*TORCHRUN, "-m", "focaldet", "train", *words.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_until(lambda: (out / "metrics.csv").is_file() and len(rows_of(out)) > 6, seconds=120)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    killed = int(children.split()[victim])
    os.kill(killed, signal.SIGKILL)
    begin = time.monotonic()
    said = process.communicate(timeout=60)[0]
    assert time.monotonic() - begin < 10
    assert process.returncode == 1
    lines = [line for line in said.splitlines() if line.startswith("focaldet:")]
    assert all("another process of this training has ended" in line for line in lines), said
    left = subprocess.run(["pgrep", "-f", str(out)], capture_output=True, text=True, check=False).stdout
    assert not left


def wait_until(condition, *, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
