"""`kintsugi episodes`: look into a run's ledger, and take rows out of it.

`list RUN`, `show RUN ID`, `export RUN KIND OUT`; RUN is a run folder, a ledger file or a database URL. Everything is
read-only and safe beside a run that is still writing. In Python: `Ledger.open(run, read_only=True)` and
`kintsugi.export`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kintsugi.cli.visible_text import visible
from kintsugi.errors import ConfigError, nearest
from kintsugi.ledger import EXPORT_KINDS, Ledger
from kintsugi.ledger.filters import Wanted
from kintsugi.records import Action, Critique, Episode, Message, Observation, Trajectory, Verdict, to_plain

app = typer.Typer(
    no_args_is_help=True,
    help="List, show and export the episodes of a run.",
    epilog="Example: kintsugi episodes list runs/demo --stop failure",
    rich_markup_mode=None,
    add_completion=False,
)

STAGES = ("explore", "refine", "reflect", "teacher", "human")
STOPS = ("success", "failure", "truncated", "error")
_MARKS = {"success": ("✓", "green"), "failure": ("✗", "red"), "truncated": ("…", "yellow"), "error": ("!", "magenta")}

Run = Annotated[str, typer.Argument(help="Run folder, ledger file or database URL.")]
Round = Annotated[int | None, typer.Option("--round", help="Only this round.")]
Stage = Annotated[str | None, typer.Option("--stage", help=f"Only: {', '.join(STAGES)}.")]
Stop = Annotated[str | None, typer.Option("--stop", help=f"Only what ended so: {', '.join(STOPS)}.")]
TaskId = Annotated[str | None, typer.Option("--task", help="Only this task.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]


@app.command("list", epilog="Example: kintsugi episodes list runs/demo --round 2 --stage refine --stop success")
def list_episodes(
    run: Run,
    round: Round = None,
    stage: Stage = None,
    stop: Stop = None,
    task: TaskId = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Skip so many.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List episodes, with --stage and --stop those that have such an attempt.

    Attempts end in ✓ success, ✗ failure, … truncated or ! error.
    """
    filters = _filters(round=round, stage=stage, stop=stop, task_id=task)
    with Ledger.open(run, create=False, read_only=True) as ledger:
        total = ledger.count_episodes(**filters)
        episodes = ledger.episodes(limit=limit, offset=offset, **filters)
    if as_json:
        typer.echo(json.dumps([_summary(episode) for episode in episodes], indent=1))
        return
    console = Console()
    console.print(_table(episodes))
    last = offset + len(episodes)
    more = f"; the next ones: --offset {last}" if last < total else ""
    console.print(f"{len(episodes)} of {total} episodes{more}", style="dim")


@app.command("show", epilog="Example: kintsugi episodes show runs/demo 3fa2")
def show_episode(
    run: Run,
    id: Annotated[str, typer.Argument(metavar="ID", help="Episode id, or the beginning of it.")],
    as_json: AsJson = False,
) -> None:
    """Show one episode: every message, verdict, fault, cost, and where each attempt comes from."""
    with Ledger.open(run, create=False, read_only=True) as ledger:
        episode = ledger.episode(id)
        if as_json:
            typer.echo(json.dumps(to_plain(episode), indent=1))
            return
        console = Console()
        _print_head(console, episode)
        for trajectory in episode.trajectories:
            _print_attempt(console, trajectory)
        for trajectory in episode.trajectories[-1:]:  # the last attempt's lineage has those that it repairs
            console.rule("lineage", align="left", style="dim")
            console.print(Text(visible(ledger.lineage(trajectory.id).text())), soft_wrap=False)


@app.command("export", epilog="Example: kintsugi episodes export runs/demo dpo pairs.jsonl --round 2")
def export_rows(
    run: Run,
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of: {', '.join(EXPORT_KINDS)}.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="JSONL file to write (replaced as a whole).")],
    round: Round = None,
    stage: Stage = None,
    stop: Stop = None,
    task: TaskId = None,
    saw_gold: Annotated[bool, typer.Option("--saw-gold", help="Keep attempts whose maker saw a gold answer.")] = False,
    recipe: Annotated[str | None, typer.Option(help="Whose prompts the rows have (default: the run's own).")] = None,
    as_json: AsJson = False,
) -> None:
    """Export rows that TRL reads, in the prompts that the policy was given: sft, dpo, repairs; or whole trajectories."""
    from kintsugi.training.exports import export, recipe_beside
    from kintsugi.training.recipe import load_recipe

    filters = _filters(round=round, stage=stage, stop=stop, task_id=task)
    with Ledger.open(run, create=False, read_only=True) as ledger:
        asked = load_recipe(recipe) if recipe is not None else recipe_beside(ledger)
        number = export(ledger, kind, out, saw_gold=saw_gold, recipe=asked, **filters)
    if asked is None and kind != "trajectories":
        told = "note: no recipe lies beside this ledger, so rows ask in the environment's words alone: --recipe names one"
        typer.echo(told, err=True)
    typer.echo(json.dumps({"kind": kind, "path": out, "rows": number}) if as_json else f"{number} {kind} rows → {out}")


def _filters(**filters: Wanted) -> dict[str, Any]:
    for name, known in (("stage", STAGES), ("stop", STOPS)):
        value = filters.get(name)
        if value is not None and value not in known:
            raise ConfigError(f'unknown {name} "{value}": {nearest(str(value), known)}')
    return {name: value for name, value in filters.items() if value is not None}


def _summary(episode: Episode) -> dict[str, Any]:
    return {
        "id": episode.id,
        "run_id": episode.run_id,
        "purpose": episode.purpose,
        "round": episode.round,
        "environment": episode.environment,
        "task_id": episode.task_id,
        "sample": episode.sample,
        "policy_version": episode.policy_version,
        "success": episode.success,
        "attempts": [
            {
                "id": part.id,
                "stage": part.stage,
                "stop": part.stop,
                "hard_reward": part.hard_reward,
                "soft_reward": part.soft_reward,
                "parent_id": part.parent_id,
                "cost": to_plain(part.cost),
                "crashes": list(part.crashes),
            }
            for part in episode.trajectories
        ],
    }


def _table(episodes: list[Episode]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    table.add_column("id", no_wrap=True)
    table.add_column("round", justify="right")
    table.add_column("purpose", no_wrap=True)
    table.add_column("task", overflow="fold", max_width=24)
    table.add_column("k", justify="right")
    table.add_column("attempts")
    table.add_column("tokens", justify="right")
    for episode in episodes:
        tokens = sum(part.cost.generated_tokens for part in episode.trajectories)
        cells = (episode.id[:10], str(episode.round), episode.purpose, episode.task_id, str(episode.sample))
        attempts = Text(" ").join(_attempt(part) for part in episode.trajectories)
        table.add_row(*map(Text, cells), attempts, Text(str(tokens)))
    return table


def _attempt(part: Trajectory) -> Text:
    mark, colour = _MARKS[part.stop]
    return Text.assemble(f"{part.stage} ", (mark, colour))


def _print_head(console: Console, episode: Episode) -> None:
    console.print(Text(f"episode {episode.id}", style="bold"))
    console.print(Text(f"task {episode.environment}/{episode.task_id}, {episode.purpose}, run {episode.run_id}"))
    console.print(
        Text(
            f"round {episode.round}, sample {episode.sample}, seed {episode.seed}, policy {episode.policy_version}, "
            f"{'success' if episode.success else 'no success'}"
        )
    )
    if episode.path:
        console.print(Text("path " + " → ".join(episode.path), style="dim"))


def _print_attempt(console: Console, part: Trajectory) -> None:
    colour = _MARKS[part.stop][1]
    title = Text.assemble(f"attempt {part.attempt}: {part.stage}, ", (part.stop, colour), f", reward {part.hard_reward:g}")
    console.rule(title, align="left", style="dim")
    turn = 0
    for message in part.messages:
        turn += isinstance(message, Action)
        _print_message(console, message, turn)
    cost, soft = part.cost, "" if part.soft_reward is None else f", soft reward {part.soft_reward:.3f}"
    for crash in part.crashes:
        _block(console, "crash of the environment", crash, "magenta")
    told = [message.feedback for message in part.messages if isinstance(message, Verdict)]
    if part.feedback and part.feedback not in told:
        _block(console, "feedback", part.feedback, "yellow")
    console.print(
        Text(
            f"{cost.generated_tokens} tokens generated, {cost.processed_tokens} processed, "
            f"{cost.executions} executions, {cost.seconds:.2f} s{soft}  [{part.id}]",
            style="dim",
        )
    )


def _print_message(console: Console, message: Message, turn: int) -> None:
    match message:
        case Observation():
            _block(console, "observation", message.text, "cyan")
        case Action():
            sampled = f", {len(message.tokens.completion_ids)} tokens" if message.tokens else ""
            _block(console, f"action, turn {turn}{sampled}", message.text, "blue", given=len(message.prefill))
        case Critique():
            note = f"; {message.note}" if message.note else ""
            _block(console, f"critique by {message.author}{note}", message.text, "yellow")
        case Verdict():
            judged = f"error: {message.error}" if message.error else "success" if message.success else "failure"
            detail = "".join(f", {name} {value:g}" for name, value in message.detail.items())
            _block(console, f"verdict: {judged}, reward {message.reward:g}{detail}", message.feedback, "green")
            if message.fault:
                fault = message.fault
                _block(console, f"fault: {fault.note}", f"kept: {fault.kept}\nbad:  {fault.bad}", "red")


def _block(console: Console, title: str, text: str, colour: str, given: int = 0) -> None:
    """A coloured title and the text below it, indented; the first `given` characters (not sampled) dimmed.

    Control characters are drawn, not obeyed: what a model writes must not drive the reader's terminal. Half characters
    (lone surrogates, which JSON can say and no terminal can show) become question marks."""
    console.print(Text(visible(title), style=colour))
    if text:
        body = Text(visible(text))
        body.stylize("dim", 0, given)
        for line in body.split("\n"):
            console.print(Text("  ") + line)
