"""How a long job is watched: one bar a stage, one line a result.

`Watch` is silent (libraries, tests); `QuietWatch` gives warnings alone (`--quiet`); `RichWatch` draws with rich. Stages
call `begin`, `advance`, `say`, `warn`; nothing else in training prints.
"""

from __future__ import annotations

import sys
from typing import Any


class Watch:
    """Says nothing."""

    def begin(self, what: str, total: int) -> None:
        """A stage of `total` pieces begins."""

    def advance(self, num: int = 1, note: str = "") -> None:
        """`num` more pieces are done; `note` is shown beside the bar."""

    def say(self, line: str) -> None:
        """A result worth keeping on the screen."""

    def warn(self, line: str) -> None:
        """Something that did not go as it was meant to, and that whoever wants quiet wants to know too."""
        self.say(line)

    def close(self) -> None:
        """The job is over, whichever way."""


class QuietWatch(Watch):
    """Warnings alone, on standard error."""

    def warn(self, line: str) -> None:
        print(line, file=sys.stderr)


class RichWatch(Watch):
    """A live progress bar on the terminal, results above it."""

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = console or Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        self._task: Any = None
        self.progress.start()

    def begin(self, what: str, total: int) -> None:
        if self._task is not None:
            self.progress.remove_task(self._task)
        self._task = self.progress.add_task(what, total=total, note="")

    def advance(self, num: int = 1, note: str = "") -> None:
        if self._task is not None:
            fields: dict[str, Any] = {"note": note} if note else {}
            self.progress.update(self._task, advance=num, **fields)

    def say(self, line: str) -> None:
        self.progress.console.print(line, highlight=False)

    def close(self) -> None:
        self.progress.stop()
