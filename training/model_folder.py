"""Model folders: load one to train it, save what was trained, merge an adapter, tell two of them apart.

A folder is ordinary Hugging Face: all weights, or a LoRA adapter (`adapter_config.json`) that names its base; the
tokenizer lies beside either, so that `AutoTokenizer` and `AutoModelForCausalLM` load it. Which of the two a training
writes follows from where it starts and from `learn.lora`:

| start | lora set | lora None |
|---|---|---|
| all weights, or a hub name | a new adapter on it | all weights |
| an adapter | that adapter, continued | the adapter merged into its base, then all weights |

Left out: quantised bases, several adapters at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kintsugi.agents.policies.weight_loading import loading
from kintsugi.errors import ConfigError, PolicyError
from kintsugi.hub import hub_or_cache
from kintsugi.records import content_hash
from kintsugi.training.learn_config import LearnConfig, LoraSettings
from kintsugi.training.packed_attention import fits_packed_attention, register_packed_attention

RECORD = "learn.json"
"""What a training says of itself; written last, so that a folder without it is not trusted as a result."""

ORIGIN = ("dataset_hash", "config_hash", "seed", "parent_fingerprint")
"""The entries of the record that determine the weights."""


def is_adapter(model: Path | str) -> bool:
    """Whether the folder holds a LoRA adapter instead of all weights."""
    return (Path(model) / "adapter_config.json").exists()


def adapter_base(folder: Path | str) -> str:
    """The base that an adapter folder names: a hub name, or a folder, which may be relative to the adapter's own."""
    settings = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    base = str(settings["base_model_name_or_path"])
    return str(near.resolve()) if (near := Path(folder) / base).is_dir() else base


def load_trainable(model: Path | str, config: LearnConfig, base: str | None = None) -> tuple[Any, Any]:
    """The model, ready to be trained as the table above says, and its tokenizer.

    base: where the weights of an adapter's base lie, when not where the adapter says. Raises PolicyError when there is
    no model, ConfigError when an adapter to be continued has other settings than `config.lora`.
    """
    from peft import PeftModel, get_peft_model
    from transformers import AutoTokenizer

    adapter = is_adapter(model)
    source = base or adapter_base(model) if adapter else str(model)
    weights = load_weights(source, packing=config.packing, half=config.lora is not None and runs_bf16(config))
    if adapter and config.lora is not None:
        with loading(str(model)):
            weights = PeftModel.from_pretrained(weights, str(model), is_trainable=True)
        _check_same(weights.peft_config["default"], config.lora, model)
        weights.peft_config["default"].base_model_name_or_path = _lasting(source)
    elif adapter:
        with loading(str(model)):
            weights = PeftModel.from_pretrained(weights, str(model)).merge_and_unload().requires_grad_(True)
    elif config.lora is not None:
        weights = get_peft_model(weights, _peft_config(config.lora))
        weights.peft_config["default"].base_model_name_or_path = _lasting(base or source)
    return weights, AutoTokenizer.from_pretrained(str(model))


def load_weights(source: str, *, packing: bool = False, half: bool = False) -> Any:
    """A causal language model in float32 (`half`: bfloat16), with packed attention where asked for and possible.

    Raises PolicyError for a missing model or a damaged file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        attention = {}
        dtype = torch.bfloat16 if half else torch.float32
        with loading(source), hub_or_cache():
            if packing and fits_packed_attention(AutoConfig.from_pretrained(source)):
                attention["attn_implementation"] = register_packed_attention()
            return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **attention)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise PolicyError(f"expected a model folder or hub name, found {source}: {reason} Check the path.") from error


def runs_bf16(config: LearnConfig) -> bool:
    """Whether training computes in bfloat16 on this machine; never on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return False
    return torch.cuda.is_bf16_supported() if config.bf16 == "auto" else config.bf16


def save_trained(model: Any, tokenizer: Any, folder: Path, dtype: Any = None) -> None:
    """Write the weights (an adapter's alone, if it is one; all weights in `dtype`) and the tokenizer into `folder`."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
    else:
        (model if dtype is None else model.to(dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def merge_adapter(adapter: Path | str, out: Path, base: str | None = None) -> Path:
    """Write all weights of an adapter merged into its base to `out`, which is replaced, and return it."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    with replacing(out) as partial, quiet():
        weights = load_weights(base or adapter_base(adapter))
        with loading(str(adapter)):
            merged = PeftModel.from_pretrained(weights, str(adapter)).merge_and_unload()
        save_trained(merged, AutoTokenizer.from_pretrained(str(adapter)), partial)
    return out


def fingerprint(model: Path | str) -> str:
    """Tells model folders apart by what is in them: what its training was made from, or else its weight files; a name
    that is no folder stands for itself."""
    folder = Path(model)
    if not folder.is_dir():
        return str(model)
    if (folder / RECORD).exists():
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return content_hash([record.get(name) for name in ORIGIN])
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out` that takes its place when the block ends without an error, and is removed otherwise.

    A killed process leaves the old `out` whole, or none, and at most a folder that the next attempt clears away.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, old = out.with_name(out.name + ".partial"), out.with_name(out.name + ".old")
    for folder in (partial, old):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars for loading and saving, nor its warnings to programmers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _peft_config(lora: LoraSettings) -> Any:
    from peft import LoraConfig

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    return LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )


def _check_same(found: Any, lora: LoraSettings, model: Path | str) -> None:
    if (found.r, found.lora_alpha) != (lora.r, lora.alpha):
        raise ConfigError(
            f"the adapter {model} has r={found.r} and alpha={found.lora_alpha}, but learn.lora says r={lora.r} and "
            f"alpha={lora.alpha}: an adapter is continued with its own settings, so set these in learn.lora."
        )


def _lasting(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).is_dir() else source
