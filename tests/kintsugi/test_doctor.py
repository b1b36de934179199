"""The doctor says what is there, what is not and how to get it, without loading anything heavy."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kintsugi.cli import doctor
from kintsugi.cli.doctor import Finding, app, examine, extras, table


def test_json_names_everything() -> None:
    result = CliRunner().invoke(app, ["--json"])
    assert result.exit_code == 0, result.output
    found = {finding["what"]: finding for finding in json.loads(result.stdout)}
    assert {"python", "cores", "memory", "disk", "gpu", "docker engine", "local sandbox", "landlock"} <= set(found)
    assert found["python"]["state"] == "ok" and sys.executable in found["python"]["found"]


def test_pages_that_are_named_are_there() -> None:
    said = Path(doctor.__file__).read_text(encoding="utf-8")
    pages = re.findall(r"docs/[a-z_-]+\.md", said)
    assert "docs/sandboxes.md" in pages and "README" not in said
    assert all((Path(doctor.__file__).parents[2] / page).is_file() for page in pages)


def test_table_fits_80_columns() -> None:
    for text in (table(examine()), CliRunner().invoke(app, []).stdout):
        assert max(len(line) for line in text.splitlines()) <= 80


def test_nothing_heavy_is_imported() -> None:
    heavy = "torch transformers trl peft langgraph docker vllm ray matplotlib"
    code = "import sys\nfrom kintsugi.cli.doctor import examine\nexamine()\n"
    code += f"print(set('{heavy}'.split()) & set(sys.modules))"
    root = str(Path(doctor.__file__).parents[2])
    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": root}
    )
    assert asked.stdout.strip() == "set()", asked.stdout + asked.stderr


def test_a_missing_extra_has_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch" in extras()["train"]
    monkeypatch.setattr(doctor, "extras", lambda: {"train": ["numpy"], "ghost": ["no-such-package-here"]})
    here, ghost = [finding for finding in examine() if finding.what.startswith("[")]
    assert here.state == "ok" and here.found.startswith("numpy ")
    assert ghost.state == "none" and "[ghost]" in ghost.mend and ghost.mend.startswith("pip install")


def test_every_extra_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing installed, each line says what is missing and the command that brings it."""
    declared = extras()
    assert {"train", "docker", "vllm", "ray", "alfworld", "web", "postgres", "hotpotqa"} <= set(declared)
    assert set(doctor.ALSO) <= set(declared)
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    found = {finding.what: finding for finding in doctor._extras()}
    assert list(found) == [f"[{extra}]" for extra in declared]
    for extra, packages in declared.items():
        finding = found[f"[{extra}]"]
        assert finding.found == f"without {', '.join(packages)}" and f"[{extra}]" in finding.mend
        assert finding.state == ("missing" if extra == "train" else "none")
    assert "cmake" in found["[alfworld]"].mend and "Chromium" in found["[web]"].mend
    assert "langgraph dev" in doctor._langgraph_studio().mend
    assert max(len(line) for line in table(list(found.values())).splitlines()) <= 80
    monkeypatch.setattr(doctor, "_version", lambda package: "1.2")
    assert all(finding.state == "ok" and not finding.mend for finding in (*doctor._extras(), doctor._langgraph_studio()))


def test_every_extra_that_the_code_names_is_declared() -> None:
    """`missing_extra(…, "postgres")` must name something that pip can install."""
    root = Path(doctor.__file__).resolve().parents[2]
    rooms = [root / name for name in ("agents", "graphs", "sandboxes", "training", "kintsugi")]
    text = "\n".join(path.read_text(encoding="utf-8") for room in rooms for path in room.rglob("*.py"))
    named = set(re.findall(r'missing_extra\([^()]*?,\s*"(\w+)"\)|\bextra="(\w+)"', text))
    names = {one or other for one, other in named} - {"forbid", "ignore", "allow"}  # pydantic's own "extra"
    assert {"train", "postgres"} <= names <= set(extras())


class Engine:
    """Something at a socket that answers (or, with None, does not)."""

    def __init__(self, path: Path, answer: bytes | None) -> None:
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(path))
        self.server.listen()
        self.answer = answer
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        link, _ = self.server.accept()
        if self.answer is None:
            time.sleep(10)
        link.recv(4096)
        link.sendall(self.answer or b"")
        link.close()


def docker_finding(monkeypatch: pytest.MonkeyPatch, address: str) -> Finding:
    monkeypatch.setenv("DOCKER_HOST", address)
    return doctor._docker()


def test_docker_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = b'HTTP/1.0 200 OK\r\n\r\n{"Version": "27.1", "ApiVersion": "1.46"}'
    for name, answer in (("good", good), ("other", b"HTTP/1.0 200 OK\r\n\r\nhello"), ("silent", None)):
        Engine(tmp_path / name, answer)
    assert "27.1 (API 1.46)" in docker_finding(monkeypatch, f"unix://{tmp_path}/good").found
    assert "not a Docker engine" in docker_finding(monkeypatch, f"unix://{tmp_path}/other").found
    monkeypatch.setattr(doctor, "DOCKER_PATIENCE_S", 0.3)
    start = time.monotonic()
    silent = docker_finding(monkeypatch, f"unix://{tmp_path}/silent")
    assert silent.state == "none" and "timed out" in silent.found and time.monotonic() - start < 2
    absent = docker_finding(monkeypatch, f"unix://{tmp_path}/absent")
    assert absent.state == "none" and "install Docker" in absent.mend
    assert docker_finding(monkeypatch, "tcp://127.0.0.1:1").state == "none"
    assert docker_finding(monkeypatch, "ssh://host").state == "none"


def test_gpu_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "_run", lambda *command: "Tesla X, 80 GiB, 1.2" if len(command) > 1 else "| CUDA Version: 12.9 |"
    )
    monkeypatch.setattr(doctor, "_version", lambda package: "2.13.0+cpu")
    finding = doctor._gpu()
    assert finding.found == "Tesla X, 80 GiB, 1.2; CUDA 12.9" and "CPU build" in finding.mend
