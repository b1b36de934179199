"""Recipe files: what they extend and name lies beside them; what a recipe would do is told in whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from kintsugi.errors import ConfigError
from kintsugi.training.recipe import load_recipe
from kintsugi.training.run import check_recipe, plan_text, run_id_of, train

MINE = '''
import dataclasses
from kintsugi.sandboxes.environments.treasure_hunt import open_environment as hunt

@dataclasses.dataclass
class Options:
    num_tasks: int

def open_environment(num_tasks=4):
    return hunt(num_tasks=Options(num_tasks).num_tasks)
'''


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files; the present one is another."""
    (tmp_path / "cwd").mkdir()
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "mine"


@pytest.mark.parametrize("named", ["base.toml", "./base.toml", "{folder}/base.toml"])
def test_extends_is_relative_to_its_own_file(elsewhere: Path, named: str) -> None:
    (elsewhere / "base.toml").write_text('extends = "demo"\nrounds = 7\n')
    (elsewhere / "own.toml").write_text(f'extends = "{named.format(folder=elsewhere)}"\nseed = 3\n')
    (elsewhere / "deep" / "deeper.toml").write_text('extends = "../own.toml"\n[explore]\nk = 2\n')
    for path in (elsewhere / "deep" / "deeper.toml", Path("../mine/deep/deeper.toml")):
        recipe = load_recipe(str(path))
        assert (recipe.name, recipe.rounds, recipe.seed, recipe.explore.k) == ("deeper", 7, 3, 2)


def test_a_circle_is_refused(elsewhere: Path) -> None:
    (elsewhere / "a.toml").write_text('extends = "./b.toml"\n')
    (elsewhere / "b.toml").write_text('extends = "./a.toml"\n')
    with pytest.raises(ConfigError, match="extends itself"):
        load_recipe(str(elsewhere / "a.toml"))


def test_an_environment_of_ones_own_is_named_by_its_file(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a recipe beside that recipe, in an override from here; and the run goes on from anywhere."""
    (elsewhere / "world.py").write_text(MINE)
    text = 'extends = "gsm8k"\n[environment]\nname = "./world.py"\nheldout_split = "heldout"\noptions = { num_tasks = 6 }\n'
    (elsewhere / "own.toml").write_text(text)
    recipe = load_recipe(str(elsewhere / "own.toml"))
    overridden = load_recipe(str(elsewhere / "own.toml"), ["environment.name=../mine/world.py"])
    assert recipe.environment.name == overridden.environment.name == str((elsewhere / "world.py").resolve())
    assert run_id_of(recipe) == run_id_of(overridden)
    monkeypatch.chdir("/")
    check_recipe(recipe)
    with pytest.raises(ConfigError, match=r'world\.py has no option "num_task": did you mean "num_tasks"'):
        check_recipe(load_recipe(str(elsewhere / "own.toml"), ["environment.options={num_task=6}"]))
    (elsewhere / "world.py").write_text("import nothing_of_the_kind\n")
    with pytest.raises(ConfigError, match=r"world\.py cannot be imported \(ModuleNotFoundError: .*nothing_of_the_kind"):
        check_recipe(recipe)
    (elsewhere / "world.py").unlink()
    with pytest.raises(ConfigError, match=r"expected a Python file with open_environment at .*world\.py, found none"):
        check_recipe(recipe)


@pytest.mark.parametrize(
    "change", ["targets.solved_weight=0.5", "targets.rescued_weight=2", "select.soft_temperature=1.0"]
)
def test_dpo_has_no_weights(change: str) -> None:
    assert load_recipe("rerest_dpo").learn.loss == "dpo"
    with pytest.raises(ConfigError, match=r'learn\.loss = "contrastive" for weighted rows'):
        load_recipe("rerest_dpo", [change])


def test_the_plan_tells_what_costs_and_what_is_shown_again() -> None:
    assert "60,000 tokens" in plan_text(load_recipe("self_training")) and "tokens" not in plan_text(load_recipe("demo"))
    assert "400 demonstrations and 100 scripted repairs replayed" in plan_text(load_recipe("repair"))
    assert "own rows repeated to 50%" in plan_text(load_recipe("demo"))
    assert "fresh     samples for unsolved tasks, at most 4 a task, measured" in plan_text(load_recipe("repair"))
    told = plan_text(load_recipe("more_sampling"))
    assert "repair    nothing" in told and "at most 8 a task, pooled" in told
    told = plan_text(load_recipe("rerest"))
    assert "learns wrong → right, 60 steps of sft, then looks once more, with 20% of the tokens" in told
    assert "reflect " not in plan_text(load_recipe("envisions")) and "replayed" not in plan_text(load_recipe("rerest_dpo"))


def test_options_are_the_environments_own(elsewhere: Path) -> None:
    """A recipe that names another environment does not inherit the options of its base's."""
    (elsewhere / "other.toml").write_text('extends = "demo"\n[environment]\nname = "treasure_hunt"\n')
    assert load_recipe(str(elsewhere / "other.toml")).environment.options == {}
    (elsewhere / "same.toml").write_text('extends = "demo"\n[environment]\ntrain_split = "train"\n')
    assert load_recipe(str(elsewhere / "same.toml")).environment.options == {"events": "1-3"}
    (elsewhere / "many.toml").write_text('extends = ["demo"]\n')
    with pytest.raises(ConfigError, match="one recipe in extends"):
        load_recipe(str(elsewhere / "many.toml"))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rounds=true", "expected a number for rounds, not true"),
        ("explore.tasks=false", "a number for tasks, not false"),
        ("seed=-1", '"seed" expects'),
        ("seed=99999999999", '"seed" expects'),
        ("evaluate.max_tokens=0", "max_tokens"),
        ("threads=99999999999999999999999", "threads"),
        ("warm_start.low=0.9", "warm_start.low"),
        ("learn.lr=inf", "lr"),
        ("explore.k=1000", "explore.k"),
    ],
)
def test_numbers_have_bounds(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo", [override])
    assert told in str(caught.value)


def test_what_a_warm_start_needs_is_looked_for_before_a_run(elsewhere: Path) -> None:
    changes = ["environment.name=treasure_hunt", "environment.options={}", "model.prompts=bare_turns"]
    check_recipe(load_recipe("demo", changes))
    with pytest.raises(ConfigError, match="treasure_hunt has no scripted repairs"):
        check_recipe(load_recipe("demo", [*changes, "warm_start.repair_share=0.2"]))
    with pytest.raises(ConfigError, match="takes no notes"):
        check_recipe(load_recipe("demo", [*changes, "repair.who=self", "repair.form=again", "repair.words=notes"]))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.options.max_bach=8", 'has no option "max_bach": did you mean "max_batch"'),
        ("model.options.max_batch=many", "expected a valid integer for model.options.max_batch, found 'many'"),
        ("model.options.threads=0", "greater than or equal to 1 for model.options.threads, found 0"),
        ("model.options.batching=quick", 'expected "repeatable" or "eager" for model.options.batching'),
        ("model.options.dtype=float99", 'expected "auto", "float32"'),
        ("model.options.device=warp", 'found "warp"'),
        ("model.options.adapter=a/b", "set model.path to the adapter's folder"),
        ("model.options.path=a/b", "model.path to say which model"),
        ("environment.options.num_tasks=some", "expected a valid integer for environment.options.num_tasks"),
    ],
)
def test_options_are_looked_at_before_a_run(tmp_path: Path, override: str, told: str) -> None:
    """Not only once a warm start is over; and nothing is left behind."""
    with pytest.raises(ConfigError) as caught:
        check_recipe(load_recipe("demo", [override]))
    assert told in str(caught.value)
    with pytest.raises(ConfigError):
        train(load_recipe("demo", [override]), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_good_options_pass() -> None:
    given = ["max_batch=8", "threads=null", "device=cpu", "dtype=float64"]
    check_recipe(load_recipe("demo", [f"model.options.{one}" for one in given]))


def test_alfworlds_second_tries_stand_beside_its_self_training() -> None:
    """Nothing but the second tries and their budget differs: the same start, games, steps and number of replays."""
    plain, tries = (load_recipe(name, ["explore.budget_tokens=50000"]) for name in ("alfworld", "alfworld_rerest"))
    parts = ["environment", "model", "warm_start", "episode", "explore", "select", "learn", "evaluate", "gate", "rounds"]
    for part in parts:
        assert getattr(plain, part) == getattr(tries, part), part
    assert plain.repair.who == "none" and (tries.repair.form, tries.repair.words) == ("again", "notes")
    replayed = tries.targets.replay + tries.targets.replay_repairs
    assert replayed == plain.targets.replay and plain.explore_budget == tries.explore_budget
    same = {"replay": 0, "replay_repairs": 0}
    assert plain.targets.model_copy(update=same) == tries.targets.model_copy(update=same)
    assert plain.control.enabled and not tries.control.enabled
    told = plan_text(tries)
    assert "unsolved by self, again, with notes of the attempt" in told and "until 50,000 tokens" in told


def test_what_cannot_go_on_from_a_turn_is_said_before_a_run() -> None:
    with pytest.raises(ConfigError, match="word_problems has attempts of one turn"):
        check_recipe(load_recipe("demo", ["repair.who=self", "repair.form=from_turn"]))
    with pytest.raises(ConfigError, match="treasure_hunt takes no notes"):
        notes = ["repair.who=self", "repair.form=from_turn", "repair.words=notes", "environment.options={}"]
        check_recipe(load_recipe("demo", [*notes, "environment.name=treasure_hunt", "warm_start.repair_share=0"]))
