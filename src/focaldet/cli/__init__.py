"""The command line. Each command is one call into the library; its flags are the fields of the library's own settings.

A user's mistake is one line on stderr and exit status 2. A command's module is imported when the command is called.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from focaldet.cli.output import CLEAN, INTERRUPTED, USAGE, print_error, quiet_unless_first
from focaldet.cli.peers import explain, rename_old
from focaldet.errors import FocaldetError

Switch = Annotated[bool, Parameter(negative="", show_default=False)]
"""A flag that is off unless it is typed."""

COMMANDS = {
    "anchors": ("data:anchors_command", "Compute anchors for your boxes: k-means with the distance 1 - IoU."),
    "check": (
        "data:check_command",
        "Say what is in a data set, what is wrong with it, and how anchors fit its boxes. "
        "Exit status: 0 clean, 1 problems, 2 usage, 3 unreadable.",
    ),
    "convert": ("models:convert_command", "Convert a detector from another program's weights file."),
    "demo": (
        "demo:demo_command",
        "Train a small RetinaNet on the embedded handwriting, evaluate it, draw 12 images and write a report.",
    ),
    "eval": ("evaluate:evaluate_command", "Evaluate a detector, or any COCO result file, with the 12 COCO numbers."),
    "models": (
        "models:models_command",
        "List the detectors: backbone, parameters, published COCO AP where the paper's table 2 has it, input.",
    ),
    "predict": (
        "predict:predict_command",
        "Detect objects in images and draw them. Exit status: 0 done, 1 some images could not be read, 2 usage.",
    ),
    "train": (
        "train:train_command",
        "Train a detector. Exit status: 0 finished, 2 usage, 130 interrupted (saved, continue with --resume).",
    ),
}
STUDIES = {
    "hard": (
        "study:hard_command",
        "Show which objects are easy (green) and which hard (red), and list what looks like errors of the annotations.",
    ),
    "imbalance": (
        "study:imbalance_command",
        "Draw the paper's figure 4 for a detector and data: is the loss in many easy examples or in a few hard ones?",
    ),
    "losses": (
        "study:losses_command",
        "Draw the paper's figures of the losses (1, 5, 6) and the α-balance, with worked examples.",
    ),
    "sweep": (
        "study:sweep_command",
        "Make the paper's tables 1a and 1b on your data: a short training for every γ and α. The same command "
        "continues where it stopped; every flag of `focaldet train` holds for all trainings. "
        "Exit status: 0 finished, 2 usage, 130 interrupted (saved).",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    words = rename_old(sys.argv[1:] if arguments is None else arguments)
    try:
        with quiet_unless_first():
            status = build_app()(words, exit_on_error=False, print_error=False, result_action="return_value")
            sys.stdout.flush()
        return status or CLEAN
    except (FocaldetError, CycloptsError) as error:
        print_error(explain(error, words) or error)
        return USAGE
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE
    except KeyboardInterrupt:
        print("focaldet: interrupted", file=sys.stderr)
        return INTERRUPTED


def build_app() -> App:
    """The commands, none of whose modules is imported yet."""
    app = App(
        name="focaldet",
        help="Train, compare and ship object detectors.",
        version=_version,
        default_parameter=Parameter(name_transform=flag_name, consume_multiple=True),
        suppress_keyboard_interrupt=False,
    )
    study = App(name="study", help="Look at the losses and at your own data as the paper does.")
    for parent, commands in ((app, COMMANDS), (study, STUDIES)):
        for name, (function, text) in commands.items():
            parent.command(f"focaldet.cli.{function}", name=name, help=text)
    app.command(study)
    return app


def flag_name(field: str) -> str:
    """The flag of a field: `bad_boxes` is `bad-boxes`; the input of weights reads as a part of them."""
    return {"weights_input": "weights.input"}.get(field, field.replace("_", "-"))


def _version() -> str:
    from focaldet import __version__

    return __version__
