"""The Docker sandbox: the conformance suite, then what only containers can be asked. Skipped where no engine answers.

`make docker-engine` installs Debian's engine and starts it. Leaves out: the battery of attacks (`test_battery.py`)
and speed (`benchmarks/sandboxes.py`).
"""

from __future__ import annotations

import io
import os
import signal
import socket
import tarfile
import threading
import time
from collections.abc import Iterator

import pytest

from kintsugi.errors import ConfigError, SandboxError
from kintsugi.sandboxes import docker_sandbox
from kintsugi.sandboxes.conformance import CHECKS
from kintsugi.sandboxes.interpreter_files import interpreter, library_folder
from kintsugi.sandboxes.sandbox import GUARANTEES, Limits, Sandbox, open_sandbox

WITHOUT = docker_sandbox.unavailable()
needs_engine = pytest.mark.skipif(WITHOUT is not None, reason=f"NO DOCKER: {WITHOUT} (make docker-engine starts one)")
pytestmark = pytest.mark.filterwarnings("ignore:docker sandbox")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[docker_sandbox.DockerSandbox]:
    with docker_sandbox.DockerSandbox(workers=2) as opened:
        yield opened
        ours = containers(opened)
    assert not set(ours) & set(containers()), "a container was left"


def containers(sandbox: docker_sandbox.DockerSandbox | None = None) -> list[str]:
    """Ids of the containers that this process has started and that are still there."""
    import docker

    client = sandbox._client if sandbox else docker.APIClient(**docker_sandbox._address(), version="auto")
    found = client.containers(all=True, filters={"label": docker_sandbox.LABEL})
    mine = sandbox._label if sandbox else f"{os.getpid()}-"
    return [one["Id"] for one in found if one["Labels"][docker_sandbox.LABEL].startswith(mine)]


@needs_engine
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(sandbox: docker_sandbox.DockerSandbox, check) -> None:
    check(sandbox)
    assert len(containers(sandbox)) <= 2 and sandbox.stats().replaced == 0


@needs_engine
def test_it_is_a_sandbox_that_holds(sandbox: docker_sandbox.DockerSandbox) -> None:
    assert isinstance(sandbox, Sandbox)
    if sandbox.rung == "landlock+seccomp":
        assert sandbox.guarantees == frozenset(GUARANTEES)


@needs_engine
def test_the_engine_was_told_to_confine(sandbox: docker_sandbox.DockerSandbox) -> None:
    sandbox.run("print(1)")
    told = sandbox._client.inspect_container(containers(sandbox)[0])
    host = told["HostConfig"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (
        "none",
        True,
        ["ALL"],
        False,
    )
    assert host["SecurityOpt"] == ["no-new-privileges:true"] and told["Config"]["User"] == "65534:65534"
    assert host["Memory"] == host["MemorySwap"] > 0 and 0 < host["PidsLimit"] < 100
    assert {limit["Name"] for limit in host["Ulimits"]} >= {"nofile", "core"}
    assert "size=33m" in host["Tmpfs"]["/sandbox/run"] and host["LogConfig"]["Type"] == "none"
    assert not told["Mounts"] and not host["Binds"]


@needs_engine
def test_a_killed_container_is_replaced_within_two_seconds() -> None:
    with docker_sandbox.DockerSandbox(workers=1) as sandbox:
        answers: list[object] = []
        program = "import time\ntime.sleep(0.7)\nprint('done')"
        caller = threading.Thread(target=lambda: answers.append(sandbox.run(program)))
        (first,) = containers(sandbox)
        caller.start()
        time.sleep(0.3)
        sandbox._client.kill(first)
        started = time.monotonic()
        caller.join(20)
        took = time.monotonic() - started
        assert getattr(answers[0], "stdout", None) == "done\n", answers
        stats = sandbox.stats()
        assert (stats.replaced, stats.retried, stats.by_status) == (1, 1, {"ok": 1})
        assert took < 2.0 + 0.7, f"a new container took {took - 0.7:.1f} s"


@needs_engine
def test_a_killed_launcher_leaves_no_container() -> None:
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            sandbox = docker_sandbox.DockerSandbox(workers=1)
            os.write(writing, containers(sandbox)[0].encode())
            sandbox.run("import time\ntime.sleep(60)", limits=Limits(wall_s=60))
        finally:
            os._exit(0)
    container = os.read(reading, 1000).decode()
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)
    import docker

    client = docker.APIClient(**docker_sandbox._address(), version="auto")
    deadline = time.monotonic() + 10
    while any(found["Id"] == container for found in client.containers(all=True)):
        assert time.monotonic() < deadline, "the container outlived its launcher"
        time.sleep(0.1)


@needs_engine
def test_an_own_image_is_used_and_none_is_pulled(sandbox: docker_sandbox.DockerSandbox) -> None:
    with pytest.raises(SandboxError, match="nothing is pulled"):
        docker_sandbox.DockerSandbox(image="kintsugi-test/no-such-image:1")
    client, own = sandbox._client, "kintsugi-sandbox-test:own"
    made = client.create_container(sandbox.image, command=["none"])["Id"]
    try:
        client.put_archive(made, "/", own_files())
        client.commit(made, repository=own.split(":")[0], tag="own")
        with docker_sandbox.DockerSandbox(workers=1, image=own) as opened:
            assert opened.run("import ownpackage\nprint(ownpackage.answer)").stdout == "42\n"
            assert opened.guarantees == sandbox.guarantees
        client.remove_image(own, force=True)
        client.commit(made, repository=own.split(":")[0], tag="own", changes=["ENV PATH=/nowhere"])
        with pytest.raises(SandboxError, match="python3"):
            docker_sandbox.DockerSandbox(workers=1, image=own)
    finally:
        client.remove_container(made)
        client.remove_image(own, force=True)


def own_files() -> bytes:
    """A tar of what makes the interpreter's image one of the user's own: python3 on the PATH and a package."""
    content, text = io.BytesIO(), b"answer = 42\n"
    with tarfile.open(fileobj=content, mode="w") as tar:
        link = tarfile.TarInfo("usr/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, interpreter()
        tar.addfile(link)
        package = tarfile.TarInfo(f"{library_folder()}/site-packages/ownpackage.py".lstrip("/"))
        package.size = len(text)
        tar.addfile(package, io.BytesIO(text))
    return content.getvalue()


@needs_engine
def test_limits_above_the_containers_are_refused(sandbox: docker_sandbox.DockerSandbox) -> None:
    with pytest.raises(ConfigError, match=r"Limits\.memory_mb: expected at most the 256"):
        sandbox.run("print(1)", limits=Limits(memory_mb=1024))


@needs_engine
def test_auto_takes_docker() -> None:
    with open_sandbox(workers=1) as sandbox:
        assert sandbox.run("print(1)").backend.startswith("docker/")


def foreign_server(answer: bytes) -> socket.socket:
    """Listens on a port of this machine; says `answer` slowly to whoever comes."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                link, _ = server.accept()
                for byte in answer:
                    link.sendall(bytes([byte]))
                    time.sleep(0.05)
                link.close()
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    return server


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.0 200 OK\r\n\r\n{}", b"SSH-2.0-x\r\n", b"HTTP/1.0 200 OK\r\n" + b"x: y\r\n" * 99]
)
def test_what_answers_but_is_no_engine_is_none(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docker", reason="the docker SDK is not installed: pip install 'kintsugi-agents[docker]'")
    server = foreign_server(answer)
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.getsockname()[1]}")
    started = time.monotonic()
    assert docker_sandbox.unavailable() is not None
    assert time.monotonic() - started < docker_sandbox.ANSWER_S + 1
    server.close()
    assert docker_sandbox.unavailable() is not None, "nobody listens any more"


def test_without_an_engine_the_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docker", reason="the docker SDK is not installed: pip install 'kintsugi-agents[docker]'")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(SandboxError, match="no Docker engine answers"):
        open_sandbox("docker")
    with pytest.raises(SandboxError, match="make docker-engine"):
        docker_sandbox.DockerSandbox(workers=1)
    with open_sandbox(workers=1, allow_unsafe=True) as sandbox:
        assert sandbox.run("print(1)").backend.startswith("local/")
