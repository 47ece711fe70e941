"""SIGINT and SIGTERM as a wish: finish the step, save, stop."""

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
        """Note the wish. A second SIGINT does not wait any longer."""
        if os.getpid() != self._process:
            _leave_worker(number)
        elif self and number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self.signal_name = signal.Signals(number).name


def _leave_worker(number: int) -> None:
    """Data-loading processes inherit the handler: Ctrl-C is the main process's affair, SIGTERM ends them as ever."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """A wish that SIGINT and SIGTERM fulfil inside the context; outside the main thread signals stay as they are."""
    wish = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.signal(number, wish.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
