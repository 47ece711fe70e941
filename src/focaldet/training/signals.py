"""SIGINT and SIGTERM as a request: finish the step, save, stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal:
    """True once the process was asked to stop; `signal_name` says how."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._process = os.getpid()

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  the form of a signal handler
        """Remember the request. A second SIGINT does not wait any longer."""
        if os.getpid() != self._process:
            _leave_worker(number)
        elif self and number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self.signal_name = signal.Signals(number).name


def _leave_worker(number: int) -> None:
    """Data-loading processes inherit the handler: they ignore Ctrl-C, which the main process handles, and SIGTERM ends
    them as usual.
    """
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Yield a `StopSignal` that SIGINT and SIGTERM set inside; outside the main thread signals stay as they are."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
