"""ALFWorld's official data folder: which games are played, and what a damaged or changed one does."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import DataError
from kintsugi.graphs.worlds import WorldBroke, Worlds
from kintsugi.sandboxes.environments.alfworld_rooms import TASK_TYPES
from kintsugi.sandboxes.environments.conformance import check
from tests.sandboxes.alfworld_trials import DATA, needs_data, needs_engine, opened, other_number


@needs_data
def test_official_tasks_are_the_folders_games():
    environment = opened(data=DATA)
    tasks = environment.tasks("train")
    assert len(tasks) == 60 and environment.tasks("train", limit=5) == tasks[:5]
    assert {kind: sum(task.payload["task_type"] == kind for task in tasks) for kind in TASK_TYPES} == dict.fromkeys(
        TASK_TYPES, 10
    )
    assert environment.tasks("demonstrations") == []
    other = environment.tasks("train", limit=10, seed=1)
    assert other != tasks[:10] and set(one.id for one in other) <= {task.id for task in tasks}
    index = {one["path"]: one["goal"] for one in map(json.loads, (DATA / "train" / "index.jsonl").read_text().splitlines())}
    for task in tasks:
        assert task.payload["sentence"].rstrip(".") == index[task.payload["path"].removeprefix("train/")].rstrip(".")
        assert task.prompt.endswith(f"Your task is to: {task.payload['sentence']}") and "?" not in task.prompt


@needs_data
def test_only_what_the_official_loader_plays_is_played(tmp_path):
    games = sorted((DATA / "train").glob("*/*/game.tw-pddl"))[:5]
    names = ["a", "pick_and_place_with_movable_recep-x", "pick_and_place_simple-AppleSliced-x", "c", "d"]
    for path, name in zip(games, names, strict=True):
        kind = path.parents[1].name
        folder = tmp_path / "json_2.1.1" / "valid_unseen" / (name if "-" in name else f"{kind}-{name}") / "trial"
        shutil.copytree(path.parent, folder)
        for one in [folder, *folder.iterdir()]:
            one.chmod(0o755)
    root = tmp_path / "json_2.1.1" / "valid_unseen"
    unsolvable, *_, bare = sorted(root.glob("look*/trial"))
    file = unsolvable / "game.tw-pddl"
    file.write_text(json.dumps({**json.loads(file.read_text()), "solvable": False}))
    (bare / "traj_data.json").unlink()
    for data in (tmp_path, tmp_path / "json_2.1.1"):
        tasks = opened(data=data).tasks("heldout")
        assert len(tasks) == 1 and tasks[0].split == "heldout" and tasks[0].payload["path"].startswith("valid_unseen/")


def test_a_wrong_data_folder_is_told(tmp_path):
    with pytest.raises(DataError, match=r"expected ALFWorld's data folder at .*alfworld-download"):
        opened(data=tmp_path / "none").tasks("train")
    (tmp_path / "valid_seen").mkdir()
    with pytest.raises(DataError, match='no split "train"'):
        opened(data=tmp_path).tasks("train")
    with pytest.raises(DataError, match=r"expected ALFWorld games \(game.tw-pddl\)"):
        opened(data=tmp_path).tasks("heldout")
    game = tmp_path / "valid_seen" / "pick_and_place_simple-x" / "trial" / "game.tw-pddl"
    game.parent.mkdir(parents=True)
    game.write_text("{}")
    (game.parent / "traj_data.json").write_text('{"task_type": "pick_and_place_simple"}')
    with pytest.raises(DataError, match="expected an ALFWorld game with its task at"):
        opened(data=tmp_path).tasks("valid_seen")


@needs_engine
@needs_data
def test_official_games_conform():
    report = asyncio.run(check(opened(data=DATA, task_types="light,place"), num_tasks=2, perturb=other_number))
    assert report.ok, str(report)


def official_folder(folder: Path, num_games: int) -> list[Path]:
    """Authored games in the official layout, as `tmp/train/…`; their files."""
    from kintsugi.sandboxes.environments.alfworld_worker import game_file

    files = []
    for number, task in enumerate(opened(task_types="place").tasks("train", limit=num_games)):
        file = folder / "train" / f"pick_and_place_simple-{number}" / "trial" / "game.tw-pddl"
        file.parent.mkdir(parents=True)
        game = game_file(task.payload)
        grammar = f'intro :: "Your task is to: {game["task"]}";'
        file.write_text(json.dumps({**game, "grammar": grammar, "solvable": True, "walkthrough": None}))
        (file.parent / "traj_data.json").write_text('{"task_type": "pick_and_place_simple"}')
        files.append(file)
    return files


def edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@needs_engine
def test_a_changed_game_is_read_anew(tmp_path):
    (file,) = official_folder(tmp_path, 1)
    environment = opened(data=tmp_path)
    (before,) = environment.tasks("train")
    edited(file, grammar='intro :: "Your task is to: put a spoon on the moon";')
    (after,) = environment.tasks("train")
    assert after.payload["sentence"] == "put a spoon on the moon" and after.hash != before.hash


def no_pddl(file: Path) -> None:
    edited(file, pddl_problem=json.loads(file.read_text())["pddl_problem"].rstrip().rstrip(")"))


@needs_engine
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("spoil", "after", "told"),
    [
        (no_pddl, False, "simple-0/trial/game.tw-pddl: expected a PDDL"),
        (lambda file: file.write_text("{"), True, "expected an ALFWorld game .*simple-0/trial/game.tw-pddl"),
        (Path.unlink, True, "simple-0/trial/game.tw-pddl: No such file"),
        (lambda file: edited(file, more=1), True, "simple-0/trial/game.tw-pddl was changed after its task was made"),
    ],
    ids=["no PDDL", "cut short", "gone", "replaced"],
)
def test_a_game_that_cannot_be_played_is_an_error_of_its_own_attempt(tmp_path, workers, spoil, after, told):
    broken, _ = official_folder(tmp_path, 2)
    if not after:
        spoil(broken)
    environment = opened(data=tmp_path, workers=workers)
    first, second = environment.tasks("train")
    if after:
        spoil(broken)

    async def main():
        worlds = Worlds(environment, timeout_s=30)
        await worlds.observe("a", first)
        await worlds.observe("b", second)
        with pytest.raises(WorldBroke, match=f"GameBroken: .*{told}"):
            await worlds.act("a", first, [], "look")
        assert (await worlds.act("b", second, [], "look")).observation and worlds.crashes == 2
        with pytest.raises(DataError, match=f"{told}.*leave that game out"):
            await environment.expert(first)
        assert environment.pool.deaths == 0
        await environment.close()

    asyncio.run(main())
