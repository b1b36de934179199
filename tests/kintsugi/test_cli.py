"""The command line: help, outputs that programs can read, and one clear sentence for whatever a user can mend."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kintsugi.cli.main import COMMANDS, main
from kintsugi.ledger import Ledger
from kintsugi.training.run import RunResult

Said = tuple[int, str, str]
Call = Callable[..., Said]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """`kintsugi` with these arguments: exit code, standard output, standard error. Never a traceback."""

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["kintsugi", *map(str, arguments)])
        monkeypatch.setenv("NO_COLOR", "1")
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


@pytest.fixture
def refused(call: Call) -> Callable[..., None]:
    """The command ends with this code and one line on standard error that says all of this; nothing else is said."""

    def check(arguments: list[object], code: int, *told: str) -> None:
        found, out, err = call(*arguments)
        lines = [line for line in err.splitlines() if line and not re.search("Warning|return backend", line)]
        assert found == code and out == "", (found, out, err)
        assert len(lines) == 1 and lines[0].startswith("error: "), err
        for word in told:
            assert word in lines[0], f"{word!r} is not said: {lines[0]}"

    return check


@pytest.fixture
def copy(tiny_run: RunResult, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# -- what works ----------------------------------------------------------------------------------------------------------


LEAVES = ["", *COMMANDS, "episodes list", "episodes show", "episodes export"]


@pytest.mark.parametrize("command", [one for one in LEAVES if one != "episodes"])
def test_help_with_an_example(call: Call, command: str) -> None:
    code, out, err = call(*command.split(), "--help")
    assert (code, err) == (0, "") and "kintsugi " + command in out
    assert re.search(rf"Example: kintsugi {command}\b", " ".join(out.split()))


def test_recipes(call: Call) -> None:
    code, out, _ = call("recipes")
    names = json.loads(call("recipes", "--json")[1])
    assert code == 0 and "demo" in names and all(name in out for name in names)
    for name in names:
        assert json.loads(call("recipes", name)[1])["name"] == name


@pytest.mark.parametrize("resumed", [False, True])
def test_dry_run_writes_nothing(call: Call, tiny: Path, copy: Path, resumed: bool) -> None:
    out = copy.parent / "new"
    before = contents(copy.parent)
    arguments = ["--resume", copy] if resumed else [tiny, "explore.k=4", "--out", out]
    code, text, err = call("train", *arguments, "--dry-run")
    assert (code, err) == (0, "") and "Then 2 rounds:" in text and ("12 tasks x 4 samples" in text) is not resumed
    plain = json.loads(call("train", *arguments, "--dry-run", "--json")[1])
    assert plain["explore"]["k"] == (3 if resumed else 4)
    assert contents(copy.parent) == before and not out.exists()


def test_quiet_runs_still_warn(call: Call, tiny: Path, tiny_run: RunResult) -> None:
    """A round with nothing to learn from, and rows that are too long: told on standard error, and counted."""
    short = ["rounds=1", "control.enabled=false", "evaluate.tasks=2", "--quiet", "--json"]
    mute = ["explore.max_tokens=1", "explore.tasks=2", "repair.who=none", "repair.fresh=none"]
    code, out, err = call("train", tiny, *mute, *short, "--out", tiny.parent / "mute")
    assert code == 0 and json.loads(out)["champion"] == "start"
    assert "round 1  nothing to learn from, so nothing is trained: no attempt succeeded" in err and "held out" not in err

    with Ledger.open(tiny_run.folder, read_only=True) as ledger:
        rows = ledger.dataset(ledger.datasets()[0].run_id, 1, "main").rows
    lengths = sorted(len(row.ids) for row in rows)
    most = lengths[len(lengths) // 2]
    code, out, err = call("train", tiny, f"learn.max_length={most}", *short, "--out", tiny.parent / "cut")
    with Ledger.open(tiny.parent / "cut", read_only=True) as ledger:
        rows = ledger.dataset(ledger.datasets()[0].run_id, 1, "main").rows
    too_long = sum(len(row.ids) > most for row in rows)
    assert code == 0 and too_long
    assert f"round 1  round-1 learned without {too_long} too_long of its {len(rows)} rows" in err
    lines = [json.loads(line) for line in (tiny.parent / "cut" / "metrics.jsonl").read_text().splitlines()]
    (learned,) = [line for line in lines if line["kind"] == "learn"]
    assert learned["dropped"] == {"too_long": too_long, "no_loss": 0, "unpaired": 0}


def test_finished_run_resumed(call: Call, copy: Path, tiny_run: RunResult) -> None:
    """Nothing is left to do: the result is shown again."""
    code, out, _ = call("train", "--resume", copy, "--quiet", "--json")
    found = json.loads(out)
    assert code == 0 and found["champion"] == tiny_run.champion and Path(found["report"]).is_file()
    rates = {(one["arm"], one["round"]): one["success_rate"] for one in found["evaluations"]}
    assert rates == tiny_run.success_rates
    code, out, _ = call("train", "--resume", copy, "--quiet")
    assert code == 0 and str(copy / "policies" / tiny_run.champion) in out


def test_report(call: Call, copy: Path, tiny_run: RunResult) -> None:
    code, out, _ = call("report", copy)
    assert code == 0 and "Held-out success went from" in out and (copy / "report.html").is_file()
    found = json.loads(call("report", copy, "--json")[1])
    assert found["finished"] and found["main"][0]["rate"] == tiny_run.success_rates["main", 0]
    other = shutil.copytree(copy, copy.parent / "other-1")
    info = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**info, "seed": 1}))
    code, out, _ = call("report", copy, other)
    assert code == 0 and "last round" in out and (copy.parent / "comparison.png").is_file()
    assert len(json.loads(call("report", copy, other, "--json")[1])["arms"]) == 2


def test_episodes(call: Call, tiny_run: RunResult, tmp_path: Path) -> None:
    code, out, _ = call("episodes", "list", tiny_run.folder, "--round", "1", "--limit", "3")
    assert code == 0 and "3 of " in out
    found = json.loads(call("episodes", "list", tiny_run.folder, "--round", "1", "--json", "--limit", "2")[1])
    assert len(found) == 2
    code, out, _ = call("episodes", "show", tiny_run.folder, found[0]["id"])
    assert code == 0 and found[0]["id"][:8] in out


def test_graph(call: Call) -> None:
    for which in ("episode", "round"):
        code, out, _ = call("graph", which)
        assert (code == 0 and "explore" in out) or "agent" in out
        assert json.loads(call("graph", which, "--json")[1])


def test_eval_and_serve(
    call: Call, tiny: Path, tiny_run: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's champion measured anew is as good as the run says; so it is behind a real server."""
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("eval", tiny_run.folder, "--json", "--quiet")
    found = json.loads(out)
    assert code == 0 and found["num_tasks"] == 16
    last = tiny_run.success_rates["main", int(tiny_run.champion.removeprefix("round-"))]
    assert abs(found["success_rate"] - last) <= 1 / 16, "batches of another size may round otherwise"
    code, out, _ = call("eval", tiny_run.folder, "evaluate.tasks=4", "--quiet")
    assert code == 0 and "of 4 held-out tasks" in out
    assert not list(tmp_path.iterdir()), "nothing is written that was not asked for"
    kept = ["--recipe", tiny, "--quiet", "--ledger", tmp_path / "kept.sqlite"]
    assert call("eval", tiny_run.champion_folder, "evaluate.tasks=4", *kept)[0] == 0
    with Ledger.open(tmp_path / "kept.sqlite", create=False, read_only=True) as ledger:
        assert ledger.count_episodes(purpose="evaluate") == 4
    with served(tiny_run.folder) as url:
        code, out, err = call("eval", "--endpoint", url, "--model", "mine", "--recipe", tiny, "--quiet", "--json")
        assert code == 0, err
    assert abs(json.loads(out)["success_rate"] - last) <= 2 / 16


def test_a_run_keeps_its_recipe(refused: Any, tmp_path: Path) -> None:
    refused(["train", "--resume", tmp_path, "rounds=9"], 2, "a run keeps its recipe, found rounds=9 beside --resume")
    refused(["train", "demo", "--resume", tmp_path], 2, "not both")


def test_a_port_that_there_is_not(call: Call, tmp_path: Path) -> None:
    """Known before a model is loaded."""
    for port in (-1, 65536):
        code, out, err = call("serve", tmp_path, "--port", port)
        assert code == 2 and out == "" and "'--port'" in err


class served:
    """A real `kintsugi serve` process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> str:
        start = "from kintsugi.cli.main import main; main()"
        command = [sys.executable, "-c", start, "serve", str(self.folder), "--port", "0", "--name", "mine"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + (self.process.stderr.read() if self.process.stderr else "")
        return found[0]

    def __exit__(self, *raised: object) -> None:
        self.process.send_signal(signal.SIGINT)
        _, err = self.process.communicate(timeout=20)
        assert "Traceback" not in err and self.process.returncode in (0, 130), (self.process.returncode, err)


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["demoo"], 2, ['unknown recipe "demoo"', 'did you mean "demo"?']),
        (["nowhere/mine.toml"], 2, ["nowhere/mine.toml", "found none", "check the path"]),
        (["demo", "explore.kk=3"], 2, ['unknown key "explore.kk"', 'did you mean "k"?']),
        (["demo", "explore.k=many"], 2, ['"explore.k" expects', "found many"]),
        (["demo", "explore.k=0"], 2, ['"explore.k" expects', "found 0"]),
        (["demo", "explore.k"], 2, ["expected key=value", 'found "explore.k"']),
        (["demo", "environment.options.evnts=2"], 2, ['no option "evnts"', 'did you mean "events"?']),
        (["demo", "environment.options.events=99"], 2, ["expected", "99"]),
        (["demo", "environment.name=word_problem"], 2, ['did you mean "word_problems"?']),
        (["demo", "environment.train_split=trian"], 4, ['"trian"', 'did you mean "train"?']),
        (["demo", "environment.heldout_split=train"], 9, ["environment.heldout_split", "never be trained on"]),
        (["demo", "model.path=./nowhere"], 6, ["./nowhere", "found none", "check the path"]),
        (["demo", "model.kind=endpoint", "model.path=x"], 2, ['"endpoint" cannot be trained']),
        (["demo", "model.prompts=bear"], 2, ['did you mean "bare"?']),
        (
            ["demo", "environment.name=gsm8k", 'environment.options={data="nowhere"}', "environment.heldout_split=test"],
            4,
            ["nowhere", "expected"],
        ),
        ([], 2, ["--resume", "kintsugi recipes"]),
    ],
)
def test_bad_recipes_leave_no_folder(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], code: int, told: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(["train", *arguments, "--out", "new", "--quiet"], code, *told)
    refused(["train", *arguments, "--dry-run"], code, *told)
    assert not list(tmp_path.iterdir())


def test_bad_run_folders(refused: Any, tiny: Path, copy: Path, tmp_path: Path) -> None:
    """Not a run, a run already, both at once: told, and nothing is touched."""
    before = contents(copy)
    refused(["train", "--resume", tmp_path / "none"], 8, "expected a run folder at", "found no run.json")
    refused(["train", "--resume", tiny], 8, "expected a run folder at", "found no run.json")
    refused(["train", tiny, "--out", copy], 8, "holds a run already", f"--resume {copy}")
    refused(["train", tiny, "--resume", copy], 2, "not both")
    refused(["report", tmp_path], 8, "expected a run folder")
    refused(["eval", tmp_path / "none", "--quiet"], 6, str(tmp_path / "none"))
    refused(["eval"], 2, "--endpoint URL")
    refused(["eval", "--endpoint", "http://127.0.0.1:9/v1"], 2, "--model NAME")
    refused(["episodes", "list", tmp_path / "none"], 5, str(tmp_path / "none"))
    refused(["recipes", "demoo"], 2, 'did you mean "demo"?')
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("file", "damage", "code", "told"),
    [
        ("ledger.sqlite", b"no database" * 999, 5, ["ledger.sqlite is damaged", "restore it"]),
        ("ledger.sqlite", None, 5, ["there is no ledger at"]),
        ("rounds.sqlite", b"no database" * 999, 8, ["rounds.sqlite is damaged", "remove it and resume"]),
        ("run.json", b'{"name": "tiny", "rec', 8, ["run.json cannot be read", "restore it"]),
        ("run.json", b"[]", 8, ["run.json names no recipe", "restore it"]),
        ("run.json", b'{"recipe": {"name": "x"}}', 2, ["run.json", "environment"]),
    ],
)
def test_damaged_runs(refused: Any, copy: Path, file: str, damage: bytes | None, code: int, told: list[str]) -> None:
    for beside in copy.glob("*.sqlite-*"):
        beside.unlink()
    (copy / file).unlink() if damage is None else (copy / file).write_bytes(damage)
    kept = {name: data for name, data in contents(copy).items() if name != ".lock"}
    refused(["train", "--resume", copy, "--quiet"], code, *told)
    assert {name: data for name, data in contents(copy).items() if name != ".lock"} == kept


def test_damaged_metrics(refused: Any, copy: Path) -> None:
    (copy / "metrics.jsonl").write_text('{"kind": "evaluation", "ro')
    refused(["eval", copy, "--quiet"], 8, "metrics.jsonl cannot be read", "restore it")


def test_weights_that_are_gone(refused: Any, copy: Path) -> None:
    """A version of the run is no hub name: nobody asks a network for it, and a finished run does not name it as a result."""
    shutil.rmtree(copy / "policies")
    told = ("expected the weights policies/round-", "found none", "restore that folder from a copy")
    refused(["eval", copy, "--quiet"], 8, *told)
    refused(["train", "--resume", copy, "--quiet"], 8, *told)


def test_two_at_once(refused: Any, copy: Path) -> None:
    import fcntl

    with (copy / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(["train", "--resume", copy, "--quiet"], 8, "another process is working on", "wait until it ends")


def test_endpoint_down(refused: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--recipe", tiny, "--quiet", "evaluate.tasks=2"]
    started = time.monotonic()
    refused(["eval", "--endpoint", "http://127.0.0.1:9/v1", "--model", "x", *options], 6, "http://127.0.0.1:9/v1")
    assert time.monotonic() - started < 20
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(refused: Any, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(["train", tiny, "--out", tmp_path / "file" / "run"], 8, "cannot write", "--out")
    refused(["train", tiny, "--out", "/proc/kintsugi/run"], 8, "cannot write", "--out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders: test_read_only_disk looks at that")
def test_read_only_folder(refused: Any, tiny: Path, copy: Path, tmp_path: Path) -> None:
    copy.chmod(0o555)
    refused(["train", "--resume", copy], 8, "cannot write")
    tmp_path.chmod(0o555)
    refused(["train", tiny, "--out", tmp_path / "run"], 8, "cannot write")
    tmp_path.chmod(0o755)
    copy.chmod(0o755)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk of its own, mounted with these options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"a disk of its own needs root and mount: {done.stderr.decode().strip()}")
        return place

    yield mount
    subprocess.run(["umount", "-l", place], capture_output=True, check=False)


def test_read_only_disk(refused: Any, disk: Any, copy: Path, tiny: Path) -> None:
    place = disk("size=8m")
    shutil.copytree(copy, place / "run")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    refused(["train", "--resume", place / "run", "--quiet"], 8, "cannot write", "Read-only")
    refused(["train", tiny, "--out", place / "new", "--quiet"], 8, "cannot write", "--out")
    subprocess.run(["mount", "-o", "remount,rw", place], check=True)
    assert not (place / "new").exists()


def test_full_disk(refused: Any, call: Call, disk: Any, tiny: Path, tiny_run: RunResult) -> None:
    """The disk runs full in the middle of a run; with space made it goes on and ends like any other."""
    place = disk("size=2900k")
    shutil.copytree(tiny.parent / "warm_starts", place / "warm_starts", ignore=shutil.ignore_patterns("*-raw", "*-first"))
    found, out, err = call("train", tiny, "--out", place / "run", "--quiet")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert found != 0 and out == "" and len(lines) == 1, err
    assert "full" in lines[0] or "No space left" in lines[0], lines
    subprocess.run(["mount", "-o", "remount,size=40m", place], check=True)
    code, out, _ = call("train", "--resume", place / "run", "--quiet", "--json")
    assert code == 0
    rates = {(one["arm"], one["round"]): one["success_rate"] for one in json.loads(out)["evaluations"]}
    assert rates == tiny_run.success_rates
    with Ledger.open(place / "run", read_only=True) as mine, Ledger.open(tiny_run.folder, read_only=True) as theirs:
        assert mine.digest() == theirs.digest()


def test_error_while_writing(refused: Any, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever file it is that the disk refuses, it is one sentence."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    from kintsugi.training import report

    monkeypatch.setattr(report, "write_whole", refuse)
    refused(["report", copy], 8, "cannot write somewhere", "free space")
    (copy / "file").touch()
    refused(["graph", "round", "--out", copy / "file" / "x.svg"], 8, "cannot write", "choose another place")
