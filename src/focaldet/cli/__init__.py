"""The command line. Each command is one call into the library; its flags are the fields of the library's own settings.

A user's mistake is one line on stderr and exit status 2. A command's module is imported when the command is called.
"""

import os
import sys
from collections.abc import Sequence
from importlib.resources import files
from typing import Annotated

import yaml
from cyclopts import App, CycloptsError, Parameter

from focaldet.allocator import keep_freed_memory
from focaldet.cli.output import (
    CLEAN,
    INTERRUPTED,
    USAGE,
    describe_system_error,
    drop_output,
    open_streams,
    print_error,
    quiet_unless_first,
    say,
)
from focaldet.cli.peers import explain, rename_old
from focaldet.errors import FocaldetError

Switch = Annotated[bool, Parameter(negative="", show_default=False)]
"""A flag that is off unless it is typed."""


TRACEBACK_VARIABLE = "FOCALDET_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    open_streams()
    if arguments is None:  # else the process is another program's
        keep_freed_memory()
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
        drop_output()
        return USAGE
    except OSError as error:  # a full disk, a folder that is gone, no permission
        drop_output()
        print_error(describe_system_error(error))
        return USAGE
    except KeyboardInterrupt:
        say("focaldet: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # a fault of focaldet, or of a file in a way nobody thought of
        if _is_out_of_memory(error):
            print_error(
                f"out of memory: {str(error) or 'the machine has no more'}: take a smaller --size or --batch-size"
            )
            return USAGE
        if os.environ.get(TRACEBACK_VARIABLE) or arguments is not None:  # a program that calls may catch it
            raise
        kind = type(error).__name__
        print_error(f"unexpected {kind}: {error or kind} ({TRACEBACK_VARIABLE}=1 shows where; please report it)")
        return USAGE


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from focaldet.runtime import is_out_of_memory

    return is_out_of_memory(error)


def build_app() -> App:
    """The commands that `commands.yaml` lists, none of whose modules is imported yet."""
    app = App(
        name="focaldet",
        help="Train, compare and ship object detectors.",
        version=_version,
        default_parameter=Parameter(name_transform=flag_name, consume_multiple=True),
        suppress_keyboard_interrupt=False,
    )
    study = App(name="study", help="Look at the losses and at your own data as the paper does.")
    tables = yaml.safe_load(files("focaldet.cli").joinpath("commands.yaml").read_text(encoding="utf-8"))
    for parent in (app, study):
        for name, command in tables[parent.name[0]].items():
            parent.command(f"focaldet.cli.{command['function']}", name=name, help=command["help"])
    app.command(study)
    return app


def flag_name(field: str) -> str:
    """The flag of a field: `bad_boxes` is `bad-boxes`; the input of weights reads as a part of them."""
    return {"weights_input": "weights.input"}.get(field, field.replace("_", "-"))


def _version() -> str:
    from focaldet import __version__

    return __version__
