"""Whole runs of a tiny recipe: killed anywhere and resumed, interrupted, repeated, refused.

The killed processes are real ones (forked, see forked_runs.py) and die of SIGKILL at the chosen call.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import ConfigError, DataError, LearningError, LedgerError, PolicyError, RunError
from kintsugi.ledger import Ledger
from kintsugi.training.casting import Troupe
from kintsugi.training.recipe import load_recipe
from kintsugi.training.run import RunResult, champion_of, check, recipe_of, resume, train
from kintsugi.training.run_folder import RunFolder
from kintsugi.training.stages import Stages
from kintsugi.training.warm_start import check_band
from kintsugi.training.watch import Watch
from tests.training import forked_runs

LEDGER = "kintsugi.ledger.ledger:Ledger"
RECORD = "kintsugi.training.run_folder:RunFolder.record"
STEP = "kintsugi.training.stages:Stages._on_step"
GRAPH = "langgraph.checkpoint.sqlite.aio:AsyncSqliteSaver.aput"

KILLS = [  # in the order of a run: each is met by the process that resumes after the one before
    {"point": "kintsugi.training.run_folder:RunFolder.create"},
    {"point": "kintsugi.training.stages:warm_start"},
    {"point": f"{LEDGER}.commit_episodes"},  # the start's evaluation: the first wave is in
    {"point": RECORD, "having": "'control'"},  # the start is measured; its stage has no graph checkpoint
    {"point": GRAPH, "when": "before"},  # the same, in the middle of LangGraph's own work
    {"point": f"{LEDGER}.commit_episodes", "when": "before", "call": 2},  # explore: a wave is played, not in
    {"point": RECORD, "having": "'round'"},
    {"point": f"{LEDGER}.add_dataset"},  # the main dataset is in, the control's is not
    {"point": STEP, "call": 2},
    {"point": "kintsugi.training.learn:save_trained"},  # weights are written, learn.json is not
    {"point": f"{LEDGER}.add_checkpoint", "when": "before"},  # trained, not on the ledger
    {"point": STEP, "call": 3},  # the control's training
    {"point": f"{LEDGER}.commit_episodes", "call": 1},  # evaluation of round 1: one of two waves
    {"point": "pathlib:Path.replace", "when": "before", "having": "metrics.jsonl"},  # metrics are half written
    {"point": RECORD, "having": "'gate'"},  # decided; the champion's change is not checkpointed
    {"point": "kintsugi.training.run:_result", "when": "before"},  # all done
]

REFLECTIVE = [  # overrides: Re-ReST's own stages
    "repair.who=reflector",
    "repair.on=failures",
    "repair.form=rollback",
    "reflector.train=true",
    "reflector.learn.steps=3",
    "targets.score=current",
    "targets.repairs=failures",
    "control.enabled=false",
    "rounds=1",
]
REFLECTIVE_KILLS = [
    {"point": f"{LEDGER}.commit_episodes"},  # reflecting once more: a wave is in
    {"point": RECORD, "having": "'reflect'"},
    {"point": "kintsugi.training.stages:write_whole", "when": "before"},  # pool re-scored, scores not written
    {"point": STEP, "call": 4},
]
FRESH = ["rounds=0", "warm_start.learn.steps=6", "warm_start.low=0.0", "evaluate.tasks=2"]  # a warm start of its own
FRESH_KILLS = [
    {"point": STEP, "call": 3},
    {"point": "shutil:copytree"},  # on the shelf, not in the run
]
INTERRUPTS = [
    {"point": f"{LEDGER}.commit_episodes", "call": 3, "signal": "SIGINT"},
    {"point": STEP, "call": 2, "signal": "SIGINT"},
]


def end_state(folder: Path) -> dict[str, Any]:
    """All that must be the same however a run came to its end."""
    metrics = [
        {key: value for key, value in line.items() if key != "seconds"} for line in RunFolder.open(folder).metrics()
    ]
    weights = {
        file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob("policies/*/*.safetensors"))
    }
    losses = {
        file.parent.name: json.loads(file.read_text())["losses"] for file in sorted(folder.glob("policies/*/learn.json"))
    }
    with Ledger.open(folder, create=False, read_only=True) as ledger:
        state = {"digest": ledger.digest(), "integrity": ledger.integrity(), "counts": ledger.counts()}
    names = sorted(path.name for path in folder.iterdir() if not path.name.endswith((".png", ".html")))
    left = sorted(path.name for path in (folder / "policies").iterdir())
    return {**state, "metrics": metrics, "weights": weights, "losses": losses, "names": names, "policies": left}


def chain(recipe: Path, out: Path, overrides: list[str], deaths: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`kintsugi train`, then `--resume` after each death, and once more to the end."""
    begin = ["train", str(recipe), *overrides, "--out", str(out), "--quiet"]
    go_on = ["train", "--resume", str(out), "--quiet"]
    return [
        {"arguments": go_on if number else begin, "at": death} for number, death in enumerate([*deaths, None])
    ]


@pytest.fixture(scope="module")
def told(tiny: Path) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """The folder of all forked runs, and what each process of each chain said."""
    folder = tiny.parent
    chains = {
        "killed": chain(tiny, folder / "killed", [], KILLS),
        "reflective": chain(tiny, folder / "reflective", REFLECTIVE, []),
        "reflective-killed": chain(tiny, folder / "reflective-killed", REFLECTIVE, REFLECTIVE_KILLS),
        "interrupted": chain(tiny, folder / "interrupted", [], INTERRUPTS),
        "fresh": chain(tiny, folder / "a" / "fresh", FRESH, []),
        "fresh-killed": chain(tiny, folder / "b" / "fresh-killed", FRESH, FRESH_KILLS),
    }
    done = subprocess.run(
        [sys.executable, str(Path(forked_runs.__file__))],
        input=json.dumps(list(chains.values())),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(chains, json.loads(done.stdout), strict=True))


def died(told: tuple[Path, dict[str, list[dict[str, Any]]]], name: str) -> list[int]:
    results = told[1][name]
    for number, result in enumerate(results):
        assert "Traceback" not in result["said"], f"process {number} of {name}: {result['said']}"
    return [result["code"] for result in results]


def test_killed_at_any_point(told: Any, tiny_run: RunResult) -> None:
    assert died(told, "killed") == [-9] * len(KILLS) + [0]
    assert end_state(told[0] / "killed") == end_state(tiny_run.folder)


def test_killed_with_a_reflector(told: Any) -> None:
    assert died(told, "reflective") == [0]
    assert died(told, "reflective-killed") == [-9] * len(REFLECTIVE_KILLS) + [0]
    undisturbed = end_state(told[0] / "reflective")
    assert "reflector-1" in undisturbed["weights"]
    assert end_state(told[0] / "reflective-killed") == undisturbed


def test_reflecting_again_sees_what_it_saw_at_first(told: Any, tmp_path: Path) -> None:
    """A right reflection that was committed before the kill does not change what the reflector is trained on."""
    copy = shutil.copytree(told[0] / "reflective", tmp_path / "copy")
    run, recipe = RunFolder.open(copy), recipe_of(copy)
    run_id = run.info()["run_id"]
    before = end_state(copy)["weights"]["reflector-1"]

    async def again() -> dict[str, Any]:
        troupe = Troupe(recipe)
        with Ledger.open(copy) as ledger:
            one = ledger.episodes(policy_version="reflector-1")[0]
            name = "f" * 16
            last = dataclasses.replace(one.trajectories[0], id=name, episode_id=name, stop="success", hard_reward=1.0)
            ledger.commit_episodes([dataclasses.replace(one, id=name, sample=9999, trajectories=(last,))])
            stages = Stages(recipe, run, ledger, troupe, run_id=run_id, watch=Watch())
            state: Any = {"round": 1, "rounds": 1, "champion": "start", "versions": {"start": "policies/start"}}
            changes = await stages.reflect(state)
        await troupe.close()
        return changes

    assert asyncio.run(again())["versions"]["reflector-1"] == "policies/reflector-1"
    assert end_state(copy)["weights"]["reflector-1"] == before
    with Ledger.open(copy, read_only=True) as ledger:
        assert ledger.dataset(run_id, 1, "reflector").hash == ledger.checkpoints(version="reflector-1")[0].dataset_hash


def test_interrupted(told: Any, tiny_run: RunResult) -> None:
    """Ctrl-C while exploring and while learning."""
    assert died(told, "interrupted") == [130, 130, 0]
    for result in told[1]["interrupted"][:2]:
        assert f"interrupted; nothing is lost: kintsugi train --resume {told[0] / 'interrupted'}" in result["said"]
    assert end_state(told[0] / "interrupted") == end_state(tiny_run.folder)


def test_killed_in_the_warm_start(told: Any) -> None:
    assert died(told, "fresh") == [0]
    assert died(told, "fresh-killed") == [-9] * len(FRESH_KILLS) + [0]
    assert end_state(told[0] / "a" / "fresh") == end_state(told[0] / "b" / "fresh-killed")


def test_rounds_removed(tiny_run: RunResult, tmp_path: Path) -> None:
    """Without graph checkpoints the finished stages are found in the ledger again."""
    copy = shutil.copytree(tiny_run.folder, tmp_path / "copy")
    (copy / "rounds.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(RunError, match=r"rounds\.sqlite is damaged .*: remove it and resume"):
        resume(copy)
    for file in copy.glob("rounds.sqlite*"):
        file.unlink()
    again = resume(copy)
    assert again.success_rates == tiny_run.success_rates and again.champion == tiny_run.champion
    assert again.champion_folder == copy / "policies" / again.champion
    assert end_state(copy) == end_state(tiny_run.folder)


def test_tiny_run_is_a_fair_test(tiny_run: RunResult) -> None:
    """Some attempts succeed, some fail, the champion changes: else the tests above would see little."""
    lines = {(line["kind"], line["round"]): line for line in RunFolder.open(tiny_run.folder).metrics()}
    for number in (1, 2):
        explored = lines["round", number]
        assert 0 < explored["samples_right"] < explored["samples"] == 36
        assert explored["repairs"] > 0 and explored["fresh"] == explored["repairs"]
    assert tiny_run.champion != "start"
    assert champion_of(tiny_run.folder) == tiny_run.champion_folder == tiny_run.folder / "policies" / tiny_run.champion
    assert set(tiny_run.success_rates) == {(arm, number) for arm in ("main", "control") for number in (0, 1, 2)}


def test_the_control_is_evaluated_as_often_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from kintsugi.training.stages import Stages

    seen: list[tuple[str, int]] = []

    async def note(self: Any, version: str, folder: str, *, arm: str, round: int) -> None:
        seen.append((arm, round))

    monkeypatch.setattr(Stages, "_evaluate", note)
    monkeypatch.setattr(Stages, "_at", lambda self, folder: folder)
    stages = Stages.__new__(Stages)
    stages.recipe = load_recipe("demo", ["rounds=5", "control.evaluate_every=2"])
    for number in range(1, 6):
        versions = {name: name for name in ("round", "control")}
        state: Any = {"round": number, "trained": {"main": "round", "control": "control"}, "versions": versions}
        asyncio.run(stages.evaluate(state))
    assert [number for arm, number in seen if arm == "main"] == [1, 2, 3, 4, 5]
    assert [number for arm, number in seen if arm == "control"] == [2, 4, 5]


def test_seeds(told: Any, tiny: Path, tiny_run: RunResult) -> None:
    """The same seed gave the same run in other processes and folders (`killed`, `interrupted`); another gives another."""
    first = end_state(told[0] / "interrupted")["losses"]["round-1"]
    assert len(first) == 4 and first == end_state(tiny_run.folder)["losses"]["round-1"]
    start = tiny_run.folder / "policies" / "start"
    changed = ["seed=1", "rounds=1", "control.enabled=false", f"model.path={start}"]
    other = train(load_recipe(str(tiny), changed), out=tiny.parent / "seed-1")
    assert end_state(other.folder)["losses"]["round-1"] != first
    assert tasks_of(other.folder).isdisjoint(tasks_of(tiny_run.folder))
    assert other.champion_folder.is_dir()


def tasks_of(folder: Path) -> set[str]:
    with Ledger.open(folder, create=False, read_only=True) as ledger:
        return {episode.task_id for episode in ledger.episodes(purpose="explore", round=1)}


# -- refused before anything is written ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        (["environment.train_split=heldout"], LearningError, 'the split "heldout" is both .* must never be trained on'),
        (["environment.heldout_split=none-such"], DataError, 'no split "none-such"'),
        (["environment.options.event=1"], ConfigError, 'no option "event": did you mean "events"'),
        (["environment.name=gsm8k", 'environment.options={data="nowhere"}'], DataError, "nowhere"),
        (["model.path=./nowhere"], PolicyError, "expected a model folder at ./nowhere"),
        (["model.path=my/own/model"], PolicyError, "expected a model folder at my/own/model"),
        (["model.kind=endpoint"], ConfigError, '"endpoint" cannot be trained'),
        (["model.prompts=bear"], ConfigError, 'did you mean "bare"'),
    ],
)
def test_refused_before_the_run(tiny: Path, tmp_path: Path, changes: list[str], error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        train(load_recipe(str(tiny), changes), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_heldout_tasks_in_training(tiny: Path, tiny_run: RunResult) -> None:
    """Splits that share questions under two names are found out before anything is explored."""
    from kintsugi.sandboxes.environments import word_problems

    recipe = load_recipe(str(tiny), ["rounds=1", f"model.path={tiny_run.folder / 'policies' / 'start'}"])
    inner = word_problems.WordProblems.tasks

    def leaking(self: Any, split: str, *, limit: int | None = None, seed: int = 0) -> Any:
        tasks = inner(self, split, limit=limit, seed=seed)
        return [*tasks[:-1], inner(self, "heldout", limit=1, seed=0)[0]] if split == "train" else tasks

    out = tiny.parent / "leaking"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_problems.WordProblems, "tasks", leaking)
        with pytest.raises(LearningError, match="1 held-out tasks are among the tasks of round 1"):
            train(recipe, out=out)
    with Ledger.open(out, create=False, read_only=True) as ledger:
        assert ledger.count_episodes(purpose="explore") == 0 and not ledger.datasets()


def test_heldout_tasks_among_the_demonstrations(tiny: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(tiny), ["environment.heldout_split=demonstrations"])
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"seed": recipe.seed})})
    with pytest.raises(LearningError, match="held-out tasks are among the demonstrations"):
        train(recipe, out=tmp_path / "run")


def test_warm_start_band(tiny: Path) -> None:
    recipe = load_recipe(str(tiny), ["warm_start.low=0.2", "warm_start.high=0.4"])
    check_band(recipe, 0.2)
    check_band(recipe, 0.4)
    for rate in (0.19, 0.41):
        with pytest.raises(LearningError, match=f"solves {100 * rate:.1f}% .* expected 20% to 40%"):
            check_band(recipe, rate)


def test_outside_the_band_stops_the_run(tiny: Path) -> None:
    """No round is begun from a start that is too good or too bad, and resuming says the same."""
    out = tiny.parent / "band"
    recipe = load_recipe(str(tiny), ["warm_start.learn.steps=1", "warm_start.low=0.05", "evaluate.tasks=2"])
    for call in (lambda: train(recipe, out=out), lambda: resume(out)):
        with pytest.raises(LearningError, match=r"the warm start solves 0\.0% of the held-out tasks"):
            call()
    assert [line["kind"] for line in RunFolder.open(out).metrics()] == ["evaluation"]


# -- the run folder ------------------------------------------------------------------------------------------------------


def test_run_folder_says_what_it_is(tiny: Path, tiny_run: RunResult) -> None:
    info = RunFolder.open(tiny_run.folder).info()
    assert recipe_of(tiny_run.folder) == load_recipe(str(tiny)) and info["seed"] == 0 and info["name"] == "tiny"
    assert {"kintsugi-agents", "torch", "langgraph"} <= set(info["packages"]) and info["python"].startswith("3.")
    assert not list(tiny_run.folder.rglob("*.half")) and not list(tiny_run.folder.rglob("*.partial"))


def test_a_new_knob_does_not_begin_an_old_run_anew(tiny_run: RunResult, tmp_path: Path) -> None:
    """The run's id is what run.json says, whatever a later version's recipe hashes to."""
    copy = shutil.copytree(tiny_run.folder, tmp_path / "copy")
    info = json.loads((copy / "run.json").read_text())
    del info["recipe"]["control"]["enabled"]  # as if written before that knob was there
    (copy / "run.json").write_text(json.dumps(info))
    assert resume(copy).success_rates == tiny_run.success_rates
    assert champion_of(copy) == copy / "policies" / tiny_run.champion


def test_seconds_are_wall_time(tiny_run: RunResult) -> None:
    """36 episodes run at once: their sum would be many times the stage's wall time."""
    (line,) = [line for line in RunFolder.open(tiny_run.folder).metrics() if (line["kind"], line["round"]) == ("round", 1)]
    with Ledger.open(tiny_run.folder, read_only=True) as ledger:
        summed = sum(one.cost.seconds for one in ledger.trajectories(round=1, purpose=["explore", "measure"]))
    assert 0 < line["seconds"] < summed


def test_check_of_bundled_recipes() -> None:
    from kintsugi.training.recipe import recipe_names

    for name in recipe_names():
        recipe = load_recipe(name)
        if recipe.environment.name == "word_problems":  # the others need data, or a network to fetch it from
            check(recipe, Troupe(recipe))


def test_damaged_ledger_and_metrics(tiny_run: RunResult, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_run.folder, tmp_path / "copy")
    (copy / "metrics.jsonl").write_text("{")
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be read"):
        champion_of(copy)
    (copy / "ledger.sqlite").write_bytes(b"nonsense" * 999)
    with pytest.raises(LedgerError, match="is damaged or is no ledger"):
        resume(copy)
