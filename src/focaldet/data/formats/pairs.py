"""Label files and images that belong together by their paths, in whatever order the folders stand.

`train/annotations/a.xml` belongs to `train/images/a.png`, `labels/train/a.txt` to `images/train/a.jpg`, and files side
by side to each other: what is left of a path without the folders that only say "image" or "label" is its key.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from focaldet.data.formats.listing import Listing, stem_of, suffix_of
from focaldet.data.formats.locate import ImageFinder
from focaldet.data.formats.records import Lookup
from focaldet.data.formats.split_names import role_in_path
from focaldet.data.images import SUFFIXES

_KIND_FOLDERS = frozenset(
    {"images", "image", "imgs", "img", "jpegimages", "data", "photos", "frames", "jpegs", "jpgs", "pngs"}
    | {"annotations", "annotation", "annots", "anns", "ann", "labels", "label", "xml", "xmls", "json", "jsons", "txt"}
)


def pair_key(path: str) -> str:
    """What the paths of an image and of its label file have in common."""
    *folders, name = stem_of(path).split("/")
    return "/".join([*(folder for folder in folders if folder.casefold() not in _KIND_FOLDERS), name])


@dataclass(slots=True)
class Partners:
    """Label files with their images, and those without: paths below their listings."""

    image_of: dict[str, str] = field(default_factory=dict)
    without_image: list[str] = field(default_factory=list)
    ambiguous: dict[str, list[str]] = field(default_factory=dict)
    searched: list[str] = field(default_factory=list)


class ImagePairs:
    """The images below a listing by the key that they share with their label files."""

    def __init__(self, images: Listing) -> None:
        self.images = images
        self._finders: dict[str, ImageFinder] = {}

    @cached_property
    def by_key(self) -> Mapping[str, Sequence[str]]:
        """The images of each key."""
        groups: dict[str, list[str]] = defaultdict(list)
        for path in self.images.images:
            groups[pair_key(path)].append(path)
        return groups

    @cached_property
    def _by_plain_key(self) -> Mapping[str, Sequence[str]]:
        groups: dict[str, list[str]] = defaultdict(list)
        for key, paths in self.by_key.items():
            groups[key.casefold()] += paths
        return groups

    def images_of(self, label: str) -> Sequence[str]:
        """The images that a label file may belong to: none, one, or several that are equally likely."""
        key = pair_key(label)
        several = self.by_key.get(key) or self._by_plain_key.get(key.casefold(), ())
        if len(several) < 2:
            return several
        folder = label.rpartition("/")[0]
        beside = [path for path in several if path.rpartition("/")[0] == folder]
        return beside or several

    def pair(self, labels: Iterable[str], stated: Callable[[str], str | None] | None = None) -> Partners:
        """The image of each label file; `stated` reads the name of the image that a label file gives.

        A label file without an image of its key is given one that no other has: of the stated name, or the only one of
        its base name, unless that lies in the folder of another split.
        """
        partners, alone = Partners(), []
        for label in labels:
            candidates = self.images_of(label)
            if len(candidates) == 1:
                partners.image_of[label] = candidates[0]
            elif candidates:
                partners.ambiguous[label] = list(candidates)
            else:
                alone.append(label)
        taken = set(partners.image_of.values())
        for label in alone:
            path = self._search(label, stated(label) if stated else None)
            if path is None or path in taken:
                partners.without_image.append(label)
                continue
            taken.add(path)
            partners.image_of[label] = path
            partners.searched.append(label)
        return partners

    def _search(self, label: str, stated: str | None) -> str | None:
        split = role_in_path(label) or ""
        finder = self._finders.setdefault(split, ImageFinder(Lookup(self.images, split=split)))
        path, how = finder.find(stated) if stated and "\0" not in stated else (None, None)
        if path is None or how == "image with another suffix" or suffix_of(path) not in SUFFIXES:
            path = finder.find_stem(stem_of(label))
        return path


def group_by_split(paths: Iterable[str]) -> dict[str, list[str]]:
    """Paths by the split that a folder above them names; those without one are the split `all`."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        groups[role_in_path(path) or "all"].append(path)
    return dict(sorted(groups.items()))
