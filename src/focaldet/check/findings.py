"""What a check finds: the problems, and for each kind a few images that show it."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from focaldet.check.kinds import MEANINGS
from focaldet.config import nearest
from focaldet.data.dataset import Dataset
from focaldet.data.images import SUFFIXES
from focaldet.data.problems import Location, Problem, Problems, Severity
from focaldet.errors import ConfigError
from focaldet.types import BoxCorners

SHOWN_PER_KIND = 6
FARTHEST_PX = 1e5  # boxes with coordinates beyond it, or NaN, are not drawn


@dataclass(frozen=True, slots=True)
class Exhibit:
    """An image that shows a problem, the boxes in question (its own pixels), and what is wrong with it."""

    path: Path
    boxes: tuple[BoxCorners, ...]
    text: str


@dataclass(slots=True)
class Findings:
    """Problems, and by kind the first images that show them."""

    problems: Problems = field(default_factory=Problems)
    exhibits: dict[str, list[Exhibit]] = field(default_factory=dict)

    def add_images(
        self,
        severity: Severity,
        kind: str,
        dataset: Dataset,
        images: Sequence[int],
        describe: Callable[[int], str],
        *,
        rows: Callable[[int], Iterable[int]] = lambda _: (),
    ) -> None:
        """Add a problem for each of these images; `describe` and `rows` (boxes to show) take an index in `images`."""

        def problem(k: int) -> Problem:
            location = Location(dataset.path(images[k]), f'split "{dataset.name}"')
            return location.problem(severity, kind, describe(k))

        self.problems.add_all(severity, kind, len(images), problem)
        shown = self.exhibits.setdefault(kind, [])
        for k in range(min(len(images), SHOWN_PER_KIND - len(shown))):
            boxes = tuple(tuple(dataset.boxes[row].tolist()) for row in rows(k))
            shown.append(Exhibit(dataset.path(images[k]), boxes, describe(k)))

    def add_pair(self, problem: Problem, original: Path) -> None:
        """Add a problem of an image that has to do with another one; both are shown."""
        self.problems.add(problem)
        shown, image = self.exhibits.setdefault(problem.kind, []), Path(problem.file)
        if len(shown) < SHOWN_PER_KIND:
            shown += [Exhibit(image, (), ""), Exhibit(original, (), "the other one")]

    def show_problems(self) -> None:
        """Show also the kinds that the readers met: those of their problems that name an image, or stand in one."""
        for problem in self.problems:
            image, shown = Path(problem.image or problem.file), self.exhibits.setdefault(problem.kind, [])
            is_new = image.suffix.lower() in SUFFIXES and image not in [exhibit.path for exhibit in shown]
            if is_new and len(shown) < SHOWN_PER_KIND:
                drawable = problem.box is not None and all(abs(value) < FARTHEST_PX for value in problem.box)
                shown.append(Exhibit(image, (problem.box,) if problem.box and drawable else (), problem.message))

    def select(self, *, only: Collection[str], skip: Collection[str]) -> "Findings":
        """The findings of the kinds in `only` (all where there are none) that are not in `skip`.

        Raises:
            ConfigError: a kind that does not exist; names one that is near.
        """
        problems = self.problems
        counts = problems.counts
        known = {*MEANINGS, *(kind for _, kind in counts)}
        only, skip = ({name.replace("-", " ").strip() for name in names} for names in (only, skip))
        for name in sorted(only | skip):
            if name not in known:
                raise ConfigError(f"check: no kind of problem {name!r}{nearest(name, sorted(known))}")
        chosen = Findings()
        kinds = {kind for kind in known if (not only or kind in only) and kind not in skip}
        chosen.problems.examples = [problem for problem in problems if problem.kind in kinds]
        chosen.problems.counts.update({key: n for key, n in counts.items() if key[1] in kinds})
        chosen.exhibits = {kind: shown for kind, shown in self.exhibits.items() if kind in kinds}
        return chosen
