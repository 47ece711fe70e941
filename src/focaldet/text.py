"""Text that others wrote, such as names of files, classes and tensors: how it is shown, and how it is stored."""

from collections.abc import Sequence

LONGEST_SHOWN, LONGEST_MESSAGE = 200, 2000


def printable(text: object, *, most: int = LONGEST_SHOWN, keep: str = "") -> str:
    """`text` in one line that every terminal can show, of at most `most` characters, the middle left out.

    Control characters, escapes of terminals, marks that turn the direction of writing and lone surrogates (which stand
    for the bytes of a name that is not UTF-8) are written as Python escapes them. `keep` are characters that stay, such
    as the line break.
    """
    whole = str(text)
    shown = _escape(whole if len(whole) <= most else f"{whole[:most]}…{whole[-most:]}", keep)
    if len(shown) <= most and len(whole) <= most:
        return shown
    head = (most - 1) // 2
    return f"{_escape(whole[:most], keep)[:head]}…{_escape(whole[-most:], keep)[head + 1 - most :]}"


def storable(text: str) -> str:
    r"""`text` as UTF-8 can hold it: lone surrogates become the six characters of their escape, such as `\udcff`.

    In a text in JSON that is the escape of JSON itself: whoever reads it gets the same name back, and the same file.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_whole(text: str) -> bool:
    """Whether `text` consists of whole characters: UTF-8 can hold it as it is."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def align_columns(rows: Sequence[Sequence[str]], *, left: set[int]) -> list[str]:
    """The rows of a table as lines: columns two spaces apart, at the left where in `left`, else at the right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _escape(text: str, keep: str) -> str:
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else _escape_letter(letter) for letter in text)


def _escape_letter(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
