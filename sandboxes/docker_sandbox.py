"""The Docker backend: one container a slot, a warm worker in it, spoken to over the attach socket.

    with DockerSandbox(workers=2) as sandbox:                        # or open_sandbox("docker", image="my/image")
        sandbox.run("print(1)").stdout                               # "1\\n"

A container has no network, a read-only root, an ordinary user, no capabilities and no way to new ones, a memory limit
that swap does not stretch, limits on processes, open files and core dumps, and one tmpfs of a size to write to; inside,
the worker adds Landlock and seccomp to each program. The worker's files go in over the line, so an engine on another
machine serves as well as one here. An `image` of your own needs Python 3.11 or later as `python3` on its PATH and must be
on the engine already: nothing is ever pulled. Its packages can be imported.

Leaves out: limits above those the sandbox was opened with (a container's bounds are fixed when it is made), and GPUs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
from typing import Any

from kintsugi.errors import ConfigError, SandboxError, missing_extra
from kintsugi.sandboxes.boot import BOOT, sources
from kintsugi.sandboxes.interpreter_files import interpreter
from kintsugi.sandboxes.sandbox import Limits
from kintsugi.sandboxes.worker_pool import WorkerFailed, WorkerLine, WorkerPool, num_cores

ANSWER_S = 3
"""An engine that has not said its version by then is none."""
FOLDER = "/sandbox"
"""The worker's, on the read-only root; programs have the tmpfs `run` in it."""
LABEL = "kintsugi.sandbox"
_WORKER_MB = 64  # the worker's own, and the page tables of its forks


def unavailable() -> str | None:
    """None where an engine answers with its version within `ANSWER_S`."""
    try:
        import docker
        from docker.errors import DockerException
    except ImportError:
        return str(missing_extra("the Docker sandbox", "docker"))
    found: list[str] = []

    def ask() -> None:  # each of an engine's bytes may take its time: the whole answer is waited for here
        try:
            client = docker.APIClient(**_address(), version="auto", timeout=ANSWER_S)
            found.append("" if client.version().get("ApiVersion") else "what answers is not a Docker engine")
            client.close()
        except (DockerException, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            found.append(f"no Docker engine answers ({str(error)[:200]})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return (found[0] if found else f"no Docker engine answers within {ANSWER_S} s") or None


def open_backend(*, workers: int | None, limits: Limits, allow_unsafe: bool, image: str | None = None) -> DockerSandbox:
    """See `open_sandbox`. `image`: one of your own, on the engine already; default: the running interpreter."""
    return DockerSandbox(workers=workers, limits=limits, image=image, allow_unsafe=allow_unsafe)


def _address() -> dict[str, Any]:
    from docker.utils import kwargs_from_env

    return {**kwargs_from_env()}


class DockerWorker(WorkerLine):
    """One container. `client`: a docker.APIClient, whose use `lock` guards."""

    def __init__(self, client: Any, lock: threading.Lock, options: dict[str, Any], settings: dict[str, Any]) -> None:
        from docker.errors import DockerException

        self._client, self._lock, self._gone = client, lock, False
        self._stdout, self._errors = b"", b""
        self.container, self._stream = "", None
        try:
            with lock:
                self.container = client.create_container(**options)["Id"]
                self.name = f"container {self.container[:12]}"
                stream = client.attach_socket(self.container, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
                self._stream, self._socket = stream, getattr(stream, "_sock", stream)
                client.start(self.container)
            self.begin(sources(), settings)
        except DockerException as error:
            self.close()
            raise WorkerFailed(f"the engine refused a container: {error}") from error
        except BaseException:
            self.close()
            raise

    def _send(self, content: bytes, patience_s: float) -> None:
        self._socket.settimeout(patience_s)
        self._socket.sendall(content)

    def _receive(self, count: int, patience_s: float) -> bytes:
        """The attach stream has eight bytes before each piece: which stream it is of, and its length."""
        self._socket.settimeout(patience_s)
        while not self._stdout:
            header = self._raw(8)
            content = self._raw(int.from_bytes(header[4:], "big"))
            if header[0] == 1:
                self._stdout = content
            else:
                self._errors = (self._errors + content)[-4000:]
        piece, self._stdout = self._stdout[:count], self._stdout[count:]
        return piece

    def _raw(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            part = self._socket.recv(min(count, 1 << 20))
            if not part:
                raise OSError("the container has ended")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def last_words(self) -> str:
        return self._errors[-2000:].decode("utf-8", "replace").strip()

    def kill(self) -> None:
        self.close()

    def close(self) -> None:
        """Closing the line ends the worker and so the container, which the engine then removes; this does not wait."""
        from docker.errors import DockerException

        if self._gone:
            return
        self._gone = True
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
                self._stream.close()
        if self.container:
            with self._lock, contextlib.suppress(DockerException, OSError):  # it may be gone, or going
                self._client.remove_container(self.container, force=True, v=True)


class DockerSandbox(WorkerPool):
    """The pool. `workers`: containers, default one a core. `image`: None for the running interpreter.

    Raises SandboxError when no engine answers or the image is not there, MissingExtra without the SDK.
    """

    kind = "docker"

    def __init__(
        self,
        *,
        workers: int | None = None,
        limits: Limits | None = None,
        image: str | None = None,
        allow_unsafe: bool = False,
    ) -> None:
        try:
            import docker
            from docker.errors import DockerException
        except ImportError:
            raise missing_extra("the Docker sandbox", "docker") from None
        if image is None and sys.platform != "linux":
            raise SandboxError(
                f"docker sandbox: expected image=..., as the interpreter of {sys.platform} makes no image of Linux; name "
                "one with Python 3.11 or later, such as python:3.12-slim once you have pulled it"
            )
        limits = limits or Limits()
        self._client_lock = threading.Lock()
        self._label = f"{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self._client = docker.APIClient(**_address(), version="auto", timeout=60)
            self.image = _own_image(self._client, image) if image else _interpreter_image(self._client)
            self._options = _options(self._client, self.image, limits, own=image is not None, label=self._label)
        except DockerException as error:
            raise SandboxError(
                f"docker sandbox: expected an engine that answers, found {str(error)[:300]}; start it (make docker-engine "
                "does so on Debian) or use kind='local'"
            ) from error
        self._settings: dict[str, Any] = {"folder": FOLDER, "container": True, "files_mb": limits.files_mb, "rung": "auto"}
        super().__init__(workers=workers or num_cores(), limits=limits, allow_unsafe=allow_unsafe)
        self._settings["rung"] = self.rung  # a replacement must not be weaker than what was promised

    def _start(self) -> DockerWorker:
        return DockerWorker(self._client, self._client_lock, self._options, self._settings)

    def _request(self, code: str, stdin: str, files: Any, limits: Limits | None) -> dict[str, Any]:
        for name in ("memory_mb", "files_mb", "processes"):
            asked, most = getattr(limits or self.limits, name), getattr(self.limits, name)
            if asked > most:
                raise ConfigError(
                    f"Limits.{name}: expected at most the {most} that this Docker sandbox was opened with, found {asked}; "
                    "open it with the largest limits that you will ask for"
                )
        return super()._request(code, stdin, files, limits)

    def count_processes(self) -> int:
        """Processes in this sandbox's containers now: workers and whatever programs have left."""
        from docker.errors import APIError

        total = 0
        with self._client_lock:
            for found in self._client.containers(filters={"label": f"{LABEL}={self._label}"}):
                with contextlib.suppress(APIError):  # it has ended meanwhile
                    total += len(self._client.top(found["Id"])["Processes"])
        return total

    def _released(self) -> object:
        return self._client.close()


def _interpreter_image(client: Any) -> str:
    from kintsugi.sandboxes.docker_image import interpreter_image

    return interpreter_image(client)


def _own_image(client: Any, image: str) -> str:
    from docker.errors import ImageNotFound

    try:
        client.inspect_image(image)
    except ImageNotFound:
        raise SandboxError(
            f"docker sandbox: expected the image {image!r} on this engine, found none; build or pull it first: nothing is "
            "pulled unasked"
        ) from None
    return image


def _options(client: Any, image: str, limits: Limits, *, own: bool, label: str) -> dict[str, Any]:
    """What `create_container` is told. In an image of the user's own its site-packages count, and its own PATH."""
    from docker.types import LogConfig, Ulimit

    memory = int(limits.memory_mb + limits.files_mb + _WORKER_MB) << 20
    size = int(limits.files_mb) + 1
    room = f"size={size}m,nr_inodes={1024 + 256 * size}"
    host = client.create_host_config(
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        mem_limit=memory,
        memswap_limit=memory,  # the same: no swap
        pids_limit=limits.processes + 3,  # the worker, a judge, and one being reaped
        ulimits=[
            Ulimit(name=name, soft=value, hard=value)
            for name, value in (("nofile", 256), ("core", 1), ("memlock", 0), ("msgqueue", 0))
        ],
        tmpfs={f"{FOLDER}/run": f"{room},uid=65534,gid=65534,mode=700,noexec,nosuid,nodev"},
        ipc_mode="none",  # no /dev/shm, no message queues
        log_config=LogConfig(type="none"),  # what passes over the line would pile up on disk
        auto_remove=True,
    )
    python = "python3" if own else interpreter()
    flags = ["-I", "-B", "-X", "utf8", *([] if own else ["-S"])]
    return {
        "image": image,
        "entrypoint": [python, *flags, "-c", BOOT],
        "command": [],
        "host_config": host,
        "user": "65534:65534",
        "hostname": "sandbox",
        "network_disabled": True,
        "stdin_open": True,
        "working_dir": "/",
        "environment": {"LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1", "HOME": f"{FOLDER}/run"},
        "labels": {LABEL: label},
    }
