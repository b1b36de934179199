"""`kintsugi serve MODEL`: a policy behind the OpenAI protocol, for any chat client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: kintsugi serve runs/demo --port 8000")
def serve(
    model: Annotated[str, typer.Argument(help="A run folder (its champion), a model folder or a hub name.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="Name it is served under (default: the last part of MODEL).")] = None,
) -> None:
    """Serve /v1/chat/completions until interrupted."""
    from kintsugi.agents.policies.chat_server import serve as start
    from kintsugi.agents.policies.policy import open_policy
    from kintsugi.training.run import champion_of

    folder = str(champion_of(Path(model))) if (Path(model) / "run.json").exists() else model

    async def run() -> None:
        policy = open_policy("transformers", {"path": folder, "batching": "eager"})
        shown = name or Path(model).resolve().name
        try:
            server = await start(policy, host=host, port=port, model=shown)
            typer.echo(f"{shown} ({folder}) answers at {server.url} (Ctrl-C ends)")
            try:
                await asyncio.Event().wait()
            finally:
                await server.close()
        finally:
            await policy.close()

    asyncio.run(run())
