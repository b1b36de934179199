"""The same commands on somebody's own language model: a Llama with tokenizer and chat template as `save_pretrained`
leaves it, GSM8K's files, a LoRA adapter, one round.

The model is tiny and random. It is taught the gold programs of some questions first, by plain torch as a user would, so
that there are right attempts to learn from.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kintsugi.cli.main import main
from kintsugi.ledger import Ledger
from kintsugi.training.casting import Troupe
from kintsugi.training.evaluation import seed_of
from kintsugi.training.recipe import Recipe, load_recipe
from kintsugi.training.round_tasks import RoundTasks

ROOT = Path(__file__).parents[2]
OFFICIAL = ROOT.parent / "shared" / "data" / "gsm8k"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_records(folder: Path) -> None:
    """A few records in the official schema (of our own writing), where GSM8K's files are not at hand."""
    names, things = ("Mara", "Juno", "Ole", "Tariq", "Ines", "Bo", "Yuki", "Petra"), ("pens", "eggs", "nails", "tiles")
    for split, shift in (("train", 0), ("test", 3)):
        lines = []
        for index, name in enumerate(names):
            a, b, thing = 3 + index + shift, 2 + (index * 5 + shift) % 7, things[(index + shift) % 4]
            question = f"{name} packs {a} boxes with {b} {thing} each and then drops one of them. How many are left?"
            answer = f"{a}*{b}=<<{a}*{b}={a * b}>>{a * b} in all.\n<<{a * b}-1={a * b - 1}>>{a * b - 1} are left."
            lines.append(json.dumps({"question": question, "answer": f"{answer}\n#### {a * b - 1}"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def save_tiny_llama(texts: list[str], folder: Path) -> Any:
    """A random Llama and a byte-level BPE tokenizer with the ChatML template, saved; returns both."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=800, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.06,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def teach(model: Any, tokenizer: Any, chats: list[list[dict[str, str]]], folder: Path) -> None:
    """Overfit the model on the last messages of these chats and save it again."""
    import torch

    rows = []
    for chat in chats:
        given = tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
        answer = chat[-1]["content"] + "<|im_end|>"
        context, completion = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (given, answer))
        rows.append((context + completion, [-100] * len(context) + completion))
    longest = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(input_ids=ids, attention_mask=(ids != pad).long(), labels=labels).loss
        if loss.item() < 0.04:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    else:
        raise AssertionError("the tiny model did not learn its answers by heart")
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What somebody gives `kintsugi train gsm8k`: a model folder that solves some of the questions, and the files."""
    folder = tmp_path_factory.mktemp("language-model")
    data = OFFICIAL
    if not (OFFICIAL / "train.jsonl").exists():
        data = folder / "data"
        data.mkdir()
        write_records(data)
    model = folder / "model"
    given = [
        f"model.path={model}",
        f'environment.options={{data = "{data}"}}',
        *("explore.tasks=8", "explore.k=4", "explore.max_tokens=64", "evaluate.tasks=4", "threads=1"),
        *("learn.lora.r=4", "learn.lora.alpha=8", "learn.lr=1e-3", "gate.rule=always"),
    ]
    recipe = load_recipe("gsm8k", given)
    chats = asyncio.run(gold_chats(recipe, 3))
    llama, tokenizer = save_tiny_llama([message["content"] for chat in chats for message in chat], model)
    teach(llama, tokenizer, chats, model)
    return given


async def gold_chats(recipe: Recipe, num: int) -> list[list[dict[str, str]]]:
    """The gold answers of `num` tasks of round 1, asked with the prompt's examples (as in round 1) and without."""
    troupe = Troupe(recipe)
    chats = []
    for task in RoundTasks(recipe, troupe.environment).of_round(1)[:num]:
        (gold,) = await troupe.environment.gold(task) or [""]
        for few_shot in (False, True):
            asked = troupe.prompt("actor", few_shot=few_shot).messages(task=task.prompt, attempt="", feedback="", memory="")
            chats.append([*map(dict, asked), {"role": "assistant", "content": gold}])
    await troupe.close()
    return chats


def kintsugi(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The real command, in a process of its own, with no network."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "kintsugi", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


@pytest.fixture(scope="module")
def run(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `kintsugi train gsm8k model.path=…`."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    told = kintsugi("train", "gsm8k", *overrides, "--out", out, "--quiet", "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["champion"] == "round-1" and [one["round"] for one in found["evaluations"]] == [0, 1]
    return out


def test_one_round_is_explored_and_learned(run: Path) -> None:
    """Some attempts are right and some wrong, wrong ones are rewritten, and what was right is trained on."""
    with Ledger.open(run, create=False, read_only=True) as ledger:
        attempts = [one for episode in ledger.episodes(purpose="explore") for one in episode.trajectories]
        (key,) = ledger.datasets(target="main")
        rows = ledger.dataset(key.run_id, key.round, key.target).rows
        (start, trained) = ledger.checkpoints()
        measured = {one.version: logprobs(ledger, one.version) for one in (start, trained)}
        assert ledger.integrity() == []
    sampled = [one for one in attempts if one.stage == "explore"]
    assert len(sampled) == 8 * 4 and 0 < sum(one.success for one in sampled) < len(sampled)
    assert any(one.stage == "refine" for one in attempts)
    assert all(action.tokens and action.tokens.logprobs for one in attempts for action in one.actions)
    right = {one.id for one in attempts if one.success}
    assert rows and {row.trajectory_id for row in rows} <= right
    assert "explore" in {row.kind for row in rows} and all(any(row.mask) for row in rows)
    assert (start.version, trained.version, trained.adapter, trained.parent) == ("start", "round-1", True, "start")
    assert len(measured["start"]) == len(measured["round-1"]) == 4 and measured["start"] != measured["round-1"]
    record = json.loads((run / "policies" / "round-1" / "learn.json").read_text())
    assert record["steps"] == 3 and sum(record["dropped"].values()) == 0 and record["losses"][-1] < record["losses"][0]


def logprobs(ledger: Ledger, version: str) -> list[tuple[float, ...]]:
    """What a version gave its held-out answers, in the order of the tasks."""
    found = ledger.trajectories(policy_version=version, purpose="evaluate")
    return [one.actions[0].tokens.logprobs for one in sorted(found, key=lambda one: one.task_id) if one.actions[0].tokens]


def test_the_adapter_was_trained_and_loads_as_any_other(run: Path, overrides: list[str]) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, base = run / "policies" / "round-1", overrides[0].removeprefix("model.path=")
    weights = load_file(folder / "adapter_model.safetensors")
    ups = [value for name, value in weights.items() if "lora_B" in name]
    assert ups and all(value.shape[1] == 4 and value.abs().max() > 0 for value in ups), "LoRA's B begins at 0"
    assert not list(folder.glob("model*.safetensors")), "the adapter alone is kept"
    asked = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "How many?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base)(**asked).logits
        adapted = AutoPeftModelForCausalLM.from_pretrained(folder)(**asked).logits
    assert (plain - adapted).abs().max() > 1e-3


def test_resume_and_eval(
    run: Path, overrides: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run is only shown again; the adapter is measured by the run's name and by its folder's."""

    def said(*arguments: object) -> Any:
        monkeypatch.setattr(sys, "argv", ["kintsugi", *map(str, arguments), "--quiet", "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
        return json.loads(capsys.readouterr().out)

    with Ledger.open(run, create=False, read_only=True) as ledger:
        before = ledger.digest()
    again = said("train", "--resume", run)
    assert again["champion"] == "round-1" and Path(again["report"]).is_file()
    with Ledger.open(run, create=False, read_only=True) as ledger:
        assert ledger.digest() == before
    rate = next(one["success_rate"] for one in again["evaluations"] if one["round"] == 1)
    assert said("eval", run) == said("eval", run / "policies" / "round-1", "--recipe", "gsm8k", *overrides)
    assert said("eval", run)["success_rate"] == rate
    # On the very questions that it was trained on, the adapter is right now and then: what is loaded is what was taught.
    same = ["environment.heldout_split=train", "evaluate.tasks=8", f"evaluate.seed={seed_of(0, 'tasks', 1)}"]
    assert said("eval", run, *same)["success_rate"] > 0


def test_a_model_that_never_solves_anything_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights: the run ends well, says why nothing was trained, and can be shown, resumed and measured."""
    write_records(tmp_path)
    save_tiny_llama(["x = 2 + 3", "How many are left?"], tmp_path / "model")
    given = [f"model.path={tmp_path / 'model'}", f'environment.options={{data = "{tmp_path}"}}', "rounds=2", "threads=1"]
    given += ["explore.tasks=4", "explore.k=2", "explore.max_tokens=8", "evaluate.tasks=4"]

    def said(*arguments: object) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["kintsugi", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert left.value.code == 0 and "Traceback" not in err, err
        return out, err

    out, err = said("train", "gsm8k", *given, "--out", tmp_path / "run", "--quiet", "--json")
    found = json.loads(out)
    assert found["champion"] == "start" and [one["round"] for one in found["evaluations"]] == [0]
    assert "round 2 nothing to learn from, so nothing is trained: no attempt succeeded." in " ".join(err.split())
    for again in (("train", "--resume", tmp_path / "run"), ("report", tmp_path / "run")):
        assert "2 of 2 rounds are done, and none found anything to learn." in said(*again)[0]
    assert json.loads(said("eval", tmp_path / "run", "--quiet", "--json")[0])["success_rate"] == 0


def test_a_folder_under_home_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shells leave the ~ of model.path=~/mine as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_recipe("gsm8k", ["model.path=~/mine"]).model.path == str(tmp_path / "mine")
    assert load_recipe("gsm8k", ["model.path=owner/mine"]).model.path == "owner/mine"
