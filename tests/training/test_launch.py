"""Precision, seeds and settings of the machine."""

import os
import random
import subprocess
import sys
import threading
import warnings

import numpy
import pytest
import torch

from focaldet.errors import CheckpointError
from focaldet.runtime import build_autocast, seed_everything, torch_settings
from focaldet.training.config import RunConfig
from focaldet.training.signals import StopSignal, stop_signal
from focaldet.training.trainer import explain_errors

CPU = torch.device("cpu")


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


def test_only_a_full_disk_gets_the_advice_for_it():
    with pytest.raises(CheckpointError, match="no space left"), explain_errors(RunConfig()):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError), explain_errors(RunConfig()):
        raise FileNotFoundError(2, "missing")
    with pytest.raises(RuntimeError, match="shape"), explain_errors(RunConfig()):
        raise RuntimeError("shape mismatch")


def test_second_interrupt_does_not_wait():
    with stop_signal() as stop:
        assert not stop
        os.kill(os.getpid(), 2)
        assert stop and stop.signal_name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), 2)


def test_handlers_of_other_threads_stay():
    signals = []
    thread = threading.Thread(target=lambda: signals.append(stop_signal().__enter__()))
    thread.start()
    thread.join()
    assert isinstance(signals[0], StopSignal) and not signals[0]


def test_loading_process_dies_of_sigterm_and_outlives_ctrl_c():
    """It inherits the handler by fork; its main process decides what Ctrl-C means."""
    with stop_signal():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads, from Python 3.12 on
            child = os.fork()
        if child == 0:
            os.kill(os.getpid(), 2)
            os.kill(os.getpid(), 15)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == 15


def test_importing_training_is_cheap():
    """Lightning takes seconds to import: only a run needs it."""
    heavy = ("lightning", "matplotlib", "hotcoco")
    code = f"import sys, focaldet.training.trainer; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"
