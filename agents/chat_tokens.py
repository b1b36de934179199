"""The one place where chats become token ids and loss masks, and ids become text again.

What was sampled is never tokenised a second time. A chat is cut into pieces: what the template writes between answers,
and the answers themselves; each piece is encoded alone. So the ids that a policy feeds turn by turn (`context`) and the
row that a trainer builds from text (`row`) are the same ids, and the loss mask is known without `{% generation %}`.

    chat = ChatTokens(tokenizer)
    ids = chat.context(Request(messages=as_messages(("user", "2 + 2?"))))
    ids, mask = chat.row(as_messages(("user", "2 + 2?"), ("assistant", "4")))      # mask 1 on "4" and the end of turn

Left out: tools, images, templates that rewrite what they rendered before (they are refused), and tokenizers that put a
space before every text that they encode.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from kintsugi.agents.policies.policy import ChatMessage, Request
from kintsugi.errors import PolicyError

_PROBE = "an answer nobody gave"
_MEND = "Use a template that writes every answer right after the generation prompt and never changes earlier text."

Chat = tuple[tuple[str, str], ...]
"""Messages as hashable (role, content) pairs."""


class ChatTokens:
    """Chat ↔ tokens for one tokenizer. Safe to use from several threads.

    tokenizer: a Hugging Face tokenizer with a chat template.
    end_of_turn: the text that ends an answer, one special token (`<|im_end|>`, `</s>`); end_of_turn_ids: its id.

    Raises PolicyError when there is no template, when it changes answers, when it ends an answer with anything but a special
    token, or when the tokenizer puts a space before every text that it encodes (answers could not follow their context).
    A template that takes thoughts out of earlier answers (Qwen3's) is good for one turn, and refused in the second.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise PolicyError(
                "The tokenizer has no chat template, so chats cannot become tokens: set tokenizer.chat_template "
                "(a Jinja text) and call tokenizer.save_pretrained on the model's folder, or take an instruct model."
            )
        self.tokenizer = tokenizer
        self._lock = threading.Lock()
        self._encode = lru_cache(maxsize=16384)(self._encode_now)
        self._render = lru_cache(maxsize=4096)(self._render_now)
        self.end_of_turn, self.end_of_turn_ids = self._find_end_of_turn()
        joined = self.decode((*self._encode("a"), *self._encode("b")))
        if joined != "ab":
            raise PolicyError(
                f'The tokenizer turns "a" and then "b" into {joined!r}, so an answer cannot be joined to its context token '
                "for token: save it with add_prefix_space=False (Llama 2 kinds: also legacy=False), or take another model."
            )

    def context(self, request: Request) -> tuple[int, ...]:
        """Ids to feed for `request`: prior ids, what the messages add since, the generation prompt, the prefill.

        When the last sampled completion lacks its end of turn (it ran out of tokens or met a stop string), the addition
        begins with it. Raises PolicyError for a template that changes text it has written before.
        """
        chat = _frozen(request.messages)
        if request.prior_ids and not 0 < request.prior_messages <= len(chat):
            raise ValueError(f"prior_messages is {request.prior_messages}, but the request has {len(chat)} messages")
        prior = request.prior_messages if request.prior_ids else 0
        if prior and chat[prior - 1][0] != "assistant":
            raise ValueError("the last message that prior_ids cover must be an assistant message")
        ids = list(request.prior_ids)
        pieces, covered = self._pieces(chat, generation_prompt=True, first=max(0, prior - 1)), not prior
        for text, kind in pieces:
            if covered:
                ids += self._encode(text)
            elif kind == "end":
                size = len(self.end_of_turn_ids)
                if tuple(ids[-size:]) != self.end_of_turn_ids:
                    ids += self.end_of_turn_ids
                covered = True
        if request.prefill:
            ids += self._encode(request.prefill)
        return tuple(ids)

    def row(self, messages: Sequence[ChatMessage], prefill: str = "") -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(ids, mask) of a whole chat for training: mask 1 on answers and their ends of turn, 0 on all else.

        prefill: the first part of the last answer that was given, not produced; it gets mask 0. What follows the last
        answer is dropped. Equal to `context` plus completions of the same texts. ((), ()) without an answer.
        """
        ids: list[int] = []
        mask: list[int] = []
        end = 0
        pieces = self._pieces(_frozen(messages), generation_prompt=False)
        last = max((i for i, (_, kind) in enumerate(pieces) if kind == "answer"), default=-1)
        for i, (text, kind) in enumerate(pieces):
            if i == last and prefill:
                if not text.startswith(prefill):
                    raise ValueError(f"the last answer does not begin with its prefill {prefill[:40]!r}")
                given, text = self._encode(prefill), text[len(prefill) :]
                ids += given
                mask += [0] * len(given)
            new = self._encode(text)
            ids += new
            mask += [int(kind != "template")] * len(new)
            end = len(ids) if kind == "end" else end
        return tuple(ids[:end]), tuple(mask[:end])

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Ids of an answer that was given as text, end of turn included."""
        return self._encode(text) + self.end_of_turn_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids, special tokens written out; a last end-of-turn token is left off."""
        size = len(self.end_of_turn_ids)
        if tuple(ids[-size:]) == self.end_of_turn_ids:
            ids = ids[:-size]
        with self._lock:
            return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _pieces(self, chat: Chat, *, generation_prompt: bool, first: int = 0) -> list[tuple[str, str]]:
        """(text, "template" | "answer" | "end") in order; answers before message `first` stay in a template piece."""
        whole = self._render(chat, generation_prompt)
        pieces: list[tuple[str, str]] = []
        at = 0
        for position, (role, content) in enumerate(chat):
            if role != "assistant" or position < first:
                continue
            before = self._render(chat[:position], True)
            end = self._answer_end(whole, before, content, position)
            pieces += [(whole[at : len(before)], "template"), (content, "answer"), (self.end_of_turn, "end")]
            at = end
        pieces.append((whole[at:], "template"))
        return pieces

    def _answer_end(self, whole: str, before: str, content: str, position: int) -> int:
        """Where the end of turn of the answer at `position` ends in `whole`; templates may trim an answer's spaces."""
        if not whole.startswith(before):
            found = next((i for i, (a, b) in enumerate(zip(whole, before, strict=False)) if a != b), len(whole))
            raise PolicyError(
                f"The chat template cannot be trained on: text before message {position} (assistant) changes once more "
                f"messages follow: first {before[found : found + 40]!r}, then {whole[found : found + 40]!r}. {_MEND}"
            )
        for form in (content, content.strip(), content.rstrip(), content.lstrip()):
            if whole.startswith(form + self.end_of_turn, len(before)):
                return len(before) + len(form) + len(self.end_of_turn)
        raise PolicyError(
            f"The chat template cannot be trained on: it does not keep message {position} (assistant) as answered: "
            f"expected {(content + self.end_of_turn)[:60]!r} after the generation prompt, found "
            f"{whole[len(before) : len(before) + 60]!r}. {_MEND}"
        )

    def _find_end_of_turn(self) -> tuple[str, tuple[int, ...]]:
        text = self._render((("user", "a question"), ("assistant", _PROBE)), False)
        if _PROBE not in text:
            raise PolicyError(
                f"The chat template cannot be trained on: it does not keep an answer as answered: expected {_PROBE!r} in "
                f"what it writes, found {text[-80:]!r}. {_MEND}"
            )
        tail = text.rpartition(_PROBE)[2]
        ids = self._encode(tail)
        special = set(self.tokenizer.all_special_ids) | set(getattr(self.tokenizer, "added_tokens_decoder", {}))
        if not ids or ids[0] not in special:
            raise PolicyError(
                f"The chat template ends an answer with {tail[:40]!r}, so nobody can tell when to stop: let it write "
                "a special token such as {{ eos_token }} right after an assistant message's content."
            )
        end = self.tokenizer.decode([ids[0]], skip_special_tokens=False)
        return end, (ids[0],)

    def _render_now(self, chat: Chat, generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        messages = [{"role": role, "content": content} for role, content in chat]
        if not messages:
            # Some templates index messages[0]; nothing can be said before the first message anyway.
            raise PolicyError("A chat cannot begin with an assistant message: put a user message before it.")
        try:
            with self._lock:
                return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise PolicyError(f"The chat template refuses these messages ({roles}): {error}") from error

    def _encode_now(self, text: str) -> tuple[int, ...]:
        if not text:
            return ()
        text = text.encode(errors="replace").decode()  # half a character, which JSON can say and tokenizers refuse
        with self._lock:
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _frozen(messages: Sequence[ChatMessage]) -> Chat:
    return tuple((message["role"], message["content"]) for message in messages)
