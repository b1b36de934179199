"""`kintsugi report RUN…`: a run's page and curve; several runs compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: kintsugi report runs/demo   ·   kintsugi report runs/a-0 runs/a-1 runs/b-0 runs/b-1")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are compared.")],
    as_json: Annotated[bool, typer.Option("--json", help="The numbers as JSON.")] = False,
) -> None:
    """Write report.html and evolution.png into the run folder and print the table."""
    from kintsugi.training import report as reports

    if len(runs) > 1:
        found = reports.compare(runs)
        typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else str(found))
        return
    page = reports.write_report(runs[0])
    if as_json:
        typer.echo(json.dumps(reports.as_dict(runs[0]), indent=2))
        return
    typer.echo(reports.summary(runs[0]))
    typer.echo(f"report  {page}\ncurve   {runs[0] / 'evolution.png'}")
