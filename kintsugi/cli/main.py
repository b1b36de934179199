"""`kintsugi`: the command line. Each command is one file here and one documented call in Python (`import kintsugi`).

A KintsugiError is printed as its one sentence and becomes the exit code it carries; so is a full or read-only disk. A
command's module is imported when that command is called, so `kintsugi --help` needs no torch.
"""

from __future__ import annotations

import errno
import sys
import warnings
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from kintsugi.errors import KintsugiError

COMMANDS = {
    "train": "Run a recipe's self-training rounds, or go on with a run.",
    "eval": "Held-out success of a model, a run's champion or an endpoint.",
    "play": "Watch an episode message by message and steer it, or act yourself.",
    "graph": "Draw the episode graph or the round graph.",
    "episodes": "List, show and export the episodes of a run.",
    "report": "Draw a run's evolution curve and write its page; compare runs.",
    "recipes": "List the bundled recipes, or print one.",
    "environments": "List environments with data, splits and metric; check one, or your own.",
    "data": "Fetch an environment's official data, where there is a network.",
    "serve": "Answer the OpenAI protocol with a trained policy.",
    "doctor": "What this machine has, what is missing and how to get it.",
}


class _Lazy(TyperGroup):
    """Finds a command's module when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"kintsugi.cli.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        command.short_help = COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    cls=_Lazy,
    name="kintsugi",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    invoke_without_command=True,
)


@app.callback()
def _root() -> None:
    """Agents that train themselves on their own repaired mistakes.

    Example: kintsugi train demo
    """


_NO_PLACE = (errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""What is in the way of a file that a person named."""


def _note(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"note: {message}", file=sys.stderr)


def main() -> None:
    """Entry point: exit code 0, or the error's own after one clear sentence on standard error."""
    warnings.showwarning = _note  # without the file and line of our own code, which help nobody here
    try:
        app(standalone_mode=True)
    except KintsugiError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT)
        if not full and (error.errno not in _NO_PLACE or error.filename is None):
            raise
        where = f" {error.filename}" if error.filename else ""
        mend = "free space or choose another folder" if full else "choose another place"
        print(f"error: cannot write{where} ({error.strerror}): {mend}", file=sys.stderr)
        sys.exit(8)
