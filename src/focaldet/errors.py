"""The errors a user can meet. Each message names file, record and field, the value and what is allowed."""

from pathlib import Path

from focaldet.text import LONGEST_MESSAGE, printable


class FocaldetError(Exception):
    """Base of every error that stands for a user's mistake or a broken file; the command line prints it as one line.

    Its message can be shown on any terminal, whatever the names in it are, and is never longer than a screen.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message, most=LONGEST_MESSAGE, keep="\n"))


class DataError(FocaldetError):
    """Images or annotations that cannot be used as they are.

    `file`, `record` and `field` say where; `problem` says what is wrong and what is allowed.
    """

    def __init__(self, problem: str, *, file: str | Path, record: str | None = None, field: str | None = None) -> None:
        self.file, self.record, self.field, self.problem = str(file), record, field, problem
        where = " · ".join(printable(part) for part in (self.file, record, field) if part)
        super().__init__(f"{where}: {problem}")

    def __reduce__(self) -> tuple[object, ...]:
        """How to pickle the error, as a data-loading process does to hand it over."""
        return _rebuild_data_error, (type(self), self.problem, self.file, self.record, self.field)


class ImageTooLargeError(DataError):
    """An image with more pixels than are read."""


class ConfigError(FocaldetError):
    """A setting that is unknown, of the wrong type or out of range."""


class TakenError(ConfigError):
    """Another training writes to the run folder; says which one."""


class CheckpointError(FocaldetError):
    """A weights file or run folder that is missing, damaged or made for another network."""


class OutOfMemoryError(FocaldetError):
    """The device or the machine ran out of memory; says what makes the run smaller."""


class LostProcessError(FocaldetError):
    """Another process of the same training has ended; says how to go on."""


class NonFiniteLossError(FocaldetError):
    """The loss became infinite or NaN; no update was applied. Names the images of the batch."""


def _rebuild_data_error(
    kind: type[DataError], problem: str, file: str, record: str | None, field: str | None
) -> DataError:
    return kind(problem, file=file, record=record, field=field)
