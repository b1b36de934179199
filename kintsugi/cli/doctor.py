"""`kintsugi doctor`: what this machine has, what is missing and how to get it.

`examine()` is the same in Python: a list of findings. Nothing heavy is imported: versions come from the packages'
metadata, the GPU from nvidia-smi, the Docker engine from its socket. Extras are read from this package's own metadata,
so a new one needs no line here. `--sandbox` is another table, of what the
sandboxes hold (`sandbox_table.py`). Not here: measuring speed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)

PACKAGE = "kintsugi-agents"
ROOT = Path(__file__).resolve().parents[2]
DOCKER_PATIENCE_S = 3.0
ALSO = {
    "alfworld": "a C++ compiler and cmake, as two of its packages are compiled, and Python 3.10 to 3.12",
    "docker": "a Docker engine",
    "postgres": "a PostgreSQL server",
    "vllm": "an NVIDIA GPU, and best an environment of its own",
    "web": "Chromium (Debian: apt-get install chromium)",
}
"""What an extra takes that pip does not bring."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """what: the thing looked for. state: "ok", "missing" (something of Kintsugi does not work without it) or "none"
    (absent, and nothing is lost but choice). found: what is there. mend: how to get it, empty when nothing is to do."""

    what: str
    state: Literal["ok", "missing", "none"]
    found: str
    mend: str = ""


@app.command(epilog="Example: kintsugi doctor --sandbox --json")
def doctor(
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Run hostile programs in every sandbox that opens here; exit 1 on a breach.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Say what this machine has, what is missing and how to get it; with --sandbox, prove what its sandboxes hold."""
    if sandbox:
        from kintsugi.cli import sandbox_table

        found = sandbox_table.examine_sandboxes()
        typer.echo(json.dumps(found, indent=2) if as_json else sandbox_table.table(found))
        raise typer.Exit(0 if sandbox_table.all_held(found) else 1)
    findings = examine()
    typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2) if as_json else table(findings))


def examine() -> list[Finding]:
    """Everything looked for, in the order in which it is printed. Takes at most a few seconds; changes nothing."""
    return [
        _python(),
        _processor(),
        _memory(),
        _disk(),
        _gpu(),
        *_extras(),
        _langgraph_studio(),
        _docker(),
        _sandbox(),
        _landlock(),
        _user_namespaces(),
    ]


def table(findings: list[Finding], width: int = 80) -> str:
    """One line a finding, what to do below it; at most `width` columns."""
    column = max((len(finding.what) for finding in findings), default=0) + 2
    lines = []
    for finding in findings:
        state = {"ok": "ok", "missing": "MISSING", "none": "-"}[finding.state]
        room = width - 9 - column
        texts = [finding.found, *([f"→ {finding.mend}"] if finding.mend else [])]
        wrapped = [line for text in texts for line in textwrap.wrap(text, room, break_on_hyphens=False) or [""]]
        lines += [f"{state:<9}{finding.what:<{column}}{wrapped[0]}"]
        lines += [" " * (9 + column) + line for line in wrapped[1:]]
    return "\n".join(lines)


def _python() -> Finding:
    found = f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    return Finding(what="python", state="ok", found=found)


def _processor() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    said = f", OMP_NUM_THREADS={threads}" if threads else ""
    return Finding(what="cores", state="ok", found=f"{usable} usable, {platform.machine()}{said}")


def _memory() -> Finding:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(fields[key].split()[0]) / 2**20 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return Finding(what="memory", state="none", found="unknown (no /proc/meminfo)")
    mend = "" if free >= 2 else "training the small model takes about 2 GiB: close something"
    return Finding(what="memory", state="ok", found=f"{free:.1f} GiB free of {total:.1f} GiB", mend=mend)


def _disk() -> Finding:
    usage = shutil.disk_usage(Path.cwd())
    mend = "" if usage.free > 2e9 else "a run takes some hundred megabytes: free space or name another folder (--out)"
    return Finding(what="disk", state="ok", found=f"{usage.free / 1e9:.0f} GB free in {Path.cwd()}", mend=mend)


def _gpu() -> Finding:
    asked = _run("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if not asked:
        return Finding(what="gpu", state="none", found="no NVIDIA GPU seen: everything runs on the CPU")
    torch = _version("torch") or ""
    mend = "this torch is a CPU build: install one with CUDA to use the GPU" if "+cpu" in torch else ""
    cuda = re.search(r"CUDA Version: ([\d.]+)", _run("nvidia-smi"))
    more = f"; CUDA {cuda.group(1)}" if cuda else ""
    return Finding(what="gpu", state="ok", found="; ".join(asked.splitlines()) + more, mend=mend)


def _extras() -> Iterator[Finding]:
    """One finding for each extra; "train" is what most of Kintsugi needs."""
    for extra, packages in extras().items():
        versions = {name: _version(name) for name in packages}
        absent = [name for name, known in versions.items() if known is None]
        if not absent:
            found = ", ".join(f"{name} {known}" for name, known in versions.items())
            yield Finding(what=f"[{extra}]", state="ok", found=found)
            continue
        line = f'pip install -e ".[{extra}]"' if (ROOT / "pyproject.toml").exists() else f'pip install "{PACKAGE}[{extra}]"'
        line += f"; it also takes {ALSO[extra]}" if extra in ALSO else ""
        state: Literal["missing", "none"] = "missing" if extra == "train" else "none"
        yield Finding(what=f"[{extra}]", state=state, found=f"without {', '.join(absent)}", mend=line)


def _langgraph_studio() -> Finding:
    """Its server for `langgraph.json`."""
    known = _version("langgraph-cli")
    if known is not None and _version("langgraph-api") is not None:
        return Finding(what="langgraph studio", state="ok", found=f"langgraph-cli {known}: langgraph dev")
    mend = 'in its own venv: pip install "kintsugi-agents[studio]" (Elastic License 2.0), then in a checkout: langgraph dev'
    return Finding(what="langgraph studio", state="none", found="no server for langgraph.json", mend=mend)


def extras() -> dict[str, list[str]]:
    """Extra → names of the packages that it brings: from the checkout's pyproject.toml, else from the installation."""
    wanted: dict[str, list[str]] = {}
    if (ROOT / "pyproject.toml").exists():
        declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for extra, lines in declared.get("optional-dependencies", {}).items():
            wanted[extra] = [_name(line) for line in lines]
        return wanted
    try:
        lines = requires(PACKAGE) or []
    except PackageNotFoundError:
        return wanted
    for line in lines:
        marker = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
        if marker:
            wanted.setdefault(marker.group(1), []).append(_name(line))
    return wanted


def _docker() -> Finding:
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    mend = (
        "install Docker and start it (Debian: apt-get install docker.io); without it programs run in the local sandbox"
    )
    try:
        answer = _docker_version(address)
    except (OSError, ValueError) as error:
        return Finding(what="docker engine", state="none", found=f"none at {address} ({_reason(error)})", mend=mend)
    return Finding(what="docker engine", state="ok", found=f"{answer} at {address}")


def _docker_version(address: str) -> str:
    """The engine's version, asked over its socket. OSError: nobody answers in time; ValueError: no Docker engine."""
    scheme, _, place = address.partition("://")
    if scheme == "unix":
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(DOCKER_PATIENCE_S)
        target: str | tuple[str, int] = place
    elif scheme == "tcp":
        host, _, port = place.partition(":")
        link = socket.socket()
        link.settimeout(DOCKER_PATIENCE_S)
        target = (host, int(port or 2375))
    else:
        raise ValueError(f"{scheme}:// is not looked into")
    with link:
        link.connect(target)
        link.sendall(b"GET /version HTTP/1.0\r\nHost: docker\r\n\r\n")
        answer = b""
        while chunk := link.recv(65536):
            answer += chunk
            if len(answer) > 1 << 20:
                raise ValueError("not a Docker engine")
    body = answer.partition(b"\r\n\r\n")[2]
    try:
        found = json.loads(body)
        return f"{found['Version']} (API {found['ApiVersion']})"
    except (ValueError, KeyError, TypeError):
        raise ValueError("what answers is not a Docker engine") from None


def _sandbox() -> Finding:
    """The local sandbox's strongest rung that holds here: one program is run in it."""
    from kintsugi.errors import KintsugiError
    from kintsugi.sandboxes.sandbox import GUARANTEES, open_sandbox

    mend = "Linux 5.13 or later with Landlock, or a Docker engine, isolates programs; see docs/sandboxes.md"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_sandbox("local", workers=1, allow_unsafe=True) as sandbox:
                result = sandbox.run("print(6 * 7)")
                lacking = [name for name in GUARANTEES if name not in sandbox.guarantees]
    except (KintsugiError, OSError) as error:
        return Finding(what="local sandbox", state="missing", found=str(error), mend=mend)
    if result.stdout.strip() != "42":
        return Finding(
            what="local sandbox", state="missing", found=f"a program did not run ({result.status})", mend=mend
        )
    found = result.backend + (f", without {', '.join(lacking)}" if lacking else "")
    return Finding(what="local sandbox", state="ok", found=found, mend=mend if "network" in lacking else "")


def _landlock() -> Finding:
    from kintsugi.sandboxes.confinement import landlock_version

    abi = landlock_version() if sys.platform == "linux" else 0
    if not abi:
        return Finding(what="landlock", state="none", found="not in this kernel")
    return Finding(what="landlock", state="ok", found=f"ABI {abi} (kernel {platform.release()})")


def _user_namespaces() -> Finding:
    if shutil.which("unshare") is None:
        return Finding(what="user namespaces", state="none", found="unknown (no unshare command)")
    works = _run("unshare", "--user", "echo", "yes").strip() == "yes"
    found = "allowed" if works else "refused by this machine or container"
    return Finding(what="user namespaces", state="ok" if works else "none", found=found)


def _run(*command: str) -> str:
    """What the command printed; empty when it is not there, fails or takes more than five seconds."""
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;(]", requirement.strip(), maxsplit=1)[0]


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or "no answer in time"
