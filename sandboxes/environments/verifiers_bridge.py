"""Any `verifiers` environment with one agent: single answers, tools, a user's part, scored by its own rewards.

    environment = open_environment(env="my_taskset", config={"split": "train"}, gold="answer")

It needs the extra `[verifiers]` (0.4, the API of `verifiers.v1`) and the taskset's own package. Tasks are the taskset's, in
its order; which split one belongs to follows from its prompt (train 50 %, heldout 30 %, demonstrations 20 %), so that no
prompt is in two.

**One answer** a task: the prompt is the system's and the user's, and the answer is scored. **Turns**, where the environment
has a `run` of its own (a user's part, a game), the task or the taskset has tools, or a hook of the task's wants more than an
answer: an attempt is one rollout of verifiers' own (`verifiers_play`), and each action the model's next message. With tools
it is one call, `server_tool[argument]` or native JSON as for `mcp` (`mcp_actions`), or `finish[answer]`; any other text is
the message itself, after `Action:` the rest of that line. `think: …` is answered "OK." and reaches nothing. A call that went
wrong is told so, and costs a turn of the attempt but none of the rollout. Tool servers and the task's `setup` run on this
machine, with your rights.

**Success** is a weighted sum of the task's rewards of at least `success_reward`, with none of the rollout's limits reached;
the verdict's reward is that sum, within 0 and 1, and its detail has each reward and metric. All runs in worker processes
(`verifiers_worker`): what raises, dies or hangs is an error on the verdict. A judge needs its model's address and key.

Left out, each refused with a sentence: several agents, tasks or tools that need a container, agents that must run in another
program than a chat. A picture is shown as "(a picture)". Releases before 0.4 have another API, `load_environment` with
`SingleTurnEnv`, `ToolEnv` and so on; 0.4 no longer has it, and so neither has the bridge.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError, missing_extra
from kintsugi.sandboxes.environments.about import About
from kintsugi.sandboxes.environments.verifiers_world import VerifiersBridge, VerifiersTurns, sweep
from kintsugi.sandboxes.environments.worker_processes import WorkerDied, WorkerProcess

_WORKER: Final = "kintsugi.sandboxes.environments.verifiers_worker"
_GOODBYE_S: Final = 20.0
"""What a worker has beyond `timeout_s` to end a rollout that took too long, before it is killed."""

ABOUT = About(
    kind="bridge: one turn or several, any verifiers environment with one agent (option env)",
    metric="the task's own rewards reach success_reward",
    data="the taskset's",
    extra="verifiers",
)


def open_environment(
    env: str,
    config: Mapping[str, Any] | None = None,
    env_config: Mapping[str, Any] | None = None,
    gold: str = "",
    success_reward: float = 1.0,
    max_turns: int = 20,
    most_tasks: int = 10_000,
    list_tools: bool = True,
    workers: int = 2,
    timeout_s: float = 60.0,
) -> VerifiersBridge | VerifiersTurns:
    """The environment of the taskset `env`, opened with `config`.

    env_config: settings of the environment around it, `id` of another one included. gold: the field of a task's data that is
    a right answer, or a list of actions, for golds. success_reward: see the module. max_turns: most messages in a rollout.
    most_tasks: how many of the taskset are read. list_tools: name them in the first observation. workers: processes.
    timeout_s: longest wait for what follows a message, for one scoring, and for the taskset to load.
    Raises MissingExtra, ConfigError and DataError."""
    if most_tasks < 1 or workers < 1 or max_turns < 1 or timeout_s <= 0:
        raise ConfigError("verifiers: expected most_tasks, workers and max_turns of 1 or more and timeout_s above 0")
    room = _room()
    asked = {**_asked(env, config, env_config, timeout_s, room), "most": most_tasks, "gold": gold}
    asked |= {"max_turns": max_turns, "list_tools": list_tools}
    processes = [_process(asked, timeout_s, room) for _ in range(workers)]
    try:
        told = _told(processes[0], {"op": "tasks"}, env)
    except BaseException:
        processes[0].close()
        sweep(room)
        raise
    if told["turns"]:
        for process in processes:
            process.timeout_s = timeout_s + _GOODBYE_S
        return VerifiersTurns(processes, told["tasks"], success_reward, room, max_turns=max_turns)
    return VerifiersBridge(processes, told["tasks"], success_reward, room)


def schemas(
    env: str, config: Mapping[str, Any] | None = None, env_config: Mapping[str, Any] | None = None, timeout_s: float = 60.0
) -> list[dict[str, Any]]:
    """The tools of the taskset's first task in the form of the chat-completions protocol, for a policy's option `tools`.

    Raises as `open_environment`, and DataError for a rollout that does not begin."""
    room = _room()
    asked = {**_asked(env, config, env_config, timeout_s, room), "most": 1, "gold": "", "max_turns": 1, "list_tools": False}
    process = _process(asked, timeout_s, room)
    try:
        told = _told(process, {"op": "tools"}, env)
    finally:
        process.close()
        sweep(room)
    if "tools" not in told:
        raise DataError(f'verifiers: a rollout of "{env}" did not begin: {told.get("broke", "it ended at once")}')
    return told["tools"]


def _room() -> Path:
    """A folder for what the workers leave lying. Raises MissingExtra."""
    if importlib.util.find_spec("verifiers") is None:
        raise missing_extra("the environment verifiers", "verifiers")
    return Path(tempfile.mkdtemp(prefix="kintsugi-verifiers-"))


def _asked(
    env: str, config: Mapping[str, Any] | None, env_config: Mapping[str, Any] | None, timeout_s: float, room: Path
) -> dict[str, Any]:
    settings = {"config": dict(config or {}), "env_config": dict(env_config or {})}
    return {"env": env, **settings, "patience_s": timeout_s, "room": str(room)}


def _process(asked: Mapping[str, Any], timeout_s: float, room: Path) -> WorkerProcess:
    # Sets of texts are in the same order in every worker, so that replays agree; a proxy is not asked for this machine.
    direct = ",".join(filter(None, ("127.0.0.1,localhost", os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")))))
    settings = {"PYTHONHASHSEED": "0", "TMPDIR": str(room), "NO_PROXY": direct, "no_proxy": direct}
    return WorkerProcess(_WORKER, [json.dumps(asked)], timeout_s, settings)


def _told(process: WorkerProcess, request: Mapping[str, Any], env: str) -> dict[str, Any]:
    try:
        return process.ask_blocking(request)
    except WorkerDied as died:
        raise DataError(f'verifiers: the taskset "{env}" did not load: {died}') from None
