"""The small model from scratch: an ordinary folder, every byte representable, digits alone, the same bytes by seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kintsugi.errors import LearningError
from kintsugi.training.small_model import SmallModelConfig, make_small_model

pytest.importorskip("transformers")

TEXTS = [f"Ann has {n} pens and buys {n + 14} more. How many pens?\na = {n}\nb = a + {n + 14}\nprint(b)" for n in range(60)]
TINY = SmallModelConfig(hidden=32, layers=2, heads=2, intermediate=64, vocabulary=280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_model(TEXTS, tmp_path_factory.mktemp("small") / "model", TINY, seed=3)


def load(folder: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)


def test_it_is_an_ordinary_folder(folder: Path) -> None:
    tokenizer, model = load(folder)
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == len(tokenizer) == 280
    embedding = model.get_parameter("model.embed_tokens.weight")
    assert model.lm_head.weight is embedding
    assert 0.05 < embedding[10:].std() < 0.07
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_the_default_has_the_measured_size() -> None:
    from kintsugi.training.small_model import _draw_model, _train_tokenizer

    tokenizer = _train_tokenizer(TEXTS, SmallModelConfig())
    num = sum(weight.numel() for weight in _draw_model(SmallModelConfig(), tokenizer, 0).parameters())
    assert 340_000 < num < 390_000


@pytest.mark.parametrize("text", ["", "plain", "  two  spaces\n\ttab", "naïve — 漢字 🎉", "x\u0000y\u202e", "３ = ٣ + 12"])
def test_every_text_comes_back(folder: Path, text: str) -> None:
    tokenizer, _ = load(folder)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_digits_stand_alone_and_markers_are_one_token(folder: Path) -> None:
    tokenizer, _ = load(folder)
    assert tokenizer.tokenize("114") == ["1", "1", "4"]
    assert not [token for token in tokenizer.get_vocab() if sum(char.isdigit() for char in token) > 1]
    assert tokenizer.convert_tokens_to_ids(["<bos>", "<eos>", "<pad>", "<act>", "<bad>", "<fix>"]) == [0, 1, 2, 3, 4, 5]
    assert tokenizer.tokenize("<bad>a = 1<fix>")[0] == "<bad>"


def test_the_chat_template_masks_answers_exactly(folder: Path) -> None:
    tokenizer, _ = load(folder)
    chat = [
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "print(1)"},
        {"role": "user", "content": "wrong"},
        {"role": "assistant", "content": "print(2)"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<bos>How many?<act>print(1)<eos>wrong<act>print(2)<eos>"
    made = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    learned = [token for token, keep in zip(made["input_ids"], made["assistant_masks"], strict=True) if keep]
    assert tokenizer.decode(learned) == "print(1)<eos>print(2)<eos>"


def test_same_seed_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = make_small_model(TEXTS, tmp_path / "again", TINY, seed=3)
    other = make_small_model(TEXTS, tmp_path / "other", TINY, seed=4)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    assert (other / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (other / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(LearningError, match="needs texts"):
        make_small_model(["", ""], tmp_path / "none")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="multiple of twice the heads"):
        SmallModelConfig(hidden=90, heads=4)
    with pytest.raises(ValueError, match="must differ"):
        SmallModelConfig(extra_tokens=("<bos>",))
