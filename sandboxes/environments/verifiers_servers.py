"""verifiers' tool servers, forked from a process that has imported verifiers already.

    nursery = Nursery()                # before there is any thread: it forks
    nursery.take_over()                # verifiers' local runtime now starts its servers there; they end when this one does

verifiers starts a Python for each tool server (`python -m taskset`), for each attempt where tools are a task's own, and its
imports alone take 5 seconds of CPU. A forked process has them; it runs the same module as `__main__`, in a session, folder
and environment of its own, with its output in the same log. Whatever else a runtime starts goes the way it went. On Linux
alone; elsewhere, and where threads are running, `take_over` changes nothing. Left out: the imports of the taskset itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

_NEEDED: Final = ("verifiers.v1.mcp", "mcp.server.mcpserver", "uvicorn", "httpx")
_LONGEST: Final = 1 << 20
_LOOK_S: Final = 0.02
_PORT_S: Final = 180.0


class Nursery:
    """The process that forks, and the line to it."""

    def __init__(self) -> None:
        self._line: socket.socket | None = None
        if not sys.platform.startswith("linux") or len(os.listdir("/proc/self/task")) > 1:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            ours.close()
            _fork_for(theirs)
        theirs.close()
        self._line = ours

    def take_over(self) -> None:
        """Start what verifiers would start by `python -m`, and look for a server's port more often than once a second."""
        if self._line is None:
            return
        runtime: Any = importlib.import_module("verifiers.v1.runtimes.subprocess").SubprocessRuntime
        launch: Any = importlib.import_module("verifiers.v1.mcp.launch")
        before = runtime.run_background

        async def run_background(self_: Any, argv: list[str], env: dict[str, str], log: str) -> None:
            if len(argv) != 3 or argv[:2] != [sys.executable, "-m"]:
                await before(self_, argv, env, log)
                return
            # As verifiers has it: keys of this machine's are not handed on.
            kept = {name: value for name, value in os.environ.items() if "API_KEY" not in name.upper()}
            variables = {**kept, **self_.process_env(env)}
            self_._background.append(self.start(argv[2], variables, self_.workdir, log))

        runtime.run_background = run_background
        launch._read_back_port = _port

    def start(self, module: str, variables: Mapping[str, str], folder: Path, log: str) -> ForkedServer:
        """A process that runs `module`. Raises OSError when the nursery is gone."""
        assert self._line is not None
        asked = {"module": module, "variables": dict(variables), "folder": str(folder), "log": log}
        self._line.sendall(json.dumps(asked).encode())
        answer = self._line.recv(_LONGEST)
        if not answer:
            raise OSError("the process that starts tool servers has ended")
        return ForkedServer(int(answer))


class ForkedServer:
    """What verifiers needs to know of a process that another one forked. started: all of them, in order."""

    started: ClassVar[list[ForkedServer]] = []

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.started.append(self)

    @property
    def returncode(self) -> int | None:
        """None while it runs. Its real code is not known here."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    async def wait(self) -> int:
        while self.returncode is None:
            await asyncio.sleep(_LOOK_S)
        return 0


async def _port(runtime: Any, path: str) -> int:
    """The port that a server has written down, once it listens there; the file goes. Raises ToolsetError without one."""
    clock = asyncio.get_running_loop()
    deadline = clock.time() + _PORT_S
    while clock.time() < deadline:
        with contextlib.suppress(OSError, ValueError):
            port = int(Path(path).read_text())
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            Path(path).unlink(missing_ok=True)
            return port
        if runtime._background and runtime._background[-1].returncode is not None:
            break
        await asyncio.sleep(_LOOK_S)
    raise importlib.import_module("verifiers.v1.errors").ToolsetError("the server ended before it had a port")


def _fork_for(line: socket.socket) -> None:
    """The nursery's life: a request, a fork, until the asker is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the servers are nobody's to wait for
    for number in (0, 1):
        os.dup2(2, number)  # the requests and answers of the process that it was forked from
    while asked := line.recv(_LONGEST):
        for name in _NEEDED:
            importlib.import_module(name)
        pid = os.fork()
        if pid == 0:
            line.close()
            _serve(**json.loads(asked))
        line.sendall(str(pid).encode())
    os._exit(0)


def _serve(module: str, variables: dict[str, str], folder: str, log: str) -> None:
    """Run the module as a program, and end."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.chdir(folder)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for new, number in ((nothing, 0), (said, 1), (said, 2)):
            os.dup2(new, number)
        os.environ.clear()
        os.environ.update(variables)
        tempfile.tempdir = None  # it follows TMPDIR
        sys.path[0] = folder  # as `python -m` has it
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
