"""What to type here for the flags of other programs: ultralytics, detectron2, mmdetection, torchvision's references.

`--lr 0.01` is answered with `--learning-rate 0.01`, not with the flag that has the nearest letters. The answers are in
`peers.yaml`.
"""

import re
import sys
from collections.abc import Sequence
from importlib.resources import files

import yaml
from cyclopts import UnknownOptionError

from focaldet.cli.output import say

OLD_FLAGS = {
    "--licence": "--license",
    "--picture-px": "--image-px",
    "--augment.recolour": "--augment.recolor",
    "--augment.keep-boxes=centre": "--augment.keep-boxes=center",
}


def explain(error: Exception, arguments: Sequence[str]) -> str | None:
    """What to type instead of the flag that `error` refused, or of a word such as `epochs=3`.

    None where no other program has such a flag.
    """
    if isinstance(error, UnknownOptionError):
        flag = (error.token.keyword or error.token.value).partition("=")[0]
        answer = _answer(arguments[0], flag, _typed_value(flag, arguments))
        return answer and f"{flag}: {_answer_text(answer)}"
    assignments = [argument for argument in arguments[1:] if re.match(r"[a-z][a-z0-9_.]*=", argument)]
    if any(assignment in str(error) for assignment in assignments):
        name, _, value = assignments[0].partition("=")
        answer = _answer(arguments[0], name, value) or f"--{_flag_words(name)} {value}"
        return f"{assignments[0]}: {_answer_text(answer)}"
    return None


def read_answers() -> list[tuple[str, str, str]]:
    """Commands, the names of a flag in other programs, and what to type here instead."""
    table = yaml.safe_load(files("focaldet.cli").joinpath("peers.yaml").read_text(encoding="utf-8"))
    return [(commands, names, answer) for commands, rows in table.items() for names, answer in rows.items()]


def rename_old(arguments: Sequence[str]) -> list[str]:
    """The arguments with the flags of version 0.1 under their present names, each with a line on stderr."""
    words: list[str] = []
    for argument in arguments:
        if words and words[-1] == "--augment.keep-boxes" and argument == "centre":
            argument = f"{words.pop()}={argument}"  # noqa: PLW2901
        flag, equals, value = argument.partition("=")
        old = argument if argument in OLD_FLAGS else flag
        new = OLD_FLAGS.get(old, old)
        if new != old:
            say(f"focaldet: {old} is now called {new}", file=sys.stderr)
        words.append(new if old == argument else new + equals + value)
    return words


def _answer_text(answer: str) -> str:
    return f"say {answer}" if answer.startswith(("--", "focaldet ", "torchrun ")) else answer


def _answer(command: str, flag: str, value: str) -> str | None:
    name = _flag_words(flag)
    for commands, names, answer in read_answers():
        if command in commands.split() and name in names.split():
            return answer.replace("VALUE", value).replace("FLAG", name)
    return None


def _flag_words(flag: str) -> str:
    return flag.lstrip("-").lower().replace("_", "-")


def _typed_value(flag: str, arguments: Sequence[str]) -> str:
    """What was typed after `flag`; the word VALUE where that is nothing."""
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            following = value if equals else next(iter(arguments[number + 1 :]), "")
            return following if following and not following.startswith("--") else "VALUE"
    return "VALUE"
