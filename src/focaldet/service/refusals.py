"""The messages to a client whose request is not answered. No text here holds a path, a file name or a trace."""

import logging

from focaldet.errors import ConfigError, DataError, ImageTooLargeError
from focaldet.runtime import is_out_of_memory

LOGGER = logging.getLogger("focaldet.service")
MEMORY_SECONDS = 5


class RefusalError(Exception):
    """A request that is refused: the HTTP status and one sentence.

    `retry_seconds` is set where the same request may succeed later. `closes` says that the rest of the body will not be
    read, so that the connection cannot be used again.
    """

    def __init__(self, status: int, message: str, *, retry_seconds: int | None = None, closes: bool = False) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_seconds, self.closes = status, message, retry_seconds, closes

    @property
    def headers(self) -> dict[str, str]:
        """The headers that go with the answer."""
        retry = {} if self.retry_seconds is None else {"Retry-After": str(self.retry_seconds)}
        bearer = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return retry | bearer | ({"Connection": "close"} if self.closes else {})


def refuse_image(error: DataError) -> RefusalError:
    """The refusal of an image that cannot be read, without what a decoder said of its own insides."""
    status = 413 if isinstance(error, ImageTooLargeError) else 422
    return RefusalError(status, f"the file {error.problem.partition(': ')[0].partition('; ')[0]}")


def refuse_failure(error: Exception) -> Exception:
    """The refusal of an image in which nothing could be detected; other errors as they are."""
    if isinstance(error, DataError):
        return refuse_image(error)
    if isinstance(error, ConfigError):
        return RefusalError(422, "the image is too long for its other side: resized it would not fit into memory")
    if is_out_of_memory(error):
        return RefusalError(503, "the memory is used up, try again later", retry_seconds=MEMORY_SECONDS)
    return error


class Quota:
    """An amount that requests share; what does not fit is refused with status 503.

    Only the event loop calls it, so that it needs no lock.

    Args:
        limit: the most that may be taken at a time.
        seconds: how long until some of it is given back, as far as is known.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.taken, self.seconds = limit, 0, 1.0

    def require(self, amount: int) -> None:
        """Refuse to take a part that is not left.

        Raises:
            RefusalError: not so much is left.
        """
        if self.taken + amount > self.limit:
            raise self.refuse()

    def refuse(self) -> RefusalError:
        """The refusal of a part, which says when to come back."""
        retry_seconds = max(1, min(60, round(self.seconds + 0.5)))
        return RefusalError(503, "the service is busy, try again later", retry_seconds=retry_seconds)

    def take(self, amount: int) -> None:
        """Take a part.

        Raises:
            RefusalError: not so much is left.
        """
        self.require(amount)
        self.taken += amount

    def give_back(self, amount: int) -> None:
        """Give a part back."""
        self.taken -= amount
