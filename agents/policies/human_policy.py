"""A person as a policy: the chat is shown in the terminal, and what is typed is the answer.

    policy = open_policy()                  # an answer ends with an empty line
    policy = open_policy(multi_line=False)  # one line an answer, as in text games

Only messages not shown before are shown. Requests wait for each other, so that many episodes can share one person.
Ctrl-D (end of input) raises PolicyError "stopped by the person". Left out: editing, history, scores.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from kintsugi.agents.policies.policy import ChatMessage, Completion, Request
from kintsugi.agents.policies.stop_strings import cut_at_stop
from kintsugi.errors import PolicyError


class HumanPolicy:
    """Asks whoever sits at the terminal.

    read: gives one line for a prompt, raises EOFError at the end of input (`input` by default). console: a
    `rich.console.Console` to show the chat on.
    """

    name = "human"
    version = "human"

    def __init__(
        self, *, multi_line: bool = True, read: Callable[[str], str] | None = None, console: Any = None
    ) -> None:
        self._multi_line, self._read, self._console = multi_line, read or input, console
        self._shown: tuple[ChatMessage, ...] = ()
        self._turn = threading.Lock()
        """Held in the waiting thread, not in an event loop: it works from several loops."""

    async def complete(self, request: Request) -> list[Completion]:
        """`request.n` answers, asked one after another. Raises PolicyError when the person stops."""
        return await asyncio.to_thread(self._complete, request)

    async def score(self, request: Request, completion: str) -> tuple[float, ...]:
        raise PolicyError("a person gives no log-probabilities: score with a model.")

    async def close(self) -> None:
        return None

    def _complete(self, request: Request) -> list[Completion]:
        with self._turn:
            self._show(request)
            answers = []
            for number in range(1, request.n + 1):
                label = f"answer {number} of {request.n}> " if request.n > 1 else "> "
                typed = self._ask(label).removeprefix(request.prefill)
                answers.append(Completion(text=cut_at_stop(typed, request.sampling.stop)[0]))
            return answers

    def _ask(self, label: str) -> str:
        lines: list[str] = []
        try:
            while True:
                line = self._read(label if not lines else "… ")
                if not self._multi_line:
                    return line
                if not line and lines:
                    return "\n".join(lines)
                if line:
                    lines.append(line)
        except EOFError:
            raise PolicyError("stopped by the person") from None

    def _show(self, request: Request) -> None:
        from rich.console import Console
        from rich.panel import Panel
        from rich.text import Text

        console = self._console if self._console is not None else Console()
        known = len(self._shown) if request.messages[: len(self._shown)] == self._shown else 0
        for message in request.messages[known:]:
            console.print(Panel(Text(message["content"]), title=message["role"], title_align="left"))
        if request.prefill:
            console.print(Panel(Text(request.prefill), title="the answer begins with", title_align="left"))
        if self._multi_line:
            console.print(Text("An empty line ends the answer, Ctrl-D stops.", style="dim"))
        self._shown = request.messages


def open_policy(
    *, multi_line: bool = True, read: Callable[[str], str] | None = None, console: Any = None
) -> HumanPolicy:
    """A person at this terminal; see `HumanPolicy`."""
    return HumanPolicy(multi_line=multi_line, read=read, console=console)
