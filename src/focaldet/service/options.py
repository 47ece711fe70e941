"""The settings of the service."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from focaldet.config import validate_fields
from focaldet.ranges import PositiveFloat, PositiveInt

MEGABYTE, MEGAPIXEL = 1_000_000, 1_000_000
DRAIN_SECONDS = 7  # after SIGTERM; with what comes before and after it the process ends within 10 s


@validate_fields
@dataclass(frozen=True)
class ServiceOptions:
    """Where a service listens, what it accepts, and how much of it at a time.

    Raises:
        ConfigError: a setting is out of range; names it.
    """

    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine alone, 0.0.0.0 from all others too."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "focaldet"
    """Name of the detector for clients, as in /v2/models/NAME."""

    token: Annotated[str, Field(min_length=8)] | None = None
    """Secret of at least 8 characters that requests must send; better given as the environment variable
    FOCALDET_TOKEN, since other users of the machine can read the words of a command."""

    workers: PositiveInt = 1
    """Processes that share the port, each with a detector of its own."""

    queue: PositiveInt = 64
    """Images of one process that may wait for their answer; more are refused with status 503."""

    batch_size: PositiveInt = 8
    """Most images that pass the network together; only those that wait anyway are put together."""

    max_megabytes: PositiveFloat = 20.0
    """Largest body of a request, in millions of bytes; more is refused with status 413."""

    max_megapixels: PositiveFloat = 50.0
    """Largest image in millions of pixels, by its header; more is refused with status 413 and not decoded."""

    body_seconds: PositiveFloat = 30.0
    """Time in which a request must have sent its body; slower ones are refused with status 408."""

    buffer_megabytes: PositiveFloat = 256.0
    """Bodies that one process holds at a time, in millions of bytes; more are refused with status 503."""

    @property
    def max_bytes(self) -> int:
        """The largest body in bytes."""
        return round(self.max_megabytes * MEGABYTE)

    @property
    def max_pixels(self) -> int:
        """The largest image in pixels."""
        return round(self.max_megapixels * MEGAPIXEL)
