"""The images that files, folders, patterns and lists stand for, what was passed over, and a name for each of them."""

import glob
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from itertools import chain, count
from pathlib import Path

from focaldet.data.formats.records import list_images
from focaldet.data.formats.text import read_lines
from focaldet.data.images import SUFFIXES
from focaldet.errors import DataError
from focaldet.outputs import MANIFEST


def find_images(inputs: Sequence[str | Path], *, exclude: Path | None = None) -> list[Path]:
    """The paths of the images that files, folders, patterns and `.txt` lists stand for, each once, in their order.

    What lies in `exclude`, the folder of an earlier run's results, is not taken from folders; patterns and lists are
    taken literally.

    Raises:
        DataError: an input does not exist, has or matches no images, or none outside `exclude`.
    """
    images: dict[Path, Path] = {}
    for source in inputs:
        try:
            listed, exists = _list_input(source), Path(source).exists()
            paths = _outside(exclude, listed, folder=Path(source)) if Path(source).is_dir() else listed
        except (OSError, ValueError) as error:  # a name too long, or one that no disk can have
            raise DataError(f"cannot be read: {error}", file=str(source)) from None
        if listed and not paths:
            raise DataError(
                f"all its images lie in out, {exclude}, and are skipped as results of an earlier run: "
                "choose another out, or give the images themselves or a pattern",
                file=str(source),
            )
        if not paths:
            raise DataError("no images in it" if exists else "no such file", file=str(source))
        for path in paths:
            images.setdefault(path.absolute(), path)
    return list(images.values())


def count_skipped(inputs: Sequence[str | Path], *, exclude: Path | None = None) -> dict[str, int]:
    """How many files in folders are passed over, by kind: their suffix, "hidden", "in out" (`exclude`), or folders that
    cannot be read.
    """
    counts: Counter[str] = Counter()
    outer = None if exclude is None else resolve_links(exclude)
    for folder in {Path(source).absolute(): None for source in inputs if Path(source).is_dir()}:
        unreadable: list[OSError] = []
        for parent, _, names in os.walk(folder, onerror=unreadable.append):
            is_hidden = any(part.startswith(".") for part in Path(parent).relative_to(folder).parts)
            is_result = outer is not None and resolve_links(Path(parent)).is_relative_to(outer)
            for name in names:
                suffix = Path(name).suffix.lower()
                if is_result and name == MANIFEST:
                    continue
                if is_hidden or name.startswith("."):
                    counts["hidden"] += 1
                elif is_result or suffix not in SUFFIXES:
                    counts["in out" if is_result else suffix or "without a suffix"] += 1
        counts["folder unreadable"] += len(unreadable)
    return dict(+counts)


def output_names(paths: Sequence[Path]) -> list[str]:
    """A name for the results of each image: its stem; where that is taken, with as many of its folders before it as
    tell it from the others, then a number.

    No two are equal, not even on a disk that does not distinguish upper and lower case.
    """
    same: dict[str, set[Path]] = defaultdict(set)
    for path in paths:
        same[path.stem.casefold()].add(path.absolute().parent)
    stems = Counter(path.stem.casefold() for path in paths)
    taken: set[str] = set()
    names = []
    for path in paths:
        key = path.stem.casefold()
        folders = _telling_folders(path.absolute().parent, same[key]) if stems[key] > 1 else ()
        base = "_".join((*folders, path.stem))
        candidates = chain([base], (f"{base}_{number}" for number in count(2)))
        name = next(name for name in candidates if name.casefold() not in taken)
        taken.add(name.casefold())
        names.append(name)
    return names


def _telling_folders(folder: Path, others: Collection[Path]) -> tuple[str, ...]:
    """The last folders of a path that tell it from the others, at least one where it has any."""
    parts = folder.parts[1:]
    for number in range(1, len(parts) + 1):
        end = [part.casefold() for part in parts[-number:]]
        if sum([part.casefold() for part in other.parts[1:][-number:]] == end for other in others) == 1:
            return parts[-number:]
    return parts[-1:]


def _list_input(source: str | Path) -> list[Path]:
    """The images of one input; a file that is named counts as an image whatever its name is."""
    path = Path(source)
    if path.is_dir():
        return [path / name for name in list_images(path)]
    if path.suffix.lower() == ".txt" and path.is_file():
        return [path.parent / line for _, line in read_lines(path)]
    if path.exists():
        return [path]
    matches = sorted(glob.glob(str(source), recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
    return [Path(match) for match in matches if Path(match).suffix.lower() in SUFFIXES]


def _outside(excluded: Path | None, paths: list[Path], *, folder: Path) -> list[Path]:
    """Those of the `paths` below `folder` that do not lie in `excluded`, however the two folders are written."""
    if excluded is None:
        return paths
    base, outer = resolve_links(folder), resolve_links(excluded)
    return [path for path in paths if not (base / path.relative_to(folder)).is_relative_to(outer)]


def resolve_links(path: Path) -> Path:
    """The path without links; as it is where the links form a circle or no disk can have such a path."""
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        return path.absolute()
