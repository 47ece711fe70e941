"""Problems of data files and where they stand: each one is counted, none is repaired silently."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from focaldet.errors import DataError
from focaldet.types import BoxCorners

Severity = Literal["error", "warning", "note"]

# Of each kind this many are kept and all are counted: for a broken set with a million boxes the list would otherwise
# take more memory than the dataset, once per worker.
LISTED_PER_KIND = 200


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of the data and its location.

    `error`: the image or record cannot be used. `warning`: something was changed or ignored. `note`: worth knowing,
    nothing was lost. `kind` is a short fixed name (`box clipped`, `size differs`, …). `image` is the image file that
    shows it and `box` the box in question (xyxy, the image's pixels), where the reader knows them.
    """

    severity: Severity
    kind: str
    message: str
    file: str
    record: str | None = None
    field: str | None = None
    image: str | None = None
    box: BoxCorners | None = None

    def __str__(self) -> str:
        where = " · ".join(part for part in (self.file, self.record, self.field) if part)
        return f"{self.severity}: {self.kind}: {where}: {self.message}"


class Location(NamedTuple):
    """Where a value stands: file, record and field, as a person would look it up."""

    file: Path
    record: str | None = None
    field: str | None = None

    def error(self, problem: str) -> DataError:
        """A `DataError` about this location."""
        return DataError(problem, file=self.file, record=self.record, field=self.field)

    def problem(
        self, severity: Severity, kind: str, message: str, *, image: Path | None = None, box: BoxCorners | None = None
    ) -> Problem:
        """A `Problem` at this location; `image` and `box` (xyxy, pixels) show it."""
        shown = None if image is None else str(image)
        return Problem(severity, kind, message, str(self.file), self.record, self.field, shown, box)


@dataclass(slots=True)
class Problems:
    """Problems in the order in which they were met: `counts` of all, and the first of each kind as `examples`."""

    examples: list[Problem] = field(default_factory=list)
    counts: Counter[tuple[Severity, str]] = field(default_factory=Counter)

    def add(self, problem: Problem) -> None:
        key = (problem.severity, problem.kind)
        self.counts[key] += 1
        if self.counts[key] <= LISTED_PER_KIND:
            self.examples.append(problem)

    def add_all(self, severity: Severity, kind: str, number: int, make: Callable[[int], Problem]) -> None:
        """Count `number` problems of one kind; `make` is called only for those that are listed."""
        if not number:
            return
        room = max(0, LISTED_PER_KIND - self.counts[severity, kind])
        self.examples += [make(k) for k in range(min(number, room))]
        self.counts[severity, kind] += number

    def extend(self, other: "Problems") -> None:
        """Add the problems of `other`."""
        for problem in other.examples:
            if sum(known.kind == problem.kind for known in self.examples) < LISTED_PER_KIND:
                self.examples.append(problem)
        self.counts.update(other.counts)

    def name_images(self, images: Mapping[str, Path]) -> None:
        """Give the problems in annotation files that belong to one image that image; `images` is by annotation file."""
        for k, problem in enumerate(self.examples):
            if problem.image is None and problem.file in images:
                self.examples[k] = replace(problem, image=str(images[problem.file]))

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.examples)

    def count(self, *severities: Severity) -> int:
        """How many problems there are of these severities; of all where none is named."""
        return sum(n for (severity, _), n in self.counts.items() if not severities or severity in severities)

    def lines(self, *, listed: bool = False) -> list[str]:
        """One sentence per kind, the worst first; with `listed` the problems themselves as well."""
        order: tuple[Severity, ...] = ("error", "warning", "note")
        lines = []
        for severity, kind in sorted(self.counts, key=lambda key: (order.index(key[0]), key)):
            number = self.counts[severity, kind]
            same = [problem for problem in self.examples if (problem.severity, problem.kind) == (severity, kind)]
            first = f" (first: {str(same[0]).split(': ', 2)[2]})" if same else ""
            lines.append(f"{severity}: {kind}: {number}{first}")
            if listed:
                lines += [f"  {problem}" for problem in same]
                lines += [f"  … and {number - len(same)} more"] if number > len(same) else []
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        counts = [{"severity": s, "kind": kind, "count": number} for (s, kind), number in sorted(self.counts.items())]
        return {"counts": counts, "problems": [asdict(problem) for problem in self.examples]}
