"""Programs of commands for a web page: parsed here, executed by nobody but the page's driver.

    parsed = parse_commands('agent.click_xpath("//button[@id=\\'subbtn\\']")')
    for command in parsed.commands: ...

A program is lines of `agent.NAME(…)` in Python's spelling, with literal arguments only. It is read with `ast`, never
run: whatever is not one of these calls is an `Objection` with its line.

| command | |
|---|---|
| `agent.click_xpath(xpath)` | click the first element that the XPath finds |
| `agent.click_option(xpath)` | choose an option of a list |
| `agent.movemouse(xpath)` | move the mouse over it |
| `agent.type(text)` | type into what has the focus |
| `agent.press(key, times=1)` | press a key, such as "enter", "arrowright", "backspace", "ctrl+a" |

`clickxpath`, `clickoption` and names without `agent.` are understood too. Source of the commands: ENVISIONS (arXiv
2406.11736), after RCI (arXiv 2303.17491). Left out: variables, loops, functions; `times` is there instead.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Final

from kintsugi.errors import nearest
from kintsugi.sandboxes.environments.printed_number import is_text, readable
from kintsugi.sandboxes.environments.program_of_thought import (
    MAX_CHARACTERS,
    Objection,
    Program,
    find_program,
    parse_program,
)

MAX_COMMANDS: Final = 100
MAX_XPATH: Final = 300
MAX_TEXT: Final = 1_000
MAX_STROKES: Final = 2_000
"""Keys that one program may press, letters of what it types included."""

_ARGUMENTS: Final = {
    "click_xpath": ("xpath",),
    "click_option": ("xpath",),
    "movemouse": ("xpath",),
    "type": ("text",),
    "press": ("key", "times"),
}
_OTHER_NAMES: Final = {"clickxpath": "click_xpath", "clickoption": "click_option", "move_mouse": "movemouse"}
KEYS: Final = {
    "enter": "Enter", "return": "Enter", "tab": "Tab", "space": " ", "escape": "Escape", "esc": "Escape",
    "backspace": "Backspace", "delete": "Delete", "home": "Home", "end": "End", "pageup": "PageUp", "pagedown": "PageDown",
    "arrowleft": "ArrowLeft", "arrowright": "ArrowRight", "arrowup": "ArrowUp", "arrowdown": "ArrowDown",
    "left": "ArrowLeft", "right": "ArrowRight", "up": "ArrowUp", "down": "ArrowDown",
    "ctrl+a": "all", "ctrl+c": "copy", "ctrl+x": "cut", "ctrl+v": "paste",
}  # fmt: skip
"""What `press` takes, in small letters, and what the driver calls it. One letter, digit or sign is a key as well."""
_DEEP: Final = re.compile(r"//|\b(?:descendant|ancestor|following|preceding)")
MAX_DEEP: Final = 8
MAX_NESTED: Final = 2


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command. name: as in the table. text: its XPath, text or key. times: presses. line: from 1, in the program."""

    name: str
    text: str
    times: int = 1
    line: int = 1

    def __str__(self) -> str:
        more = f", {self.times}" if self.times != 1 else ""
        return f"agent.{self.name}({readable(repr(self.text), 120)}{more})"


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """program: where the commands stand in the action. objection: why there are no commands."""

    program: Program
    commands: tuple[Command, ...] = ()
    objection: Objection | None = None


def parse_commands(action: str) -> Parsed:
    """The commands of an action: of its last code block, or of all of it. Never raises, never executes anything."""
    if len(action) > MAX_CHARACTERS:
        text = f"The program is too long: write at most {MAX_CHARACTERS} characters."
        return Parsed(program=find_program(""), objection=Objection(text=text))
    program = find_program(action)
    if not program.source.strip():
        return Parsed(program=program, objection=Objection(text=_told("The answer holds no commands")))
    tree = parse_program(program.source)
    if isinstance(tree, Objection):
        return Parsed(program=program, objection=Objection(text=_told(tree.text), line=tree.line, note="syntax"))
    if not tree.body:
        return Parsed(program=program, objection=Objection(text=_told("The answer holds no commands")))
    commands: list[Command] = []
    for statement in tree.body:
        found = _command(statement)
        if isinstance(found, Objection):
            return Parsed(program=program, objection=found)
        commands.append(found)
    return Parsed(program=program, commands=tuple(commands), objection=_too_much(commands))


def _told(what: str) -> str:
    """An objection, and what a program looks like."""
    end = "" if what.endswith(("?", ".")) else "."
    return f'{what}{end} Write lines such as agent.click_xpath("//button") or agent.type("text"), and nothing else.'


def _command(statement: ast.stmt) -> Command | Objection:
    line = statement.lineno
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        kind = type(statement.value if isinstance(statement, ast.Expr) else statement).__name__.lower()
        return _objection(line, f"expected a command, found other Python ({kind})", "no command")
    call = statement.value
    function = call.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "agent":
        written = function.attr
    elif isinstance(function, ast.Name):
        written = function.id
    else:
        return _objection(line, "expected a command of agent, found another call", "no command")
    name = _OTHER_NAMES.get(written, written)
    if name not in _ARGUMENTS:
        return _objection(line, f"agent.{readable(written, 40)} is no command; {nearest(written, _ARGUMENTS)}", "no command")
    given = _given(call, _ARGUMENTS[name])
    if isinstance(given, str):
        return _objection(line, f"agent.{name}: {given}", "arguments")
    text, times = str(given[_ARGUMENTS[name][0]]), given.get("times", 1)
    wrong = _wrong(name, text, times)
    if wrong is not None:
        return _objection(line, f"agent.{name}: {wrong}", "arguments")
    return Command(name=name, text=text, times=int(times), line=line)


def _given(call: ast.Call, names: tuple[str, ...]) -> dict[str, str | int] | str:
    """Arguments by name, or what is wrong with them."""
    if len(call.args) > len(names):
        return f"expected {' and '.join(names)}, found {len(call.args)} arguments"
    pairs: list[tuple[str | None, ast.expr]] = list(zip(names, call.args, strict=False))
    pairs += [(keyword.arg, keyword.value) for keyword in call.keywords]
    found: dict[str, str | int] = {}
    for name, value in pairs:
        if name is None or name not in names or name in found:
            return f"expected {' and '.join(names)}, found {readable(name or '**', 40)} besides"
        plain = value.value if isinstance(value, ast.Constant) else None
        if not isinstance(plain, str | int) or isinstance(plain, bool) or (isinstance(plain, int) and plain >= 10**15):
            wanted = "a whole number" if name == "times" else "plain text in quotes"
            return f"expected {name} as {wanted}, found something else ({type(value).__name__.lower()})"
        found[name] = plain
    if names[0] not in found:
        return f"expected {names[0]}, found no argument"
    return found


def _wrong(name: str, text: str, times: str | int) -> str | None:
    """What is wrong with a command's arguments."""
    if not is_text(text) or any(not char.isprintable() and char not in "\n\t" for char in text):
        return "expected text that a keyboard has, found control characters"
    if name == "type":
        return f"expected at most {MAX_TEXT} characters, found {len(text)}" if len(text) > MAX_TEXT else None
    if name == "press":
        if text.lower().replace("command", "ctrl").replace("control", "ctrl") not in KEYS and len(text) != 1:
            return f'unknown key "{readable(text, 40)}"; {nearest(text.lower(), KEYS)}'
        if type(times) is not int or not 1 <= times <= MAX_TEXT:
            return f"expected times as a whole number from 1 to {MAX_TEXT}, found {readable(repr(times), 40)}"
        return None
    if not text.strip():
        return "expected an XPath, found nothing"
    if len(text) > MAX_XPATH:
        return f"expected an XPath of at most {MAX_XPATH} characters, found {len(text)}"
    if len(_DEEP.findall(text)) > MAX_DEEP or _depth(text) > MAX_NESTED:
        return f"expected an XPath with at most {MAX_DEEP} // and brackets at most {MAX_NESTED} deep: shorten it"
    return None


def _depth(xpath: str) -> int:
    """How deep its brackets are nested, those in quotes not counted: what a page needs for it grows with a power of this."""
    depth = deepest = 0
    for char in re.sub(r"'[^']*'|\"[^\"]*\"", "", xpath):
        depth += (char == "[") - (char == "]")
        deepest = max(deepest, depth)
    return deepest


def _too_much(commands: list[Command]) -> Objection | None:
    if len(commands) > MAX_COMMANDS:
        return _objection(commands[MAX_COMMANDS].line, f"more than {MAX_COMMANDS} commands", "too many")
    strokes = 0
    for command in commands:
        strokes += {"type": len(command.text), "press": command.times}.get(command.name, 0)
        if strokes > MAX_STROKES:
            return _objection(command.line, f"more than {MAX_STROKES} keys are pressed", "too many")
    return None


def _objection(line: int, what: str, note: str) -> Objection:
    return Objection(text=_told(f"Line {line}: {what}"), line=line, note=note)
