"""The folders in which tools keep the images of a split, likeliest first."""

import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from focaldet.data.formats.listing import Listing
from focaldet.data.formats.locate import plain_name
from focaldet.data.formats.records import Lookup

_TRIED_IMAGES = 20


def look_near(
    listing: Listing, bases: Sequence[str], splits: Sequence[str], names: Sequence[str], *, by_stem: bool = False
) -> tuple[Path, Lookup] | None:
    """The folder that has the most of the first few images, and where else to look; None where no usual folder exists.

    Where no folder has any, it is the most likely one, and locating the images reports what is missing.

    Args:
        listing: the files among which the images are.
        bases: folders of it that the usual ones are in, likeliest first.
        splits: the names that the folder of the split may have; the first is the name of the split.
        names: the names of the images, as the annotations state them.
        by_stem: names have no suffix.
    """
    usual = [path for base in dict.fromkeys(bases) for path in usual_folders(base, splits)]
    there = [folder for path in usual if (folder := _spelling(listing, path)) is not None]
    if not there:
        return None
    plain = [plain_name(name) for name in names[:_TRIED_IMAGES] if len(name) < 4096 and "\0" not in name]
    stems = [f"{name}.jpg" for name in plain] if by_stem else plain

    def hits(folder: str) -> int:
        prefix = f"{folder}/" if folder else ""
        return sum(posixpath.normpath(prefix + name) in listing.files for name in stems)

    folders = sorted(dict.fromkeys(there), key=lambda folder: -hits(folder))
    return listing.root / folders[0], Lookup(listing, folders, by_stem=by_stem, split=splits[0])


def usual_folders(base: str, splits: Sequence[str]) -> Iterator[str]:
    """The folders in which images of a split are kept, below a folder."""
    for name in dict.fromkeys(splits):
        for parts in ((base, name), (base, "images", name), (base, name, "images"), (base, name, "data")):
            yield "/".join(filter(None, parts))
        yield "/".join(filter(None, (base, "data", name)))
    yield from ("/".join(filter(None, (base, name))) for name in ("images", "data", "JPEGImages", ""))


def _spelling(listing: Listing, path: str) -> str | None:
    """A folder as the disk spells it, or one behind a link that is not followed, which is then reported."""
    if any(f"{path}/".startswith(f"{link}/") for link in listing.outside):
        return path
    return listing.folder(path)
