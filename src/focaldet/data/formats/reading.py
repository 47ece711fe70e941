"""How a data set is read: what is taken, what is refused, and where images are."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from focaldet.data.problems import Location, Problem, Problems
from focaldet.errors import DataError

UNREADABLE = "record unreadable"
BadBoxes = Literal["clip", "drop", "error"]
MissingImages = Literal["error", "skip"]


@dataclass(frozen=True, slots=True)
class Reading:
    """The settings of one reading, and the problems that it met.

    Attributes:
        images: the folder of the images, where they are not beside the annotations.
        bad_boxes: see `DataConfig`.
        missing: whether images that are named and do not exist are an error or skipped and counted.
        strict: loose values are refused, not taken with a warning.
        lenient: what would be refused is listed as an error and left out, so that a check sees all of it at once.
        follow_links: links out of the data's folder are followed.
        problems: what was odd in the files.
    """

    images: Path | None = None
    bad_boxes: BadBoxes = "clip"
    missing: MissingImages = "error"
    strict: bool = False
    lenient: bool = False
    follow_links: bool = False
    problems: Problems = field(default_factory=Problems)

    def accept_loosely(self, location: Location, kind: str, message: str) -> None:
        """Count a value that is not as the format has it but can be understood; `message` says as what it is taken.

        Raises:
            DataError: with `strict`.
        """
        if self.strict:
            raise location.error(f"{message}; refused by --data.strict")
        self.problems.add(location.problem("warning", kind, message))

    @contextmanager
    def record(self, kind: str = UNREADABLE) -> Iterator[None]:
        """One record or file of many: with `lenient` its error is listed, and what follows is still read."""
        try:
            yield
        except DataError as error:
            if not self.lenient:
                raise
            self.list_error(error, kind)

    def list_error(self, error: DataError, kind: str = UNREADABLE) -> None:
        """Add an error to the problems."""
        self.problems.add(Problem("error", kind, error.problem, error.file, error.record, error.field))

    def count_unlisted(self, number: int) -> None:
        """Count records that cannot be read beyond those that are listed."""
        if number:
            self.problems.counts["error", UNREADABLE] += number
