"""Pascal VOC xml, one file for each image, in whatever folders.

`Annotations/` and `JPEGImages/` in any case, `train/` with both, `annotations/train/`, several `VOCdevkit/VOC*`.

Splits are the lists in `ImageSets/Main/*.txt`, or lists such as `train.txt` of the same names; without lists the
folders `train/`, `valid/` … on the way to the files; without these all files are one split.

Corners. VOC itself counts pixels from 1 and includes the last one, so its box covers (xmin - 1, ymin - 1, xmax, ymax).
labelImg, CVAT and the exporters of labeling services borrowed the file format but write plain corners counted from 0.
Each file says who made it: where `<source><database>` names VOC ("The VOC2007 Database"), VOC's rule holds; otherwise
the corners are taken as they stand.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from focaldet.data.dataset import DIFFICULT, Classes
from focaldet.data.formats.listing import Listing, stem_of
from focaldet.data.formats.locate import BY_BASE_NAME
from focaldet.data.formats.pairs import ImagePairs, group_by_split, pair_key
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.records import BoxRows, DatasetLayout, Records
from focaldet.data.formats.split_names import role_of
from focaldet.data.formats.text import brief, list_names, read_lines
from focaldet.data.formats.voc_xml import Annotation, read_xml, stated_image
from focaldet.data.problems import Location, Problem, Problems, Severity
from focaldet.errors import DataError
from focaldet.files import open_plain

_OF_ONE_CLASS = re.compile(r".+_(train|val|trainval|test)")
_LIST_FOLDERS = ("ImageSets/Main", "ImageSets")


def find_voc(listing: Listing, file: Path | None = None) -> DatasetLayout | None:
    """The splits of a folder with VOC xml files, or the one list file `file`; None if it is neither."""
    if file is not None:
        if file.suffix.lower() != ".txt":
            return None
        above = [folder for folder in list(file.parents)[:4] if _has_annotations(folder)]
        base = Listing(above[0], follow_links=listing.follow_links) if above else None
        return DatasetLayout("voc", base.root, {"all": (file,)}, listing=base) if base else None
    files = listing.with_suffix(".xml")
    if not files or not any(_is_voc(listing.root / path) for path in files[:3]):
        return None
    lists = _find_lists(listing, files)
    splits = lists or {split: (common_folder(listing, paths),) for split, paths in group_by_split(files).items()}
    return DatasetLayout("voc", listing.root, splits, listing=listing)


def _has_annotations(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("Annotations", "annotations"))


def _is_voc(file: Path) -> bool:
    """Whether a file begins as a VOC annotation, or cannot be read and so has to be reported."""
    try:
        with open_plain(file) as stream:
            head = stream.read(4096)
    except OSError:
        return True
    return b"<annotation>" in head or b"<annotation " in head or b"<" not in head


def common_folder(listing: Listing, paths: Sequence[str]) -> Path:
    """The folder above all of these paths."""
    first, last = (path.split("/")[:-1] for path in (min(paths), max(paths)))
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return listing.root / "/".join(first[:shared])


def _find_lists(listing: Listing, files: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """The lists of names by their split; those of several VOC folders with one name belong together."""
    splits: dict[str, tuple[Path, ...]] = {}
    texts = [path for path in listing.with_suffix(".txt") if not _OF_ONE_CLASS.fullmatch(PurePosixPath(path).stem)]
    for folder in _LIST_FOLDERS:
        for path in texts:
            if f"/{path}".casefold().endswith(f"/{folder}/{PurePosixPath(path).name}".casefold()):
                stem = PurePosixPath(path).stem
                splits[stem] = (*splits.get(stem, ()), listing.root / path)
        if splits:
            return splits
    keys = {pair_key(path).rpartition("/")[2] for path in files}
    for path in texts:
        stem = PurePosixPath(path).stem
        if role_of(stem) and _first_name(listing.root / path) in keys:
            splits[stem] = (*splits.get(stem, ()), listing.root / path)
    return splits


def _first_name(file: Path) -> str | None:
    try:
        line = next((line for _, line in read_lines(file)), "")
    except DataError:
        return None
    name = line.split(maxsplit=1)[0] if line else ""
    plain = pair_key(name.replace("\\", "/")) if "." in name else name
    return plain.rpartition("/")[2]


def read_voc(layout: DatasetLayout, splits: Sequence[str], reading: Reading) -> list[Records]:
    """The records of some splits of a layout from `find_voc`.

    VOC has no list of classes: they are the names in all splits, in alphabetical order, so that every split has the
    same labels. Category ids are label + 1, image ids the position in the list + 1.

    Raises:
        DataError: a listed name has no xml file or no image, or an xml file is not as in VOC.
    """
    reader = _VOCReader(layout, reading)
    listed = {split: reader.list_members(split, strict=split in splits) for split in layout.splits}
    named = (label for members in listed.values() for label in members.without_image)
    reader.note_unlisted(named, listed[splits[0]].problems)
    labels = dict.fromkeys(label for members in listed.values() for label in members.labels)
    annotations, problems = reader.read_all(labels)
    names = sorted({item.name for annotation in annotations.values() for item in annotation.objects})
    if not names:
        raise DataError("no xml file has an object, so there are no classes", file=layout.root)
    classes = Classes(tuple(names), tuple(range(1, len(names) + 1)))
    return [reader.records(split, listed[split], annotations, problems, classes) for split in splits]


@dataclass(slots=True)
class _Members:
    """The xml files of one split that have an image, and what was odd in choosing them."""

    labels: list[str] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)


class _VOCReader:
    """The files of one VOC layout."""

    def __init__(self, layout: DatasetLayout, reading: Reading) -> None:
        self.layout, self.reading = layout, reading
        self.listing = layout.listing or Listing(layout.root, follow_links=reading.follow_links)
        images = Listing(reading.images, follow_links=reading.follow_links) if reading.images else self.listing
        self.pairs, self.images = ImagePairs(images), images
        self.files = self.listing.with_suffix(".xml")
        partners = self.pairs.pair(self.files, lambda label: stated_image(self.listing.root / label))
        self.image_of, self.ambiguous, self.searched = partners.image_of, partners.ambiguous, partners.searched
        self.without_image = partners.without_image
        self.root = self._common_folder(images)
        self.by_key = {pair_key(path): path for path in self.files}
        self.by_name: dict[str, list[str]] = {}
        for path in self.files:
            self.by_name.setdefault(PurePosixPath(path).stem, []).append(path)

    def _common_folder(self, images: Listing) -> Path:
        """The usual folder where all images are in it, else the folder of the data."""
        usual = [folder for name in ("JPEGImages", "images") if (folder := images.folder(name))]
        inside = (name for name in usual if all(path.startswith(f"{name}/") for path in self.image_of.values()))
        return images.root / next(inside, "")

    def list_members(self, split: str, *, strict: bool) -> _Members:
        """The xml files of a split: those that its lists name, or those in its folders.

        Raises:
            DataError: with `strict`, where a listed name has no xml file or no image and that is not to be skipped.
        """
        sources = self.layout.splits[split]
        members = _Members()
        if not sources[0].is_dir():
            for source in sources:
                self._take_list(source, members, strict=strict)
            return members
        for label in group_by_split(self.files).get(split, []):
            location = Location(self.listing.root / label)
            if label in self.image_of:
                members.labels.append(label)
            elif several := self.ambiguous.get(label):
                error = DataError(f"two images have one name: {list_names(several)}", file=self.root)
                if strict and not self.reading.lenient:
                    raise error
                members.problems.add(location.problem("error", "label without image", error.problem))
            else:
                self._note_alone(label, members.problems)
        return members

    def _note_alone(self, label: str, problems: Problems) -> None:
        message = f"no image of its name is below {self.images.root}; not used"
        problems.add(Location(self.listing.root / label).problem("warning", "label without image", message))

    def note_unlisted(self, listed: Iterable[str], problems: Problems) -> None:
        """Warn of xml files without an image that no list names; those in folders are counted with their split."""
        splits = self.layout.splits
        if not any(sources[0].is_dir() for sources in splits.values()):
            named = set(listed)
            for label in self.without_image:
                if label not in named:
                    self._note_alone(label, problems)

    def _take_list(self, source: Path, members: _Members, *, strict: bool) -> None:
        names: dict[str, None] = {}
        for number, line in read_lines(source):
            if line in names:
                location = Location(source, f"line {number}")
                members.problems.add(location.problem("warning", "image listed twice", f"{brief(line)} counts once"))
            names[line] = None
        labels = {name: self._label(name, source) for name in names}
        no_file = [name for name, label in labels.items() if label is None]
        known = {name: label for name, label in labels.items() if label is not None}
        for label in known.values():
            if strict and not self.reading.lenient and label in self.ambiguous:
                several = list_names(map(_base_name, self.ambiguous[label]))
                raise DataError(f"two images have one name: {several.replace(', ', ' and ')}", file=self.root)
        members.without_image += [label for label in known.values() if label not in self.image_of]
        no_image = [name for name, label in known.items() if label not in self.image_of]
        if strict:
            self._refuse_missing(source, members, no_file, what="xml file", total=len(names), where=self.listing.root)
            self._refuse_missing(source, members, no_image, what="image", total=len(names), where=self.images.root)
        members.labels += [label for label in known.values() if label in self.image_of]
        members.labels[:] = dict.fromkeys(members.labels)

    def _refuse_missing(
        self, source: Path, members: _Members, names: Sequence[str], *, what: str, total: int, where: Path
    ) -> None:
        """Refuse listed names without a file, or count them."""
        if not names:
            return
        skip = self.reading.missing == "skip"
        if not (skip or self.reading.lenient) or len(names) == total:
            shown = list_names(map(brief, names))
            way_out = "" if len(names) == total else "; --data.missing skip leaves them out"
            raise DataError(f"{len(names)} of {total} names have no {what} in {where}: {shown}{way_out}", file=source)
        severity: Severity = "warning" if skip else "error"
        outcome = "skipped" if skip else "training refuses it"

        def problem(k: int) -> Problem:
            message = f"{brief(names[k])} has no {what} in {where}; {outcome}"
            return Location(source).problem(severity, "image missing", message)

        members.problems.add_all(severity, "image missing", len(names), problem)

    def _label(self, line: str, source: Path) -> str | None:
        """The xml file of a line such as `000005`, `000005.jpg`, `images/5.jpg` or, in lists of one class, `5 -1`."""
        plain = line.replace("\\", "/")
        parent = self.listing.relative(source.parent) or ""
        prefixes = [parent.split("ImageSets")[0].strip("/"), ""] if "ImageSets" in parent else [parent, ""]
        first = plain.split(maxsplit=1)[0]
        for name in dict.fromkeys((plain, stem_of(plain), first, stem_of(first))):
            for prefix in dict.fromkeys(prefixes):
                key = pair_key("/".join(filter(None, (prefix, f"{name}."))))
                if (label := self.by_key.get(key)) is not None:
                    return label
            if len(same := self.by_name.get(_base_name(name), [])) == 1:
                return same[0]
        return None

    def read_all(self, labels: Iterable[str]) -> tuple[dict[str, Annotation], dict[str, Problems]]:
        """The annotations of these xml files, and the problems of each file that has any."""
        annotations, problems = {}, {}
        for label in labels:
            own = replace(self.reading, problems=Problems())
            with own.record("file unreadable"):
                annotations[label] = read_xml(self.listing.root / label, own)
            if own.problems.counts:
                problems[label] = own.problems
        return annotations, problems

    def records(
        self,
        split: str,
        members: _Members,
        annotations: dict[str, Annotation],
        problems: dict[str, Problems],
        classes: Classes,
    ) -> Records:
        """The records of a split from its annotations."""
        labels = {name: label for label, name in enumerate(classes.names)}
        rows, noted = BoxRows(), members.problems
        chosen = [label for label in members.labels if label in annotations]
        for label in members.labels:
            if label in problems:
                noted.extend(problems[label])
        for i, label in enumerate(chosen):
            for item in annotations[label].objects:
                rows.add(i, item.box, labels[item.name], item.location, flag=DIFFICULT * item.difficult)
        source = self.layout.splits[split][0]
        self._note(source, chosen, annotations, noted)
        files = [annotations[label] for label in chosen]
        images = [self.image_of[label] for label in chosen]
        prefix = self.images.relative(self.root) or ""
        return Records(
            name=split,
            source=source,
            root=self.root,
            classes=classes,
            image_ids=range(1, len(chosen) + 1),
            paths=[path[len(prefix) + 1 :] if prefix else path for path in images],
            stated_sizes=[annotation.stated_size for annotation in files],
            image_location=lambda i: Location(files[i].file, field="size"),
            problems=noted,
            annotation_files=[self.listing.root / label for label in members.labels],
            bounds=self.images.root,
            **rows.columns(),
        )

    def _note(
        self, source: Path, chosen: Sequence[str], annotations: dict[str, Annotation], problems: Problems
    ) -> None:
        one_based = sum(annotations[label].one_based for label in chosen)
        if one_based:
            message = (
                f"{one_based} xml files are of VOC itself, which counts pixels from 1: xmin and ymin are reduced by 1"
            )
            problems.add(Location(source).problem("note", "VOC pixels", message))
        searched = [label for label in self.searched if label in set(chosen)]
        problems.add_all(
            "note",
            BY_BASE_NAME,
            len(searched),
            lambda k: Location(self.listing.root / searched[k]).problem(
                "note", BY_BASE_NAME, f"its image is {self.image_of[searched[k]]}"
            ),
        )


def _base_name(path: str) -> str:
    return path.rpartition("/")[2]
