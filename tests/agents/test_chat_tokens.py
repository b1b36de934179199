"""Chat ↔ tokens: incremental contexts and mask rows are the same ids, for four kinds of template."""

from __future__ import annotations

import random
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")

from kintsugi.agents.chat_tokens import ChatTokens  # noqa: E402
from kintsugi.agents.policies.policy import Request, as_messages  # noqa: E402
from kintsugi.errors import PolicyError  # noqa: E402

SPECIAL = ["<s>", "</s>", "<act>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
SMALL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role']=='assistant' %}{% generation %}{{ m['content'] }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}<act>{% endif %}{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REORDERING = (
    "{{ messages | length }}{% for m in messages %}{{ m['role'] + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
STABLE = {"chatml": CHATML, "llama": LLAMA, "small": SMALL}
WORDS = ["go", " to", "\n", " ", "a = 3", "print(a)", "é", "<", "act", "  x", "12", "你好", "\n\n", "ab"]


def tokenizer(template: str | None) -> Any:
    """A byte-level BPE with a few merges across spaces and letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    core.train_from_iterator([" ".join(WORDS) * 3, "user assistant system go to desk 1\n\n\n print(a)\n"] * 4, trainer)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    made.chat_template = template
    return made


def text(rng: random.Random, stripped: bool = False) -> str:
    said = "".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 9)))
    return said.strip() if stripped else said


@pytest.mark.parametrize("name", STABLE)
def test_ids_built_turn_by_turn_equal_the_mask_row(name: str) -> None:
    """Sampled turn by turn with a prefill and a missing end of turn, or from text at once: the same ids and mask."""
    chat = ChatTokens(tokenizer(STABLE[name]))
    rng = random.Random(name)
    for _ in range(60):
        messages = as_messages(*[("system", text(rng))] * rng.randrange(2), ("user", text(rng)))
        prior: tuple[int, ...] = ()
        covered, mask = 0, []
        prefill = ""
        for turn in range(turns := rng.randrange(1, 5)):
            prefill = text(rng) if turn == turns - 1 and rng.random() < 0.5 else ""
            request = Request(messages=messages, prefill=prefill, prior_ids=prior, prior_messages=covered)
            context = chat.context(request)
            assert context[: len(prior)] == prior, "what was sampled must not change"
            said = text(rng)
            sampled = chat.completion_ids(said)
            last = turn == turns - 1
            if not last and rng.random() < 0.5:
                sampled = sampled[:-1]  # stopped by length or a stop string
            mask += [0] * (len(context) - len(mask)) + [1] * len(sampled)
            prior = context + sampled
            messages = (*messages, *as_messages(("assistant", prefill + said)))
            covered = len(messages)
            if not last:
                messages = (*messages, *as_messages(("user", text(rng))))
        ids, row_mask = chat.row(messages, prefill=prefill)
        assert ids == prior
        lost = [i for i, (a, b) in enumerate(zip(row_mask, mask, strict=True)) if a != b]
        assert all(ids[i] == chat.end_of_turn_ids[0] for i in lost), "only unsampled ends of turn may differ"


@pytest.mark.parametrize("name", STABLE)
def test_rows_say_what_the_template_says_and_mask_observations(name: str) -> None:
    """Decoded, a row is the template's text; decoded where the mask is 1, it is the answers and their ends."""
    made = tokenizer(STABLE[name])
    chat = ChatTokens(made)
    rng = random.Random(7)
    for _ in range(30):
        answers = [text(rng, stripped=True) for _ in range(3)]
        pairs = [pair for answer in answers for pair in (("user", text(rng)), ("assistant", answer))]
        ids, mask = chat.row(as_messages(*pairs))
        whole = made.apply_chat_template([dict(m) for m in as_messages(*pairs)], tokenize=False)
        assert made.decode(ids) == whole.removesuffix("\n")
        learned = made.decode([token for token, learn in zip(ids, mask, strict=True) if learn])
        assert learned == "".join(answer + chat.end_of_turn for answer in answers)


def test_first_context_is_what_the_template_gives() -> None:
    for template in STABLE.values():
        made = tokenizer(template)
        messages = as_messages(("system", "be brief"), ("user", "a = 3\nprint(a)"))
        plain = made.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=True)
        ids = ChatTokens(made).context(Request(messages=messages))
        assert list(ids) == made(plain, add_special_tokens=False)["input_ids"]


def test_end_of_turn_comes_from_the_template() -> None:
    ends = {name: ChatTokens(tokenizer(template)).end_of_turn for name, template in STABLE.items()}
    assert ends == {"chatml": "<|im_end|>", "llama": "<|eot|>", "small": "</s>"}
    chat = ChatTokens(tokenizer(CHATML))
    assert chat.decode(chat.completion_ids("go <act> 你")) == "go <act> 你"
    assert chat.row(as_messages(("user", "nothing answered"))) == ((), ())


def test_sampled_ids_are_kept_even_when_text_would_tokenise_otherwise() -> None:
    chat = ChatTokens(tokenizer(SMALL))
    first = chat.context(Request(messages=as_messages(("user", "go"))))
    spelled = tuple(i for letter in "print" for i in chat.completion_ids(letter)[:-1])
    assert spelled != chat.completion_ids("print")[:-1]
    prior = first + spelled
    messages = as_messages(("user", "go"), ("assistant", "print"), ("user", "to"))
    ids = chat.context(Request(messages=messages, prior_ids=prior, prior_messages=2))
    assert ids[: len(prior) + 1] == prior + chat.end_of_turn_ids
    assert chat.decode(ids[len(prior) + 1 :]) == "to<act>"


SHOUTING = CHATML.replace("m['content']", "(m['content'] | upper if m['role'] == 'assistant' else m['content'])")
THOUGHTLESS = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
LAST_ONLY = (
    "{% set s = namespace(at=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set s.at = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages[s.at:] %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNSTABLE = {
    "forgetful": (FORGETFUL, r"does not keep message 1 \(assistant\) as answered"),
    "reordering": (REORDERING, r"text before message 1 \(assistant\) changes"),
    "shouting": (SHOUTING, r"does not keep an answer as answered: expected 'an answer nobody gave'"),
    "thoughtless": (THOUGHTLESS, r"does not keep message 1 \(assistant\) as answered"),
    "last only": (LAST_ONLY, r"text before message 1 \(assistant\) changes"),
}


@pytest.mark.parametrize("name", UNSTABLE)
def test_templates_that_change_what_was_said_are_refused(name: str) -> None:
    """Those that change any answer when they are loaded, those that change earlier ones in the second turn."""
    template, told = UNSTABLE[name]
    once = as_messages(("user", "a question"))
    again = (*once, *as_messages(("assistant", "<think>\na thought\n</think>\n\nan answer"), ("user", "another")))
    with pytest.raises(PolicyError, match=told) as caught:
        chat = ChatTokens(tokenizer(template))
        assert name != "shouting" and chat.context(Request(messages=once)), "one turn is all right"
        chat.context(Request(messages=again, prior_ids=(1,), prior_messages=2))
    assert str(caught.value).endswith("never changes earlier text.") and "\n" not in str(caught.value)


def test_half_characters_become_tokens_too() -> None:
    chat = ChatTokens(tokenizer(CHATML))
    assert chat.completion_ids("a \ud800") == chat.completion_ids("a ?")


def test_templates_with_rules_of_their_own_are_taken() -> None:
    """Roles that must alternate, no system message: such a template changes nothing that was said."""
    alternating = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + LLAMA
    )
    chat = ChatTokens(tokenizer(alternating))
    assert chat.end_of_turn == "<|eot|>"
    with pytest.raises(PolicyError, match="roles must alternate"):
        chat.context(Request(messages=as_messages(("user", "a"), ("user", "b"))))


@pytest.mark.parametrize("first_only", [False, True])
def test_a_tokenizer_that_puts_a_space_before_every_text_is_refused(first_only: bool) -> None:
    """As SentencePiece tokenizers of the first Llama kinds do; byte-level ones can be told to."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    made = tokenizer(SMALL)
    if first_only:  # Llama's way: a mark before the text, which decoding takes off again
        made.backend_tokenizer.normalizer = normalizers.Prepend(" ")
        made.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    else:
        made.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(PolicyError, match="cannot be joined to its context token for token"):
        ChatTokens(made)


def test_missing_and_unusable_templates_are_refused() -> None:
    with pytest.raises(PolicyError, match="no chat template"):
        ChatTokens(tokenizer(None))
    endless = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    with pytest.raises(PolicyError, match="nobody can tell when to stop"):
        ChatTokens(tokenizer(endless))
    broken = "{{ messages[0]['content'] + 1 }}" + SMALL
    with pytest.raises(PolicyError, match="The chat template refuses these messages"):
        ChatTokens(tokenizer(broken))
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + SMALL
    with pytest.raises(PolicyError, match="no system role"):
        ChatTokens(tokenizer(strict)).context(Request(messages=as_messages(("system", "x"), ("user", "y"))))
