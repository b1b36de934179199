"""Calls into somebody's environment: what it raises, gives wrongly or never gives becomes one sentence, `Broken`.

    async with time_limit(60):
        played = await attempt(environment, task, ["go north"])     # Attempt(first="You are …", replies=(Reply(…),))

A sentence says what was expected and found, and names the line in the environment's own file. What nobody can play with
(a missing extra, no sandbox) passes through as it is. A blocked event loop is noticed in the main thread alone, by an
alarm; left out: code that swallows its own cancellation, and C code that never comes back to Python.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import signal
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from kintsugi.errors import ConfigError, MissingExtra, PolicyError, SandboxError
from kintsugi.records import Fault, Task, Verdict
from kintsugi.sandboxes.environments.environment import Environment, Reply
from kintsugi.sandboxes.environments.sandboxed import Sandboxed

TIME_LIMIT_S: Final = 60.0
"""Seconds that an environment may take for one answer."""

_PASSED: Final = (MissingExtra, ConfigError, SandboxError, PolicyError)
_LONGEST_TOLD: Final = 200
_limit_s: ContextVar[float | None] = ContextVar("limit_s", default=None)


class Finding(str):
    """A sentence about what is broken. key: the same for what is the same fault ("" where nobody can tell)."""

    key: str = ""


class Broken(Exception):
    """What an environment did against its contract. hung: it gave no answer in time, so that asking on is useless."""

    def __init__(self, text: str, *, key: str = "", hung: bool = False) -> None:
        super().__init__(text)
        self.finding, self.hung = Finding(text), hung
        self.finding.key = key


class Blocked(BaseException):
    """The event loop stood still for too long; raised inside the code that blocks it, past any `except Exception`."""


@dataclass(frozen=True)
class Attempt:
    """first: the first observation; replies: to each action, up to a verdict or `max_turns`."""

    first: str
    replies: tuple[Reply, ...]


# Time ------------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[None]:
    """Answers that are asked for inside may take so long each; code that blocks the event loop is interrupted, too."""
    token = _limit_s.set(seconds)
    before = signal.signal(signal.SIGALRM, _ring) if _has_alarm() else None
    beat = asyncio.create_task(_beat(seconds))
    try:
        _put_off(seconds)
        yield
    finally:
        beat.cancel()
        await asyncio.gather(beat, return_exceptions=True)
        _limit_s.reset(token)
        if _has_alarm():
            _put_off(0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)


@contextmanager
def stretched(times: float) -> Iterator[None]:
    """Answers may take `times` as long here: many are asked for at once."""
    limit_s = _limit_s.get()
    token = _limit_s.set(None if limit_s is None else times * limit_s)
    try:
        yield
    finally:
        _limit_s.reset(token)


async def _beat(seconds: float) -> None:
    """Put the alarm off for as long as the event loop runs."""
    while True:
        _put_off(seconds)
        await asyncio.sleep(seconds / 4)


def _has_alarm() -> bool:
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


def _put_off(seconds: float) -> float:
    """Let the alarm ring in so many seconds (0: never); seconds that were left."""
    return signal.setitimer(signal.ITIMER_REAL, seconds)[0] if _has_alarm() else 0.0


def _ring(signum: int, frame: FrameType | None) -> None:
    _put_off(1.0)  # again, should somebody swallow it
    while frame is not None:
        if frame.f_code in (asked.__code__, called.__code__):
            raise Blocked
        frame = frame.f_back  # and if there is no call into the environment, the machine is merely busy


@contextmanager
def unhurried() -> Iterator[None]:
    """No alarm while tasks are read: a whole release takes its time."""
    left = _put_off(0)
    try:
        yield
    finally:
        if left:
            _put_off(left)


# Asking ----------------------------------------------------------------------------------------------------------------


async def asked(call: Callable[..., Any], *arguments: Any, what: str) -> Any:
    """What `call(*arguments)` gives, awaited. Raises Broken, and what says that nothing can be played here."""
    limit_s = _limit_s.get()
    timer = asyncio.timeout(limit_s)
    if limit_s is not None:
        _put_off(limit_s)  # many quick calls that never wait give `_beat` no turn
    try:
        async with timer:
            given = call(*arguments)
            if not inspect.isawaitable(given):
                name = getattr(call, "__name__", "it")
                found = f"{what} gave {_kind(given)} at once{defined(call)}"
                raise Broken(f"{found}; expected to await it: write `async def {name}`", key=f"sync {name}")
            return await given
    except (*_PASSED, Broken):
        raise
    except Blocked as error:
        _put_off(limit_s or 0)
        raise _late(what, limit_s, f": it blocks the event loop{_line_of(error)}") from None
    except TimeoutError as error:
        if timer.expired():
            raise _late(what, limit_s, _line_of(error.__cause__ or error)) from None
        raise raised(what, error) from error
    except (Exception, SystemExit) as error:  # the very thing under test: whatever it raises is the finding
        raise raised(what, error, call) from error


def called(call: Callable[..., Any], *arguments: Any, what: str, **options: Any) -> Any:
    """What a plain function of the environment gives. Raises Broken for whatever it raises, DataError too."""
    try:
        return call(*arguments, **options)
    except _PASSED:
        raise
    except Blocked as error:
        raise _late(what, _limit_s.get(), _line_of(error)) from None
    except (Exception, SystemExit) as error:
        raise raised(what, error) from error


def _late(what: str, limit_s: float | None, where: str) -> Broken:
    told = f"{what} gave no answer within {limit_s or 0:g} s{where}"
    return Broken(f"{told}; expected one, or a longer time limit (--timeout)", key="late", hung=True)


def raised(what: str, error: BaseException, call: Callable[..., Any] | None = None) -> Broken:
    """The finding that `what` raised `error`."""
    said = " ".join(str(error).split())[:_LONGEST_TOLD]
    where = _line_of(error)
    told = f"{what} raised {type(error).__name__}{': ' if said else ''}{said}"
    if isinstance(error, TypeError) and "'await' expression" in said:
        judge = getattr(getattr(getattr(call, "__self__", None), "environment", None), "judge", None)
        if judge is not None and not inspect.iscoroutinefunction(judge):
            return Broken(f"{told}; expected to await judge: write `async def judge`{defined(judge)}", key="sync judge")
    return Broken(f"{told}{where}", key=f"{type(error).__name__}{where}")


def defined(call: Any) -> str:
    """Where a function is written, " (mine.py, line 3)"; "" where nobody knows."""
    code = getattr(inspect.unwrap(getattr(call, "__func__", call)), "__code__", None)
    return f" ({Path(code.co_filename).name}, line {code.co_firstlineno})" if code is not None else ""


def frames_of(error: BaseException) -> list[tuple[str, int]]:
    """(file, line) of the traceback, from the environment's first frame to where it was raised."""
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    return [frame for frame in frames if frame[0] != __file__]


def _line_of(error: BaseException) -> str:
    """The last line that is somebody's own, rather than this package's or a library's; else the last one."""
    frames = [frame for frame in frames_of(error) if Path(frame[0]).name != "timeouts.py"]
    package = str(Path(__file__).parent)
    libraries = (sys.prefix, sys.base_prefix, "<", str(Path(inspect.__file__).parent))
    own = [frame for frame in frames if not str(Path(frame[0]).resolve()).startswith(package)]
    own = [frame for frame in own if not frame[0].startswith(libraries)]
    if not frames:
        return ""
    path, line = (own or frames)[-1]
    return f" ({Path(path).name}, line {line})"


async def warmed(environment: Environment) -> None:
    """Open the sandbox before anything is timed: building an image takes longer than any answer may."""
    if isinstance(environment, Sandboxed):
        await environment.sandbox()


# Playing ---------------------------------------------------------------------------------------------------------------


async def attempt(environment: Environment, task: Task, actions: Sequence[str]) -> Attempt:
    """A fresh world's first observation and its replies to `actions`, up to a verdict or `max_turns`. Raises Broken."""
    world = await asked(environment.start, task, what=f"start({task.id})")
    for method in ("observe", "act", "close"):
        if not callable(getattr(world, method, None)):
            found = f"start({task.id}) gave {_kind(world)} without {method}{defined(environment.start)}"
            raise Broken(f"{found}; expected a world with observe, act and close", key="no world")
    try:
        first = await asked(world.observe, what=f"observe() of {task.id}")
        _need_text(first, f"observe() of {task.id}", world.observe, "a first observation")
        replies: list[Reply] = []
        for action in actions[: environment.max_turns]:
            what = f"act({_shown(action)}) on {task.id}"
            replies.append(_sound(await asked(world.act, action, what=what), what, world.act))
            if replies[-1].verdict is not None:
                break
    except Broken as broken:
        if not broken.hung:  # the first fault is the one to tell
            await _closed_anyhow(world)
        raise
    await asked(world.close, what=f"close() of the world of {task.id}")
    return Attempt(first, tuple(replies))


async def _closed_anyhow(world: Any) -> None:
    try:
        await asked(world.close, what="close()")
    except Broken:
        return


async def replies_of(environment: Environment, task: Task, actions: Sequence[str]) -> list[Reply]:
    """Replies of a fresh world to `actions`, up to a verdict or `max_turns`. Raises Broken."""
    return list((await attempt(environment, task, actions)).replies)


def findings_of(broken: Broken) -> list[str]:
    """The sentence, as a list of one. Raises it again where asking on is useless."""
    if broken.hung:
        raise broken
    return [broken.finding]


def won(replies: Sequence[Reply]) -> bool:
    """Whether the last reply is a success."""
    verdict = replies[-1].verdict if replies else None
    return verdict is not None and verdict.success


async def gold_of(environment: Environment, task: Task) -> list[str] | None:
    """The gold actions, None without any. Raises Broken."""
    what = f"gold({task.id})"
    return _actions(await asked(environment.gold, task, what=what), what, environment.gold)


def spoiled_by(perturb: Any, task: Task, gold: Sequence[str]) -> list[list[str]]:
    """Action sequences that `perturb` (or nobody, None) thinks up. Raises Broken."""
    if perturb is None:
        return []
    what = f"perturbed({task.id})"
    given = called(lambda: list(perturb(task, gold)), what=what)
    return [_actions(one, what, perturb) or [] for one in given]


def known_bad(environment: Environment) -> Mapping[str, str]:
    """Task id → why its gold fails. Raises Broken."""
    said = getattr(environment, "known_bad", {})
    if not isinstance(said, Mapping):
        raise Broken(f"known_bad is {_kind(said)}; expected a dict of task id and reason", key="known_bad")
    return said


def _actions(given: Any, what: str, call: Any) -> list[str] | None:
    if given is None:
        return None
    wanted = "expected a list of actions (texts), at least one"
    if isinstance(given, str) or not isinstance(given, Sequence):
        hint = ": write [text]" if isinstance(given, str) else ""
        raise Broken(f"{what} gave {_kind(given)}{defined(call)}; {wanted}{hint}", key=f"actions {type(given)}")
    if not given:
        raise Broken(f"{what} gave an empty {type(given).__name__}{defined(call)}; {wanted}", key="no actions")
    for action in given:
        if not isinstance(action, str):
            raise Broken(f"{what} gave {_kind(action)} in its list{defined(call)}; {wanted}", key="no text in actions")
    return list(given)


def _sound(reply: Any, what: str, call: Any) -> Reply:
    """The reply, if it is what the contract says. Raises Broken."""
    judge = getattr(getattr(getattr(call, "__self__", None), "environment", None), "judge", None)
    if not isinstance(reply, Reply):
        raise Broken(f"{what} gave {_kind(reply)}{defined(call)}; expected a Reply", key="no reply")
    if not isinstance(reply.observation, str):
        found = f"{what} gave a Reply whose observation is {_kind(reply.observation)}{defined(call)}"
        raise Broken(f"{found}; expected a text", key="observation")
    verdict = reply.verdict
    if verdict is None and judge is not None:
        raise Broken(f"{what} gave None as its verdict{defined(judge)}; expected a Verdict", key="no verdict")
    if verdict is None:
        _need_text(reply.observation, what, call, "an observation where there is no verdict")
        return reply
    made = defined(judge or call)
    if not isinstance(verdict, Verdict):
        raise Broken(f"{what} gave {_kind(verdict)} as its verdict{made}; expected a Verdict", key="no verdict")
    for name, kinds, wanted in _FIELDS:
        value = getattr(verdict, name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            found = f"{what} gave a Verdict whose {name} is {_kind(value)}{made}"
            raise Broken(f"{found}; expected {wanted}", key=f"field {name}")
    if not math.isfinite(verdict.reward) or not 0 <= verdict.reward <= 1:
        lost = "win" if verdict.success else "loss"
        found = f"{what} gave reward {verdict.reward:g} for a {lost}{made}"
        raise Broken(f"{found}; expected one from 0 to 1", key=f"reward {lost}")
    return reply


_FIELDS: Final[tuple[tuple[str, tuple[type, ...], str], ...]] = (
    ("success", (bool,), "True or False"),
    ("reward", (int, float), "a number from 0 to 1"),
    ("feedback", (str,), "a text"),
    ("error", (str,), "a text"),
    ("fault", (Fault, type(None)), "a Fault or None"),
    ("detail", (Mapping,), "a dict of names and numbers"),
)


def _need_text(value: Any, what: str, call: Any, wanted: str) -> None:
    if not isinstance(value, str) or not value.strip():
        found = _kind(value) if not isinstance(value, str) else "an empty text"
        raise Broken(f"{what} gave {found}{defined(call)}; expected {wanted}", key=f"text {found}{wanted}")


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, str):
        return f"the text {_shown(value)}"
    if isinstance(value, bool | int | float):
        return f"the {type(value).__name__} {value!r}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _shown(text: Any) -> str:
    if not isinstance(text, str):
        return ascii(text)[:40]
    return ascii(text) if len(text) <= 40 else f"{text[:30]!a} and {len(text) - 30:,} characters more"
