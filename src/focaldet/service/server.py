"""Running the service: the port, the processes that share it, and how they end.

What is imported here is quick to import: a process of several answers its supervisor before it loads the detector.
"""

import atexit
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from focaldet.errors import ConfigError
from focaldet.service.options import DRAIN_SECONDS, ServiceOptions

if TYPE_CHECKING:
    from fastapi import FastAPI

    from focaldet.prediction import Predictor

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 65  # longer than the proxies before it keep a connection, so that they are the ones who close it
SWITCH_SECONDS = 5e-4  # until Python's interpreter lock goes to the next thread, so that the event loop soon has it
START_SECONDS = 120  # within which a process must have imported what it needs


@dataclass(frozen=True)
class ServiceFactory:
    """Builds the application in each of several processes: a run or file, and how it is loaded."""

    spec: str
    options: ServiceOptions
    weights: str | None = None
    inference: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> "Predictor":
        """The detector.

        Raises:
            CheckpointError: its weights are missing or damaged.
            ConfigError: a setting is out of range.
        """
        from focaldet.prediction import load

        return load(self.spec, weights=self.weights, **self.inference)

    def __call__(self) -> "FastAPI":
        """The application, with its part of the machine's cores."""
        from focaldet.service.app import build_service

        share_cores(self.options.workers)
        app = build_service(self.load(), self.options)
        atexit.register(_leave, app)
        return app


def share_cores(workers: int) -> None:
    """Let this process compute with its part of the cores that the container may use; before a detector is loaded."""
    import torch

    from focaldet.cores import usable_cores

    torch.set_num_threads(max(1, min(torch.get_num_threads(), usable_cores()) // workers))
    sys.setswitchinterval(SWITCH_SECONDS)


def serve(factory: ServiceFactory, *, ready: Callable[[str, "Predictor"], None]) -> None:
    """Serve until SIGINT or SIGTERM; then requests that were accepted are still answered, for some seconds.

    Args:
        factory: what is served.
        ready: called with the address and the detector, when all is well and before requests are taken.

    Raises:
        ConfigError: the port is taken, or a package of the extra `serve` is missing.
        CheckpointError: as `ServiceFactory.load`.
    """
    require_packages()
    import uvicorn

    options = factory.options
    share_cores(options.workers)
    predictor = factory.load()
    listener = _listen(options) if options.workers == 1 else _reserve(options)
    ready(_address(listener), predictor)
    settings: dict[str, Any] = {
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "ws": "none",
        "timeout_graceful_shutdown": DRAIN_SECONDS,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
    }
    if options.workers == 1:
        from focaldet.service.app import build_service

        app = build_service(predictor, options)
        with _survive_signals():
            uvicorn.Server(uvicorn.Config(app, **settings)).run([listener])
        atexit.register(_leave, app)
        return
    del predictor  # each process loads its own
    settings |= {"workers": options.workers, "timeout_worker_healthcheck": START_SECONDS}
    with tempfile.TemporaryDirectory(prefix="focaldet-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # where prometheus_client adds up what processes count
        _supervise(uvicorn.Config(factory, factory=True, **settings), listener)


def _supervise(config: Any, listener: socket.socket) -> None:
    """Run the processes until a signal; then they end first the listening, so that no connection waits for nobody."""
    from uvicorn.supervisors import Multiprocess

    class Supervisor(Multiprocess):
        def terminate_all(self) -> None:
            listener.close()
            super().terminate_all()

    Supervisor(config, sockets=[listener]).run()


def _leave(app: "FastAPI") -> None:
    """End the process without the lanes that still compute: where Python ended under them, torch would abort it."""
    if not app.state.pipeline.is_running:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def require_packages() -> None:
    """Refuse where the packages of the extra `serve` are not installed.

    Raises:
        ConfigError: names the missing one.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"serve needs the package {error.name}: pip install 'focaldet[serve]'") from None


def _listen(options: ServiceOptions) -> socket.socket:
    """The socket that the service listens on."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"port: cannot listen on {options.host}, port {options.port}: {reason}") from None


class SharedPort(socket.socket):
    """A socket that holds a port without listening. Handed to another process it is a new one, on the same port.

    The kernel then gives each process its part of the connections, and none to one that has not loaded its detector.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return bind_shared, (int(self.family), self.getsockname()[:2])


def bind_shared(family: int, address: tuple[str, int]) -> SharedPort:
    """A socket on a port that others of this user's processes may share."""
    shared = SharedPort(family, socket.SOCK_STREAM)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        shared.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    shared.bind(address)
    return shared


def _reserve(options: ServiceOptions) -> socket.socket:
    """What the processes listen on: a port that is free, which they share where the system can."""
    listener = _listen(options)
    if sys.platform != "linux":  # others have no such option, or give all connections to one of the sockets
        return listener
    address = listener.getsockname()[:2]
    listener.close()  # it is there to see that no other program has the port
    return bind_shared(listener.family, address)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _survive_signals() -> Iterator[None]:
    """Inside, a signal that uvicorn has served and raises again at its end does not kill the process."""

    def ignore(number: int, frame: FrameType | None) -> None:
        del number, frame

    before = {number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
