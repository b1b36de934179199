"""A run folder that explains itself, and the only code that knows its layout.

    RUN/run.json         what this is: name, resolved recipe, seed, versions of packages, commit, machine
    RUN/ledger.sqlite    every task, episode, dataset row, checkpoint, evaluation
    RUN/rounds.sqlite    LangGraph checkpoints of the round graph
    RUN/policies/VERSION the checkpoints, as Hugging Face folders
    RUN/metrics.jsonl    one line a measured thing
    RUN/report.html, RUN/evolution.png

Files are written beside their place and renamed, so that a killed process leaves whole files only.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kintsugi.errors import RunError

PACKAGES = ("kintsugi-agents", "torch", "transformers", "trl", "peft", "langgraph", "langchain-core", "sqlalchemy", "vllm")


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / "ledger.sqlite"
        self.rounds = path / "rounds.sqlite"
        self.policies = path / "policies"
        self.metrics_file = path / "metrics.jsonl"
        self.info_file = path / "run.json"

    @classmethod
    def create(cls, path: Path, *, recipe: Mapping[str, Any], seed: int, name: str, run_id: str = "") -> RunFolder:
        """A new folder; one that holds a run already, or that cannot be written, is a RunError."""
        run = cls(path)
        if run.info_file.exists():
            raise RunError(f"{path} holds a run already: go on with it (--resume {path}) or name another folder (--out)")
        with _writing(path):
            run.policies.mkdir(parents=True, exist_ok=True)
            info = {
                "name": name,
                "run_id": run_id,
                "seed": seed,
                "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "command": sys.argv,
                "recipe": recipe,
                "packages": _packages(),
                "python": platform.python_version(),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "commit": _commit(),
            }
            write_whole(run.info_file, json.dumps(info, indent=2) + "\n")
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run."""
        run = cls(path)
        run.info()
        return run

    @contextmanager
    def held(self) -> Iterator[None]:
        """One process at a time works on a run; a second is a RunError. A killed process holds nothing."""
        with _writing(self.path):
            file = (self.path / ".lock").open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"another process is working on {self.path}: wait until it ends, or stop it") from None
            yield

    def info(self) -> dict[str, Any]:
        """run.json. Missing or damaged is a RunError."""
        try:
            info = json.loads(self.info_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"expected a run folder at {self.path}, found no run.json in it: check the path") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.info_file} cannot be read ({error}): restore it or start a new run") from None
        if not isinstance(info, dict) or not isinstance(info.get("recipe"), dict):
            raise RunError(f"{self.info_file} names no recipe: restore it or start a new run")
        return info

    def policy(self, policy_version: str) -> Path:
        return self.policies / policy_version

    def weights(self, path: str) -> Path:
        """Where a version's weights lie: in the run (which may have been moved), or a model folder or hub name that it began
        with, as it is. One of the run's own that is gone is a RunError."""
        inside = self.path / path
        if inside.exists():
            return inside
        if Path(path).parts[:1] == (self.policies.name,):
            raise RunError(
                f"expected the weights {path} in {self.path}, found none: restore that folder from a copy or begin a new run"
            )
        return Path(path)

    def record(self, kind: str, **values: Any) -> None:
        """Add a line to metrics.jsonl, replacing the line of the same kind, round, arm and stage, if any: a stage that
        is repeated after a kill leaves one line."""
        line = {"kind": kind, **values}
        mark = _mark(line)
        kept = [old for old in self.metrics() if _mark(old) != mark]
        text = "".join(json.dumps(entry) + "\n" for entry in [*kept, line])
        with _writing(self.path):
            write_whole(self.metrics_file, text)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        if not self.metrics_file.exists():
            return []
        try:
            lines = [json.loads(line) for line in self.metrics_file.read_text(encoding="utf-8").splitlines() if line]
        except (OSError, ValueError) as error:
            raise RunError(f"{self.metrics_file} cannot be read ({error}): restore it from a copy") from None
        for line in lines:
            whole = isinstance(line, dict) and "kind" in line
            if not whole or (line["kind"] == "evaluation" and not {"arm", "policy_version", "promoted"} <= line.keys()):
                raise RunError(f"{self.metrics_file} has a line that no run writes, {line!r:.60}: restore it from a copy")
        return lines


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    half = path.with_name(f".{path.name}.half")
    with half.open("w", encoding="utf-8", errors="replace") as file:  # an answer may hold half a character
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write to the run folder {path} ({error.strerror}): choose a writable folder with free space (--out)"
        ) from None


def _mark(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line.get(key) for key in ("kind", "round", "arm", "target"))


def _packages() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    try:
        root = Path(__file__).resolve().parent
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip()
