"""The sandbox contract: limits, results, the protocol, and `open_sandbox`, the one way in.

    with open_sandbox("local", limits=Limits(cpu_s=1)) as sandbox:
        result = sandbox.run("print(input()[::-1])", stdin="stressed")
        assert (result.status, result.stdout) == ("ok", "desserts\\n")

A backend is one file, `kintsugi/sandboxes/<kind>_sandbox.py`, found by its name. It offers two functions:

    unavailable() -> str | None             None when it can run here, else why not; must be quick
    open_backend(*, workers, limits, allow_unsafe) -> Sandbox          and image, packages where it can have them

and passes every check in `conformance.py`. Leaves out: how a backend isolates a program, and what a result is worth.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol, Self, runtime_checkable

from kintsugi.errors import ConfigError, SandboxError

Status = Literal["ok", "error", "timeout", "memory", "output", "sandbox_failed"]

AUTO_ORDER = ("docker", "local")
"""What `kind="auto"` tries, strongest first. Kinds whose file is not there are passed over."""

GUARANTEES: Mapping[str, str] = {
    "wall_time": "a program is stopped at its wall limit, time spent waiting for a busy machine not counted",
    "cpu_time": "a program is stopped at its CPU limit, its children's time included",
    "memory": "a program cannot use much more memory than its limit",
    "output": "standard output and error are each cut at the limit, and the program is stopped",
    "processes": "processes and threads together are bounded",
    "files_size": "what a program writes is bounded",
    "clean_environment": "no variable of the caller's environment reaches a program",
    "clean_state": "nothing of one program, process or file, is left for the next one",
    "network": "no socket can be opened, of any family",
    "host_reads": "no file of the host can be read, except the standard library, its shared libraries and time zones",
    "host_writes": "nothing can be written outside the program's own folder",
    "host_processes": "no process outside the program can be signalled, traced or read",
    "kernel_surface": "system calls that no plain program needs are refused",
    "verdicts": "a program cannot make tests pass that it does not pass",
    "hidden_host": "names, sizes and dates of host files, the host's name and its process numbers are not visible",
}
"""Every promise that a backend can make, by name. `Sandbox.guarantees` holds those that hold."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use.

    >>> Limits(cpu_s=1).memory_mb
    256
    """

    wall_s: float = 5.0
    """Seconds from start to end, less the seconds spent runnable and waiting for a core (at most 3 x this in all)."""
    cpu_s: float = 3.0
    """CPU seconds, user and system, children included. This is what judges a slow program."""
    memory_mb: int = 256
    """MiB on top of what the interpreter itself takes."""
    processes: int = 64
    """Processes and threads at once, the program's own first one included."""
    output_bytes: int = 65536
    """Bytes kept of standard output, and as many of standard error."""
    files_mb: int = 32
    """MiB of files in the program's folder; no single file may be larger either."""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            whole = name not in ("wall_s", "cpu_s")
            right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and 0 < value <= most
            if not right:
                raise ConfigError(
                    f"Limits.{name}: expected a {'whole ' * whole}number above 0 and at most {most}, found {value!r}; "
                    "leave it out for the default"
                )


_MOST: Mapping[str, int] = {
    "wall_s": 1_000_000,
    "cpu_s": 1_000_000,
    "memory_mb": 1 << 20,
    "processes": 100_000,
    "output_bytes": 1 << 22,  # a worker holds it several times over while it writes its answer
    "files_mb": 1 << 20,
}


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What one program did.

    `print(1)` gives `RunResult(status="ok", exit_code=0, stdout="1\\n", ...)`; `while True: pass` gives
    `RunResult(status="timeout", exit_code=None, signal=9, cpu_s=3.05, ...)`.
    """

    status: Status
    """ok: exit code 0. error: it raised, exited otherwise or died. timeout, memory, output: a limit was passed.
    sandbox_failed: the sandbox broke twice; says nothing about the program and is never scored as a wrong answer."""
    exit_code: int | None = None
    """The exit code, or None when a signal ended it."""
    signal: int | None = None
    """The signal that ended it, or None."""
    stdout: str = ""
    """Standard output, UTF-8 with replacement characters, at most `output_bytes` bytes of it."""
    stderr: str = ""
    """Standard error likewise; tracebacks are here. After sandbox_failed: what broke."""
    truncated: bool = False
    """True when standard output or error was cut."""
    wall_s: float = 0.0
    """Seconds from the start of the process to its end, waiting in the queue not counted."""
    cpu_s: float = 0.0
    """CPU seconds, children included."""
    peak_memory_mb: float = 0.0
    """Largest resident size of one process, MiB; about 12 of them are the interpreter's."""
    backend: str = ""
    """Who ran it, such as `local/landlock+seccomp`."""


@dataclass(frozen=True, kw_only=True)
class TestFailure:
    """One test that did not pass: `TestFailure(index=0, test="assert f(1) == 2", error="AssertionError")`."""

    __test__ = False
    index: int
    """Position in the list that was given, from 0."""
    test: str
    """Its source."""
    error: str
    """Last line of the traceback, or why it was not reached."""


@dataclass(frozen=True, kw_only=True)
class TestResult:
    """Some tests' outcome on one candidate: `TestResult(passed=2, total=3, failures=(TestFailure(...),), run=...)`."""

    __test__ = False
    passed: int
    """Tests that ran to their end without raising."""
    total: int
    """Tests given."""
    failures: tuple[TestFailure, ...]
    """The other ones, in order; `passed + len(failures) == total`."""
    run: RunResult
    """The run itself. Its status is `ok` when every test was reached, passed or not."""
    judging: str = ""
    """`two processes`: the program could forge no verdict. `one process: REASON`: it shared one with its tests, so it
    could read them, patch what they call or return objects that equal everything."""

    @property
    def all_passed(self) -> bool:
        """True when there were tests and each one passed."""
        return self.total > 0 and self.passed == self.total


@dataclass(frozen=True, kw_only=True)
class SandboxStats:
    """Counts since the sandbox was opened: `SandboxStats(runs=3, by_status={"ok": 3}, replaced=0, retried=0)`."""

    runs: int
    """Programs answered."""
    by_status: Mapping[str, int] = field(default_factory=dict)
    """How many had each status; sums to `runs`."""
    replaced: int = 0
    """Workers that died or hung and were replaced."""
    retried: int = 0
    """Programs that were run a second time because the first worker failed."""


@runtime_checkable
class Sandbox(Protocol):
    """Runs programs. Every method may be called from any thread; results do not depend on what ran before."""

    @property
    def guarantees(self) -> frozenset[str]:
        """The names in `GUARANTEES` that hold here."""
        ...

    def run(
        self,
        code: str,
        *,
        stdin: str = "",
        files: Mapping[str, str | bytes] | None = None,
        limits: Limits | None = None,
    ) -> RunResult:
        """Run `code` as __main__ with `files` (relative path -> content) in its folder; never raises for its doings."""
        ...

    async def arun(
        self,
        code: str,
        *,
        stdin: str = "",
        files: Mapping[str, str | bytes] | None = None,
        limits: Limits | None = None,
    ) -> RunResult:
        """`run` for asyncio: does not block the loop; callers are served in the order in which they came."""
        ...

    def run_many(self, programs: Iterable[str], *, stdin: str = "", limits: Limits | None = None) -> list[RunResult]:
        """Run each one, as many at once as there are workers; the answers come in the order of the programs."""
        ...

    def run_tests(
        self, code: str, tests: Sequence[str], *, setup: str = "", limits: Limits | None = None
    ) -> TestResult:
        """Run `setup`, then `code`, then each test; the limits hold for all of it together.

        The program runs in one process and the tests in another, which alone reads them: the program sees the
        arguments of calls, one at a time, and answers with plain data. What `setup` defines is the tests' own, but it is
        run in both processes, since programs may build on it: a program can read it, so expected values belong in the
        tests. Where the tests' text needs the program's objects themselves they share one process;
        `TestResult.judging` says so.
        """
        ...

    async def arun_tests(
        self, code: str, tests: Sequence[str], *, setup: str = "", limits: Limits | None = None
    ) -> TestResult:
        """`run_tests` for asyncio."""
        ...

    def stats(self) -> SandboxStats:
        """Counts so far."""
        ...

    def close(self) -> None:
        """Stop every worker and remove every file; safe to call twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def check_arguments(
    *,
    limits: object = None,
    tests: Sequence[object] = (),
    files: Mapping[str, object] | None = None,
    **texts: object,
) -> None:
    """ConfigError where an argument of `run` or `run_tests` is of the wrong type; `texts`: those that must be str."""
    if limits is not None and not isinstance(limits, Limits):
        raise ConfigError(f"limits: expected a Limits, found {_found(limits)}; write Limits(cpu_s=1), or leave it out")
    for name, value in texts.items():
        if not isinstance(value, str):
            raise ConfigError(f"{name}: expected text, found {_found(value)}; give a str")
    if isinstance(tests, (str, bytes)) or not isinstance(tests, Sequence):
        raise ConfigError(f"tests: expected a list of texts, found {_found(tests)}; write [test] for a single one")
    for index, test in enumerate(tests):
        if not isinstance(test, str):
            raise ConfigError(f"tests[{index}]: expected text, found {_found(test)}; give each test as a str")
    if not isinstance(files, Mapping | None):
        raise ConfigError(f"files: expected a mapping from relative paths to contents, found {_found(files)}; give a dict")
    for name, content in (files or {}).items():
        if not isinstance(name, str) or not isinstance(content, str | bytes):
            raise ConfigError(
                f"files: expected a path and text or bytes for each, found {_found(name)}: {_found(content)}; mend that one"
            )


def _found(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) < 60 else text[:56] + ' ...'} ({type(value).__name__})"


def sandbox_kinds() -> list[str]:
    """The kinds there are: one for each `*_sandbox.py` beside this file."""
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return sorted(name.removesuffix("_sandbox") for name in names if name.endswith("_sandbox"))


def open_sandbox(
    kind: str = "auto",
    workers: int | None = None,
    limits: Limits = Limits(),
    image: str | None = None,
    allow_unsafe: bool = False,
    packages: Sequence[str] = (),
) -> Sandbox:
    """Open a sandbox with `workers` programs at once (default: one for each core).

    `auto` takes the first of `AUTO_ORDER` that can run here. `image` is for kinds that run containers. `allow_unsafe`
    accepts a backend that holds limits but does not isolate: for programs you trust. `packages` names modules beyond
    the standard library that programs may import ("clingo"): workers import them before any program runs, so no
    folder is opened to programs. Where `image` or `packages` are given, only backends are asked whose `open_backend`
    takes them. Raises ConfigError, SandboxError.
    """
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise ConfigError(f"workers: expected a whole number, at least 1, found {workers!r}; leave it out for one a core")
    check_arguments(limits=limits, kind=kind, image=image or "")
    asked = _wanted(image, packages)
    kinds = sandbox_kinds()
    if kind != "auto" and kind not in kinds:
        near = difflib.get_close_matches(kind, [*kinds, "auto"], n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"sandbox kind: expected one of {', '.join(['auto', *kinds])}, found {kind!r}; did you mean {near!r}?"
        )
    reasons: list[str] = []
    for name in [k for k in AUTO_ORDER if k in kinds] if kind == "auto" else [kind]:
        backend = _backend(name)
        reason = backend.unavailable()
        for word in asked.keys() - inspect.signature(backend.open_backend).parameters.keys():
            reason = f"it takes no {word}"
        if reason is None:
            return backend.open_backend(workers=workers, limits=limits, allow_unsafe=allow_unsafe, **asked)
        reasons.append(f"{name}: {reason}")
    raise SandboxError(
        f"sandbox {kind!r}: expected a backend that runs here, found {'; '.join(reasons)}; mend it or name another kind"
    )


def _backend(kind: str) -> ModuleType:
    return importlib.import_module(f"kintsugi.sandboxes.{kind}_sandbox")


def _wanted(image: str | None, packages: Sequence[str]) -> dict[str, object]:
    """What not every backend can give: the image, and the packages with the folders that they come from."""
    if image == "":
        raise ConfigError("image: expected a name such as my/image:1, found ''; leave it out for the running interpreter")
    if isinstance(packages, str) or not isinstance(packages, Sequence):
        raise ConfigError(f"packages: expected a list of names, found {_found(packages)}; write [name] for a single one")
    for name in packages:
        if not isinstance(name, str) or not all(word.isidentifier() for word in name.split(".")):
            raise ConfigError(f"packages: expected names of modules, found {_found(name)}; write them as import does")
    folders = {name: _folder_of(name) for name in packages if name.partition(".")[0] not in sys.stdlib_module_names}
    return {**({"image": image} if image else {}), **({"packages": folders} if folders else {})}


def _folder_of(name: str) -> str:
    """The folder from which a worker imports the package `name`; SandboxError when it is not installed."""
    found = importlib.util.find_spec(name.partition(".")[0])
    if found is None or found.origin is None:
        raise SandboxError(f"sandbox: expected the package {name} to be installed for its programs, found none")
    path = Path(found.origin)
    return str(path.parents[1] if path.name == "__init__.py" else path.parent)
