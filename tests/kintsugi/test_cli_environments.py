"""`kintsugi environments` and `kintsugi data`: the list, checks of bundled sets and of one's own file, fetching."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kintsugi.cli.main import main
from kintsugi.errors import ConfigError, DataError
from kintsugi.sandboxes.environments import about as about_module
from kintsugi.sandboxes.environments import official_download
from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.environment import environment_kinds
from kintsugi.sandboxes.environments.official_download import fetch

GUIDE = Path(__file__).parents[2] / "docs" / "your-environment.md"
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """`kintsugi` with these arguments: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["kintsugi", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def test_the_list_names_every_environment(call: Call) -> None:
    code, out, _ = call("environments", "--json")
    listed = json.loads(out)
    assert code == 0 and set(listed) == set(environment_kinds())
    assert {"gsm8k", "gsm_hard", "svamp", "asdiv", "math", "proofwriter", "ruletaker", "mbpp"} <= set(listed)
    assert all(one["kind"] for one in listed.values())
    code, out, _ = call("environments")
    assert code == 0 and "math: program of thought or boxed answer" in out and "CC BY-NC 4.0 (non-commercial)" in out


def test_checking_a_bundled_set(call: Call) -> None:
    code, out, _ = call("environments", "check", "treasure_hunt", "--tasks", "3", "--option", "num_tasks=6", "--json")
    told = json.loads(out)
    assert code == 0 and told["ok"] and told["golds"]["tasks"] == 18
    assert told["conformance"]["num_tasks"] == 3 and told["conformance"]["failures"] == []


def test_checking_ones_own_file(call: Call, tmp_path: Path) -> None:
    example = GUIDE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    mine = tmp_path / "reverse.py"
    mine.write_text(example)
    code, out, _ = call("environments", "check", mine, "--tasks", "4")
    assert code == 0 and out.strip().endswith("ok") and "records (train 100, heldout 100" in out
    mine.write_text(example.replace("float(right)", "1.0"))
    code, out, _ = call("environments", "check", mine, "--tasks", "4")
    assert code == 1 and out.strip().endswith("not ok") and "won by a spoiled gold" in out
    mine.write_text("x = 1\n")
    code, out, err = call("environments", "check", mine)
    assert (code, out) == (2, "") and "expected a function open_environment" in err


OWN = """
from kintsugi.errors import DataError
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.environment import ProgramEnvironment


class Mine(ProgramEnvironment):
    name = "mine"

    def tasks(self, split, *, limit=None, seed=0):
        if split not in ("easy", "hard"):
            raise DataError(f"no split {split}")
        return [
            Task(id=f"{split}-{n}", environment="mine", split=split, prompt=f"{split} {n}", payload={"answer": str(n)})
            for n in range(100, 100 + (limit or 5))
        ]

    async def judge(self, task, action):
        right = action == task.payload["answer"]
        return Verdict(success=right, reward=float(right), feedback="" if right else "no")

    async def gold(self, task):
        return [task.payload["answer"]]


def open_environment():
    return Mine()
"""


def test_checking_ones_own_splits_and_faults(call: Call, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(OWN)
    code, out, err = call("environments", "check", mine)
    assert code == 4 and "name one with --split" in err and not out
    code, out, err = call("environments", "check", mine, "--split", "hard", "--tasks", "3")
    assert code == 0 and "mine (hard, 3 tasks)" in out and "5 records (hard 5)" in out, out + err
    mine.write_text(OWN.replace("action == task", "int(action) == task"))
    code, out, err = call("environments", "check", mine, "--split", "hard", "--tasks", "3", "--json")
    told = json.loads(out)
    line = 1 + OWN[: OWN.index("right = ")].count("\n")
    assert code == 1 and not told["ok"] and f"(mine.py, line {line})" in told["conformance"]["failures"][0]
    assert "ValueError: invalid literal" in told["golds"]["failures"][0] and len(told["golds"]["failures"]) == 1


def test_a_malformed_record_is_told_and_fails(call: Call, tmp_path: Path) -> None:
    good = {"question": "What is 2 + 3?", "answer": "It is <<2+3=5>>5.\n#### 5"}
    (tmp_path / "train.jsonl").write_text(json.dumps(good))
    (tmp_path / "test.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({"question": "q", "answer": "none"}))
    options = ["--data", tmp_path, "--tasks", "1", "--option", 'sandbox={"kind": "local", "allow_unsafe": true}']
    code, out, _ = call("environments", "check", "gsm8k", *options)
    assert code == 1 and f"{tmp_path / 'test.jsonl'}, line 2: expected" in out, out
    (tmp_path / "test.jsonl").unlink()
    code, out, _ = call("environments", "check", "gsm8k", *options)
    assert code == 0 and "left out: test: expected the file" in out, out


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["environments", "check", "svmap"], 2, 'did you mean "svamp"'),
        (["environments", "check", "./none.py"], 2, "found none"),
        (["environments", "check", "svamp", "--data", "nowhere"], 4, "no such folder"),
        (["environments", "check", "svamp", "--option", "hub"], 2, "expected --option KEY=VALUE"),
        (["environments", "check", "svamp", "--option", "hbu=1"], 2, 'did you mean "hub"'),
        (["environments", "check", "svamp", "--option", "limits=5"], 2, "svamp.limits: expected a table"),
        (["environments", "check", "svamp", "--option", "sandbox=5"], 2, "svamp.sandbox: expected an open sandbox"),
        (["data", "fetch", "treasure_hunt"], 2, "has no official file to fetch"),
        (["data", "fetch", "asdiv"], 2, "say --accept-licence"),
    ],
)
def test_mistakes_get_one_sentence(call: Call, arguments: list[str], code: int, told: str) -> None:
    found, _, err = call(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert found == code and len(lines) == 1 and told in lines[0], err


# Fetching, from a server of the test's own ----------------------------------------------------------------------------


class Release(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}  # noqa: RUF012 - the handler's class is all that the server keeps
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        body = self.files.get(self.path)
        self.send_response(200 if body is not None else 404)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Release]]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Release)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Release.files, Release.asked = {}, []
    yield f"http://127.0.0.1:{server.server_port}", Release
    server.shutdown()
    thread.join()
    server.server_close()


def offered(monkeypatch: pytest.MonkeyPatch, *downloads: Download) -> None:
    said = About(kind="k", metric="m", licence="MIT", home="https://example.org", downloads=downloads)
    monkeypatch.setattr(official_download, "about", lambda name: said)
    monkeypatch.setattr(about_module, "about", lambda name: said)


def test_a_release_is_fetched_compared_and_written_down(
    tmp_path: Path, release: tuple[str, type[Release]], monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    url, server = release
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("depth-5/train.jsonl", "{}")
        archive.writestr("../outside.txt", "no")
    server.files = {"/a.json": b"[1]", "/b.zip": packed.getvalue()}
    known = hashlib.sha256(b"[1]").hexdigest()
    offered(
        monkeypatch,
        Download(url=f"{url}/a.json", path="a.json", sha256=known),
        Download(url=f"{url}/b.zip", path="b.zip", unpack=True),
    )
    folder = tmp_path / "data"
    code, out, err = call("data", "fetch", "svamp", "--to", folder, "--json")
    told = json.loads(out)
    assert code == 0 and "licence: MIT" in err and told["licence"] == "MIT"
    assert [(one["known"], one["fresh"]) for one in told["files"]] == [(True, True), (False, True)]
    assert (folder / "a.json").read_bytes() == b"[1]" and (folder / "depth-5" / "train.jsonl").read_text() == "{}"
    assert not (tmp_path / "outside.txt").exists() and not list(folder.glob("*.part"))
    sources = json.loads((folder / "SOURCES.json").read_text())
    assert sources["files"]["a.json"]["sha256"] == known and sources["licence"] == "MIT"
    again = fetch("svamp", folder)
    assert [(one.known, one.fresh) for one in again] == [(True, False), (True, False)] and len(server.asked) == 2
    (folder / "b.zip").unlink()
    server.files["/b.zip"] = b"another"
    with pytest.raises(DataError, match="expected SHA-256"):
        fetch("svamp", folder)
    assert not (folder / "b.zip").exists()


def test_what_cannot_be_fetched_is_one_sentence(
    tmp_path: Path, release: tuple[str, type[Release]], monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    url, _ = release
    offered(monkeypatch, Download(url=f"{url}/none.json", path="none.json"))
    with pytest.raises(DataError, match=r"answered 404 .* fetch http.* elsewhere and put it into .* as none\.json"):
        fetch("svamp", tmp_path)
    offered(monkeypatch, Download(url="http://127.0.0.1:9/x.json", path="x.json"))
    code, out, err = call("data", "fetch", "svamp", "--to", tmp_path)
    assert code == 4 and "error: cannot reach 127.0.0.1" in err and "licence: MIT" in out
    offered(monkeypatch)
    with pytest.raises(ConfigError, match="no official file"):
        fetch("svamp", tmp_path)
