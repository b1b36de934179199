"""Fetching against a server of the test's own that misbehaves: nothing bad is kept, recorded or called fine."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import ConfigError, DataError
from kintsugi.sandboxes.environments import official_download
from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.environment import environment_kinds
from kintsugi.sandboxes.environments.official_download import SOURCES, fetch

LINES = b'{"question": "What is 2 + 3?", "answer": "#### 5"}\n' * 100
PAGE = b"\n<!DOCTYPE html><html><body>Sign in to go on</body></html>"


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}  # noqa: RUF012 - the handler's class is all that the server keeps
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        path, _, how = self.path.partition("?")
        body = self.files.get(path)
        self.send_response(200 if body is not None else 404)
        body = body or b""
        self.send_header("Content-Length", str(len(body) + (7600 if how == "short" else 0)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    Server.files, Server.asked = {"/a.jsonl": LINES, "/page": PAGE, "/q.zip": packed()}, []
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Any:
    def one(*downloads: Download) -> None:
        said = About(kind="k", metric="m", licence="MIT", home="https://example.org", downloads=downloads)
        monkeypatch.setattr(official_download, "about", lambda name: said)

    return one


def packed(spoilt: bool = False) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("questions/train.json", '{"1": {"question": "What is it?"}}')
        archive.writestr("../outside.txt", "no")
    return held.getvalue().replace(b"What is it?", b"What is it!", 1) if spoilt else held.getvalue()


def there(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("download", "body", "sentence"),
    [
        (
            {"url": "/a.jsonl?short", "path": "a.jsonl"},
            LINES,
            r"expected 12\d00 bytes as announced, 5\d00 came; fetch again",
        ),
        ({"url": "/q.zip?short", "path": "q.zip", "unpack": True}, packed(), "as announced"),
        ({"url": "/x", "path": "q.zip", "unpack": True}, PAGE, r"expected q\.zip, found a web page"),
        ({"url": "/x", "path": "a.json"}, PAGE, r"expected a\.json, found a web page"),
        ({"url": "/x", "path": "q.zip", "unpack": True}, b"PK, or not", "cannot be unpacked"),
        ({"url": "/x", "path": "q.zip", "unpack": True}, packed(spoilt=True), r"questions/train\.json in it is spoilt"),
        ({"url": "/x", "path": "a.jsonl"}, LINES[:-20], "cannot be read as such"),
        ({"url": "/x", "path": "a.json"}, b"", "found nothing"),
        ({"url": "/x", "path": "a.json"}, b'{"message": "rate limited"}', "found a message: .*rate limited"),
        ({"url": "/x", "path": "a.json", "sha256": "0" * 64}, b"[]", "expected SHA-256 0000"),
    ],
)
def test_what_came_wrong_is_an_error_each_time_and_stays_nowhere(
    server: str, offer: Any, tmp_path: Path, download: dict[str, Any], body: bytes, sentence: str
) -> None:
    Server.files[download["url"].partition("?")[0]] = body
    offer(Download(**{**download, "url": server + download["url"]}))
    for _ in range(2):
        with pytest.raises(DataError, match=sentence):
            fetch("x", tmp_path / "data" / "x")
        assert there(tmp_path) == [], "no file, no record of a wrong checksum, no empty folder"


def test_what_is_known_of_a_checksum_is_said(server: str, offer: Any, tmp_path: Path) -> None:
    known = hashlib.sha256(LINES).hexdigest()
    offer(Download(url=f"{server}/a.jsonl", path="sub/a.jsonl"))
    assert [one.against for one in fetch("x", tmp_path)] == ["nothing"]
    assert [(one.against, one.fresh) for one in fetch("x", tmp_path)] == [("first fetch", False)]
    offer(Download(url=f"{server}/a.jsonl", path="sub/a.jsonl", sha256=known))
    assert [one.against for one in fetch("x", tmp_path)] == ["project"] and len(Server.asked) == 1
    offer(Download(url=f"{server}/a.jsonl", path="sub/a.jsonl"))
    (tmp_path / "sub" / "a.jsonl").write_bytes(LINES[:100])
    assert [one.fresh for one in fetch("x", tmp_path)] == [True], "one that was spoilt is fetched anew"
    Server.files["/a.jsonl"] = LINES * 2
    (tmp_path / "sub" / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"as at the first fetch .* take sub/a\.jsonl out of that file and fetch again"):
        fetch("x", tmp_path)


def test_an_archive_put_there_by_hand_is_unpacked(server: str, offer: Any, tmp_path: Path) -> None:
    """As the error advises where there is no network."""
    offer(Download(url=f"{server}/none", path="q.zip", unpack=True))
    with pytest.raises(DataError, match=r"put it into .* as q\.zip"):
        fetch("x", tmp_path / "data")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "q.zip").write_bytes(packed())
    (one,) = fetch("x", tmp_path / "data")
    assert not one.fresh and one.unpacked == 1 and (tmp_path / "data" / "questions" / "train.json").is_file()
    assert there(tmp_path) == ["data", f"data/{SOURCES}", "data/q.zip", "data/questions", "data/questions/train.json"]
    assert fetch("x", tmp_path / "data")[0].unpacked == 0
    (tmp_path / "data" / "questions" / "train.json").unlink()
    assert fetch("x", tmp_path / "data")[0].unpacked == 1
    (tmp_path / "data" / "q.zip").write_bytes(PAGE)
    (tmp_path / "data" / SOURCES).unlink()
    for _ in range(2):
        with pytest.raises(DataError, match=r"found a web page; delete it"):
            fetch("x", tmp_path / "data")


def test_a_tar_is_unpacked_too(server: str, offer: Any, tmp_path: Path) -> None:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name in ("depth-5/train.jsonl", "../outside.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = len(LINES)
            archive.addfile(entry, io.BytesIO(LINES))
    Server.files["/r.tar.gz"] = held.getvalue()
    offer(Download(url=f"{server}/r.tar.gz", path="r.tar.gz", unpack=True))
    assert fetch("x", tmp_path / "data")[0].unpacked == 1
    assert (tmp_path / "data" / "depth-5" / "train.jsonl").read_bytes() == LINES and there(tmp_path)[0] == "data"
    assert not (tmp_path / "outside.txt").exists() and fetch("x", tmp_path / "data")[0].unpacked == 0


def test_folders_and_records_that_are_none_are_one_sentence(server: str, offer: Any, tmp_path: Path) -> None:
    offer(Download(url=f"{server}/a.jsonl", path="a.jsonl"))
    (tmp_path / "file").write_text("taken")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"expected a folder to write x into, found .*file"):
            fetch("x", folder)
    for spoilt in ('{"files": 5}', "[]", "{", '{"files": {"a.jsonl": 3}}', '{"files": {"a.jsonl": {"sha256": 5}}}'):
        (tmp_path / SOURCES).write_text(spoilt)
        with pytest.raises(DataError, match=r'SOURCES\.json: expected \{"files"'):
            fetch("x", tmp_path)
        assert (tmp_path / SOURCES).read_text() == spoilt and not (tmp_path / "a.jsonl").exists()


def test_an_earlier_file_stays_when_a_later_one_fails(server: str, offer: Any, tmp_path: Path) -> None:
    offer(Download(url=f"{server}/a.jsonl", path="a.jsonl"), Download(url=f"{server}/none", path="b.jsonl"))
    with pytest.raises(DataError, match="answered 404"):
        fetch("x", tmp_path / "data")
    assert there(tmp_path / "data") == [SOURCES, "a.jsonl"]
    assert list(json.loads((tmp_path / "data" / SOURCES).read_text())["files"]) == ["a.jsonl"]


def test_what_the_environments_offer_is_well_formed() -> None:
    """Checksums are whole, archives are unpacked, and what comes unencrypted can be compared."""
    from kintsugi.sandboxes.environments.about import about

    for name in environment_kinds():
        for one in about(name).downloads:
            assert one.url.startswith(("https://", "http://")), one
            assert one.sha256 == "" or (len(one.sha256) == 64 and int(one.sha256, 16) >= 0), one
            assert one.unpack == one.path.endswith((".zip", ".tar.gz", ".tgz")), one
            assert one.url.startswith("https://") or one.sha256, f"{one.path} comes unencrypted: it needs a checksum"
