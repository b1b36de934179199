"""`kintsugi environments`: list what there is to act in, and check one, or one of your own.

In Python: `about(name)`, `conformance.check(environment)`, `gold_self_test.check_golds(environment)`, all in
`kintsugi.sandboxes.environments`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kintsugi.errors import ConfigError, KintsugiError

if TYPE_CHECKING:
    from kintsugi.sandboxes.environments.conformance import Report
    from kintsugi.sandboxes.environments.environment import Environment
    from kintsugi.sandboxes.environments.gold_self_test import GoldResult

app = typer.Typer(rich_markup_mode=None, invoke_without_command=True, help="List environments, and check one.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]


@app.callback(epilog="Example: kintsugi environments   ·   kintsugi environments check svamp --data path/to/SVAMP")
def list_environments(context: typer.Context, as_json: AsJson = False) -> None:
    """List environments with their kind, data, splits and metric."""
    if context.invoked_subcommand is not None:
        return
    from kintsugi.sandboxes.environments.about import about
    from kintsugi.sandboxes.environments.environment import environment_kinds

    said = {name: about(name) for name in sorted(environment_kinds())}
    if as_json:
        typer.echo(json.dumps({name: dataclasses.asdict(one) for name, one in said.items()}, indent=1))
        return
    for name, one in said.items():
        typer.echo(f"{name}: {one.kind}")
        for label, text in (
            ("metric", one.metric),
            ("data", one.data),
            ("splits", ", ".join(one.splits)),
            ("licence", one.licence),
            ("needs", f'pip install "kintsugi-agents[{one.extra}]"' if one.extra else ""),
        ):
            if text:
                typer.echo(f"    {label:<8} {text}")


@app.command(
    "check",
    epilog="Example: kintsugi environments check svamp --data path/to/SVAMP   ·   kintsugi environments check ./mine.py",
)
def check_environment(
    name: Annotated[str, typer.Argument(help="An environment's name, or a Python file with open_environment.")],
    data: Annotated[str | None, typer.Option("--data", help="Folder in the official schema, or hub.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Another option of the environment.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Whose tasks the suite plays (train, or the first that is there).")
    ] = None,
    tasks: Annotated[int, typer.Option("--tasks", min=1, help="How many of them.")] = 20,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for one answer.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Run the conformance suite, then the gold self-test over every record.

    Without --data an environment plays its bundled set. Exits with 1 when anything fails.
    """
    options = {**_options(option or []), **({"data": data} if data is not None else {})}
    report = _suite(name, options, split, tasks, timeout_s)
    golds = _golds(name, options, split, timeout_s, hung=bool(report.skipped) and report.num_tasks > 0)
    if as_json:
        told = {"conformance": dataclasses.asdict(report), "golds": dataclasses.asdict(golds)}
        typer.echo(json.dumps({"ok": report.ok and golds.ok, **told}, indent=1))
    else:
        typer.echo(_wrapped(f"conformance: {report}"))
        typer.echo(_wrapped(f"golds: {golds}"))
        typer.echo("ok" if report.ok and golds.ok else "not ok")
    if not (report.ok and golds.ok):
        raise typer.Exit(1)


def _suite(name: str, options: Mapping[str, Any], split: str | None, tasks: int, timeout_s: float) -> Report:
    """The conformance suite's report, what was left behind since the environment was opened included."""
    from kintsugi.sandboxes.environments.conformance import check
    from kintsugi.sandboxes.environments.leftovers import Leftovers
    from kintsugi.sandboxes.environments.split_reading import first_split

    with Leftovers() as left:
        environment = _open(name, options)
        try:
            chosen = first_split(environment) if split is None else split
            perturb = getattr(environment, "perturbed", None)
            checking = check(environment, split=chosen, num_tasks=tasks, perturb=perturb, limit_s=timeout_s, left=left)
            return asyncio.run(checking)
        except KintsugiError:
            asyncio.run(_closed(environment))
            raise


def _golds(name: str, options: Mapping[str, Any], split: str | None, timeout_s: float, *, hung: bool) -> GoldResult:
    from kintsugi.sandboxes.environments.gold_self_test import GoldResult, check_golds

    environment = _open(name, options)
    if hung:
        return GoldResult(environment=environment.name, failures=("not tried: an answer never came in the suite",))

    async def checked() -> GoldResult:
        try:
            return await check_golds(environment, named=[split] if split else [], limit_s=timeout_s)
        finally:
            await _closed(environment)

    return asyncio.run(checked())


async def _closed(environment: Environment) -> None:
    """Close it, whatever it says: what is wrong with closing is the suite's to tell."""
    from kintsugi.sandboxes.environments.careful_calls import Broken, asked, time_limit

    async with time_limit(10.0):
        try:
            await asked(environment.close, what="close")
        except Broken:
            return


def _wrapped(text: str) -> str:
    """Lines as long as the terminal is wide; as they are where a program reads them."""
    if not sys.stdout.isatty():
        return text
    width = max(40, shutil.get_terminal_size().columns)
    fill = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(fill.fill(line) for line in text.split("\n"))


def _open(name: str, options: Mapping[str, Any]) -> Environment:
    from kintsugi.sandboxes.environments.about import about
    from kintsugi.sandboxes.environments.environment import open_environment

    bundled = {"data": "bundled"} if "data" not in options and about(name).bundled else {}
    return open_environment(name, {**bundled, **options})


def _options(pairs: list[str]) -> dict[str, Any]:
    """`key=value`; a value is read as JSON where it is some."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f'expected --option KEY=VALUE, found "{pair}"')
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
