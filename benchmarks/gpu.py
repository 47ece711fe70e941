"""One GPU in at most eight minutes: what must be right there, then every row that is measured there.

    python benchmarks/gpu.py                    # make bench-gpu
    python benchmarks/gpu.py --rows focal NMS   # those of this name, or whose name contains one of these words
    python benchmarks/gpu.py --small            # few numbers: whether it works, not how fast

Without a GPU it is `--small` on the CPU. A row that fails has its reason for a result, and what has not begun after
seven and a half minutes is listed as not run; a wrong check ends the program with 1. CUDA graphs, torch.compile and
what changes a whole process run in processes of their own, so that none of them takes the others down. The file is
written anew after every row. Needs torch and torchvision of one release, triton (which CUDA's torch brings), and of
focaldet's packages numpy, pillow, pyyaml, jaxtyping, safetensors, filelock, pydantic, rich and defusedxml: no others.
"""

import argparse
import faulthandler
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_checks import CHECKS
from gpu_networks import MLPERF, NETWORKS
from gpu_rows import focal_rates, mlperf_rates, predict_rates, split_row, train_rates
from measure import write_result
from run import build_rows, measure

MINUTES = 7.5  # after which no row begins
SPARE_SECONDS, LAST_SECONDS = 15, 20  # after them: for the row that has begun, and the end of the program
APART_SECONDS, COMPILE_SECONDS = 60, 120  # of a process of its own
TRAIN_IMAGES, MLPERF_IMAGES, PREDICT_IMAGES = 8, 16, (1, 8)
EAGER, COMPILED, GRAPH = ("eager",), ("eager", "compiled"), ("eager", "graph")
SCRATCH = Path(__file__).resolve().parent.parent / "build" / "benchmarks"


@dataclass(frozen=True)
class Task:
    """A row of the table: `run` gives its numbers and a `text`; `seconds`, if any, are those of its own process."""

    run: Callable[[], Mapping[str, Any]]
    seconds: float | None = None
    is_check: bool = False


def build_tasks(device: torch.device, *, small: bool, rounds: int) -> dict[str, Task]:
    """The rows by name in their order: what is right, what matters most, and what takes longest last."""
    settings = {"device": device, "small": small, "rounds": rounds}

    def check(function: Callable[..., str]) -> dict[str, Any]:
        return {"text": function(device, small=small)}

    def operation(name: str) -> dict[str, Any]:
        row = measure({name: build_rows(device, small=small)[name]()}, rounds=min(rounds, 5), device=device)[name]
        mine, peer = (1e3 * row["seconds"][program]["min"] for program in ("focaldet", "torchvision"))
        return row | {"text": f"{mine:.2f} ms, {row['speed-up']['min']:.2f} × torchvision ({peer:.2f} ms)"}

    tasks = {
        name: Task(partial(check, function), APART_SECONDS if is_apart else None, is_check=True)
        for name, (function, is_apart) in CHECKS.items()
    }
    tasks["focal loss"] = Task(partial(focal_rates, compiled=False, **settings))
    mlperf = partial(mlperf_rates, MLPERF, MLPERF_IMAGES, **settings)
    tasks["train RetinaNet ResNeXt-50 at 800 px"] = Task(partial(mlperf, forms=EAGER))
    for name, network in NETWORKS.items():
        tasks[f"predict {name}"] = Task(partial(predict_rates, network, *PREDICT_IMAGES, forms=EAGER, **settings))
        tasks[f"train {name}"] = Task(partial(train_rates, network, TRAIN_IMAGES, forms=EAGER, **settings))
    tasks["data, host, device"] = Task(partial(split_row, TRAIN_IMAGES, **settings))
    for name, network in NETWORKS.items():
        predict = partial(predict_rates, network, *PREDICT_IMAGES, forms=GRAPH, **settings)
        train = partial(train_rates, network, TRAIN_IMAGES, forms=GRAPH, **settings)
        what = ", backbone" if name == "Faster R-CNN" else ""
        tasks[f"predict {name}, CUDA graph{what}"] = Task(predict, APART_SECONDS)
        tasks[f"train {name}, CUDA graph, backbone"] = Task(train, APART_SECONDS)
    for name in build_rows(device, small=small):
        tasks[name] = Task(partial(operation, name))
    tasks["focal loss, compiled"] = Task(partial(focal_rates, compiled=True, **settings), APART_SECONDS)
    tasks["train RetinaNet ResNeXt-50 at 800 px, compiled"] = Task(partial(mlperf, forms=COMPILED), COMPILE_SECONDS)
    for name, network in NETWORKS.items():
        predict = partial(predict_rates, network, PREDICT_IMAGES[-1], forms=COMPILED, **settings)
        train = partial(train_rates, network, TRAIN_IMAGES, forms=COMPILED, **settings)
        tasks[f"predict {name}, compiled"] = Task(predict, COMPILE_SECONDS)
        tasks[f"train {name}, compiled"] = Task(train, COMPILE_SECONDS)
    return tasks


def run_here(task: Task) -> dict[str, Any]:
    """The result of a row in this process; one that fails is its reason."""
    try:
        return {"state": "right" if task.is_check else "measured", **task.run()}
    except AssertionError as error:
        return {"state": "wrong", "text": first_line(error)}
    except Exception as error:  # whatever it is, the other rows are measured
        return {"state": "failed", "text": first_line(error)}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """The kind of an error and the beginning of what it says, in a line that a table takes."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300].replace("|", "/")


def run_apart(name: str, arguments: list[str], *, seconds: float) -> dict[str, Any]:
    """The result of the row `name` of this script in a process of its own, which is killed after so many seconds."""
    with tempfile.TemporaryDirectory(prefix="focaldet-gpu-") as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--only", name, "--answer", str(answer)]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                _, errors = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                return {"state": "failed", "text": f"took more than {seconds:.0f} s"}
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # those of a compiler, too
        if answer.exists():
            return json.loads(answer.read_text())
        last = (errors.strip().splitlines() or [f"ended with {process.returncode}"])[-1]
        return {"state": "failed", "text": last[:300].replace("|", "/")}


def run_tasks(
    tasks: Mapping[str, Task], arguments: list[str], *, deadline: float, apart: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its result and the seconds it took, until no time is left."""
    for name, task in tasks.items():
        begin = time.monotonic()
        if begin >= deadline:
            yield name, {"state": "not run", "text": "the time was over"}
            continue
        if apart and task.seconds is not None:
            result = run_apart(name, arguments, seconds=min(task.seconds, deadline + SPARE_SECONDS - begin))
        else:
            result = run_here(task)
        yield name, result | {"took": time.monotonic() - begin}


def describe_gpu() -> dict[str, Any]:
    """What else a result on CUDA depends on; `measure.environment` has the rest."""
    if not torch.cuda.is_available():
        return {"cuda": None}
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = None
    return {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "triton": version}


def read_arguments() -> tuple[argparse.Namespace, list[str]]:
    """What was typed, and of it what a process of its own is to be given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=[""], help="rows of this name, or with it in theirs")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which no row begins")
    parser.add_argument("--small", action="store_true", help="few numbers: whether it works, not how fast")
    parser.add_argument("--commit", default=None, help="of the source, where it is a copy without git")
    parser.add_argument("--out", type=Path, default=None, help="folder of the result file")
    parser.add_argument("--apart", action="store_true", help="processes of their own on the CPU, too")
    parser.add_argument("--only", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, default=None, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.small = chosen.small or not torch.cuda.is_available()
    chosen.rounds = chosen.rounds or (1 if chosen.small else 20)
    return chosen, ["--rounds", str(chosen.rounds), *(["--small"] if chosen.small else [])]


def is_meant(word: str, name: str, names: Iterable[str]) -> bool:
    """Whether `word` is the row `name`, or a part of it where no row has that name."""
    return word == name or (word in name and word not in names)


def main() -> int:
    """Check, measure, print, write; 1 where a check is wrong or failed."""
    begin = time.monotonic()
    chosen, arguments = read_arguments()
    faulthandler.dump_traceback_later(60 * chosen.minutes + LAST_SECONDS, exit=True)  # should one row hang
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    tasks = build_tasks(device, small=chosen.small, rounds=chosen.rounds)
    if chosen.only is not None:
        chosen.answer.write_text(json.dumps(run_here(tasks[chosen.only])))
        return 0
    wanted = {name: task for name, task in tasks.items() if any(is_meant(word, name, tasks) for word in chosen.rows)}
    if not wanted:
        raise SystemExit(f"no row is called {', '.join(chosen.rows)}; there are: {', '.join(tasks)}")
    is_whole = len(wanted) == len(tasks) and not chosen.small
    folder = chosen.out or (None if is_whole else SCRATCH)
    values = {"small": chosen.small, "device": str(device), "given commit": chosen.commit} | describe_gpu()
    rows: dict[str, dict[str, Any]] = {}
    print("| row | result | s |\n|---|---|---|", flush=True)
    finished = run_tasks(
        wanted, arguments, deadline=begin + 60 * chosen.minutes, apart=chosen.apart or device.type == "cuda"
    )
    for name, row in finished:
        rows[name] = row
        state = "" if row["state"] == "measured" else f"{row['state']}: "
        print(f"| {name} | {state}{row['text']} | {row.get('took', 0):.1f} |", flush=True)
        path = write_result("gpu", values | {"seconds": time.monotonic() - begin, "rows": rows}, folder=folder)
    print(path)
    return int(any(wanted[name].is_check and row["state"] in ("wrong", "failed") for name, row in rows.items()))


if __name__ == "__main__":
    sys.exit(main())
