"""All files below a folder, listed once: readers look names up in the list and never ask the disk for single files."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from focaldet.data.images import SUFFIXES
from focaldet.errors import DataError

MAX_FILES = 3_000_000
_MAX_LINKED = 4  # links to folders inside one another
_SKIPPED_FOLDERS = frozenset({".git", ".hg", ".svn", ".dvc", ".cache", ".venv", ".ipynb_checkpoints"})


@dataclass(slots=True)
class _Entries:
    """What a walk through a folder met; all paths are relative to it, with "/" between their parts."""

    files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    targets: dict[str, str] = field(default_factory=dict)


class Listing:
    """The files below a folder. Nothing is read before a property is first asked for; each folder is read once.

    Links to files and folders below `root` are followed; those that lead out of it only with `follow_links`. All paths
    are relative to `root`, with "/" between their parts.

    Raises:
        DataError: from each property, where there are more than `MAX_FILES` files.
    """

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self.root, self.follow_links = root, follow_links

    @cached_property
    def _entries(self) -> _Entries:
        entries = _Entries()
        _Walk(self.root, entries, follow_links=self.follow_links).visit("", chain=())
        for paths in (entries.files, entries.hidden, entries.outside):
            paths.sort()
        return entries

    @cached_property
    def files(self) -> frozenset[str]:
        """All files that are not hidden."""
        return frozenset(self._entries.files)

    @property
    def sorted_files(self) -> list[str]:
        """The same in order."""
        return self._entries.files

    @property
    def hidden(self) -> list[str]:
        """Files whose name, or that of a folder above them, begins with a dot."""
        return self._entries.hidden

    @property
    def outside(self) -> list[str]:
        """Links that lead out of `root`, which are not followed."""
        return self._entries.outside

    @property
    def unreadable(self) -> list[str]:
        """Folders that the system does not let us read."""
        return self._entries.unreadable

    @cached_property
    def images(self) -> list[str]:
        """The image files, by their suffix."""
        return [path for path in self.sorted_files if suffix_of(path) in SUFFIXES]

    @cached_property
    def folders(self) -> frozenset[str]:
        """All folders with a file somewhere below them; the folder itself is the empty text."""
        direct = {path.rpartition("/")[0] for path in self.sorted_files}
        return frozenset({"/".join(path.split("/")[:depth]) for path in direct for depth in range(path.count("/") + 2)})

    def with_suffix(self, *suffixes: str) -> list[str]:
        """The files with one of these suffixes, given in lower case, whatever the case of the file's."""
        return [path for path in self.sorted_files if suffix_of(path) in suffixes]

    def target(self, path: str) -> str:
        """The path that a file has without links; `path` itself where there are none."""
        targets = self._entries.targets
        return targets.get(path, path)

    def relative(self, path: Path) -> str | None:
        """A path as one of this list, whether or not there is such a file; None where it is not below `root`."""
        plain, root = (Path(os.path.normpath(each.absolute())) for each in (path, self.root))
        if not plain.is_relative_to(root):
            return None
        relative = plain.relative_to(root).as_posix()
        return "" if relative == "." else relative

    def folder(self, path: str) -> str | None:
        """The name of a folder as the disk spells it, where `path` differs in nothing but case; else None."""
        return path if path in self.folders else self._folders_by_case.get(path.casefold())

    @cached_property
    def _folders_by_case(self) -> dict[str, str]:
        return {path.casefold(): path for path in sorted(self.folders, reverse=True)}


class _Walk:
    """A walk through folders that follows links, but never in circles."""

    def __init__(self, root: Path, entries: _Entries, *, follow_links: bool) -> None:
        self.root, self.follow_links = root, follow_links
        self.entries = entries
        self.real_root = os.path.realpath(root)

    def visit(self, prefix: str, *, chain: tuple[str, ...], hidden: bool = False) -> None:
        """Take the files of the folder at `prefix` (empty, or with a "/" at its end) and of those below it."""
        waiting, entries = [(prefix, chain, hidden)], self.entries
        while waiting:
            prefix, chain, hidden = waiting.pop()
            try:
                with os.scandir(os.path.join(self.root, prefix)) as scan:  # noqa: PTH118  three times as fast
                    children = list(scan)
            except OSError:
                entries.unreadable.append(prefix)
                continue
            for child in children:
                path, is_hidden = prefix + child.name, hidden or child.name.startswith(".")
                if child.is_symlink():
                    try:
                        waiting += self._follow(path, chain, hidden=is_hidden)
                    except OSError:
                        entries.unreadable.append(path)
                elif not child.is_dir(follow_symlinks=False):
                    self._add(path, hidden=is_hidden, target=_target(path, chain))
                elif child.name not in _SKIPPED_FOLDERS:
                    waiting.append((f"{path}/", (*chain[:-1], f"{chain[-1]}{child.name}/") if chain else (), is_hidden))

    def _add(self, path: str, *, hidden: bool, target: str | None = None) -> None:
        (self.entries.hidden if hidden else self.entries.files).append(path)
        if target is not None:
            self.entries.targets[path] = target
        if len(self.entries.files) > MAX_FILES:
            raise DataError(f"more than {MAX_FILES:,} files lie below it; name a folder with the data", file=self.root)

    def _follow(self, path: str, chain: tuple[str, ...], *, hidden: bool) -> list[tuple[str, tuple[str, ...], bool]]:
        """Take the file that a link leads to, or return the folder to visit."""
        entries, real = self.entries, os.path.realpath(self.root / path)
        inside = real == self.real_root or real.startswith(f"{self.real_root}/")
        if not inside and not self.follow_links:
            entries.outside.append(path)
        elif not os.path.isdir(real):  # noqa: PTH112
            target = real[len(self.real_root) + 1 :] if inside else None
            if os.path.exists(real):  # noqa: PTH110
                self._add(path, hidden=hidden, target=target)
            else:
                entries.unreadable.append(path)
        elif len(chain) < _MAX_LINKED and not f"{self._real_parent(path)}/".startswith(f"{real}/"):
            target = f"{real[len(self.real_root) + 1 :]}/" if inside else f"{real}/"
            return [] if target in chain else [(f"{path}/", (*chain, target), hidden)]
        return []

    def _real_parent(self, path: str) -> str:
        return os.path.realpath(self.root / PurePosixPath(path).parent)


def _target(path: str, chain: tuple[str, ...]) -> str | None:
    """Where a file in a linked folder really lies; None where no link is on its path."""
    return f"{chain[-1]}{path.rpartition('/')[2]}" if chain else None


def suffix_of(path: str) -> str:
    """The suffix of a path in lower case, with its dot; empty where there is none."""
    name = path.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def stem_of(path: str) -> str:
    """The path without its suffix."""
    return path[: len(path) - len(suffix_of(path))]
