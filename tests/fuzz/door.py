"""What a door is."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Open = Callable[[Path], object]


class Door(NamedTuple):
    """`path` is the file that is changed, relative to a folder that `prepare` fills; `seeds` are whole files for it."""

    path: str
    seeds: Callable[[Path], list[bytes]]
    open: Open
    is_text: bool = False
