"""Precision, seeds and settings of torch; several processes that share a job, whose work is that of one."""

import random

import numpy
import pytest
import torch

from focaldet import runtime
from focaldet.runtime import (
    build_autocast,
    gather_objects,
    is_first_process,
    join_processes,
    launch_fabric,
    local_rank,
    num_processes,
    pick_device,
    seed_everything,
    torch_settings,
)

CPU = torch.device("cpu")
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
SLURM = {"SLURM_NTASKS": "3", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}


@pytest.fixture
def start(monkeypatch):
    """Call it with the variables that a starter sets."""

    def set_variables(variables):
        for name in {**TORCHRUN, **SLURM}:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize(
    ("variables", "number", "first", "local"),
    [
        ({}, 1, True, 0),
        ({"WORLD_SIZE": "4", "RANK": "2"}, 1, True, 0),  # left over from something else
        (TORCHRUN, 4, False, 1),
        (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}, 4, True, 0),
        (SLURM, 3, False, 0),
        (SLURM | {"SLURM_PROCID": "0"}, 3, True, 0),
        (SLURM | {"SLURM_JOB_NAME": "bash"}, 1, True, 0),
    ],
)
def test_what_a_process_knows_of_the_others(start, variables, number, first, local):
    start(variables)
    assert (num_processes(), is_first_process(), local_rank()) == (number, first, local)


def test_each_process_takes_the_gpu_of_its_local_rank(start, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    start(TORCHRUN)
    assert pick_device(None) == pick_device("cuda") == torch.device("cuda:1")
    assert pick_device("cuda:0") == torch.device("cuda:0")
    start({})
    assert pick_device(None) == torch.device("cuda")


def test_alone_nothing_is_joined(start):
    start({"WORLD_SIZE": "8"})
    with join_processes(CPU) as process:
        assert process == (0, 1, CPU)
    assert gather_objects("part", num_ranks=1) == ["part"]
    assert not torch.distributed.is_initialized()


def test_one_process_is_launched_plainly(start):
    start({})
    fabric = launch_fabric(CPU)
    module = torch.nn.Linear(2, 2)
    assert (fabric.world_size, fabric.global_rank, fabric.device) == (1, 0, CPU)
    assert fabric.strategy.setup_module(module) is module


def draws():
    return random.random(), numpy.random.rand(), torch.rand(2).tolist()


def test_seed_decides_all_generators():
    seed_everything(3, 14, 0)
    first = draws()
    assert draws() != first
    seed_everything(3, 14, 0)
    assert draws() == first
    for other in ((3, 15, 0), (4, 14, 0), (3, 14, 1), (14, 3, 0)):
        seed_everything(*other)
        assert draws() != first


def test_settings_of_torch_hold_inside_only():
    with torch_settings(threads=2, deterministic=True):
        assert torch.get_num_threads() == 2 and torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1 and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_of_products(precision, dtype):
    autocast = build_autocast(precision, device=CPU)
    with autocast():
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(3, 2)).dtype == dtype
    assert (autocast.scaler is not None) == (precision == "fp16")


class FewerAtOnce:
    """A watch that always finds one thread to be enough."""

    def __init__(self, threads):
        self.threads = threads

    def look(self):
        self.threads = 1
        return True


def test_threads_are_fewer_inside_and_as_before_behind_it(monkeypatch):
    monkeypatch.setattr(runtime, "CoreWatch", FewerAtOnce)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with runtime.torch_settings(threads=2, deterministic=False):
        with runtime.shared_cores(torch.device("cpu")) as share:
            assert torch.get_num_threads() == 2
            share()
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        with runtime.shared_cores(torch.device("cpu")) as share:
            share()
            assert torch.get_num_threads() == 2, "a number that somebody chose stays"
            assert share.note == (
                "other programs use the cores, and 2 threads wait for each other: OMP_NUM_THREADS=1 would be faster"
            )
            assert share.watch is None, "it is said once"
