"""`kintsugi episodes`: what people and programs are shown, in 80 columns, and that nothing heavy is imported for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kintsugi.cli.episodes import app
from kintsugi.errors import ConfigError, LedgerError
from kintsugi.ledger import Ledger
from kintsugi.records import Episode, from_plain
from tests.kintsugi.ledger_samples import make_checkpoint, make_dataset, make_episode, make_task

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> str:
    with Ledger.open(tmp_path / "run") as ledger:
        ledger.add_tasks(make_task(number) for number in range(30))
        episodes = [make_episode(number, round=r) for r in (0, 1) for number in range(15)]
        ledger.commit_episodes(episodes)
        odd = make_episode(20, round=2, stops=("error",), first_text="[bold]not markup[/bold] \x1b[2J end")
        ledger.commit_episodes([odd])
        ledger.add_checkpoint(make_checkpoint("policy-1"))
        ledger.add_dataset(make_dataset(episodes[16]))
    return str(tmp_path / "run")


def call(*arguments: str, width: int = 80) -> Result:
    return CliRunner(env={"COLUMNS": str(width), "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, list(arguments))


def shown(*arguments: str) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    return result.output


def test_list(run: str) -> None:
    text = shown("list", run)
    assert "e0-0000-0" in text and "explore ✗ refine ✓" in text
    assert "20 of 31 episodes; the next ones: --offset 20" in text
    text = shown("list", run, "--offset", "20", "--limit", "5", "--round", "1")
    assert "0 of 15 episodes" in text
    text = shown("list", run, "--task", "t3", "--stage", "refine", "--stop", "success", "--round", "1")
    assert "e1-0003-0" in text and "1 of 1 episodes" in text
    assert "explore !" in shown("list", run, "--stop", "error")


def test_list_as_json(run: str) -> None:
    (one,) = json.loads(call("list", run, "--json", "--task", "t3", "--round", "1").output)
    assert one["id"] == "e1-0003-0" and one["success"] is True
    assert [part["stop"] for part in one["attempts"]] == ["failure", "success"]
    assert one["attempts"][1]["cost"]["generated_tokens"] == 2


def test_show(run: str) -> None:
    text = shown("show", run, "e1-0001")
    for fact in (
        "episode e1-0001-0",
        "task sums/t1, explore, run run-1",
        "path agent → environment",
        "attempt 0: explore, failure, reward 0",
        "What is 1 + 1?",
        "action, turn 1, 2 tokens",
        "critique by refiner",
        "verdict: failure, reward 0, exact 0",
        "fault: never used 1",
        "2 tokens generated, 3 processed, 1 executions, 0.50 s, soft reward -0.200",
        "└─ repairs attempt 0",
        'row 0 (repair) of dataset "agent"',
    ):
        assert fact in text, text
    assert text.count("attempt 0: result 1") == 2, "feedback is in the verdict and in the lineage"


def test_show_prints_what_a_model_wrote_as_it_is(run: str) -> None:
    text = shown("show", run, "e2-0020")
    assert "[bold]not markup[/bold] ␛[2J end" in text
    assert "\x1b[2J" not in text


def test_half_characters_are_shown_and_exported(tmp_path: Path) -> None:
    """JSON can say a lone surrogate, so a server's answer can hold one; no terminal can show it."""
    said = "half a \ud800 character"
    with Ledger.open(tmp_path / "run") as ledger:
        ledger.add_tasks([make_task(0)])
        ledger.commit_episodes([make_episode(0, stops=("failure",), first_text=said)])
    text = shown("show", str(tmp_path / "run"), "e0")
    assert "half a ? character" in text
    plain = json.loads(call("show", str(tmp_path / "run"), "e0", "--json").output)
    assert said in json.dumps(plain, ensure_ascii=False)
    out = tmp_path / "rows.jsonl"
    assert "1 trajectories rows" in call("export", str(tmp_path / "run"), "trajectories", str(out)).output
    assert "half a" in out.read_text(encoding="utf-8")


def test_show_as_json(run: str) -> None:
    plain = json.loads(call("show", run, "e1-0001", "--json").output)
    assert from_plain(Episode, plain) == make_episode(1, round=1)


def test_export(run: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    assert "15 repairs rows" in call("export", run, "repairs", str(out), "--round", "1").output
    assert len(out.read_text().splitlines()) == 15
    result = call("export", run, "sft", str(out), "--json")
    assert "--recipe names one" in result.stderr, "a ledger by itself knows no prompts"
    assert json.loads(result.stdout) == {"kind": "sft", "path": str(out), "rows": 15}, "each text of a task once"
    result = call("export", run, "sft", str(out), "--json", "--recipe", "gsm8k")
    assert result.stderr == "" and json.loads(out.read_text().splitlines()[0])["messages"][0]["role"] == "system"


def test_mistakes_are_one_sentence(run: str, tmp_path: Path) -> None:
    for arguments, kind, sentence in (
        (("list", str(tmp_path / "none")), LedgerError, "there is no ledger at"),
        (("show", run, "zzz"), LedgerError, 'no episode whose id begins with "zzz"'),
        (("list", run, "--stage", "refin"), ConfigError, 'did you mean "refine"'),
        (("list", run, "--stop", "sucess"), ConfigError, 'did you mean "success"'),
        (("export", run, "dop", str(tmp_path / "x")), ConfigError, 'did you mean "dpo"'),
        (("export", run, "dpo", str(tmp_path / "no" / "x")), LedgerError, "cannot be written"),
        (("export", run, "dpo", str(tmp_path)), LedgerError, "expected the name of a file to write, found the folder"),
        (("export", run, "dpo", "."), LedgerError, "expected the name of a file to write, found the folder"),
    ):
        result = call(*arguments)
        assert result.exit_code != 0
        assert isinstance(result.exception, kind) and sentence in str(result.exception)


def test_help_has_examples() -> None:
    for command in ("list", "show", "export"):
        text = shown(command, "--help")
        assert f"Example: kintsugi episodes {command} runs/demo" in text
    assert "List, show and export" in call("--help").output


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, kintsugi.cli.episodes as _; "
        "print([name for name in ('torch', 'transformers', 'trl', 'peft', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
