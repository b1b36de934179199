"""A policy whose answers are written down: for tests, demonstrations and experts.

    ScriptedPolicy(["first", "second"])                    # one after another, whoever asks
    ScriptedPolicy({"2 + 2?": "4", "3 + 3?": ["5", "6"]})  # by prompt: a text for ever, a list once through
    ScriptedPolicy(lambda messages, sample: messages[-1]["content"].upper())

A mapping's key is the chat's last user message, or its first (the task's prompt in a longer chat). A callable gets
the chat, the prefill (when there is one) as a last assistant message, and which of the request's n answers is wanted.
Answers that begin with the request's prefill are whole answers, and the prefill is taken off; others are the rest
already.

`byte_tokens=True` makes up tokens (UTF-8 bytes, 256 as the end of turn) and log-probabilities, so that whatever handles
tokens can be tested without a model; `max_tokens` then cuts. Left out: any dependence on temperature or seed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kintsugi.agents.policies.policy import ChatMessage, Completion, Request
from kintsugi.agents.policies.stop_strings import cut_at_stop
from kintsugi.errors import ConfigError, DataError, PolicyError

Answers = Sequence[str] | Mapping[str, str | Sequence[str]] | Callable[[tuple[ChatMessage, ...], int], str]

END_OF_TURN = 256
"""The made-up id that ends an answer under `byte_tokens`."""


class ScriptedPolicy:
    """Gives the answers it was given.

    delay_s: seconds each request takes. failures: errors by number of the request (0 is the first): that request raises
    its error and takes no answer. `requests` holds every request in the order of arrival. It may be used from one event
    loop after another.
    """

    def __init__(
        self,
        answers: Answers,
        *,
        delay_s: float = 0.0,
        failures: Mapping[int, Exception] | None = None,
        byte_tokens: bool = False,
        name: str = "scripted",
        version: str = "scripted",
    ) -> None:
        if isinstance(answers, str):
            raise ConfigError("expected a list of answers, a mapping or a function, found one text: put it in a list")
        self.name, self.version = name, version
        self.requests: list[Request] = []
        self._delay_s, self._failures, self._byte_tokens = delay_s, dict(failures or {}), byte_tokens
        self._function: Callable[[tuple[ChatMessage, ...], int], str] | None = None
        self._by_prompt: dict[str, str | Iterator[str]] | None = None
        self._in_order: Iterator[str] = iter(())
        if isinstance(answers, Mapping):
            self._by_prompt = {key: one if isinstance(one, str) else iter(one) for key, one in answers.items()}
        elif callable(answers):
            self._function = answers
        else:
            self._in_order = iter(answers)

    async def complete(self, request: Request) -> list[Completion]:
        """The next answers. Raises PolicyError, naming the prompt, when the script has none left."""
        number = len(self.requests)
        self.requests.append(request)
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        if number in self._failures:
            raise self._failures[number]
        return [self._completion(self._answer(request, sample), request, sample) for sample in range(request.n)]

    async def score(self, request: Request, completion: str) -> tuple[float, ...]:
        """The made-up log-probabilities; PolicyError without `byte_tokens`."""
        if not self._byte_tokens:
            raise PolicyError("a scripted policy has no log-probabilities: score with a model.")
        return tuple(_logprob(token) for token in (*completion.encode(), END_OF_TURN))

    async def close(self) -> None:
        return None

    def _answer(self, request: Request, sample: int) -> str:
        if self._function is not None:
            prefill: tuple[ChatMessage, ...] = ()
            if request.prefill:
                prefill = (ChatMessage(role="assistant", content=request.prefill),)
            return self._function((*request.messages, *prefill), sample)
        said = [message["content"] for message in request.messages if message["role"] == "user"]
        prompt = said[-1] if said else ""
        if self._by_prompt is None:
            answer = next(self._in_order, None)
        else:
            source = self._by_prompt.get(prompt)
            if source is None and said:
                source = self._by_prompt.get(said[0])
            answer = source if source is None or isinstance(source, str) else next(source, None)
        if answer is None:
            raise PolicyError(f'the script has no answer (left) for "{_short(prompt)}": add one.')
        return answer

    def _completion(self, answer: str, request: Request, sample: int) -> Completion:
        text, stop = cut_at_stop(answer.removeprefix(request.prefill), request.sampling.stop)
        if not self._byte_tokens:
            return Completion(text=text, stop=stop)
        prompt = "".join(f"{message['role']}:{message['content']}\n" for message in request.messages) + request.prefill
        ids = tuple(text.encode()) if stop else (*text.encode(), END_OF_TURN)
        finish = "stop"
        if len(ids) > request.sampling.max_tokens:
            ids, finish, stop = ids[: request.sampling.max_tokens], "length", ""
            text = bytes(ids).decode(errors="ignore")
        return Completion(
            text=text,
            finish=finish,
            stop=stop,
            prompt_ids=tuple(prompt.encode()),
            token_ids=ids,
            logprobs=tuple(_logprob(token) for token in ids),
            processed_tokens=len(prompt.encode()) if sample == 0 else 0,
        )


def open_policy(
    path: str | Path, *, delay_s: float = 0.0, byte_tokens: bool = False, version: str = "scripted"
) -> ScriptedPolicy:
    """Read a script: JSON Lines of {"prompt": text, "answers": text or list of texts}.

    Raises DataError for a missing file or a line of another shape. Prompts that stand twice join their lists.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"expected a script of answers at {path}, found none that can be read ({error})") from None
    answers: dict[str, str | list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt, found = _entry(json.loads(line))
        except ValueError:
            raise DataError(
                f'{path}, line {number}: expected {{"prompt": text, "answers": [texts]}}, found {_short(line)}'
            ) from None
        earlier = answers.get(prompt, [])
        both_lists = isinstance(earlier, list) and isinstance(found, list)
        answers[prompt] = [*earlier, *found] if both_lists else found
    return ScriptedPolicy(
        answers, delay_s=delay_s, byte_tokens=byte_tokens, name=f"scripted:{path.name}", version=version
    )


def _entry(value: object) -> tuple[str, str | list[str]]:
    if isinstance(value, dict) and set(value) == {"prompt", "answers"}:
        prompt, answers = value["prompt"], value["answers"]
        good = isinstance(answers, str) or (
            isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)
        )
        if isinstance(prompt, str) and good:
            return prompt, answers
    raise ValueError(value)


def _logprob(token: int) -> float:
    return -(1 + token % 7) / 10


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "…"
