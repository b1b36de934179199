"""A sandbox that an environment opens at its first program and closes with itself.

    class Sums(Sandboxed, ProgramEnvironment):
        async def judge(self, task, action):
            run = await (await self.sandbox()).arun(action, limits=self.limits)

Left out: what a program is and what its result is worth, which are the environment's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from kintsugi.errors import ConfigError, missing_extra, nearest
from kintsugi.sandboxes.sandbox import Limits, Sandbox, open_sandbox


class Sandboxed:
    """sandbox: an open `Sandbox` (stays the caller's to close), a kind such as "local", or options of `open_sandbox` as
        a mapping (`{"kind": "local", "workers": 2}`).
    limits: of each program; a mapping such as `{"cpu_s": 1}` changes the defaults (2 s of CPU, 256 MiB).
    packages, extra: modules beyond the standard library that programs import, and the optional extra that brings them;
        a sandbox that the caller opened must have them.
    """

    name = "sandboxed"

    def __init__(
        self,
        *,
        sandbox: Sandbox | str | Mapping[str, Any] | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        packages: Sequence[str] = (),
        extra: str = "",
    ) -> None:
        self.limits = _limits(limits, self.name)
        self._given: Sandbox | None = None
        self._options: dict[str, Any] = {"packages": tuple(packages)} if packages else {}
        self._extra = extra
        if isinstance(sandbox, str):
            self._options["kind"] = sandbox
        elif isinstance(sandbox, Mapping):
            self._options |= _known(sandbox, ("kind", "workers", "image", "allow_unsafe"), "sandbox option")
        elif sandbox is None or callable(getattr(sandbox, "arun", None)):
            self._given = sandbox
        else:
            wanted = 'an open sandbox, a kind such as "local" or a table such as {"kind": "local"}'
            raise ConfigError(f"{self.name}.sandbox: expected {wanted}, found {sandbox!r:.60}")
        self._opened: Sandbox | None = None
        self._closed = False
        self._opening = threading.Lock()

    def need(self, package: str, *, extra: str) -> None:
        """Programs import one more package, which the optional `extra` brings. Before the first program."""
        self._options["packages"] = (*self._options.get("packages", ()), package)
        self._extra = extra

    async def sandbox(self) -> Sandbox:
        """The sandbox, open. Raises MissingExtra, SandboxError; RuntimeError when the environment is closed."""
        if self._closed:
            raise RuntimeError(f"environment {self.name} is closed")
        if self._given is not None:
            return self._given
        if self._opened is None:
            await asyncio.to_thread(self._open)  # an image may have to be built
        assert self._opened is not None
        return self._opened

    def _open(self) -> None:
        with self._opening:
            if self._opened is None and not self._closed:
                self._need_packages()
                self._opened = open_sandbox(**self._options, limits=self.limits)

    def _need_packages(self) -> None:
        from importlib.util import find_spec

        for package in self._options.get("packages", ()):
            if find_spec(package.partition(".")[0]) is None:
                raise missing_extra(f"the environment {self.name}", self._extra)

    async def close(self) -> None:
        self._closed = True
        with self._opening:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()


def _limits(limits: Limits | Mapping[str, Any] | None, name: str) -> Limits:
    if isinstance(limits, Limits):
        return limits
    if not isinstance(limits, Mapping | None):
        raise ConfigError(f'{name}.limits: expected a table such as {{"cpu_s": 2}}, found {limits!r:.60}')
    return Limits(**{"cpu_s": 2.0, **_known(limits or {}, tuple(Limits.__dataclass_fields__), "limit")})


def _known(options: Mapping[str, Any], names: tuple[str, ...], what: str) -> dict[str, Any]:
    for key in options:
        if key not in names:
            raise ConfigError(f'unknown {what} "{key}": {nearest(key, names)}')
    return dict(options)
