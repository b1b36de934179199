"""Where Gymnasium environments are really played: worlds by name, each an instance made and reset for it alone.

    python -m kintsugi.sandboxes.environments.gymnasium_worker '{"env": "Taxi-v4", "kwargs": {}, …}'

    {"op": "describe"}                                                   what can be done, and an episode's length
    {"op": "first", "seeds": [0, 1]}                                     first observations
    {"op": "replay", "world": "w1", "seed": 0, "actions": ["south"]}     from the start; answers the last one
    {"op": "act", "world": "w1", "number": 1, "action": "pickup"}        the next action, the second here
    {"op": "leave", "world": "w1"}      {"op": "expert", "seed": 0, "turns": 30}

An `act` in a world that is not here, or not that far, is answered `{"lost": true}`: the asker replays. What an environment
raises is answered `{"broke": why}`. How texts become actions and observations become texts is `gymnasium_text`. Left out:
vector environments, and rendering to pixels.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from kintsugi.errors import ConfigError, nearest
from kintsugi.sandboxes.environments.gymnasium_text import Actions, Malformed, shown
from kintsugi.sandboxes.environments.worker_processes import serve


class Worker:
    """Answers requests; see the module. env: the id, `module:Id-v0` included; kwargs: for `gymnasium.make`."""

    def __init__(self, env: str, kwargs: Mapping[str, Any], actions: list[str], render: bool, expert: str) -> None:
        self.env_id, self.kwargs, self.names, self.render, self.expert = env, dict(kwargs), actions, render, expert
        self.worlds: dict[str, Play] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request. Raises ConfigError for what the user must mend (an unknown id)."""
        match request["op"]:
            case "describe":
                return self._describe()
            case "first":
                return self._first(request["seeds"])
            case "replay":
                return self._replay(request["world"], request["seed"], request["actions"])
            case "act":
                play = self.worlds.get(request["world"])
                if play is None or play.number != request["number"]:
                    return {"lost": True}
                return play.act(request["action"])
            case "leave":
                self._leave(request["world"])
                return {}
            case "expert":
                return self._demonstrate(request["seed"], request["turns"])
        raise ValueError(f"unknown request {request['op']!r}")

    def make(self) -> Any:
        """A new instance. Raises ConfigError with one sentence for whatever `gymnasium.make` objects to."""
        import gymnasium

        extra = {"render_mode": "ansi"} if self.render else {}
        try:
            return gymnasium.make(self.env_id, disable_env_checker=True, **{**self.kwargs, **extra})
        except gymnasium.error.Error as error:
            said = " ".join(str(error).split())[:200]
            raise ConfigError(f'gymnasium.env: cannot make "{self.env_id}" ({said}); {self._near()}') from None
        except Exception as error:  # an environment's constructor is foreign code
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ConfigError(f'gymnasium.env: "{self.env_id}" does not open with {self.kwargs}: {said}') from None

    def _near(self) -> str:
        import gymnasium

        known = sorted(gymnasium.registry)
        said = nearest(self.env_id.rpartition(":")[2], known)
        return (
            said if said.startswith("did you") else "own ones are written module:Id-v0, after the module that registers it"
        )

    def _describe(self) -> dict[str, Any]:
        env = self.make()
        try:
            actions = Actions(env, self.names)
            steps = env.spec.max_episode_steps if env.spec is not None else None
            return {"help": actions.help, "max_episode_steps": steps}
        finally:
            env.close()

    def _first(self, seeds: list[int]) -> dict[str, Any]:
        observations = []
        for seed in seeds:
            play = Play(self, seed)
            observations.append(play.observation)
            play.close()
        return {"observations": observations}

    def _replay(self, world: str, seed: int, actions: list[str]) -> dict[str, Any]:
        self._leave(world)
        try:
            play = self.worlds[world] = Play(self, seed)
        except ConfigError:
            raise
        except Exception as error:
            return broke(error)
        answer: dict[str, Any] = {"observation": play.observation}
        for action in actions:
            answer = play.act(action)
        return answer

    def _leave(self, world: str) -> None:
        play = self.worlds.pop(world, None)
        if play is not None:
            play.close()

    def _demonstrate(self, seed: int, turns: int) -> dict[str, Any]:
        """The actions of the user's expert, or None when it does not end the episode within `turns`."""
        expert = loaded(self.expert)
        play = Play(self, seed)
        actions: list[str] = []
        try:
            while len(actions) < turns:
                actions.append(str(expert(play.env.unwrapped, play.observation)))
                if "ended" in play.act(actions[-1]):
                    return {"actions": actions}
            return {"actions": None}
        finally:
            play.close()


class Play:
    """One world: an instance, reset with its seed. number: actions so far, malformed ones included."""

    def __init__(self, worker: Worker, seed: int) -> None:
        self.env, self.render = worker.make(), worker.render
        self.actions = Actions(self.env, worker.names)
        self.number, self.total = 0, 0.0
        observation, self.info = self.env.reset(seed=seed)
        self.env.action_space.seed(seed)
        self.observation = self._text(observation)

    def act(self, text: str) -> dict[str, Any]:
        self.number += 1
        try:
            action = self.actions.read(text)
        except Malformed as malformed:
            return {"observation": str(malformed), "malformed": True}
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            self.total += float(reward)
            self.observation = self._text(observation)
        except Exception as error:
            return broke(error)
        answer: dict[str, Any] = {"observation": self.observation}
        if terminated or truncated:
            answer["ended"] = "terminated" if terminated else "truncated"
            answer |= {"last": float(reward), "total": self.total, "said": _outcome(info)}
        return answer

    def close(self) -> None:
        try:
            self.env.close()
        except Exception as error:  # gone all the same
            print(f"{type(error).__name__} while closing: {error}", file=sys.stderr)

    def _text(self, observation: Any) -> str:
        drawn = self.env.render() if self.render else None
        return shown(drawn) if isinstance(drawn, str) else shown(observation)


def broke(error: Exception) -> dict[str, Any]:
    """The answer for an environment that raised."""
    return {"broke": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def loaded(path: str) -> Callable[[Any, str], str]:
    """The function that "module:name" names. Raises ConfigError."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f'gymnasium.expert: expected "module:function", found "{path}" ({error})') from None


def _outcome(info: Any) -> bool | None:
    """What an environment says of success, if it does: `info["success"]` or `info["is_success"]`."""
    for name in ("is_success", "success"):
        if isinstance(info, Mapping) and name in info:
            return bool(info[name])
    return None


def main(asked: str) -> None:
    """Answer lines until the input ends."""
    worker = Worker(**json.loads(asked))
    importlib.import_module("gymnasium")
    module, colon, _ = worker.env_id.partition(":")
    if colon:
        with contextlib.suppress(Exception):  # the first request says what is wrong with it
            importlib.import_module(module)
    serve(worker.answer)


if __name__ == "__main__":
    main(sys.argv[1])
