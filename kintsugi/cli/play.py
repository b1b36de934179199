"""`kintsugi play ENV`: watch an episode message by message and steer it, or act yourself; leave and come back later.

In Python: `kintsugi.graphs.playing.PlaySession`. What the screen shows and what can be typed is `play_screen`'s. Not here:
several people at one session.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kintsugi.errors import ConfigError, nearest

app = typer.Typer(add_completion=False, rich_markup_mode=None)

HUMAN, EXPERT = "human", "expert"
MOST_TASKS = 10_000  # many worlds draw all tasks before the one that is asked for


@app.command(
    epilog="Example: kintsugi play treasure_hunt   ·   kintsugi play treasure_hunt --policy expert   ·   "
    "kintsugi play runs/demo --task 3 repair.who=self   ·   kintsugi play --resume last"
)
def play(
    where: Annotated[
        str | None, typer.Argument(metavar="[ENV]", help="An environment's name or Python file, or a run folder.")
    ] = None,
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Who acts: human (you), expert, a model or run folder, a hub name, or a kind of policy."),
    ] = None,
    task: Annotated[str, typer.Option(help="The task's number in its split, or its id.")] = "0",
    split: Annotated[str | None, typer.Option(help="The split that the task is from (default: train).")] = None,
    recipe: Annotated[str | None, typer.Option(help="Whose repair, prompts and sampling.")] = None,
    pause: Annotated[
        list[str] | None, typer.Option(help="Where to stop: every, none, before:NODE or after:NODE; may be repeated.")
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="ID", help="Come back to a session: its id, or last.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the sessions.")] = False,
    sessions: Annotated[Path | None, typer.Option(help="Folder of the sessions (default: runs/plays).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The list, or what was played, as JSON.")] = False,
) -> None:
    """Play an episode: watch, pause, approve, edit or replace what is said, go back, branch, come back later.

    Enter goes on to the next pause, text is said instead, :help names the commands. Commands may be piped in.
    """
    from kintsugi.graphs.play_file import SESSIONS

    folder = sessions or SESSIONS
    if sum([listed, resume is not None, where is not None]) != 1:
        raise ConfigError("expected one of an environment, --resume ID or --list: kintsugi play --help shows them")
    if listed:
        _list(folder, as_json)
        return
    if resume is not None and (policy or settings or recipe):
        raise ConfigError("a session keeps who acts and its settings: --resume ID stands alone, with --pause at most")
    config = None
    if where is not None:
        config = _config(where, settings or (), policy, recipe, split)
    from kintsugi.cli.play_screen import Screen

    screen = Screen(folder, quiet=as_json)
    with asyncio.Runner() as runner:
        session = runner.run(_opened(config, resume, folder, task, screen))
        try:
            if pause is not None:
                session.pause_at(*(one for one in pause if one != "none"))
            screen.play(session, runner, fresh=resume is None)
            if as_json:
                typer.echo(json.dumps(_plain(session), indent=1))
        finally:
            runner.run(session.close())


async def _opened(config: Any, resume: str | None, folder: Path, task: str, screen: Any) -> Any:
    """The session, new or again."""
    from kintsugi.graphs.play_file import find_session
    from kintsugi.graphs.playing import PlaySession
    from kintsugi.sandboxes.environments.environment import open_environment

    if resume is not None:
        return await PlaySession.resume(find_session(resume, folder))
    settings, split, run = config
    environment = open_environment(settings.environment.name, settings.environment.options)
    try:
        chosen = _recorded(run, environment.name, task) or _task(environment, split, task)
    finally:
        await environment.close()
    if settings.model.kind not in (HUMAN, EXPERT):
        screen.note(f"opening {settings.model.options.get('path', settings.model.kind)} …")
    return await PlaySession.begin(settings, chosen, folder=folder)


def _recorded(run: Path | None, environment: str, wanted: str) -> Any:
    """The run's own task of that id: `tasks` draws others in each round."""
    if run is None or wanted.isdigit() or not (run / "ledger.sqlite").exists():
        return None
    from kintsugi.ledger.ledger import Ledger

    with Ledger.open(run, create=False, read_only=True) as ledger:
        return next(iter(ledger.tasks(environment=environment, id=wanted)), None)


def _task(environment: Any, split: str, wanted: str) -> Any:
    """Task number or id `wanted` of the split."""
    if wanted.isdigit():
        if int(wanted) >= MOST_TASKS:
            raise ConfigError(f"expected a task's number below {MOST_TASKS:,}, found --task {wanted}: or give the task's id")
        found = environment.tasks(split, limit=int(wanted) + 1)
        if len(found) > int(wanted):
            return found[int(wanted)]
        raise ConfigError(f'{environment.name} has {len(found)} tasks in its split "{split}", found --task {wanted}')
    found = {task.id: task for task in environment.tasks(split)}
    if wanted not in found:
        raise ConfigError(f'no task of {environment.name}, split "{split}", is called "{wanted}": {_near(wanted, found)}')
    return found[wanted]


def _near(word: str, known: Any) -> str:
    said = nearest(word, known)
    return said if len(said) < 200 else said[:200] + "…"


def _config(where: str, overrides: Sequence[str], policy: str | None, recipe: str | None, split: str | None) -> Any:
    """(PlayConfig, split, run folder or None) of what was typed: a run's or recipe's settings below, `KEY=VALUE` on top."""
    from kintsugi.config import merged, validate, with_overrides
    from kintsugi.graphs.play_config import PlayConfig
    from kintsugi.sandboxes.environments.environment import is_file_name
    from kintsugi.training.recipe import load_recipe

    run = Path(where) if (Path(where) / "run.json").exists() else None
    # A session may be opened again from elsewhere.
    name = str(Path(where).expanduser().resolve()) if is_file_name(where) else where
    values: dict[str, Any] = {"environment": {"name": name}}
    loaded = None
    if run is not None:
        from kintsugi.training.run import recipe_of

        loaded = recipe_of(run)
        values["environment"]["name"] = loaded.environment.name
    if recipe is not None:
        loaded = load_recipe(recipe)
    if loaded is not None:
        values = merged(_from_recipe(loaded, values["environment"]["name"]), values)
    values = merged(values, {"model": _player(policy or (str(run) if run is not None else HUMAN))})
    config = validate(PlayConfig, with_overrides(values, overrides), "kintsugi play")
    options = config.environment.options
    for option in ("data", "corpus"):  # a session may be opened again from elsewhere
        if isinstance(given := options.get(option), str) and given not in ("hub", "bundled") and Path(given).exists():
            options[option] = str(Path(given).resolve())
    return config, split or (loaded.environment.train_split if loaded is not None and run is not None else "train"), run


def _from_recipe(recipe: Any, environment: str) -> dict[str, Any]:
    """A recipe's settings, as far as they are an episode's; its prompts and options only for its own environment."""
    plain = recipe.model_dump(mode="json")
    values = {name: plain[name] for name in ("repair", "episode", "seed")}
    values |= {name: plain["explore"][name] for name in ("temperature", "top_p", "max_tokens", "stop")}
    if recipe.environment.name == environment:
        values["environment"] = {"options": plain["environment"]["options"]}
        values["model"] = {"prompts": recipe.model.prompts}
    return values


def _player(word: str) -> dict[str, Any]:
    """The policy that `--policy WORD` means."""
    from kintsugi.agents.policies.policy import policy_kinds

    if word in (HUMAN, EXPERT):
        return {"kind": word}
    if (Path(word) / "run.json").exists():
        from kintsugi.training.run import champion_of

        champion = champion_of(Path(word).resolve())  # a session may be opened again from elsewhere
        return {"kind": "transformers", "options": {"path": str(champion), "version": champion.name}}
    if Path(word).is_dir():
        return {"kind": "transformers", "options": {"path": str(Path(word).resolve())}}
    if "/" in word and not word.startswith(("/", ".", "~")):
        return {"kind": "transformers", "options": {"path": word}}
    kinds = {HUMAN, EXPERT, *policy_kinds()}
    if word in kinds:
        return {"kind": word}
    raise ConfigError(f'no policy, model folder or run is called "{word}": {nearest(word, kinds)}')


def _list(folder: Path, as_json: bool) -> None:
    from kintsugi.graphs.play_file import list_sessions

    found = list_sessions(folder)
    if as_json:
        typer.echo(json.dumps([_info(info) for info in found], indent=1))
        return
    if not found:
        typer.echo(f"no sessions in {folder}: kintsugi play treasure_hunt begins one")
        return
    typer.echo(f"{'session':<7} {'used (UTC)':<11} {'environment':<13} {'task':<12} {'policy':<8} stands")
    for info in found:
        ended = "over: " + ", ".join(info.stops) if not info.next else f"turn {info.turns}, {info.next} next"
        kind = {"transformers": "model"}.get(info.policy, info.policy)
        used = info.updated[5:16].replace("T", " ")
        line = f"{info.id:<7} {used:<11} {info.environment[:13]:<13} {info.task_id[:12]:<12} {kind[:8]:<8} {ended}"
        typer.echo(line if len(line) <= 80 or not sys.stdout.isatty() else line[:79] + "…")


def _info(info: Any) -> dict[str, Any]:
    return {**{name: value for name, value in vars(info).items() if name != "path"}, "path": str(info.path)}


def _plain(session: Any) -> dict[str, Any]:
    """What a script wants to know of a session."""
    from kintsugi.records import to_plain

    point = session.point
    return {
        **_info(session.info),
        "over": point.over,
        "point": point.number,
        "lines": [{"name": line.name, "points": list(line.points)} for line in session.lines],
        "episode": to_plain(session.episode()) if point.over else None,
    }
