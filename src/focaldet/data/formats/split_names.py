"""The names that tools give to splits, and which of training, validation and test each stands for."""

import re
from collections.abc import Iterable
from typing import Literal

Role = Literal["train", "val", "test"]

ALIASES: dict[Role, tuple[str, ...]] = {
    "train": ("train", "training", "trainval", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
"""The names of each role in the order in which they are preferred."""

UNNAMED = ("all", "default")
"""Names that say nothing: such a split is trained on where no other is."""

_ROLES: dict[str, Role] = {alias: role for role, aliases in ALIASES.items() for alias in aliases}
_YEAR = re.compile(r"[\s_.-]*(\d{4})$")
_NO_LETTER = re.compile(r"[^a-z]+")


def role_of(name: str) -> Role | None:
    """What a split of this name is for, in any case and with a year: `Train`, `val2017`; or with other words around it:
    `obj_train_data`. None where the name does not say.
    """
    plain = _YEAR.sub("", name.casefold())
    if plain in _ROLES:
        return _ROLES[plain]
    roles = {_ROLES[word] for word in _NO_LETTER.split(plain) if word in _ROLES}
    if "test" in roles:  # such as COCO's test-dev
        return "test" if "train" not in roles else None
    return "train" if "train" in roles else "val" if roles else None


def split_word(name: str) -> str | None:
    """The part of a name that says which split it is, as it spells it: `Train` of `my-Train_v2`; None where none does.

    A name that is nothing but such a word, with or without a year, is taken whole.
    """
    if role_of(name) is None or _YEAR.sub("", name.casefold()) in _ROLES:
        return name if role_of(name) else None
    role = role_of(name)
    words = [word for word in re.split(r"[^A-Za-z]+", name) if _ROLES.get(word.casefold()) == role]
    return words[0] if words else name


def role_in_path(path: str) -> str | None:
    """The first folder on a path (with "/" between its parts) that names a split; None where none does.

    A folder that is exactly such a name goes before one that merely has it in it.
    """
    folders = path.split("/")[:-1]
    exact = (folder for folder in folders if _YEAR.sub("", folder.casefold()) in _ROLES)
    return next(exact, next((folder for folder in folders if role_of(folder)), None))


def pick(names: Iterable[str], role: Role) -> str | None:
    """The best of these names for a role; for training a single split, or one called `all` or `default`, if need be."""
    every = list(names)
    fitting = [name for name in every if role_of(name) == role]
    if role == "train" and not fitting:
        unnamed = [name for name in every if role_of(name) is None]
        fitting = unnamed if len(unnamed) == 1 else [name for name in unnamed if name.casefold() in UNNAMED]
    return min(fitting, key=lambda name: _rank(name, role), default=None)


def _rank(name: str, role: Role) -> tuple[int, int, int, str]:
    """Plain names go before those with a year, the latest first, and these before those with other words."""
    plain, year = _YEAR.sub("", name.casefold()), _YEAR.search(name)
    kind = 2 if plain not in ALIASES[role] else 1 if year else 0
    return kind, ALIASES[role].index(plain) if kind < 2 else 0, -int(year[1]) if year else 0, name
