"""The question answerer's tools in the two native forms: LangChain tools over a world, and schemas for a model to call.

    world = await environment.start(task)
    agent = some_langchain_agent(model, langchain_tools(world))     # the agent acts on the world; then world.verdict

    policy: {kind: "endpoint", options: {tools: "kintsugi.sandboxes.environments.hotpotqa_tools:SCHEMAS"}}

The first is for agents that LangChain runs by itself. The second is the way of the episode graph: the policy sends the
schemas with each request and writes the model's call as the text action (`search[…]`), so that the same world, ledger and
training serve both. `SCHEMAS` has OpenAI's form, which LangChain's `bind_tools` takes too. Left out: parallel calls, which
a world answers one after another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kintsugi.sandboxes.environments.environment import World
from kintsugi.sandboxes.environments.hotpotqa_actions import ARGUMENTS, action_text

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

_WORDS: Final = {
    "search": (
        "Open the page with this title and read its first sentences; names similar pages when there is none.",
        "Title of a page, for example a person, place or work.",
    ),
    "lookup": (
        "Find the next sentence on the open page that holds this text.",
        "A word or short phrase.",
    ),
    "finish": (
        "Give the final answer; this ends the attempt.",
        "A name, a number, a short phrase as a page has it, or yes or no.",
    ),
}

SCHEMAS: Final[list[dict[str, Any]]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": _WORDS[name][0],
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": "string", "description": _WORDS[name][1]}},
                "required": [argument],
            },
        },
    }
    for name, argument in ARGUMENTS.items()
]
"""search(title), lookup(text) and finish(answer) in the form that the chat-completions protocol takes."""


def langchain_tools(world: World) -> list[BaseTool]:
    """search, lookup and finish acting on `world`: each returns the observation. After `finish` the verdict is
    `world.verdict`; the tool itself only says that the attempt is over. They are coroutines: call them with `ainvoke`."""
    from langchain_core.tools import StructuredTool

    async def search(title: str) -> str:
        return (await world.act(action_text("search", title))).observation

    async def lookup(text: str) -> str:
        return (await world.act(action_text("lookup", text))).observation

    async def finish(answer: str) -> str:
        reply = await world.act(action_text("finish", answer))
        return reply.observation or "The attempt is over."

    return [
        StructuredTool.from_function(coroutine=tool, name=tool.__name__, description=_WORDS[tool.__name__][0])
        for tool in (search, lookup, finish)
    ]
