"""Every error that Kintsugi raises on purpose, on one page.

A message says what was expected, what was found and how to mend it, in one or two sentences: the command line prints it
as it stands, without a traceback, and exits with `exit_code`. What a *model* does wrong is never an error: it is a
verdict on the episode (see `records.Verdict`). Programming mistakes are left as the exceptions that Python raises.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KintsugiError(Exception):
    """Base of all errors that a user can mend. `exit_code` is what the command line exits with."""

    exit_code = 1


class ConfigError(KintsugiError):
    """A recipe, option or override is not what its schema says."""

    exit_code = 2


class MissingExtra(KintsugiError):
    """A part is used whose packages are not installed; the message names the extra that brings them."""

    exit_code = 3


class DataError(KintsugiError):
    """A data folder or file is missing or is not in the official schema."""

    exit_code = 4


class MissingSplit(DataError):
    """The data have no such split (no file of it, no record of it); they may have others. Never a malformed record."""


class LedgerError(KintsugiError):
    """The ledger cannot be opened, read or written."""

    exit_code = 5


class PolicyError(KintsugiError):
    """A model cannot be loaded or reached, or its chat template cannot be trained on."""

    exit_code = 6


class ContextTooLong(PolicyError):
    """A chat has outgrown what its model takes; over several turns this ends the attempt, not the run."""


class SandboxError(KintsugiError):
    """No sandbox of the asked kind can be opened, or it broke twice in a row."""

    exit_code = 7


class RunError(KintsugiError):
    """A run folder cannot be created, resumed or trusted."""

    exit_code = 8


class LearningError(KintsugiError):
    """A run is not worth going on with: a warm start outside its band, held-out tasks in training, no rows to learn."""

    exit_code = 9


def nearest(name: str, known: Iterable[str]) -> str:
    """The half-sentence that names the closest known word, or lists all of them when none is close.

    >>> nearest("enviornment", ["environment", "policy"])
    'did you mean "environment"?'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f'did you mean "{close[0]}"?'
    return "known: " + (", ".join(names) if names else "none")


def missing_extra(what: str, extra: str) -> MissingExtra:
    """The error for a part whose packages are not installed."""
    return MissingExtra(f'{what} needs packages that are not installed: pip install "kintsugi-agents[{extra}]"')
