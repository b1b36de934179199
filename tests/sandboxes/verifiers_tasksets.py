"""Tiny tasksets for the verifiers bridge's tests, as a user would install them: texts of modules.

    write_tasksets(folder)      # tiny_shop.py, tiny_basket.py, tiny_guess.py, and some that cannot be played
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

SHOP: Final = '''
import os, time
import verifiers.v1 as vf

PRICES = {"apple": 3, "pear": 4, "plum": 2}

class Shop(vf.Toolset[vf.SharedToolsetConfig]):
    @vf.tool
    async def price(self, thing: str) -> int:
        """What one of a thing costs, in coins."""
        return PRICES[thing]

    @vf.tool
    async def multiply(self, a: int, b: int) -> int:
        """a times b."""
        return a * b

class ShopData(vf.TaskData):
    answer: str
    calls: list[str]

class ShopTask(vf.Task[ShopData, vf.State, vf.TaskConfig]):
    @vf.reward(weight=0.75)
    async def right(self, trace) -> float:
        return float(trace.last_reply.strip() == self.data.answer)

    @vf.reward(weight=0.25)
    async def asked(self, trace) -> float:
        return float(any(message.role == "tool" for message in trace.messages))

    @vf.metric
    async def turns(self, trace) -> float:
        return float(trace.num_turns)

class ShopConfig(vf.TasksetConfig):
    highest: int = 12

class ShopTasks(vf.Taskset[ShopTask, ShopConfig]):
    def load(self):
        for number in range(2, 2 + self.config.highest):
            for thing, cost in PRICES.items():
                answer = str(number * cost)
                calls = [f"shop_price[{thing}]", f'shop_multiply[{{"a": {number}, "b": {cost}}}]', f"finish[{answer}]"]
                prompt = f"What do {number} {thing}s cost?"
                yield ShopTask(ShopData(prompt=prompt, answer=answer, calls=calls), self.config.task)

    @classmethod
    def toolsets(cls, config):
        return [Shop(vf.SharedToolsetConfig())]

__all__ = ["ShopTasks"]

if __name__ == "__main__":
    Shop.run()
'''

BASKET: Final = '''
import os, time
import verifiers.v1 as vf

class BasketState(vf.State):
    things: list[str] = []

class Basket(vf.Toolset[vf.ToolsetConfig, BasketState]):
    TOOL_PREFIX = None  # tools are called by their bare names

    async def setup_task(self, task):
        self.wanted = task.wanted

    @vf.tool
    async def buy(self, thing: str) -> str:
        """Put a thing into the basket."""
        if thing == "die":
            os._exit(3)
        self.state.things.append(thing)
        return f"{len(self.state.things)} in the basket, {self.wanted} is wanted"

class BasketData(vf.TaskData):
    wanted: str

class BasketTask(vf.Task[BasketData, BasketState, vf.TaskConfig]):
    @classmethod
    def toolsets(cls, config):
        return [Basket(vf.ToolsetConfig())]

    @vf.stop
    async def is_full(self, trace: vf.Trace) -> bool:
        return len(trace.state.things) >= 2

    @vf.reward
    async def bought(self, trace) -> float:
        return float(trace.state.things == [self.data.wanted])

class Baskets(vf.Taskset[BasketTask, vf.TasksetConfig]):
    def load(self):
        for thing in ("apple", "pear", "plum", "fig"):
            data = BasketData(prompt=f"Buy one {thing}, and say when you have it.", wanted=thing)
            yield BasketTask(data, self.config.task)

__all__ = ["Baskets"]

if __name__ == "__main__":
    Basket.run()
'''

SHARED: Final = '''
import os, time
import verifiers.v1 as vf

class Calc(vf.Toolset[vf.SharedToolsetConfig]):
    @vf.tool
    async def add(self, a: int, b: int) -> int:
        """a plus b."""
        if a == 666:
            os._exit(1)
        if a == 777:
            time.sleep(1000)
        return a + b

class SumData(vf.TaskData):
    answer: str

class SumTask(vf.Task[SumData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def right(self, trace) -> float:
        return float(trace.last_reply.strip() == self.data.answer)

class Sums(vf.Taskset[SumTask, vf.TasksetConfig]):
    def load(self):
        for n in range(12):
            yield SumTask(SumData(prompt=f"Add {n} and {n + 3}.", answer=str(2 * n + 3)), self.config.task)

    @classmethod
    def toolsets(cls, config):
        return [Calc(vf.SharedToolsetConfig())]

__all__ = ["Sums"]

if __name__ == "__main__":
    Calc.run()
'''

GUESS: Final = '''
import os, time
import verifiers.v1 as vf

class GuessData(vf.TaskData):
    number: int
    path: list[str]

class GuessTask(vf.Task[GuessData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def found(self, trace) -> float:
        return float(trace.last_reply.strip() == str(self.data.number))

    @vf.metric
    async def guesses(self, trace) -> float:
        return float(trace.num_turns)

class GuessEnvConfig(vf.EnvConfig):
    guesser: vf.AgentConfig = vf.AgentConfig()
    patience: int = 6

class GuessEnv(vf.Env[GuessEnvConfig]):
    async def run(self, task, agents):
        number = task.data.number
        async with agents.guesser.interaction(task) as talk:
            segment = await talk.turn(f"I thought of a number from 0 to {40 if number < 40 else 99}. Which?")
            for _ in range(self.config.patience):
                if segment.terminated:
                    break
                said = segment.last_reply
                if said == "die":
                    os._exit(3)
                if said == "hang":
                    time.sleep(60)
                if said == "wait":
                    import asyncio
                    await asyncio.sleep(60)
                if said == "raise":
                    raise RuntimeError("the user has left")
                if not said.isdigit() or len(said) > 9:
                    hint = "That is no number."
                elif int(said) == number:
                    break
                else:
                    hint = "Higher." if int(said) < number else "Lower."
                segment = await talk.turn(hint)

class Guesses(vf.Taskset[GuessTask, vf.TasksetConfig]):
    def load(self):
        for number in range(60):
            path = [str(number - 1), str(number + 1), str(number)]
            yield GuessTask(GuessData(number=number, path=path, system_prompt="Guess the number."), self.config.task)

__all__ = ["Guesses", "GuessEnv"]
'''

TWO: Final = GUESS.replace("    patience: int", "    helper: vf.AgentConfig = vf.AgentConfig()\n    patience: int")
PROGRAM: Final = GUESS.replace("= vf.AgentConfig()", '= vf.AgentConfig(harness={"id": "codex"})')
DOCKER: Final = BASKET.replace("Basket(vf.ToolsetConfig())", 'Basket(vf.ToolsetConfig(runtime={"type": "docker"}))')
IMAGE: Final = BASKET.replace("wanted=thing)", 'wanted=thing, image="python:3.12")')


def write_tasksets(folder: Path) -> None:
    """Write the modules into `folder`."""
    texts = {"tiny_shop": SHOP, "tiny_basket": BASKET, "tiny_guess": GUESS, "two_players": TWO, "needs_codex": PROGRAM}
    texts |= {"shared_sums": SHARED, "needs_docker": DOCKER, "needs_image": IMAGE}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
