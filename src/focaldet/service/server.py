"""Running the service: the port, the processes that share it, and how they end.

What is imported here is quick to import: a process of several answers its supervisor before it loads the detector.
"""

import os
import signal
import socket
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
        import torch

        from focaldet.service.app import build_service

        torch.set_num_threads(max(1, torch.get_num_threads() // self.options.workers))
        return build_service(self.load(), self.options)


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
    from uvicorn.supervisors import Multiprocess

    options = factory.options
    predictor = factory.load()
    listener = _listen(options)
    ready(_address(listener), predictor)
    settings: dict[str, Any] = {
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "ws": "none",
        "timeout_graceful_shutdown": DRAIN_SECONDS,
    }
    if options.workers == 1:
        from focaldet.service.app import build_service

        config = uvicorn.Config(build_service(predictor, options), **settings)
        with _survive_signals():
            uvicorn.Server(config).run([listener])
        return
    del predictor  # each process loads its own
    settings |= {"workers": options.workers, "timeout_worker_healthcheck": START_SECONDS}
    with tempfile.TemporaryDirectory(prefix="focaldet-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # where prometheus_client adds up what processes count
        Multiprocess(uvicorn.Config(factory, factory=True, **settings), sockets=[listener]).run()


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
