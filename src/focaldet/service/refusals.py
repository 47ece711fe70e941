"""The messages to a client whose request is not answered. No text here holds a path, a file name or a trace."""

from focaldet.errors import DataError


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
        return retry | ({"Connection": "close"} if self.closes else {})


def refuse_image(error: DataError) -> RefusalError:
    """The refusal of an image that cannot be read, without what a decoder said of its own insides."""
    return RefusalError(422, f"the file {error.problem.partition(': ')[0].partition('; ')[0]}")


class Quota:
    """An amount that requests share; what does not fit is refused with status 503.

    Only the event loop calls it, so that it needs no lock.

    Args:
        limit: the most that may be taken at a time.
        seconds: how long until some of it is given back, as far as is known.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.taken, self.seconds = limit, 0, 1.0

    def take(self, amount: int) -> None:
        """Take a part.

        Raises:
            RefusalError: not so much is left.
        """
        if self.taken + amount > self.limit:
            retry_seconds = max(1, min(60, round(self.seconds + 0.5)))
            raise RefusalError(503, "the service is busy, try again later", retry_seconds=retry_seconds)
        self.taken += amount

    def give_back(self, amount: int) -> None:
        """Give a part back."""
        self.taken -= amount
