"""ALFWorld's figures: is the lean engine TextWorld's to the letter, how fast is it, and who wins?

    python benchmarks/alfworld_games.py [--data FOLDER] [--authored 300] [--compare 12] [--json]

Authored games always; the official ones when `--data` names ALFWorld's folder (`json_2.1.1` or a folder of splits).
CPU time is this process's, and for the worker processes theirs as well. `--compare N` plays N authored and N official
games side by side on TextWorld's own environment, command by command (it needs about 4 s of CPU for an official game):
0 leaves it out, a large number takes all. Random play draws from the admissible commands, 50 turns on official games
and 30 on authored ones. Left out: learning.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kintsugi.records import Task
from kintsugi.sandboxes.environments.alfworld import Alfworld, open_environment
from kintsugi.sandboxes.environments.alfworld_engine import Game, Play, solvable
from kintsugi.sandboxes.environments.alfworld_expert import Expert
from kintsugi.sandboxes.environments.alfworld_generator import draw
from kintsugi.sandboxes.environments.alfworld_official import folder_of
from kintsugi.sandboxes.environments.alfworld_rooms import TASK_TYPES
from kintsugi.sandboxes.environments.alfworld_worker import Shipped, Worker, game_file
from kintsugi.sandboxes.environments.environment import success_by_kind

ANY_TURNS = 200


class Figures:
    """Lines of the report: what, the figure, what is required of it, and whether it is met."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, value: float | str, required: str = "", met: bool | None = None) -> None:
        shown = round(value, 2) if isinstance(value, float) else value
        self.rows.append({"what": what, "value": shown, "required": required, "met": met})
        mark = {None: "", True: "yes", False: "NO"}[met]
        print(f"{what:<62}{shown!s:>16}  {required:<12}{mark}", file=sys.stderr, flush=True)


def cpu_s(children: bool = False) -> float:
    """CPU of this process, and of the living and reaped children when asked."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    total = used.ru_utime + used.ru_stime
    if children:
        reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
        total += reaped.ru_utime + reaped.ru_stime
        for name in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            words = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
            total += sum(int(word) for word in words[11:13]) / os.sysconf("SC_CLK_TCK")
    return total


def plays_of_expert(play: Play, turns: int) -> list[str] | None:
    """The expert's commands up to its win, or None."""
    expert, commands = Expert(play.intro), []
    for _ in range(turns):
        commands.append(expert.next_command())
        turn = play.step(commands[-1])
        expert.told(commands[-1], turn.observation)
        if turn.done:
            return commands
    return None


def measure(name: str, environment: Alfworld, tasks: Sequence[Task], floor: int, figures: Figures) -> None:
    """Everything that the lean engine alone shows, on one set of games."""
    worker = Worker()
    begun = cpu_s()
    games = [worker.game(environment.game(task)) for task in tasks]
    figures.add(f"{name}: translating a game, CPU ms", (cpu_s() - begun) / len(games) * 1000)
    same = sum(game.intro == task.prompt for game, task in zip(games, tasks, strict=True))
    figures.add(f"{name}: prompts that are the engine's first observation", of(same, games), "all", same == len(games))
    if name == "official":
        stored = [asyncio.run(environment.gold(task)) or () for task in tasks]
        won = sum(_replayed(Play(game), commands) for game, commands in zip(games, stored, strict=True))
        figures.add("official: games won by the stored walkthrough", of(won, games), "all", won == len(games))
    wins(name, environment, games, tasks, figures)
    speed(name, games, floor, figures)
    worker.close()


def wins(name: str, environment: Alfworld, games: Sequence[Game], tasks: Sequence[Task], figures: Figures) -> None:
    """The expert's, by turns and by type."""
    found = [plays_of_expert(Play(game), ANY_TURNS) for game in games]
    won = sum(commands is not None for commands in found)
    least = len(games) * 55 // 60 if name == "official" else len(games)
    figures.add(f"{name}: games won by the hand-coded expert", of(won, games), f">= {least}", won >= least)
    for turns in (50, 30):
        inside = sum(commands is not None and len(commands) <= turns for commands in found)
        figures.add(f"{name}: ... within {turns} turns", of(inside, games))
    outcomes = {task.id: int(commands is not None) for task, commands in zip(tasks, found, strict=True)}
    for kind, (good, tried) in success_by_kind(environment, tasks, outcomes).items():
        figures.add(f"{name}:     {kind}", f"{good} of {tried}")


def speed(name: str, games: Sequence[Game], floor: int, figures: Figures) -> None:
    """Random play: what it wins, and the turns it takes."""
    rng, walks, lucky, most = random.Random(0), [], 0, 50 if name == "official" else 30
    for game in games:
        play, commands = Play(game), []
        while len(commands) < most and not play.won:
            commands.append(rng.choice(play.admissible_commands()))
            play.step(commands[-1])
        walks.append(commands)
        lucky += play.won
    most_lucky = 0.03 * len(games)
    figures.add(f"{name}: games won by a random policy, {most} turns", of(lucky, games), "<= 3 %", lucky <= most_lucky)
    for admissible in (True, False):
        begun = cpu_s()
        for game, commands in zip(games, walks, strict=True):
            play = Play(game)
            for command in commands:
                play.step(command)
                if admissible:
                    play.admissible_commands()
        rate = sum(map(len, walks)) / (cpu_s() - begun)
        kind = "with" if admissible else "without"
        figures.add(f"{name}: turns per CPU-s, {kind} admissible commands", rate, f">= {floor}", rate >= floor)
    begun = cpu_s()
    for game in games:
        Play(game)
    figures.add(f"{name}: a reset of a known game, CPU ms", (cpu_s() - begun) / len(games) * 1000)


def of(some: int, every: Sequence[object]) -> str:
    return f"{some} of {len(every)}"


def _replayed(play: Play, commands: Sequence[str]) -> bool:
    done = [play.step(command).done for command in commands]
    return bool(done) and done[-1] and not any(done[:-1])


def make(number: int, figures: Figures) -> None:
    """A bundled game: drawn, translated, reset, and won by the expert."""
    worker, rng, won = Worker(), random.Random("benchmark"), 0
    begun = cpu_s()
    for index in range(number):
        game = draw(rng, TASK_TYPES[index % len(TASK_TYPES)], receptacles=(5, 8))
        won += plays_of_expert(Play(worker.game({"authored": game.to_plain()})), 50) is not None
    took = (cpu_s() - begun) / number * 1000
    figures.add("authored: making a game, CPU ms (draw, translate, reset, expert)", took, "<= 80", took <= 80)
    figures.add("authored: games made that the expert wins", f"{won} of {number}", "all", won == number)


def prove(environment: Alfworld, tasks: Sequence[Task], figures: Figures) -> None:
    """TextWorld's planner finds a plan."""
    proved, begun = 0, cpu_s()
    for task in tasks:
        file = game_file(environment.game(task))
        proved += solvable(file["pddl_domain"], file["pddl_problem"]) is not None
    figures.add(
        "authored: games that TextWorld's planner proves winnable", f"{proved} of {len(tasks)}", "all", proved == len(tasks)
    )
    figures.add("authored: ... CPU ms a game", (cpu_s() - begun) / len(tasks) * 1000)


def compare(name: str, environment: Alfworld, tasks: Sequence[Task], figures: Figures) -> None:
    """Lean beside shipped: random play, nonsense, the expert to the end, and one turn beyond; twice a game."""
    worker, shipped, rng = Worker(), Shipped(), random.Random(1)
    turns = differences = 0
    load_s = lean_s = shipped_s = 0.0
    for task in tasks:
        source = environment.game(task)
        game, file = worker.game(source), game_file(source)
        for again in range(2):
            begun = cpu_s()
            shipped.load(file)
            load_s += cpu_s() - begun
            play, expert = Play(game), Expert(game.intro)
            differences += (play.intro, play.admissible_commands()) != (shipped.intro, shipped.admissible_commands())
            for number in range(30):
                if number < 12 + 4 * again:
                    command = "help" if number == 2 else "Dance." if number == 3 else rng.choice(play.admissible_commands())
                else:
                    command = expert.next_command()
                begun = cpu_s()
                theirs = shipped.step(command)
                shipped_s += cpu_s() - begun
                begun = cpu_s()
                ours, admissible = play.step(command), play.admissible_commands()
                lean_s += cpu_s() - begun
                expert.told(command, ours.observation)
                turns += 1
                differences += (ours, admissible) != (theirs, shipped.admissible_commands())
    figures.add(f"{name}: turns compared with the shipped engine ({len(tasks)} games, twice)", turns)
    figures.add(f"{name}: turns that differ in any way", differences, "0", differences == 0)
    figures.add(f"{name}: shipped, load and reset, CPU ms", load_s / len(tasks) / 2 * 1000)
    figures.add(f"{name}: shipped, turns per CPU-s", turns / shipped_s)
    figures.add(f"{name}: lean on the same turns, turns per CPU-s", turns / lean_s)


async def through_environment(name: str, environment: Alfworld, tasks: Sequence[Task], figures: Figures) -> None:
    """Sixty-four episodes at once through worlds, engine, pool and records; a second time with games known."""
    chosen = [tasks[index % len(tasks)] for index in range(64)]
    plans = await asyncio.gather(*(environment.expert(task) for task in chosen))

    async def episode(task: Task, plan: Sequence[str] | None) -> tuple[int, bool]:
        world = await environment.start(task)
        replies = [await world.act(command) for command in (*("look",) * 10, *(plan or ()))]
        await world.close()
        return len(replies), replies[-1].verdict is not None

    begun = cpu_s(children=True)
    ended = await asyncio.gather(*(episode(task, plan) for task, plan in zip(chosen, plans, strict=True)))
    took = cpu_s(children=True) - begun
    figures.add(f"{name}: 64 episodes at once, turns per CPU-s", sum(turns for turns, _ in ended) / took)
    resident = [_resident_mb(pid) for pid in environment.pool.processes()]
    if resident:
        figures.add(f"{name}: ... memory of a worker, MB", max(resident))
    await environment.close()
    figures.add(
        f"{name}: ... processes left after close", len(environment.pool.processes()), "0", not environment.pool.processes()
    )


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="ALFWorld's official folder; without it authored games alone")
    parser.add_argument("--split", default="train", help="of the official folder")
    parser.add_argument("--authored", type=int, default=300, help="authored games")
    parser.add_argument("--compare", type=int, default=12, help="games of each kind to play on the shipped engine too")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    figures = Figures()
    environment = open_environment(max_turns=60)
    tasks = environment.tasks("heldout", limit=options.authored)
    make(options.authored, figures)
    measure("authored", environment, tasks, 800, figures)
    prove(environment, tasks[:60], figures)
    compare("authored", environment, tasks[: options.compare], figures) if options.compare else None
    for workers in (0, 2):
        opened = open_environment(max_turns=60, workers=workers)
        asyncio.run(through_environment(f"authored, {workers} workers", opened, tasks, figures))
    if options.data is not None:
        folder_of(options.data, options.split)  # a clear error before anything is played
        official = open_environment(data=options.data, max_turns=60)
        games = official.tasks(options.split)
        measure("official", official, games, 200, figures)
        spread = list(games[:: max(1, len(games) // options.compare)]) if options.compare else []
        compare("official", official, spread, figures) if spread else None
        asyncio.run(through_environment("official, 2 workers", official, games[::10], figures))
    if options.json:
        print(json.dumps(figures.rows, indent=2))
    sys.exit(0 if all(row["met"] is not False for row in figures.rows) else 1)


if __name__ == "__main__":
    main()
