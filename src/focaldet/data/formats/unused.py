"""The account of what a reading did not use: every file near the data that is not part of a split, and why."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from focaldet.data.formats.listing import Listing, suffix_of
from focaldet.data.formats.locate import OTHER_IMAGE_SUFFIXES, other_images
from focaldet.data.formats.records import DatasetLayout, Records
from focaldet.data.formats.split_names import role_in_path, role_of
from focaldet.data.images import SUFFIXES
from focaldet.data.problems import Location, Problem, Problems, Severity

_LABEL_SUFFIXES = {"voc": ".xml", "yolo": ".txt", "labelme": ".json", "coco": ".json", "csv": ".csv", "vott": ".json"}
_BY_LIST = ("voc", "yolo")


def note_unused(
    read: Sequence[tuple[DatasetLayout, Sequence[Records]]],
    problems: Problems,
    *,
    images: Path | None,
    follow_links: bool,
) -> None:
    """Count what lies below the data's folders and is not used by any of the splits that were read: images in no split,
    images of kinds that are not read, hidden files, links that lead out, folders that cannot be read.

    Where some splits of a layout were not read, only folders that belong to those that were are looked at.
    """
    every = [record for _, records in read for record in records]
    shared = None if images is None else Listing(images, follow_links=follow_links)
    seen: set[Path] = set()
    for layout, records in read:
        for file in layout.ignored:
            message = "another file of annotations was taken instead of this one; name it to use it"
            problems.add(Location(file).problem("warning", "annotation file unused", message))
        listing = shared or layout.listing
        if listing is not None and records and listing.root.absolute() not in seen:
            seen.add(listing.root.absolute())
            _add(_Account(layout, listing, records, every), listing, problems)


def _add(account: "_Account", listing: Listing, problems: Problems) -> None:
    for severity, kind, paths, reason in account.lines():

        def problem(
            k: int, paths: list[str] = paths, severity: Severity = severity, kind: str = kind, reason: str = reason
        ) -> Problem:
            return Location(listing.root / paths[k]).problem(severity, kind, reason)

        problems.add_all(severity, kind, len(paths), problem)


class _Account:
    """Which files of a listing some splits use."""

    def __init__(
        self, layout: DatasetLayout, listing: Listing, records: Sequence[Records], every: Sequence[Records]
    ) -> None:
        self.layout, self.listing = layout, listing
        self.used: set[str] = set()
        for record in every:
            prefix = listing.relative(record.root)
            if prefix is not None:
                start = f"{prefix}/" if prefix else ""
                self.used.update(start + path for path in record.paths)
        self.used.update([target for path in self.used if (target := listing.target(path)) != path])
        self.folders = {path.rpartition("/")[0] for path in self.used}
        names = [record.name for record in records]
        self.complete = len(records) == len(layout.splits)
        self.roles = {role_of(name) for name in names}
        self.by_list = layout.format in _BY_LIST and any(
            source.suffix.lower() == ".txt" for sources in layout.splits.values() for source in sources
        )

    def lines(self) -> Iterator[tuple[Severity, str, list[str], str]]:
        """Severity, kind, paths and reason of all that is not used."""
        unused = [path for path in self.listing.images if path not in self.used and self._concerns(path)]
        named = "no list" if self.by_list else "no split or record"
        here = [path for path in unused if path.rpartition("/")[0] in self.folders]
        elsewhere = [path for path in unused if path.rpartition("/")[0] not in self.folders]
        yield "note" if self.by_list else "warning", "image unused", here, f"{named} names this image"
        yield "note", "image in another folder", elsewhere, f"{named} names an image of this folder"
        kinds = [path for path in other_images(self.listing) if self._concerns(path) and path not in self.used]
        yield "warning", "image of another kind", kinds, f"images of this kind are not read ({_known_kinds()})"
        yield "warning", "hidden file", self._hidden(), "its name, or that of a folder above it, begins with a dot"
        outside = [path for path in self.listing.outside if self._concerns(path)]
        yield "warning", "link outside", outside, "leads out of the data's folder; --data.follow-links takes it"
        unreadable = [path for path in self.listing.unreadable if self._concerns(path)]
        yield "warning", "folder unreadable", unreadable, "a folder without permission, or a link to nothing"

    def _concerns(self, path: str) -> bool:
        """Whether a file may be said to be left out although not all splits were read."""
        if self.complete:
            return True
        folder = role_in_path(path)
        return folder is not None and role_of(folder) in self.roles

    def _hidden(self) -> list[str]:
        wanted = SUFFIXES | OTHER_IMAGE_SUFFIXES | {_LABEL_SUFFIXES.get(self.layout.format, "")}
        return [path for path in self.listing.hidden if suffix_of(path) in wanted and self._concerns(path)]


def _known_kinds() -> str:
    return ", ".join(sorted(suffix.lstrip(".") for suffix in SUFFIXES))
