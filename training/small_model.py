"""A small Llama-architecture model and its tokenizer, made from scratch: what an experiment starts from where no
downloaded weights fit (two CPU cores, a test, a laptop).

`make_small_model(texts, folder)` writes an ordinary Hugging Face folder with untrained weights that `AutoTokenizer` and
`AutoModelForCausalLM` load; the warm start (`kintsugi.training.learn` on demonstrations) teaches it to speak.

Measured choices (`SmallModelConfig`'s defaults, 0.38M parameters): digits stand alone in the vocabulary (two-digit tokens
end at 19 % where single digits reach 49 %), the initial standard deviation is 0.06 (0.02 and 0.12 did not learn to copy
numbers), embeddings are tied. Left out: any other architecture, and pre-training.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from kintsugi.config import StrictConfig
from kintsugi.errors import LearningError
from kintsugi.training.model_folder import quiet, replacing, save_trained

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role']=='assistant' %}"
    "{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}<act>{% endif %}{% endfor %}"
)
"""What is not the assistant's ends with `<act>`, which therefore is the generation prompt; an answer ends with `<eos>`."""

BASIC_TOKENS = ("<bos>", "<eos>", "<pad>", "<act>", "<bad>", "<fix>")
"""Always ids 0 to 5. `<bad>` opens the feedback on a failed attempt, `<fix>` ends it."""


class SmallModelConfig(StrictConfig):
    """Shape of the model and size of its vocabulary.

    vocabulary: most tokens, the 256 bytes and the special tokens included (few or short texts yield fewer).
    extra_tokens: special tokens after the basic six, each one id: markers that an environment writes into its texts.
    init_std: standard deviation of the initial weights.
    """

    hidden: int = Field(default=96, ge=8)
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    intermediate: int = Field(default=256, ge=8)
    vocabulary: int = Field(default=485, ge=264)
    tie_embeddings: bool = True
    init_std: float = Field(default=0.06, gt=0)
    max_positions: int = Field(default=512, ge=16)
    isolate_digits: bool = True
    extra_tokens: tuple[str, ...] = ("<obs>", "<room>", "<hint>")

    @model_validator(mode="after")
    def _shape(self) -> SmallModelConfig:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of twice the heads ({self.heads})")
        if len({*BASIC_TOKENS, *self.extra_tokens}) != len(BASIC_TOKENS) + len(self.extra_tokens):
            raise ValueError(f"extra_tokens must differ from each other and from {', '.join(BASIC_TOKENS)}")
        return self


def make_small_model(
    texts: Iterable[str], folder: Path | str, config: SmallModelConfig | None = None, seed: int = 0
) -> Path:
    """Train a tokenizer on `texts`, draw a model's weights, and save both into `folder`, which is replaced.

    texts: what the model will read and write, without special tokens needed. Every byte is representable, so text not
    seen here never fails, it only takes more tokens. The same texts, config and seed give the same bytes. Raises
    LearningError when there is no text.
    """
    config = config or SmallModelConfig()
    corpus = [text for text in texts if text]
    if not corpus:
        raise LearningError("a tokenizer needs texts to learn from, found none: pass some prompts and answers.")
    folder = Path(folder)
    with replacing(folder) as partial, quiet():
        tokenizer = _train_tokenizer(corpus, config)
        save_trained(_draw_model(config, tokenizer, seed), tokenizer, partial)
    return folder


def _train_tokenizer(corpus: list[str], config: SmallModelConfig) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    split_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split_bytes])
        if config.isolate_digits
        else split_bytes
    )
    backend.decoder = decoders.ByteLevel()
    special = [*BASIC_TOKENS, *config.extra_tokens]
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=special[3:],
        clean_up_tokenization_spaces=False,
        model_max_length=config.max_positions,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _draw_model(config: SmallModelConfig, tokenizer: Any, seed: int) -> Any:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        intermediate_size=config.intermediate,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.init_std,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(shape)
    model.generation_config = GenerationConfig(**ids)
    return model
