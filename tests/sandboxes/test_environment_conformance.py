"""Every environment here passes the suite, and the suite finds what is broken in environments that break a promise."""

import asyncio
import itertools
import subprocess
from pathlib import Path

import pytest

from kintsugi.errors import DataError
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.conformance import check, malformed_actions
from kintsugi.sandboxes.environments.environment import ProgramEnvironment, Reply, environment_kinds, open_environment

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k"
LOCAL = {"kind": "local", "allow_unsafe": True}
CASES = {
    "treasure_hunt": {},
    "word_problems": {"events": "1-5", "sandbox": LOCAL},
    "gsm8k": {"data": DATA, "sandbox": LOCAL},
    **{
        kind: {"data": "bundled", "sandbox": LOCAL}
        for kind in ("gsm_hard", "svamp", "asdiv", "math", "proofwriter", "ruletaker", "mbpp")
    },
}


def wrong_numbers(task, gold):
    return [[f"print({task.payload['answer'] + change})"] for change in (1, -1, 0.001)]


@pytest.mark.parametrize("kind", CASES)
def test_environments_conform(kind):
    if kind == "gsm8k" and not DATA.is_dir():
        pytest.skip(f"GSM8K's official files are not in {DATA}")
    assert kind in environment_kinds()
    if kind in ("proofwriter", "ruletaker"):
        pytest.importorskip("clingo", reason='clingo is not installed: pip install "kintsugi-agents[logic]"')
    environment = open_environment(kind, CASES[kind])
    known = wrong_numbers if kind in ("word_problems", "gsm8k") else None
    report = asyncio.run(check(environment, num_tasks=10, perturb=getattr(environment, "perturbed", known)))
    assert report.ok, str(report)
    played = {"state", "gold", "perturbed", "malformed", "replay", "concurrent", "leaks"}
    assert set(report.checks) == {"tasks", *played, "close"} and report.skipped == ()


class Echo(ProgramEnvironment):
    """The smallest right environment: the task's number is the answer."""

    name = "echo"

    def tasks(self, split, *, limit=None, seed=0):
        if split not in ("train", "heldout"):
            raise DataError("no such split")
        payloads = [{"answer": 1000 + n} for n in range(limit or 5)]
        return [
            Task(id=f"{n}", environment="echo", split=split, prompt=f"{split} {n}", payload=payload)
            for n, payload in enumerate(payloads)
        ]

    async def gold(self, task):
        return (f"say {task.payload['answer']}",)

    async def judge(self, task, action):
        right = action == f"say {task.payload['answer']}"
        return Verdict(success=right, reward=float(right), feedback=self.tell(task, right))

    def tell(self, task, right):
        return "" if right else "wrong"


class Overlapping(Echo):
    def tasks(self, split, *, limit=None, seed=0):
        super().tasks(split)
        return [Task(id="x", environment="echo", split=split, prompt=f"p{n}", payload={"answer": n}) for n in range(2)]


class AcceptsAll(Echo):
    async def judge(self, task, action):
        return Verdict(success=True, reward=1.0)


class RefusesAll(Echo):
    async def judge(self, task, action):
        return Verdict(success=False, reward=0.0, feedback="no")


class Raising(Echo):
    async def judge(self, task, action):
        action.encode()
        return await super().judge(task, action)


class Silent(Echo):
    def tell(self, task, right):
        return ""


class Leaking(Echo):
    def tell(self, task, right):
        return "" if right else f"expected {task.payload['answer']}"


class Drifting(Echo):
    counter = itertools.count()

    def tell(self, task, right):
        return f"call {next(self.counter)}"


class Entangled(Echo):
    """Worlds that run at once share a counter."""

    running = 0

    async def judge(self, task, action):
        self.running += 1
        await asyncio.sleep(0)
        verdict = Verdict(success=(await super().judge(task, action)).success, reward=1.0, feedback=f"{self.running}")
        self.running -= 1
        return verdict


class Leaving(Echo):
    child = None

    async def close(self):
        if self.child is not None:
            raise OSError("closed twice")
        self.child = subprocess.Popen(["sleep", "30"])


@pytest.mark.parametrize(
    ("environment", "sentences"),
    [
        (Echo, []),
        (Overlapping, ["ids that occur twice", "share a prompt"]),
        (AcceptsAll, ["is won by a spoiled gold"]),
        (RefusesAll, ["do not win"]),
        (Raising, ["raised UnicodeEncodeError"]),
        (Silent, ["no observation and no feedback"]),
        (Leaking, ["holds its answer"]),
        (Drifting, ["answers the same actions differently"]),
        (Entangled, ["differently when they run at once"]),
        (Leaving, ["1 child processes are left", "the second close raised OSError"]),
    ],
)
def test_the_suite_finds_broken_promises(environment, sentences, monkeypatch):
    monkeypatch.setattr("kintsugi.sandboxes.environments.conformance.CLOSE_WAIT_S", 0.3)
    broken = environment()
    try:
        report = asyncio.run(check(broken, num_tasks=5))
    finally:
        if getattr(broken, "child", None):
            broken.child.kill()
            broken.child.wait()
    assert report.ok == (not sentences), str(report)
    for sentence in sentences:
        assert sentence in str(report)


def test_malformed_actions_are_the_same_each_time():
    actions = malformed_actions("print(8)")
    assert actions == malformed_actions("print(8)") and len(actions) == 200
    assert max(map(len, actions)) >= 200_000 and "" in actions and any("\ud800" in action for action in actions)
    assert isinstance(Reply(), Reply)
