"""SIGINT and SIGTERM: a run finishes its step, its loading processes die."""

import os
import threading
import warnings

import pytest

from focaldet.training.signals import StopSignal, stop_signal


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
