"""`kintsugi data fetch NAME`: an environment's official release, from its own source, licence and checksum shown.

In Python: `official_download.fetch(name, folder)` in `kintsugi.sandboxes.environments`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Final

import typer

from kintsugi.errors import ConfigError

_COMPARED: Final = {
    "project": "as this project knows it",
    "first fetch": "as at the first fetch",
    "nothing": "no checksum was known: written down, and compared from now on",
}

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.callback(epilog="Example: kintsugi data fetch svamp --to data/svamp")
def _root() -> None:
    """Fetch official data."""


@app.command("fetch", epilog="Example: kintsugi data fetch svamp --to data/svamp")
def fetch_data(
    name: Annotated[str, typer.Argument(help="An environment's name.")],
    to: Annotated[Path | None, typer.Option("--to", help="Folder to put it into (default: data/NAME).")] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="I have read the licence; asked for where it is non-commercial.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")] = False,
) -> None:
    """Fetch the official release of an environment's data, where there is a network."""
    from kintsugi.sandboxes.environments.about import about
    from kintsugi.sandboxes.environments.official_download import fetch

    said = about(name)
    folder = to or Path("data") / name
    typer.echo(f"{name}: {said.home}\nlicence: {said.licence or 'see there'}", err=as_json)
    if "non-commercial" in said.licence and not accept_licence:
        raise ConfigError(f"the data of {name} are under {said.licence}: say --accept-licence when that suits your use")
    fetched = fetch(name, folder)
    if as_json:
        rows = [{**dataclasses.asdict(one), "path": str(one.path), "known": one.known} for one in fetched]
        typer.echo(json.dumps({"licence": said.licence, "folder": str(folder), "files": rows}, indent=1))
        return
    for one in fetched:
        more = "" if one.fresh else "; was there"
        more += f"; {one.unpacked} files unpacked" if one.unpacked else ""
        typer.echo(f"{one.path}  {one.bytes} bytes  sha256 {one.sha256} ({_COMPARED[one.against]}{more})")
    typer.echo(f"use it with environment.options.data={folder}")
