"""The screen of `kintsugi play`: what is shown of a session, what can be typed, and what it does.

Enter goes on, text is said, `:word` is a command; `::text` says text that begins with a colon. At a terminal a wrong
command is one sentence and the session goes on; commands from a pipe end at the first wrong one. 80 columns.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from kintsugi.cli.visible_text import visible
from kintsugi.errors import ConfigError, KintsugiError, nearest
from kintsugi.graphs.play_file import SESSIONS
from kintsugi.graphs.play_point import Point
from kintsugi.graphs.playing import PlaySession
from kintsugi.records import Action, Critique, Message, Observation, Verdict

COMMANDS = {
    "help": ("", "these lines"),
    "step": ("", "run one node, whatever the pauses are"),
    "edit": ("[TEXT]", "change what was just proposed, in an editor or to TEXT"),
    "end": ("", "run to the end (or to your turn)"),
    "again": ("", "ask the policy for another proposal"),
    "back": ("[N]", "stand N points further back (1)"),
    "branch": ("N", "stand at point N, of whatever line, and go on from there"),
    "lines": ("", "the ways gone so far"),
    "line": ("NAME", "stand at the end of a line"),
    "history": ("", "every point of this line"),
    "show": ("[N]", "point N (this one) again, in full"),
    "graph": ("", "this line on the episode graph"),
    "state": ("", "the episode's state as JSON"),
    "pause": ("[WHERE…]", "every, none, before:NODE, after:NODE; alone: as it is"),
    "commit": ("RUN", 'add this line to a run\'s ledger, with the purpose "play"'),
    "quit": ("", "leave; the session is saved at every point anyway"),
}
COLOURS = {"agent": "blue", "environment": "cyan", "refiner": "yellow", "reflector": "yellow", "": "cyan"}


class Leave(Exception):
    """The person leaves the session."""


class Screen:
    """Shows sessions and takes commands. folder: of the sessions, for the words on how to come back. quiet: shows nothing
    (a script that wants JSON)."""

    def __init__(self, folder: Path = SESSIONS, *, quiet: bool = False) -> None:
        self.folder, self.quiet = folder, quiet
        self.typed = sys.stdin.isatty() and not quiet
        # Rich would take the width of a pipe's reader for 80 and a wide terminal's as it is; messages read best at 80.
        self.console = Console(width=min(80, Console().width), highlight=False, quiet=quiet)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def play(self, session: PlaySession, runner: asyncio.Runner, *, fresh: bool) -> None:
        """Take commands until the person leaves. Ctrl-C raises KeyboardInterrupt after saying how to come back."""
        self.session, self.runner = session, runner
        try:
            self._begin(fresh)
            while True:
                try:
                    self._obey(self._ask(self._prompt()))
                except KintsugiError as error:
                    if not self.typed:
                        raise
                    self._line(f"error: {error}", "red")
        except (Leave, EOFError):
            self._bye()
        except (KeyboardInterrupt, KintsugiError):
            self._bye(err=True)
            raise

    def note(self, text: str) -> None:
        self._line(text, "dim")

    def _begin(self, fresh: bool) -> None:
        session = self.session
        head = f"session {session.id} · {session.task.environment} · {session.task.id} · {session.actor} acts"
        self._line(head if len(head) <= 80 else f"{head[:79]}…", "bold")
        self._line("Enter goes on, text is said instead, :help, Ctrl-C leaves (all is saved)", "dim")
        if fresh or session.point.number == 0:
            opening = self.runner.run(session.opening()) if session.waits else session.task.prompt
            self._rule("0 the task", "cyan")
            self._text(opening, "cyan")
        else:
            for point in session.way[-4:]:
                self._show(point)
        stops = session.config.pauses
        if fresh and not session.waits and "every" not in stops and f"before:{session.point.next}" not in stops:
            self.runner.run(session.go(self._show))

    def _obey(self, line: str) -> None:
        """Do what a line says."""
        if line.startswith(":") and not line.startswith("::"):
            word, _, rest = line[1:].strip().partition(" ")
            full = word if word in COMMANDS else next((name for name in COMMANDS if word and name.startswith(word)), "")
            if not full:
                raise ConfigError(f'no command is called ":{word}": {nearest(word, COMMANDS)}')
            getattr(self, f"_do_{full}")(rest.strip())
        elif line.strip():
            self._say(self._rest_of(line.removeprefix(":") if line.startswith("::") else line))
        elif self.session.waits:
            raise ConfigError("it is your turn: type what to do (:help names the commands)")
        elif self.session.point.over:
            raise ConfigError("the episode is over: :back, :branch N, :commit RUN or :quit")
        else:
            self.runner.run(self.session.go(self._show))

    def _say(self, text: str) -> None:
        """Say it, show it, and let the others answer."""
        self._show(self.runner.run(self.session.say(text)))
        self.runner.run(self.session.go(self._show))

    # -- typing --------------------------------------------------------------------------------------------------------

    def _prompt(self) -> str:
        point = self.session.point
        if point.over:
            return f"[{point.number}, over] "
        if self.session.waits:
            return f"[{point.number}, you: turn {point.turn + 1}] " if point.next == "agent" else f"[{point.number}, you] "
        return f"[{point.number}, {point.next} next] "

    def _ask(self, prompt: str) -> str:
        if self.typed:
            import readline  # noqa: F401  line editing and history for `input`

            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        line = line.rstrip("\r\n")
        self._line(prompt + line, "dim")
        return line

    def _rest_of(self, first: str) -> str:
        """Programs have several lines: an empty one ends them."""
        if self.session.environment.max_turns > 1:
            return first
        lines = [first]
        while True:
            try:
                line = self._ask("… ")
            except EOFError:
                break
            if not line:
                break
            lines.append(line)
        return "\n".join(lines)

    # -- commands ------------------------------------------------------------------------------------------------------

    def _do_help(self, rest: str) -> None:
        self._line("Enter             go on to the next pause, with what was proposed")
        self._line("TEXT              say TEXT instead, and go on (::TEXT says :TEXT)")
        for name, (takes, does) in COMMANDS.items():
            self._line(f":{name} {takes}".ljust(18) + does)
        self._line("A command's first letters are enough.", "dim")

    def _do_step(self, rest: str) -> None:
        self._show(self.runner.run(self.session.step()))

    def _do_end(self, rest: str) -> None:
        self.runner.run(self.session.finish(self._show))

    def _do_edit(self, rest: str) -> None:
        proposal = self.session.point.proposal
        if proposal is None:
            raise ConfigError("there is nothing to edit here: step to the agent first, or type what to say")
        if not rest and not self.typed:
            raise ConfigError("expected :edit TEXT: without a terminal there is no editor")
        edited = _editor if "\n" in proposal.text else _prefilled
        text = self._rest_of(rest) if rest else edited(proposal.text)
        self._show(self.runner.run(self.session.edit(text)))
        self.runner.run(self.session.go(self._show))

    def _do_again(self, rest: str) -> None:
        self._show(self.runner.run(self.session.again()))

    def _do_back(self, rest: str) -> None:
        self._show(self.runner.run(self.session.back(_number(rest, 1))))

    def _do_branch(self, rest: str) -> None:
        self._show(self.runner.run(self.session.branch(_number(rest))))

    def _do_lines(self, rest: str) -> None:
        shown: set[int] = set()
        for line in self.session.lines:
            own = [number for number in line.points if number not in shown]
            shown |= set(line.points)
            end = self.session.points[line.end]
            whence = f"points {own[0]}-{own[-1]}" + (f" after {self.session.points[own[0]].parent}" if own[0] else "")
            state = ", ".join(end.stops) if end.over else f"turn {end.turn}, {end.next} next"
            here = "▸" if self.session.point.number in own else " "
            self._line(f"{here} line {line.name:<3} {whence:<24} {state}")

    def _do_line(self, rest: str) -> None:
        found = {line.name: line for line in self.session.lines}
        if rest.upper() not in found:
            raise ConfigError(f'no line is called "{rest}": known are {", ".join(found)}')
        self._show(self.runner.run(self.session.branch(found[rest.upper()].end)))

    def _do_history(self, rest: str) -> None:
        for point in self.session.way:
            message = point.said[-1] if point.said else None
            said = _short(message) if message is not None else "the task"
            by = " (human)" if point.by == "human" else ""
            head = f"{point.number:>4} {(point.node or 'start') + by:<16} "
            line = Text(head + visible(said), style=COLOURS[point.node])
            line.truncate(self.console.width - 1, overflow="ellipsis")
            self.console.print(line)

    def _do_show(self, rest: str) -> None:
        number = _number(rest, self.session.point.number)
        if not 0 <= number < len(self.session.points):
            raise ConfigError(f"expected a point from 0 to {len(self.session.points) - 1}, found {number}")
        self._show(self.session.points[number])

    def _do_graph(self, rest: str) -> None:
        from kintsugi.graphs.drawing import as_text, picture_of, with_path

        point = self.session.point
        picture = with_path(picture_of(self.session.graph), point.state["path"], over=point.over)
        marked = [replace(node, label=f"{node.text} (next)") if node.id == point.next else node for node in picture.nodes]
        picture = replace(picture, nodes=tuple(marked))
        self.console.print(Text(as_text(picture, self.console.width)))

    def _do_state(self, rest: str) -> None:
        self.console.print(Text(json.dumps(self.session.point.state, indent=1, ensure_ascii=False)))

    def _do_pause(self, rest: str) -> None:
        if rest:
            self.session.pause_at(*(word for word in rest.replace(",", " ").split() if word != "none"))
        self._line(f"stops at: {', '.join(self.session.config.pauses) or 'none'}", "dim")

    def _do_commit(self, rest: str) -> None:
        if not rest:
            raise ConfigError("expected :commit RUN: name a run folder, or a file that ends in .sqlite")
        run_id = ""
        if (Path(rest) / "run.json").exists():
            from kintsugi.training.run_folder import RunFolder

            run_id = RunFolder.open(Path(rest)).info().get("run_id", "")
        episode = self.session.commit(rest, run_id)
        self._line(f"committed; look at it: kintsugi episodes show {rest} {episode.id[:8]}", "green")

    def _do_quit(self, rest: str) -> None:
        raise Leave

    # -- showing -------------------------------------------------------------------------------------------------------

    def _show(self, point: Point) -> None:
        """What is new at a point."""
        who = point.node or "the task"
        turn = f", turn {point.turn}" if point.node == "agent" else ""
        by = ", said by a person" if point.by == "human" else ""
        attempt = f", attempt {point.attempt}" if point.attempt else ""
        self._rule(f"{point.number} {who}{attempt}{turn}{by}", "magenta" if by else COLOURS.get(point.node, "cyan"))
        if not point.node:
            self._text(self.session.task.prompt, "cyan")
        for message in point.said:
            if isinstance(message, Observation) and message.text == self.session.task.prompt:
                continue  # every attempt begins with it, and it was shown as the task
            self._message(message)
        if point.state["current"] is None and point.state["attempts"]:
            for crash in point.state["attempts"][-1].get("crashes", ()):
                self._text(crash, "magenta", mark="the environment broke: ")

    def _message(self, message: Message) -> None:
        match message:
            case Observation():
                self._text(message.text)
            case Action():
                self._text(message.text, "bold", mark="> ", given=len(message.prefill))
                if message.tokens is not None and message.tokens.logprobs:
                    mean = sum(message.tokens.logprobs) / len(message.tokens.logprobs)
                    self._line(f"   {len(message.tokens.completion_ids)} tokens, mean log-prob {mean:.2f}", "dim")
            case Critique():
                self._text(message.text, "yellow", mark=f"{message.author}: ")
                self._text(message.note, "dim")
            case Verdict():
                word = f"error: {message.error}" if message.error else "success" if message.success else "failure"
                detail = "".join(f", {name} {value:g}" for name, value in message.detail.items())
                colour = "magenta" if message.error else "green" if message.success else "red"
                self._text(f"{word}, reward {message.reward:g}{detail}", f"bold {colour}", mark="= ")
                self._text(message.feedback, colour)
                if message.fault is not None:
                    self._text(f"objected to: {message.fault.bad}  ({message.fault.note})", colour)

    def _text(self, text: str, style: str = "", *, mark: str = "   ", given: int = 0) -> None:
        """Wrapped and indented. The first `given` characters are dimmed."""
        if not text:
            return
        body = Text(visible(text), style=style)
        body.stylize("dim", 0, given)
        body.expand_tabs(4)
        indent = " " * len(mark)
        for number, line in enumerate(body.wrap(self.console, self.console.width - len(mark) - 1)):
            line.rstrip()
            self.console.print(Text(mark if not number else indent, style=style) + line)

    def _rule(self, title: str, colour: str) -> None:
        line = f"── {title} "
        self._line(line + "─" * max(0, self.console.width - 1 - len(line)), colour)

    def _line(self, text: str, style: str = "") -> None:
        self.console.print(Text(visible(text), style=style), soft_wrap=len(text) > self.console.width)

    def _bye(self, *, err: bool = False) -> None:
        """How to come back; on standard error when something else is the matter, or when standard output is a script's."""
        folder = "" if self.folder == SESSIONS else f" --sessions {shlex.quote(str(self.folder))}"
        text = f"saved at point {self.session.point.number}; come back: kintsugi play --resume {self.session.id}{folder}"
        if err or self.quiet:
            print(("\n" if self.typed else "") + text, file=sys.stderr)
        else:
            self._line(("\n" if self.typed else "") + text, "dim")


def _number(text: str, otherwise: int | None = None) -> int:
    if not text and otherwise is not None:
        return otherwise
    if not text.isdigit():
        raise ConfigError(f'expected a number, found "{text}": :history shows the points')
    return int(text)


def _short(message: Message) -> str:
    """A message on one line."""
    match message:
        case Action():
            return "> " + " ".join(message.text.split())
        case Verdict():
            return f"= {'error' if message.error else 'success' if message.success else 'failure'}: {message.feedback}"
        case _:
            return " ".join(message.text.split())


def _prefilled(text: str) -> str:
    """One line, edited at the prompt."""
    import readline

    readline.set_startup_hook(lambda: readline.insert_text(text))
    try:
        return input("edit: ") or text
    finally:
        readline.set_startup_hook(None)


def _editor(text: str) -> str:
    """Several lines, edited in $VISUAL or $EDITOR."""
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "action.txt"
        path.write_text(text + "\n", encoding="utf-8")
        try:
            done = subprocess.run([*command, str(path)], check=False)
        except OSError as error:
            raise ConfigError(f"{command[0]} cannot be started ({error.strerror}): set EDITOR, or type :edit TEXT") from None
        if done.returncode:
            raise ConfigError(f"{command[0]} ended with {done.returncode}: nothing was changed")
        return path.read_text(encoding="utf-8").rstrip("\n")
