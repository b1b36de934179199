"""The transformers policy on a tiny model: conformance, multi-turn episodes, batches that repeat, loading, errors."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kintsugi.agents.policies.conformance import CHECKS  # noqa: E402
from kintsugi.agents.policies.policy import Completion, Request, Sampling, as_messages, live  # noqa: E402
from kintsugi.agents.policies.transformers_policy import TransformersPolicy, open_policy  # noqa: E402
from kintsugi.errors import ConfigError, PolicyError  # noqa: E402

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role']=='assistant' %}{% generation %}{{ m['content'] }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}<act>{% endif %}{% endfor %}"
)


def make_model(folder: Path, seed: int = 0, template: str | None = TEMPLATE) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<act>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        ["Say something else. Say the number"] * 3,
        trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        initializer_range=0.4,
        max_position_embeddings=300,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conforms(check: Any, folder: Path) -> None:
    check(lambda: open_policy(str(folder), threads=1))


async def _episode(policy: TransformersPolicy, name: str, turns: int) -> list[Completion]:
    """A few turns, each with the ids so far and some thinking time."""
    answers = []
    messages = as_messages(("user", f"Say the number {name}."))
    prior: tuple[int, ...] = ()
    covered = 0
    async with live(policy):
        for turn in range(turns):
            sampling = Sampling(max_tokens=6 + 5 * turn, seed=100 * int(name) + turn)
            request = Request(
                messages=messages, sampling=sampling, prior_ids=prior, prior_messages=covered, key=f"{name}/{turn}"
            )
            answer = (await policy.complete(request))[0]
            answers.append(answer)
            messages = (*messages, *as_messages(("assistant", answer.text)))
            prior, covered = answer.prompt_ids + answer.token_ids, len(messages)
            messages = (*messages, *as_messages(("user", "Say something else.")))
            await asyncio.sleep(0.003 * (int(name) * 7 % 3))
    return answers


def test_concurrent_episodes_repeat_exactly_and_reuse_their_turns(folder: Path) -> None:
    """Same requests and seeds, run twice: identical ids and log-probs; later turns run only what is new."""

    async def once() -> list[list[Completion]]:
        policy = open_policy(str(folder), threads=1)
        try:
            return await asyncio.gather(*(_episode(policy, str(i), 1 + i % 4) for i in range(10)))
        finally:
            await policy.close()

    first, again = asyncio.run(once()), asyncio.run(once())
    assert first == again
    for episode in first:
        for before, after in itertools.pairwise(episode):
            fed = before.prompt_ids + before.token_ids
            assert after.prompt_ids[: len(fed)] == fed
            assert after.processed_tokens == len(after.prompt_ids) - len(fed) + 1


def test_logprobs_are_those_of_score_and_of_a_plain_forward(folder: Path) -> None:
    async def body(policy: TransformersPolicy) -> None:
        request = Request(messages=as_messages(("user", "Say")), n=3, sampling=Sampling(max_tokens=30, seed=5))
        answers = await policy.complete(request)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        for answer in answers:
            ids = torch.tensor([answer.prompt_ids + answer.token_ids])
            with torch.no_grad():
                steps = torch.log_softmax(model(input_ids=ids).logits[0, len(answer.prompt_ids) - 1 : -1], -1)
            plain = steps.gather(1, ids[0, len(answer.prompt_ids) :, None])[:, 0]
            assert (plain - torch.tensor(answer.logprobs)).abs().max() < 1e-4
        texts = ("Say something", "the number 7", "")
        together = await asyncio.gather(*(policy.score(request, text) for text in texts))
        for text, values in zip(texts, together, strict=True):
            assert len(values) == len(policy.chat.completion_ids(text))
            assert values == pytest.approx(await policy.score(request, text), abs=1e-4)

    _with(open_policy(str(folder), threads=1), body)


def test_stop_string_prefill_and_context_limit(folder: Path) -> None:
    async def body(policy: TransformersPolicy) -> None:
        asked = as_messages(("user", "Say something."))
        free = (await policy.complete(Request(messages=asked, sampling=Sampling(max_tokens=40, seed=2))))[0]
        stop = free.text[3:5]
        sampling = Sampling(max_tokens=40, seed=2, stop=(stop,))
        cut = (await policy.complete(Request(messages=asked, sampling=sampling)))[0]
        assert cut.finish == "stop" and cut.text == free.text[: free.text.index(stop)]
        assert free.token_ids[: len(cut.token_ids)] == cut.token_ids
        prefilled = (await policy.complete(Request(messages=asked, prefill="Say the", sampling=sampling)))[0]
        assert policy.chat.decode(prefilled.prompt_ids).endswith("<act>Say the")
        long = as_messages(("user", "é" * 140))
        near = (await policy.complete(Request(messages=long, sampling=Sampling(max_tokens=400))))[0]
        assert len(near.prompt_ids) + len(near.token_ids) <= 300
        with pytest.raises(PolicyError, match="more positions"):
            await policy.complete(Request(messages=as_messages(("user", "é" * 160))))

    _with(open_policy(str(folder), threads=1), body)


def test_batches_are_halved_when_memory_runs_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = open_policy(str(folder), threads=1)
    sizes: list[int] = []
    decode = policy._decoder.decode

    def tight(rows: Any, **options: Any) -> None:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        decode(rows, **options)

    monkeypatch.setattr(policy._decoder, "decode", tight)

    async def body(policy: TransformersPolicy) -> None:
        request = Request(messages=as_messages(("user", "Say")), n=8, sampling=Sampling(max_tokens=5))
        assert len({answer.token_ids for answer in await policy.complete(request)}) > 1
        assert sizes == [8, 4, 2, 2, 4, 2, 2]

    _with(policy, body)


def test_reload_changes_answers_version_and_forgets_keys_and_values(folder: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=1)
    request = Request(messages=as_messages(("user", "Say something.")), sampling=Sampling(max_tokens=9, temperature=0))

    async def body(policy: TransformersPolicy) -> None:
        old, first = policy.version, (await policy.complete(request))[0]
        repeated = (await policy.complete(request))[0]
        assert (first.processed_tokens, repeated.processed_tokens) == (len(first.prompt_ids), 1)
        await policy.reload(str(other))
        fresh = (await policy.complete(request))[0]
        assert policy.version != old and fresh.processed_tokens == len(fresh.prompt_ids)
        assert fresh.token_ids != first.token_ids
        with pytest.raises(PolicyError):
            await policy.reload(str(tmp_path / "nowhere"))
        assert (await policy.complete(request))[0].token_ids == fresh.token_ids
        await policy.reload(str(folder), "v7")
        assert policy.version == "v7" and (await policy.complete(request))[0].token_ids == first.token_ids

    _with(open_policy(str(folder), threads=1), body)


def test_version_is_the_content(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    versions = [open_policy(str(path)).version for path in (folder, copy, make_model(tmp_path / "other", seed=2))]
    assert versions[0] == versions[1] != versions[2]
    assert open_policy(str(folder), version="mine").version == "mine"


def test_adapter_folder_is_loaded_on_its_base(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tuned = peft.get_peft_model(
        base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    tuned.save_pretrained(str(tmp_path / "adapter"))
    request = Request(messages=as_messages(("user", "Say something.")))
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7, 8]])
        expected = torch.log_softmax(tuned(input_ids=ids).logits[0], -1)[-2, 8].item()

    async def body(policy: TransformersPolicy) -> None:
        assert policy._decoder.score([((5, 6, 7), (8,))])[0][0] == pytest.approx(expected, abs=1e-4)
        assert await policy.complete(request)

    _with(open_policy(str(tmp_path / "adapter")), body)
    _with(open_policy(str(folder), adapter=str(tmp_path / "adapter")), body)
    config = tmp_path / "adapter" / "adapter_config.json"
    beside = os.path.relpath(folder, config.parent)  # relative to the adapter, wherever one stands
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": beside}))
    decoy = (tmp_path / "cwd" / "x").resolve()
    decoy.mkdir(parents=True)
    (decoy / beside).resolve().mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(decoy)
    _with(open_policy(str(tmp_path / "adapter")), body)
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(PolicyError, match="/nowhere/base"):
        open_policy(str(tmp_path / "adapter"))


def test_what_cannot_be_opened_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path in (str(tmp_path / "missing"), "nobody/no-such-model"):
        with pytest.raises(PolicyError, match=path):
            open_policy(path)
    with pytest.raises(PolicyError, match="no chat template"):
        open_policy(str(make_model(tmp_path / "mute", template=None)))
    with pytest.raises(PolicyError, match="No adapter in"):
        open_policy(str(folder), adapter=str(tmp_path))
    with pytest.raises(ConfigError, match="repeatable"):
        open_policy(str(folder), batching="never")  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(PolicyError, match=r"empty.*neither config.json nor adapter_config.json") as caught:
        open_policy(str(tmp_path / "empty"))
    assert "\n" not in str(caught.value)
    mute = Path(shutil.copytree(folder, tmp_path / "no_tokenizer"))
    for file in mute.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(PolicyError, match=r"no_tokenizer.*found no tokenizer.json"):
        open_policy(str(mute))


def test_cut_off_weights_are_named(folder: Path, tmp_path: Path) -> None:
    """Of a model, of an adapter, and when they are to be taken by a policy that is open."""
    import peft

    cut = Path(shutil.copytree(folder, tmp_path / "cut")) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    told = "model.safetensors.*1,000 bytes, cut off or damaged.*restore the file from a copy"
    with pytest.raises(PolicyError, match=told) as caught:
        open_policy(str(cut.parent))
    assert "\n" not in str(caught.value) and str(cut) in str(caught.value)

    async def reload(policy: TransformersPolicy) -> None:
        with pytest.raises(PolicyError, match=told):
            await policy.reload(str(cut.parent))

    _with(open_policy(str(folder)), reload)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    settings = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(base, settings).save_pretrained(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(PolicyError, match=r"adapter_model.safetensors.*0 bytes"):
        open_policy(str(folder), adapter=str(tmp_path / "adapter"))


def _with(policy: TransformersPolicy, body: Any) -> None:
    async def main() -> None:
        try:
            await asyncio.wait_for(body(policy), 60)
        finally:
            await policy.close()

    asyncio.run(main())
