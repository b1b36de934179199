"""Many `kintsugi` processes at the price of one import: each is forked from this one, and may be told to die.

    python forked_runs.py < chains.json > results.json

A chain is a list of processes run one after another; two chains run at once. A process is {"arguments": ["train", …],
"at": {"point": "module:Class.name", "when": "before" | "after", "call": 2, "having": "gate", "signal": "SIGKILL"}}: at
the second call of that function whose arguments, printed, have "gate" in them, it sends itself the signal. The result
of each is {"code": exit code or -signal, "said": what it printed}. Used by test_run.py; not a test itself.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import os
import signal
import sys
import tempfile
from typing import Any


def die_at(*, point: str, when: str = "after", call: int = 1, having: str = "", signal: str = "SIGKILL") -> None:
    """Wrap the function at `point` so that this process sends itself a signal there."""
    module, _, path = point.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    inner = getattr(owner, name)
    left = [call]

    def strike(now: str, arguments: Any) -> None:
        if now == when and having in repr(arguments):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), getattr(signal_module, signal))

    @functools.wraps(inner)
    def plain(*args: Any, **kwargs: Any) -> Any:
        strike("before", (args[1:] or args, kwargs))
        result = inner(*args, **kwargs)
        strike("after", (args[1:] or args, kwargs))
        return result

    @functools.wraps(inner)
    async def waiting(*args: Any, **kwargs: Any) -> Any:
        strike("before", (args[1:] or args, kwargs))
        result = await inner(*args, **kwargs)
        strike("after", (args[1:] or args, kwargs))
        return result

    setattr(owner, name, waiting if asyncio.iscoroutinefunction(inner) else plain)


signal_module = signal


def start(process: dict[str, Any], said: Any) -> int:
    """Fork a child that runs the process; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        signal.alarm(100)
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
        if process.get("at"):
            die_at(**process["at"])
        from kintsugi.cli.main import main

        sys.argv = ["kintsugi", *process["arguments"]]
        main()
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_chains(chains: list[list[dict[str, Any]]], at_once: int = 2) -> list[list[dict[str, Any]]]:
    """Run all chains; a result for each of their processes."""
    results: list[list[dict[str, Any]]] = [[] for _ in chains]
    waiting, running = list(range(len(chains))), {}
    while waiting or running:
        while waiting and len(running) < at_once:
            number = waiting.pop(0)
            if len(results[number]) < len(chains[number]):
                said = tempfile.TemporaryFile("w+")  # noqa: SIM115
                running[start(chains[number][len(results[number])], said)] = (number, said)
        if running:
            pid, status = os.wait()
            number, said = running.pop(pid)
            said.seek(0)
            results[number].append({"code": os.waitstatus_to_exitcode(status), "said": said.read()})
            waiting.insert(0, number)
    return results


def preload() -> None:
    """What every process would import, imported once. No thread may start here: the children are forked."""
    import matplotlib.pyplot
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    import kintsugi.training.curves
    import kintsugi.training.run
    import kintsugi.training.sft

    assert all((matplotlib.pyplot, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast, SFTConfig, SFTTrainer))
    assert all((kintsugi.training.curves, kintsugi.training.run, kintsugi.training.sft))


if __name__ == "__main__":
    preload()
    json.dump(run_chains(json.load(sys.stdin)), sys.stdout)
