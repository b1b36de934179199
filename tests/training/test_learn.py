"""learn(): the losses are what they say they are, rows never see each other, and the folder can be trusted."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from kintsugi.errors import ConfigError, LearningError
from kintsugi.records import DatasetRow
from kintsugi.training.batches import num_loss_tokens, plan_batches
from kintsugi.training.learn import learn
from kintsugi.training.learn_config import ContrastiveSettings, DpoSettings, LearnConfig, LoraSettings
from kintsugi.training.small_model import SmallModelConfig, make_small_model

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

CONFIG = LearnConfig(lr=5e-3, steps=3, batch_tokens=200, schedule="constant", warmup_ratio=0)
WHOLE = CONFIG.model_copy(update={"steps": 1, "batch_tokens": 10_000})
LORA = LoraSettings(r=4, alpha=8, dropout=0.0)


def sequence(rng: random.Random, low: int = 12, high: int = 60) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids and a mask of two masked stretches, as two turns leave them."""
    num = rng.randint(low, high)
    ids = tuple(rng.randrange(10, 280) for _ in range(num))
    mask = tuple(int(num // 4 <= at < num // 2 or at >= 3 * num // 4) for at in range(num))
    return ids, mask


def make_row(number: int, *, pair: bool = False, weight: float = 1.0) -> DatasetRow:
    rng = random.Random(number)
    ids, mask = sequence(rng)
    row = DatasetRow(kind="explore", task_id=f"t{number}", trajectory_id=f"y{number}", ids=ids, mask=mask, weight=weight)
    if not pair:
        return row
    wrong, wrong_mask = sequence(rng)
    keep = len(ids) // 4
    return dataclasses.replace(row, kind="pair", rejected_ids=ids[:keep] + wrong, rejected_mask=(0,) * keep + wrong_mask)


ROWS = [make_row(number) for number in range(8)]
PAIRS = [make_row(number, pair=True) for number in range(8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = SmallModelConfig(hidden=32, layers=2, heads=2, intermediate=64, vocabulary=280, max_positions=128)
    texts = [f"a = {n}\nb = a + {n}\nprint(b) the quick brown fox {n} jumps" for n in range(50)]
    return make_small_model(texts, tmp_path_factory.mktemp("learn") / "model", shape)


def one_by_one(model: Path, rows: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: bool = False) -> list[float]:
    """Summed log-probability of each row's masked tokens, alone in a plain model."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model).eval()
    sums = []
    for ids, mask in rows:
        with torch.no_grad():
            logprobs = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        sums.append(sum(float(logprobs[at - 1, ids[at]]) for at in range(1, len(ids)) if mask[at]))
    return sums


def chosen(rows: Sequence[DatasetRow]) -> list[tuple[Sequence[int], Sequence[int]]]:
    return [(row.ids, row.mask) for row in rows]


def rejected(rows: Sequence[DatasetRow]) -> list[tuple[Sequence[int], Sequence[int]]]:
    return [(row.rejected_ids, row.rejected_mask) for row in rows]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"packing": False},
        {"batch_tokens": 100, "gradient_accumulation": 99},
        {"batch_size": 3, "gradient_accumulation": 99, "packing": False},
    ],
)
def test_packed_rows_do_not_see_each_other(model: Path, tmp_path: Path, change: dict) -> None:
    config = LearnConfig(**{**CONFIG.model_dump(), "steps": None, "batch_tokens": 10_000, **change})
    result = learn(ROWS, model=model, out=tmp_path / "out", config=config, seed=0)
    expected = -sum(one_by_one(model, chosen(ROWS))) / sum(num_loss_tokens(row.mask) for row in ROWS)
    assert result.steps == 1
    assert result.losses[0] == pytest.approx(expected, abs=1e-4)
    assert result.tokens == sum(len(row.ids) for row in ROWS)


@pytest.mark.parametrize("packing", [True, False])
def test_what_the_environment_said_counts_by_its_weight(model: Path, tmp_path: Path, packing: bool) -> None:
    """−(Σ log p of answers + w Σ log p of observations) / (answers + w observations), by hand; at w = 0 as if unmarked."""
    marked = [dataclasses.replace(row, mask=tuple(value or 2 for value in row.mask)) for row in ROWS[:3]]
    answers = sum(one_by_one(model, chosen(ROWS[:3])))
    observed = sum(one_by_one(model, [(row.ids, [value == 2 for value in row.mask]) for row in marked]))
    num = sum(num_loss_tokens(row.mask) for row in marked)
    num_observed = sum(len(row.ids) - 1 for row in marked) - num
    for weight in (0.5, 0.0):
        config = WHOLE.model_copy(update={"observation_loss": weight, "packing": packing})
        result = learn(marked, model=model, out=tmp_path / str(weight), config=config, seed=0)
        expected = -(answers + weight * observed) / (num + weight * num_observed)
        assert result.losses[0] == pytest.approx(expected, abs=1e-4)


def test_models_with_windows_are_packed_by_transformers_own_mask(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    from kintsugi.training.packed_attention import fits_packed_attention

    plain = make_small_model(["abc"], tmp_path / "plain", SmallModelConfig(hidden=32, layers=1, heads=2))
    shape = MistralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    assert not fits_packed_attention(shape)
    torch.manual_seed(0)
    folder = tmp_path / "windowed"
    MistralForCausalLM(shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    result = learn(ROWS, model=folder, out=tmp_path / "out", config=WHOLE, seed=0)
    expected = -sum(one_by_one(folder, chosen(ROWS))) / sum(num_loss_tokens(row.mask) for row in ROWS)
    assert result.losses[0] == pytest.approx(expected, abs=1e-4)


def test_weights_multiply_rows(model: Path, tmp_path: Path) -> None:
    rows = [make_row(0, weight=2.0), make_row(1, weight=0.0), make_row(2, weight=0.5)]
    result = learn(rows, model=model, out=tmp_path / "out", config=WHOLE, seed=0)
    sums = one_by_one(model, chosen(rows))
    expected = -(2.0 * sums[0] + 0.5 * sums[2]) / sum(num_loss_tokens(row.mask) for row in rows)
    assert result.losses[0] == pytest.approx(expected, abs=1e-4)


def test_l1_l2_with_weights_of_one_is_sft_on_the_joined_rows(model: Path, tmp_path: Path) -> None:
    rows = ROWS[:4] + [dataclasses.replace(row, kind="repair") for row in ROWS[4:]]
    both = CONFIG.model_copy(update={"loss": "l1_l2"})
    joined = learn(rows, model=model, out=tmp_path / "a", config=both, seed=0)
    plain = learn(rows, model=model, out=tmp_path / "b", config=CONFIG, seed=0)
    assert joined.losses == plain.losses
    heavier = [dataclasses.replace(row, weight=3.0 if row.kind == "repair" else 1.0) for row in rows]
    assert learn(heavier, model=model, out=tmp_path / "c", config=both, seed=0).losses != plain.losses


@pytest.mark.parametrize("packing", [True, False])
def test_the_contrastive_loss_is_its_formula(model: Path, tmp_path: Path, packing: bool) -> None:
    rows = PAIRS[:5] + ROWS[5:]
    # A floor below an untrained model's log-probability (about -5.7 a token), so that the term is at work.
    settings = ContrastiveSettings(margin=0.5, weight=0.3, floor=-20.0)
    config = WHOLE.model_copy(update={"loss": "contrastive", "contrastive": settings, "packing": packing})
    result = learn(rows, model=model, out=tmp_path / "out", config=config, seed=0)
    good, bad = one_by_one(model, chosen(rows)), one_by_one(model, rejected(rows[:5]))
    cross_entropy = -sum(good) / sum(num_loss_tokens(row.mask) for row in rows)
    hinges = [
        max(0.0, 0.5 - (right / sum(row.mask[1:]) - wrong / sum(row.rejected_mask[1:])))
        for row, right, wrong in zip(rows[:5], good[:5], bad, strict=True)
    ]
    assert sum(hinges) > 1
    assert result.losses[0] == pytest.approx(cross_entropy + 0.3 * sum(hinges) / len(rows), abs=1e-4)


def test_contrastive_training_parts_right_from_wrong(model: Path, tmp_path: Path) -> None:
    def gap(folder: Path) -> float:
        good = one_by_one(folder, chosen(PAIRS[:2]))
        bad = one_by_one(folder, rejected(PAIRS[:2]))
        right = [value / sum(row.mask[1:]) for value, row in zip(good, PAIRS, strict=False)]
        return sum(right) - sum(value / sum(row.rejected_mask[1:]) for value, row in zip(bad, PAIRS, strict=False))

    settings = ContrastiveSettings(margin=2.0, weight=1.0, floor=-20.0)
    config = CONFIG.model_copy(update={"loss": "contrastive", "contrastive": settings, "steps": 15})
    pushed = learn(PAIRS[:2], model=model, out=tmp_path / "pushed", config=config, seed=0)
    plain = learn(PAIRS[:2], model=model, out=tmp_path / "plain", config=CONFIG.model_copy(update={"steps": 15}), seed=0)
    assert gap(pushed.path) > gap(plain.path) > gap(model)
    without = config.model_copy(update={"contrastive": ContrastiveSettings(weight=0.0)})
    same = learn(PAIRS[:2], model=model, out=tmp_path / "same", config=without, seed=0)
    assert same.losses == pytest.approx(plain.losses, abs=1e-4)


def test_below_the_floor_nothing_is_pushed_down() -> None:
    from kintsugi.training.contrastive import hinge_sum

    rewards = torch.tensor([-4.0, -4.0, -1.0, -4.1, -2.5, -2.5], requires_grad=True)
    hinge_sum(rewards, torch.tensor([0, 1, 2]), ContrastiveSettings()).backward()
    # Of the wrong rows the first is under the floor of -3, the second is not, the third is far enough from its right one.
    assert rewards.grad is not None
    assert rewards.grad.tolist() == [-1, -1, 0, 0, 1, 0]
    assert hinge_sum(rewards, torch.tensor([], dtype=torch.long), ContrastiveSettings()) == 0


def test_dpo_covers_exactly_the_masked_tokens() -> None:
    from kintsugi.training.dpo import collate_pairs

    turns = [(0, 7), (1, 5), (0, 20), (1, 4), (0, 30), (1, 6)]
    mask = tuple(bit for bit, num in turns for _ in range(num))
    row = DatasetRow(
        kind="pair", task_id="t", trajectory_id="y", ids=tuple(range(10, 10 + len(mask))), mask=mask,
        rejected_ids=tuple(range(10, 29)), rejected_mask=(0,) * 7 + (1,) * 3 + (0,) * 5 + (1,) * 4,
    )  # fmt: skip
    made = collate_pairs([row], pad_id=2)
    assert made["completion_mask"].sum(dim=1).tolist() == [15, 7]
    assert made["completion_mask"][0].tolist() == list(mask)
    assert made["attention_mask"].sum(dim=1).tolist() == [72, 19]


@pytest.mark.parametrize("lora", [None, LORA])
def test_dpo_widens_the_margin_on_masked_tokens(model: Path, tmp_path: Path, lora: LoraSettings | None) -> None:
    from transformers import AutoModelForCausalLM

    config = CONFIG.model_copy(update={"loss": "dpo", "steps": 12, "lora": lora, "dpo": DpoSettings(beta=0.5)})
    rows = [*PAIRS[:4], ROWS[0]]
    result = learn(rows, model=model, out=tmp_path / "out", config=config, seed=0)
    assert result.dropped["unpaired"] == 1
    assert result.losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert result.losses[-1] < 0.3
    assert AutoModelForCausalLM.from_pretrained(result.path) is not None
    before = zip(one_by_one(model, chosen(rows[:4])), one_by_one(model, rejected(rows[:4])), strict=True)
    after = zip(one_by_one(result.path, chosen(rows[:4])), one_by_one(result.path, rejected(rows[:4])), strict=True)
    margins = [(c1 - r1) - (c0 - r0) for (c0, r0), (c1, r1) in zip(before, after, strict=True)]
    assert min(margins) > 1


def test_the_dpo_loss_is_its_formula(model: Path, tmp_path: Path) -> None:
    settings = DpoSettings(beta=0.5, sft_weight=0.2)
    config = CONFIG.model_copy(update={"loss": "dpo", "dpo": settings, "steps": 2, "batch_tokens": 10_000})
    first = learn(PAIRS, model=model, out=tmp_path / "1", config=config.model_copy(update={"steps": 1}), seed=0)
    both = learn(PAIRS, model=model, out=tmp_path / "2", config=config, seed=0)
    start = [one_by_one(model, side(PAIRS)) for side in (chosen, rejected)]
    stepped = [one_by_one(first.path, side(PAIRS)) for side in (chosen, rejected)]
    deltas = [(stepped[0][at] - start[0][at]) - (stepped[1][at] - start[1][at]) for at in range(len(PAIRS))]
    preference = sum(math.log1p(math.exp(-0.5 * delta)) for delta in deltas) / len(PAIRS)
    supervised = -sum(stepped[0]) / sum(num_loss_tokens(row.mask) for row in PAIRS)
    assert both.losses[1] == pytest.approx(preference + 0.2 * supervised, abs=1e-3)


def test_dpo_refuses_weights_it_would_ignore(model: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"loss": "dpo"})
    with pytest.raises(LearningError, match="weight 1"):
        learn([make_row(0, pair=True, weight=0.5)], model=model, out=tmp_path / "out", config=config, seed=0)
    with pytest.raises(LearningError, match="1 unpaired"):
        learn([make_row(0)], model=model, out=tmp_path / "out", config=config, seed=0)


def test_plans_are_exact_shuffled_and_never_straddle_epochs() -> None:
    plan = plan_batches(ROWS, CONFIG.model_copy(update={"steps": 7, "gradient_accumulation": 2}), 0)
    assert len(plan) == 14
    epochs = plan_batches(ROWS, CONFIG.model_copy(update={"steps": None, "epochs": 3}), 0)
    order = [number for batch in epochs for number in batch.rows]
    assert [sorted(order[at : at + 8]) for at in (0, 8, 16)] == [list(range(8))] * 3
    assert order[:8] != order[8:16]
    assert all(sum(len(ROWS[n].ids) for n in batch.rows) <= 200 for batch in epochs)
    assert plan_batches(ROWS, CONFIG, 0) == plan_batches(ROWS, CONFIG, 0) != plan_batches(ROWS, CONFIG, 1)
    assert [len(b.rows) for b in plan_batches(ROWS, LearnConfig(batch_size=3), 0)] == [3, 3, 2]
    assert [len(b.rows) for b in plan_batches(ROWS, LearnConfig(batch_tokens=1), 0)] == [1] * 8


def test_it_learns_repeats_itself_and_leaves_nothing_behind(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    seen: list[tuple[int, int, float]] = []
    config = CONFIG.model_copy(update={"steps": 30, "schedule": "cosine", "warmup_ratio": 0.1})

    def note(step: int, steps: int, loss: float) -> None:
        seen.append((step, steps, loss))

    runs = [learn(ROWS[:3], model=model, out=tmp_path / name, config=config, seed=5, on_step=note) for name in ("a", "b")]
    assert runs[0].losses == runs[1].losses
    assert [loss for _, _, loss in seen[:30]] == list(runs[0].losses)
    assert [(step, steps) for step, steps, _ in seen[:30]] == [(step, 30) for step in range(1, 31)]
    assert runs[0].loss < 0.5 * runs[0].losses[0]
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert "kintsugi" not in (tmp_path / "a" / "config.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "cwd"]
    assert not list((tmp_path / "cwd").iterdir())
    assert capfd.readouterr() == ("", "")


def test_a_finished_folder_is_kept_only_for_the_same_question(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = learn(ROWS, model=model, out=out, config=CONFIG, seed=0)
    again = learn(ROWS, model=model, out=out, config=CONFIG, seed=0)
    assert again.reused and not first.reused
    assert dataclasses.replace(again, reused=False) == first
    changes: list[dict] = [
        {"seed": 1},
        {"rows": ROWS[1:]},
        {"config": CONFIG.model_copy(update={"lr": 1e-3})},
        {"model": out},
    ]
    for number, change in enumerate(changes):
        asked = {"rows": ROWS, "model": model, "config": CONFIG, "seed": 0, **change}
        rows = asked.pop("rows")
        target = tmp_path / "next" if "model" in change else out
        if "model" in change:
            learn(ROWS, model=model, out=target, config=CONFIG, seed=0)
        assert not learn(rows, out=target, **asked).reused, number
        assert learn(rows, out=target, **asked).reused, number


def test_half_written_folders_are_not_trusted_and_failures_leave_the_old_one(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    learn(ROWS, model=model, out=out, config=CONFIG, seed=0)
    with pytest.raises(LearningError, match="finite loss"):
        learn(ROWS, model=model, out=out, config=CONFIG.model_copy(update={"lr": 1e30, "steps": 9}), seed=0)
    assert json.loads((out / "learn.json").read_text())["steps"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    (out / "learn.json").write_text("{")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "rubbish").write_text("x")
    assert not learn(ROWS, model=model, out=out, config=CONFIG, seed=0).reused
    assert not (out / "rubbish").exists()


def test_rows_are_dropped_and_counted_never_cut(model: Path, tmp_path: Path) -> None:
    long = dataclasses.replace(ROWS[0], ids=(11,) * 129, mask=(0,) + (1,) * 128)
    silent = dataclasses.replace(ROWS[1], mask=(1,) + (0,) * (len(ROWS[1].ids) - 1))
    rows = [long, silent, *ROWS]
    result = learn(rows, model=model, out=tmp_path / "out", config=CONFIG, seed=0)
    assert result.dropped == {"too_long": 1, "no_loss": 1, "unpaired": 0}
    plain = learn(ROWS, model=model, out=tmp_path / "plain", config=CONFIG, seed=0)
    assert result.losses == plain.losses


def test_mistakes_are_named(model: Path, tmp_path: Path) -> None:
    def attempt(rows: list[DatasetRow], **change: object) -> None:
        learn(rows, model=model, out=tmp_path / "out", config=CONFIG.model_copy(update=change), seed=0)

    with pytest.raises(LearningError, match="found none"):
        attempt([])
    with pytest.raises(LearningError, match="8 too_long"):
        attempt(ROWS, max_length=4)
    with pytest.raises(LearningError, match="mask as long"):
        attempt([dataclasses.replace(ROWS[0], mask=(1,))])
    with pytest.raises(LearningError, match="another tokenizer"):
        attempt([dataclasses.replace(ROWS[0], ids=(5000, *ROWS[0].ids[1:]))])
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_written_continued_and_merged(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from kintsugi.training.model_folder import merge_adapter

    config = CONFIG.model_copy(update={"lora": LORA})
    first = learn(ROWS, model=model, out=tmp_path / "1", config=config, seed=0)
    names = {path.name for path in first.path.iterdir()}
    assert first.adapter and "adapter_model.safetensors" in names and "model.safetensors" not in names
    settings = json.loads((first.path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(model.resolve())
    assert len(AutoTokenizer.from_pretrained(first.path)) == 280
    second = learn(ROWS, model=first.path, out=tmp_path / "2", config=config, seed=0)
    assert second.losses[0] < first.losses[0]
    assert json.loads((second.path / "adapter_config.json").read_text())["r"] == 4
    merged = merge_adapter(second.path, tmp_path / "merged")
    ids = torch.tensor([ROWS[0].ids])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(second.path)(ids).logits
        assert torch.allclose(AutoModelForCausalLM.from_pretrained(merged)(ids).logits, expected, atol=1e-5)
    full = learn(ROWS, model=second.path, out=tmp_path / "3", config=CONFIG, seed=0)
    assert not full.adapter and (full.path / "model.safetensors").exists()
    with pytest.raises(ConfigError, match="r=4 and alpha=8"):
        other = CONFIG.model_copy(update={"lora": LoraSettings(r=2)})
        learn(ROWS, model=first.path, out=tmp_path / "4", config=other, seed=0)


def test_an_adapter_follows_its_base(model: Path, tmp_path: Path) -> None:
    import shutil

    moved = shutil.copytree(model, tmp_path / "there")
    config = CONFIG.model_copy(update={"lora": LORA})
    first = learn(ROWS, model=moved, out=tmp_path / "1", config=config, seed=0)
    again = moved.rename(tmp_path / "elsewhere")
    second = learn(ROWS, model=first.path, out=tmp_path / "2", config=config, seed=0, base=str(again))
    assert second.losses[0] < first.losses[0]


def test_a_base_that_is_named_relative_to_its_adapter(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever one stands; and what is written names it in whole, so that it opens from anywhere."""
    import os
    import shutil

    base = Path(shutil.copytree(model, tmp_path / "base"))
    config = CONFIG.model_copy(update={"lora": LORA})
    monkeypatch.chdir(tmp_path)
    first = learn(ROWS, model="base", out=tmp_path / "runs" / "1", config=config, seed=0, base="base")
    file = first.path / "adapter_config.json"
    settings = json.loads(file.read_text())
    assert settings["base_model_name_or_path"] == str(base.resolve())
    (tmp_path / "far" / "away").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "far" / "away")
    file.write_text(json.dumps({**settings, "base_model_name_or_path": os.path.join("..", "..", "base")}))
    second = learn(ROWS, model=first.path, out=tmp_path / "2", config=config, seed=0)
    assert second.losses[0] < first.losses[0]
    assert json.loads((second.path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base.resolve())


def test_dpo_continues_an_adapter_against_a_copy_of_itself(model: Path, tmp_path: Path) -> None:
    first = learn(PAIRS, model=model, out=tmp_path / "1", config=CONFIG.model_copy(update={"lora": LORA}), seed=0)
    config = CONFIG.model_copy(update={"loss": "dpo", "lora": LORA})
    second = learn(PAIRS, model=first.path, out=tmp_path / "2", config=config, seed=0)
    assert second.losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert not [path for path in second.path.iterdir() if path.is_dir()]
