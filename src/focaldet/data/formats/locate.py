"""From the names that annotation files state to image files: one step for all formats, which says where it searched.

A name is taken as it stands below the image folder. If no such file exists, it is looked for in this order:
an absolute name inside the folder; the name without leading folders (`data/obj_train_data/a.jpg`, `../upload/a.jpg`),
longest first; its base name in any folder, in any case; without the prefix of an upload (`1f3a9c2e-a.jpg`); with
another suffix. Back-slashes are slashes, and of an address (`/data/local-files/?d=…`, `https://…`) its path counts.
"""

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from focaldet.data.formats.listing import Listing, stem_of, suffix_of
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.records import Lookup, Records, path_inside
from focaldet.data.formats.split_names import role_in_path, role_of
from focaldet.data.formats.text import brief, list_names, show_path
from focaldet.data.images import SUFFIXES
from focaldet.data.problems import Location, Problem, Problems, Severity
from focaldet.errors import DataError

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # nothing that could lead out of a folder
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}[-_](?=.)", re.IGNORECASE)
_ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]+:(?:///?[^/]*)?(?=/)", re.IGNORECASE)
_QUERY = re.compile(r"^[^?]*\?d=([^&]*)")

BY_BASE_NAME = "image by base name"
_HOW: dict[str, tuple[Severity, str]] = {
    BY_BASE_NAME: ("note", "the name leads elsewhere; the file of this base name is taken"),
    "image without prefix": ("note", "taken without the prefix of an upload"),
    "image with another suffix": ("warning", "no such file; the one with another suffix is taken"),
}


class ImageFinder:
    """Finds image files by the names that annotation files state."""

    def __init__(self, lookup: Lookup) -> None:
        self.listing, self.by_stem, self.role = lookup.listing, lookup.by_stem, role_of(lookup.split)
        self.prefixes = [f"{folder}/" if folder else "" for folder in dict.fromkeys((*lookup.folders, ""))]

    def find(self, name: str) -> tuple[str | None, str | None]:
        """The path of a file below the listing, or None; and how, where the name alone did not say."""
        plain = plain_name(name)
        exact = self._find_exactly(plain)
        if exact is not None or self.link_outside(plain) is not None:
            return exact, None
        for how, path in self._search(plain):
            if path is not None:
                return path, how
        return None, None

    def _search(self, plain: str) -> Iterator[tuple[str, str | None]]:
        """The ways to a file, best first, and where each leads."""
        for candidate in dict.fromkeys((plain, unquote(plain))):
            yield BY_BASE_NAME, self._find_by_tail(candidate)
            yield BY_BASE_NAME, self._only(self._by_base, _key(candidate))
        base = _key(plain)
        yield "image without prefix", self._only(self._by_base, without_prefix(base))
        yield "image without prefix", self._only(self._without_prefix, base)
        yield "image with another suffix", self._only(self._by_stem_key, stem_of(base))

    def find_stem(self, name: str) -> str | None:
        """The one image with this base name, whatever its suffix, with or without the prefix of an upload."""
        key = _key(name)
        for table, wanted in ((self._by_stem_key, key), (self._by_stem_key, without_prefix(key))):
            if (path := self._only(table, wanted)) is not None:
                return path
        return self._only(self._stems_without_prefix, key)

    def link_outside(self, plain: str) -> str | None:
        """The path below the listing that a name would have if a link that leads out of it were followed."""
        for prefix in self.prefixes if self.listing.outside else ():
            if any(f"{prefix}{plain}/".startswith(f"{link}/") for link in self.listing.outside):
                return prefix + plain
        return None

    def candidates(self, name: str) -> list[str]:
        """The files of the base name of `name`, which are several where `find` finds none."""
        same = self._by_base.get(_key(plain_name(name)), [])
        return [path for path in same if not self._is_of_other_split(path)]

    def _find_exactly(self, plain: str) -> str | None:
        if posixpath.isabs(plain):
            relative = self.listing.relative(Path(plain))
            return relative if relative in self.listing.files else None
        for prefix in self.prefixes:
            path = posixpath.normpath(prefix + plain)
            if path in self.listing.files:
                return path
        if self.by_stem:
            return next(filter(None, (self._by_whole_stem.get(prefix + plain) for prefix in self.prefixes)), None)
        return None

    def _find_by_tail(self, plain: str) -> str | None:
        parts = [part for part in plain.split("/") if part not in ("", "..")]
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        return next(filter(None, map(self._find_exactly, tails)), None)

    def _only(self, table: dict[str, list[str]], key: str) -> str | None:
        """The one file of a key; of several the one in the likeliest folder that has just one."""
        paths = [path for path in table.get(key, ()) if not self._is_of_other_split(path)]
        if len(paths) < 2:
            return paths[0] if paths else None
        for prefix in self.prefixes[:-1]:
            inside = [path for path in paths if path.startswith(prefix)]
            if len(inside) == 1:
                return inside[0]
        return None

    def _is_of_other_split(self, path: str) -> bool:
        role = role_of(role_in_path(path) or "") if self.role else None
        return role not in (None, self.role)

    @cached_property
    def _by_base(self) -> dict[str, list[str]]:
        return group_paths(self.listing.files, _key)

    @cached_property
    def _without_prefix(self) -> dict[str, list[str]]:
        return group_paths(self.listing.images, lambda path: without_prefix(_key(path)))

    @cached_property
    def _by_stem_key(self) -> dict[str, list[str]]:
        return group_paths(self.listing.images, lambda path: stem_of(_key(path)))

    @cached_property
    def _stems_without_prefix(self) -> dict[str, list[str]]:
        return group_paths(self.listing.images, lambda path: without_prefix(stem_of(_key(path))))

    @cached_property
    def _by_whole_stem(self) -> dict[str, str]:
        return {stem_of(path): path for path in reversed(self.listing.images)}


def group_paths(paths: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    """Paths by what `key` gives for them, in order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path in sorted(paths):
        groups[key(path)].append(path)
    return groups


def _key(path: str) -> str:
    """The base name for comparison: in lower case, composed, without a folder."""
    return unicodedata.normalize("NFC", path.rpartition("/")[2]).casefold()


def without_prefix(name: str) -> str:
    """A base name without what Label Studio puts before the names of uploaded files."""
    return _UPLOAD_PREFIX.sub("", name)


def plain_name(name: str) -> str:
    """The path in a name: slashes for back-slashes, without what makes it an address."""
    if _PLAIN_NAME.fullmatch(name):
        return name
    plain = name.strip().replace("\\", "/")
    if match := _QUERY.match(plain):
        plain = unquote(match[1])
    return posixpath.normpath(_ADDRESS.sub("", plain).removeprefix("file:")) if plain else ""


def locate_images(records: Records, reading: Reading) -> Records:
    """The records with the paths of files instead of names; what is not there is refused, or skipped and counted.

    Raises:
        DataError: see `locate_names`.
    """
    lookup = records.lookup
    if lookup is None:
        return records
    names = Names(records.paths, records.image_location, records.root)
    known, paths = locate_names(names, lookup, reading, records.problems)
    chosen = records if len(known) == len(records.paths) else records.select_images(known)
    root, paths = _common_root(records.root, lookup, paths)
    return replace(chosen, root=root, paths=paths, bounds=lookup.listing.root, lookup=None)


class Names(NamedTuple):
    """Names of images as a file states them, where they stand, and the folder in which they are expected."""

    names: Sequence[str]
    location: Callable[[int], Location]
    root: Path


def locate_names(stated: Names, lookup: Lookup, reading: Reading, problems: Problems) -> tuple[list[int], list[str]]:
    """The indices of the names of files that are there, and the paths of these files below the listing.

    Raises:
        DataError: a name is not one of a file, or its file is missing and `reading.missing` is "error" (unless
            `reading.lenient`), or there is none of all files.
    """
    finder = ImageFinder(lookup)
    paths: list[str] = []
    known: list[int] = []
    failures: list[tuple[int, DataError]] = []
    searched: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for i, name in enumerate(stated.names):
        path, how = finder.find(name) if _is_name(name) else (None, None)
        if path is None:
            failures.append((i, _missing(finder, name, stated.location(i), stated.root)))
            continue
        if how:
            searched[how].append((i, path))
        known.append(i)
        paths.append(path)
    _note_searched(stated, searched, lookup.listing, problems)
    _note_missing(failures, reading, problems, total=len(stated.names))
    return known, paths


def _is_name(name: str) -> bool:
    return bool(name.strip()) and "\0" not in name and len(name) < 4096


def _missing(finder: ImageFinder, name: str, location: Location, root: Path) -> DataError:
    """Why a name has no file."""
    if not _is_name(name) and len(name) < 4096:
        return location.error(f"got {brief(name)}; must be the name of an image file")
    plain = plain_name(name)
    if (link := finder.link_outside(plain)) is not None:
        return location.error(
            f"{show_path(finder.listing.root / link)} is a link that leads out of the image folder "
            f"{finder.listing.root}; --data.follow-links takes it"
        )
    if len(several := finder.candidates(name)) > 1:
        return location.error(f"{brief(name)} may be any of {list_names(several)}; give the path below the folder")
    try:
        path_inside(root, plain, location)
    except DataError as error:
        return error
    return location.error(f"no such file: {show_path(root / plain)}")


def _note_searched(
    stated: Names, searched: dict[str, list[tuple[int, str]]], listing: Listing, problems: Problems
) -> None:
    for kind, images in searched.items():
        severity, message = _HOW[kind]

        def problem(
            k: int,
            images: list[tuple[int, str]] = images,
            severity: Severity = severity,
            kind: str = kind,
            message: str = message,
        ) -> Problem:
            i, path = images[k]
            text = f"{brief(stated.names[i])}: {show_path(listing.root / path)}: {message}"
            return stated.location(i).problem(severity, kind, text)

        problems.add_all(severity, kind, len(images), problem)


def _note_missing(failures: list[tuple[int, DataError]], reading: Reading, problems: Problems, *, total: int) -> None:
    """Count the images that are not there, or refuse them."""
    if not failures:
        return
    skip = reading.missing == "skip"
    first, number = failures[0][1], len(failures)
    every = number == total
    if every or not (skip or reading.lenient):
        more = f" ({number} images like this of {total})" if number > 1 else ""
        way_out = "" if every else "; --data.missing skip leaves such images out"
        raise DataError(first.problem + more + way_out, file=first.file, record=first.record, field=first.field)
    severity: Severity = "warning" if skip else "error"

    def problem(k: int) -> Problem:
        error = failures[k][1]
        outcome = "skipped" if skip else "training refuses it (--data.missing skip leaves such images out)"
        text = f"{error.problem}; {outcome}"
        return Problem(severity, "image missing", text, error.file, error.record, error.field)

    problems.add_all(severity, "image missing", number, problem)


def _common_root(root: Path, lookup: Lookup, paths: Sequence[str]) -> tuple[Path, list[str]]:
    """The image folder and the paths below it; the folder of the listing where some lie elsewhere in it."""
    prefix = lookup.listing.relative(root)
    if prefix is None or not all(path.startswith(f"{prefix}/") for path in paths):
        return (root, list(paths)) if prefix == "" else (lookup.listing.root, list(paths))
    return root, [path[len(prefix) + 1 :] for path in paths]


def other_images(listing: Listing) -> Iterator[str]:
    """Files that look like images of a kind that is not read, by their suffix."""
    return (path for path in listing.sorted_files if suffix_of(path) in OTHER_IMAGE_SUFFIXES - SUFFIXES)


OTHER_IMAGE_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".jp2", ".j2k", ".jfif", ".jxl", ".svg", ".raw", ".cr2", ".nef", ".arw", ".dng"}
    | {".tga", ".psd", ".exr", ".hdr", ".ico", ".pbm", ".pnm", ".jpe", ".jpx", ".dcm", ".npy"}
)
