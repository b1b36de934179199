"""`kintsugi play` from a pipe and at a real (pseudo-)terminal of 80 columns: steer, leave, come back, and one clear sentence
for whatever is wrong."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kintsugi.cli.play import _config, _player, app
from kintsugi.cli.play_screen import COMMANDS
from kintsugi.errors import ConfigError, KintsugiError
from kintsugi.ledger import Ledger
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
GOLD = ["go north", "take lamp", "go south", "go west", "put lamp"]  # of the first training task


def piped(folder: Path, arguments: str, typed: str = "") -> str:
    """What the command shows for these lines of input; an error is raised as it is."""
    done = CliRunner().invoke(app, [*arguments.split(), "--sessions", str(folder)], input=typed)
    if isinstance(done.exception, KintsugiError):
        raise done.exception
    assert done.exit_code == 0, done.output
    if "--json" not in arguments:
        told = [line for line in done.stdout.splitlines() if not re.match(r"\[\d+|saved at|committed|no sessions", line)]
        assert max(map(len, told), default=0) <= 80, done.stdout
    return done.stdout


# -- from a pipe ---------------------------------------------------------------------------------------------------------


def test_acting_oneself_from_a_pipe(tmp_path: Path) -> None:
    shown = piped(tmp_path, "treasure_hunt", "\n".join(["look", ":back 2", *GOLD, ":lines", ""]))
    assert "Bring the lamp to the attic." in shown and "success, reward 1" in shown
    assert re.search(r"line A +points 0-2 +turn 1, agent next\n▸ line B +points 3-12 after 0 +success", shown)
    assert re.search(r"saved at point 12; come back: kintsugi play --resume [0-9a-f]{6}", shown)


def test_watching_the_expert_and_every_command(tmp_path: Path) -> None:
    ledger = tmp_path / "kept.sqlite"
    lines = ["", ":step", ":step", ":edit look", ":again", ":back", ":branch 3", ":history", ":show 1", ":graph", ":state"]
    lines += [":pause", ":pause before:agent", "", ":pause none", ":end", ":line a", ":line B", ":help", ":end"]
    lines += [f":commit {ledger}", ":q"]
    shown = piped(tmp_path / "plays", "treasure_hunt --policy expert", "\n".join(lines))
    assert "said by a person" in shown and "environment (next)" in shown and '"path"' in shown
    assert "stops at: before:agent" in shown and "stops at: none" in shown
    assert all(f":{name}" in shown for name in COMMANDS)
    episode = re.search(rf"kintsugi episodes show {re.escape(str(ledger))} ([0-9a-f]+)", shown)
    assert episode is not None
    with Ledger.open(ledger, read_only=True) as opened:
        found = opened.episode(episode[1])
    assert found.purpose == "play" and found.success
    again = piped(tmp_path / "plays", "--resume last", ":history\n")
    assert "put lamp" in again and "success" in again


def test_an_environment_in_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by its path; the session opens again from another folder."""
    hunt = "from kintsugi.sandboxes.environments.treasure_hunt import open_environment\n"
    (tmp_path / "my_world_with_a_long_name.py").write_text(hunt)
    monkeypatch.chdir(tmp_path)
    shown = piped(tmp_path, "./my_world_with_a_long_name.py", GOLD[0] + "\n")
    assert "Bring the lamp to the attic." in shown
    monkeypatch.chdir("/")
    shown = piped(tmp_path, "--resume last", "\n".join([*GOLD[1:], ""]))
    assert "success, reward 1" in shown
    assert " treasure_hunt " in piped(tmp_path, "--list")


def test_a_program_takes_lines_until_an_empty_one(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="programs run in the local sandbox, which needs POSIX")
    answer = piped(tmp_path, "word_problems --policy expert --json --pause none")
    gold = json.loads(answer)["episode"]["trajectories"][0]["messages"][1]["text"]
    shown = piped(tmp_path, "word_problems", gold + "\n\n")
    assert "\n> " in shown and "success, reward 1" in shown and "\n… \n" in shown
    for line in gold.splitlines():
        assert f"  {line}" in shown or f"> {line}" in shown


def test_json_for_scripts(tmp_path: Path) -> None:
    done = json.loads(piped(tmp_path, "treasure_hunt --policy expert --pause none --task 1 --json"))
    assert done["over"] and done["stops"] == ["success"] and done["episode"]["purpose"] == "play"
    assert [step["name"] for step in done["lines"]] == ["A"] and Path(done["path"]).is_file()
    half = json.loads(piped(tmp_path, "treasure_hunt --policy expert --json"))
    assert not half["over"] and half["episode"] is None and half["next"] == "environment"
    found = json.loads(piped(tmp_path, "--list --json"))
    assert [one["id"] for one in found] == [half["id"], done["id"]]
    table = piped(tmp_path, "--list")
    assert half["id"] in table and "over: success" in table and "turn 1, environment next" in table
    assert "no sessions" in piped(tmp_path / "none", "--list")


def test_a_recipes_repair_and_settings(tmp_path: Path) -> None:
    """Text said before the agent and before the reflector; the second attempt is the reflection's."""
    settings = "treasure_hunt --recipe rerest repair.form=again episode.max_turns=1 --policy human"
    shown = piped(tmp_path, settings, "look\nGo.\n:edit Go north first.\ngo north\n:graph\n:state\n")
    assert "human: Go north first." in shown and "attempt 1" in shown and "reflector" in shown
    assert "out of turns" in shown and '"author": "human"' in shown
    row = json.loads(piped(tmp_path, "--list --json"))[0]
    assert row["stops"] == ["truncated", "truncated"] and row["policy"] == "human"


def test_a_runs_own_task_by_its_id(tmp_path: Path) -> None:
    """Rounds draw tasks that the environment's default ones are not: they are played from the run's ledger."""
    run = tmp_path / "run"
    run.mkdir()
    recipe = {**load_recipe("envisions").model_dump(mode="json"), "environment": {"name": "treasure_hunt"}}
    (run / "run.json").write_text(json.dumps({"recipe": recipe}))
    task = open_environment("treasure_hunt", {}).tasks("train", limit=1, seed=77)[0]
    with Ledger.open(run / "ledger.sqlite") as ledger:
        ledger.add_tasks([task])
    shown = piped(tmp_path, f"{run} --policy human --task {task.id} --json", "look\n")
    assert json.loads(shown)["task_id"] == task.id
    with pytest.raises(ConfigError, match='no task of treasure_hunt, split "train", is called "none"'):
        piped(tmp_path, f"{run} --policy human --task none")


def test_a_model_folder_acts(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason='models need the "train" extra')
    from kintsugi.training.small_model import SmallModelConfig, make_small_model

    shape = SmallModelConfig(hidden=16, layers=1, heads=2, intermediate=32, vocabulary=320, max_positions=2048)
    folder = make_small_model(["Bring the lamp to the attic. go north"] * 9, tmp_path / "model", shape)
    options = f"treasure_hunt --policy {folder} model.prompts=bare max_tokens=8"
    shown = piped(tmp_path, options, "\n:again\n:edit look\n:quit\n")
    assert "mean log-prob" in shown and "said by a person" in shown
    shown = piped(tmp_path, "--resume last --json", ":end\n")
    episode = json.loads(shown)["episode"]
    (trajectory,) = episode["trajectories"]
    acts = [message for message in trajectory["messages"] if message["kind"] == "action"]
    assert [act["tokens"] is None for act in acts] == [act["text"] == "look" for act in acts]
    assert trajectory["stage"] == "human" and len(acts) == 12 and acts[2]["tokens"]["completion_ids"]


def test_a_model_named_by_a_relative_path_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    assert _player("model")["options"]["path"] == str(tmp_path / "model")
    assert _player("owner/name")["options"]["path"] == "owner/name"


def test_data_named_by_a_relative_path_are_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for given, kept in (("mine", str(tmp_path / "mine")), ("bundled", "bundled")):
        config, _, _ = _config("hotpotqa", [f"environment.options.data={given}"], None, None, None)
        assert config.environment.options["data"] == kept


def test_what_is_said_does_not_drive_the_terminal(tmp_path: Path) -> None:
    shown = piped(tmp_path, "treasure_hunt", "look \x1b]0;owned\x07 \x9b31m\n:history\n:show 1\n")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown) and "␛]0;owned␇" in shown


@pytest.mark.parametrize(
    ("arguments", "typed", "told"),
    [
        ("", "", "expected one of an environment"),
        ("treasure_hunt --list", "", "expected one of an environment"),
        ("treasur_hunt", "", 'did you mean "treasure_hunt"'),
        ("treasure_hunt --policy exprt", "", 'did you mean "expert"'),
        ("treasure_hunt --policy ./nowhere", "", 'called "./nowhere"'),
        ("treasure_hunt --policy endpoint", "", "set model.options.url"),
        ("treasure_hunt --task nine", "", 'is called "nine"'),
        ("treasure_hunt --task 99999", "", "a task's number below 10,000"),
        ("treasure_hunt --split tran", "", 'did you mean "train"'),
        ("treasure_hunt --pause before:agnet", "", 'did you mean "before:agent"'),
        ("treasure_hunt temprature=1", "", 'did you mean "temperature"'),
        ("treasure_hunt environment.options.delay=1", "", 'did you mean "delay_s"'),
        ("treasure_hunt --recipe demoo", "", 'did you mean "demo"'),
        ("--resume zzz", "", "there are no sessions in"),
        ("--resume zzz --policy human", "", "--resume ID stands alone"),
        ("treasure_hunt", ":bakc\n", 'no command is called ":bakc": did you mean "back"?'),
        ("treasure_hunt", "\n", "it is your turn"),
        ("treasure_hunt", ":edit x\n", "nothing to edit here"),
        ("treasure_hunt", ":branch two\n", 'expected a number, found "two"'),
        ("treasure_hunt", ":commit\n", "name a run folder"),
        ("treasure_hunt", ":commit there\n", "is not over"),
        ("treasure_hunt", "quit\n:commit there\n", "there is no ledger at there"),
        ("treasure_hunt", "quit\n\n", "the episode is over"),
        ("treasure_hunt", ":line q\n", 'no line is called "q": known are A'),
    ],
)
def test_one_clear_sentence(tmp_path: Path, arguments: str, typed: str, told: str) -> None:
    with pytest.raises(KintsugiError) as caught:
        piped(tmp_path, arguments, typed)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    made = list(tmp_path.iterdir())
    assert len(made) == (1 if typed else 0) or "pause" in arguments, "only a session that began leaves a file"


# -- at a terminal -------------------------------------------------------------------------------------------------------


class Terminal:
    """`kintsugi play` in a pseudo-terminal of 80 columns and 24 rows."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "kintsugi", "play", *arguments]
        self.main, side = pty.openpty()
        termios.tcsetwinsize(side, (24, 80))
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(command, env=env, pass_fds=(side,), preexec_fn=lambda: os.login_tty(side))
        os.close(side)
        self.shown = ""

    def until(self, wanted: str, patience_s: float = 300.0) -> str:
        """Everything shown since the last call, up to and with a match of `wanted`."""
        end = time.monotonic() + patience_s
        while (found := re.search(wanted, self.shown)) is None:
            assert time.monotonic() < end, f"{wanted!r} was not shown: {self.shown}"
            self._read(0.1)
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def type(self, text: str, wanted: str) -> str:
        os.write(self.main, text.encode())
        return self.until(wanted)

    def ended(self) -> int:
        """The exit code; everything shown is read."""
        code = self.process.wait(timeout=60)
        self._read(0.2)
        os.close(self.main)
        return code

    def _read(self, wait_s: float) -> None:
        while select.select([self.main], [], [], wait_s)[0]:
            try:
                data = os.read(self.main, 65536)
            except OSError:  # the other side is closed
                return
            if not data:
                return
            self.shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data.decode(errors="replace")).replace("\r", "")


def test_a_terminal_session(tmp_path: Path) -> None:
    """Step, edit, back, branch, quit, resume; a wrong word ends nothing; Ctrl-C says how to come back."""
    terminal = Terminal("treasure_hunt", "--policy", "expert", "--sessions", str(tmp_path))
    assert "1 agent, turn 1" in terminal.until(r"\[1, environment next\] ")
    assert "2 environment" in terminal.type(":step\n", r"\[2, agent next\] ")
    terminal.type("\n", r"\[3, environment next\] ")
    assert "take lamp" in terminal.type(":edit\n", r"edit: take lamp")
    shown = terminal.type("\x15look\n", r"\[6, environment next\] ")  # Ctrl-U empties the line
    assert "said by a person" in shown and "> look" in shown
    assert "error: no command" in terminal.type(":bakc\n", r"\[6, environment next\] ")
    terminal.type(":back 3\n", r"\[3, environment next\] ")
    assert "You take the lamp" in terminal.type("\n", r"\[8, environment next\] ")
    assert "line B" in terminal.type(":lines\n", r"\[8, environment next\] ")
    terminal.type(":branch 2\n", r"\[2, agent next\] ")
    terminal.type("\x03", r"come back: kintsugi play --resume ([0-9a-f]{6}) --sessions \S+")
    assert terminal.ended() == 130

    terminal = Terminal("--resume", "last", "--sessions", str(tmp_path))
    assert "go north" in terminal.until(r"\[2, agent next\] ")
    assert "success" in terminal.type(":end\n", r"\[\d+, over\] ")
    terminal.type(":quit\n", r"come back: kintsugi play --resume")
    assert terminal.ended() == 0


def test_ctrl_c_while_the_environment_works_and_a_kill(tmp_path: Path) -> None:
    slow = ("treasure_hunt", "--policy", "expert", "--sessions", str(tmp_path), "environment.options.delay_s=30")
    terminal = Terminal(*slow)
    terminal.until(r"\[1, environment next\] ")
    os.write(terminal.main, b"\n")
    time.sleep(1.5)
    terminal.type("\x03", r"saved at point 1; come back: kintsugi play --resume")
    assert terminal.ended() == 130

    terminal = Terminal("--resume", "last", "--sessions", str(tmp_path))
    terminal.until(r"\[1, environment next\] ")
    os.write(terminal.main, b"\n")
    time.sleep(1.5)
    terminal.process.send_signal(signal.SIGKILL)
    assert terminal.ended() == -signal.SIGKILL
    row = json.loads(piped(tmp_path, "--resume last --json"))
    assert (row["point"], row["next"], row["turns"]) == (1, "environment", 1)


def test_several_lines_at_a_terminal(tmp_path: Path) -> None:
    terminal = Terminal("word_problems", "--sessions", str(tmp_path))
    terminal.until(r"\[0, you: turn 1\] ")
    terminal.type("a = 2\n", r"… ")
    terminal.type("print(a)\n", r"… ")
    shown = terminal.type("\n", r"\[2, over\] ")
    assert "> a = 2" in shown and "  print(a)" in shown and "failure" in shown
    terminal.type("\x04", r"come back")  # Ctrl-D
    assert terminal.ended() == 0


