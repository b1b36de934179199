"""Where Gymnasium environments are really played: worlds by name, each an instance made and reset for it alone.

    python -m kintsugi.sandboxes.environments.gymnasium_worker '{"env": "Taxi-v4", "kwargs": {}, …}'

    {"op": "describe"}                                                   what can be done, and an episode's length
    {"op": "first", "seeds": [0, 1]}                                     first observations
    {"op": "replay", "world": "w1", "seed": 0, "actions": ["south"]}     from the start; answers the last one
    {"op": "act", "world": "w1", "number": 1, "action": "pickup"}        the next action, the second here
    {"op": "leave", "world": "w1"}      {"op": "expert", "seed": 0, "turns": 30}

An `act` in a world that is not here, or not that far, is answered `{"lost": true}`: the asker replays. What an environment
raises while it plays is answered `{"broke": why}`; where there is no attempt (first observations, the expert) it is refused,
with a sentence. How texts become actions and observations become texts is `gymnasium_text`. Left out:
vector environments, and rendering to pixels.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from kintsugi.errors import ConfigError, DataError, KintsugiError, nearest
from kintsugi.sandboxes.environments.gymnasium_text import Actions, Malformed, shown, storable
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
            said = told(error)
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
            play = self._begun(seed)
            observations.append(play.observation)
            play.close()
        return {"observations": observations}

    def _begun(self, seed: int) -> Play:
        """A new world. Raises DataError for one whose reset raises."""
        try:
            return Play(self, seed)
        except KintsugiError:
            raise
        except Exception as error:
            raise DataError(f'gymnasium: "{self.env_id}" raised at reset(seed={seed}): {told(error)}; mend it') from None

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
        """The actions of the user's expert and how the last one ended, or None for the actions when the episode did not end
        within `turns`, or broke. Raises DataError for an expert that raises."""
        expert = loaded(self.expert)
        play = self._begun(seed)
        actions: list[str] = []
        try:
            while len(actions) < turns:
                actions.append(self._asked(expert, play))
                answer = play.act(actions[-1])
                if "ended" in answer:
                    return {"actions": actions, **answer}
                if "broke" in answer:
                    break
            return {"actions": None}
        finally:
            play.close()

    def _asked(self, expert: Callable[[Any, str], str], play: Play) -> str:
        try:
            return storable(str(expert(play.env.unwrapped, play.observation)))
        except Exception as error:
            raise DataError(f'gymnasium.expert: "{self.expert}" raised {told(error)}; mend it') from None


class Play:
    """One world: an instance, reset with its seed. number: actions so far, malformed ones included."""

    def __init__(self, worker: Worker, seed: int) -> None:
        self.env, self.render = worker.make(), worker.render
        self.number, self.total = 0, 0.0
        try:
            self.actions = Actions(self.env, worker.names)
            observation, self.info = self.env.reset(seed=seed)
            self.env.action_space.seed(seed)
            self.observation = self._text(observation)
        except BaseException:
            self.close()
            raise

    def act(self, text: str) -> dict[str, Any]:
        self.number += 1
        try:
            action = self.actions.read(text)
        except Malformed as malformed:
            return {"observation": str(malformed), "malformed": True}
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            last = float(reward)
            self.total += last
            if not math.isfinite(self.total):
                raise ValueError(f"a reward of {last}, a return of {self.total}")
            self.observation = self._text(observation)
            answer: dict[str, Any] = {"observation": self.observation}
            if terminated or truncated:
                answer["ended"] = "terminated" if terminated else "truncated"
                answer |= {"last": last, "total": self.total, "said": _outcome(info)}
            return answer
        except Exception as error:
            return broke(error)

    def close(self) -> None:
        try:
            self.env.close()
        except Exception as error:  # gone all the same
            print(f"{told(error)}, while closing", file=sys.stderr)

    def _text(self, observation: Any) -> str:
        drawn = self.env.render() if self.render else None
        return shown(drawn) if isinstance(drawn, str) else shown(observation)


def broke(error: Exception) -> dict[str, Any]:
    """The answer for an environment that raised."""
    return {"broke": told(error)}


def told(error: Exception) -> str:
    """What was raised, on one line that can be stored."""
    try:
        said = f"{type(error).__name__}: {error}"
    except Exception:  # foreign code, to its last word
        said = type(error).__name__
    return storable(" ".join(said.split()))[:300]


def loaded(path: str) -> Callable[[Any, str], str]:
    """The function that "module:name" names. Raises ConfigError."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f'gymnasium.expert: expected "module:function", found "{path}" ({error})') from None


def _outcome(info: Any) -> bool | None:
    """What an environment says of success, if it does: `info["success"]` or `info["is_success"]`. Raises ValueError for
    what is neither true nor false."""
    for name in ("is_success", "success"):
        if isinstance(info, Mapping) and name in info:
            try:
                return bool(info[name])
            except Exception:  # an array of several, for one
                raise ValueError(f"expected true or false as info[{name!r}], found {info[name]!r}") from None
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
